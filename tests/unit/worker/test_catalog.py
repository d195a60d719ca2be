"""What the worker knows of its adapter folder, and what it notices."""

import shutil
from pathlib import Path

import pytest

from anole_shared.ids import AdapterId
from anole_shared.units import region_bytes
from anole_worker.catalog import Catalog
from anole_worker.errors import UnknownAdapter
from tests.unit.worker.peft_folders import SHAPE, tensors, write_adapter

X = AdapterId("x")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "x")
    return tmp_path


def make_catalog(root: Path | None, *, max_bytes: int = 2**30, itemsize: int = 4) -> Catalog:
    catalog = Catalog(
        root, SHAPE, bytes_of=lambda file: file.packed_bytes(itemsize), max_bytes=max_bytes
    )
    catalog.scan()
    return catalog


def test_an_adapter_is_found_with_the_memory_that_it_will_take(root: Path) -> None:
    entry = make_catalog(root).find(X)
    num_weights = sum(tensor.size for tensor in tensors().values())
    assert entry.adapter.num_bytes == region_bytes(4 * num_weights)
    assert entry.adapter.generation == entry.file.generation
    larger = make_catalog(root, itemsize=8).find(X).adapter
    assert larger.num_bytes > entry.adapter.num_bytes


def test_an_unchanged_adapter_stays_the_same(root: Path) -> None:
    catalog = make_catalog(root)
    entry, version = catalog.find(X), catalog.version
    catalog.scan()
    assert catalog.find(X) == entry
    assert catalog.version == version


def test_an_adapter_replaced_in_place_is_another_one_at_its_next_use(root: Path) -> None:
    catalog = make_catalog(root)
    before = catalog.find(X)
    write_adapter(root / "x", fields={"lora_alpha": 7})
    after = catalog.find(X)
    assert after.adapter != before.adapter
    assert after.adapter.adapter_id == before.adapter.adapter_id
    assert catalog.known(X) is after


def test_an_adapter_replaced_by_a_broken_one_is_refused_until_it_is_mended(root: Path) -> None:
    catalog = make_catalog(root)
    whole = (root / "x" / "adapter_model.safetensors").read_bytes()
    (root / "x" / "adapter_model.safetensors").write_bytes(whole[:100])
    with pytest.raises(UnknownAdapter, match="cannot be served: adapter_model"):
        catalog.find(X)
    (record,) = catalog.records()
    assert record.refused is not None
    (root / "x" / "adapter_model.safetensors").write_bytes(whole)
    assert catalog.find(X).adapter.adapter_id == X
    (record,) = catalog.records()
    assert record.refused is None


def test_a_new_adapter_is_found_before_the_next_scan(root: Path) -> None:
    catalog = make_catalog(root)
    write_adapter(root / "y")
    version = catalog.version
    assert catalog.find(AdapterId("y")).adapter.rank == 4
    assert catalog.version > version


def test_a_removed_adapter_is_gone_at_once(root: Path) -> None:
    catalog = make_catalog(root)
    shutil.rmtree(root / "x")
    with pytest.raises(UnknownAdapter, match="not in this worker's adapter folder"):
        catalog.find(X)
    assert catalog.records() == ()


@pytest.mark.parametrize("name", ["", "..", "../x", "x/../x", "/etc", ".hidden", "a\0b", "n" * 200])
def test_a_name_never_leads_out_of_the_folder(root: Path, name: str) -> None:
    write_adapter(root / "inner" / "x")
    with pytest.raises(UnknownAdapter):
        make_catalog(root / "inner").find(AdapterId(name))


def test_an_adapter_larger_than_the_memory_is_refused_with_the_remedy(root: Path) -> None:
    catalog = make_catalog(root, max_bytes=10)
    with pytest.raises(UnknownAdapter, match="raise ANOLE_WORKER_MEMORY_BYTES"):
        catalog.find(X)


def test_without_a_folder_there_are_no_adapters() -> None:
    catalog = make_catalog(None)
    assert catalog.records() == ()
    with pytest.raises(UnknownAdapter):
        catalog.find(X)


def test_what_is_there_is_known_also_while_the_folder_is_looked_through(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = make_catalog(root)
    seen = []

    def looked(num_bytes: int) -> int:
        seen.append(catalog.known(X))
        return region_bytes(num_bytes)

    monkeypatch.setattr("anole_worker.catalog.region_bytes", looked)
    catalog.scan()
    assert seen == [catalog.known(X)]
    assert None not in seen
