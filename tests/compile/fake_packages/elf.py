"""The smallest cubin that has what harness/compile/cubin.py reads."""

from __future__ import annotations

import struct


def cubin(registers: int = 40, stack: int = 0, shared: int = 0, code: int = 64, extra: bytes = b"") -> bytes:
    """An ELF file with .nv.info, one kernel's code and, if it uses shared memory, that section with the system's 1024."""

    def sized(attribute: int, *values: int) -> bytes:
        return struct.pack("<BBH", 4, attribute, 4 * len(values)) + struct.pack(f"<{len(values)}I", *values)

    # A record of another format and an unknown attribute in between: both have to be stepped over.
    info = extra + struct.pack("<BBH", 3, 0x1B, 255) + sized(0x12, 9, 0) + sized(0x2F, 9, registers)
    info += sized(0x11, 6, 0) + sized(0x11, 9, stack)
    sections = [("", b"", 0), (".nv.info", info, len(info)), (".text.kernel", bytes(code), code)]
    if shared:
        sections.append((".nv.shared.kernel", b"", 1024 + shared))
    sections.append((".nv.shared.reserved.0", b"", 4096))
    names = b"".join(name.encode() + b"\0" for name, _, _ in [*sections, (".shstrtab", b"", 0)])
    sections.append((".shstrtab", names, len(names)))
    body, headers, at = b"", b"", 0
    for name, data, size in sections:
        headers += struct.pack("<IIQQQQIIQQ", at, 1, 0, 0, 64 + len(body), size, 0, 0, 1, 0)
        at += len(name) + 1
        body += data
    head = b"\x7fELF\x02\x01".ljust(0x28, b"\0") + struct.pack("<Q", 64 + len(body)) + bytes(12)
    head += struct.pack("<HH", len(sections), len(sections) - 1)
    return head.ljust(64, b"\0") + body + headers
