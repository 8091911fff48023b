"""From files to batches: sources yield examples, templates make samples of them, samples are collated."""
