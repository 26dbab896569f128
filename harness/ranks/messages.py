"""Messages between the judging process and a rank: plain values and CPU tensors, each with its length in front."""

from __future__ import annotations

import io
import socket
import struct
from typing import Any

import torch
from torch import Tensor

_LENGTH = struct.Struct("!Q")
_CHUNK = 1 << 20
MOST_BYTES = 1 << 36
"""A longer message is none of ours."""


def packed(message: dict[str, Any]) -> bytes:
    """Return a message as bytes. Tensors may lie on any device; views take their own elements with them, no more."""
    buffer = io.BytesIO()
    torch.save(_on_cpu(message), buffer)
    return _LENGTH.pack(buffer.tell()) + buffer.getvalue()


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        # torch.save writes all the memory that a view looks into.
        whole = value.detach().cpu().contiguous()
        return whole.clone() if whole.untyped_storage().nbytes() > whole.nbytes else whole
    if isinstance(value, dict):
        return {name: _on_cpu(one) for name, one in value.items()}
    return [_on_cpu(one) for one in value] if isinstance(value, (list, tuple)) else value


class Channel:
    """One end of the connection between the judging process and a rank.

    Args:
        connected: a connected stream socket.
    """

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._buffer = bytearray()

    def send(self, data: bytes) -> None:
        """Send a packed message. Raises OSError where the other end is gone or does not read within the socket's time."""
        self.socket.sendall(data)

    def take(self) -> list[dict[str, Any]] | None:
        """Read what is there, waiting for some where there is nothing.

        Returns:
            The messages that are complete by now, None at the end.
        """
        try:
            chunk = self.socket.recv(_CHUNK)
        except ConnectionError:
            chunk = b""
        if not chunk:
            return None
        self._buffer += chunk
        found = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MOST_BYTES:
                raise ConnectionError(
                    f"a message of {length:,} bytes was announced: it is none of the harness"
                )
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            whole = io.BytesIO(self._buffer[_LENGTH.size : end])
            found.append(torch.load(whole, weights_only=True))
            del self._buffer[:end]
        return found

    def close(self) -> None:
        """Close this end."""
        self.socket.close()
