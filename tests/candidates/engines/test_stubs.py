"""Stubs: what an engine imports and is missing is found, what is there is never shadowed, and nobody else sees any of it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.candidates.engines.engine import Engine, EngineChangedError
from harness.candidates.engines.stubs import Stubs

FILES = {
    "__init__": "",
    "needs": """
        import missing_a
        import missing_a.inner.most as most
        from missing_b import Base, decorator, CONSTANT
        from missing_b.deep import Field
        import json, packaging.version

        class Child(Base["x"]): ...
        @decorator(option=1)
        class Decorated: ...
        @decorator()
        def function(x: Field | None) -> int:
            return x + 1
        items = list(CONSTANT)
        nested = missing_a.some.thing().other
    """,
    "tries": """
        import contextlib
        try:
            import optional_a
        except ImportError:
            optional_a = None
        with contextlib.suppress(ImportError):
            import optional_b
        try:
            import missing_c
        except ImportError as error:
            raise RuntimeError("install missing_c") from error
        try:
            from the_engine import needs_d
        except Exception:
            needs_d = None
    """,
    "needs_d": "import optional_d",
    "looks": "import importlib.util\nfound = importlib.util.find_spec('missing_e') is not None",
    "broken": "from packaging import no_such_name",
    "submodule": "import packaging.no_such_module",
    "names": "def present(): ...\nclass Layer:\n    def load(self, name): return name",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An engine of our own, the_engine, and a user of it."""
    package = tmp_path / "the_engine"
    package.mkdir()
    for name, text in FILES.items():
        lines = text.strip("\n").splitlines()
        (package / f"{name}.py").write_text("\n".join(line.removeprefix(" " * 8) for line in lines))
    (tmp_path / "somebody_else.py").write_text("import missing_a")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def imported(stubs: Stubs, name: str):
    with stubs.installed():
        return importlib.import_module(name)


def test_what_is_missing_is_stubbed_and_named_with_who_asked(folder: None) -> None:
    stubs = Stubs("the_engine")
    needs = imported(stubs, "the_engine.needs")
    assert set(stubs.names) == {"missing_a", "missing_b"}
    assert stubs.names["missing_b"].endswith("the_engine/needs.py:3")
    assert needs.items == []
    assert needs.function(1) == 2, "a decorator gives the function back"
    assert isinstance(needs.Decorated(), needs.Decorated)
    assert issubclass(needs.Child, needs.Base)


def test_a_real_package_is_neither_shadowed_nor_completed(folder: None) -> None:
    stubs = Stubs("the_engine")
    needs = imported(stubs, "the_engine.needs")
    assert needs.json is sys.modules["json"]
    assert Path(needs.packaging.__file__).name == "__init__.py"
    with pytest.raises(ImportError, match="no_such_name"):
        imported(stubs, "the_engine.broken")
    with pytest.raises(ModuleNotFoundError, match=r"packaging\.no_such_module"):
        imported(stubs, "the_engine.submodule")
    assert "packaging" not in stubs.names


def test_what_the_engine_can_do_without_stays_missing(folder: None) -> None:
    stubs = Stubs("the_engine")
    tries = imported(stubs, "the_engine.tries")
    assert tries.optional_a is None
    assert not hasattr(tries, "optional_b")
    assert tries.needs_d is None, "a try further up survives it too"
    assert set(stubs.names) == {"missing_c"}, "who raises again cannot do without"


def test_who_looks_whether_a_package_is_there_hears_the_truth(folder: None) -> None:
    stubs = Stubs("the_engine")
    assert not imported(stubs, "the_engine.looks").found
    assert stubs.names == {}


def test_nobody_else_sees_a_stub(folder: None) -> None:
    stubs = Stubs("the_engine")
    imported(stubs, "the_engine.needs")
    assert not [name for name in sys.modules if name.startswith("missing_")]
    assert importlib.util.find_spec("missing_a") is None
    with stubs.installed(), pytest.raises(ModuleNotFoundError):
        importlib.import_module("missing_f")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("somebody_else")
    assert not [finder for finder in sys.meta_path if isinstance(finder, Stubs)]


def test_the_same_stub_comes_back_when_the_engine_runs_again(folder: None) -> None:
    stubs = Stubs("the_engine")
    needs = imported(stubs, "the_engine.needs")
    with stubs.installed():
        assert sys.modules["missing_a"] is needs.missing_a


def test_an_engines_names_are_found_replaced_and_missed_by_name(folder: None) -> None:
    engine = Engine("the_engine", ("the_engine.names",))
    with engine.running({"the_engine.names:Layer.load": lambda self, name: f"not {name}"}):
        assert engine.made("the_engine.names:Layer").load("x") == "not x"
    with engine.running():
        assert engine.made("the_engine.names:Layer").load("x") == "x"
        with pytest.raises(EngineChangedError, match=r"the_engine\.names\.Layer of the_engine has no save"):
            engine.get("the_engine.names:Layer.save")
        with pytest.raises(EngineChangedError, match=r"Layer\(\) takes no arguments"):
            engine.made("the_engine.names:Layer", wrong=1)
    with pytest.raises(EngineChangedError, match="has no gone"), engine.running({"the_engine.names:gone": 1}):
        pass
    with (
        pytest.raises(EngineChangedError, match=r"no module the_engine\.gone"),
        Engine("the_engine", ("the_engine.gone",)).running(),
    ):
        pass
