"""Training checkpoints: what a run has learnt and how far it is, written whole or not at all, read tensor by tensor."""

from edgempi.finetune.checkpoint.folder import Checkpoints, Found, load_optimizer, load_trained
from edgempi.finetune.checkpoint.optimizer import optimizer_names, optimizer_state, restore_optimizer
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
    "load_trained",
    "optimizer_names",
    "optimizer_state",
    "order_fingerprint",
    "restore_optimizer",
    "spreading",
]
