"""The settings of scheduling policies.

What a paper leaves open is said, and what was chosen.
"""

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from anole_shared.settings import Settings


class PolicySettings(Settings):
    """Who is next; each policy looks at its own settings."""

    model_config = SettingsConfigDict(env_prefix="ANOLE_SCHEDULER_", frozen=True, extra="forbid")

    policy: Literal["fcfs", "sjf", "chameleon", "anole"] = Field(
        default="anole",
        description="Who is next. fcfs: first come, first served. sjf: shortest predicted output "
        "first, with ageing. chameleon: a queue a size class with quotas, as in the paper "
        "(MICRO'25). anole: by a deadline that grows with a request's cost, and what waits for "
        "its adapter is passed for a bounded time; best in simulation (docs/simulation.md). None "
        "of them starves a request.",
    )

    # chameleon: sizes and classes.
    size_rule: Literal["weighted", "output_only"] = Field(
        default="weighted",
        description="chameleon: a request's size. weighted: (A x prompt / longest prompt + B x "
        "output / longest output) x (rank / largest rank). output_only: predicted output alone, "
        "the paper's ablation. The paper does not say what the largest are: those of the last "
        "REFRESH_S, fixed until the next refresh, ratios clipped to 1.",
    )
    input_weight: float = Field(
        default=0.4, ge=0, le=1, description="chameleon: A, the paper's value."
    )
    output_weight: float = Field(
        default=0.6, ge=0, le=1, description="chameleon: B, the paper's value."
    )
    rank_floor: int = Field(
        default=8,
        ge=1,
        le=4096,
        description="chameleon: the least rank in a size, and that of a request without adapter. "
        "As the paper writes it such a request has size 0 however long it is. 8 is the smallest "
        "rank in the paper.",
    )
    max_classes: int = Field(
        default=4, ge=1, le=4, description="chameleon: size classes at most; 4 in the paper."
    )
    class_rule: Literal["min_wcss", "elbow"] = Field(
        default="min_wcss",
        description="chameleon: how many size classes. min_wcss, the paper's words: the number "
        "with the smallest sum of squares, which for the best clusterings is always MAX_CLASSES. "
        "elbow: no further class that removes less than a tenth of it. Clusters are exact (dynamic "
        "programming over at most 512 of the last 4096 sizes); the paper says K-means only.",
    )
    refresh_s: float = Field(
        default=300.0,
        ge=1,
        le=86_400,
        description="chameleon: how often classes and quotas are made anew; 5 minutes in the "
        "paper. Waiting requests are sorted in again in order of arrival, running ones stay "
        "charged, to their new class: the paper says nothing of either.",
    )
    min_sample: int = Field(
        default=100,
        ge=1,
        le=4096,
        description="chameleon: requests before there is more than one class; until then it is "
        "first come, first served. Not in the paper.",
    )

    # chameleon: quotas.
    slo_s: float = Field(
        default=5.0,
        gt=0,
        le=3600,
        description="chameleon: the SLO in a class's least quota S x D x (1 / SLO + lambda): "
        "seconds from arrival to the end. The paper does not say which SLO it puts there: the "
        "TTFT SLO of its first trace is taken. S is the largest request of the class lately, D "
        "the mean time from admission to end, lambda a worker's part of the class's arrivals.",
    )
    charge_rule: Literal["literal", "shared", "tokens"] = Field(
        default="literal",
        description="chameleon: what a request takes of its quota besides its tokens. literal, the "
        "paper's words: its whole adapter, also where others share it, which hurts near "
        "saturation. shared: its adapter where nobody else at the worker has it. tokens: nothing. "
        "Memory itself is always counted as it is: an adapter once.",
    )
    lends: bool = Field(
        default=True,
        description="chameleon: whether the unused quota of classes without waiting requests is "
        "lent to the others (phase two). The paper does not say whose account a loan is on: the "
        "borrower's, which goes above its share, and never more than the pool has.",
    )

    # chameleon: passing.
    bypasses: bool = Field(
        default=True,
        description="chameleon: whether others of its class may pass a request for whose adapter "
        "there is no room, if they are expected to end before there is.",
    )
    bypass_depth: int = Field(
        default=32,
        ge=0,
        le=1024,
        description="chameleon: how many behind such a request are looked at; the paper has no "
        "limit.",
    )
    squash_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="chameleon: at most this share of admissions is undone because the request "
        "turned out to hold the room of one that it had passed; 5 % in the paper. No request is "
        "squashed twice (not in the paper: else two could squash each other for ever).",
    )
    patience_s: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="chameleon: how long the first of a class may find no room before one worker "
        "is kept free for it, whatever the quotas say. Not in the paper, where tokens bound "
        "everything: with fewer seats than that, small requests could starve a large one.",
    )

    # sjf and anole.
    ageing_tokens_per_s: float = Field(
        default=1.0,
        gt=0,
        le=10_000,
        description="sjf: the predicted tokens that a second of waiting is worth; the paper gives "
        "no value. So one that is 500 tokens longer is passed for 500 s at most.",
    )
    gamma: float = Field(
        default=5.0,
        ge=0,
        le=1000,
        description="anole: seconds of deadline for each second of cost. The cost is how long the "
        "request would keep a whole worker: its predicted duration times the larger of its share "
        "of the running requests and of the memory. 0 is first come, first served.",
    )
    overtake_s: float = Field(
        default=2.0,
        ge=0,
        le=3600,
        description="anole: for how long others may pass a request whose adapter is on its way, "
        "counted from when it was first in line; then nobody passes it, and the worker that gets "
        "it loads the adapter.",
    )
    overtake_depth: int = Field(
        default=128,
        ge=0,
        le=16_384,
        description="anole: requests that may wait for their adapters beside the line at once. "
        "With 0 nobody is passed: the worker that gets the first in line loads its adapter.",
    )
