"""A case: one kernel, one GPU architecture, one set of options. Written as one short string, so that it can be repeated.

    masked_gemm@sm_100a,l=8,m=1024,n=4096,k=7168,tile=256x128,cluster=2x1

An option that has its default is left out, so equal cases have equal strings. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.verdict import UsageError

ARCHITECTURES = ("sm_100a", "sm_103a")

# Each kernel's options with their defaults; the type of a default is the type of the option.
# None: no default, an integer that every case must give. What each means: kernels.py, where the call is made.
KERNELS: dict[str, dict[str, int | str | None]] = {
    "masked_gemm": {
        "l": None, "m": None, "n": None, "k": None,
        "ab": "float4_e2m1fn", "sf": "float8_e4m3fn", "vec": 16, "out": "bfloat16",
        "tile": "128x128", "cluster": "1x1", "alpha": 1, "swap": 0, "signals": 0, "ranks": 0,
    },
    "nvfp4_quantize": {"k": None, "dtype": "bfloat16", "layout": "128x4", "per_token": 0, "fast": 1},
    "silu_mul_quantize": {"k": None, "dtype": "bfloat16", "layout": "128x4", "fast": 1},
    "mxfp4_quantize": {"k": None, "dtype": "bfloat16", "layout": "128x4"},
    "mxfp8_quantize": {"k": None, "dtype": "bfloat16", "layout": "128x4"},
    "moe_gemm1": {
        "l": 8, "n": 4096, "k": 7168,
        "quant": "w4a4", "topk": 8, "tile": "128x128", "cluster": "1x1", "activation": "swiglu",
    },
    "moe_gemm2": {
        "l": 8, "n": 7168, "k": 2048,
        "quant": "w4a4", "topk": 8, "tile": "128x128", "cluster": "1x1", "out": "bfloat16", "fused": 1,
    },
}  # fmt: skip


@dataclass(frozen=True)
class CompileCase:
    """One kernel to compile.

    Attributes:
        kernel: a key of KERNELS.
        arch: compilation target, such as sm_100a.
        options: the options that differ from their defaults, in the order of KERNELS.
    """

    kernel: str
    arch: str
    options: tuple[tuple[str, int | str], ...]

    def __str__(self) -> str:
        return ",".join([f"{self.kernel}@{self.arch}", *(f"{name}={value}" for name, value in self.options)])

    def full(self) -> dict[str, int | str]:
        """Return every option, defaults included."""
        defaults = {name: value for name, value in KERNELS[self.kernel].items() if value is not None}
        return {**defaults, **dict(self.options)}

    @property
    def shape(self) -> str:
        """The case without its architecture: what is compiled once for each GPU."""
        return str(CompileCase(self.kernel, "*", self.options))


def make_case(kernel: str, arch: str, **options: int | str) -> CompileCase:
    """Build a case; options in any order.

    Raises:
        UsageError: unknown kernel, architecture or option, a missing one, or a value of the wrong type.
    """
    if kernel not in KERNELS:
        raise UsageError(f"unknown kernel {kernel!r}; known: {', '.join(KERNELS)}")
    if arch not in ARCHITECTURES:
        raise UsageError(f"unknown architecture {arch!r}; known: {', '.join(ARCHITECTURES)}")
    known = KERNELS[kernel]
    if foreign := [name for name in options if name not in known]:
        raise UsageError(f"{kernel} has no option {foreign[0]!r}; its options: {', '.join(known)}")
    kept: list[tuple[str, int | str]] = []
    for name, default in known.items():
        if name not in options:
            if default is None:
                raise UsageError(f"{kernel} needs the option {name}, an integer")
            continue
        value = options[name]
        if isinstance(value, str) != isinstance(default, str):
            raise UsageError(
                f"{kernel}: {name} must be {'a word' if isinstance(default, str) else 'an integer'}, got {value!r}"
            )
        if value != default:
            kept.append((name, value))
    return CompileCase(kernel, arch, tuple(kept))


def parse_case(text: str) -> CompileCase:
    """Read a case from its string.

    Raises:
        UsageError: it is not one; the message says what was expected.
    """
    head, *pairs = text.strip().split(",")
    kernel, at, arch = head.partition("@")
    if not at:
        raise UsageError(f"a case is KERNEL@ARCH,option=value,..., got {text!r}")
    options: dict[str, int | str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not value or name in options:
            raise UsageError(f"a case is KERNEL@ARCH,option=value,..., got {pair!r} in {text!r}")
        default = KERNELS.get(kernel, {}).get(name)
        options[name] = value if isinstance(default, str) or not value.isdecimal() else int(value)
    return make_case(kernel, arch, **options)


def pair(text: int | str) -> tuple[int, int]:
    """Read "256x128" as (256, 128)."""
    first, cross, second = str(text).partition("x")
    if not (cross and first.isdecimal() and second.isdecimal()):
        raise UsageError(f"a tile or a cluster is ROWSxCOLUMNS, such as 256x128, got {text!r}")
    return int(first), int(second)
