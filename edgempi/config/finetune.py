"""The configuration of fine-tuning as dataclasses, one per Hydra group; sizes carry their unit in the name.

Defaults are PAC's (arXiv 2408.10746) and those of LST (arXiv 2206.06522), whose side network it uses. Names equal those
of the plan's own (`plan.training.technique.Technique`, `plan.training.systems.System`), which stand above this room.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

from edgempi.config.rules import at_least, require


class TechniqueName(StrEnum):
    """What is trained."""

    full = "full"
    lora = "lora"
    adapter = "adapter"
    parallel_adapter = "parallel_adapter"


class MergeName(StrEnum):
    """What becomes of the side network's output: added to the backbone's last hidden state, or alone."""

    add = "add"
    none = "none"


class InitialName(StrEnum):
    """How a side network starts: from the backbone's largest weights, or at random."""

    magnitude = "magnitude"
    random = "random"


class SystemName(StrEnum):
    """Who trains what together."""

    standalone = "standalone"
    eddl = "eddl"
    ecofl = "ecofl"
    asteroid = "asteroid"
    pac = "pac"


class AfterName(StrEnum):
    """What the epochs after the first one do."""

    recompute = "recompute"
    in_place = "in_place"
    redistribute = "redistribute"


class ObjectiveName(StrEnum):
    """By what pipelines are chosen: simulated time of all epochs, or the formula that PAC published."""

    simulated = "simulated"
    published = "published"


class OptimizerName(StrEnum):
    """Which optimizer."""

    adamw = "adamw"
    sgd = "sgd"


class ScheduleName(StrEnum):
    """How the learning rate goes on after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class CacheDtype(StrEnum):
    """The form in which activations are cached."""

    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"


class SourceName(StrEnum):
    """Where rows come from."""

    glue = "glue"
    jsonl = "jsonl"
    table = "table"
    generated = "generated"


@dataclass
class TechniqueConfig:
    """How a model is fine-tuned; sizes of the other techniques are not read."""

    name: TechniqueName = TechniqueName.parallel_adapter
    rank: int = 32
    """`lora`: of its factors."""
    alpha: float = 32.0
    """`lora`: its output is multiplied by alpha / rank."""
    bottleneck_reduction: int = 16
    """`adapter`: how many times narrower than the model its bottlenecks are."""
    reduction: int = 8
    """`parallel_adapter`: how many times narrower than the model the side network is."""
    down_rank: int | None = None
    """`parallel_adapter`: the rank of its downsamplers; null: dense ones, 0: fixed ones, which train nothing."""
    merge: MergeName = MergeName.add
    """`parallel_adapter`: `add` starts as the base model exactly, `none` is the published form."""
    initial: InitialName = InitialName.magnitude
    """`parallel_adapter`."""

    def __post_init__(self) -> None:
        for name in ("rank", "bottleneck_reduction", "reduction"):
            at_least(1, f"technique.{name}", getattr(self, name))
        at_least(0, "technique.down_rank", self.down_rank)
        require(0 < self.alpha < inf, "technique.alpha", self.alpha, "above zero", "Set it to the rank")


@dataclass
class SystemConfig:
    """Who trains what together, and how its plan is made."""

    name: SystemName = SystemName.pac
    device: int | None = None
    """`standalone`: the rank that trains; null: the one that is done first."""
    after: AfterName | None = None
    """What the epochs after the first one do with a cache; null: what takes least, moving included."""
    objective: ObjectiveName = ObjectiveName.simulated
    bucket_bytes: int = 4 * 2**20
    """Gradients are summed in parts of at least so many bytes, under the rest of the backward pass."""

    def __post_init__(self) -> None:
        at_least(0, "system.device", self.device)
        at_least(1, "system.bucket_bytes", self.bucket_bytes)


@dataclass
class OptimizerConfig:
    """How tensors are updated, and for how long."""

    name: OptimizerName = OptimizerName.adamw
    rate: float | None = None
    """The learning rate at its highest; null: 3e-3 for a side network, 3e-4 for the other techniques, with AdamW."""
    schedule: ScheduleName = ScheduleName.linear
    warm_up: float = 0.1
    """Updates that lead up to the highest rate; below 1, their share of all updates."""
    weight_decay: float = 0.0
    """Of matrices; norms, biases and gates have none."""
    clip: float | None = 1.0
    """The largest norm of all gradients together; null: any."""
    beta1: float = 0.9
    """`adamw`."""
    beta2: float = 0.999
    """`adamw`."""
    eps: float = 1e-8
    """`adamw`."""
    momentum: float = 0.0
    """`sgd`."""
    accumulate: int = 1
    """Mini-batches of an update."""
    epochs: int = 3
    max_steps: int | None = None
    """Updates after which training ends, whatever the epochs; null: no such bound."""

    def __post_init__(self) -> None:
        for name in ("accumulate", "epochs", "max_steps"):
            at_least(1, f"optimizer.{name}", getattr(self, name))
        for name in ("rate", "clip", "eps"):
            value = getattr(self, name)
            require(
                value is None or 0 < value < inf, f"optimizer.{name}", value, "above zero", "Give a positive number"
            )
        for name in ("beta1", "beta2", "momentum"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name}", value, "from 0 to below 1", "Correct it")
        fine = 0 <= self.warm_up < 1 or (1 <= self.warm_up < inf and self.warm_up == int(self.warm_up))
        require(
            fine, "optimizer.warm_up", self.warm_up, "a share below 1, or a whole number of updates", "Set it to 0.1"
        )
        require(0 <= self.weight_decay < inf, "optimizer.weight_decay", self.weight_decay, "0 or above", "Set it to 0")
        require(
            self.name is OptimizerName.adamw or self.rate is not None, "optimizer.rate", self.rate,
            "sgd has no learning rate of its own: it depends on how large gradients are", "Give one, such as 0.1",
        )  # fmt: skip


@dataclass
class CacheConfig:
    """The cache of the backbone's activations, which `technique=parallel_adapter` leaves as they are."""

    enabled: bool | None = None
    """null: as the system has it, `pac` where it pays and the others not."""
    dtype: CacheDtype = CacheDtype.bf16
    factor: int = 1
    """How many times fewer columns are kept, by the projection of `technique.down_rank=0`, whose `technique.reduction`
    it then is; 1 keeps all."""
    folder: str | None = None
    """On each device; null: under the user's cache folder."""
    memory_bytes: int = 0
    """For copies in memory, beside the disk."""
    disk_bytes: int | None = None
    """For files; null: as much as there is, 0: none. Any other number covers all of a device's caches in the folder: a
    run deletes those that other models and settings have left there."""
    prefetch_samples: int = 32
    """How many samples are read ahead of their use."""
    keep: bool = True
    """Whether it stays when training ends, so that later runs compute new samples alone."""

    def __post_init__(self) -> None:
        for name in ("factor", "prefetch_samples"):
            at_least(1, f"cache.{name}", getattr(self, name))
        for name in ("memory_bytes", "disk_bytes"):
            at_least(0, f"cache.{name}", getattr(self, name))


@dataclass
class FinetuneDataConfig:
    """The rows to train on, and how they become token ids."""

    source: SourceName = SourceName.generated
    """`glue`: a folder with official files; `jsonl`: messages (or ShareGPT's conversations), prompt and completion,
    instruction and output, or text; `table`: CSV, TSV or parquet with named columns; `generated`: made up, of the
    shape of `task`."""
    task: str | None = "mrpc"
    """`glue` and `generated`: mrpc, stsb, sst2 or qnli; elsewhere what prompts begin with."""
    path: str | None = None
    """The folder, or the file of the training rows."""
    validation: str | None = None
    """The file of the rows to evaluate on; null: the folder's own, where `path` is one."""
    texts: list[str] = field(default_factory=list)
    """`table`: the columns of one or two texts, or of prompt and answer."""
    label: str | None = None
    """`table`: the column of the label."""
    labels: list[str] = field(default_factory=list)
    """`table`: the names of the classes, in order; empty: those that the column holds, unless they are fractions."""
    score_range: list[float] | None = None
    """`table`: lowest and highest score, where the label is a number and no class. It is never guessed: rows to
    evaluate on may lie beyond those to train on."""
    text_to_text: bool | None = None
    """Whether labels are written as text; null: where the model has an encoder and a decoder."""
    max_tokens: int = 128
    """Of a row: of the encoder's, where there are two stacks."""
    max_target_tokens: int = 16
    """Of what is written, where there are two stacks."""
    batch: int = 16
    """Rows of a mini-batch, over all devices."""
    seed: int = 0
    """Of the order of rows, and of what training begins with."""
    generated_rows: int = 1000
    """`generated`: rows to train on; a quarter as many are made to evaluate on."""
    shuffle_labels: bool = False
    """`generated`: deal the training labels out anew: a control, from which nothing can be learned."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_target_tokens", "batch", "generated_rows"):
            at_least(1, f"finetune_data.{name}", getattr(self, name))
        require(
            self.path is not None or self.source is SourceName.generated, "finetune_data.path", self.path,
            f"source={self.source} reads a file or folder", "Name it, or set source=generated",
        )  # fmt: skip
        require(
            len(self.labels) != 1 and len(set(self.labels)) == len(self.labels), "finetune_data.labels", self.labels,
            "two classes or more, each named once", "Name all classes of the column, or none",
        )  # fmt: skip
        edges = self.score_range
        fine = edges is None or (len(edges) == 2 and -inf < edges[0] < edges[1] < inf)
        require(fine, "finetune_data.score_range", edges, "lowest and highest score", "Set it to [0,5]")
        require(
            not (edges and self.labels), "finetune_data.score_range", edges, "a label is a score or a class",
            "Leave out score_range, or labels",
        )  # fmt: skip


@dataclass
class EvaluationConfig:
    """What is said, judged and saved while training: every so many updates; 0: after every epoch; null: never."""

    log_every_steps: int | None = 10
    every_steps: int | None = 0
    save_every_steps: int | None = 0
    batch: int = 32
    """Rows of a pass, over all devices."""
    metric: str | None = None
    """The figure by which a checkpoint is the best; null: the task's first, or the loss."""
    patience: int | None = None
    """Evaluations without a gain after which training stops; null: it goes on."""
    gain: float = 0.0
    """By how much the metric must improve to count as a gain."""
    checkpoints: int = 2
    """How many of the latest are kept, beside the best."""
    tensorboard: bool = False
    """Write TensorBoard's event files too."""

    def __post_init__(self) -> None:
        for name in ("log_every_steps", "every_steps", "save_every_steps"):
            at_least(0, f"evaluation.{name}", getattr(self, name))
        for name in ("batch", "patience", "checkpoints"):
            at_least(1, f"evaluation.{name}", getattr(self, name))
        require(0 <= self.gain < inf, "evaluation.gain", self.gain, "0 or above", "Set it to 0")
