"""`python -m harness.canary.problems [--check]`: write the shipped test sets, or say whether they are up to date."""

from __future__ import annotations

import sys

from harness.canary.problems import shipped

USAGE = "usage: python -m harness.canary.problems [--check]"


def main(arguments: list[str]) -> int:
    """Return 0, 1 if `--check` finds an outdated file, 64 on bad usage."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write(f"{USAGE}; got {' '.join(arguments)}\n")
        return 64
    paths = shipped.outdated() if arguments else shipped.write()
    said = "is outdated: run python -m harness.canary.problems" if arguments else "written"
    sys.stdout.write("".join(f"{path.name} {said}\n" for path in paths) or "test sets are up to date\n")
    return 1 if arguments and paths else 0


sys.exit(main(sys.argv[1:]))
