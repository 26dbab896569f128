"""The files of one process: one safetensors file a call, and one line in index.jsonl once that file is complete.

Layout and names are documented in docs/capture.md. What is torn by the end of a process is one file without a line.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.capture.targets import WEIGHTS
from harness.capture.tensors import Kept, Stored

if TYPE_CHECKING:
    from harness.capture.begun import Begun
    from harness.capture.settings import CaptureSettings

VERSION = 1
INDEX = "index.jsonl"
_MEBI = 1 << 20
_SAMPLED = 4096


class Writer:
    """Writes the calls of this process.

    Args:
        settings: where, and how much at most.
        rank: of this process.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, settings: CaptureSettings, rank: int) -> None:
        self._left = settings.megabytes * _MEBI
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.folder = Path(settings.folder) / f"rank{rank}-{stamp}-{os.getpid()}"
        self.folder.mkdir(parents=True)
        self._known: dict[tuple[Any, ...], tuple[str, bytes]] = {}
        self._append(
            {"format": "fp4-moe-harness capture", "version": VERSION, "rank": rank, **_surroundings()}
        )

    def store(self, call: Begun, outputs: dict[str, Any], changed: dict[str, Any]) -> bool:
        """Store a call; return whether there is room for more.

        Args:
            call: with copies of its inputs.
            outputs: copies of what it returned or wrote, by name.
            changed: copies of inputs that it changed, as they were afterwards.

        Raises:
            OSError: the disk is full, or the folder is gone.
        """
        from safetensors.torch import save_file

        tensors: dict[str, Stored] = {}
        line: dict[str, Any] = {
            "call": call.number, "parent": call.parent, "layer": call.layer, "stage": call.stage,
            "function": call.function, "time": time.time(), "file": f"call-{call.number:06}.safetensors",
        }  # fmt: skip
        weights = WEIGHTS.get(call.stage, ())
        for part, values in (("inputs", call.inputs), ("outputs", outputs), ("changed", changed)):
            line[part] = {
                name: self._described(f"{part}.{name}", value, tensors, once=name in weights)
                for name, value in values.items()
            }
        size = sum(one.memory.nbytes for one in tensors.values())
        if size > self._left:
            self._append({"stopped": "the byte budget is used up", "call": call.number})
            return False
        self._left -= size
        path = self.folder / line["file"]
        partial = path.with_suffix(".partial")
        save_file({name: one.memory for name, one in tensors.items()}, partial)
        partial.replace(path)
        self._append(line)
        return True

    def kept(self, weights: dict[str, Any]) -> dict[str, Any] | None:
        """Store weights that later calls are given in another form; return them for those calls' inputs, None without room.

        Raises:
            OSError: as for store.
        """
        if sum(one.memory.nbytes for one in weights.values() if isinstance(one, Stored)) > self._left:
            return None
        return {
            name: Kept(self._described(name, value, {}, once=True)) if isinstance(value, Stored) else value
            for name, value in weights.items()
        }

    def _described(self, name: str, value: Any, tensors: dict[str, Stored], *, once: bool) -> Any:
        """Return a value for the index; its tensors are added to those of the call, or stored with the weights."""
        if isinstance(value, tuple):
            return [self._described(f"{name}.{i}", one, tensors, once=once) for i, one in enumerate(value)]
        if isinstance(value, Kept):
            return value.entry
        if not isinstance(value, Stored):
            return value
        entry: dict[str, Any] = {"shape": value.shape, "stride": value.stride}
        if once:
            return {**entry, "weights": self._weights(value)}
        tensors[name] = value
        return {**entry, "tensor": name}

    def _weights(self, value: Stored) -> str:
        """Store a tensor that is the same in every call, once; return its file's name."""
        from safetensors.torch import save_file

        known, sample = self._known.get(value.key, ("", None))
        now = _sample(value)  # another tensor may lie where one lay that is gone
        if sample != now:
            raw = (ctypes.c_char * value.memory.nbytes).from_address(value.memory.data_ptr())
            digest = hashlib.sha256(raw).hexdigest()[:32]
            name = f"weights-{digest}.safetensors"
            path = self.folder / name
            known = name
            if not path.exists():
                if value.memory.nbytes > self._left:
                    raise OSError(
                        "the byte budget is smaller than the weights of one layer; raise --megabytes"
                    )
                self._left -= value.memory.nbytes
                partial = path.with_suffix(".partial")
                save_file({"tensor": value.memory}, partial)
                partial.replace(path)
            self._known[value.key] = name, now
        return known

    def _append(self, line: dict[str, Any]) -> None:
        with (self.folder / INDEX).open("a", encoding="utf-8") as index:
            index.write(json.dumps(line) + "\n")


def _sample(value: Stored) -> bytes:
    """Return some bytes of a tensor, from all over it."""
    import torch

    raw = value.memory.view(-1).view(torch.uint8)
    return bytes(raw[:: max(1, len(raw) // _SAMPLED)].tolist())


def _surroundings() -> dict[str, Any]:
    """Return what ran, and on what."""
    import importlib.metadata

    import torch

    packages = {}
    for name in ("torch", "flashinfer-python", "sglang", "vllm", "deep_ep", "humming-kernels"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    return {
        "time": time.time(), "pid": os.getpid(), "command": sys.argv, "packages": packages,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "capability": list(torch.cuda.get_device_capability()) if cuda else None,
    }  # fmt: skip
