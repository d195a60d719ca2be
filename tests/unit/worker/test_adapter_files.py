import dataclasses
import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anole_shared.codec import encode
from anole_shared.errors import ConfigurationError
from anole_shared.ids import WorkerId
from anole_shared.messages import AdaptersDiscovered
from anole_worker import adapter_files
from anole_worker.adapter_files import MAX_CONFIG_BYTES, discover, read
from anole_worker.errors import AdapterRefused
from anole_worker.translate import refused_record
from tests.unit.worker.peft_folders import SHAPE, tensors, write_adapter, write_raw


def test_a_good_adapter_is_described(tmp_path: Path) -> None:
    file = read(write_adapter(tmp_path / "pirate-v1.2"), SHAPE)
    assert file.adapter_id == "pirate-v1.2"
    assert file.path == tmp_path / "pirate-v1.2"
    assert file.rank == 4
    assert file.target_modules == ("q_proj", "v_proj")
    assert 4 * file.num_weights == sum(tensor.nbytes for tensor in tensors().values())
    assert file.stored == "F32"


def test_half_precision_is_told_from_what_is_mixed(tmp_path: Path) -> None:
    halves = tensors(dtype="float16")
    file = read(write_adapter(tmp_path / "x", weights=halves), SHAPE)
    assert 2 * file.num_weights == sum(tensor.nbytes for tensor in halves.values())
    assert file.stored == "F16"
    name = next(iter(halves))
    mixed = {**halves, name: halves[name].astype("float32")}
    assert read(write_adapter(tmp_path / "y", weights=mixed), SHAPE).stored == "F32"


def test_the_generation_follows_the_content_alone(tmp_path: Path) -> None:
    first, same = (read(write_adapter(tmp_path / name), SHAPE) for name in ("a", "b"))
    other = read(write_adapter(tmp_path / "c", weights=tensors(seed=1)), SHAPE)
    scaled = read(write_adapter(tmp_path / "d", fields={"lora_alpha": 9}), SHAPE)
    assert first.generation == same.generation
    assert len({first.generation, other.generation, scaled.generation}) == 3
    assert len(first.generation) == 16


@pytest.mark.parametrize("name", [".hidden", "a b", "ä", "a" * 129, "a\n"])
def test_a_folder_name_that_is_no_id_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(AdapterRefused, match="no adapter id"):
        read(write_adapter(tmp_path / name), SHAPE)


def test_a_pickle_is_refused_and_never_read(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "x")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(AdapterRefused, match=r"convert it to adapter_model\.safetensors") as error:
        read(folder, SHAPE)
    assert error.value.path == folder / "adapter_model.bin"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "x")
    (folder / name).unlink()
    with pytest.raises(AdapterRefused, match="cannot be read") as error:
        read(folder, SHAPE)
    assert error.value.path == folder / name


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "x")
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(AdapterRefused, match="leads out of its folder"):
        read(folder, SHAPE)


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "x")
    (folder / "adapter_model.safetensors").rename(folder / "blob")
    (folder / "adapter_model.safetensors").symlink_to("blob")
    assert read(folder, SHAPE).rank == 4


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "x")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").symlink_to("adapter_model.safetensors")
    with pytest.raises(AdapterRefused, match="cannot be read"):
        read(folder, SHAPE)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "x")
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")
    with pytest.raises(AdapterRefused, match="no regular file"):
        read(folder, SHAPE)


def test_a_directory_in_a_files_place_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "x")
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").mkdir()
    with pytest.raises(AdapterRefused, match="no regular file"):
        read(folder, SHAPE)


def test_a_configuration_has_a_limit(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "x")
    (folder / "adapter_config.json").write_text(" " * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(AdapterRefused, match="longer than"):
        read(folder, SHAPE)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "x") / "adapter_model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(AdapterRefused, match="cut short") as error:
        read(tmp_path / "x", SHAPE)
    assert str(path) in str(error.value)


def test_dora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="DoRA is not supported; train with use_dora=False"):
        read(write_adapter(tmp_path / "x", fields={"use_dora": True}), SHAPE)


def test_an_adapter_of_another_base_model_is_refused(tmp_path: Path) -> None:
    other = dataclasses.replace(SHAPE, hidden_size=48)
    with pytest.raises(AdapterRefused, match="trained for this base model"):
        read(write_adapter(tmp_path / "x", weights=tensors(other)), SHAPE)


def test_discovery_sorts_good_from_bad_and_passes_over_the_rest(tmp_path: Path) -> None:
    write_adapter(tmp_path / "good-b")
    write_adapter(tmp_path / "good-a")
    write_adapter(tmp_path / "dora", fields={"use_dora": True})
    (write_adapter(tmp_path / "no-config") / "adapter_config.json").unlink()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("not an adapter")
    (tmp_path / "TRAINING.md").write_text("not an adapter")
    found, refused = discover(tmp_path, SHAPE)
    assert [file.adapter_id for file in found] == ["good-a", "good-b"]
    assert [name for name, _ in refused] == ["dora", "no-config"]
    assert "DoRA" in refused[0][1]
    assert "adapter_config.json" in refused[1][1]


def test_discovery_refuses_a_folder_that_is_elsewhere(tmp_path: Path) -> None:
    write_adapter(tmp_path / "elsewhere")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "x").symlink_to(tmp_path / "elsewhere")
    found, refused = discover(tmp_path / "root", SHAPE)
    assert found == []
    assert "leads out of" in refused[0][1]


def test_discovery_reads_again_only_what_has_changed(tmp_path: Path) -> None:
    write_adapter(tmp_path / "same")
    write_adapter(tmp_path / "changed")
    first, _ = discover(tmp_path, SHAPE)
    write_adapter(tmp_path / "changed", weights=tensors(seed=1))
    (write_adapter(tmp_path / "gone") / "adapter_config.json").unlink()
    second, _ = discover(tmp_path, SHAPE, known=first)
    assert second[1] is first[1]
    assert second[0].generation != first[0].generation


def test_discovery_does_not_trust_what_was_read_for_another_base_model(tmp_path: Path) -> None:
    write_adapter(tmp_path / "x")
    first, _ = discover(tmp_path, SHAPE)
    found, refused = discover(tmp_path, dataclasses.replace(SHAPE, hidden_size=48), known=first)
    assert found == []
    assert len(refused) == 1


def test_discovery_of_no_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be listed"):
        discover(tmp_path / "missing", SHAPE)


def test_discovery_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_files, "MAX_ADAPTERS", 2)
    for name in "abc":
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigurationError, match="more than 2 folders"):
        discover(tmp_path, SHAPE)


def test_no_torch_is_needed() -> None:
    code = (
        "import sys, anole_worker.adapter_files; print(*(m for m in sys.modules if m == 'torch'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == ""


def test_the_configuration_is_part_of_what_is_checked_for_change(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "x")
    first, _ = discover(tmp_path, SHAPE)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 100}))
    second, _ = discover(tmp_path, SHAPE, known=first)
    assert second[0].generation != first[0].generation


def forbid(monkeypatch: pytest.MonkeyPatch, *parts: str) -> None:
    """No file below a folder of one of these names may be looked at, nor opened, also by root."""
    real_stat, real_open = os.stat, os.open

    def check(path: object) -> None:
        if isinstance(path, str | os.PathLike) and set(parts) & set(Path(path).parts):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))

    def stat(path: Any, **options: Any) -> os.stat_result:
        check(path)
        return real_stat(path, **options)

    def opens(path: Any, *arguments: Any, **options: Any) -> int:
        check(path)
        return real_open(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "open", opens)


def test_a_folder_that_may_not_be_read_is_refused_and_the_others_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("good", "private", "lost+found"):
        write_adapter(tmp_path / name)
    forbid(monkeypatch, "private", "lost+found")
    found, refused = discover(tmp_path, SHAPE)
    assert [file.adapter_id for file in found] == ["good"]
    ((name, reason),) = refused
    assert name == "private"
    assert "cannot be read (Permission denied): make it readable, e.g. chmod -R a+rX" in reason


def test_weights_that_may_not_be_read_ask_for_permission_not_for_peft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(tmp_path / "x")
    forbid(monkeypatch, "adapter_model.safetensors")
    _, ((_, reason),) = discover(tmp_path, SHAPE)
    assert reason.startswith("adapter_model.safetensors: it cannot be read (Permission denied)")
    assert "PEFT" not in reason


def test_a_disk_that_fails_is_a_refusal_of_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(tmp_path / "x")

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    found, refused = discover(tmp_path, SHAPE)
    assert found == []
    assert "Input/output error" in refused[0][1]


def test_an_entry_that_cannot_be_told_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    assert discover(tmp_path, SHAPE) == ([], [])


def test_names_and_reasons_of_refused_ones_can_be_sent_whatever_they_hold(tmp_path: Path) -> None:
    write_adapter(tmp_path / os.fsdecode(b"caf\xe9\n"))
    write_adapter(tmp_path / ("a" * 200))
    folder = write_adapter(tmp_path / "header")
    entry = {"dtype": "\ud800" + "x" * 1000, "shape": [1], "data_offsets": [0, 4]}
    write_raw(folder / "adapter_model.safetensors", {"\ud800": entry}, bytes(4))
    _, refused = discover(tmp_path, SHAPE)
    names = [name for name, _ in refused]
    assert names == ["a" * 127 + "\N{HORIZONTAL ELLIPSIS}", "caf\\udce9\\n", "header"]
    assert all(reason.isprintable() and len(reason) <= 500 for _, reason in refused)
    records = tuple(refused_record(name, reason) for name, reason in refused)
    assert encode(AdaptersDiscovered(worker_id=WorkerId("w"), adapters=records))


def test_reasons_do_not_tell_where_the_adapter_folder_is(tmp_path: Path) -> None:
    write_adapter(tmp_path / "root" / "a b")
    write_adapter(tmp_path / "root" / "dora", fields={"use_dora": True})
    (write_adapter(tmp_path / "root" / "lost") / "adapter_model.safetensors").unlink()
    circle = write_adapter(tmp_path / "root" / "loop") / "adapter_config.json"
    circle.unlink()
    circle.symlink_to(circle)
    (tmp_path / "root" / "link").symlink_to(write_adapter(tmp_path / "elsewhere"))
    _, refused = discover(tmp_path / "root", SHAPE)
    assert len(refused) == 5
    assert not any(str(tmp_path) in reason for _, reason in refused)
    assert dict(refused)["dora"].startswith("adapter_config.json: ")
