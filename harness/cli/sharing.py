"""The options that share a run among workers, GPUs, machines: `--workers`, `--gpus`, `--ray`, `--shard`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from harness.candidates import OVER_RANKS
from harness.verdict import UsageError

if TYPE_CHECKING:
    from harness.running.shared.asked import AskedSharing

MOST_WORKERS = 1024


def sharing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets what they ask for as `sharing`.

    The command has candidates, isolate, problem and max_seconds, with which they must fit together.
    """

    @functools.wraps(command)
    def asked(*, workers: int, gpus: str | None, ray: str | None, shard: str | None, **rest: Any) -> Any:
        sharing = asked_sharing(workers, gpus, ray, shard)
        refuse_unfit(sharing, rest["candidates"], isolate=rest["isolate"], one=rest["problem"] is not None)
        if sharing.shard and rest["max_seconds"]:
            raise UsageError("--shard judges all problems of its part; give it without --max-seconds")
        return command(sharing=sharing, **rest)

    for option in (
        click.option(
            "--shard",
            metavar="I/N",
            help="Judge the I-th of N parts of the run; `harness report --merge` makes one record of the N.",
        ),
        click.option(
            "--ray",
            metavar="ADDRESS",
            help="Judge on a Ray cluster: its address, auto, or local for one on this machine. Needs [cluster].",
        ),
        click.option(
            "--gpus",
            metavar="N|all",
            help="Judge on so many GPUs of this machine, a worker each; the record is one.",
        ),
        click.option(
            "--workers",
            default=0,
            metavar="N",
            help="Judge by so many processes at the same time. Default: 1, or one a GPU of --gpus.",
        ),
    ):
        asked = option(asked)
    return asked


def asked_sharing(workers: int, gpus: str | None, ray: str | None, shard: str | None) -> AskedSharing:
    """Return what the options ask for, as they were given; `workers` is 0 where it was not.

    Raises:
        UsageError: they cannot be meant, or not together; there are not so many GPUs; Ray is not installed.
    """
    from harness.extras import missing
    from harness.running.gpus import chosen_gpus
    from harness.running.shared.asked import AskedSharing
    from harness.running.shared.plan import parse_shard

    if not 0 <= workers <= MOST_WORKERS:
        raise UsageError(f"--workers must lie between 1 and {MOST_WORKERS:,}, got {workers}")
    if ray is not None and (workers or gpus is not None):
        raise UsageError(
            "--ray takes the GPUs or processors of its cluster; give it without --workers and --gpus"
        )
    if ray is not None and (lacking := missing("--ray", "cluster")):
        raise UsageError(lacking)
    chosen = [] if gpus is None else chosen_gpus(gpus)
    part = None if shard is None else parse_shard(shard)
    return AskedSharing(workers or max(1, len(chosen)), chosen, ray or "", part)


def refuse_unfit(asked: AskedSharing, candidates: Sequence[str], *, isolate: bool, one: bool) -> None:
    """Refuse what cannot be shared.

    Args:
        asked: who is to judge.
        candidates: names that were given.
        isolate: candidates live in processes of their own.
        one: a single problem is to be judged.

    Raises:
        UsageError: it cannot.
    """
    if one and (asked.several or asked.shard):
        raise UsageError(
            "--problem is one problem, for one worker; give it without --workers, --gpus, --ray, --shard"
        )
    if asked.several and not isolate:
        raise UsageError(
            "several workers are several processes; give --no-isolate without --workers, --gpus and --ray"
        )
    for name in candidates if asked.several else ():
        if name.partition("+")[0].partition(":")[0] in OVER_RANKS:
            raise UsageError(
                f"{name} has ranks of its own, each a process; judge it with one worker, or by --shard"
            )
