"""The activation cache: what the frozen backbone computed for a sample, kept so that it need not be computed again."""
