"""What bytes take on a link at its line rate."""

from __future__ import annotations

import math

FRAME_PAYLOAD, FRAME_HEADERS = 1448, 66
"""Bytes of payload in a full frame, and those of Ethernet, IP and TCP with time stamps, in every frame."""


def on_wire_s(nbytes: float, bits_per_s: float) -> float:
    """Seconds of a message, its frames' headers counted."""
    return 8 * (nbytes + FRAME_HEADERS * math.ceil(nbytes / FRAME_PAYLOAD)) / bits_per_s
