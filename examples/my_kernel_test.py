"""Test your own kernel in ten lines: put its call where Eager's is, and run

pytest examples/my_kernel_test.py
harness check --candidate examples.my_kernel_test:MyKernel

Shapes and layouts of the stages: harness/candidates/protocol.py. A candidate may have any of them.
With types in its methods, one line a stage has mypy --strict check them (QuantizeGrouped: from the same module):

quantize: QuantizeGrouped = MyKernel().quantize_grouped
"""

from harness import Traits, conformance
from harness.candidates.eager import Eager


class MyKernel:
    traits = Traits(device="cpu", arithmetic="real", k_multiple=16)

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        return Eager().quantize_grouped(x, masked_m, global_scale_enc)  # your kernel's call goes here


def test_my_kernel():
    conformance(MyKernel())
