"""The environment variables that the compiler and FlashInfer see in a worker."""

from __future__ import annotations

import os
from pathlib import Path


def worker_environment(arch: str, folder: Path, keep: Path | None) -> dict[str, str]:
    """Return a worker's environment: the compiler's own switches, and none that the user's shell has set for it.

    Args:
        arch: the target.
        folder: scratch space of this worker.
        keep: folder for PTX and cubins, or None.
    """
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("CUTE_DSL_", "FLASHINFER_"))
    }
    return inherited | {
        "CUTE_DSL_ARCH": arch,
        "CUTE_DSL_KEEP": "ptx,cubin",  # keep both on the compiled function ...
        "CUTE_DSL_DUMP_DIR": str(folder),  # ... which also writes them
        "CUTE_DSL_COMPILER_OPT": "remarks{ptx}",  # ptxas reports registers and spills
        "CUTE_DSL_NO_CACHE": "1",  # every case is compiled, or its time would mean nothing
        "CUTE_DSL_DISABLE_FILE_CACHING": "1",
        "FLASHINFER_CUTE_DSL_DISABLE_CACHE": "1",
        "FLASHINFER_WORKSPACE_BASE": str(folder),
        "HARNESS_COMPILE_KEEP": "" if keep is None else str(keep),
        "OMP_NUM_THREADS": "1",
    }
