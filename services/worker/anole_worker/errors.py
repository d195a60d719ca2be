"""What can be wrong with the files that a worker is given, and with its device.

An error names the file, says what is wrong with it and what to do about it.
"""

from pathlib import Path

from anole_shared.errors import AnoleError, ConfigurationError


class ModelRefused(ConfigurationError):
    """The base model's folder is one that the worker cannot run."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"base model {path}: {reason}")
        self.path = path
        self.reason = reason


class UnknownAdapter(AnoleError):
    """No adapter of that name can be served here; the message says why."""


class AdapterRefused(AnoleError):
    """An adapter's folder is one that the worker cannot, or must not, use."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"adapter file {path}: {reason}")
        self.path = path
        self.reason = reason


class DeviceMemoryFull(AnoleError):
    """The device had no memory for an adapter, though the ledger says that there is some."""

    retryable = True


class DeviceLost(AnoleError):
    """The device does nothing more for this process: no step can run, no adapter be loaded."""
