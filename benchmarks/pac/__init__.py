"""The fine-tuning experiments of PAC (arXiv 2408.10746) on the emulated LAN, beside the published figures."""
