"""Models and plans as hypothesis draws them: small, odd, and of every kind that plans must serve."""

from __future__ import annotations

from hypothesis import strategies as st

from edgempi.config.schema import ParallelConfig, PlannerConfig, PlannerName, Sharing
from edgempi.plan.plan import Program
from edgempi.plan.planners import Forms, plan_program
from edgempi.plan.spec import Embedding, Head, ModelSpec, Relative, Rotary, Stack


def stack(layers: int = 3, kv_heads: int = 3, group: int = 2, columns: int = 11, **more: object) -> Stack:
    """A stack of `kv_heads * group` heads of four."""
    heads = kv_heads * group
    fields = {
        "layers": layers,
        "width": 12,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": 4,
        "mlp_columns": columns,
        "activation": "gelu",
        "embedding": Embedding(vocabulary=17, width=12, positions=32),
        "attention_scales": (0.5,) * layers,
    }
    return Stack(**{**fields, **more})


def decoder(**more: object) -> ModelSpec:
    """A language model with a tied head."""
    head = Head(rows=17, vocabulary=True, tied=True)
    return ModelSpec(family="gpt2", enc=None, dec=stack(causal=True, **more), head=head, max_tokens=32)


def rich() -> ModelSpec:
    """An encoder-decoder that uses every kind of parameter there is."""
    encoder = stack(relative=Relative(8, 12, True), norm="rms", gated=True, final_norm=True, qk_norm=True)
    narrow = Embedding(vocabulary=17, width=8, positions=32, types=2, norm=True, shared=True)
    rotary = Rotary((1.0, 0.5), 1.25)
    own = {"embedding": narrow, "rotary": rotary, "windows": (4, None, 4), "causal": True, "cross": True}
    head = Head(
        rows=17, vocabulary=True, bias=True, dense=True, dense_activation="gelu", dense_norm=True, project_width=8
    )
    return ModelSpec(
        family="t5", enc=encoder, dec=stack(kv_heads=5, group=1, columns=7, **own), head=head, max_tokens=None,
        start_token=1, stop_tokens=(2, 3), pad_token=0,
    )  # fmt: skip


def classifier() -> ModelSpec:
    """An encoder with labels."""
    head = Head(rows=3, select="first", bias=True, dense=True, dense_activation="tanh")
    return ModelSpec(family="bert", enc=stack(norm_first=False), dec=None, head=head, max_tokens=32)


SPECS = st.one_of(
    st.builds(
        decoder,
        layers=st.integers(1, 5),
        kv_heads=st.integers(1, 5),
        group=st.integers(1, 3),
        columns=st.integers(1, 200),
    ),
    st.builds(rich),
    st.builds(classifier),
)
SPEEDS = st.lists(st.one_of(st.just(0.0), st.floats(0.01, 100)), min_size=1, max_size=6).filter(any)
MODES = st.sampled_from([Sharing.data, Sharing.tensor, Sharing.sequence, Sharing.hybrid])


@st.composite
def programs(draw: st.DrawFn) -> tuple[ModelSpec, Program]:
    """A model and a program that a planner made for it, over one or more stages."""
    spec, speeds = draw(SPECS), draw(SPEEDS)
    ranks = draw(st.permutations(range(len(speeds))))
    layers = sum(stack.layers for stack in spec.stacks.values())
    most = min(len(speeds), layers)
    cuts = sorted(draw(st.sets(st.integers(1, len(speeds) - 1), max_size=most - 1))) if most > 1 else []
    stages = [sorted(ranks[a:b]) for a, b in zip([0, *cuts], [*cuts, len(speeds)], strict=True)]
    modes = [draw(MODES) if len(stage) > 1 else Sharing.single for stage in stages]
    parallel = ParallelConfig(stages=stages, modes=modes, microbatches=draw(st.integers(1, 4)))
    planner = PlannerConfig(name=PlannerName.proportional, speeds=speeds)
    return spec, plan_program(spec, speeds, parallel, planner, Forms())
