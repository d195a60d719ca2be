/* hog NODE MIB CHUNK_MIB [thp]: fills so much memory and keeps it, as one function instance would.
 *
 * NODE: bind the memory to this NUMA node (MPOL_BIND), -1 for none. After each chunk others get a turn, so that
 * hogs that start together interleave. Says "ready" once all of it is there, then waits to be killed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define MPOL_BIND 2
#define MIB (1UL << 20)

static int fail(const char *what)
{
	printf("failed: %s: %s\n", what, strerror(errno));
	return 1;
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	int node = atoi(argv[1]);
	size_t size = strtoul(argv[2], NULL, 10) * MIB, chunk = strtoul(argv[3], NULL, 10) * MIB;
	int huge = argc > 4 && !strcmp(argv[4], "thp");
	unsigned long mask[16] = {0};

	char *memory = mmap(NULL, size + 2 * MIB, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return fail("mmap");
	memory = (char *)(((unsigned long)memory + 2 * MIB - 1) & ~(2 * MIB - 1));
	if (node >= 0) {
		/* Not set_mempolicy: what this process prints would take a page of the node, too. */
		mask[node / 64] = 1UL << node % 64;
		if (syscall(SYS_mbind, memory, size, MPOL_BIND, mask, 1024, 0))
			return fail("mbind");
	}
	madvise(memory, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (size_t done = 0; done < size; done += chunk) {
		size_t part = size - done < chunk ? size - done : chunk;
		if (madvise(memory + done, part, MADV_POPULATE_WRITE))
			return fail("populate");
		sched_yield();
	}
	printf("ready\n");
	fflush(stdout);
	pause();
	return 0;
}
