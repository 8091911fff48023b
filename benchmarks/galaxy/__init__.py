"""The inference experiments of Galaxy (arXiv 2405.17245) on the emulated LAN, beside the published figures."""
