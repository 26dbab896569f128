"""Records that real runs left (tests/records/kept): they load, render, and give the same bytes in every process.

Made with these commands, then read and written again; only `environment.platform` was shortened:

    harness check --candidate eager --rule QUANT --rule GEMM --rule GRAPH                              pass.json
    harness check --no-canary --profile quick --candidate eager --max-seconds 60                       quick.json
    harness check --candidate eager+global_scale_inverted --rule QUANT --rule GEMM                     fail.json
    harness check --no-canary --candidate physical+alpha_of_neighbour@7 \
        --rule GEMM --rule QUANT --rule MOE                                                            neighbour.json
    harness check --candidate flashinfer-cutedsl --rule QUANT                                          unknown.json
    harness check --candidate eager --candidate eager+weight_scale_tiles_transposed \
        --candidate flashinfer-cutedsl --rule QUANT --rule GEMM --rule GRAPH                           mixed.json
    harness canary run --candidate eager --questions 32                                                gsm8k_pass.json
    harness canary run --candidate eager --fault input_scale_inverted --questions 32                   gsm8k_dead.json
    harness mutants --fault global_scale_inverted --fault global_scale_omitted --seeds 1 \
        --profile quick --no-upstream                                                                  mutants.json

older_schema.json is fail.json as a first version would have written it: schema 0, few fields, one that is gone since.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import load_record
from harness.records.from_json import RecordError
from harness.verdict import Verdict
from reports.html import render
from tests.records.kept_records import RECORDS, read

VERDICTS = {
    "pass": Verdict.PASS,
    "quick": Verdict.PASS,
    "fail": Verdict.FAIL,
    "neighbour": Verdict.FAIL,
    "unknown": Verdict.UNKNOWN,
    "mixed": Verdict.FAIL,
    "gsm8k_pass": Verdict.PASS,
    "gsm8k_dead": Verdict.FAIL,
    "mutants": Verdict.PASS,
    "older_schema": Verdict.FAIL,
}


GONE = re.compile(r"record\.rules\[\d+\]\.notes")
"""Fields that these records have and this version of the harness does not."""


def test_every_golden_record_is_tested() -> None:
    assert {path.stem for path in RECORDS.iterdir()} == set(VERDICTS)


@pytest.mark.parametrize("name", VERDICTS)
def test_a_golden_record_renders_with_its_verdict(name: str) -> None:
    record = read(name)
    page = render(record)
    assert record.verdict is VERDICTS[name]
    assert f"<title>{record.verdict}: {record.run_id}</title>" in page
    for rule in record.rules:
        assert f">{rule.rule}<" in page
    for failure in record.failures[:3]:
        assert failure.reproduce.split(" --problem ")[0] in page


@pytest.mark.parametrize("name", sorted(VERDICTS.keys() - {"older_schema"}))
def test_a_golden_record_is_written_as_it_was_read(name: str, tmp_path: Path) -> None:
    """Nothing that a run wrote is lost: new fields are added with their defaults; of the old ones only those go that
    this version no longer has."""
    record = read(name)
    record.write(tmp_path / "record.json")
    before = json.loads((RECORDS / f"{name}.json").read_text())
    after = json.loads((tmp_path / "record.json").read_text())
    assert [lost for lost in dropped(before, after) if not GONE.fullmatch(lost)] == []
    assert load_record(tmp_path) == record


def dropped(before: Any, after: Any, where: str = "record") -> list[str]:
    if isinstance(before, dict):
        return [
            lost
            for key, value in before.items()
            for lost in (dropped(value, after[key], f"{where}.{key}") if key in after else [f"{where}.{key}"])
        ]
    if isinstance(before, list) and len(before) == len(after):
        return [lost for i, value in enumerate(before) for lost in dropped(value, after[i], f"{where}[{i}]")]
    return [] if before == after else [where]


SCRIPT = """
import hashlib, sys
from pathlib import Path
from harness import load_record
from harness.comparing.runs import Run, compare
from harness.comparing.history import gather_history
from reports import compare as compared, history
from reports.compare_markdown import markdown
from reports.html import render

folder = Path(sys.argv[1])
records = {path.stem: load_record(path) for path in sorted(folder.glob("*.json"))}
pages = [render(record) for record in records.values()]
for a, b in (("pass", "mixed"), ("gsm8k_pass", "gsm8k_dead")):
    found = compare([Run(a, records[a])], [Run(b, records[b])])
    pages += [compared.render(found), markdown(found)]
pages.append(history.render(gather_history(folder)))
print([hashlib.sha256(page.encode()).hexdigest() for page in pages])
"""


def test_pages_are_the_same_bytes_in_every_process() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(RECORDS)],
            env={**os.environ, "PYTHONHASHSEED": seed, "TZ": zone},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed, zone in (("1", "UTC"), ("4242", "Asia/Tokyo"))
    ]  # fmt: skip
    assert outputs[0].count("'") == 2 * (len(VERDICTS) + 5)
    assert outputs[0] == outputs[1]


def test_an_older_schema_fills_in_what_it_did_not_know() -> None:
    record = read("older_schema")
    assert record.schema == 0
    assert record.gsm8k is None
    assert record.environment.packages == {}
    assert [failure.heatmap for failure in record.failures] == [None]


def damage(name: str, path: list[Any], value: Any, tmp_path: Path) -> Path:
    """Write a golden record with one value replaced."""
    data = json.loads((RECORDS / f"{name}.json").read_text())
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    (tmp_path / "record.json").write_text(json.dumps(data))
    return tmp_path / "record.json"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["schema"], 2, "record has schema 2, this version of the harness reads up to 1; read it with the version"),
        (["schema"], True, "record has schema True"),
        (["run_id"], ..., "record.run_id is missing"),
        (["rules", 0, "verdict"], "MAYBE", "record.rules[0].verdict must be one of PASS, FAIL, UNKNOWN, got 'MAYBE'"),
        (["rules", 0, "failures", 0, "place"], {"row": "three"}, "record.rules[0].failures[0].place.row must be int"),
        (["environment", "packages"], ["torch"], "record.environment.packages must be an object, got list"),
        (["candidates", 0], None, "record.candidates[0] must be an object, got NoneType"),
    ],
)  # fmt: skip
def test_a_damaged_record_names_the_file_and_the_field(
    path: list[Any], value: Any, words: str, tmp_path: Path
) -> None:
    file = damage("fail", path, value, tmp_path)
    with pytest.raises(RecordError) as caught:
        load_record(file)
    assert str(caught.value).startswith(f"{file}: {words}")


def test_a_record_nested_too_deeply_is_damaged_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"schema": 1, "gsm8k": ' + '{"a":' * 100_000)
    with pytest.raises(RecordError, match="is not a JSON record"):
        load_record(tmp_path)


@pytest.mark.parametrize(
    ("name", "path", "value", "view", "words"),
    [
        ("gsm8k_pass", ["gsm8k", "answered"], "all", "gsm8k_run", "record.gsm8k.answered must be int, got 'all'"),
        ("gsm8k_pass", ["gsm8k", "samples", 3], 7, "gsm8k_run", "record.gsm8k.samples[3] must be an object, got int"),
        ("mutants", ["mutants", "faults", 0, "name"], ..., "mutants_run", "record.mutants.faults[0].name is missing"),
        ("mutants", ["mutants", "score"], [], "mutants_run", "record.mutants.score must be an object, got list"),
        ("pass", ["canary"], {"runs": {}}, "canary_part", "record.canary.runs must be a list, got dict"),
        ("pass", ["canary"], {"runs": {}}, "canary_stage", "record.canary.runs must be a list, got dict"),
        ("pass", ["compile"], {"cases": [{"registers": "few"}]}, "compile_run", "record.compile.cases[0].registers must be int, got 'few'"),
        ("pass", ["replay"], {"folder": "cap", "calls": [{"rank": "0"}]}, "replay_run", "record.replay.calls[0].rank must be int, got '0'"),
        ("pass", ["races"], {"kernels": [{"kernel": 7}]}, "races_run", "record.races.kernels[0].kernel must be str, got 7"),
    ],
)  # fmt: skip
def test_a_damaged_part_renders_and_its_typed_view_names_the_field(
    name: str, path: list[Any], value: Any, view: str, words: str, tmp_path: Path
) -> None:
    record = load_record(damage(name, path, value, tmp_path))
    assert "<h1>" in render(record)
    with pytest.raises(RecordError) as caught:
        getattr(record, view)
    assert str(caught.value) == words


def test_a_loaded_record_is_typed_all_through() -> None:
    record = read("mixed")
    rule = record.rule("GEMM", "eager+weight_scale_tiles_transposed")
    assert rule is not None
    assert rule.verdict is Verdict.FAIL
    assert record.failures == rule.failures
    assert rule.failures[0].kind == "illegal"
    assert record.rule("GEMM", "nobody") is None
    assert record.gsm8k_run is record.canary_part is record.canary_stage is record.mutants_run is None
    assert record.compile_run is record.races_run is None
    run = read("gsm8k_pass").gsm8k_run
    assert run is not None
    assert (run.label, run.task_name, run.model) == ("PASS", "gsm_canary", "canary-256/eager")
    assert (run.accuracy, run.answered, len(run.samples)) == (1.0, 32, 32)
    assert run.accuracy_interval == pytest.approx((0.8928, 1.0), abs=1e-4)
    mutants = read("mutants").mutants_run
    assert mutants is not None
    assert (mutants.score.killed, mutants.score.share) == (2, 1.0)
    assert {fault.status for fault in mutants.faults} == {"killed"}
