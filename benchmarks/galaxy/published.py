"""What was published of Galaxy, as plain numbers: the figures that ours stand beside.

Speed-ups are of Galaxy over Megatron-LM (M-LM) and over sequence parallelism (SP); `OOM` says that the other, or
Galaxy itself, does not fit the devices. Sources: arXiv 2405.17245 and slides about it.
"""

from __future__ import annotations

OOM = "OOM"

ENVIRONMENTS = {
    "lab_m": "M", "lab_a": "A (2 M)", "lab_b": "B (3 M)", "lab_c": "C (4 M)",
    "lab_d": "D (L + M)", "lab_e": "E (L + S)", "lab_f": "F (L + M + S)",
}  # fmt: skip
"""Our clusters by the published environments."""

HOMOGENEOUS: dict[tuple[str, str], tuple[float | str, float | str]] = {
    ("distilbert", "lab_a"): (1.37, 1.08),
    ("bert_large", "lab_a"): (1.36, 1.09),
    ("bert_large", "lab_b"): (1.38, 1.11),
    ("gpt2_large", "lab_a"): (1.31, OOM),
    ("gpt2_large", "lab_b"): (1.46, OOM),
    ("opt_l", "lab_a"): (1.26, OOM),
    ("opt_l", "lab_b"): (1.40, OOM),
    ("opt_l", "lab_c"): (1.43, OOM),
    ("opt_xl", "lab_a"): (OOM, OOM),
    ("opt_xl", "lab_b"): (OOM, OOM),
    ("opt_xl", "lab_c"): (1.28, OOM),
}
"""Over M-LM and over SP."""

HETEROGENEOUS = 2.5
"""The most over M-LM on unequal devices."""
BANDWIDTH = 0.46
"""The largest share of latency saved over a range of bandwidths."""
STRONG = 3.24
"""OPT-XL on four devices over one."""
WEAK = {"gpt2_large": 0.81, "opt_xl": 0.86}
"""Four devices, of linear."""

NANO_S: dict[str, float | str] = {
    "distilbert": 0.37, "bert_large": 2.43, "gpt2_large": OOM, "opt_l": OOM, "opt_xl": OOM,
}  # fmt: skip
"""Latency of one Nano-M in seconds; the inputs' length is not stated, and these figures mean about 64 tokens."""
A100_S = {"distilbert": 0.005, "bert_large": 0.020, "gpt2_large": 0.029, "opt_l": 0.027, "opt_xl": 0.038}
MEMORY_BYTES = {"distilbert": 130e6, "bert_large": 680e6, "gpt2_large": 1.6e9, "opt_l": 2.6e9, "opt_xl": 5.4e9}
