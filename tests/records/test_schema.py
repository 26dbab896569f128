"""docs/record.schema.json is what the types say, and records old and new are valid by it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.records.record import RunRecord
from tests.records.kept_records import RECORDS
from tests.records.make_schema import FILE, PARTS, text
from tests.records.test_parts import CASES
from tests.records.test_parts import record as record_with
from tests.records.test_record import failed, passed, record

REPORTS = FILE.with_name("reports.md")
KEPT = sorted(RECORDS.glob("*.json"))
VALIDATOR = jsonschema.Draft202012Validator(json.loads(FILE.read_text()))
# Fields without a meaning, by type; records that have them are still read: nothing wrote `notes`, `retired` is made up.
GONE = {"RuleResult": {"notes"}, "RunRecord": {"retired"}}


def mistakes(data: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(data)]


def test_the_file_is_what_make_schema_writes() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(FILE.read_text()))
    assert FILE.read_text() == text(), "run `make schema`"


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_records_are_valid(path: Path) -> None:
    assert mistakes(json.loads(path.read_text())) == []


@pytest.mark.parametrize(("name", "part"), CASES)
def test_every_part_that_is_written_is_valid(name: str, part: object) -> None:
    assert mistakes(json.loads(record_with(name, part).to_json())) == []


def test_a_written_record_is_valid_and_a_damaged_one_is_not() -> None:
    data = json.loads(record(failed(), passed("QUANT")).to_json())
    assert mistakes(data) == []
    for path, value in {"seed": "three", "verdict": "MAYBE", "schema": 2, "rules": {}, "gsm8k": 7}.items():
        (found, *_) = mistakes(data | {path: value})
        assert found.startswith(f"$.{path}: ")
    del data["schema"]
    assert mistakes(data) == ["$: 'schema' is a required property"]


def test_fields_that_the_schema_does_not_know_are_allowed_as_a_reader_ignores_them() -> None:
    assert mistakes(json.loads(record().to_json()) | {"colour": "red"}) == []


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_no_field_that_was_ever_written_has_lost_its_name(path: Path) -> None:
    data = json.loads(path.read_text())
    defs = VALIDATOR.schema["$defs"]
    rules = data.get("rules", [])
    seen = {
        "RunRecord": [data],
        "CandidateRun": data.get("candidates", []),
        "RuleResult": rules,
        "Failure": [failure for rule in rules for failure in rule.get("failures", [])],
    }
    for kind, values in seen.items():
        unknown = {name for value in values for name in value} - set(defs[kind]["properties"])
        assert unknown <= GONE.get(kind, set())


def test_the_example_of_the_documents_validates_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", REPORTS.read_text(), re.DOTALL | re.MULTILINE)
    (example,) = (block for block in blocks if "jsonschema" in block)
    (tmp_path / "docs").symlink_to(FILE.parent)
    (tmp_path / "harness-out").mkdir()
    monkeypatch.chdir(tmp_path)
    made = record(failed())
    made.write(tmp_path / "harness-out" / "record.json")
    exec(example, {})  # noqa: S102 - our own document
    made.seed = "three"
    made.write(tmp_path / "harness-out" / "record.json")
    with pytest.raises(jsonschema.ValidationError, match="'three' is not of type 'integer'"):
        exec(example, {})  # noqa: S102 - our own document


def test_the_schema_has_a_type_for_every_part_of_a_record() -> None:
    plain = {name for name, value in asdict(RunRecord("run", "now", [])).items() if value is None}
    assert plain == set(PARTS)
