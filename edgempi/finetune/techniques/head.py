"""The head of a task: the checkpoint's own where it has one that fits, a new one as its family makes it otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgempi.errors import UserError
from edgempi.plan.share import inventory
from edgempi.plan.spec import Head, ModelSpec

POOLERS = {"distilbert": "relu"}
"""The activation of the layer before the labels, by family; tanh in the others."""


@dataclass(frozen=True)
class TaskHead:
    """The head that a model is fine-tuned with.

    Attributes:
        head: takes the place of the checkpoint's.
        fresh: its parameters that are not read from the checkpoint but begin anew.
    """

    head: Head
    fresh: tuple[str, ...] = ()

    def applied(self, spec: ModelSpec) -> ModelSpec:
        """The model with this head: what is planned, and trained."""
        return replace(spec, head=self.head)


def task_head(spec: ModelSpec, labels: int | None) -> TaskHead:
    """The head for a task.

    Args:
        spec: the checkpoint's model.
        labels: how many classes, 1 for a score, None for text.

    Raises:
        UserError: text from a model that has no words to say, or labels from an encoder-decoder.
    """
    own = spec.head
    if labels is None:
        if not own.vocabulary:
            raise UserError(
                "task", value="text", rule="the checkpoint has a head over the vocabulary",
                remedy="Use a language model's checkpoint, or a task with labels",
            )  # fmt: skip
        return TaskHead(own)
    if own.rows == labels and not own.vocabulary and own.select != "all":
        return TaskHead(own)
    if spec.enc and spec.dec:
        raise UserError(
            "task", value=f"{labels} labels", rule="an encoder-decoder answers in text",
            remedy="Use the text-to-text template, or an encoder's or decoder's checkpoint",
        )  # fmt: skip
    if spec.enc is None:
        head = Head(rows=labels, select="last", project_width=own.project_width)
    else:
        head = Head(
            rows=labels, select="first", bias=True, dense=True, dense_activation=POOLERS.get(spec.family, "tanh")
        )
    names = {parameter.name for parameter in inventory(replace(spec, head=head), "head")}
    # A pooler that the checkpoint has is the layer before the labels; so is a decoder's projection.
    pooled = own.dense and not own.vocabulary and own.select == head.select
    kept = {"head.project.weight"} | ({"head.dense.weight", "head.dense.bias"} if pooled else set())
    return TaskHead(head, tuple(sorted(names - kept)))
