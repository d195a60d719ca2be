"""Everything about policies that can be set; the settings say why each has its default."""

from dataclasses import dataclass
from enum import StrEnum


class SizeRule(StrEnum):
    """What a request's size is made of."""

    WEIGHTED = "weighted"
    """Chameleon's: prompt, predicted output and the adapter's rank."""
    OUTPUT_ONLY = "output_only"
    """The ablation: predicted output alone."""


class ClassRule(StrEnum):
    """How many size classes there are."""

    MIN_WCSS = "min_wcss"
    """As the paper says: the number with the smallest sum of squares, which is the largest."""
    ELBOW = "elbow"
    """No further class that removes less than a tenth of what one class has."""


class ChargeRule(StrEnum):
    """What a request takes of its class's quota beside its tokens."""

    LITERAL = "literal"
    """As the paper says: its whole adapter, also where others share it."""
    SHARED = "shared"
    """Its adapter only if nobody else at the worker has it."""
    TOKENS = "tokens"
    """Nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyKnobs:
    """The knobs of all policies; each policy looks at its own."""

    # Sizes and classes.
    size_rule: SizeRule = SizeRule.WEIGHTED
    input_weight: float = 0.4
    output_weight: float = 0.6
    rank_floor: int = 8
    """The rank of requests without adapter, and the least of all others."""
    max_classes: int = 4
    class_rule: ClassRule = ClassRule.MIN_WCSS
    refresh_s: float = 300.0
    min_sample: int = 100
    """Requests before there is more than one class."""

    # Quotas.
    slo_s: float = 5.0
    """The wait and service together that a class's quota is made for."""
    charge_rule: ChargeRule = ChargeRule.LITERAL
    lends: bool = True
    """Whether the unused quota of empty classes is lent to others."""

    # Passing.
    bypasses: bool = True
    """Whether a request may pass one for whose adapter there is no room."""
    bypass_depth: int = 32
    """Requests behind such a one that are looked at."""
    squash_share: float = 0.05
    """At most this share of all admissions is undone again."""
    patience_s: float = 30.0
    """How long the head of a class may find no room before a worker is kept free for it."""

    # The single lines.
    ageing_tokens_per_s: float = 1.0
    """sjf: the worth of a second's wait in predicted tokens."""
    gamma: float = 5.0
    """anole: seconds of deadline for each second of cost."""
    overtake_s: float = 2.0
    """anole: how long others may pass a request whose adapter is on its way."""
    overtake_depth: int = 128
    """anole: requests that may wait for their adapters beside the line."""
