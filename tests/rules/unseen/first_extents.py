"""Faults that show only where one single extent exceeds a threshold."""

from __future__ import annotations

import torch

from harness.candidates.eager import Eager
from reference.e2m1 import pack_e2m1
from reference.moe import activate
from reference.nvfp4 import quantize_nvfp4


class _QuantizeOnly(Eager):
    """Keeps silu_mul_quantize_grouped right although Eager's calls quantize_grouped."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        return Eager(self.traits.device).silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)


def _bytes(packed):
    """(l, m, k/2) view of packed codes."""
    return packed.permute(2, 0, 1)


def _set_scales(block_scale, expert, rows, value):
    """Write the scale bytes of some rows of an expert: a number, or (rows, k/16 padded to 4)."""
    physical = block_scale.view(torch.uint8).permute(5, 2, 4, 0, 1, 3)
    index = torch.as_tensor(rows, device=physical.device)
    if isinstance(value, torch.Tensor):
        columns = physical.shape[2] * 4
        padded = torch.zeros((len(index), columns), dtype=torch.uint8, device=physical.device)
        padded[:, : value.shape[1]] = value
        value = padded.view(len(index), -1, 4)
    physical[expert, index // 128, :, index % 32, index % 128 // 32, :] = value


def _erase(packed, block_scale, expert, rows):
    rows = list(rows)
    if rows:
        _bytes(packed)[expert, rows] = 0
        _set_scales(block_scale, expert, rows, 0)


def _put(packed, block_scale, expert, rows, values, scale):
    """Quantize bf16 values (rows, k) into rows of an expert."""
    quantized = quantize_nvfp4(values.contiguous(), scale.reshape(1))
    rows = list(rows)
    _bytes(packed)[expert, rows] = pack_e2m1(quantized.codes)
    _set_scales(block_scale, expert, rows, quantized.block_scale)


def _scale_of(global_scale_enc, expert):
    flat = global_scale_enc.reshape(-1)
    return flat[expert if flat.numel() > 1 else 0]


# quantize_grouped


class QuantizeExpertsOver32(_QuantizeOnly):
    """quantize_grouped: experts are found by one warp's ballot, so rows of experts 32 and up are never quantized (codes
    and scales stay 0). Only with more than 32 experts."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        for expert in range(32, x.shape[0]):
            _erase(packed, scale, expert, range(int(masked_m[expert])))
        return packed, scale


class QuantizeRowsOver96(_QuantizeOnly):
    """quantize_grouped: the staging buffer holds 96 rows and wraps: row r >= 96 of an expert gets the codes of row
    r % 96 under its own scales. Only for experts with more than 96 valid rows."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        view = _bytes(packed)
        for expert, rows in enumerate(masked_m.tolist()):
            if rows > 96:
                view[expert, 96:rows] = view[expert, torch.arange(96, rows) % 96]
        return packed, scale


class QuantizeCapacityOver1024(_QuantizeOnly):
    """quantize_grouped: the variant for a large capacity loops to masked_m - 1, so the last valid row of each expert is
    left zero. Only with a capacity above 1,024."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        if x.shape[1] > 1024:
            for expert, rows in enumerate(masked_m.tolist()):
                _erase(packed, scale, expert, range(max(rows - 1, 0), rows))
        return packed, scale


class QuantizeKOver2048(_QuantizeOnly):
    """quantize_grouped: the scale column is masked to 7 bits, so scales of columns 2,048 and up are never stored (0).
    Only with k above 2,048."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        if x.shape[2] > 2048:
            scale.view(torch.uint8).permute(5, 2, 4, 0, 1, 3)[:, :, 32:] = 0
        return packed, scale


class QuantizeTokensOver640(_QuantizeOnly):
    """quantize_grouped: the grid covers 640 rows over all experts and does not loop; later rows stay zero. Only where
    masked_m sums to more than 640."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        before = 0
        for expert, rows in enumerate(masked_m.tolist()):
            _erase(packed, scale, expert, range(min(max(640 - before, 0), rows), rows))
            before += rows
        return packed, scale


# silu_mul_quantize_grouped


class SiluExpertsOver64(Eager):
    """silu_mul_quantize_grouped: the second constant table has the halves the other way round: experts 64 and up compute
    gate * silu(up). Only with more than 64 experts."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        packed, scale = super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)
        for expert in range(64, gate_up.shape[0]):
            rows = int(masked_m[expert])
            if rows:
                gate, up = gate_up[expert, :rows].chunk(2, dim=-1)
                values = activate(torch.cat((up, gate), -1), "silu")
                _put(packed, scale, expert, range(rows), values, _scale_of(global_scale_enc, expert))
        return packed, scale


class SiluRowsOver1024(Eager):
    """silu_mul_quantize_grouped: the gate is read from row r % 1,024, the up half from row r. Only for experts with more
    than 1,024 valid rows, rows 1,024 and up."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        packed, scale = super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)
        half = gate_up.shape[2] // 2
        for expert, rows in enumerate(masked_m.tolist()):
            if rows > 1024:
                gate = gate_up[expert, torch.arange(1024, rows) % 1024, :half]
                values = activate(torch.cat((gate, gate_up[expert, 1024:rows, half:]), -1), "silu")
                _put(packed, scale, expert, range(1024, rows), values, _scale_of(global_scale_enc, expert))
        return packed, scale


class SiluCapacityOver4096(Eager):
    """silu_mul_quantize_grouped: the variant for a large capacity starts its rows at 1, so row 0 of each expert stays
    zero. Only with a capacity above 4,096."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        packed, scale = super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)
        if gate_up.shape[1] > 4096:
            for expert, rows in enumerate(masked_m.tolist()):
                _erase(packed, scale, expert, range(min(rows, 1)))
        return packed, scale


class SiluKOver1024(Eager):
    """silu_mul_quantize_grouped: columns 1,024 and up are stored as silu(gate) without the factor up. Only with k above
    1,024."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        k = gate_up.shape[2] // 2
        if k > 1024:
            gate_up = gate_up.clone()
            gate_up[..., k + 1024 :] = 1.0
        return super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)


class SiluTilesOver132(Eager):
    """silu_mul_quantize_grouped: one block a tile of 128 rows x 128 columns, 132 blocks, no loop: tiles 132 and up (in the
    order expert, rows, columns) stay zero. Only with more than 132 tiles with valid rows."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        packed, scale = super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)
        across = -(-(gate_up.shape[2] // 2) // 128)
        physical = scale.view(torch.uint8).permute(5, 2, 4, 0, 1, 3)
        tile = 0
        for expert, rows in enumerate(masked_m.tolist()):
            for down in range(-(-rows // 128)):
                for column in range(across):
                    if tile >= 132:
                        _bytes(packed)[
                            expert, down * 128 : (down + 1) * 128, column * 64 : (column + 1) * 64
                        ] = 0
                        physical[expert, down, column * 2 : column * 2 + 2] = 0
                    tile += 1
        return packed, scale


# masked_grouped_gemm


class GemmExpertsOver16(Eager):
    """masked_grouped_gemm: 16 weight descriptors, expert e multiplies with the weights of expert e % 16. Only with more
    than 16 experts."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        for e in range(16, a.shape[2]):
            mine, other = slice(e, e + 1), slice(e % 16, e % 16 + 1)
            super().masked_grouped_gemm(
                a[..., mine],
                a_scale[..., mine],
                b[..., other],
                b_scale[..., other],
                out[..., mine],
                masked_m[mine],
                None if alpha is None else alpha.reshape(-1)[mine],
            )


class GemmRowsOver512(Eager):
    """masked_grouped_gemm: at most four row tiles an expert: rows 512 and up are not written. Only for experts with more
    than 512 valid rows."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        before = {e: out[512:rows, :, e].clone() for e, rows in enumerate(masked_m.tolist()) if rows > 512}
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        for e, kept in before.items():
            out[512 : 512 + len(kept), :, e] = kept


class GemmCapacityOver2048(Eager):
    """masked_grouped_gemm: the variant for a large capacity drops the first 64 of k in its prologue. Only with a capacity
    above 2,048."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if a.shape[0] <= 2048:
            super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        elif a.shape[1] <= 32:
            for e, rows in enumerate(masked_m.tolist()):
                out[:rows, :, e] = 0
        else:
            super().masked_grouped_gemm(
                a[:, 32:], a_scale[:, :, :, :, 1:], b[:, 32:], b_scale[:, :, :, :, 1:], out, masked_m, alpha
            )


class GemmKOver5120(Eager):
    """masked_grouped_gemm: the reduction ends after 5,120 of k. Only with k above 5,120."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if a.shape[1] * 2 > 5120:
            a, a_scale = a[:, :2560], a_scale[:, :, :, :, :80]
            b, b_scale = b[:, :2560], b_scale[:, :, :, :, :80]
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class GemmNOver3072(Eager):
    """masked_grouped_gemm: column j >= 3,072 holds the result of column j % 3,072. Only with n above 3,072."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        n = out.shape[1]
        if n > 3072:
            for e, rows in enumerate(masked_m.tolist()):
                out[:rows, 3072:, e] = out[:rows, torch.arange(3072, n) % 3072, e]


class GemmNOver6144(Eager):
    """masked_grouped_gemm: the last column tiles are never scheduled: columns 6,144 and up are not written. Only with n
    above 6,144."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        before = out[:, 6144:].clone() if out.shape[1] > 6144 else None
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        if before is not None:
            out[:, 6144:] = before


class GemmTilesOver148(Eager):
    """masked_grouped_gemm: a persistent block does not clear its accumulator before its second tile of 128x128, so tile
    t >= 148 (order expert, rows, columns) has the product of tile t - 148 added. Only with more than 148 such tiles."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        n = out.shape[1]
        tiles = [
            out[r : min(r + 128, rows), c : min(c + 128, n), e]
            for e, rows in enumerate(masked_m.tolist())
            for r in range(0, rows, 128)
            for c in range(0, n, 128)
        ]
        for index in range(len(tiles) - 1, 147, -1):
            tile, stale = tiles[index], tiles[index - 148]
            rows, columns = min(tile.shape[0], stale.shape[0]), min(tile.shape[1], stale.shape[1])
            tile[:rows, :columns] += stale[:rows, :columns]


# the stages around
