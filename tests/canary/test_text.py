"""Pieces of text: whole characters, and nothing of what may become a stop string."""

from __future__ import annotations

from harness.canary.config import MODEL
from harness.canary.text import TextStream, token_bytes
from harness.canary.tokenizer import load_tokenizer

PIECES = [b"", b"ab", b"\n", b"Q", b"uestion:", b"\xc3", b"\xa9", b"c"]


def _run(tokens: list[int], stop: list[str]) -> tuple[list[str], bool]:
    stream = TextStream(PIECES, stop)
    pieces = []
    for token in tokens:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.finish()], False


def test_a_character_comes_out_whole() -> None:
    assert _run([1, 5, 6, 7], []) == (["ab", "", "é", "c", ""], False)


def test_an_unfinished_character_is_replaced_at_the_end() -> None:
    assert _run([1, 5], []) == (["ab", "", "�"], False)


def test_a_stop_string_over_several_tokens_is_not_given_out() -> None:
    assert _run([1, 2, 2, 7], ["\n\n"]) == (["ab", "", ""], True)
    assert _run([1, 3, 4, 7], ["\n\n", "Question:"]) == (["ab", "", ""], True)


def test_what_was_no_stop_string_comes_later() -> None:
    assert _run([1, 2, 7, 3], ["\n\n", "Question:"]) == (["ab", "", "\nc", "", "Q"], False)


def test_the_earliest_stop_string_counts() -> None:
    assert _run([1], ["b", "ab"]) == ([""], True)


def test_bytes_of_all_tokens_are_what_the_tokenizer_decodes() -> None:
    tokenizer = load_tokenizer(MODEL)
    pieces = token_bytes(tokenizer)
    assert len(pieces) == 1024
    assert pieces[0] == b""
    text = "Question: Zoë pays $48 for 2 times.\nAnswer: <<48/2=24>>24\t\n#### 24"
    assert b"".join(pieces[t] for t in tokenizer.encode(text).ids).decode() == text
    digits = tokenizer.encode("2048").ids
    assert [pieces[t] for t in digits] == [b"2", b"0", b"4", b"8"]
