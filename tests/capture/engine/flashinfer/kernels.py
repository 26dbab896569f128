"""The kernels: one candidate for the whole package."""

import os

from harness.faults.named import load_named

KERNELS = load_named("+".join(["physical", *filter(None, [os.environ.get("FAULT", "")])]))
