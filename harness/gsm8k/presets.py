"""Published floors of accuracies: `--preset NAME` judges by one where the run's protocol is the published one."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.gsm8k.setups import Setup, differences
from harness.verdict import unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = Path(__file__).with_name("presets.toml")


@dataclass(frozen=True)
class Preset:
    """A published floor. `setup` is the protocol that it holds for, in the words of `setups.Setup`.

    `runs`: how many published runs it was made from. `says` and `options`: the protocol in words, and as options.
    """

    name: str
    models: str
    floor: float
    runs: int
    source: str
    says: str
    options: str
    setup: Mapping[str, object]

    def unlike(self, setup: Setup) -> list[str]:
        """Return what of a run's setup is not that of the protocol; empty where the floor may judge it."""
        stated = dict(self.setup)
        # What a run does not state is not the protocol's.
        return differences(
            {name: "none" if setup.get(name) is None else setup[name] for name in stated}, stated
        )

    def note(self, setup: Setup, *, judges: bool) -> str:
        """Return the floor with its source and protocol, and what it means for a run."""
        found = (
            f"published floor for {self.name}: {self.floor:g} ({self.source}, {self.runs} runs: {self.says})"
        )
        if unlike := self.unlike(setup):
            return f"{found}; shown only, this run's protocol differs: {'; '.join(unlike)}"
        return f"{found}; {'it judges this run' if judges else f'--preset {self.name} judges by it'}"


@cache
def presets() -> dict[str, Preset]:
    """Return every preset by its name."""
    read = tomllib.loads(FILE.read_text(encoding="utf-8"))
    found = {}
    for row in read["presets"]:
        protocol = read["protocols"][row.pop("protocol")]
        found[row["name"]] = Preset(**row, **protocol)
    return found


def find_preset(name: str) -> Preset:
    """Return a preset by its name.

    Raises:
        UsageError: no such preset; names the closest one and all of them.
    """
    known = presets()
    if name not in known:
        raise unknown_name("preset", name, known)
    return known[name]


def preset_of_model(model: str) -> Preset | None:
    """Return the preset of the model that a server serves; None where none is known."""
    return next((p for p in presets().values() if re.search(p.models, model, re.IGNORECASE)), None)
