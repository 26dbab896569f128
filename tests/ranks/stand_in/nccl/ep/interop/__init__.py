"""As in nccl.ep."""
