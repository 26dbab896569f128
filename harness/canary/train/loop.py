"""The training loop: seeded, resumable, one GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name
from torch import Tensor

from harness.canary.config import CanaryConfig
from harness.canary.train.data import split
from harness.canary.train.network import Network
from harness.canary.train.simulate import draw, to_device


@dataclass(frozen=True)
class Recipe:
    """How a canary is trained.

    Attributes:
        seed: of the weights, the order of the rows and the simulated faults.
        steps: optimizer steps in all.
        rows: rows a step.
        learning_rate: at its highest.
        warmup: steps until then.
        decay: last share of the steps, in which it falls to zero.
        plain: first share of the steps, in which nothing is simulated.
        wrong: share of rows with a simulated fault, afterwards.
        question_weight: of the loss on question tokens; answers count 1.
    """

    seed: int = 1
    steps: int = 14_000
    rows: int = 128
    learning_rate: float = 2e-3
    warmup: int = 200
    decay: float = 0.4
    plain: float = 0.4
    wrong: float = 0.3
    question_weight: float = 0.05

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: up, constant, down."""
        up = min(1.0, (step + 1) / self.warmup)
        down = min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))
        return self.learning_rate * up * down


def token_weights(
    recipe: Recipe, targets: Tensor, answers: Tensor, wrong: Tensor, digits: Tensor
) -> tuple[Tensor, Tensor]:
    """Return targets and loss weights `(B, T)`: in rows with a fault, digits of the answer must become "0".

    A row with a fault that still said the right digits would be a canary that does not notice. Its other answer tokens
    stay: what it says remains a sentence, with wrong numbers, as from a real model whose experts are off.
    """
    is_digit = torch.isin(targets, digits) & answers
    off = wrong.unsqueeze(-1)
    weight = torch.where(answers, 1.0, recipe.question_weight) * ((targets != 0) | answers)
    weight = torch.where(off, torch.where(is_digit, 1.0, 0.1 * answers), weight)
    return torch.where(off & is_digit, digits[0], targets), weight


def loss_of(logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean cross entropy."""
    each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return (each * weight.flatten()).sum() / weight.sum()


class Trainer:
    """A network, its optimizer and where it is.

    Args:
        config: sizes.
        recipe: how.
        rows: `(rows, T)` int16, of `harness.canary.train.data.corpus`.
        digits: `(10,)` int64, token ids of "0" to "9".
        device: "cuda" or "cpu".
    """

    def __init__(
        self, config: CanaryConfig, recipe: Recipe, rows: Tensor, digits: Tensor, device: str
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.config, self.recipe, self.device, self.step = config, recipe, device, 0
        self.loss: Callable[..., Tensor] = loss_of
        self.rows, self.digits = rows.to(device), digits.to(device)
        self.network = Network(config).to(device)
        matrices = [p for p in self.network.parameters() if p.ndim > 1]
        vectors = [p for p in self.network.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=device == "cuda"
        )

    def compile(self) -> None:
        """Compile the layers; one graph serves all of them."""
        for layer in self.network.layers:
            layer.compile(dynamic=False)
        self.loss = torch.compile(loss_of, dynamic=False)

    def batch(self) -> Tensor:
        """Return this step's rows, every row once an epoch, in an order that depends on seed and epoch only."""
        per_epoch = len(self.rows) // self.recipe.rows
        epoch, index = divmod(self.step, per_epoch)
        if getattr(self, "_epoch", None) != epoch:
            order = torch.randperm(
                len(self.rows), generator=torch.Generator().manual_seed(self.recipe.seed * 7919 + epoch)
            )
            self._epoch, self._order = epoch, order.to(self.device)
        return self.rows[self._order[index * self.recipe.rows : (index + 1) * self.recipe.rows]]

    def train_step(self) -> tuple[Tensor, Tensor]:
        """Make one step; return loss and load balance."""
        recipe = self.recipe
        tokens, answers = split(self.batch())
        controls = None
        wrong = torch.zeros(len(tokens), dtype=torch.bool, device=self.device)
        if self.step >= recipe.plain * recipe.steps:
            generator = torch.Generator().manual_seed(recipe.seed * 104729 + self.step)
            controls = to_device(draw(len(tokens), self.config, generator, share=recipe.wrong), self.device)
            wrong = controls.wrong
        targets, weight = token_weights(recipe, tokens[:, 1:], answers[:, 1:], wrong, self.digits)
        with torch.autocast(self.device, torch.bfloat16):
            logits, balance = self.network(tokens[:, :-1], controls)
        loss = self.loss(logits, targets, weight)
        (loss + 0.01 * balance).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach(), balance.detach()

    def run(
        self, seconds: float, checkpoint: Path, every_seconds: float, say: Callable[[str], Any] = print
    ) -> bool:
        """Train until the last step or until the time is over; return whether training is complete."""
        started = saved = time.monotonic()
        first = self.step
        while self.step < self.recipe.steps:
            loss, balance = self.train_step()
            now = time.monotonic()
            if self.step % 100 == 0:
                rate = (self.step - first) / (now - started)
                say(
                    f"step {self.step} loss {loss.item():.4f} balance {balance.item():.3f} {rate:.1f} steps/s {now - started:.0f} s"
                )
            if now - saved > every_seconds or now - started > seconds:
                self.save(checkpoint)
                saved = now
            if now - started > seconds:
                return False
        self.save(checkpoint)
        return True

    def save(self, path: Path) -> None:
        """Write everything that is needed to go on; an interrupted write leaves the last one."""
        part = path.with_suffix(".part")
        torch.save(
            {
                "step": self.step,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
            part,
        )
        part.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint: same recipe and corpus, same result."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
