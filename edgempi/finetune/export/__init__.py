"""What fine-tuning leaves for others: LoRA for peft, adapters and side networks with a loader, whole models."""

from edgempi.finetune.export.attach import Attached, attach
from edgempi.finetune.export.base import Base
from edgempi.finetune.export.model import write_model
from edgempi.finetune.export.own import Adapter, read_own, write_own
from edgempi.finetune.export.peft import read_lora, write_lora
from edgempi.finetune.export.write import write_adapter

__all__ = [
    "Adapter",
    "Attached",
    "Base",
    "attach",
    "read_lora",
    "read_own",
    "write_adapter",
    "write_lora",
    "write_model",
    "write_own",
]
