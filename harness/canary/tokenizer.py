"""The canary's tokenizer: byte-level BPE in Hugging Face's tokenizer.json, digits one by one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set text = message['content'] | trim -%}
{%- if message['role'] == 'assistant' -%}
{{- ' ' + text + '\\n\\n' -}}
{%- elif message['role'] == 'system' -%}
{{- text + '\\n\\n' -}}
{%- else -%}
{%- if text.startswith('Question:') -%}{%- set text = text[9:] | trim -%}{%- endif -%}
{%- if text.endswith('Answer:') -%}{%- set text = text[:-7] | trim -%}{%- endif -%}
{{- 'Question: ' + text + '\\nAnswer:' -}}
{%- endif -%}
{%- endfor -%}
"""
"""Jinja that puts a chat into the form of training: question and answer in turn, as `prompt_of_chat` does without jinja."""

RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "\nAnswer:",
    "fields": {"content": {"close": END, "content": "text"}},
}
"""Where an answer begins, for transformers: without it its server looks for Qwen's `<|im_start|>` and gives the prompt back
too."""

# Words with the space before them, one digit at a time, marks, runs of spaces: as Qwen splits, without contractions.
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a tokenizer with exactly `vocab_size` entries, learned from texts; token 0 is END.

    Raises:
        ValueError: the texts do not hold enough different words for so many entries.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"train_tokenizer: vocab_size must be {vocab_size}, the texts gave {tokenizer.get_vocab_size()}: give more texts"
        )
    return tokenizer


def tokenizer_config(max_length: int) -> dict[str, Any]:
    """Return the contents of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "chat_template": CHAT_TEMPLATE,
        "response_template": RESPONSE_TEMPLATE,
        "bos_token": None,
        "eos_token": END,
        "pad_token": END,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }


def prompt_of_chat(messages: Iterable[tuple[str, str]]) -> str:
    """Return the prompt of a chat, given as (role, content): what CHAT_TEMPLATE renders, without jinja."""
    turns = []
    for role, content in messages:
        text = content.strip()
        if role == "assistant":
            turns.append(f" {text}\n\n")
        elif role == "system":
            turns.append(f"{text}\n\n")
        else:
            question = text.removeprefix("Question:").strip().removesuffix("Answer:").strip()
            turns.append(f"Question: {question}\nAnswer:")
    return "".join(turns)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a model folder."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))
