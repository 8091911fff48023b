"""`edgempi finetune`: train a model on one's rows with the devices together, and keep what was learned.

The parent reads and tokenises the rows and plans; samples lie as flat arrays in the run's folder, which rank 0 reads.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from edgempi.cluster.known import known_profile
from edgempi.cluster.profile import ClusterProfile
from edgempi.cluster.training_times import MEASURE, find_training, load_training
from edgempi.comm import World
from edgempi.config.schema import Config
from edgempi.errors import UserError
from edgempi.finetune.data.chosen import Chosen, choose, label_ids, labels_of, padding_of, template_for
from edgempi.finetune.data.handout import write_samples
from edgempi.finetune.data.samples import Sample, Samples, Template, tokenise
from edgempi.finetune.settings import check_cache, optimizing_of
from edgempi.finetune.techniques.head import task_head
from edgempi.models.source import read_tokenizer
from edgempi.plan.planners import Forms
from edgempi.plan.spec import ModelSpec
from edgempi.plan.text import program_to_dict
from edgempi.plan.training.asked import kept_of, request_of, tuning_of, work_of
from edgempi.plan.training.assumed import assumed_times, spoken, with_links
from edgempi.plan.training.explain import explain_training
from edgempi.plan.training.measured import Kept, purpose_of
from edgempi.plan.training.pac import Job as TrainingJob
from edgempi.plan.training.systems import SystemPlan, check_request, plan_system
from edgempi.plan.training.technique import Tuning, trained_elements
from edgempi.plan.workload import Workload
from edgempi.tasks import Job
from edgempi.tasks.finetune_run import CHECKPOINTS, EVALUATION_FILE, TRAIN_FILE, train_together
from edgempi.tasks.finetune_tables import print_outcome
from edgempi.tasks.model_job import check_length, locate_model

PROFILE = "profile.yaml"
"""What a file of measured times is called where it has no name yet."""


def prepare(config: Config) -> dict[str, Any]:
    """Check what was asked, read and tokenise the rows, plan."""
    tuning = tuning_of(config.technique)
    request = request_of(config.system, config.technique, config.cache)
    check_request(request)
    check_cache(config.cache, tuning)
    optimizing_of(config.optimizer, config.technique)
    folder, spec = locate_model(config)
    out = _folder(config)
    chosen = choose(config.finetune_data, out / "data")
    template, tokenizer = template_for(config.finetune_data, chosen, spec), read_tokenizer(folder)
    head = task_head(spec, labels_of(chosen.task, spec))
    tuned, pad = head.applied(spec), padding_of(spec, tokenizer)
    written = label_ids(chosen.task, template, tokenizer)
    rows = _tokenised(chosen, template, tokenizer, spec, config.evaluation.every_steps is not None)
    for file, samples in rows.items():
        write_samples(out / file, samples.samples)
    train = rows[TRAIN_FILE]
    longest = _longest(spec, [sample for samples in rows.values() for sample in samples.samples])
    check_length(spec, max(longest.tokens, longest.memory_tokens), "longest row's")
    kept = kept_of(config.weights.dtype.value, config.optimizer, config.cache, spec)
    job = TrainingJob(config.finetune_data.batch, len(train.samples), config.optimizer.epochs)
    cluster, planned, work, assumed = _plan(config, tuned, tuning, longest, job, kept)
    if assumed:
        print(f"edgempi: {assumed}", file=sys.stderr, flush=True)  # before the long run, not after it
    depths = {"train": planned.found.train.depths}
    predicted = {"train": planned.found.train.step_s}
    if planned.found.cached is not None:
        depths["cached"], predicted["cached"] = planned.found.cached.depths, planned.found.cached.step_s
    return {
        "folder": str(out),
        "spec": replace(tuned, pad_token=pad).as_dict(),
        "fresh": list(head.fresh),
        "program": program_to_dict(planned.found.program),
        "depths": {name: list(depth) for name, depth in depths.items()},
        "predicted_s": predicted,
        "continuation": planned.found.continuation.value,
        "work": asdict(work),
        "assumed": assumed,
        "plan": explain_training(planned, cluster, job),
        "trained": trained_elements(tuned, tuning),
        "data": {
            "origin": chosen.train.origin,
            "template": train.template,
            "tokenizer": train.tokenizer,
            "truncation": [config.finetune_data.max_tokens, config.finetune_data.max_target_tokens],
            "pad": pad,
            "metrics": list(chosen.task.metrics) if chosen.task else [],
            "label_ids": written,
            "rows": {file: len(samples.samples) for file, samples in rows.items()},
            "told": _told(chosen, rows),
            "mean_tokens": _mean(tuned, train.samples),
        },
    }


def run(job: Job, world: World) -> dict[str, Any]:
    """Train on every rank."""
    return train_together(job.config, job.payload, world)


def report(result: dict[str, Any], console: Console) -> None:
    """The plan, what became of the rows, losses and figures, what each phase and device took, where files lie."""
    print_outcome(console, result)


def _folder(config: Config) -> Path:
    """Where the run's files go; made if it is not there."""
    if config.task.resume and config.task.folder is None:
        raise UserError(
            "task.resume", value="true, without task.folder", rule="a run is resumed from its own folder",
            remedy="Name it: task.folder=outputs/finetune/...",
        )  # fmt: skip
    stamp = Path("outputs", "finetune", f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    out = Path(config.task.folder or config.output.directory or stamp).expanduser().resolve()
    if not config.task.resume and (out / CHECKPOINTS).exists():
        raise UserError(
            "task.folder", value=out, rule="it holds the checkpoints of another run",
            remedy="Add task.resume=true to go on with it, or name another folder",
        )  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            "task.folder", value=f"{out}: {error.strerror}", rule="files can be written there",
            remedy="Name another folder",
        ) from error  # fmt: skip
    return out


def _tokenised(
    chosen: Chosen, template: Template, tokenizer: Any, spec: ModelSpec, evaluates: bool
) -> dict[str, Samples]:
    """The samples by the file that they go to."""
    found = {TRAIN_FILE: tokenise(chosen.train, template, tokenizer, spec)}
    if evaluates and chosen.validation is not None:
        found[EVALUATION_FILE] = tokenise(chosen.validation, template, tokenizer, spec)
    return found


def _longest(spec: ModelSpec, samples: Sequence[Sample]) -> Workload:
    """The most tokens of each stack."""
    lengths = _lengths(spec, samples)
    return Workload(1, *(max(lengths[name], default=0) for name in ("tokens", "memory_tokens")))


def _mean(spec: ModelSpec, samples: Sequence[Sample]) -> dict[str, float]:
    """Tokens of a row on average, by stack, as `Workload` calls them."""
    return {name: sum(found) / max(1, len(found)) for name, found in _lengths(spec, samples).items()}


def _lengths(spec: ModelSpec, samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Tokens of every row: of the stack that the head reads, and of the encoder beside it."""
    stacks = {"tokens": spec.last, "memory_tokens": "enc" if spec.enc and spec.dec else None}
    return {
        name: [len(getattr(sample, f"{stack}_ids")) for sample in samples] if stack else []
        for name, stack in stacks.items()
    }


def _plan(
    config: Config, spec: ModelSpec, tuning: Tuning, longest: Workload, job: TrainingJob, kept: Kept
) -> tuple[ClusterProfile, SystemPlan, Workload, str | None]:
    """The plan for the cluster, for which rows, and what was assumed if nothing was measured."""
    request, profile = request_of(config.system, config.technique, config.cache), config.cluster.profile
    cluster = known_profile(config.cluster)
    measured = load_training(profile) if profile else ()
    dtype = config.weights.dtype.value
    forms = Forms(dtype, dtype if config.wire.dtype is None else config.wire.dtype.value)
    if measured:
        work, assumed = work_of(config.finetune_data, spec), None
        times = find_training(measured, purpose_of(spec, tuning, work, kept)).devices
    else:
        file, then = profile or PROFILE, "" if profile else f"; then fine-tune with cluster.profile={PROFILE}"
        how = f"To measure them, run {MEASURE} cluster.profile={file} with this run's other overrides{then}."
        work, assumed = longest, f"{spoken(cluster)} {how}"
        times = assumed_times(spec, tuning, work, cluster, kept.optimizer)
    cluster = with_links(cluster)
    return cluster, plan_system(request, spec, tuning, work, times, cluster, job, kept, forms), work, assumed


def _told(chosen: Chosen, rows: Mapping[str, Samples]) -> list[str]:
    """What was skipped, cut or left out, in sentences."""
    told = []
    for loaded, file in ((chosen.train, TRAIN_FILE), (chosen.validation, EVALUATION_FILE)):
        if loaded is not None and file in rows:
            name = Path(loaded.origin).name
            told += [f"{name}, {said}" for said in (*loaded.tally.sentences(), *rows[file].tally.sentences())]
    return told
