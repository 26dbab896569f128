"""Planted faults: mistakes that real kernels and engines made, put around a correct candidate. See README.md here."""
