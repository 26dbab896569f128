"""Draw GEMM shapes from the property strategies, for `drawn.json`: `python -m harness.compile.draw > drawn.json`.

They are drawn once and kept, because a hypothesis of another version draws others, and a baseline needs the same ones.
"""

from __future__ import annotations

import json

from harness.compile.case import make_case

PROBLEMS = 12  # two GEMMs each


def draw_shapes(count: int, seed_value: int) -> list[dict[str, int]]:
    """Return l, m, n, k of the two GEMMs of `count` drawn problems that FlashInfer's path takes, without repeats."""
    from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

    from harness.candidates.protocol import Traits
    from harness.problems.problem import Problem
    from harness.problems.profiles import find_profile
    from harness.problems.strategies import only_the_seed, problems
    from harness.rules import find_rules

    (rule,) = find_rules(["GEMM"])
    shapes: dict[str, dict[str, int]] = {}

    @seed(seed_value)
    @settings(
        max_examples=count, database=None, deadline=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck), verbosity=Verbosity.quiet,
    )  # fmt: skip
    @given(problems(rule.drawn, Traits(), find_profile("standard")))
    def collect(problem: Problem) -> None:
        for n, k in ((2 * problem.inter, problem.hidden), (problem.hidden, problem.inter)):
            shape = {"l": problem.experts, "m": problem.capacity, "n": n, "k": k}
            shapes[str(make_case("masked_gemm", "sm_100a", **shape))] = shape

    with only_the_seed():
        collect()
    return list(shapes.values())


def main() -> None:
    """Print drawn.json."""
    shapes = ",\n".join(f"  {json.dumps(shape)}" for shape in draw_shapes(PROBLEMS, 0))
    print(f'{{"drawn": "python -m harness.compile.draw", "shapes": [\n{shapes}\n]}}')  # noqa: T201


if __name__ == "__main__":
    main()
