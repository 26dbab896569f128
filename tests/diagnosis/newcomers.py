"""A newcomer's kernel: the one of examples/my_kernel_test.py, 30 lines of plain torch, with one line changed for the worse."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_kernel_test.py"
PRODUCT = "decode(a, a_scale, expert)[:rows] @ decode(b, b_scale, expert).T"
STORED = "product if alpha is None else product * alpha[expert]"
FINISHED = "product if alpha is None else (product * alpha[expert])"


@dataclass(frozen=True)
class Mistake:
    """What stands there instead of `line`, and words of the diagnosis that names it."""

    name: str
    line: str
    instead: str
    named: tuple[str, ...]

    def write(self, folder: Path) -> str:
        """Write the kernel into a folder as a module; return its name as a candidate."""
        text = EXAMPLE.read_text()
        assert text.count(self.line) == 1
        (folder / f"{self.name}.py").write_text(text.replace(self.line, self.instead))
        return f"{self.name}:MyKernel"


MISTAKES = [
    Mistake("first_alpha", STORED, STORED.replace("alpha[expert]", "alpha[0]"), ("expert 0's alpha",)),
    Mistake("no_alpha", STORED, "product", ("without alpha",)),
    Mistake(
        "next_alpha", STORED, STORED.replace("alpha[expert]", "alpha[(expert + 1) % len(alpha)]"),
        ("next expert's alpha",),
    ),
    Mistake(
        "next_weights", "decode(b, b_scale, expert)", "decode(b.roll(-1, -1), b_scale.roll(-1, -1), expert)",
        ("next expert's weights",),
    ),
    Mistake(
        "scales_stayed", "decode(b, b_scale, expert)", "decode(b, b_scale.roll(-1, -1), expert)",
        ("block scales stayed",),
    ),
    Mistake(
        "high_nibble_first", "decode(b, b_scale, expert)", "decode(b << 4 | b >> 4, b_scale, expert)",
        ("high half of each byte of B",),
    ),
    Mistake(
        "cast_first", STORED, "product if alpha is None else product.to(out.dtype).float() * alpha[expert]",
        ("cast: before alpha", "before it is multiplied by alpha"),
    ),
    Mistake(
        "tail_of_k", PRODUCT,
        "(decode(a, a_scale, expert)[:rows] * (torch.arange(2 * a.shape[1]) < 2 * a.shape[1] // 64 * 64))"
        " @ decode(b, b_scale, expert).T",
        ("left of k after whole tiles",),
    ),
    Mistake(
        "truncated", f"= {STORED}",
        "= (product if alpha is None else product * alpha[expert]).view(torch.int32)"
        ".bitwise_and(-(1 << 16)).view(torch.float32)",
        ("cut to the output's type", "toward zero"),
    ),
    Mistake(
        "added_to_output", f"out[:rows, :, expert] = {STORED}", f"out[:rows, :, expert] += {STORED}",
        ("added to what the output buffer held",),
    ),
]  # fmt: skip
