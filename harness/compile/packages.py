"""Which packages the kernels come from: are they here, which versions, and what their sources hash to.

Nothing of them is imported: that takes seconds, and an installation that cannot be imported is a result of its own.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from harness.candidates.support import Support, supported, unsupported
from harness.extras import install_hint

# Folders and files of flashinfer that decide what is compiled.
_SOURCES = ("gemm", "quantization", "fused_moe/cute_dsl", "cute_dsl", "utils.py", "tllm_enums.py")
_COMPILER = "nvidia-cutlass-dsl"


@dataclass(frozen=True)
class Packages:
    """What is installed.

    Attributes:
        versions: distribution names to versions.
        digest: of FlashInfer's sources as they lie on disk, so an edited checkout counts, and of the lists of files and
            hashes that the compiler's wheels came with.
    """

    versions: dict[str, str]
    digest: str


def find_packages() -> tuple[Support, Packages]:
    """Return whether something can be compiled here, and with what."""
    versions = {}
    for name, module in (("flashinfer-python", "flashinfer"), (_COMPILER, "cutlass")):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return unsupported(f"{name} is not installed; run: {install_hint('cutedsl')}"), Packages(
                versions, ""
            )
        if _origin(module) is None:
            return unsupported(
                f"{name} {versions[name]} is installed, but there is no module {module}: reinstall it"
            ), Packages(versions, "")
    digest = hashlib.sha256()
    root = _origin("flashinfer")
    for source in _SOURCES if root else ():
        path = root / source if root else Path()
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path] * path.is_file():
            digest.update(f"{file.relative_to(root or path)}\0".encode() + file.read_bytes())
    for distribution in _compiler_distributions():
        versions[distribution.metadata["Name"].lower()] = distribution.version
        digest.update(f"{distribution.version}\0{distribution.read_text('RECORD') or ''}".encode())
    return supported(), Packages(dict(sorted(versions.items())), digest.hexdigest())


def _origin(module: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _compiler_distributions() -> list[importlib.metadata.Distribution]:
    """Return the compiler and the wheels with its libraries, each once: the one that an import would find."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if name.startswith(_COMPILER):
            found.setdefault(name, distribution)
    return [found[name] for name in sorted(found)]
