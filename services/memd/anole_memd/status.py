"""Asking a running memd how it stands: health checks and people."""

from pathlib import Path

from anole_memd.client import MemdClient
from anole_memd.errors import MemdRefused, MemdUnavailable
from anole_shared.messages import MemoryStatusReported


def memory_status(socket_path: Path, timeout_s: float) -> MemoryStatusReported:
    """How much memory the memd at socket_path has, and how much of it is leased. Blocks.

    Raises:
        MemdUnavailable: nobody listens there, or does not answer within timeout_s, or refuses.
    """
    try:
        with MemdClient(socket_path, timeout_s=timeout_s) as memd:
            return memd.status()
    except MemdRefused as refusal:
        raise MemdUnavailable(f"memd at {socket_path} refuses: {refusal}") from refusal
