"""One device's forward: latency and peak memory of the five models of Galaxy's Table I, beside transformers.

    python -m benchmarks.forward                              # all five, fp32 and bf16, one thread
    python -m benchmarks.forward --models opt_xl --dtypes fp32 --layers 8

Each model is timed at batch 1 in one process that holds edgempi and transformers (`sdpa`) with the same random weights,
and calls in turn: ours, theirs, the GEMM floor (the linears of our forward alone, back to back, on the weights as our
route keeps them: what no forward on this host can beat without another GEMM), and one layer's linears by torch's stock
`F.linear`. Figures are medians; ratios are taken within each round, once by the clock and once in processor time, which
tells the same on a quiet machine and stays true on a busy one. Base models are compared: `last_hidden_state`, and the
pooler where the family has one.

Peak memory is the most that a process of its own held above its imports, loading included. A model of which two copies
do not fit in the memory at hand is cut in depth, never in width; the table says so.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from benchmarks.checkpoint import FILE_DTYPES, configuration, write_checkpoint
from benchmarks.measure import isolated, paired, peak_bytes, ratios, reset_peak, spread
from benchmarks.record import write_record
from benchmarks.reduce import markdown
from benchmarks.shapes import GALAXY, SHAPES
from edgempi.comm import lone_world
from edgempi.config.schema import ParallelConfig, PlannerConfig, Sharing
from edgempi.inference.runner import Runner
from edgempi.models.source import read_spec
from edgempi.ops.linear import Route, pick_route
from edgempi.parallel.batch import Batch
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.spec import ModelSpec

TITLE = "Forward of one device beside transformers"
MEMORY_SHARE = 0.8
"""How much of the memory at hand a model's two copies may take before its depth is cut."""


@dataclass(frozen=True)
class Case:
    """One run's parameters."""

    model: str
    layers: int
    dtype: str
    length: int
    threads: int
    rounds: int


class Recorder:
    """A route that can note the linears that a forward calls, and call them again without the rest."""

    def __init__(self, route: Route) -> None:
        self._kernel = route.kernel
        self._calls: list[tuple[Tensor, Tensor]] = []
        self._recording = False
        self.route = Route(route.name, route.prepare, self._call)
        self.flops = 0

    def record(self, forward: Callable[[], object]) -> None:
        """Note the linears of this call."""
        self._calls, self.flops, self._recording = [], 0, True
        forward()
        self._recording = False

    def replay(self) -> None:
        """The noted linears back to back, alone: no bias, no activation."""
        for x, weight in self._calls:
            self._kernel(x, weight, None, "none")

    def _call(self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        y = self._kernel(x, weight, bias, activation)
        if self._recording:
            self._calls.append((x, weight))
            self.flops += 2 * y.numel() * x.shape[-1]
        return y


def latency(case: Case, folder: Path) -> dict[str, Any]:
    """Time a checkpoint in this process, ours and theirs in turn.

    Returns:
        Quantiles of seconds and of ratios, GEMM rates, and how far apart the two outputs are.
    """
    torch.set_num_threads(case.threads)
    recorder = Recorder(pick_route(FILE_DTYPES[case.dtype][1]))
    spec = read_spec(folder)
    ids = _ids(spec, case.length)
    runner, batch = _ours(spec, case.dtype, folder, recorder.route), _batch(spec, ids)
    model = _theirs(case.dtype, folder)
    stock, stock_flops = _stock_linears(spec, case)
    with torch.inference_mode():
        recorder.record(lambda: runner.forward(batch))
        times = paired(
            {
                "ours": lambda: runner.forward(batch),
                "theirs": lambda: model(ids),
                "floor": recorder.replay,
                "stock": stock,
            },
            case.rounds,
        )
        ours, theirs = runner.outputs(batch)["last_hidden_state"], model(ids)[0].float()
    ours_t, theirs_t, floor_t, stock_t = times.values()
    return {
        "route": runner.route,
        "ours_s": spread(ours_t.wall_s),
        "theirs_s": spread(theirs_t.wall_s),
        "floor_s": spread(floor_t.wall_s),
        "ours_over_theirs": spread(ratios(ours_t.wall_s, theirs_t.wall_s)),
        "ours_over_floor": spread(ratios(ours_t.wall_s, floor_t.wall_s)),
        "ours_over_theirs_cpu": spread(ratios(ours_t.cpu_s, theirs_t.cpu_s)),
        "ours_over_floor_cpu": spread(ratios(ours_t.cpu_s, floor_t.cpu_s)),
        "floor_flops_per_cpu_s": recorder.flops / median(floor_t.cpu_s),
        "stock_flops_per_cpu_s": stock_flops / median(stock_t.cpu_s),
        "largest_difference": ((ours - theirs).abs().max() / theirs.abs().max()).item(),
    }


def memory(side: str, case: Case, folder: Path, spec_data: dict[str, Any]) -> dict[str, int]:
    """What this process holds above its imports while it loads and runs one side, `ours` or `theirs`."""
    torch.set_num_threads(case.threads)
    spec = ModelSpec.from_dict(spec_data)
    ids = _ids(spec, case.length)
    model_class = getattr(transformers, transformers.AutoConfig.from_pretrained(folder).architectures[0])  # imports it
    assert issubclass(model_class, transformers.PreTrainedModel)
    before = reset_peak()
    forward: Callable[[], object]
    with torch.inference_mode():
        if side == "ours":
            runner, batch = _ours(spec, case.dtype, folder), _batch(spec, ids)
            forward = lambda: runner.forward(batch)  # noqa: E731
        else:
            model = _theirs(case.dtype, folder)
            forward = lambda: model(ids)  # noqa: E731
        loaded = peak_bytes()
        reset_peak()
        for _ in range(2):
            forward()
        return {"load_peak_bytes": loaded - before, "forward_peak_bytes": peak_bytes() - before}


def run(case: Case) -> dict[str, Any]:
    """Measure one case, each figure in a process of its own.

    Returns:
        The record's `result`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec_data = isolated(_prepare, case, folder)
        result: dict[str, Any] = isolated(latency, case, folder, threads=case.threads)
        for side in ("ours", "theirs"):
            result[f"{side}_memory"] = isolated(memory, side, case, folder, spec_data, threads=case.threads)
    return result


def order(record: dict[str, Any]) -> tuple[int, str, int]:
    """Where a record's row stands in the table."""
    parameters = record["run"]["parameters"]
    return (list(SHAPES).index(parameters["model"]), parameters["dtype"], parameters["layers"])


def row(record: dict[str, Any]) -> dict[str, str]:
    """A record as a row of the table."""
    parameters, result = record["run"]["parameters"], record["result"]
    layers, whole = parameters["layers"], SHAPES[parameters["model"]].layers
    peaks = {side: max(result[f"{side}_memory"].values()) for side in ("ours", "theirs")}
    return {
        "model": parameters["model"] + (f" ({layers} of {whole} layers)" if layers < whole else ""),
        "run": f"{parameters['dtype']}, {parameters['length']} tokens, {parameters['threads']} thread(s)",
        "ours ms": _ms(result["ours_s"]),
        "transformers ms": _ms(result["theirs_s"]),
        "floor ms": _ms(result["floor_s"]),
        "ours / transformers": _ratio(result["ours_over_theirs"]),
        "in CPU time": _ratio(result["ours_over_theirs_cpu"]),
        "ours / floor": _ratio(result["ours_over_floor"]),
        "in CPU time ": _ratio(result["ours_over_floor_cpu"]),
        "floor, stock GFLOP/s": ", ".join(
            f"{result[f'{gemm}_flops_per_cpu_s'] / 1e9:.0f}" for gemm in ("floor", "stock")
        ),
        "peak ours, transformers MiB": f"{peaks['ours'] / 2**20:.0f}, {peaks['theirs'] / 2**20:.0f}",
        "ratio": f"{peaks['ours'] / peaks['theirs']:.2f}",
    }


def _prepare(case: Case, folder: Path) -> dict[str, Any]:
    write_checkpoint(folder, SHAPES[case.model], case.layers, case.dtype)
    return read_spec(folder).as_dict()


def _ours(spec: ModelSpec, dtype: str, folder: Path, route: Route | None = None) -> Runner:
    parallel = ParallelConfig(modes=[Sharing.single])
    program = plan_program(spec, [1.0], parallel, PlannerConfig(), Forms(weight_dtype=dtype))
    return Runner(lone_world(), program, spec, folder, route)


def _theirs(dtype: str, folder: Path) -> Callable[[Tensor], Any]:
    transformers.utils.logging.disable_progress_bar()
    torch_dtype = FILE_DTYPES[dtype][1]
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch_dtype, attn_implementation="sdpa").eval()
    # Neither side keeps keys and values.
    keep = {} if model.config.model_type in ("bert", "distilbert") else {"use_cache": False}
    return lambda ids: model(ids, **keep)


def _batch(spec: ModelSpec, ids: Tensor) -> Batch:
    return Batch(dec_ids=ids) if spec.enc is None else Batch(enc_ids=ids)


def _ids(spec: ModelSpec, length: int) -> Tensor:
    vocabulary = spec.stacks[spec.last].embedding.vocabulary
    return torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(0))


def _stock_linears(spec: ModelSpec, case: Case) -> tuple[Callable[[], None], int]:
    """One layer's linears by `F.linear` on plain weights, and their floating-point operations."""
    stack = spec.stacks[spec.last]
    width, columns, dtype = stack.width, stack.mlp_columns, FILE_DTYPES[case.dtype][1]
    shapes = ((3 * width, width), (width, width), (columns, width), (width, columns))
    pairs = [(torch.randn(case.length, k).to(dtype), torch.randn(n, k).to(dtype)) for n, k in shapes]

    def call() -> None:
        for x, weight in pairs:
            F.linear(x, weight)

    return call, sum(2 * case.length * n * k for n, k in shapes)


def _depth(model: str, dtype: str, limit: int | None) -> int:
    """How many layers to run: all, at most `limit`, and no more than lets two copies fit."""
    shape = SHAPES[model]

    def elements(layers: int) -> int:
        with torch.device("meta"):
            return transformers.AutoModel.from_config(configuration(shape, layers)).num_parameters()

    one = elements(1)
    layer, itemsize = elements(2) - one, FILE_DTYPES[dtype][1].itemsize
    room = int(psutil.virtual_memory().available * MEMORY_SHARE) // (2 * itemsize)
    return max(1, min(shape.layers, limit or shape.layers, 1 + (room - one) // layer))


def _ms(seconds: dict[str, float]) -> str:
    return f"{seconds['p50'] * 1e3:.{1 if seconds['p50'] < 1 else 0}f}"


def _ratio(values: dict[str, float]) -> str:
    return f"{values['p50']:.2f} ({values['p20']:.2f}-{values['p80']:.2f})"


def main() -> None:
    """Measure what the command line names; one record each, and a table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    five, known = list(GALAXY), [*GALAXY, "tiny"]
    parser.add_argument("--models", nargs="+", choices=known, default=five, metavar="NAME", help=", ".join(known))
    parser.add_argument("--dtypes", nargs="+", choices=FILE_DTYPES, default=list(FILE_DTYPES))
    parser.add_argument("--layers", type=int, help="cut each model to this depth (the width stays)")
    parser.add_argument("--length", type=int, default=284, help="tokens (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="compute threads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="paired repeats, after warm-up (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"), help="default: %(default)s")
    asked = parser.parse_args()
    rows = []
    for model in asked.models:
        for dtype in asked.dtypes:
            layers = isolated(_depth, model, dtype, asked.layers)
            case = Case(model, layers, dtype, asked.length, asked.threads, asked.rounds)
            print(f"{model} {dtype}, {layers} layers ...", flush=True)
            parameters, result = asdict(case), run(case)
            path = write_record(asked.output, "forward", parameters, result)
            rows.append(row({"run": {"parameters": parameters}, "result": result}))
            print(f"  {path}", flush=True)
    print("\n" + markdown(rows))


if __name__ == "__main__":
    main()
