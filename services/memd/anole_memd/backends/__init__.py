"""The kernel side: each module reaches one interface of Linux or of a hypervisor."""
