"""Fine-tuning over several devices."""
