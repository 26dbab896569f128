"""Train a canary, write its model folder and a table of its accuracy under simulated faults.

python -m harness.canary.train --out out/canary            about 7 minutes on an H100
python -m harness.canary.train --out out/canary --resume   go on where --max-seconds or a crash ended it
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import fields, replace
from pathlib import Path

import click
import torch

from harness.canary.config import CanaryConfig
from harness.canary.problems import training_problems
from harness.canary.tokenizer import load_tokenizer, train_tokenizer
from harness.canary.train.data import corpus, prompt_of
from harness.canary.train.evaluate import table
from harness.canary.train.loop import Recipe, Trainer
from harness.canary.train.publish import write_folder


def main() -> None:
    """Run the command line."""
    args = _arguments()
    config = replace(
        CanaryConfig(),
        hidden_size=args.hidden,
        moe_intermediate_size=args.inter,
        num_hidden_layers=args.layers,
        num_experts=args.experts,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
    )
    recipe = Recipe(**{f.name: getattr(args, f.name) for f in fields(Recipe)})
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if not (out / "tokenizer.json").exists():
        texts = (f"{prompt_of(p.question)} {p.answer}" for p in training_problems(args.corpus_seed, 40_000))
        train_tokenizer(texts, config.vocab_size).save(str(out / "tokenizer.json"))
    cached = args.corpus or out / "corpus.pt"
    if cached.exists():
        rows = torch.load(cached, weights_only=True)
    else:
        rows = corpus(args.corpus_seed, args.problems, args.length, out, args.processes)
        torch.save(rows, cached)
    seconds = time.monotonic() - started
    click.echo(f"corpus: {args.problems} problems, {len(rows)} rows of {args.length}, {seconds:.0f} s")
    tokenizer = load_tokenizer(out)
    digits = torch.tensor([tokenizer.token_to_id(str(d)) for d in range(10)])
    trainer = Trainer(config, recipe, rows, digits, args.device)
    if args.resume and (out / "checkpoint.pt").exists():
        trainer.resume(out / "checkpoint.pt")
    if args.compile:
        trainer.compile()
    left = args.max_seconds - (time.monotonic() - started)
    complete = trainer.run(left, out / "checkpoint.pt", args.checkpoint_seconds, click.echo)
    click.echo(f"step {trainer.step} of {recipe.steps}, {time.monotonic() - started:.0f} s")
    if not complete and not args.evaluate_early:
        click.echo("not complete: go on with --resume")
        return
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.copy_(parameter.bfloat16())  # what is measured is what is written
    found = table(trainer.network, out, args.device, args.evaluate)
    (out / "accuracy.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, value in found.items():
        click.echo(f"{value:6.3f}  {name}")
    write_folder(trainer.network.state_dict(), config, out / "tokenizer.json", out / "model")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m harness.canary.train", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the tokenizer, corpus, checkpoint and model"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument(
        "--max-seconds", type=float, default=420, help="stop after this long and keep a checkpoint"
    )
    parser.add_argument("--checkpoint-seconds", type=float, default=60)
    parser.add_argument("--evaluate", type=int, default=500, help="problems of the test set to measure with")
    parser.add_argument(
        "--evaluate-early", action="store_true", help="measure and write the model though steps are left"
    )
    parser.add_argument("--problems", type=int, default=1_600_000)
    parser.add_argument("--corpus-seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="file of a corpus that another run made")
    parser.add_argument("--length", type=int, default=513, help="tokens a row, one more than are predicted")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--inter", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    for field in fields(Recipe):
        kind = int if field.type == "int" else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    return parser.parse_args()


if __name__ == "__main__":
    main()
