"""`edgempi verify`: compare the shared model with transformers on one process, on the user's model and plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from edgempi.comm import World
from edgempi.config.schema import Config
from edgempi.inference.greedy import generate
from edgempi.models.source import locate, read_config
from edgempi.parallel.batch import Batch
from edgempi.plan.plan import Plan
from edgempi.plan.spec import ModelSpec
from edgempi.plan.workload import Workload
from edgempi.tasks import Job
from edgempi.tasks.model_job import PATIENCE, ModelJob, load, locate_model, plan_job
from edgempi.tasks.tables import print_plan, table

TOLERANCE = 2e-5
"""The largest difference allowed in fp32, as a share of the output's largest magnitude."""
BF16_FACTOR, BF16_LEAST = 2.0, 5e-3
"""In bf16: this many times what transformers in bf16 differs from itself in fp32, and never less than the second."""
WIRE_TOLERANCE = {"bf16": 2e-2, "int8": 5e-2}
"""The same with fp32 weights where activations travel rounded: to 8 bits of mantissa, or 255 steps a group."""
NOT_A_NUMBER = 1e30
"""The difference where an output holds no finite numbers (JSON knows no infinity)."""
GREEDY_TOKENS = 8
FIRST_ID = 10
"""Synthetic ids start here: the special tokens of most vocabularies lie below."""


def prepare(config: Config) -> dict[str, Any]:
    """Plan for a seeded synthetic batch, `data.batch` x `data.length`, rows padded where there are several."""
    _, spec = locate_model(config)
    data = config.data
    two = bool(spec.enc and spec.dec)
    new_tokens = GREEDY_TOKENS if spec.generates and spec.max_tokens is None else 0
    if spec.generates and spec.max_tokens is not None and (two or data.length + GREEDY_TOKENS <= spec.max_tokens):
        new_tokens = GREEDY_TOKENS
    job = plan_job(config, spec, Workload(data.batch, data.length, data.length if two else 0, new_tokens))
    return job.as_dict()


def run(job: Job, world: World) -> dict[str, Any]:
    """Run the batch shared, then on rank 0 by transformers."""
    config, payload = job.config, job.payload
    model_job = ModelJob.from_dict(payload)
    loaded = load(config, model_job, world)
    spec, work = model_job.spec, model_job.work
    ids, padding = synthetic(spec, work.rows, work.tokens)
    ours = loaded.runner.outputs(Batch.of(spec, ids, padding))
    written = generate(loaded.runner, ids[:1], work.new_tokens) if work.new_tokens else None
    plan = model_job.program.prefill
    with world.patience(PATIENCE):
        checks = world.only_on_rank_0(lambda: _compare(config, spec, plan, ids, padding, ours, written))
    if checks is None:
        return {}
    for check in checks:
        check["passed"] = check["difference"] <= check["allowed"]
    return {
        "headline": payload["headline"],
        "plan": payload["plan"],
        "checks": checks,
        "passed": all(check["passed"] for check in checks),
    }


def report(result: dict[str, Any], console: Console) -> None:
    """The largest difference of each output, and the verdict."""
    print_plan(console, result)
    rows = [
        [
            c["output"], c["shape"], f"{c['largest']:.3g}", f"{c['difference']:.1e}", f"{c['allowed']:.1e}",
            f"{c['relative_error']:.1e}" if "relative_error" in c else "-",
            f"{c['same_argmax']:.1%}" if "same_argmax" in c else "-",
            "yes" if c["passed"] else "NO",
        ]
        for c in result["checks"]
    ]  # fmt: skip
    columns = [
        "output", "shape", "largest value", "largest difference", "allowed", "relative error", "same argmax", "passed"
    ]  # fmt: skip
    console.print(table("Against transformers on one process", columns, rows))
    verdict = "PASSED" if result["passed"] else "FAILED"
    console.print(
        f"{verdict}. Differences are shares of the output's largest value; of tokens they count the unequal. The "
        "relative error is that of the whole output (of norms), same argmax the share of tokens whose largest logit is "
        "the same."
    )


def FAILED(result: dict[str, Any]) -> bool:  # noqa: N802 - the task protocol's name
    """Whether any output was too far off."""
    return not result["passed"]


def synthetic(spec: ModelSpec, rows: int, tokens: int) -> tuple[Tensor, Tensor | None]:
    """Seeded ids (rows, tokens); with several rows, the later ones are padded on the right."""
    vocabulary = spec.stacks[spec.last].embedding.vocabulary
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(FIRST_ID, vocabulary - 1), vocabulary, (rows, tokens), generator=generator)
    if rows == 1 or tokens == 1:
        return ids, None
    lengths = torch.tensor([tokens - (row * tokens) // (2 * rows) for row in range(rows)])
    padding = torch.arange(tokens)[None] < lengths[:, None]
    return ids.masked_fill(~padding, spec.pad_token or 0), padding


def _compare(
    config: Config,
    spec: ModelSpec,
    plan: Plan,
    ids: Tensor,
    padding: Tensor | None,
    ours: dict[str, Tensor],
    written: Tensor | None,
) -> list[dict[str, Any]]:
    model = _oracle(locate(config.model.path, config.model.revision))
    inputs = {"input_ids": ids}
    if padding is not None:
        inputs["attention_mask"] = padding.long()
    if spec.enc is not None and spec.dec is not None:
        inputs["decoder_input_ids"] = ids
    with torch.inference_mode():
        outputs = model(**inputs)
    two = spec.enc is not None and spec.dec is not None
    mask = None if two else padding
    checks = [_check(name, value, getattr(outputs, name), mask) for name, value in ours.items()]
    if plan.weight_dtype == "bf16":
        with torch.inference_mode():
            rounded = model.to(torch.bfloat16)(**inputs)
        for check, name in zip(checks, ours, strict=True):
            usual = _check(name, getattr(rounded, name).float(), getattr(outputs, name), mask)["difference"]
            least = WIRE_TOLERANCE["int8"] if plan.wire_dtype == "int8" else BF16_LEAST
            check["allowed"] = max(BF16_FACTOR * usual, least)
    elif plan.wire_dtype in WIRE_TOLERANCE:
        checks = [{**check, "allowed": WIRE_TOLERANCE[plan.wire_dtype]} for check in checks]
    elif written is not None:
        expected = _greedy(model, spec, ids[:1], written.shape[1])
        off = float((written != expected).sum())
        about = {"output": "greedy tokens", "shape": f"{written.shape[1]} tokens", "largest": float(written.max())}
        checks.append({**about, "difference": off, "allowed": 0.0})
    if config.task.tolerance is not None:
        checks = [{**check, "allowed": config.task.tolerance} for check in checks]
    return checks


def _oracle(folder: Path) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    name = (read_config(folder).architectures or [""])[0]
    return getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
    ).eval()  # fmt: skip


def _check(name: str, ours: Tensor, theirs: Tensor, padding: Tensor | None) -> dict[str, Any]:
    if theirs.dim() == 2:  # one token of each row
        theirs = theirs[:, None]
    ours = ours.reshape(theirs.shape)
    shape = " x ".join(map(str, theirs.shape))
    if padding is not None and theirs.shape[1] == padding.shape[1]:  # what stands at padding is nobody's concern
        ours, theirs = ours[padding], theirs[padding]
    largest = float(theirs.abs().max())
    difference = float((ours - theirs).abs().max()) / max(largest, 1e-30)
    if not torch.isfinite(ours).all():
        difference = NOT_A_NUMBER
    check: dict[str, Any] = {"output": name, "shape": shape, "largest": largest, "difference": difference}
    error = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))
    check["relative_error"] = error if difference != NOT_A_NUMBER else NOT_A_NUMBER
    if name == "logits":
        check["same_argmax"] = float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
    return {**check, "allowed": TOLERANCE}


def _greedy(model: Any, spec: ModelSpec, prompt: Tensor, count: int) -> Tensor:
    """Greedy tokens by whole forward passes: no cache that could be wrong on both sides."""
    written = prompt if spec.enc is None else torch.full((1, 1), spec.start_token or 0)
    start = written.shape[1]
    with torch.inference_mode():
        for _ in range(count):
            more = {"input_ids": written} if spec.enc is None else {"input_ids": prompt, "decoder_input_ids": written}
            written = torch.cat((written, model(**more).logits[:, -1].argmax(-1, keepdim=True)), dim=1)
    return written[:, start:]
