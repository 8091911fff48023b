"""Models as data: what a Transformer is made of, where its weights stand in a checkpoint, and the one Block."""
