"""A candidate's name on a command line, faults included, as an object: `physical+alpha_of_neighbour@7`.

Imports no torch until a fault is to be planted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.candidates import load_candidate, support_of
from harness.candidates.errors import CandidateStartError, in_words
from harness.ranks.errors import RankLostError
from harness.verdict import UsageError

if TYPE_CHECKING:
    from harness.faults.fault import Planting
    from harness.faults.mutant import Mutant


def load_named(name: str) -> Any:
    """Return the candidate that a name stands for, with the faults that it names.

    Args:
        name: as `harness.candidates.load_candidate` takes it, or with faults after it: `NAME+FAULT` is that candidate
            with a fault planted in it, `NAME+FAULT@7` with parameters drawn from seed 7, `NAME+FAULT@weakest` at its
            weakest; several faults are NAME+FAULT+FAULT.

    Raises:
        UsageError: no such candidate or fault, or a fault in a stage that the candidate does not have.
    """
    name, plus, faults = name.partition("+")
    candidate = load_candidate(name)
    return plant(candidate, *faults.split("+")) if plus else candidate


def start_named(name: str, spared: tuple[type[BaseException], ...] = ()) -> Any:
    """Return the candidate that a name stands for, ready to be called in this process.

    Args:
        name: as `load_named` takes it.
        spared: exceptions that are not the candidate's: an interrupt of this process, for example.

    Raises:
        UsageError: no such candidate.
        CandidateStartError: it cannot run here, with the reason; whatever its own code raises is one.
    """
    from harness.candidates.surroundings import Surroundings

    before = Surroundings()
    try:
        candidate = load_named(name)
        support = support_of(candidate)
        if support and (start := getattr(candidate, "start_ranks", None)):
            start()  # now: it may take longer than any problem
        if support and (compile_ahead := getattr(candidate, "compile_ahead", None)):
            compile_ahead()  # likewise
    except UsageError:
        raise
    except RankLostError as error:
        raise CandidateStartError(str(error)) from error
    except BaseException as error:
        if isinstance(error, spared):
            raise
        raise CandidateStartError(in_words(error)) from error
    finally:
        left = before.restore()
    if not support or left:
        raise CandidateStartError(support.reason or f"it {left}")
    return candidate


def plant(candidate: Any, *plantings: str | Planting) -> Mutant:
    """Return a candidate with faults planted in it.

    Args:
        candidate: a candidate, or the name of one.
        plantings: as `harness.faults.fault.parse_planting` takes them, for example "alpha_of_neighbour@7".

    Raises:
        UsageError: an unknown fault or candidate, or a fault in a stage that the candidate does not have.
    """
    from harness.faults.fault import parse_planting
    from harness.faults.mutant import Mutant

    if isinstance(candidate, str):
        candidate = load_candidate(candidate)
    return Mutant(candidate, [parse_planting(p) if isinstance(p, str) else p for p in plantings])
