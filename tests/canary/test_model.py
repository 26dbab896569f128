"""canary-256: what transformers makes of its files, what it answers, and that faults show."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from harness.canary import load_canary
from harness.canary.config import MODEL, CanaryConfig, read_config
from harness.canary.forward import batch_of
from harness.canary.nvfp4_weights import layers_of
from harness.verdict import UsageError
from reference.loading import load_experts
from tests.canary.conftest import BRIEF, STOP, prompts_of, share_right

EVERY_QUESTION = 500


@pytest.fixture(scope="module")
def transformers_model():
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: make test installs it"
    )

    def load(dtype: torch.dtype):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other packages that transformers imports
            return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype).eval()

    return load


@torch.no_grad()
def _same_greedy_answers(theirs, canary, prompts: list[str]) -> None:
    """By induction: their most likely token after each of our tokens is our next one, so greedy decoding is the same."""
    end = canary.model.config.eos_token_id
    for start in range(0, len(prompts), 32):
        some = prompts[start : start + 32]
        asked = [canary.tokenizer.encode(prompt).ids for prompt in some]
        answers = [[*canary.tokenizer.encode(text).ids, end] for text in canary.answer(some)]
        longest = max(len(p) + len(a) for p, a in zip(asked, answers, strict=True))
        tokens = torch.zeros(len(some), longest, dtype=torch.int64)
        mask = torch.zeros_like(tokens)
        for i, (p, a) in enumerate(zip(asked, answers, strict=True)):
            tokens[i, : len(p) + len(a)], mask[i, : len(p) + len(a)] = torch.tensor(p + a), 1
        chosen = theirs(input_ids=tokens, attention_mask=mask).logits.argmax(-1)
        for i, (p, a) in enumerate(zip(asked, answers, strict=True)):
            assert chosen[i, len(p) - 1 : len(p) + len(a) - 1].tolist() == a, some[i]


def test_transformers_loads_the_folder_and_answers_the_same(transformers_model, canary, prompts) -> None:
    theirs = transformers_model(torch.float32)
    assert type(theirs).__name__ == "Qwen3MoeForCausalLM"
    assert sum(p.numel() for p in theirs.parameters()) == 7_875_328
    _same_greedy_answers(theirs, canary, prompts[:8])


@pytest.mark.long
def test_transformers_answers_the_same_on_every_question(transformers_model, canary, prompts) -> None:
    assert len(prompts) == EVERY_QUESTION
    _same_greedy_answers(transformers_model(torch.float32), canary, prompts)


@torch.no_grad()
def test_logits_agree_in_float32_and_in_bfloat16_as_far_as_each_goes(
    transformers_model, canary, problems, prompts
) -> None:
    """In bfloat16 two right implementations differ by as much as each differs from float32."""
    narrow = load_canary(dtype=torch.bfloat16)
    theirs = {dtype: transformers_model(dtype) for dtype in (torch.float32, torch.bfloat16)}
    for prompt, row in zip(prompts[:6], problems, strict=False):
        tokens = canary.tokenizer.encode(f"{prompt} {row['answer']}").ids
        wide, half = (
            c.model.forward(batch_of([tokens], [0]), c.model.new_cache(), every_token=True).float()
            for c in (canary, narrow)
        )
        their_wide, their_half = (theirs[d](torch.tensor([tokens])).logits[0].float() for d in theirs)
        assert (wide - their_wide).abs().max() < 1e-3  # logits reach 20; float32 sums in another order
        own_error = max((half - wide).norm(), (their_half - their_wide).norm())
        assert (half - their_half).norm() <= 2 * own_error
        assert own_error < 0.1 * wide.norm()


def test_transformers_reads_the_tokenizer(canary, prompts) -> None:
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoTokenizer.from_pretrained(MODEL)
    assert theirs.eos_token_id == read_config(MODEL).eos_token_id
    for prompt in prompts[:20]:
        assert theirs(prompt).input_ids == canary.tokenizer.encode(prompt).ids
        assert theirs.decode(theirs(prompt).input_ids) == prompt


def test_reading_in_parts_gives_the_same_logits(canary, prompts) -> None:
    tokens = canary.tokenizer.encode(prompts[0]).ids
    model = canary.model
    whole = model.forward(batch_of([tokens], [0]), model.new_cache())
    cache = model.new_cache()
    model.forward(batch_of([tokens[:11], tokens[:3]], [0, 0]), cache)
    parts = model.forward(batch_of([tokens[11:], tokens[3:9]], [11, 3]), cache)
    assert torch.allclose(parts[0], whole[0], atol=1e-4)


@pytest.mark.parametrize(("candidate", "count"), [("bf16", 24), ("eager", 8)])
def test_it_answers(candidate, count, prompts, score) -> None:
    canary = load_canary(candidate=candidate)
    assert score(canary.answer(prompts[:count], stop=STOP)) == 1.0


@pytest.mark.long
@pytest.mark.parametrize("candidate", ["bf16", "eager", "physical"])
def test_it_answers_every_question(candidate, prompts, score) -> None:
    assert score(load_canary(candidate=candidate).answer(prompts, stop=STOP)) >= 0.98


@pytest.mark.parametrize(
    ("candidate", "options"),
    [
        ("physical", {}),
        ("eager", {"ranks": 4, "transport": "fp8"}),
        ("eager", {"ranks": 2, "transport": "nvfp4"}),
        ("eager", {"ranks": 2, "shard": "width"}),
    ],
)
def test_other_right_ways_to_run_it_answer_too(candidate, options, brief) -> None:
    canary = load_canary(candidate=candidate, **options)
    assert share_right(canary.answer(prompts_of(brief), BRIEF, stop=STOP), brief) == 1.0


@pytest.mark.parametrize(
    "fault", ["input_scale_omitted", "scales_not_swizzled", "weights_dropped", "one_expert_dropped"]
)
def test_a_broken_one_answers_nothing_right(fault, brief) -> None:
    canary = load_canary(candidate=f"eager+{fault}")
    assert share_right(canary.answer(prompts_of(brief), BRIEF, stop=STOP), brief) == 0.0


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "options"),
    [
        ("input_scale_omitted", {}),
        ("input_scale_inverted", {}),
        ("alpha_without_input_scale", {}),
        ("scales_not_swizzled", {}),
        ("nibbles_swapped_in_weights", {}),
        ("experts_rolled", {}),
        ("scale_slots_zero", {}),
        ("scale_slots_stale", {}),
        ("topk_map_divided_twice", {}),
        ("topk_map_divided_twice", {"ranks": 4}),
        ("experts_never_written", {}),
        ("gate_up_swapped", {}),
        ("weights_dropped", {}),
        ("weights_applied_twice", {}),
        ("output_scaled", {}),
        ("alpha_of_neighbour", {}),
        ("one_expert_dropped", {}),
        ("fp8_scale_rounded_down", {"ranks": 2, "transport": "fp8"}),
    ],
)
def test_each_fault_costs_accuracy(fault, options, prompts, score) -> None:
    """What collapses a real model gives at most 0.05, what shifts one costs at least 0.1."""
    canary = load_canary(candidate=f"eager+{fault}", **options)
    shift = fault == "fp8_scale_rounded_down"
    assert score(canary.answer(prompts[:100], stop=STOP)) <= (0.9 if shift else 0.05)


def test_scales_of_neighbours_are_far_apart() -> None:
    from safetensors.torch import load_file

    config = read_config(MODEL)
    for layer in layers_of(MODEL, load_file(MODEL / "model.safetensors"), config):
        loaded = load_experts(layer, range(config.num_experts))
        for name in ("w1_alpha", "a2_global_scale"):
            ratio = loaded[name] / loaded[name].roll(-1)
            assert torch.maximum(ratio, 1 / ratio).min() > 3, name
        assert loaded["w1_alpha"].max() / loaded["w1_alpha"].min() >= 16


def test_what_cannot_be_loaded_is_refused_with_a_reason(tmp_path) -> None:
    for options, message in (
        ({"candidate": "eagre"}, "did you mean 'eager'"),
        ({"candidate": "eager+no_such_fault"}, "unknown fault"),
        ({"candidate": "eager", "ranks": 3}, "3 ranks do not divide 8 experts"),
        ({"candidate": "eager", "shard": "layers"}, "sharding must be one of"),
        ({"candidate": "bf16", "ranks": 2}, "name a candidate"),
        ({"folder": tmp_path}, "config.json is missing"),
    ):
        with pytest.raises(UsageError, match=message):
            load_canary(**options)
    raw = json.loads((MODEL / "config.json").read_text())
    assert raw == json.loads(json.dumps(CanaryConfig().huggingface()))
    (tmp_path / "config.json").write_text(json.dumps(raw | {"norm_topk_prob": False}))
    with pytest.raises(ValueError, match="norm_topk_prob must be True"):
        read_config(tmp_path)


def test_the_files_fit_in_a_wheel() -> None:
    assert sum(f.stat().st_size for f in MODEL.iterdir()) < 20e6
