"""One output of a stage against the set of legal ones. Start with context.py; gemm.py and quantize.py hold the masks."""
