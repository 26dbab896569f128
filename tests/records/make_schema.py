"""The JSON Schema of record.json, from the types that read and write it: `make schema` writes docs/record.schema.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from harness.records.parts.canary import CanaryPart
from harness.records.parts.compile import CompileRun
from harness.records.parts.gsm8k import Gsm8kRun
from harness.records.parts.mutants import MutantsRun
from harness.records.parts.races import RacesRun
from harness.records.parts.replay import ReplayRun
from harness.records.parts.sharing import ShardPart, Sharing
from harness.records.record import SCHEMA_VERSION, RunRecord

FILE = Path(__file__).parents[2] / "docs" / "record.schema.json"
PARTS = {
    "gsm8k": Gsm8kRun, "canary": CanaryPart, "mutants": MutantsRun, "compile": CompileRun, "races": RacesRun,
    "replay": ReplayRun, "sharing": Sharing, "shard": ShardPart,
}  # fmt: skip


def schema() -> dict[str, Any]:
    """Return the schema. Fields that it does not know are allowed, as a reader ignores them."""
    template = "#/$defs/{name}"
    (record, *parts), defs = msgspec.json.schema_components(
        [RunRecord, *PARTS.values()], ref_template=template
    )
    fields = defs["RunRecord"]["properties"]
    for name, part in zip(PARTS, parts, strict=True):  # in a record they are JSON, with types of their own
        fields[name] = {"anyOf": [part, {"type": "null"}], "default": None}
    fields["schema"] = {"type": "integer", "maximum": SCHEMA_VERSION}
    defs["RunRecord"]["required"] = sorted({*defs["RunRecord"]["required"], "schema"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"record.json of fp4-moe-harness, schema {SCHEMA_VERSION}",
        **record,
        "$defs": dict(sorted(defs.items())),
    }


def text() -> str:
    """Return the file's text."""
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(FILE)
