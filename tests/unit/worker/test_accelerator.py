import pytest
import torch

from anole_shared.errors import ConfigurationError
from anole_shared.units import GiB
from anole_worker.errors import DeviceLost
from anole_worker.runtime import accelerator
from anole_worker.settings import WorkerSettings


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "device"),
    [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")],
)
def test_a_device_is_chosen_by_name(name: str, device: str) -> None:
    assert accelerator.choose(name) == torch.device(device)


@pytest.mark.usefixtures("no_gpu")
def test_auto_is_the_processor_where_there_is_no_gpu() -> None:
    assert accelerator.choose("auto") == torch.device("cpu")


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_not_there_is_a_fault_of_the_settings() -> None:
    with pytest.raises(ConfigurationError, match="sees 0 CUDA devices"):
        accelerator.choose("cuda")


@pytest.mark.usefixtures("two_gpus")
def test_so_is_one_too_many() -> None:
    with pytest.raises(ConfigurationError, match="sees 2 CUDA devices"):
        accelerator.choose("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="device"):
        WorkerSettings(device=name)


def test_a_processor_has_a_default_and_does_as_it_is_told() -> None:
    assert accelerator.memory_bytes(WorkerSettings(), None) == 2 * GiB
    assert accelerator.memory_bytes(WorkerSettings(memory_bytes=5), None) == 5


def test_of_a_gpu_a_fraction_is_taken_or_what_the_setting_says() -> None:
    assert accelerator.memory_bytes(WorkerSettings(memory_fraction=0.5), 1000) == 500
    assert accelerator.memory_bytes(WorkerSettings(memory_bytes=1000), 1000) == 1000
    with pytest.raises(ConfigurationError, match="the device has 1000 left"):
        accelerator.memory_bytes(WorkerSettings(memory_bytes=1001), 1000)


def test_a_gpu_that_answers_no_call_any_more_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize(device: torch.device) -> None:
        if device.index == 1:
            raise torch.AcceleratorError("CUDA error: an illegal memory access\nFor debugging ...")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    accelerator.check(torch.device("cpu"))
    accelerator.check(torch.device("cuda", 0))
    with pytest.raises(DeviceLost, match=r"cuda:1 is lost .* illegal memory access\): start"):
        accelerator.check(torch.device("cuda", 1))
