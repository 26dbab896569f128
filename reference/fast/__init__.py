"""The definitions of reference/, computed another way: the same bits, sooner. tests/reference/fast compares every one.

`thresholds`: a quantizer as comparisons of bits, in torch. `kernels` (Triton, launched by `launch`): quantize, decode, and
the exact product on tensor cores. `product`: when such a product is exact, and what is done where it is not.
"""
