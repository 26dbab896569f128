"""Candidates that turn against the process that they live in cost one problem and give a reason, isolated or not."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch

from harness.candidates.errors import CandidateStartError
from harness.running.outcome import Outcome, Status
from harness.running.session import FOREIGN, Child, InProcess, Session, open_session
from harness.verdict import UsageError
from tests.running.conftest import CANDIDATES

pytestmark = pytest.mark.usefixtures("in_candidates_folder")

# What hostile:Stage does for so many experts, what is answered, and words that the answer has.
ALIKE = [
    (1, Status.RAISED, "SilentError (its text cannot be shown) (hostile.py:"),
    (2, Status.RAISED, "DriverGone: no driver (hostile.py:"),
    (4, Status.RAISED, "NotApplicableError: this rule is not for me"),
    (5, Status.CONTRACT, "quantize_grouped left torch with another default dtype torch.float64 (torch.float32 before)"),
    (6, Status.CONTRACT, "quantize_grouped left torch with another default device meta (cpu before)"),
    (18, Status.CONTRACT, "quantize_grouped: packed lies on meta, cpu is declared"),
    (19, Status.CONTRACT, "must return packed (4, 16, 19) uint8, logical (m, k/2, l), got Mine, a subclass of torch.Tensor"),
    (20, Status.CONTRACT, "got one of layout torch.sparse_coo, which is not dense"),
    (21, Status.CONTRACT, "returned its output[0] with 0 bytes of memory, where its shape and strides need 1344"),
]  # fmt: skip
HARMLESS = [11, 12, 13, 14, 15, 16, 17]  # what is put back without a word


@pytest.fixture(scope="module")
def child() -> Iterator[Session]:
    with contextlib.chdir(CANDIDATES):
        session = Child("hostile:Stage", threads=1)
    yield session
    session.close()


@pytest.fixture(scope="module")
def here() -> Iterator[Session]:
    """One for all tests, as a child is: each leaves it as if nothing had been."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CANDIDATES)
        yield open_session("hostile:Stage", isolate=False)


def judge(session: Session, experts: int, seconds: float = 20) -> Outcome:
    return session.judge("QUANT", f"{experts}x4x32x32:2*{experts}:normal:0", seconds)


@pytest.mark.parametrize(("experts", "status", "words"), ALIKE)
def test_the_answer_is_the_same_in_a_child_and_here(
    child: Session, here: Session, experts: int, status: Status, words: str
) -> None:
    for session in (child, here):
        outcome = judge(session, experts)
        assert (outcome.status, words in outcome.error) == (status, True), outcome
        assert judge(session, 30).status is Status.JUDGED, "the next problem is judged as if nothing had been"


@pytest.mark.parametrize("experts", HARMLESS)
def test_what_is_put_back_is_no_mistake(child: Session, here: Session, experts: int) -> None:
    before = os.getcwd(), sys.stdout, signal.getsignal(signal.SIGTERM), list(warnings.filters)  # noqa: PTH109
    for session in (child, here):
        outcome = judge(session, experts)
        assert (outcome.status, outcome.illegal) == (Status.JUDGED, []), outcome
    assert before == (os.getcwd(), sys.stdout, signal.getsignal(signal.SIGTERM), list(warnings.filters))  # noqa: PTH109
    assert (torch.get_default_dtype(), str(torch.get_default_device())) == (torch.float32, "cpu")


@pytest.mark.parametrize(
    ("experts", "words"),
    [
        pytest.param(7, FOREIGN, id="forged"),
        pytest.param(8, FOREIGN, id="junk", marks=pytest.mark.long),
        pytest.param(9, "exited with 1", id="closed", marks=pytest.mark.long),
    ],
)
def test_what_a_candidate_does_to_the_pipe_of_answers_is_its_failure(
    child: Session, experts: int, words: str
) -> None:
    outcome = judge(child, experts)
    assert (outcome.status, outcome.error[-len(words) :]) == (Status.CRASHED, words)
    assert judge(child, 30).status is Status.JUDGED


def test_a_copy_of_the_process_answers_nothing(child: Session) -> None:
    first, second = judge(child, 10), judge(child, 1)
    assert (first.status, second.status) == (Status.JUDGED, Status.RAISED), (
        "each answer belongs to its question"
    )


def test_an_interrupt_that_the_candidate_raises_is_its_own_in_a_child_and_the_users_here(
    child: Session, here: Session
) -> None:
    outcome = judge(child, 3)
    assert (outcome.status, outcome.error.startswith("KeyboardInterrupt (hostile.py:")) == (
        Status.RAISED,
        True,
    )
    with pytest.raises(KeyboardInterrupt):
        judge(here, 3)


def test_in_another_projects_test_what_is_no_exception_comes_from_outside(here: Session) -> None:
    """A time limit of pytest is raised within the candidate's call, too."""
    import hostile

    with pytest.raises(hostile.DriverGone):
        judge(InProcess(hostile.Stage()), 2)


def test_an_argument_of_another_shape_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(".")
    outcome = judge(open_session("hostile:TakesItsInputApart", isolate=False), 2)
    assert outcome.status is Status.CONTRACT
    assert "quantize_grouped gave its argument number 1 another form: (1,)" in outcome.error


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("DiesWhenMade", "DriverGone: no driver"),
        ("ExitsWhenMade", "SystemExit: 0"),
        ("LeavesAnotherDtype", "it left torch with another default dtype torch.bfloat16"),
        ("OnCuda", 'it needs a CUDA device, and torch sees none; declare device="cpu"'),
        ("OnMeta", "it declares device 'meta', on which torch cannot hold data"),
    ],
)
def test_a_candidate_that_cannot_be_used_here_says_why_wherever_it_lives(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(".")
    if name == "OnCuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for isolate in (True, False) if name == "DiesWhenMade" else (False,):
        with pytest.raises(CandidateStartError) as caught:
            open_session(f"hostile:{name}", isolate=isolate)
        assert str(caught.value).startswith(words)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "Misdeclared",
            "'hostile:Misdeclared': Traits.__init__() got an unexpected keyword argument 'k_multipel'",
        ),
        ("DeclaresADict", "candidate.traits must be a harness.Traits, got dict"),
        ("CALLABLE", "is builtin_function_or_method, neither a class, a function that returns a candidate"),
    ],
)
def test_what_cannot_be_declared_is_bad_usage(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(".")
    with pytest.raises(UsageError) as caught:
        open_session(f"hostile:{name}", isolate=False)
    assert words in str(caught.value)
