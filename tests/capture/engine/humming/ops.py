"""The launch. FAULT stands below it."""

import torch

from reference.e2m1 import unpack_e2m1
from reference.formats import NVFP4, Coded

FAULT = None


def humming_gemm(*, layer_config, inputs, weight, weight_scale, weight_scale_2, outputs, expert_layout):
    experts = len(expert_layout)
    alpha = weight_scale_2.roll(-1) if FAULT == "alpha_of_neighbour" else weight_scale_2
    codes = unpack_e2m1((weight ^ 0x5A).flip(-1))
    values = NVFP4.values(Coded(codes, weight_scale.view(torch.uint8)), torch.float64)
    tokens, out = inputs.view(experts, -1, inputs.shape[1]), outputs.view(experts, -1, outputs.shape[1])
    for expert, rows in enumerate(expert_layout.tolist()):
        product = tokens[expert, :rows].double() @ values[expert].T * alpha[expert].double()
        out[expert, :rows] = product.to(out.dtype)
    return outputs
