"""Shares of one worker's tokens, by size class."""

from collections.abc import Sequence


def minimum(largest: int, service_s: float, arrivals_per_s: float, slo_s: float) -> float:
    """Tokens with which a class keeps within the SLO, if it is a queue M/M/1.

    Source: Chameleon (MICRO'25), section 4.3.5: S x D x (1 / SLO + lambda).
    largest: S, tokens of the largest request of the class.
    service_s: D, from admission to end.
    """
    return largest * service_s * (1 / slo_s + arrivals_per_s)


def shares(minima: Sequence[float], floors: Sequence[int], total: int) -> list[int]:
    """Divide all tokens: each class its minimum, and of the rest in proportion to it.

    The paper does not define the weights of the rest: here they are the minima. Nor does it say
    what to do where the minima exceed the total: here they are scaled down, but not below the
    floors (one largest request each), as long as there is room for the floors.
    """
    needed = sum(minima)
    if needed <= 0:
        return [total // len(minima)] * len(minima)
    scaled = [least * total / needed for least in minima]
    if needed <= total:
        return [int(tokens) for tokens in scaled]
    if sum(floors) >= total:
        return [floor * total // sum(floors) for floor in floors]
    above = [max(tokens - floor, 0.0) for tokens, floor in zip(scaled, floors, strict=True)]
    left = (total - sum(floors)) / sum(above)
    return [int(floor + left * more) for floor, more in zip(floors, above, strict=True)]


class Quotas:
    """What each class may use of one worker's tokens, and what it uses."""

    def __init__(self, total: int, num_classes: int) -> None:
        self.total = total
        self.allotted = [total] if num_classes == 1 else [total // num_classes] * num_classes
        self.used = [0] * num_classes
        self._num_used = 0

    @property
    def unused(self) -> int:
        """Tokens of the whole pool that no class uses."""
        return max(0, self.total - self._num_used)

    def available(self, size_class: int) -> int:
        """What the class may still use: nothing while it is above its share, having borrowed."""
        left = self.allotted[size_class] - self.used[size_class]
        unused = self.total - self._num_used
        if unused < left:  # noqa: PLR1730 - asked most often of all
            left = unused
        return left if left > 0 else 0  # noqa: FURB136

    def allot(self, allotted: Sequence[int], used: Sequence[int]) -> None:
        """New shares, perhaps of other classes; used: what runs, by the new classes."""
        assert len(allotted) == len(used)
        self.allotted, self.used = list(allotted), list(used)
        self._num_used = sum(used)

    def take(self, size_class: int, tokens: int) -> None:
        """Charge a class."""
        self.used[size_class] += tokens
        self._num_used += tokens

    def give_back(self, size_class: int, tokens: int) -> None:
        """Charge a class no more."""
        self.used[size_class] -= tokens
        self._num_used -= tokens

    def check_invariants(self) -> None:
        """Assert that nothing is negative and no more is allotted than there is."""
        assert min(self.used) >= 0
        assert self._num_used == sum(self.used)
        assert min(self.allotted) >= 0
        assert sum(self.allotted) <= self.total
