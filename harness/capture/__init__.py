"""Recording the FP4 MoE calls of a running engine, for `harness replay` (docs/capture.md).

`python -m harness.capture --out DIR -- COMMAND` runs a command, and every Python process that it starts, with the taps in
place; `install(DIR)` does so in this process. Importing this package imports no torch.
"""

from __future__ import annotations

from typing import Any


def install(folder: str = "", **options: Any) -> None:
    """Put the taps in place, in this process: around what is imported already, and what will be.

    Args:
        folder: to write into; made where it is not there. "": what the environment says, nothing where it says nothing.
        options: fields of harness.capture.settings.CaptureSettings.

    Raises:
        ValueError: an option that there is not, or a value that it cannot have.
    """
    from harness.capture.settings import CaptureSettings

    settings = (
        CaptureSettings.of(folder, options, "capture") if folder else CaptureSettings.from_environment()
    )
    if settings is None:
        return
    from harness.capture.hook import install_taps
    from harness.capture.session import Session

    install_taps(Session(settings))
