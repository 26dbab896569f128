"""What a cached result depends on, and what is done with a damaged one."""

from __future__ import annotations

from harness.compile.cache import Cache, default_folder
from harness.compile.packages import Packages, find_packages
from harness.records.parts.compile import CompileResult


def test_a_result_is_found_again_by_case_and_packages(tmp_path, case, compiled, packages):
    cache = Cache(tmp_path / "deep" / "cache", packages)
    assert cache.get(case()) is None
    cache.put(case(), compiled())
    assert Cache(tmp_path / "deep" / "cache", packages).get(case()) == compiled()
    assert cache.get(case(arch="sm_103a")) is None
    assert cache.get(case(k=1024)) is None
    for other in (
        Packages(packages.versions, "edited sources"),
        Packages({**packages.versions, "flashinfer-python": "9.9.1"}, packages.digest),
    ):
        assert Cache(tmp_path / "deep" / "cache", other).get(case()) is None


def test_what_may_not_come_again_is_not_kept(tmp_path, case, packages):
    cache = Cache(tmp_path, packages)
    for status in ("crashed", "timeout"):
        cache.put(case(), CompileResult(status, "x"))
    assert list(tmp_path.iterdir()) == []
    for status in ("refused", "failed"):
        cache.put(case(), CompileResult(status, "x"))
        assert cache.get(case()) == CompileResult(status, "x")


def test_damaged_files_and_unwritable_folders_cost_no_run(tmp_path, case, compiled, packages):
    cache = Cache(tmp_path, packages)
    cache.put(case(), compiled())
    (file,) = tmp_path.iterdir()
    whole = file.read_text()
    for text in ("", "{", "[]", '{"case": "x"}', whole[:-20], whole.replace("k=512", "k=513")):
        file.write_text(text)
        assert cache.get(case()) is None
    blocked = Cache(file / "below a file", packages)
    blocked.put(case(), compiled())
    assert "cannot be written" in blocked.trouble
    assert Cache(None, packages).get(case()) is None


def test_the_default_folder_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "fp4-moe-harness" / "compile"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "fp4-moe-harness" / "compile"


def test_an_edited_source_of_flashinfer_is_another_package(monkeypatch, tmp_path):
    """As in a checkout that somebody works on: the version stays, the kernels change."""
    import importlib.metadata
    import importlib.util
    import types

    package = tmp_path / "flashinfer"
    (package / "gemm").mkdir(parents=True)
    kernel = package / "gemm" / "kernel.py"
    kernel.write_text("tile = 128")
    spec = types.SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "1.0")
    monkeypatch.setattr(importlib.metadata, "distributions", list)
    support, before = find_packages()
    assert support
    assert find_packages()[1] == before
    kernel.write_text("tile = 256")
    after = find_packages()[1]
    assert after.versions == before.versions
    assert after.digest != before.digest
