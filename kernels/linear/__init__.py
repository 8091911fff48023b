"""The linear op."""
