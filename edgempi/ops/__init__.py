"""One functional op per file; each alone chooses among the implementations in `kernels/`."""
