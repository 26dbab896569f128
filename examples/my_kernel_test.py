"""Test your own kernel: a masked grouped GEMM in plain torch stands where its call goes.

pytest examples/my_kernel_test.py
harness check --candidate examples.my_kernel_test:MyKernel

Shapes and layouts of the stages: harness/candidates/protocol.py. A candidate may have any of them.
With types in its methods, one line a stage has mypy --strict check them (MaskedGroupedGemm: from the same module):

gemm: MaskedGroupedGemm = MyKernel().masked_grouped_gemm
"""

import torch

from harness import Traits, cases

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def decode(packed, scale, expert):  # (rows, k) float32: codes times block scales
    codes = torch.stack((packed[..., expert] & 15, packed[..., expert] >> 4), dim=-1).flatten(1).int()
    linear = scale[..., expert].permute(2, 1, 0, 4, 3).flatten(0, 2).flatten(1).float()  # from 128x4 order
    return E2M1[codes] * linear[: len(codes), : codes.shape[1] // 16].repeat_interleave(16, dim=1)


class MyKernel:
    traits = Traits(device="cpu", accumulator_chunk=1, k_multiple=16, n_multiple=1)

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        for expert, rows in enumerate(masked_m.tolist()):
            product = decode(a, a_scale, expert)[:rows] @ decode(b, b_scale, expert).T
            out[:rows, :, expert] = product if alpha is None else product * alpha[expert]


@cases(MyKernel)
def test_my_kernel(case):
    case()
