"""FlashInfer's API log at level 10: a folder for each call, `metadata.jsonl` and its tensors.

    FLASHINFER_LOGLEVEL=10 FLASHINFER_DUMP_DIR=dumps FLASHINFER_DUMP_INCLUDE='*fp4*,*grouped_gemm*' python serve.py

Source: flashinfer 0.7, api_logging.py, _dump_function_inputs and _dump_function_outputs. With FLASHINFER_DUMP_SAFETENSORS=1
strides are lost, values are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.candidates.protocol import ROUTED
from harness.capture.targets import TARGETS, Read, reading_of
from harness.replay.captured import Process
from harness.replay.imports.call import Imported, as_flashinfer_calls_it, line_of, loaded
from harness.verdict import UsageError

METADATA, SESSION = "metadata.jsonl", "session.jsonl"


def is_one(folder: Path) -> bool:
    """Return whether a folder is one of these."""
    return (folder / SESSION).exists() or any(folder.glob(f"*_pid*/{METADATA}"))


def read(folder: Path) -> list[Process]:
    """Return the dumped calls of every process, in the order in which they began.

    Raises:
        UsageError: a file is not what FlashInfer writes.
    """
    found: dict[int, Process] = {}
    for place in sorted(folder.glob(f"*_pid*/{METADATA}"), key=_order(folder)):
        about = _last(place)
        pid = about["process_id"]
        process = found.setdefault(pid, Process(place.parent, _header(len(found), about)))
        if about["execution_status"] != "completed":
            process.torn = f"{place.parent.name} has no outputs: {about['execution_status']}"
            continue
        process.calls.append(_call(place.parent, about, len(process.calls) + 1))
    return list(found.values())


def _order(folder: Path) -> Any:
    """Return a key that sorts dumps as the session lists them; by name, which begins with the time, where it does not."""
    listed: dict[str, int] = {}
    if (folder / SESSION).exists():
        for text in (folder / SESSION).read_text(encoding="utf-8").splitlines():
            listed.setdefault(Path(_parsed(text, folder / SESSION)["dump_dir"]).name, len(listed))
    return lambda place: (listed.get(place.parent.name, len(listed)), place.parent.name)


def _last(place: Path) -> dict[str, Any]:
    lines = [line for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{place}: empty")
    about = _parsed(lines[-1], place)
    for name in ("function_name", "module", "process_id", "execution_status", "input_metadata"):
        if name not in about:
            raise UsageError(f"{place}: no {name}, which FlashInfer's API log has")
    return about


def _parsed(text: str, place: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{place}: a line is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{place}: expected a JSON object a line, got {type(found).__name__}")
    return found


def _header(rank: int, about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rank": rank,
        "device": "FlashInfer's API log",
        "packages": about.get("versions", {}),
        "capability": None,
    }


def _call(folder: Path, about: Mapping[str, Any], number: int) -> Imported:
    name = str(about["function_name"])
    target = next((one for one in TARGETS if one.package == "flashinfer" and one.name == name), None)
    function, stage = f"{about['module']}.{name}", target.stage if target else ""
    by_place = target is not None and stage != ROUTED  # of a fused layer arguments are known by name only
    read_call = reading_of(target, as_flashinfer_calls_it, function) if target and by_place else None
    line = line_of(number, stage, function)
    return Imported(
        folder, line, partial(_inputs, folder, about, read_call), partial(_outputs, folder, read_call)
    )


def _arguments(folder: Path, about: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    tensors = _tensors(folder, "inputs")
    found = {**{key: _value(one, tensors) for key, one in about["input_metadata"].items()}, **_top(tensors)}
    places = sorted(int(key[4:]) for key in found if key.startswith("arg_"))
    named = {key[6:]: value for key, value in found.items() if key.startswith("kwarg_")}
    return tuple(found[f"arg_{place}"] for place in places), named


def _inputs(folder: Path, about: Mapping[str, Any], read_call: Read | None) -> dict[str, Any]:
    args, kwargs = _arguments(folder, about)
    if read_call is None:
        return {**{f"arg_{place}": value for place, value in enumerate(args)}, **kwargs}
    return read_call.inputs(args, kwargs) or {}


def _outputs(folder: Path, read_call: Read | None) -> dict[str, Any]:
    tensors = _tensors(folder, "outputs")
    if read_call is None or not tensors:
        return tensors if "result_0" not in tensors else {"result": tensors["result_0"], **tensors}
    if "result" in tensors:  # the GEMM returns what it wrote into
        return {"out": tensors["result"]}
    return read_call.outputs((), {}, (tensors["result_0"], tensors["result_1"]))


def _tensors(folder: Path, kind: str) -> dict[str, Tensor]:
    if (folder / f"{kind}.pt").exists():
        found: dict[str, Tensor] = loaded(folder / f"{kind}.pt")
        return found
    if not (folder / f"{kind}.safetensors").exists():
        return {}
    from safetensors.torch import load_file

    return dict(load_file(folder / f"{kind}.safetensors"))


def _top(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that are arguments themselves; those of a tuple are named with two underscores and a number."""
    return {
        key: value
        for key, value in tensors.items()
        if not key.rpartition("__")[2].isdigit() or "__" not in key
    }


def _value(entry: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return an argument that is no tensor: a plain value, or a tuple that may hold tensors."""
    if not isinstance(entry, dict):
        return entry
    if entry.get("type") in ("tuple", "list") and "items" in entry:
        return tuple(_value(one, tensors) for one in entry["items"])
    key = entry.get("tensor_key")
    return tensors.get(key) if key is not None else f"<{entry.get('type')}>"
