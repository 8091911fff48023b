"""edgempi: pool the trusted devices of a home or lab over their LAN to run and personalise Transformer models."""

__version__ = "0.1.0"
