/* neighbour MIB FILE: walks over its own memory all the time, and keeps count in FILE.
 *
 * Writes one byte a page, in an order that the processor does not guess. FILE (of a tmpfs, mapped)
 * holds how many pages it has touched, as 20 digits.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	size_t pages = strtoul(argv[1], NULL, 10) << 8, at = 0;
	int file = open(argv[2], O_RDWR | O_CREAT | O_TRUNC, 0600);
	char *memory = mmap(NULL, pages << 12, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (file < 0 || ftruncate(file, 20) || memory == MAP_FAILED)
		return 1;
	char *shown = mmap(NULL, 20, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (shown == MAP_FAILED)
		return 1;
	for (unsigned long touched = 0;;) {
		char digits[21];
		for (int i = 0; i < 1024; i++, touched++) {
			at = (at + 7919) % pages;
			memory[at << 12]++;
		}
		snprintf(digits, sizeof digits, "%020lu", touched);
		memcpy(shown, digits, 20);
	}
}
