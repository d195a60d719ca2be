"""What one worker's hardware and model cost: seconds of a step, bytes of a token, of an adapter.

A step's seconds are the sum of what every serving engine has: the host's part, the linear layers
by tokens in the batch (a table: flat while the weights' bytes bind, then straight), attention over
the context, and LoRA. LoRA's decode cost grows with the *sum* of the rows' ranks, as kernels that
gather each row's adapter do (BGMV); its prefill cost with tokens times rank.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property

from anole_shared.units import MiB

_TABLE_TOKENS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How adapters reach the device: one at a time, in the order in which they were asked for."""

    name: str
    base_s: float
    """What a load costs whatever its size."""
    bytes_per_s: float

    def seconds(self, num_bytes: int) -> float:
        """How long one load has the link."""
        return self.base_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A worker's costs; every time in seconds."""

    name: str
    source: str
    """Where the figures come from."""
    linear: tuple[tuple[int, float], ...]
    """Tokens of a step, and seconds of all linear layers; between two points a straight line."""
    host_s: float
    """Each step: scheduling, launching, sampling."""
    row_s: float
    """Each step and sequence, beside that."""
    head_s: float
    """Each step: the output layer."""
    context_s: float
    """Each token of context that a decode reads."""
    attention_s: float
    """Prefill attention: times (end^2 - start^2) of each prompt chunk."""
    lora_step_s: float
    """Each step that has a row with an adapter."""
    lora_rank_s: float
    """Each decode row and unit of its rank."""
    lora_token_s: float
    """Each prompt token with an adapter."""
    lora_token_rank_s: float
    """Each prompt token and unit of its rank."""
    kv_bytes: int
    """Keys and values of one token."""
    rank_bytes: int
    """An adapter's bytes for each unit of its rank."""
    memory_bytes: int
    """What keys, values and adapters share."""
    max_num_seqs: int = 1000

    @cached_property
    def _linear_s(self) -> list[float]:
        tokens = [point[0] for point in self.linear]
        found = [0.0]
        for count in range(1, _TABLE_TOKENS + 1):
            place = min(max(bisect_right(tokens, count) - 1, 0), len(tokens) - 2)
            (x0, y0), (x1, y1) = self.linear[place], self.linear[place + 1]
            found.append(max(y0 + (y1 - y0) * (count - x0) / (x1 - x0), self.linear[0][1]))
        return found

    def linear_s(self, num_tokens: int) -> float:
        """Seconds of the linear layers over so many tokens."""
        table = self._linear_s
        if num_tokens <= _TABLE_TOKENS:
            return table[num_tokens]
        slope = (table[-1] - table[_TABLE_TOKENS // 2]) / (_TABLE_TOKENS - _TABLE_TOKENS // 2)
        return table[-1] + slope * (num_tokens - _TABLE_TOKENS)

    def decode_s(self, num_rows: int, context: int, ranks: int) -> float:
        """One step in which num_rows sequences decode; context and ranks are their sums."""
        lora_s = self.lora_step_s + self.lora_rank_s * ranks if ranks else 0.0
        return (
            self.host_s
            + self.row_s * num_rows
            + self.head_s
            + self.linear_s(num_rows)
            + self.context_s * context
            + lora_s
        )

    def mixed_s(
        self,
        *,
        num_rows: int,
        context: int,
        ranks: int,
        prompts: int,
        prompt_tokens: int,
        squares: int,
        lora_tokens: int,
        token_ranks: int,
    ) -> float:
        """One step with prompt chunks in it.

        squares is the sum of end^2 - start^2 over the chunks, lora_tokens the prompt tokens that
        have an adapter, token_ranks the sum of their ranks.
        """
        total = self.host_s + self.row_s * (num_rows + prompts) + self.head_s
        total += self.linear_s(num_rows + prompt_tokens)
        total += self.context_s * context + self.attention_s * squares
        total += self.lora_token_s * lora_tokens + self.lora_token_rank_s * token_ranks
        total += self.lora_rank_s * ranks
        return total + (self.lora_step_s if ranks or lora_tokens else 0.0)

    def prefill_s(self, num_tokens: int, rank: int) -> float:
        """One prompt alone."""
        return self.mixed_s(
            num_rows=0,
            context=0,
            ranks=0,
            prompts=1,
            prompt_tokens=num_tokens,
            squares=num_tokens * num_tokens,
            lora_tokens=num_tokens if rank else 0,
            token_ranks=num_tokens * rank,
        )

    def isolated_s(self, num_prompt_tokens: int, num_output_tokens: int, rank: int) -> float:
        """One request alone, its adapter being there."""
        steps = num_output_tokens - 1
        first = self.decode_s(1, num_prompt_tokens, rank)
        last = self.decode_s(1, num_prompt_tokens + steps, rank)
        return self.prefill_s(num_prompt_tokens, rank) + steps * (first + last) / 2

    def adapter_bytes(self, rank: int) -> int:
        """Bytes of an adapter of that rank."""
        return self.rank_bytes * rank

    @property
    def num_slots(self) -> int:
        """Tokens that the memory would hold without any adapter."""
        return self.memory_bytes // self.kv_bytes

    def with_slots(self, num_slots: int) -> "Profile":
        """The same with another memory."""
        return replace(self, memory_bytes=num_slots * self.kv_bytes)


PCIE = Link(name="pcie", base_s=0.001, bytes_per_s=10e9)
"""PCIe 4 from pinned memory, one copy an adapter: 7.7 ms for rank 32 of a 7B model."""
SLOW = Link(name="slow", base_s=0.012, bytes_per_s=1.8e9)
"""49 ms for rank 32: what Chameleon's own LoRA-1/50/500 experiment implies."""
FIT = Link(name="fit", base_s=0.020, bytes_per_s=0.9e9)
"""95 ms for rank 32: what Chameleon's own throughput (8.6 req/s without a cache) implies."""
PCIE5 = Link(name="pcie5", base_s=0.001, bytes_per_s=50e9)
LINKS = {link.name: link for link in (PCIE, SLOW, FIT, PCIE5)}

_VIDUR = (
    (1, 0.0239), (64, 0.0300), (128, 0.0303), (256, 0.0446),
    (512, 0.071), (1024, 0.137), (2048, 0.259), (4096, 0.526),
)  # fmt: skip
"""Linear layers of Llama-2-7B on an A40: sums of Vidur's measured operators (MIT licence)."""
_A10G_MEMORY, _A10G_COMPUTE, _BINDS = 1.12, 1.5, 128

A40_7B = Profile(
    name="a40-7b",
    source="A40 and Llama-2-7B fp16: linear layers measured by Vidur; LoRA, host and attention "
    "fitted so that TTFT by rank is Chameleon's figure 2 and S-LoRA's published runs come out",
    linear=_VIDUR,
    host_s=0.002,
    row_s=0.0001,
    head_s=0.0005,
    context_s=0.95e-6,
    attention_s=4 * 4096 * 32 / 2 / 50e12,
    lora_step_s=0.002,
    lora_rank_s=7e-6,
    lora_token_s=10e-6,
    lora_token_rank_s=0.94e-6,
    kv_bytes=MiB // 2,
    rank_bytes=2 * MiB,
    memory_bytes=62_000 * MiB // 2,
)
A10G_7B = replace(
    A40_7B,
    name="a10g-7b",
    source="A10G and Llama-7B: the A40's profile, linear layers x1.12 where memory binds and x1.5 "
    "where compute does; 14,000 slots as in S-LoRA's scripts",
    linear=tuple(
        (tokens, seconds * (_A10G_MEMORY if tokens <= _BINDS else _A10G_COMPUTE))
        for tokens, seconds in _VIDUR
    ),
    attention_s=A40_7B.attention_s * _A10G_COMPUTE,
    memory_bytes=14_000 * MiB // 2,
)


def roofline(
    name: str,
    *,
    parameters: float,
    layers: int,
    hidden: int,
    kv_width: int,
    devices: int,
    bytes_per_s: float,
    flops: float,
    device_bytes: float,
) -> Profile:
    """A profile out of published peak figures: 75 % of the bandwidth, 60 % of the arithmetic.

    bf16 weights; adapters on q, k, v and o; several devices as one with 85 % of their sum.
    """
    share = 1.0 if devices == 1 else 0.85
    bandwidth, compute = 0.75 * share * devices * bytes_per_s, 0.6 * share * devices * flops
    weights = 2 * parameters
    floor_s = weights / bandwidth
    knee = max(int(floor_s * compute / weights), 2)
    rank_bytes = 2 * layers * (4 * hidden + 2 * (hidden + kv_width))
    kv_bytes = 4 * layers * kv_width
    return Profile(
        name=name,
        source="published peak figures, 75 % of bandwidth and 60 % of arithmetic: not measured",
        linear=((1, floor_s), (knee, floor_s), (8 * knee, 8 * floor_s)),
        host_s=0.001,
        row_s=20e-6,
        head_s=0.0001,
        context_s=kv_bytes / bandwidth,
        attention_s=2 * hidden * layers / compute,
        lora_step_s=0.0008,
        lora_rank_s=rank_bytes / bandwidth,
        lora_token_s=2e-6 / devices,
        lora_token_rank_s=4 * rank_bytes / compute,
        kv_bytes=kv_bytes,
        rank_bytes=rank_bytes,
        memory_bytes=int(0.9 * devices * device_bytes - weights),
        max_num_seqs=1024,
    )


_8B = {"parameters": 8.0e9, "layers": 32, "hidden": 4096, "kv_width": 1024}
_70B = {"parameters": 70.6e9, "layers": 80, "hidden": 8192, "kv_width": 1024}
_H100 = {"bytes_per_s": 3.35e12, "flops": 989e12, "device_bytes": 80e9}
_H200 = {"bytes_per_s": 4.8e12, "flops": 989e12, "device_bytes": 141e9}


def _published(name: str, model: dict[str, float], device: dict[str, float], num: int) -> Profile:
    return roofline(
        name,
        parameters=model["parameters"],
        layers=int(model["layers"]),
        hidden=int(model["hidden"]),
        kv_width=int(model["kv_width"]),
        devices=num,
        **device,
    )


PROFILES = {
    profile.name: profile
    for profile in (
        A40_7B,
        A10G_7B,
        _published("h100-8b", _8B, _H100, 1),
        _published("h200-8b", _8B, _H200, 1),
        _published("h100x4-70b", _70B, _H100, 4),
        _published("h200x4-70b", _70B, _H200, 4),
    )
}
