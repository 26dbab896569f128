"""`harness gsm8k`: parsing and printing only. The work is `harness.gsm8k.run`, imported when the command runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.ci.folder import output_options, own_folder
from harness.ci.options import ci_options_of_server, earlier_record, exit_with, is_url
from harness.ci.outputs import write_record
from harness.extras import require
from harness.verdict import UsageError

if TYPE_CHECKING:
    from harness.records.record import RunRecord

_PATH = click.Path(path_type=Path)


def _transport_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how requests are made, beside those of every run."""
    for option in (
        click.option(
            "--reasoning",
            type=click.Choice(["keep", "strip", "score"]),
            default="keep",
            show_default=True,
            help="<think> in the text: kept, stripped; score: where no text is left, the reasoning counts.",
        ),
        click.option(
            "--extra-body", metavar="JSON", help="Fields for every request, such as '{\"top_k\": 1}'."
        ),
        click.option(
            "--serve", metavar="COMMAND", help="Start this server for the run; {port} is a free port."
        ),
        click.option(
            "--probe-tokens",
            type=int,
            default=8000,
            show_default=True,
            help="Length of --probe's long prompts.",
        ),
    ):
        command = option(command)
    return command


@click.command("gsm8k")
@click.option(
    "--base-url",
    envvar="HARNESS_GSM8K_BASE_URL",
    help="OpenAI-compatible API, such as http://host:port/v1.",
)
@click.option("--model", help="Name of the model; asked from the server where it serves one.")
@output_options("gsm8k-run")
@click.option("--task", default="gsm8k", show_default=True, help="lm-eval task name, or a task YAML.")
@click.option("--dataset", type=_PATH, help="Questions as JSON lines, instead of the hub.")
@click.option("--fewshot", type=_PATH, help="Few-shot examples as JSON lines.")
@click.option("--num-fewshot", type=int, help="Number of examples; the task's own by default.")
@click.option("--chat", is_flag=True, help="Use /chat/completions.")
@click.option(
    "--multiturn/--no-multiturn", default=True, show_default=True, help="With --chat: each example as a turn."
)
@click.option("--system-instruction", help="Text before the prompt, or the system message.")
@click.option(
    "--mode",
    type=click.Choice(["full", "smoke"]),
    default="full",
    show_default=True,
    help="smoke: one wave, then NOT DEAD at best.",
)
@click.option("--questions", type=int, help="A seeded subset of this many questions.")
@click.option("--repeat", type=int, default=1, show_default=True, help="Ask everything this many times.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order, the wave and the subset.")
@click.option("--concurrency", type=int, default=32, show_default=True, help="Requests in flight.")
@click.option("--max-tokens", type=int, help="Limit of an answer; the task's own by default, else 1024.")
@click.option("--timeout", type=float, default=300.0, show_default=True, help="Seconds for one attempt.")
@click.option(
    "--retry-seconds",
    type=float,
    default=120.0,
    show_default=True,
    help="How long an absent server is waited for in mid-run.",
)
@click.option(
    "--wait-ready",
    type=float,
    default=0.0,
    show_default=True,
    help="Seconds to wait for the server at the start; 1800 with --serve.",
)
@click.option("--stream", is_flag=True, help="Stream each answer, to measure the time to its first token.")
@click.option(
    "--expect", type=float, default=0.5, show_default=True, help="Accuracy whose refutation means dead."
)
@click.option(
    "--metric",
    type=click.Choice(["strict", "flexible", "numeric"]),
    default="strict",
    show_default=True,
    help="The accuracy that counts.",
)
@click.option("--min-accuracy", type=float, help="Judge the accuracy's interval against this fraction.")
@click.option("--baseline", type=_PATH, help="Record of an earlier run, compared question by question.")
@click.option(
    "--max-drop", type=float, help="Loss against --baseline or --against URL that is allowed (0.02)."
)
@click.option("--preset", metavar="MODEL", help="Judge by a model's published floor, in its protocol.")
@click.option(
    "--force-unlike", is_flag=True, help="Show a comparison with an unlike setup, without judging by it."
)
@click.option(
    "--max-unanswered",
    type=float,
    default=0.01,
    show_default=True,
    help="Share of unanswered questions above which nothing is judged.",
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="CLASS=SHARE",
    help="Limit of a class of answers; may be repeated.",
)
@click.option(
    "--logprobs",
    is_flag=True,
    help="Compare logprobs with --against URL or --logprobs-baseline; record them where there is neither.",
)
@click.option("--logprobs-baseline", type=_PATH, help="Recorded logprobs.json of an earlier run.")
@click.option("--max-kl", type=float, help="KL that is allowed, in nats per token (0.0001).")
@click.option("--resume", is_flag=True, help="Go on with the journal in --out.")
@click.option(
    "--sweep/--no-sweep",
    default=True,
    show_default=True,
    help="Ask some questions again alone, 8, 32 and 128 at a time.",
)
@click.option(
    "--probe", is_flag=True, help="Also probe repeats, the cache, places in a batch and lengths of prompts."
)
@_transport_options
@click.option(
    "--api-key-env",
    default="OPENAI_API_KEY",
    show_default=True,
    help="Environment variable that holds the key.",
)
@click.option("--api-key-file", type=_PATH, help="File that holds the key.")
@click.option("--against-model", help="Name of the model of --against URL; asked from the server by default.")
@ci_options_of_server
def gsm8k_command(**options: Any) -> int:
    """Judge a served model end to end on GSM8K.

    Exits 0 for PASS (and NOT DEAD with --mode smoke), 1 for FAIL, 2 for UNKNOWN, 64 for bad usage, 130 when interrupted,
    143 when ended by SIGTERM.
    """
    require("harness gsm8k", "gsm8k")
    from harness.gsm8k.credentials import clean_command
    from harness.gsm8k.run import judged
    from harness.gsm8k.settings import check_file, check_output
    from harness.records.command_line import command_line

    junit, fail_on = options.pop("junit"), options.pop("fail_on")
    live = options.pop("against") if is_url(options["against"]) else None
    earlier = earlier_record(fail_on, options.pop("against", None))
    settings = _settings({**options, "against": live})
    if junit is not None:
        check_file(junit, "--junit")
    settings.check()
    check_output(settings.out)
    own_folder(settings.out)
    record = judged(settings, clean_command(command_line()))
    _print(record, write_record(record, settings.out, junit=junit))
    return exit_with(fail_on, record, earlier)


def _settings(options: dict[str, Any]) -> Any:
    """Turn parsed options into checked settings."""
    from harness.gsm8k.credentials import parse_base_url, read_key
    from harness.gsm8k.extra_body import parse_extra_body
    from harness.gsm8k.reasoning import Reasoning
    from harness.gsm8k.serve import PORT, free_port
    from harness.gsm8k.settings import Gsm8kSettings

    base_url, serve = options.pop("base_url"), options.pop("serve") or ""
    if base_url is None and PORT in serve:
        base_url = f"http://127.0.0.1:{free_port()}/v1"
    if base_url is None:
        raise UsageError("--base-url URL is missing; with --serve, a {port} in the command makes one")
    endpoint = parse_base_url(base_url)
    if options["against"] is not None:
        try:
            options["against"] = parse_base_url(options["against"])
        except UsageError as error:
            raise UsageError(str(error).replace("--base-url", "--against")) from None
    key = read_key(options.pop("api_key_env"), options.pop("api_key_file"))
    limits = {}
    for text in options.pop("limits"):
        name, _, share = text.rpartition("=")
        try:
            limits[name] = float(share)
        except ValueError:
            raise UsageError(f"--limit must be CLASS=SHARE, such as 'empty=0.02', got {text!r}") from None
    extra = parse_extra_body(options.pop("extra_body"))
    reasoning = Reasoning(options.pop("reasoning"))
    return Gsm8kSettings(
        endpoint=endpoint,
        api_key=key,
        limits=limits,
        reasoning=reasoning,
        extra_body=extra,
        serve=serve,
        **options,
    )


def _print(record: RunRecord, written: dict[str, Path]) -> None:
    from harness.ci.gsm8k_lines import lines

    found = record.gsm8k_run
    if found is not None:
        click.echo(f"{found.label}: {found.reason}")
        for line in lines(found):
            click.echo(f"  {line}")
    if "record" in written:
        click.echo(f"  record: {written['record']}")
