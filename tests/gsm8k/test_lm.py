"""The transport as an lm-eval model class: lm-eval drives, answers stream, and unanswered is not wrong."""

from __future__ import annotations

import importlib.util

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval")


def instances(count: int):
    from lm_eval.api.instance import Instance

    return [
        Instance(
            request_type="generate_until",
            doc={},
            arguments=(f"Question: Ada has {i} apples and buys {i + 3} more. How many apples does she have?\nAnswer:", {"until": ["Question:"]}),
            idx=i,
        )
        for i in range(10, 10 + count)
    ]  # fmt: skip


def model(server, **options):
    from harness.gsm8k.lm import HarnessLM

    return HarnessLM(base_url=server.url, model="m", concurrency=8, **options)


def test_answers_come_in_order_and_stream_as_they_arrive(serve):
    seen = []
    server = serve(latency=0.01)
    texts = model(
        server, on_answer=lambda request, exchange: seen.append((request.idx, exchange.reply.text))
    ).generate_until(instances(20))
    assert [text.rpartition("#### ")[2] for text in texts] == [str(2 * i + 3) for i in range(10, 30)]
    assert sorted(seen) == list(zip(range(10, 30), texts, strict=True))
    assert server.stats()["most_in_flight"] == 8


def test_unanswered_raises_with_every_answer_kept(serve):
    from harness.gsm8k.lm import UnansweredError

    server = serve(faults=[{"fault": "status", "status": 400, "questions": ["Ada has 12 "]}])
    with pytest.raises(UnansweredError, match="1 of 5 questions unanswered: HTTP 400") as error:
        model(server).generate_until(instances(5))
    assert [e.reply is not None for e in error.value.exchanges] == [True, True, False, True, True]


def test_a_chat_keeps_its_messages(serve):
    lm = model(serve())
    chat = lm.apply_chat_template([{"role": "user", "content": instances(1)[0].args[0]}])
    request = instances(1)[0]
    request.arguments = (chat, {"until": []})
    assert "#### 23" in lm.generate_until([request])[0]


def test_lm_eval_knows_the_class_by_name():
    from lm_eval.api.registry import get_model

    from harness.gsm8k.lm import HarnessLM

    assert get_model("harness") is HarnessLM


@pytest.mark.flashinfer
@pytest.mark.filterwarnings("ignore")  # of lm-eval's own dependencies
def test_lm_eval_drives_and_scores_as_the_harness_does(serve, run_here, data, tmp_path, monkeypatch):
    from pathlib import Path

    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    base = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    files = f"{{train: {data[1]}, test: {data[0]}}}"
    (tmp_path / "local.yaml").write_text(
        f"include: {base}\ntask: gsm8k_here\ndataset_path: json\ndataset_name: null\ndataset_kwargs:\n  data_files: {files}\n"
    )
    server = serve(wrong_share=0.3)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    theirs = lm_eval.simple_evaluate(
        model=model(server), tasks=["gsm8k_here"], task_manager=manager, bootstrap_iters=0
    )
    prompts = sum(server.stats()["bodies"])
    ours = run_here(server.url, expect=0.1)
    assert theirs["results"]["gsm8k_here"]["exact_match,strict-match"] == ours["accuracy_strict"]
    assert theirs["results"]["gsm8k_here"]["exact_match,flexible-extract"] == ours["accuracy_flexible"]
    assert prompts == 64
