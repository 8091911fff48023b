"""Running a loaded model: forward passes and greedy decoding."""
