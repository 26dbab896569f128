"""From tokens to text, piece by piece: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes of each token of a byte-level tokenizer; special tokens have none."""
    shown = _shown_bytes()
    special = {i for i, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    found = [b""] * tokenizer.get_vocab_size()
    for piece, index in tokenizer.get_vocab().items():
        if index not in special:
            found[index] = bytes(shown[c] for c in piece)
    return found


def _shown_bytes() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Printable Latin-1 stands for itself, the other bytes, in order, for the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


class TextStream:
    """The text of one answer.

    Args:
        pieces: bytes of each token, from `token_bytes`.
        stop: texts that end the answer and are not part of it.

    Attributes:
        stopped: whether a stop string has come.
    """

    def __init__(self, pieces: list[bytes], stop: list[str]) -> None:
        self.stopped = False
        self._pieces, self._stop, self._held = pieces, stop, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Take a token and return the text that is final now."""
        self._held += self._decoder.decode(self._pieces[token])
        return self._release(self._held)

    def finish(self) -> str:
        """Return what was held back: the answer is over."""
        self._held += self._decoder.decode(b"", final=True)
        text = self._release(self._held) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        ends = [at for s in self._stop if (at := text.find(s)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        keep = max((n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]
