"""Where Humming prepares weights."""

import torch


def transform_humming_tensors(config, tensors, already_padded=False, allow_inplace=False):
    weight = tensors["weight"].view(torch.uint8).flip(-1) ^ 0x5A
    if allow_inplace:
        tensors["weight"].view(torch.uint8).copy_(weight)
        weight = tensors["weight"].view(torch.uint8)
    return {**tensors, "weight": weight}
