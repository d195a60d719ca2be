import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from anole_shared.errors import ConfigurationError
from anole_worker import adapter_files
from anole_worker.adapter_files import MAX_CONFIG_BYTES, discover, read
from anole_worker.errors import AdapterRefused
from tests.unit.worker.peft_folders import SHAPE, tensors, write_adapter


def test_a_good_adapter_is_described(tmp_path: Path) -> None:
    file = read(write_adapter(tmp_path / "pirate-v1.2"), SHAPE)
    assert file.adapter_id == "pirate-v1.2"
    assert file.path == tmp_path / "pirate-v1.2"
    assert file.rank == 4
    assert file.target_modules == ("q_proj", "v_proj")
    assert file.packed_bytes == sum(tensor.nbytes for tensor in tensors().values())


def test_half_precision_is_counted_as_it_will_be_in_memory(tmp_path: Path) -> None:
    file = read(write_adapter(tmp_path / "x", weights=tensors(dtype="float16")), SHAPE)
    assert file.packed_bytes == sum(tensor.nbytes for tensor in tensors().values())


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
    with pytest.raises(AdapterRefused, match="cannot be opened") as error:
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
    with pytest.raises(AdapterRefused, match="cannot be opened"):
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
