"""The engine: requests that join and leave do not change each other's answers."""

from __future__ import annotations

import pytest

from tests.canary.conftest import STOP


def _run(engine, numbers: list[int], found: dict[int, list] | None = None) -> dict[int, list]:
    found = {} if found is None else found
    while not all(n in found and found[n][-1].finish_reason for n in numbers):
        for step in engine.step():
            found.setdefault(step.number, []).append(step)
    return found


def test_answers_do_not_depend_on_company(canary, prompts) -> None:
    alone = [canary.answer([prompt], stop=STOP)[0] for prompt in prompts[:5]]
    engine = canary.engine(max_rows=3)  # some wait, rows are moved when others end
    numbers = [engine.add(prompt, stop=STOP) for prompt in prompts[:2]]
    found: dict[int, list] = {}
    for _ in range(7):
        for step in engine.step():
            found.setdefault(step.number, []).append(step)
    numbers += [engine.add(prompt, stop=STOP) for prompt in prompts[2:5]]
    _run(engine, numbers, found)
    assert ["".join(s.text for s in found[n]) for n in numbers] == alone
    assert engine.idle
    for number, prompt in zip(numbers, prompts, strict=False):
        assert found[number][-1].prompt_tokens == len(canary.tokenizer.encode(prompt).ids)
        assert [s.new_tokens for s in found[number]] == list(range(1, len(found[number]) + 1))


def test_an_answer_ends_by_the_end_token_a_stop_string_or_length(canary, prompts) -> None:
    engine = canary.engine()
    whole, cut, short = (
        engine.add(prompts[0]),
        engine.add(prompts[0], stop=["####"]),
        engine.add(prompts[0], max_new_tokens=5),
    )
    found = _run(engine, [whole, cut, short])
    texts = {n: "".join(s.text for s in found[n]) for n in found}
    assert [found[n][-1].finish_reason for n in (whole, cut, short)] == ["stop", "stop", "length"]
    assert texts[cut] == texts[whole].partition("####")[0]
    assert texts[whole].startswith(texts[short])
    assert found[short][-1].new_tokens == 5
    assert "<|endoftext|>" not in texts[whole]


def test_sampling_repeats_with_its_seed(canary, prompts) -> None:
    engine = canary.engine()
    numbers = [
        engine.add(prompts[0], temperature=t, seed=s, max_new_tokens=24)
        for t, s in ((3, 1), (3, 1), (3, 2), (0, 1))
    ]
    found = _run(engine, numbers)
    texts = ["".join(s.text for s in found[n]) for n in numbers]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_a_cancelled_request_is_gone(canary, prompts) -> None:
    engine = canary.engine(max_rows=2)
    first, second, waiting = (engine.add(prompt) for prompt in prompts[:3])
    engine.step()
    engine.cancel(first)
    engine.cancel(waiting)
    engine.cancel(99)
    found = _run(engine, [second])
    assert set(found) == {second}
    assert engine.idle
    assert "".join(s.text for s in found[second]) in canary.answer([prompts[1]])[0]


def test_what_does_not_fit_is_refused(canary, prompts) -> None:
    engine = canary.engine()
    with pytest.raises(ValueError, match="2048 positions"):
        engine.add(prompts[0], max_new_tokens=2048)
    with pytest.raises(ValueError, match="max_tokens 0"):
        engine.add(prompts[0], max_new_tokens=0)
    assert engine.idle
