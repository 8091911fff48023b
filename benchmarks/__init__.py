"""Experiments: measure, one JSON per run; `reduce` turns the JSON into tables."""
