"""Plans for fine-tuning: what a technique keeps and sends, who runs which layers and rows, in which order."""
