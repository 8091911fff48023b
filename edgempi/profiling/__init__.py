"""Measuring processes and hosts."""
