"""Which device a worker runs on, and how much of its memory there is to share."""

import logging

import torch

from anole_shared.errors import ConfigurationError
from anole_worker.errors import DeviceLost
from anole_worker.settings import DEFAULT_MEMORY_BYTES, WorkerSettings

log = logging.getLogger(__name__)

_EXPANDABLE = "expandable_segments:True"


def choose(name: str) -> torch.device:
    """The device of a setting: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigurationError: torch has no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    index = int(name.removeprefix("cuda:")) if name.startswith("cuda:") else 0
    if index >= count:
        raise ConfigurationError(
            f"ANOLE_WORKER_DEVICE is {name}, torch {torch.__version__} sees {count} CUDA devices: "
            "install a torch with CUDA and a driver that fits it, or set it to cpu"
        )
    return torch.device("cuda", index)


def take(device: torch.device) -> None:
    """Make it this thread's device, before anything is on it.

    Its allocator is told to map memory by the page (virtual addresses are cheap): what blocks give
    back in pieces can then become an adapter, and the other way round.
    """
    if device.type == "cuda":
        torch._C._accelerator_setAllocatorSettings(_EXPANDABLE)  # noqa: SLF001 - there is no other
        torch.cuda.set_device(device)


def memory_bytes(settings: WorkerSettings, free_bytes: int | None) -> int:
    """What blocks and adapters share.

    free_bytes: of a device with memory of its own, beside the model and what a step needs.

    Raises:
        ConfigurationError: the setting asks for more than there is.
    """
    wanted = settings.memory_bytes
    if free_bytes is None:
        return DEFAULT_MEMORY_BYTES if wanted is None else wanted
    if wanted is None:
        return int(free_bytes * settings.memory_fraction)
    if wanted > free_bytes:
        raise ConfigurationError(
            f"ANOLE_WORKER_MEMORY_BYTES is {wanted}, the device has {free_bytes} left beside the "
            "model: lower it, or leave it out"
        )
    return wanted


def free_bytes(device: torch.device, peak_bytes: int) -> int:
    """What the device has left once a step has taken peak_bytes at most.

    peak_bytes: torch's own memory while the largest step ran, what stays for good among it.
    """
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    return max(0, free - max(0, peak_bytes - held))


def check(device: torch.device) -> None:
    """See whether the device still runs what it is given; waits for what it was given.

    Raises:
        DeviceLost: something went so wrong there (it read where nothing is, for instance) that
            CUDA answers every call of this process with that fault, for ever.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as fault:
        reason = str(fault).partition("\n")[0]
        raise DeviceLost(
            f"{device} is lost to this process ({reason}): start the worker again; if it happens "
            "again, CUDA_LAUNCH_BLOCKING=1 shows where"
        ) from fault
