"""The smallest slice of a captured call that is still illegal, as a pytest file and as a plain script.

Both hold the tensors, and need torch and this package only.
"""

from __future__ import annotations

import base64
import io
import textwrap
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from harness.candidates.protocol import ROUTED
from harness.diagnosis.cases.observation import Observed
from harness.replay.judging import Judged, judge_call
from harness.replay.slices import slices
from harness.verdict import UsageError
from reference.bounds import Accumulator
from reference.epilogue import Epilogue
from reference.formats import FORMATS

MOST_BYTES = 100_000
_TEST = '''"""{title}

Captured from {function}, {place}; cut to {cut}.

    pytest {name}                                  # the captured output: fails
    CANDIDATE=package.module:Kernel pytest {name}  # your kernel on the captured input
"""

import os

from harness.replay.export import embedded, illegal

CALL = embedded(
    "{stage}",
    """
{data}
    """,
)


def test_the_captured_call_is_legal():
    assert illegal(CALL, arithmetic="{arithmetic}", capability={capability}, candidate=os.environ.get("CANDIDATE")) == []
'''
_SCRIPT = '''"""{title}

Captured from {function}, {place}; cut to {cut}. Makes that one call, judges it, and exits with 1 where it is illegal.

    python {name} package.module:Kernel
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python {name} package.module:Kernel
    compute-sanitizer --tool racecheck python {name} package.module:Kernel
"""

import sys

from harness.replay.export import embedded, illegal

CALL = embedded(
    "{stage}",
    """
{data}
    """,
)

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the kernel: package.module:Kernel, or a name from `harness list`")
    found = illegal(CALL, arithmetic="{arithmetic}", capability={capability}, candidate=sys.argv[1])
    print("\\n".join(found) or "legal")
    sys.exit(1 if found else 0)
'''


def embedded(stage: str, data: str) -> Embedded:
    """Return the call that an exported file holds.

    Args:
        stage: of it.
        data: base64 of the compressed bytes of torch.save.
    """
    raw = zlib.decompress(base64.b64decode("".join(data.split())))
    found = torch.load(io.BytesIO(raw), weights_only=True)
    activations, weights = (FORMATS[name] for name in found["forms"])
    return Embedded(
        stage, found["arguments"], found["output"], forms=(activations, weights), gated=found["gated"],
        final_sum=found["final_sum"], rounding=found["rounding"],
    )  # fmt: skip


@dataclass
class Embedded(Observed):
    """A call that an exported file holds.

    Attributes:
        rounding: of a routed layer's kernel: values that it keeps in float32, values that it may round, chunk of
            the first GEMM's accumulator, cast of its epilogue, whether that rounds each factor and what its sums are held times, and
            those of the second's where it differs.
    """

    rounding: dict[str, Any] = field(default_factory=dict)

    def judged(self, known: Judged) -> Judged:
        """Return how it is judged."""
        how = self.rounding
        if not how:
            return known
        first, *second = (
            Accumulator(chunk=chunk, epilogue=Epilogue(cast, each=each, held=held))
            for chunk, cast, each, held in how["accumulators"]
        )
        kept, may = (tuple(how[name]) for name in ("unrounded", "rounded"))
        bounds = replace(
            known.bounds, unrounded=kept, rounded=may, accumulator=first, second=second[0] if second else None
        )
        return replace(known, bounds=bounds)


def _rounding(known: Judged) -> dict[str, Any]:
    """Return how a routed layer's kernel rounds, as an exported file holds it."""
    ends = known.bounds.accumulator, known.bounds.second
    return {
        "unrounded": list(known.bounds.unrounded), "rounded": list(known.bounds.rounded),
        "accumulators": [
            [one.chunk, one.epilogue.cast, one.epilogue.each, one.epilogue.held] for one in ends if one is not None
        ],
    }  # fmt: skip


def illegal(
    call: Embedded, *, arithmetic: str, capability: list[int] | None = None, candidate: str | None = None
) -> list[str]:
    """Return the messages of what is illegal in a call, run through a candidate first where one is named."""
    known = Judged.on(capability, arithmetic)
    if candidate:
        from harness.faults.named import load_named
        from harness.replay.rerun import run_again

        return _illegal(run_again(call, load_named(candidate)), call.judged(known))
    return _illegal(call, call.judged(known))


def _illegal(call: Observed, known: Judged) -> list[str]:
    return [one.message for one in judge_call(call, known) if one.illegal]


def export(
    path: Path, call: Observed, known: Judged, *, function: str, place: str, title: str, capability: Any
) -> str:
    """Write the pytest file, and beside it the script, `NAME_script.py` of `test_NAME.py`; return where, and what is in them.

    Args:
        path: of the file.
        call: captured, with something illegal.
        known: how it is judged.
        function: module and name of what was called.
        place: rank, layer and call, in words.
        title: what was found.
        capability: of the captured device, or None.

    Raises:
        UsageError: the call has no slice that is illegal and fits, or is of a stage that is not cut.
    """
    script = path.with_name(f"{path.stem.removeprefix('test_')}_script.py")
    for part, cut in slices(call, known):
        if not any(one.illegal for one in judge_call(part, known)):
            continue
        values = {
            "title": title, "function": function, "place": place, "cut": cut, "stage": part.stage,
            "data": textwrap.fill(_encoded(part, known), 116), "arithmetic": known.bounds.arithmetic.kind, "capability": capability,
        }  # fmt: skip
        texts = {
            path: _TEST.format(name=path.name, **values),
            script: _SCRIPT.format(name=script.name, **values),
        }
        if max(map(len, texts.values())) <= MOST_BYTES:
            for file, text in texts.items():
                file.write_text(text, encoding="utf-8")
            return f"{path} and {script}, {cut}"
    raise UsageError(f"--export: no slice of {place} under {MOST_BYTES:,} bytes is illegal by itself")


def _encoded(call: Observed, known: Judged) -> str:
    buffer = io.BytesIO()
    held = {
        "arguments": call.arguments, "output": call.output, "forms": [form.name for form in call.forms], "gated": call.gated,
        "final_sum": call.final_sum, "rounding": _rounding(known) if call.stage == ROUTED else {},
    }  # fmt: skip
    torch.save(held, buffer)
    return base64.b64encode(zlib.compress(buffer.getvalue(), 9)).decode()
