import torch

from anole_worker.runtime.lora import AdaptedTokens, LayerDelta, LoopDeltas, SiteDelta, SitePart


def one_layer(up: torch.Tensor) -> LayerDelta:
    """Changes columns 2 and 3 of the first site's outputs, from the sum of 3 inputs."""
    part = SitePart(columns=slice(2, 4), ranks=slice(0, 1), up=up)
    return (SiteDelta(down=torch.ones(3, 1), parts=(part,)), None, None, None)


NOTHING: LayerDelta = (None, None, None, None)


def test_a_layer_or_projection_that_an_adapter_leaves_alone_is_left_alone() -> None:
    y, x = torch.zeros(2, 5), torch.ones(2, 3)
    layers = (NOTHING, one_layer(torch.tensor([[1.0, 2.0]])))
    deltas = LoopDeltas([AdaptedTokens(begin=0, end=2, layers=layers)])
    deltas.add(y, x, 0, 0)
    deltas.add(y, x, 1, 1)
    assert not y.any()
    deltas.add(y, x, 1, 0)
    assert y.tolist() == [[0, 0, 3, 6, 0]] * 2


def test_tokens_of_no_adapter_are_left_alone() -> None:
    y, x = torch.zeros(3, 5), torch.ones(3, 3)
    layers = (one_layer(torch.tensor([[1.0, 1.0]])),)
    LoopDeltas([AdaptedTokens(begin=1, end=2, layers=layers)]).add(y, x, 0, 0)
    assert y.sum(dim=1).tolist() == [0, 6, 0]
