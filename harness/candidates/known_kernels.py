"""Which kernels are known: those that were run and judged before, told by what they are made of and not by a version.

A fingerprint is the start of a SHA-256: of the package's sources without comments and docstrings, or of PTX. The same
sources in another release stay known, an edited file of a known release does not. `known_kernels.toml` holds the table,
docs/cutedsl-cpu.md ("Versions") says how a row comes into it. Nothing of the packages is imported here.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import re
import tokenize
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.candidates.cuda_quantizers import header_files
from harness.candidates.cutedsl_support import flashinfer_folder, installed_version

GEMM, COMPILER = "masked GEMM", "CuTe DSL compiler"
CUDA_QUANTIZERS, CUTEDSL_QUANTIZERS = "CUDA quantizers", "CuTe DSL quantizers"

# Parts that are FlashInfer's Python: file -> the functions that are used of it; none: the whole file.
_PYTHON: dict[str, dict[str, tuple[str, ...]]] = {
    GEMM: {
        "gemm/kernels/grouped_gemm_masked_wrapper.py": (),
        "gemm/kernels/grouped_gemm_masked_blackwell.py": (),
        "cute_dsl/utils.py": ("get_cutlass_dtype", "cutlass_to_torch_dtype", "make_ptr"),
    },
    CUTEDSL_QUANTIZERS: {
        "quantization/kernels/nvfp4_quantize.py": (),
        "quantization/quantization_cute_dsl_utils.py": (),
        "quantization/nvfp4_quantization_utils.py": (),
        "cute_dsl/fp4_common.py": (),
    },
}
_CPP_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\')|//[^\n]*|/\*.*?\*/', re.DOTALL)


def source_fingerprint(part: str) -> str:
    """Return the fingerprint of the installed sources of a part, "" where they are not there.

    Args:
        part: GEMM, CUDA_QUANTIZERS or CUTEDSL_QUANTIZERS.
    """
    folder = flashinfer_folder()
    if folder is None:
        return ""
    try:
        if part == CUDA_QUANTIZERS:
            return fingerprint(without_cpp_comments(_read(path)) for path in header_files(folder))
        sources = ((_read(folder / file), names) for file, names in _PYTHON[part].items())
        return fingerprint(
            without_comments(functions(source, names) if names else source) for source, names in sources
        )
    except OSError:
        return ""


def ptx_fingerprint(kernels: Iterable[str]) -> str:
    """Return the fingerprint of compiled kernels, without comments and the ISA version that the toolkit flavour decides.

    nvidia-cutlass-dsl's libraries for CUDA 12 and 13 emit the same PTX but for `.version`.
    """
    return fingerprint(
        re.sub(r"^\s*\.version.*\n", "", without_cpp_comments(ptx), flags=re.MULTILINE) for ptx in kernels
    )


def not_yet_known(found: Mapping[str, str]) -> str:
    """Return one sentence that names the parts whose fingerprints are not in the table, "" where all are.

    Args:
        found: part -> fingerprint; "": the part is not there, and not named.
    """
    new = [
        f"{part} of {package_of(part)} {installed_version(package_of(part))} (fingerprint {value})"
        for part, value in found.items()
        if value and value not in known()[part]
    ]
    return f"new version, not yet known: {', '.join(new)}" if new else ""


def sources_warning() -> str:
    """Return `not_yet_known` for a path that runs on a GPU: by sources, and by the compiler's release.

    What a compiler emits is seen only where its PTX is at hand, in the interpreted candidate.
    """
    found = {part: source_fingerprint(part) for part in (GEMM, CUDA_QUANTIZERS)}
    package = package_of(COMPILER)
    release = f"{package} {installed_version(package)}"
    sentence = not_yet_known(found)
    if not any(found.values()) or any(release in versions for versions in known()[COMPILER].values()):
        return sentence
    return f"{sentence}, {release}" if sentence else f"new version, not yet known: {release}"


def package_of(part: str) -> str:
    """Return the distribution that a part comes from."""
    return "nvidia-cutlass-dsl" if part == COMPILER else "flashinfer-python"


@functools.cache
def known() -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the table: part -> fingerprint -> the versions that were run with it."""
    path = Path(__file__).with_suffix(".toml")
    table: dict[str, dict[str, tuple[str, ...]]] = {
        part: {} for part in (GEMM, COMPILER, CUDA_QUANTIZERS, CUTEDSL_QUANTIZERS)
    }
    for row in tomllib.loads(path.read_text(encoding="utf-8"))["kernel"]:
        table[row["part"]][row["fingerprint"]] = tuple(row["versions"])
    return table


def table_row(part: str, value: str) -> str:
    """Return the row of the table for an installed part."""
    versions = f'versions = ["{package_of(part)} {installed_version(package_of(part))}"]'
    return f'[[kernel]]\npart = "{part}"\nfingerprint = "{value}"\n{versions}\n'


def fingerprint(texts: Iterable[str]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of texts, blank lines and trailing space not counted."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update("\n".join(line.rstrip() for line in text.split("\n") if line.strip()).encode() + b"\0")
    return digest.hexdigest()[:16]


def without_comments(source: str) -> str:
    """Return Python source without comments and docstrings.

    The text is cut, not printed from its syntax tree: a tree is another one in every release of Python.
    """
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    code = [t for t in tokens if t.type not in {tokenize.COMMENT, tokenize.NL}]
    starts = {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    cut = [t for t in tokens if t.type == tokenize.COMMENT]
    for i, token in enumerate(code):  # a statement that is nothing but a string
        if (
            token.type == tokenize.STRING
            and code[i + 1].type == tokenize.NEWLINE
            and (i == 0 or code[i - 1].type in starts)
        ):
            cut.append(token)
    lines = source.split("\n")
    for token in sorted(cut, key=lambda t: t.start, reverse=True):
        (first, start), (last, end) = token.start, token.end
        lines[first - 1 : last] = [lines[first - 1][:start] + lines[last - 1][end:]]
    return "\n".join(lines)


def functions(source: str, names: tuple[str, ...]) -> str:
    """Return the text of a module's functions, with their decorators; what is missing gives nothing."""
    lines = source.split("\n")
    return "\n".join(
        line
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name in names
        for line in lines[min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1 : node.end_lineno]
    )


def without_cpp_comments(source: str) -> str:
    """Return CUDA C++ or PTX without its comments."""
    return _CPP_COMMENT.sub(lambda found: found.group(1) or " ", source)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
