"""Training checkpoints: what a run has learnt and how far it is, written whole or not at all, read tensor by tensor."""

from edgempi.finetune.checkpoint.folder import Checkpoints, Found, load_optimizer, load_order, load_trained
from edgempi.finetune.checkpoint.optimizer import optimizer_names
from edgempi.finetune.checkpoint.places import Gathered, Transfer, gathering, spreading
from edgempi.finetune.checkpoint.position import Best, Identity, Position, order_fingerprint

__all__ = [
    "Best",
    "Checkpoints",
    "Found",
    "Gathered",
    "Identity",
    "Position",
    "Transfer",
    "gathering",
    "load_optimizer",
    "load_order",
    "load_trained",
    "optimizer_names",
    "order_fingerprint",
    "spreading",
]
