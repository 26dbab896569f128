"""A stand-in for Humming: weights in an order of its own, prepared once, and a masked GEMM of bfloat16 tokens with them."""
