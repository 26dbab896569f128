"""What a release needs stands in one place each: version, changes, citation, hooks, workflow, container."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.version import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def pinned(name: str) -> str:
    (version,) = re.findall(rf"^{name}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)


def test_the_version_stands_once() -> None:
    assert PROJECT["dynamic"] == ["version"]
    elsewhere = [
        name
        for name in ("CITATION.cff", "README.md", "Containerfile")
        if __version__ in (ROOT / name).read_text()
    ]
    assert elsewhere == []


def test_the_newest_changes_are_of_this_version() -> None:
    (newest, *_) = re.findall(
        r"^## (\S+), (20\d\d-\d\d-\d\d|not released yet)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert newest[0] == __version__


def test_a_release_is_refused_where_tag_or_changes_are_others() -> None:
    steps = read(".github/workflows/release.yml")["jobs"]["build"]["steps"]
    (check,) = (step["run"] for step in steps if "CHANGELOG" in step.get("name", ""))
    version = re.search(r"sed -n 's/(.*?)/", check)
    assert version
    pattern = version[1].replace("\\(", "(").replace("\\)", ")")
    found = re.search(pattern, (ROOT / "harness/version.py").read_text(), re.MULTILINE)
    assert found
    assert found[1] == __version__


@pytest.mark.parametrize("name", ["ci", "gpu", "nightly", "release"])
def test_every_target_that_a_workflow_makes_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = set(re.findall(r"run: make ([a-z-]+)", (ROOT / f".github/workflows/{name}.yml").read_text()))
    assert made <= targets
    assert read(f".github/workflows/{name}.yml")["permissions"] == {"contents": "read"}, (
        "more only where a job needs it"
    )


def test_hooks_have_the_versions_of_the_tests() -> None:
    hooks = {repo["repo"].rpartition("/")[2]: repo for repo in read(".pre-commit-config.yaml")["repos"]}
    assert hooks["ruff-pre-commit"]["rev"] == f"v{pinned('ruff')}"


def test_what_it_says_of_itself() -> None:
    assert {"Source", "Documentation", "Changelog", "Issues"} == PROJECT["urls"].keys()
    said = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", text)}
    assert said == {"3.11", "3.12", "3.13"}
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    citation = read("CITATION.cff")
    assert (citation["title"], citation["license"]) == (PROJECT["name"], PROJECT["license"])


def test_the_container_is_of_a_torch_and_an_extra_that_are_supported() -> None:
    text = (ROOT / "Containerfile").read_text()
    base = re.search(r"^ARG BASE=pytorch/pytorch:(\d+)\.(\d+)", text, re.MULTILINE)
    extra = re.search(r"^ARG EXTRA=(\w+)", text, re.MULTILINE)
    assert base
    assert extra
    assert (int(base[1]), int(base[2])) >= (2, 8)
    assert extra[1] in PROJECT["optional-dependencies"]
