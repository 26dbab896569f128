"""NVFP4 quantizers of other libraries, where they are installed: torchao and compressed-tensors, both float32 in torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def quantizers(x: Tensor, global_scale_enc: Tensor) -> dict[str, Callable[[], Any] | str]:
    """Return by library what quantizes x and packs its codes, or why it does not run here.

    Args:
        x: `(rows, k)` bfloat16.
        global_scale_enc: `()` float32.
    """
    found: dict[str, Callable[[], Any] | str] = {}
    for name, make in (("torchao", _torchao), ("compressed-tensors", _compressed_tensors)):
        with (
            warnings.catch_warnings(),
            _no_logging(),
        ):  # of torch calls of theirs that are deprecated, and of extensions
            warnings.simplefilter("ignore")
            try:
                run = make(x, global_scale_enc)
                run()
            except ImportError as error:
                found[name] = f"not installed: {error}"
            except (RuntimeError, TypeError, AttributeError) as error:  # another version of it, or of torch
                found[name] = f"does not run here: {next(iter(str(error).splitlines()), '')}"
            else:
                found[name] = run
    return found


@contextmanager
def _no_logging() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _torchao(x: Tensor, global_scale_enc: Tensor) -> Callable[[], Any]:
    from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize

    scale = 1 / global_scale_enc
    return lambda: nvfp4_quantize(x, 16, scale)


def _compressed_tensors(x: Tensor, global_scale_enc: Tensor) -> Callable[[], Any]:
    from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    given = QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True,
        scale_dtype=torch.float8_e4m3fn, zp_dtype=torch.float8_e4m3fn,
    )  # fmt: skip
    scale = global_scale_enc.reshape(1)

    def run() -> Any:
        blocks = x.view(len(x), -1, 16)
        block_scale, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), given, global_scale=scale)
        values = quantize(x=x, scale=block_scale, zero_point=None, args=given, global_scale=scale)
        return pack_fp4_to_uint8(values), block_scale

    return run
