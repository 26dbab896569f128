"""Which NCCL EP is installed, and what of it is called. Imports neither torch nor nccl at its top."""

from __future__ import annotations

import importlib
import importlib.metadata

from harness.ranks.errors import NoBuildError

PACKAGE = "nccl.ep"
DISTRIBUTION = "nccl-extensions"
TRANSPORTS = ("bf16", "fp8", "fp8-rounded")
STAGED = "staged"
"""Style of a call that only sends (`send_only`) and is completed by another one (`Handle.complete`)."""
HIDDEN_SIZES = (2048, 2560, 4096, 7168)
"""Any multiple of 512 would do; each is compiled for itself, for every top-k. 2560: an odd one, whose loops are unrolled less."""
MOST_TOPK = 31
"""Of dispatch, one warp of whose 32 is no sender (ll_ep.cuh); and no more than there are experts."""
MOST_TOKENS = 1024
"""Of a rank, so that the buffers of many experts have room; the kernels take 8,192."""
_USED = {
    "Group": ("create", "create_handle", "destroy"),
    "Handle": ("dispatch", "combine", "complete", "destroy"),
    "Layout": ("EXPERT_MAJOR",),
    "DispatchQuantizationRecipe": ("NONE", "DS_FP8E3M4"),
}


def find_version() -> str:
    """Return the version of what is installed, its library loaded.

    Raises:
        NoBuildError: nothing, something that cannot be loaded, or an nccl.ep without what is called here.
    """
    try:
        module = importlib.import_module(PACKAGE)
        library = module.get_lib_version()  # loads it: an import alone does not
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in ("nccl", PACKAGE):
            raise NoBuildError(
                f"needs the package {DISTRIBUTION}, which is not installed (docs/deepep.md)"
            ) from error
        words = str(error).splitlines()[0] if str(error) else ""
        raise NoBuildError(
            f"nccl.ep cannot be loaded: {type(error).__name__}: {words}; it needs the NCCL that it was built for, where "
            "torch may have loaded another one (docs/deepep.md)"
        ) from error
    lacking = [
        f"{name}.{part}"
        for name, parts in _USED.items()
        for part in parts
        if not hasattr(getattr(module, name, None), part)
    ]
    if lacking:
        raise NoBuildError(f"this nccl.ep has no {', '.join(lacking)}")
    try:
        return f"{importlib.metadata.version(DISTRIBUTION)} (library {library})"
    except importlib.metadata.PackageNotFoundError:
        return f"of no version (library {library})"
