"""A candidate's own reciprocal is believed as far as it is one."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from harness.candidates.physical import Physical
from harness.emulation.quantize import correctly_rounded_rcp, reciprocal_table, simulated_rcp
from harness.judging.contract import ContractError
from harness.judging.reciprocal import verified
from harness.problems.profiles import PROFILES
from harness.rules import find_rules
from harness.running.runner import RuleRun
from harness.running.session import InProcess
from harness.running.settings import RunSettings
from harness.verdict import Verdict

RIGHT = {
    "rounded": correctly_rounded_rcp,
    "simulated": simulated_rcp,
    "below": reciprocal_table(1, 1000, 0),
    "above": reciprocal_table(2, 0, 1000),
}
EDGES = [
    0.0,
    -0.0,
    2.0**-149,
    2.0**-127,
    2.0**-126,
    2.0**126,
    2.0**127,
    3e38,
    1.0,
    6.0,
    -6.0,
    torch.inf,
    -torch.inf,
    torch.nan,
]


def up(x: Tensor) -> Tensor:
    return torch.nextafter(x, x * 2)


WRONG = {
    "off by 3 %": lambda x: simulated_rcp(x) * 1.03,
    "off by two units": lambda x: up(up(x.reciprocal())),
    "the sign is lost": lambda x: x.reciprocal().abs(),
    "wrong for one mantissa": lambda x: torch.where(x == 6, 0.1667, x.reciprocal()),
    "zero gives zero": lambda x: torch.where(x == 0, 0.0, x.reciprocal()),
    "NaN gives one": lambda x: x.reciprocal().nan_to_num(1.0, torch.inf, -torch.inf),
    "float64": lambda x: x.double().reciprocal(),
    "another shape": lambda x: x.reciprocal().flatten()[:1],
    "a number": lambda x: 1.0,
}  # fmt: skip


def arguments() -> Tensor:
    mantissas = torch.arange(1 << 23, 1 << 24, 97).double() * 2.0**-23
    return torch.cat((torch.tensor(EDGES), *((mantissas * 2.0**e).float() for e in (-100, -3, 0, 5, 100))))


@pytest.mark.parametrize("name", RIGHT)
def test_one_that_is_right_up_to_a_unit_is_itself(name: str) -> None:
    x = arguments()
    assert torch.equal(verified(RIGHT[name])(x).nan_to_num(7.0), RIGHT[name](x).nan_to_num(7.0))


@pytest.mark.parametrize("name", WRONG)
def test_one_that_is_not_is_a_broken_contract(name: str) -> None:
    with pytest.raises(ContractError, match="reciprocal"):
        verified(WRONG[name])(arguments())


def test_the_sentence_says_where_what_came_and_what_is_due() -> None:
    with pytest.raises(
        ContractError, match=re.escape("reciprocal(6) = 0.171666667, but 1 / x is 0.166666667")
    ):
        verified(WRONG["off by 3 %"])(torch.tensor([1.0, 6.0])[1:])


class Declares3Percent(Physical):
    """Quantizes with what it gives, so that judged by it every scale and code is right."""

    def reciprocal(self, x: Tensor) -> Tensor:
        return simulated_rcp(x) * 1.03


@pytest.mark.parametrize("rule", ["QUANT", "ACT", "MOE"])
def test_a_wrong_reciprocal_fails_what_is_judged_by_it(rule: str) -> None:
    settings = RunSettings(PROFILES["quick"], candidate="x")
    result = RuleRun(find_rules([rule])[0], InProcess(Declares3Percent()), settings).draw()
    assert result.verdict is Verdict.FAIL
    assert "but 1 / x is" in result.reason


def test_what_is_asked_again_is_answered_from_a_copy_and_another_shape_is_asked_anew() -> None:
    asked: list[torch.Size] = []

    def counted(x: Tensor) -> Tensor:
        asked.append(x.shape)
        return simulated_rcp(x)

    reciprocal, x = verified(counted), torch.tensor([3.0, 7.0])
    reciprocal(x).zero_()
    assert torch.equal(reciprocal(x), simulated_rcp(x))
    assert torch.equal(reciprocal(x.view(2, 1)), simulated_rcp(x.view(2, 1)))
    x[0] = 5.0
    assert torch.equal(reciprocal(x), simulated_rcp(x))
    assert asked == [(2,), (2, 1), (2,)]
