"""A stand-in for the package humming-kernels on a CPU: its Python interface, a repacking of its own, and a right product.

What `humming-masked` takes of the package is here under the same names, so that everything of the candidate runs but the
kernels.
"""

from __future__ import annotations

import enum
import json
import sys
import types
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates import humming_package
from reference.e2m1 import unpack_e2m1
from reference.formats import FORMATS, Coded, multiplied_in
from reference.matrix_units import Operand, Summation

_ACTIVATIONS = {"bfloat16": "bf16", "float16": "fp16", "float8e4m3": "fp8_token"}
_FEW_ROWS = 64  # for which 0.1.12 chooses tiles that it refuses in one pass
WeightScaleType = enum.Enum("WeightScaleType", {"GROUP": "group"})
WeightScale2Type = enum.Enum("WeightScale2Type", {"NONE": "none", "TENSOR": "tensor"})


@dataclass
class StandIn:
    """What the package is like, and what was asked of it.

    Attributes:
        one_pass: what becomes of `use_batch_invariant`; None: it is obeyed.
        columns: of every tile.
        unit: how it adds along k.
        compiled: configurations of kernels that were compiled ahead.
    """

    one_pass: bool | None = None
    columns: int = 128
    unit: str = "exact"
    compiled: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    """Of a layer."""

    a_dtype: str
    b_dtype: str
    bs_dtype: str
    extents: tuple[int, int, int]
    has_factor: bool
    dtype_str: str = field(init=False, default="")  # as the package's configurations have some

    @property
    def shape_n(self) -> int:
        return self.extents[1]

    def to_str(self) -> str:
        return str(asdict(self))


@dataclass
class Schema:
    b_dtype: str
    bs_dtype: str
    weight_scale_group_size: int
    weight_scale_type: Any = None
    weight_scale_2_type: Any = WeightScale2Type.NONE

    @classmethod
    def from_config(cls, config: dict[str, str]) -> Schema:
        if config["quant_method"] == "modelopt":
            return cls("float4e2m1", "float8e4m3", 16, None, WeightScale2Type.TENSOR)
        return cls("float4e2m1", "float8e8m0", 32)

    def convert_humming(self, tensors: dict[str, Tensor], **_: Any) -> tuple[Schema, dict[str, Tensor]]:
        return self, {**tensors, "weight": tensors["weight"].view(torch.int32)}


@dataclass
class InputSchema:
    a_dtype: str


def prepare_layer_config(
    shape_n: int, shape_k: int, weight_schema: Schema, input_schema: Any, num_experts: int, torch_dtype: torch.dtype
) -> Config:  # fmt: skip
    assert torch_dtype in {torch.bfloat16, torch.float16}
    factor = weight_schema.weight_scale_2_type == WeightScale2Type.TENSOR
    extents = (num_experts, shape_n, shape_k)
    return Config(input_schema.a_dtype, weight_schema.b_dtype, weight_schema.bs_dtype, extents, factor)


def transform_humming_tensors(config: Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows from the last one on, scales transposed; never the tensors that were given."""
    made = {
        "weight": tensors["weight"].flip(1),
        "weight_scale": tensors["weight_scale"].view(torch.uint8).mT.clone(),
    }
    return made | ({"weight_scale_2": tensors["weight_scale_2"].clone()} if config.has_factor else {})  # fmt: skip


def humming_forward(
    config: Config,
    *,
    inputs: Tensor,
    outputs: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    compute_config: dict[str, Any],
    tuning_config: dict[str, Any],
    expert_layout: Tensor | None = None,
    sorted_ids: Tensor | None = None,
    expert_ids: Tensor | None = None,
    num_tokens_padded: Tensor | None = None,
    top_k: int = 1,
    input_scale: Tensor | None = None,
    weight_scale_2: Tensor | None = None,
    locks: Tensor,
    unit: str = "exact",
) -> None:
    assert locks.dtype == torch.int32
    if compute_config["use_batch_invariant"]:
        assert tuning_config["warp_shape"][2] == tuning_config["block_shape"][2], "warps share k"
    form = FORMATS["nvfp4" if config.bs_dtype == "float8e4m3" else "mxfp4"]
    codes = unpack_e2m1(weight.flip(1).contiguous().view(torch.uint8))
    values = form.values(Coded(codes, weight_scale.mT.contiguous()), torch.float64)
    experts, n, k = config.extents
    assert inputs.shape[1] == k
    assert outputs.is_contiguous()
    kind = compute_config["gemm_type"]
    if kind == "indexed":
        assert sorted_ids is not None
        assert expert_ids is not None
        assert num_tokens_padded is not None
        read_rows = _indexed(sorted_ids, expert_ids, num_tokens_padded, tuning_config["block_shape"][0], top_k, len(outputs))  # fmt: skip
        assert outputs.shape == (len(inputs) * top_k, n)
    else:
        assert expert_layout is not None
        read_rows = _grouped(expert_layout, len(outputs) // experts if kind == "grouped_masked" else 0)
    activations, summation = FORMATS[_ACTIVATIONS[config.a_dtype]], Summation.of(unit)
    of_tokens, of_weights = (multiplied_in(activations, unit, each) for each in (activations, form))
    for expert, (source, target) in enumerate(read_rows[:experts]):
        a = Operand.of(inputs[source].double(), of_tokens)
        product = summation.matmul(a, Operand.of(values[expert], of_weights))
        factor = torch.tensor(1.0) if weight_scale_2 is None else weight_scale_2[expert]
        if input_scale is not None:
            factor = input_scale.view(-1, 1)[source] * factor
        outputs[target] = (product * factor).to(outputs.dtype)


Rows = list[tuple[Tensor, Tensor]]
"""Of each expert: rows that are read, and rows that are written."""


def _indexed(ids: Tensor, expert_ids: Tensor, used: Tensor, block: int, top_k: int, slots: int) -> Rows:
    """Read the routing as generate_moe_tensors of the package writes it."""
    assert ids.dtype == expert_ids.dtype == used.dtype == torch.int32
    assert int(used) % block == 0
    assert int(used) <= len(ids)
    assert len(ids) == block * len(expert_ids)
    found: Rows = []
    blocks = ids[: int(used)].view(-1, block).long()
    for expert in range(int(expert_ids.max()) + 1):
        mine = blocks[expert_ids[: len(blocks)] == expert].flatten()
        mine = mine[mine < slots]
        found.append((mine // top_k, mine))
    return found


def _grouped(layout: Tensor, capacity: int) -> Rows:
    """Read numbers of rows of experts with a capacity, or where their rows begin."""
    if capacity:
        spans = [(e * capacity, e * capacity + rows) for e, rows in enumerate(layout.tolist())]
    else:
        spans = list(zip(layout[:-1].tolist(), layout[1:].tolist(), strict=True))
    return [(torch.arange(*span), torch.arange(*span)) for span in spans]


def process_input(
    inputs: Tensor, *, quant_mode: str, quant_dtype: str, layout: str, expert_tokens: Tensor | None
) -> tuple[Tensor, None, Tensor]:
    """FP8 with a scale of each row, as the reference has it."""
    assert (quant_mode, quant_dtype) == ("dynamic_token", "float8e4m3")
    assert (layout == "grouped_mask") == (expert_tokens is not None)
    coded = FORMATS["fp8_token"].quantize(inputs)
    assert coded.row_scale is not None
    return coded.codes.view(torch.float8_e4m3fn), None, coded.row_scale


def quant_input(inputs: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """The same by its older name."""
    assert dtype == "float8e4m3"
    codes, _, scale = process_input(
        inputs, quant_mode="dynamic_token", quant_dtype=dtype, layout="normal", expert_tokens=None
    )
    return codes, scale.view(-1)


def install(monkeypatch: pytest.MonkeyPatch, *, older: bool = False, **like: Any) -> StandIn:
    """Put it where the package would be imported from.

    Args:
        monkeypatch: takes it away.
        older: with the names of 0.1.12 only.
        like: attributes of the stand-in.
    """
    stand_in = StandIn(**like)
    humming_package.columns_multiple.cache_clear()  # another version of the package, as it were
    monkeypatch.setattr(humming_package, "_TILINGS", {})

    def tiles(
        layer_config: Config, *, shape_m: int, use_batch_invariant: bool, gemm_type: str
    ) -> dict[str, Any]:
        assert layer_config.extents
        assert gemm_type in {"grouped_masked", "grouped_contiguous", "indexed"}
        one_pass = use_batch_invariant if stand_in.one_pass is None else stand_in.one_pass
        shape = (min(shape_m, 64), stand_in.columns, 64)
        warps = (shape[0], 32, 32 if older and shape_m < _FEW_ROWS else 64)
        return {"block_shape": shape, "warp_shape": warps, "use_stream_k": not one_pass, "mma_type": "wgmma"}

    def prepare_kernels(layer_config: str, compute_config: str, tuning_config: str) -> None:
        assert json.loads(compute_config)["gemm_type"]
        assert isinstance(json.loads(tuning_config), list if older else dict)
        stand_in.compiled.append(f"{layer_config} {tuning_config}")

    names = ("float4e2m1", "float8e4m3", "float8e8m0", "bfloat16", "float16")
    dtypes = {name: name for name in names}
    quantizer = {"quant_input": quant_input} if older else {"process_input": process_input}
    kernels = {"prepare_kernels": prepare_kernels, **({} if older else {"compile_many": None})}
    modules: dict[str, dict[str, Any]] = {
        "humming": {},
        "humming.dtypes": {**dtypes, "DataType": types.SimpleNamespace(from_str=str)},
        "humming.ops": quantizer,
        "humming.config": {},
        "humming.config.enum": {"WeightScaleType": WeightScaleType, "WeightScale2Type": WeightScale2Type},
        "humming.schema": {
            "BaseWeightSchema": Schema,
            "HummingWeightSchema": Schema,
            "HummingInputSchema": InputSchema,
        },
        "humming.transform": {
            "prepare_layer_config": prepare_layer_config,
            "transform_humming_tensors": transform_humming_tensors,
            **({} if older else {"prepare_fp16_e8m0_scale": lambda config, tensors: (config, tensors)}),
        },
        "humming.tune": {"get_heuristics_config": tiles},
        "humming.forward": {"humming_forward": partial(humming_forward, unit=stand_in.unit)},
        "humming.kernel": {},
        "humming.kernel.humming": {"HummingKernel": types.SimpleNamespace(**kernels)},
    }
    for name, values in modules.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)
    return stand_in
