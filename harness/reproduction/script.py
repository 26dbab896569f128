"""The text of a plain script, from harness/reproduction/plain.py. Imports no torch."""

from __future__ import annotations

import ast
from pathlib import Path

from harness.records.record import Failure

_HEAD = '''"""A failing problem as a plain script. Needs {needs}.

    python {name}                      exits with 1 and names what is wrong, with 0 where nothing is
    compute-sanitizer python {name}    memory errors of its kernels
    cuda-gdb --args python {name}      its kernels in a debugger

{tensors}, beside it, has the arguments of the calls and what is legal in every valid element, as the judge had it. Run
it where `harness check` ran: the candidate's module is looked up from the current folder too.

candidate  {candidate}
rule       {rule}
problem    {problem}
failure    {message}
"""
'''
_IMPORTED = """    sys.path.insert(0, os.getcwd())
    found = importlib.import_module({module!r}).{attribute}
    sys.exit(main(made(found), Path(__file__).with_suffix(".pt"), warm={warm}))
"""
_NAMED = """    from harness.faults.named import load_named  # the candidate is the harness's own, or has a fault planted by it

    sys.exit(main(load_named({candidate!r}), Path(__file__).with_suffix(".pt"), warm={warm}))
"""


def script_text(failure: Failure, name: str, *, warm: bool) -> str:
    """Return the script.

    Args:
        failure: what it shows.
        name: of its file, "NAME.py"; its tensors are in "NAME.pt".
        warm: it makes the calls before the failing ones too.
    """
    module, colon, attribute = failure.candidate.partition(":")
    own = colon and "+" not in attribute and module != "control"
    head = _HEAD.format(
        needs="torch and the candidate, nothing else"
        if own
        else "torch and the harness, which has the candidate",
        name=name,
        tensors=str(Path(name).with_suffix(".pt")),
        candidate=_inline(failure.candidate),
        rule=failure.rule,
        problem=failure.problem,
        message=_inline(failure.message.splitlines()[0] if failure.message else failure.kind),
    )
    if own:
        end = _IMPORTED.format(module=module, attribute=attribute, warm=warm)
    else:
        end = _NAMED.format(candidate=failure.candidate, warm=warm)
    return f'{head}\n{_body(own=bool(own))}\n\nif __name__ == "__main__":\n{end}'


def _body(*, own: bool) -> str:
    """Return plain.py without its docstring, with the imports of the script's last lines."""
    source = Path(__file__).with_name("plain.py").read_text(encoding="utf-8")
    first = ast.parse(source).body[0]
    body = "".join(source.splitlines(keepends=True)[first.end_lineno or 0 :]).lstrip("\n")
    more = "import importlib\nimport os\nimport sys\n" if own else "import sys\n"
    return body.replace("from pathlib import Path\n", f"{more}from pathlib import Path\n", 1)


def _inline(text: str) -> str:
    """Return text that may stand in a docstring."""
    return text.replace("\\", "\\\\").replace('"""', "'''")
