"""Files that are there as a whole or not at all: written beside, then renamed."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # of a disk, a quota, a limit: no later file will do better


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that no reader ever sees half of it, and a full disk leaves the one before.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    if path.exists() and not path.is_file():  # /dev/stdout, a pipe: nothing may be put in its place
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return
    path = path.resolve()  # a link stays one
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # mkstemp makes 0600, which a CI artefact reader may not open
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
