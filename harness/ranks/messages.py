"""Messages between the judging process and a rank: plain values and CPU tensors, each with its length in front."""

from __future__ import annotations

import io
import socket
import struct
from typing import Any

import torch
from torch import Tensor

from reference.routing import Dispatched

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


def without_padding(received: Dispatched) -> dict[str, Any]:
    """Return what a rank received as a message: `x` and `scales` are `(rows, width)`, the valid rows of all experts."""
    filled = _filled(received.masked_m, received.x.shape[1])
    scales = None if received.scales is None else _bytes(received.scales)[filled].view(received.scales.dtype)
    return {
        "x": _bytes(received.x)[filled].view(received.x.dtype), "scales": scales,
        "masked_m": received.masked_m, "source": received.source,
    }  # fmt: skip


def from_message(message: dict[str, Any], device: str = "cpu") -> Dispatched:
    """Return what a rank received, on a device; rows at or past masked_m hold bytes of 0xFF: NaN."""
    counts, source = message["masked_m"].to(device), message["source"].to(device)
    filled = _filled(counts, source.shape[1])
    scales = None if message["scales"] is None else with_padding(message["scales"], filled)
    return Dispatched(with_padding(message["x"], filled), counts, source, scales)


def with_padding(rows: Tensor, filled: Tensor) -> Tensor:
    """Return a buffer with rows where they belong, bytes of 0xFF elsewhere: NaN.

    Args:
        rows: `(rows, width)`.
        filled: `(experts, capacity)` bool, as many of them.
    """
    width = rows.shape[1] * rows.element_size()
    buffer = torch.full((*filled.shape, width), 0xFF, dtype=torch.uint8, device=filled.device)
    buffer[filled] = rows.contiguous().view(torch.uint8).to(filled.device)
    return buffer.view(rows.dtype)


def _filled(counts: Tensor, capacity: int) -> Tensor:
    return torch.arange(capacity, device=counts.device) < counts.unsqueeze(-1)


def _bytes(rows: Tensor) -> Tensor:
    """Return the same memory as bytes: float8 cannot be indexed everywhere."""
    return rows.contiguous().view(torch.uint8)


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
