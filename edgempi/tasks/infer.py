"""`edgempi infer`: answer requests with the devices together, beside one device alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from edgempi.cluster.known import known_profile
from edgempi.comm import World, lone_world
from edgempi.config.schema import Config, ParallelConfig, PlannerConfig, Sharing
from edgempi.errors import UserError
from edgempi.inference.greedy import generate
from edgempi.inference.runner import Runner
from edgempi.models.source import read_tokenizer
from edgempi.parallel.batch import Batch
from edgempi.plan.memory import predict_memory
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.workload import Workload
from edgempi.tasks import Job
from edgempi.tasks.answers import read_out
from edgempi.tasks.model_job import PATIENCE, ModelJob, load, locate_model, memory_used, plan_job
from edgempi.tasks.progress import told
from edgempi.tasks.tables import print_plan, size, table
from edgempi.tasks.timing import rank_times, time_cells, trace_path, write_trace

FREE_SHARE = 0.8
"""One device alone is measured where the model takes no more than this of its free memory."""


def prepare(config: Config) -> dict[str, Any]:
    """Tokenize the requests and plan for the longest."""
    folder, spec = locate_model(config)
    texts = _texts(config)
    tokenizer = read_tokenizer(folder)
    requests = [{"text": text, "ids": encode(tokenizer, text)} for text in texts]
    empty = [request["text"] for request in requests if not request["ids"]]
    if empty:
        raise UserError(
            "request", value=repr(empty[0]), rule="it has at least one token", remedy="Say something",
        )  # fmt: skip
    longest = max(len(request["ids"]) for request in requests)
    new_tokens = config.data.max_new_tokens if spec.generates else 0
    if spec.enc and spec.dec:
        work = Workload(1, 1 if spec.generates else longest, longest, new_tokens)
    else:
        work = Workload(1, longest, 0, new_tokens)
    if spec.generates and spec.max_tokens is not None and work.tokens + new_tokens - 1 > spec.max_tokens:
        raise UserError(
            "request length", value=f"{work.tokens} tokens and {new_tokens} to be written",
            rule=f"the model has positions for {spec.max_tokens}",
            remedy="Shorten the request or lower data.max_new_tokens",
        )  # fmt: skip
    trace = trace_path(config.task.trace)
    return {**plan_job(config, spec, work).as_dict(), "requests": requests, "trace": trace}


def run(job: Job, world: World) -> dict[str, Any]:
    """Answer every request together; then let rank 0 answer them alone, where it may."""
    config, payload = job.config, job.payload
    model_job = ModelJob.from_dict(payload)
    loaded = load(config, model_job, world)
    requests = [request["ids"] for request in payload["requests"]]
    trace = payload["trace"]
    new_tokens = config.data.max_new_tokens
    answers, seconds = _answer_all(loaded.runner, requests, new_tokens, "answering together", trace is not None)
    ranks = world.gather_json(
        {
            "host": world.host,
            "peak_bytes": memory_used(loaded),
            "import_bytes": loaded.import_bytes,
            "bytes_read": loaded.runner.data_bytes_read + loaded.runner.header_bytes_read,
            "load_s": loaded.load_s,
            "linear_route": loaded.runner.route,
            **world.traffic.as_dict(),
            **rank_times(world, sum(seconds), known_profile(config.cluster)),
        }
    )
    write_trace(world, trace, [row["device"] for row in payload["plan"]])
    alone: dict[str, Any] = {}
    with world.patience(PATIENCE):
        alone = world.only_on_rank_0(lambda: _alone(config, model_job, loaded.folder, requests)) or {}
    if ranks is None:
        return {}
    texts = read_out(model_job.spec, loaded.folder, [request["text"] for request in payload["requests"]], answers)
    return {
        "headline": payload["headline"],
        "plan": payload["plan"],
        "answers": [
            {"request": request["text"], **text, "seconds": s}
            for request, text, s in zip(payload["requests"], texts, seconds, strict=True)
        ],
        "ranks": ranks,
        "group_s": sum(seconds),
        "median_s": median(seconds),
        "trace": trace,
        **alone,
    }


def report(result: dict[str, Any], console: Console) -> None:
    """The plan, the answers, what each rank used, and which was faster."""
    print_plan(console, result)
    for answer in result["answers"]:
        console.print(f"{escape(answer['request'])}  [dim]({answer['seconds'] * 1e3:.0f} ms)[/dim]", highlight=False)
        console.print(f"    {answer['answer']}\n", markup=False, highlight=False)
    time_columns, time_rows = time_cells(result["ranks"])
    body = [
        [
            plan["device"], rank["host"], size(rank["peak_bytes"]), size(plan["memory_bytes"]),
            size(rank["bytes_read"]), size(rank["bytes_sent"]), *times, rank["linear_route"],
        ]
        for plan, rank, times in zip(result["plan"], result["ranks"], time_rows, strict=True)
    ]  # fmt: skip
    columns = ["device", "host", "peak memory", "predicted", "read", "sent", *time_columns, "linears"]
    console.print(table("Measured (memory above imports)", columns, body))
    console.print(_verdict(result))
    if result["trace"] is not None:
        console.print(f"Trace of the last answer: {result['trace']} (open it in ui.perfetto.dev)", markup=False)


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a request, through the chat template where the tokenizer has one."""
    if getattr(tokenizer, "chat_template", None):
        message = [{"role": "user", "content": text}]
        return list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))
    return list(tokenizer(text)["input_ids"])


def _verdict(result: dict[str, Any]) -> str:
    group, devices = result["group_s"], len(result["ranks"])
    if "alone_s" not in result:
        return f"{devices} devices took {group:.2f} s. {result.get('alone_why', '')}".rstrip()
    alone = result["alone_s"]
    both = f"{devices} devices together took {group:.2f} s, one alone {alone:.2f} s"
    if devices == 1:
        return f"One device took {group:.2f} s."
    if alone < group:
        return (
            f"{both}: one device is {group / alone:.1f} times as fast here. For a model this small the messages cost "
            "more than the work that is shared; what the group gives is memory."
        )
    return f"{both}: the group is {alone / group:.1f} times as fast."


def _texts(config: Config) -> list[str]:
    texts = list(config.data.prompts)
    if config.data.file:
        try:
            lines = Path(config.data.file).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                "data.file", value=f"{config.data.file}: {error}", rule="it is a text file with one request per line",
                remedy="Correct the path",
            ) from error  # fmt: skip
        texts += [line.strip() for line in lines if line.strip()]
    if not texts:
        raise UserError(
            "data.file", value=f"{config.data.file} is empty", rule="there is at least one request",
            remedy="Write one request a line",
        )  # fmt: skip
    return texts


def _answer_all(
    runner: Runner, requests: Sequence[Sequence[int]], new_tokens: int, what: str, traced: bool = False
) -> tuple[list[dict[str, Tensor]], list[float]]:
    """Each request's raw answer and seconds; the first is run once more before, so that none pays for warming up.

    `traced`: the last is recorded.
    """
    _answer(runner, requests[0], new_tokens)
    traffic = runner.world.traffic
    traffic.reset()
    answers: list[dict[str, Tensor]] = []
    seconds = []
    for ids in told(runner.world, requests, what):
        if traced and len(answers) == len(requests) - 1:
            traffic.trace.start()
        start = time.perf_counter()
        answers.append(_answer(runner, ids, new_tokens))
        seconds.append(time.perf_counter() - start)
    traffic.trace.stop()
    return answers, seconds


def _answer(runner: Runner, ids: Sequence[int], new_tokens: int) -> dict[str, Tensor]:
    prompt = torch.tensor([ids])
    if runner.spec.generates:
        return {"tokens": generate(runner, prompt, new_tokens)}
    return runner.outputs(Batch.of(runner.spec, prompt))


def _alone(config: Config, job: ModelJob, folder: Path, requests: Sequence[Sequence[int]]) -> dict[str, Any]:
    """One device's time for the same requests, where it may hold the model; otherwise why not."""
    name, device = next(iter(config.cluster.named_devices().items()))
    if not config.task.compare:
        return {"alone_why": "One device alone was not measured (task.compare=false)."}
    forms = Forms(job.program.prefill.weight_dtype, job.program.prefill.weight_dtype)
    single = ParallelConfig(modes=[Sharing.single])
    program = plan_program(job.spec, [1.0], single, PlannerConfig(), forms)
    # Its share of the common plan stays loaded beside.
    need = predict_memory(program.prefill, job.spec, 0, job.work).peak
    need += predict_memory(job.program.prefill, job.spec, 0, job.work).weights
    if device.memory_budget_bytes is not None and need > device.memory_budget_bytes:
        budget = device.memory_budget_bytes
        return {"alone_why": f"{name} alone cannot hold the model: it needs {size(need)} and lends {size(budget)}."}
    if need > FREE_SHARE * psutil.virtual_memory().available:
        free = psutil.virtual_memory().available
        return {"alone_why": f"{name} alone cannot hold the model: it needs {size(need)} and has {size(free)} free."}
    runner = Runner(lone_world(), program, job.spec, folder)
    _, seconds = _answer_all(runner, requests, config.data.max_new_tokens, "one device alone")
    return {"alone_s": sum(seconds), "alone_median_s": median(seconds)}
