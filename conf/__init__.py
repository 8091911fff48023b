"""The Hydra groups; shipped as the package `edgempi.conf`."""
