"""Kernels' bits and memory behaviour, imitated on a CPU. Each function names the kernel whose behaviour it copies."""
