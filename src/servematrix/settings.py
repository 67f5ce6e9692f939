"""What a configuration may set of kits: its tables `gates`, limits, and `kits`, how they measure.

Key `k` of `gates.KIT` and of `kits.KIT` is the attribute `KIT_k` of that kit's mixin, where each is
described and has its default.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Probe = Literal[
    "capital_france",
    "basic_math",
    "color_completion",
    "ascii_ratio",
    "no_repetition_blowup",
    "determinism_temp_zero",
    "max_token_one",
]
Concurrency = Annotated[str, Field(pattern=r"^[1-9][0-9]*$")]


class Table(BaseModel):
    """A table of TOML in which each key is known and has its type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class OccupancyGate(Table):
    """Limits of `FwdOccupancyMixin`.

    Occupancies in percent, accept length in tokens a pass, start-up in seconds, blocks in windows.
    """

    threshold: float | None = Field(default=None, ge=0, le=100)
    min_samples: int | None = Field(default=None, ge=1)
    acc_length_threshold: float | None = Field(default=None, ge=1)
    counter_tolerance: float | None = Field(default=None, gt=0, le=100)
    startup_seconds: float | None = Field(default=None, ge=0)
    block_windows: int | None = Field(default=None, ge=1)


class HellaswagGate(Table):
    """Limits of `HellaswagMixin`: accuracy, and what it may lose to a baseline, as fractions.

    `accepted` names a change of numerics since the baseline that is wanted.
    """

    accuracy_threshold: float | None = Field(default=None, ge=0, le=1)
    margin: float | None = Field(default=None, gt=0, lt=1)
    accepted: str | None = Field(default=None, min_length=1)


class ConsistencyLimits(Table):
    """Limits of one dtype: nats, `top1` a share; those left out are `gates.consistency.LIMITS`."""

    relative: float | None = Field(default=None, gt=0)
    """Most Σ|Δ| / Σ(1 - p): difference divided by the doubt that there was."""
    mean: float | None = Field(default=None, gt=0)
    """Most mean |Δ| a token, in nats."""
    p99: float | None = Field(default=None, gt=0)
    """Most |Δ| of 99 % of the tokens, in nats."""
    worst_sequence: float | None = Field(default=None, gt=0)
    """Most mean |Δ| of any one sequence, in nats."""
    largest_gap: float | None = Field(default=None, gt=0)
    """Most nats by which a decoded token may lie below prefill's likeliest."""
    top1: float | None = Field(default=None, ge=0, le=1)
    """Least share of tokens that are prefill's likeliest."""


class DecodeConsistencyGate(Table):
    """Limits of `DecodeConsistencyMixin` by the dtype that the server computes in."""

    bfloat16: ConsistencyLimits | None = None
    float16: ConsistencyLimits | None = None
    float32: ConsistencyLimits | None = None


class CudaGraphGate(Table):
    """What `CudaGraphMixin` expects; without it, what the server says of itself."""

    expected: Literal["on", "off"] | None = None


class SpecDecodingGate(Table):
    """Limits of `SpecDecodingMixin`: accept length in tokens a pass, `near_tie` in nats."""

    acc_length_threshold: float | None = Field(default=None, ge=1)
    near_tie: float | None = Field(default=None, gt=0)


class Gates(Table):
    """Limits by kit; a key that is left out keeps the kit's default."""

    fwd_occupancy: OccupancyGate = OccupancyGate()
    decode_consistency: DecodeConsistencyGate = DecodeConsistencyGate()
    cuda_graph: CudaGraphGate = CudaGraphGate()
    spec_decoding: SpecDecodingGate = SpecDecodingGate()
    hellaswag: HellaswagGate = HellaswagGate()


class _KitTable(Table):
    """What all kits have: seconds that one request may take."""

    timeout: float | None = Field(default=None, gt=0)


class APIContractKit(_KitTable):
    """How `BasicAPIContractMixin` measures."""


class OccupancyKit(_KitTable):
    """How `FwdOccupancyMixin` measures; intervals in seconds, lengths in tokens."""

    scrape_interval: float | None = Field(default=None, gt=0, le=10)
    warmup_max_new_tokens: int | None = Field(default=None, ge=1)
    max_new_tokens: int | None = Field(default=None, ge=1)
    stream_max_new_tokens: int | None = Field(default=None, ge=2)
    prompt: str | None = Field(default=None, min_length=1)
    rank_reduction: Literal["min", "max"] | None = None
    stop_early: bool | None = None


class HellaswagKit(_KitTable):
    """How `HellaswagMixin` measures: counts of items; `packaged` takes the project's own set."""

    num_questions: int | None = Field(default=None, ge=1)
    num_shots: int | None = Field(default=None, ge=0)
    batch_items: int | None = Field(default=None, ge=1)
    parallel: int | None = Field(default=None, ge=1)
    packaged: bool | None = None


class DecodeCorrectnessKit(_KitTable):
    """Which probes of `BasicDecodeCorrectnessMixin` this model is able to answer."""

    probes: Annotated[list[Probe], Field(min_length=1)] | None = None


class SchedulerStressKit(_KitTable):
    """How `BasicSchedulerStressMixin` measures: tokens of the long prompt, many requests."""

    requests: int | None = Field(default=None, ge=1)
    long_prompt_tokens: int | None = Field(default=None, ge=16)
    knows_capitals: bool | None = None


class DecodeConsistencyKit(_KitTable):
    """How `DecodeConsistencyMixin` measures; `prompts` by concurrency, lengths in tokens."""

    prompts: dict[Concurrency, Annotated[int, Field(ge=0)]] | None = None
    tokens: int | None = Field(default=None, ge=2)
    cache_tokens: int | None = Field(default=None, ge=2)
    auto_dtype: Literal["bfloat16", "float16", "float32"] | None = None


class CudaGraphKit(_KitTable):
    """How `CudaGraphMixin` measures: tokens of each request."""

    tokens: int | None = Field(default=None, ge=16)


class SpecDecodingKit(_KitTable):
    """How `SpecDecodingMixin` measures: tokens of each request."""

    tokens: int | None = Field(default=None, ge=16)
    auto_dtype: Literal["bfloat16", "float16", "float32"] | None = None


class Kits(Table):
    """Settings by kit; a key that is left out keeps the kit's default."""

    api_contract: APIContractKit = APIContractKit()
    fwd_occupancy: OccupancyKit = OccupancyKit()
    decode_consistency: DecodeConsistencyKit = DecodeConsistencyKit()
    cuda_graph: CudaGraphKit = CudaGraphKit()
    spec_decoding: SpecDecodingKit = SpecDecodingKit()
    hellaswag: HellaswagKit = HellaswagKit()
    decode_correctness: DecodeCorrectnessKit = DecodeCorrectnessKit()
    scheduler_stress: SchedulerStressKit = SchedulerStressKit()
