"""A small virtual machine to measure and test memory hotplug in: QEMU, a stock Debian kernel."""
