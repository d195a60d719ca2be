"""A GPU that is not there: its tensors have sizes, types and a device, and no numbers.

What torch would refuse there is refused here: the host's tensors among the GPU's. So is what would
wait for numbers, but for the copies back that are asked for by name.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda", 0)

_ALIGNMENT = 512
"""Of what torch allocates on a GPU."""


class FakeGpu(TorchFunctionMode):
    """Makes tensors on GPU, moves them there and back, and does what torch refuses without one."""

    def __init__(self) -> None:
        super().__init__()
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._addresses = itertools.count(_ALIGNMENT, _ALIGNMENT)
        self._instead: dict[Any, Callable[..., Any]] = {
            Tensor.__getitem__: _part,
            Tensor.__setitem__: _set_part,
            Tensor.copy_: lambda own, source, **_: torch.ops.aten.copy_.default(own, source),
            Tensor.cpu: _numbers,
            Tensor.data_ptr: lambda _: next(self._addresses),
        }

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {name: value for name, value in (kwargs or {}).items() if name != "pin_memory"}
        if func is Tensor.pin_memory:
            return args[0]
        if args and isinstance(args[0], FakeTensor) and func in self._instead:
            with self:
                return self._instead[func](*args, **given)
        if GPU not in (*args, *given.values()):
            return func(*args, **given)
        with self._mode:
            if func is Tensor.to:
                args = (self._mode.from_tensor(args[0]), *args[1:])
            return func(*args, **given)


class Launched:
    """Stands for a kernel, and runs nothing."""

    def __init__(self, kernel: Any) -> None:
        self.variants: set[tuple[Any, ...]] = set()
        """What of its arguments Triton compiles it for."""
        self._params = kernel.params

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(grid), grid
        return self._launch

    def _launch(self, **arguments: Any) -> None:
        given = [(param, arguments[param.name]) for param in self._params]
        self.variants.add(tuple(_compiled_for(param, value) for param, value in given))


def _compiled_for(param: Any, value: Any) -> Any:
    if isinstance(value, Tensor):
        assert value.device == GPU, param.name
        is_aligned = value.storage_offset() * value.dtype.itemsize % 16 == 0
        return param.name, value.dtype, is_aligned
    if param.is_constexpr:
        return param.name, value
    if param.do_not_specialize or isinstance(value, float):
        return param.name
    return param.name, value == 1, value % 16 == 0


def launching(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, *names: str
) -> dict[str, Launched]:
    """What the module launches of the kernels that it knows by these names."""
    found = {name: Launched(getattr(module, name)) for name in names}
    for name, launched in found.items():
        monkeypatch.setattr(module, name, launched)
    return found


@contextmanager
def faking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While it is entered, there is GPU."""
    monkeypatch.setattr(FakeTensor, "tolist", lambda tensor: _numbers(tensor).tolist())
    with FakeGpu():
        yield


def _numbers(tensor: Tensor) -> Tensor:
    """A copy on the host: no two numbers are the same."""
    return torch.arange(tensor.numel(), dtype=tensor.dtype).view(tensor.shape)


def _part(tensor: Tensor, key: Any) -> Tensor:
    """tensor[key], which torch refuses where it was built without GPUs."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if keys[0] is ...:
        num_given = len([own for own in keys[1:] if own is not None])
        keys[:1] = [slice(None)] * (tensor.ndim - num_given)
    dim = 0
    for own in keys:
        if isinstance(own, int):
            tensor = tensor.select(dim, own)
            continue
        if own is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(own, Tensor):
            assert own.dtype == torch.int64, "how many are true would have to be waited for"
            tensor = tensor.index_select(dim, own)
        else:
            begin, end, step = own.indices(tensor.shape[dim])
            assert step == 1
            tensor = tensor.narrow(dim, begin, max(0, end - begin))
        dim += 1
    return tensor


def _set_part(tensor: Tensor, key: Any, value: Any) -> None:
    part = _part(tensor, key)
    if isinstance(value, Tensor):
        part.copy_(value)
    else:
        part.fill_(value)
