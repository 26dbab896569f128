"""What others dump, read as captured calls. The files here are written as the packages write them; test_real_dumps.py has theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness.faults.named import load_named
from harness.records.parts.replay import ReplayedCall
from harness.replay.captured import Captured
from harness.replay.reading import read_capture
from harness.replay.replay import replay
from harness.verdict import UsageError

NAMES = {
    "quantize_grouped": "scaled_fp4_grouped_quantize", "masked_grouped_gemm": "grouped_gemm_nt_masked",
    "silu_mul_quantize_grouped": "silu_and_mul_scaled_nvfp4_experts_quantize",
}  # fmt: skip


def stage_calls(folder: Path) -> list[Captured]:
    (process,) = read_capture(folder)
    return [call for call in process.calls if call.parent is not None]


def lines_of(folder: Path, **named: Any) -> list[ReplayedCall]:
    return list(replay(read_capture(folder), **named))


def tensor_entry(key: str) -> dict[str, Any]:
    return {"type": "torch.Tensor", "tensor_key": key}


def as_api_log(calls: list[Captured], folder: Path, *, kind: str = "pt") -> Path:
    """Write calls as FlashInfer's API log does."""
    for number, call in enumerate(calls, start=1):
        place = folder / f"20261130_120000_{number:03}_pid7_{NAMES[call.stage]}_call0001"
        place.mkdir(parents=True)
        a, out = call.inputs, call.outputs
        tensors: dict[str, torch.Tensor]
        if call.stage == "masked_grouped_gemm":
            tensors = {
                "arg_0__0": a["a"], "arg_0__1": a["a_scale"], "arg_1__0": a["b"], "arg_1__1": a["b_scale"],
                "arg_2": a["out"], "arg_3": a["masked_m"], "kwarg_alpha": a["alpha"],
            }  # fmt: skip
            pairs = {
                f"arg_{side}": {"type": "tuple", "items": [tensor_entry(f"arg_{side}__{i}") for i in (0, 1)]}
                for side in (0, 1)
            }
            metadata = {**pairs, "kwarg_sf_vec_size": 16, "kwarg_ab_dtype": "float4_e2m1fn"}
            results = {"result": out["out"]}
        else:
            tensors = {"arg_0": a["x"], "arg_1": a["masked_m"], "arg_2": a["global_scale_enc"]}
            metadata, results = {}, {"result_0": out["packed"], "result_1": out["block_scale"]}
        for name, values in (("inputs", tensors), ("outputs", results)):
            if kind == "pt":
                torch.save(values, place / f"{name}.pt")
            else:
                save_file(
                    {key: value.contiguous() for key, value in values.items()}, place / f"{name}.safetensors"
                )
        about = {
            "function_name": NAMES[call.stage], "module": "flashinfer.x", "process_id": 7, "dump_dir": str(place),
            "input_metadata": metadata, "execution_status": "inputs_saved",
        }  # fmt: skip
        text = json.dumps(about) + "\n" + json.dumps({**about, "execution_status": "completed"}) + "\n"
        (place / "metadata.jsonl").write_text(text)
        with (folder / "session.jsonl").open("a") as session:
            session.write(text)
    return folder


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_flashinfers_api_log_is_judged(captured: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    lines = lines_of(as_api_log(stage_calls(captured()), tmp_path / "log", kind=kind))
    assert [str(line.verdict) for line in lines] == ["PASS"] * 4
    faulty = lines_of(as_api_log(stage_calls(captured("alpha_dropped")), tmp_path / "faulty", kind=kind))
    first = next(line for line in faulty if line.verdict == "FAIL")
    assert first.stage == "masked_grouped_gemm"
    assert first.diagnosis[0]["fault"] == "alpha_dropped"


def test_a_call_that_crashed_has_no_outputs(captured: Callable[..., Path], tmp_path: Path) -> None:
    folder = as_api_log(stage_calls(captured()), tmp_path / "log")
    last = max(folder.glob("*_pid7_*"))
    text = (last / "metadata.jsonl").read_text().splitlines()[0]
    (last / "metadata.jsonl").write_text(text + "\n")
    (process,) = read_capture(folder)
    assert len(process.calls) == 3
    assert process.torn == f"{last.name} has no outputs: inputs_saved"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("{", "a line is no JSON"),
        ("[]", "expected a JSON object a line"),
        ("{}", "no function_name"),
    ],
)
def test_a_damaged_log_says_which_file(
    captured: Callable[..., Path], tmp_path: Path, text: str, words: str
) -> None:
    folder = as_api_log(stage_calls(captured()), tmp_path / "log")
    (next(folder.glob("*_pid7_*")) / "metadata.jsonl").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_capture(folder)


def as_workloads(calls: list[Captured], folder: Path) -> Path:
    """Write calls of the fused activation as flashinfer-bench workloads."""
    for number, call in enumerate(call for call in calls if call.stage == "silu_mul_quantize_grouped"):
        name, a = f"{NAMES[call.stage]}_k128", call.inputs
        blob = Path("blob") / "workloads" / f"{number}.safetensors"
        (folder / blob).parent.mkdir(parents=True, exist_ok=True)
        given = {"a": a["x"], "mask": a["masked_m"], "a_global_sf": a["global_scale_enc"]}
        save_file({key: value.contiguous() for key, value in given.items()}, folder / blob)
        inputs = {key: {"type": "safetensors", "path": str(blob), "tensor_key": key} for key in given}
        workload = {"uuid": f"u{number}", "axes": {"B": 3}, "inputs": inputs}
        place = folder / "workloads" / f"{name}.jsonl"
        place.parent.mkdir(exist_ok=True)
        with place.open("a") as lines:
            lines.write(json.dumps({"definition": name, "solution": None, "workload": workload}) + "\n")
    return folder


def test_workloads_are_judged_through_a_candidate(captured: Callable[..., Path], tmp_path: Path) -> None:
    folder = as_workloads(stage_calls(captured(count=2)), tmp_path / "set")
    lines = lines_of(folder)
    assert [str(line.verdict) for line in lines] == ["UNKNOWN"] * 2
    assert lines[0].words == "inputs only: give --candidate, which is run on them and judged"
    right = lines_of(folder, candidate=load_named("physical"), name="physical")
    assert [str(line.verdict) for line in right if line.by] == ["PASS"] * 2
    wrong = lines_of(folder, candidate=load_named("physical+gate_and_up_swapped"), name="wrong")
    assert [str(line.verdict) for line in wrong if line.by] == ["FAIL"] * 2


def test_a_workload_of_random_numbers_or_of_a_lost_file_is_refused(
    captured: Callable[..., Path], tmp_path: Path
) -> None:
    folder = as_workloads(stage_calls(captured()), tmp_path / "set")
    place = next(folder.glob("workloads/*.jsonl"))
    text = place.read_text()
    place.write_text(text.replace('"type": "safetensors"', '"type": "random"', 1))
    with pytest.raises(UsageError, match="input a of a workload is random: only what was recorded"):
        lines_of(folder)
    place.write_text(text)
    next(folder.glob("blob/workloads/*")).unlink()
    with pytest.raises(UsageError, match="which a workload names, is not there"):
        lines_of(folder)


def as_dumper(calls: list[Captured], folder: Path, left_out: str = "") -> Path:
    """Write calls as SGLang's dumper does, two layers with two GEMMs each."""
    index = 0
    (folder / "dump_1").mkdir(parents=True)
    for number, call in enumerate(calls):
        for part, values in (("inputs", call.inputs), ("outputs", call.outputs)):
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and name != left_out:
                    index += 1
                    tags = {
                        "step": 0, "rank": 1, "dump_index": index, "name": f"{call.stage}.{part}.{name}",
                        "layer_id": number // 4,
                    }  # fmt: skip
                    path = folder / "dump_1" / ("___".join(f"{k}={v}" for k, v in tags.items()) + ".pt")
                    torch.save({"value": value, "meta": tags}, path)
    torch.save(
        {"value": 1, "meta": {}}, folder / "dump_1" / "step=0___rank=1___dump_index=0___name=input_ids.pt"
    )
    return folder


def test_sglangs_dumper_is_judged_by_layer(captured: Callable[..., Path], tmp_path: Path) -> None:
    lines = lines_of(as_dumper(stage_calls(captured("alpha_of_neighbour", count=2)), tmp_path / "dumps"))
    assert [(line.rank, line.layer) for line in lines] == [(1, 0)] * 4 + [(1, 1)] * 4
    wrong = [line for line in lines if line.verdict == "FAIL"]
    assert [line.stage for line in wrong] == ["masked_grouped_gemm"] * 4
    assert wrong[0].diagnosis[0]["fault"] == "alpha_of_neighbour"
    assert {str(line.verdict) for line in lines} == {"PASS", "FAIL"}


def test_what_was_not_dumped_is_named(captured: Callable[..., Path], tmp_path: Path) -> None:
    lines = lines_of(as_dumper(stage_calls(captured()), tmp_path / "dumps", left_out="masked_m"))
    assert {str(line.verdict) for line in lines} == {"UNKNOWN"}
    assert lines[0].words == "quantize_grouped, step 0: masked_m was not dumped"


def test_a_file_that_would_run_code_is_not_loaded(captured: Callable[..., Path], tmp_path: Path) -> None:
    folder = as_dumper(stage_calls(captured()), tmp_path / "dumps")
    path = next(folder.glob("dump_1/*name=quantize_grouped.inputs.x*"))
    torch.save({"value": pytest.raises}, path)
    with pytest.raises(UsageError, match="expected tensors and plain values"):
        lines_of(folder)
