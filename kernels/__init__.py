"""Kernels: for each op a plain torch reference, the specification, beside the implementations that are faster."""
