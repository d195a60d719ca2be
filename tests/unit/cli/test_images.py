"""Each image has what its own service needs, and the whole command line."""

import subprocess
import sys

ELSEWHERE = ("sortedcontainers", "numpy", "torch", "transformers", "aiohttp", "llguidance")


def test_the_command_line_needs_nothing_of_one_service_to_start_another() -> None:
    hidden = f"import sys; sys.modules.update(dict.fromkeys({ELSEWHERE}))"
    code = f"{hidden}; from anole_cli.main import main; main(['memd', '--help'])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "anole memd" in told.stdout
