"""Sharing a stage: the seams of each mode, and the executor that runs a plan's stages."""
