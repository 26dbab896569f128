"""stdout and stderr that cost a line and never a verdict: closed, on a full disk, read by nobody, of another encoding."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn, TextIO

THREAD_SECONDS = 5.0  # that threads have to end, after all is written


class GuardedStream:
    """A text stream whose trouble is remembered instead of raised.

    Args:
        stream: what is written to.

    Attributes:
        trouble: why something could not be written, "" where all was.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.trouble = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write as the stream does."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._note(error)
            return len(text)

    def flush(self) -> None:
        """Flush as the stream does."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._note(error)

    def close(self) -> None:
        """Leave it open: it belongs to the process, not to a candidate."""

    def _note(self, error: Exception) -> None:
        self.trouble = (isinstance(error, OSError) and error.strerror) or str(error)


def guard_streams() -> None:
    """Put guarded streams in the place of stdout and stderr, and open those that the process was started without."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # the descriptors of the standard streams must not become those of other files
    os.close(handle)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, GuardedStream(stream))


def leave(code: int) -> NoReturn:
    """End the process with an exit code, whatever its streams and the threads that a candidate left behind do."""
    for handle, stream in ((1, sys.stdout), (2, sys.stderr)):
        stream.flush()
        trouble = getattr(stream, "trouble", "")
        if trouble and handle == 1:
            sys.stderr.write(f"harness: not all of the output could be written to stdout: {trouble}\n")
        if trouble:  # Python flushes again when it ends, and exits with 120 where that fails
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), handle)
    # Python waits for threads before it ends: a pool's are through in a moment, a candidate's may never be.
    last = threading.Timer(THREAD_SECONDS, os._exit, (code,))
    last.daemon = True
    last.start()
    sys.exit(code)
