"""The whole configuration as dataclasses, one per Hydra group; sizes carry their unit in the name.

Hydra composes YAML into these, `load.py` turns the result into plain objects once, and from there no function
takes a configuration mapping. `__post_init__` holds the checks that need one group alone. The groups of the devices
are in `cluster.py`, those of fine-tuning in `finetune.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from edgempi.config.cluster import ClusterConfig
from edgempi.config.finetune import (
    CacheConfig,
    EvaluationConfig,
    FinetuneDataConfig,
    OptimizerConfig,
    SystemConfig,
    TechniqueConfig,
)
from edgempi.config.rules import at_least, require


class Sharing(StrEnum):
    """The ways of sharing a stage of the model that have a name (presets of modes, see `plan/plan.py`)."""

    single = "single"
    data = "data"
    tensor = "tensor"
    sequence = "sequence"
    hybrid = "hybrid"
    heads = "heads"


class PlannerName(StrEnum):
    """Who decides the shares."""

    even = "even"
    proportional = "proportional"
    manual = "manual"
    galaxy = "galaxy"
    auto = "auto"


class Overlap(StrEnum):
    """How communication is hidden under products (`docs/design.md`, "Overlap")."""

    blocking = "blocking"
    ring = "ring"
    icollective = "icollective"
    auto = "auto"


class WireDtype(StrEnum):
    """The form in which activations travel."""

    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"


class WeightDtype(StrEnum):
    """The form in which a rank keeps its weights and computes."""

    fp32 = "fp32"
    bf16 = "bf16"


@dataclass
class ModelConfig:
    """Which checkpoint to run."""

    path: str = "assistant"
    """A local Hugging Face folder, a hub id, or `assistant` for the small model that edgempi ships."""
    revision: str | None = None
    """The hub revision, where `path` is a hub id."""


@dataclass
class ParallelConfig:
    """The way of sharing, before a planner has filled in who gets how much."""

    name: str = "hybrid"
    """The name under which tables show it."""
    stages: list[list[int]] | None = None
    """Devices (ranks) of each pipeline stage; null: one stage over all, or one per device where `pipeline` is set."""
    pipeline: bool = False
    """One stage per device, where `stages` is null."""
    modes: list[Sharing] = field(default_factory=lambda: [Sharing.hybrid])
    """How each stage shares its layers; one entry stands for all stages."""
    decode: Sharing | None = Sharing.tensor
    """The mode that replaces `hybrid` while decoding, where a step has one row and nothing to scatter."""
    overlap: Overlap = Overlap.auto
    """How communication is hidden under products, where a stage shares by heads and tokens (`hybrid`)."""
    subtiles: int | None = None
    """Into how many tiles of rows each device's tokens are cut where communication is overlapped; null: chosen."""
    column_blocks: int | None = None
    """Into how many column blocks weights are cut, so that communication is driven between them; null: chosen."""
    token_chunks: list[float] | None = None
    """Weights of the chunks of one prompt that stream through causal pipeline stages; null: the prompt is one."""
    microbatches: int = 1
    """Into how many groups of rows a batch is cut, so that pipeline stages work at the same time."""

    def __post_init__(self) -> None:
        require(
            self.decode in (None, Sharing.tensor, Sharing.hybrid),
            "parallel.decode", self.decode, "it is tensor, hybrid or null: decoding works with the weights and caches "
            "that the first pass left", "Set parallel.decode=tensor",
        )  # fmt: skip
        at_least(1, "parallel.microbatches", self.microbatches)


@dataclass
class PlannerConfig:
    """Who decides the shares, and with what."""

    name: PlannerName = PlannerName.proportional
    speeds: list[float] | None = None
    """`proportional`: relative speeds in rank order; null takes the cluster's."""
    path: str | None = None
    """`manual`: a YAML file with the whole program (written by `edgempi plan`), which fixes the way of sharing too."""
    heads: list[int] | None = None
    """`manual`: attention heads per device of every stage's group, in rank order."""
    mlp_columns: list[int] | None = None
    """`manual`: MLP columns per device, in rank order."""
    vocabulary: list[int] | None = None
    """`manual`: rows of the embedding table and of the head per device, in rank order."""
    tokens: list[float] | None = None
    """`manual`: token weights per device."""
    rows: list[float] | None = None
    """`manual`: batch row weights per device."""
    layers: list[int] | None = None
    """`manual`: layers per stage."""


@dataclass
class WeightsConfig:
    """How weights are kept in memory."""

    dtype: WeightDtype = WeightDtype.fp32


@dataclass
class WireConfig:
    """How activations travel; null sends them in the dtype they are computed in."""

    dtype: WireDtype | None = None
    allowed: list[WireDtype] | None = None
    """`planner=auto`: the formats it may choose from; null: `dtype` alone."""


@dataclass
class DataConfig:
    """What to run the model on."""

    prompts: list[str] = field(default_factory=list)
    file: str | None = None
    """A text file with one request per line, run after `prompts`."""
    max_new_tokens: int = 64
    batch: int = 1
    """`verify`, `plan` and `bench`: rows of the synthetic batch."""
    length: int = 32
    """`verify`, `plan` and `bench`: tokens per row of the synthetic batch."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch", "length"):
            at_least(1, f"data.{name}", getattr(self, name))


class LabAction(StrEnum):
    """What `edgempi lab` does with the emulated LAN."""

    up = "up"
    status = "status"
    run = "run"
    check = "check"
    down = "down"


@dataclass
class TaskConfig:
    """The verb, and what only verbs need."""

    name: str = "infer"
    compare: bool = True
    """`infer`: also time one device alone, where it can hold the model."""
    tolerance: float | None = None
    """`verify`: the largest difference allowed, as a share of the output's largest magnitude."""
    save: str | None = None
    """`plan`: write the program to this YAML file; `profile`: write the profile there; `bench`: write
    `cluster.profile` there, corrected by what the devices took."""
    explain: bool = False
    """`plan`: also what each block is predicted to take on each device, and the best rejected plans."""
    trace: str | None = None
    """`infer`, `bench`: write a trace of the last pass to this JSON file (Chrome's and Perfetto's format)."""
    repeats: int = 7
    """`bench`: how many times each way of sharing is timed, in turns."""
    seconds: float = 8.0
    """`profile`: how long each device measures its blocks, and as long again training; a round that takes longer is
    finished."""
    training: bool = False
    """`profile`: also measure what training takes, by `technique`, `optimizer`, `weights` and rows of `finetune_data`;
    where `cluster.profile` (or `task.save`) is there already, that alone is measured, and added to it."""
    folder: str | None = None
    """`finetune`: where metrics, checkpoints and what was trained go, on the first device; null: the run's own folder
    under `outputs`."""
    resume: bool = False
    """`finetune`: go on from the latest checkpoint of `task.folder`."""
    action: LabAction = LabAction.status
    """`lab`: what to do, the word after `lab`."""
    device: str | None = None
    """`lab run`: the host on which the command runs, with this terminal; null: a rank on each device."""
    command: list[str] = field(default_factory=list)
    """`lab run`: the command; everything that follows `--`."""


class WayName(StrEnum):
    """The ways of sharing that `bench` times: those of a stage, and a pipeline of one stage per device."""

    single = "single"
    data = "data"
    tensor = "tensor"
    sequence = "sequence"
    hybrid = "hybrid"
    heads = "heads"
    pipeline = "pipeline"


@dataclass
class WayConfig:
    """One way of sharing that `bench` times beside others."""

    parallel: WayName = WayName.hybrid
    """`single` is the fastest device alone; `planner: auto` chooses by itself and does not read this."""
    planner: PlannerName = PlannerName.even
    wire: WireDtype = WireDtype.fp32
    allowed: list[WireDtype] | None = None
    """`planner: auto`: the wire formats it may choose from; null: `wire` alone."""
    overlap: Overlap = Overlap.auto
    subtiles: int | None = None
    column_blocks: int | None = None
    token_chunks: list[float] | None = None


@dataclass
class BenchConfig:
    """What `bench` times in one job."""

    ways: dict[str, WayConfig] = field(default_factory=dict)
    """Ways of sharing by name; the others are compared with the first. Empty: the configuration's own."""
    floor: bool = True
    """Also time each way's computation without any communication."""


@dataclass
class OutputConfig:
    """Where results go."""

    json: bool = False
    """Print the result as one JSON document on standard output, and everything else on standard error."""
    directory: str | None = None
    """Filled in by the parent: the run's folder, which receives `job.yaml` and `result.json`."""


@dataclass
class Config:
    """Everything; the order is the order in which `--cfg job` shows it."""

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    technique: TechniqueConfig = field(default_factory=TechniqueConfig)
    system: SystemConfig = field(default_factory=SystemConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    finetune_data: FinetuneDataConfig = field(default_factory=FinetuneDataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
