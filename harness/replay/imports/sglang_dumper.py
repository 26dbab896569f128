"""SGLang's dumper: one file for each value, its tags in the name and in `meta`.

    from sglang.srt.debug_utils.dumper import dumper
    dumper.dump("masked_grouped_gemm.inputs.a", a, layer_id=layer)        # DUMPER_ENABLE=1 DUMPER_DIR=dumps
    dumper.dump("masked_grouped_gemm.outputs.out", out, layer_id=layer)

What is read is named STAGE.inputs.NAME and STAGE.outputs.NAME, by harness.candidates.protocol: of the quantizers `x`,
`masked_m`, `global_scale_enc`; `packed`, `block_scale`. Of the GEMM `a`, `a_scale`, `b`, `b_scale`, `masked_m`, `alpha`; `out`.
Other values are left alone. Source: sglang 0.5, srt/debug_utils/dumper.py, _dump_single.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from harness.candidates.protocol import STAGES
from harness.replay.captured import Process
from harness.replay.imports.call import Imported, line_of, loaded

_Key = tuple[int, int, str, str, int]


def is_one(folder: Path) -> bool:
    """Return whether a folder is one of these."""
    return any(_tags(path) for path in _files(folder))


def read(folder: Path) -> list[Process]:
    """Return the calls of every rank, by step, layer and turn."""
    calls: dict[_Key, dict[str, Path]] = {}
    turns: Counter[tuple[Any, ...]] = Counter()
    for path in sorted(
        (one for one in _files(folder) if _tags(one)), key=lambda one: int(_tags(one)["dump_index"])
    ):
        tags = _tags(path)
        stage, _, rest = tags["name"].partition(".")
        if stage not in STAGES or rest.partition(".")[0] not in ("inputs", "outputs"):
            continue
        place = int(tags["rank"]), int(tags["step"]), tags.get("layer_id", ""), stage
        turn = turns[*place, rest]
        turns[*place, rest] += 1
        calls.setdefault((*place, turn), {})[rest] = path
    found: dict[int, Process] = {}
    for (rank, step, layer, stage, _), parts in calls.items():
        header = {"rank": rank, "device": "SGLang's dumper", "capability": None}
        process = found.setdefault(rank, Process(folder, header))
        number = len(process.calls) + 1
        line = line_of(number, stage, f"{stage}, step {step}", int(layer) if layer.isdigit() else None)
        given, returned = (partial(_values, parts, kind) for kind in ("inputs", "outputs"))
        process.calls.append(Imported(folder, line, given, returned))
    return [found[rank] for rank in sorted(found)]


def _files(folder: Path) -> list[Path]:
    return [*folder.glob("*.pt"), *folder.glob("*/*.pt")]


def _tags(path: Path) -> dict[str, str]:
    """Return the tags of a file's name, nothing where it is none of the dumper's."""
    found = dict(part.split("=", 1) for part in path.stem.split("___") if "=" in part)
    return found if {"step", "rank", "dump_index", "name"} <= set(found) else {}


def _values(parts: Mapping[str, Path], kind: str) -> dict[str, Any]:
    """Return the values of one call; a GEMM's alpha and the buffer before the call may be missing."""
    found = {
        name.partition(".")[2]: loaded(path)["value"]
        for name, path in parts.items()
        if name.startswith(f"{kind}.")
    }
    return {"alpha": None, **found} if "b_scale" in found else found
