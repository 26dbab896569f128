"""The chat template that the model folder carries for other engines: it puts a chat into the form of training."""

from __future__ import annotations

import json

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from harness.canary.config import MODEL, read_config
from harness.canary.export import export_modelopt
from harness.canary.tokenizer import prompt_of_chat, tokenizer_config
from harness.canary.train.data import prompt_of

CHATS = (
    [("user", "4 and 5?")],
    [("user", "  Question: 4 and 5?\nAnswer: ")],
    [
        ("user", "Question: 1 and 1?\nAnswer:"),
        ("assistant", "#### 2"),
        ("user", "Question: 4 and 5?\nAnswer:"),
    ],
    [("system", "Be brief."), ("user", "Questions and Answers: how many?")],
)


def rendered(chat: list[tuple[str, str]]) -> str:
    """As transformers, vLLM and SGLang render it."""
    template = json.loads((MODEL / "tokenizer_config.json").read_text())["chat_template"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": role, "content": content} for role, content in chat]
    return environment.from_string(template).render(messages=messages, add_generation_prompt=True)


@pytest.mark.parametrize("chat", CHATS)
def test_the_template_renders_what_the_canarys_own_server_reads(chat) -> None:
    assert rendered(chat) == prompt_of_chat(chat)


def test_a_question_becomes_the_prompt_of_training() -> None:
    assert rendered(CHATS[0]) == rendered(CHATS[1]) == prompt_of("4 and 5?")
    assert rendered(CHATS[2]) == f"{prompt_of('1 and 1?')} #### 2\n\n{prompt_of('4 and 5?')}"
    assert rendered(CHATS[3]) == f"Be brief.\n\n{prompt_of('Questions and Answers: how many?')}"


def test_shipped_and_exported_folders_carry_it(tmp_path) -> None:
    export_modelopt(tmp_path)
    expected = tokenizer_config(read_config(MODEL).max_position_embeddings)
    for folder in (MODEL, tmp_path):
        assert json.loads((folder / "tokenizer_config.json").read_text()) == expected
