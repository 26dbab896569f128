"""What each installation adds to torch: MB of disk in site-packages, and CPU seconds of pip.

Each is installed into an environment of its own that has torch already, with the versions of constraints.txt, and the
environment is removed afterwards. MB are 10^6 bytes of allocated blocks, bytecode included; CPU time, because the network
and other work on the machine hardly change it.

    python benchmarks/bench_install.py                         # the table of docs/install.md, a quarter of an hour
    python benchmarks/bench_install.py base --source ../other  # one installation of another checkout
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
INSTALLATIONS = ("base", "gsm8k", "canary", "cutedsl", "all")


def install(python: Path, wanted: str, source: Path) -> None:
    """Install quietly, under the constraints of a checkout."""
    options = ["--quiet", "--disable-pip-version-check", "-c", source / "constraints.txt"]
    subprocess.run([python, "-m", "pip", "install", *options, wanted], check=True)  # noqa: S603


def megabytes(environment: Path) -> float:
    """Return what an environment's site-packages take on disk, in 10^6 bytes, as du counts them."""
    (packages,) = environment.glob("lib/python*/site-packages")
    return sum(path.lstat().st_blocks * 512 for path in packages.rglob("*")) / 1e6


def cpu_seconds() -> float:
    """Return the CPU time of all child processes so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(installation: str, source: Path) -> tuple[float, float]:
    """Return what an installation adds to torch, in MB, and how many seconds pip takes for it."""
    wanted = str(source) if installation == "base" else f"{source}[{installation}]"
    with tempfile.TemporaryDirectory(prefix="bench-install-") as folder:
        environment = Path(folder, "environment")
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)  # noqa: S603
        python = environment / "bin" / "python"
        install(python, "torch", source)
        before, started = megabytes(environment), cpu_seconds()
        install(python, wanted, source)
        return megabytes(environment) - before, cpu_seconds() - started


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("installations", nargs="*", default=INSTALLATIONS, metavar="INSTALLATION")
    parser.add_argument("--source", type=Path, default=ROOT, metavar="FOLDER", help="another checkout")
    options = parser.parse_args()
    print("| installation | MB beyond torch | CPU seconds |\n|---|---|---|")
    for installation in options.installations:
        size, seconds = measure(installation, options.source.resolve())
        print(f"| {installation} | {size:,.0f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
