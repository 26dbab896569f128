"""The definitions of reference/, computed another way: the same bits, sooner. tests compare every one of them.

In torch alone: `thresholds` (quantize as comparisons of bits), `pairs` (decode two codes at a time), `parts` (exact
products by tensor cores). On a GPU with Triton: `kernels` (quantize, decode, products on tensor cores), launched by `launch`.
`moe` is the layer made of either. The functions of reference/ call them where they run; nobody else needs to.
"""
