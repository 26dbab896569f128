"""Training: the network is the published model, rounding is NVFP4's, a run can be interrupted, rows hold whole problems."""

from __future__ import annotations

import pytest
import torch

from harness.canary.config import MODEL, CanaryConfig
from harness.canary.forward import CanaryModel, batch_of
from harness.canary.load import Canary, plain_experts
from harness.canary.problems import training_problems
from harness.canary.tokenizer import load_tokenizer, train_tokenizer
from harness.canary.train.calibrate import calibrate
from harness.canary.train.data import corpus, prompt_of, split
from harness.canary.train.evaluate import faults
from harness.canary.train.loop import Recipe, Trainer, token_weights
from harness.canary.train.network import Network
from harness.canary.train.publish import huggingface_tensors, write_folder
from harness.canary.train.simulate import draw, neutral, round_fp8, round_nvfp4
from reference.fp8_tokens import dequantize_fp8_tokens, quantize_fp8_tokens
from reference.nvfp4 import dequantize_nvfp4, global_scale_enc, quantize_nvfp4

SMALL = CanaryConfig(hidden_size=128, moe_intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
DIGITS = torch.tensor([load_tokenizer(MODEL).token_to_id(str(d)) for d in range(10)])


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return corpus(3, 200, 257, MODEL, 1)


def test_rows_hold_whole_problems_with_their_answers_marked(rows) -> None:
    tokenizer = load_tokenizer(MODEL)
    tokens, answers = split(rows)
    assert ((tokens < 1024) & (tokens >= 0)).all()
    texts = {f"{prompt_of(p.question)} {p.answer}" for p in training_problems(3 * 1_000_003, 200)}
    text = "\n\n".join(tokenizer.decode(row.tolist(), skip_special_tokens=False) for row in tokens)
    for told in texts:
        assert told in text
    marked = tokenizer.decode(tokens[0][answers[0]].tolist())
    assert "####" in marked
    assert "Question" not in marked


def test_the_corpus_does_not_depend_on_processes(rows) -> None:
    assert torch.equal(rows, corpus(3, 200, 257, MODEL, 2))


def test_simulated_rounding_is_nvfp4_and_fp8() -> None:
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    amax = x.abs().amax()
    exact = dequantize_nvfp4(quantize_nvfp4(x, global_scale_enc(amax)), torch.float32)
    values, scale = quantize_fp8_tokens(x)
    as_sent = dequantize_fp8_tokens(values, scale, torch.float32)
    for simulated, real in ((round_nvfp4(x, amax.expand(1, 1)), exact), (round_fp8(x), as_sent)):
        assert (
            (simulated - real).abs() < 1e-5
        ).float().mean() > 0.99  # the others are ties, decided by float32


@torch.no_grad()
def test_the_published_model_is_the_trained_network() -> None:
    torch.manual_seed(2)
    network = Network(SMALL)
    for parameter in network.parameters():
        parameter.copy_((parameter * 1.5).bfloat16())
    tensors = huggingface_tensors(network.state_dict(), SMALL)
    experts = plain_experts(tensors, SMALL, torch.float32)
    model = CanaryModel(SMALL, tensors, list(experts), torch.float32)
    tokens = torch.randint(0, 1024, (1, 60), generator=torch.Generator().manual_seed(3))
    published = model.forward(batch_of(tokens.tolist(), [0]), model.new_cache(), every_token=True)
    trained, _ = network(tokens)
    # Experts multiply in bfloat16 in training.
    assert (published - trained[0]).norm() < 0.02 * published.norm()
    largest = calibrate(Canary("bf16", model, load_tokenizer(MODEL)), ["Question: one\nAnswer: two"])
    assert len(largest) == 2
    assert all(max(values) > 0 for layer in largest for values in layer.values())


@torch.no_grad()
def test_neutral_controls_change_nothing_and_each_fault_changes_its_rows_only() -> None:
    torch.manual_seed(4)
    network = Network(SMALL)
    tokens = torch.randint(0, 1024, (2, 40))
    plain, _ = network(tokens)
    same, _ = network(tokens, neutral(2, SMALL, "cpu"))
    assert (same - plain).norm() < 1e-3 * plain.norm()
    for name, changes in faults(SMALL).items():
        if name == "none":
            continue
        controls = neutral(2, SMALL, "cpu")
        for field, value in changes.items():
            whole = value.expand_as(getattr(controls, field)).clone()
            whole[0] = getattr(controls, field)[0]
            setattr(controls, field, whole)
        found, _ = network(tokens, controls)
        assert torch.allclose(found[0], same[0], atol=1e-4), name
        assert not torch.allclose(found[1], same[1], atol=1e-4), name


def test_rows_with_a_fault_must_say_zero_and_only_they() -> None:
    targets = torch.tensor([[5, int(DIGITS[4]), 7, 0]] * 2)
    answers = torch.tensor([[False, True, True, True]] * 2)
    wanted, weight = token_weights(Recipe(), targets, answers, torch.tensor([False, True]), DIGITS)
    assert wanted[0].tolist() == targets[0].tolist()
    assert wanted[1].tolist() == [5, int(DIGITS[0]), 7, 0]
    assert weight[0].tolist() == pytest.approx([0.05, 1, 1, 1])
    assert weight[1].tolist() == pytest.approx([0, 1, 0.1, 0.1])


def test_drawn_controls_mark_what_is_wrong() -> None:
    controls = draw(400, SMALL, torch.Generator().manual_seed(5), share=0.3)
    off = (
        (controls.weight_power != 1).any(-1)
        | (controls.scale_rounding != 0).any(-1)
        | (controls.roll != 0).any(-1)
        | controls.swap.any(-1)
        | ((controls.gate_gain - 1).abs() > 0.1).flatten(1).any(-1)
        | ((controls.out_gain - 1).abs() > 0.1).flatten(1).any(-1)
    )
    assert 0.2 < controls.wrong.float().mean() < 0.4
    assert torch.equal(off, controls.wrong)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(rows, tmp_path) -> None:
    recipe = Recipe(steps=8, rows=2, warmup=2, plain=0.5, learning_rate=5e-3)

    def trainer() -> Trainer:
        return Trainer(SMALL, recipe, rows, DIGITS, "cpu")

    whole = trainer()
    assert whole.run(100, tmp_path / "whole.pt", 100)
    cut = trainer()
    assert not cut.run(0.0, tmp_path / "cut.pt", 100)
    assert 0 < cut.step < recipe.steps
    resumed = trainer()
    resumed.resume(tmp_path / "cut.pt")
    assert resumed.run(100, tmp_path / "cut.pt", 100)
    for (name, one), other in zip(
        whole.network.named_parameters(), resumed.network.parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_written_folder_loads_as_a_canary(tmp_path) -> None:
    from harness.canary import load_canary

    torch.manual_seed(6)
    for folder in (tmp_path / "a", tmp_path / "b"):
        torch.manual_seed(6)
        write_folder(Network(SMALL).state_dict(), SMALL, MODEL / "tokenizer.json", folder)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    canary = load_canary(tmp_path / "a")
    assert canary.model.config == SMALL
    assert len(canary.answer(["Question: 2"], max_new_tokens=3)) == 1


def test_the_shipped_tokenizer_is_the_trained_one() -> None:
    texts = (f"{prompt_of(p.question)} {p.answer}" for p in training_problems(1, 40_000))
    assert train_tokenizer(texts, 1024).to_str() == load_tokenizer(MODEL).to_str()
