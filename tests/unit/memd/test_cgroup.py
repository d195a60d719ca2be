import os
from pathlib import Path

import pytest

from anole_memd.backends import cgroup
from anole_memd.backends.cgroup import MemoryCgroup
from anole_memd.errors import SandboxUnavailable
from anole_shared.units import MiB


def tree(root: Path, controllers: str = "cpuset cpu io memory pids") -> Path:
    """What the kernel shows at the top; below it these tests make plain directories."""
    root.mkdir()
    (root / "cgroup.controllers").write_text(controllers + "\n")
    (root / "cgroup.subtree_control").write_text("")
    return root


def test_the_memory_controller_is_turned_on_for_the_groups_to_come(tmp_path: Path) -> None:
    root = tree(tmp_path / "cgroup")
    made = root / "anole"
    made.mkdir()
    (made / "cgroup.controllers").write_text("memory pids\n")
    (made / "cgroup.subtree_control").write_text("pids\n")
    assert cgroup.parent(root) == made
    assert (root / "cgroup.subtree_control").read_text() == "+memory"
    assert (made / "cgroup.subtree_control").read_text() == "+memory"


@pytest.mark.parametrize(
    ("controllers", "reason"),
    [(None, "is no cgroup v2"), ("cpu io", "has no memory controller"), ("", "no memory")],
)
def test_a_host_that_cannot_is_told_why_and_what_to_do(
    tmp_path: Path, controllers: str | None, reason: str
) -> None:
    root = tmp_path / "cgroup"
    if controllers is not None:
        tree(root, controllers)
    with pytest.raises(SandboxUnavailable, match=f"{reason}.*boot with") as refusal:
        cgroup.parent(root)
    assert "numa" not in str(refusal.value)  # its programs need a group, too


def test_a_folder_that_is_not_delegated_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder" / "cgroup.subtree_control").mkdir(parents=True)
    (tmp_path / "folder" / "cgroup.controllers").write_text("memory\n")
    with pytest.raises(SandboxUnavailable, match="Delegate=yes"):
        cgroup.parent(tree(tmp_path / "cgroup"), tmp_path / "folder")


def test_a_group_is_limited_in_memory_without_swap_and_dies_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    group = MemoryCgroup.found(tmp_path / "g")
    (group.path / "memory.swap.max").write_text("max")
    group.limit(512 * MiB)
    assert (group.path / "memory.max").read_text() == str(512 * MiB)
    assert (group.path / "memory.swap.max").read_text() == "0"
    assert (group.path / "memory.oom.group").read_text() == "1"


def test_usage_is_read_and_what_a_kernel_lacks_is_nought(tmp_path: Path) -> None:
    group = MemoryCgroup.found(tmp_path)
    assert group.usage() == cgroup.Usage(current_bytes=0, peak_bytes=0, num_killed=0)
    (tmp_path / "memory.current").write_text("4096\n")
    (tmp_path / "memory.peak").write_text("8192\n")
    (tmp_path / "memory.events").write_text("max 9\noom 1\noom_kill 2\n")
    assert group.usage() == cgroup.Usage(current_bytes=4096, peak_bytes=8192, num_killed=2)


def test_a_group_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match="No such file"):
        MemoryCgroup(tmp_path / "none", "x", 1)


def test_groups_of_dead_supervisors_are_swept_and_others_left(tmp_path: Path) -> None:
    within, proc = tmp_path / "anole", tmp_path / "proc"
    for pid, started in ((12, 500), (13, 900), (os.getpid(), 700)):
        (proc / str(pid)).mkdir(parents=True)
        fields = " ".join(["S", *["0"] * 18, str(started), "0"])
        (proc / str(pid) / "stat").write_text(f"{pid} (anole) {fields}\n")
    # The second one's process id is another process's by now.
    dead, alive = ["11-400-lease-1", "13-600-lease-3"], ["12-500-lease-2", "not-ours"]
    alive.append(cgroup.name_of("lease-4", proc))
    for name in (*dead, *alive):
        (within / name).mkdir(parents=True)
        (within / name / "cgroup.kill").write_text("")
    cgroup.sweep(within, proc)
    killed = {group.name for group in within.iterdir() if (group / "cgroup.kill").read_text()}
    assert killed == set(dead)
