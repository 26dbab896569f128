"""`harness compile`: cross-compile FlashInfer's CuTe DSL kernels without a GPU. See README.md, and `run.py` first."""
