"""A stand-in for the namespace of nccl4py and nccl-extensions on a CPU."""
