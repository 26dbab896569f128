"""What can go wrong while a kernel is interpreted; every message names the instruction or the address."""

from __future__ import annotations


class InterpreterError(Exception):
    """Base of everything that the interpreter raises about a kernel."""


class UnsupportedPtxError(InterpreterError):
    """An opcode, modifier, operand or descriptor bit that is not modelled: named, never guessed."""


class MemoryFaultError(InterpreterError):
    """An access outside every known buffer, a write to an input, or a misaligned address."""


class ProtocolError(InterpreterError):
    """A rule of the PTX ISA is broken: too many arrivals, a barrier never initialised, tensor memory not freed."""


class DeadlockError(InterpreterError):
    """No warp can go on and no asynchronous operation is pending; the message says who waits for what."""
