"""A small household assistant: its commands, its training, its evaluation and its weights."""
