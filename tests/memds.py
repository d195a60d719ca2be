"""memd as a process of its own, as people start it."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memd_at(path: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """memd with these settings, once it is ready at the socket; killed at the end."""
    child = subprocess.Popen(
        [sys.executable, "-m", "anole_cli", "memd"],
        env={**os.environ, "ANOLE_MEMD_SOCKET": str(path), **variables},
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stderr is not None
        said = ""
        while "is ready" not in said:
            line = child.stderr.readline()
            assert line, f"memd did not start: {said}"
            said += line
        drain = threading.Thread(target=child.stderr.read, daemon=True)
        drain.start()
        try:
            yield child
        finally:
            child.kill()
            drain.join()
