"""Which features of the hardware a PTX text uses, and how large it is. Standard library only.

A feature is a group of instructions that some silicon, some driver or some interpreter lacks, not an opcode: integer
arithmetic is none. The names are the PTX ISA's.
"""

from __future__ import annotations

import re
from collections import Counter

_INSTRUCTION = re.compile(r"\s*(?:@!?%\w+\s+)?([a-z][a-z0-9_]*(?:[.:]+[A-Za-z0-9_]+)*)(?:\s[^;]*)?;")
_BOUND = re.compile(r"\.(?:reqntid|maxntid)\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?")
# The first pattern that matches an opcode names its feature.
_FEATURES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("tcgen05.mma {kind}", r"tcgen05\.mma\b.*?\.kind::(?P<kind>\w+)"),
        ("tcgen05.{op}", r"tcgen05\.(?P<op>\w+)"),
        ("wgmma", r"wgmma\."),
        ("mma.sync", r"mma\.sync"),
        ("cp.async.bulk.tensor load", r"cp\.async\.bulk\.tensor\..*?shared::\w+\.global"),
        ("cp.async.bulk.tensor store", r"cp\.async\.bulk\.tensor\..*?global\.shared"),
        ("cp.reduce.async.bulk", r"cp\.reduce\.async\.bulk"),
        ("cp.async.bulk", r"cp\.async\.bulk(?!\.(?:wait|commit))"),
        ("cp.async.bulk groups", r"cp\.async\.bulk\.(?:wait|commit)"),
        ("cp.async", r"cp\.async\."),
        ("mbarrier", r"mbarrier\."),
        ("barrier.cluster", r"barrier\.cluster"),
        ("clusterlaunchcontrol", r"clusterlaunchcontrol"),
        ("griddepcontrol", r"griddepcontrol"),
        ("setmaxnreg", r"setmaxnreg"),
        ("fence.proxy", r"fence\.proxy"),
        ("multimem", r"multimem\."),
        ("red/atom", r"(?:red|atom)\."),
        ("mapa", r"mapa\."),
        ("elect.sync", r"elect\.sync"),
        ("redux.sync", r"redux\.sync"),
        ("cvt e2m1", r"cvt\..*e2m1"),
        ("cvt e4m3", r"cvt\..*e4m3"),
        ("cvt e5m2", r"cvt\..*e5m2"),
        ("cvt ue8m0", r"cvt\..*ue8m0"),
        ("rcp.approx", r"rcp\.approx"),
        ("ex2.approx", r"ex2\.approx"),
        ("tanh.approx", r"tanh\.approx"),
        ("packed f32x2", r"\w+\..*f32x2"),
        ("local memory", r"(?:ld|st)\.local"),
    )
)
# Qualifiers that matter whatever instruction carries them.
_QUALIFIERS = {
    "multicast::cluster": "multicast::cluster",
    "cta_group::2": "cta_group::2",
    "scale_vec::1X": "block_scale 32",
    "block32": "block_scale 32",
    "scale_vec::2X": "block_scale 32",
    "scale_vec::4X": "block_scale 16",
    "block16": "block_scale 16",
    "tile::gather4": "TMA gather",
}


def count_features(text: str) -> dict[str, int]:
    """Return how many instructions of each feature a PTX text has, by name."""
    found: Counter[str] = Counter()
    for opcode, count in count_opcodes(text).items():
        for name, pattern in _FEATURES:
            if match := pattern.match(opcode):
                found[name.format(**match.groupdict())] += count
                break
        for feature in {feature for word, feature in _QUALIFIERS.items() if f".{word}" in opcode}:
            found[feature] += count
    return dict(sorted(found.items()))


def count_opcodes(text: str) -> Counter[str]:
    """Return how often each opcode with its qualifiers occurs; directives and labels are none."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line.partition("//")[0]):
            found[match[1]] += 1
    return found


def threads_of(text: str) -> int:
    """Return the threads of the largest block that the kernels of a PTX text declare, 0 where none is declared."""
    sizes = (int(first) * int(second or 1) * int(third or 1) for first, second, third in _BOUND.findall(text))
    return max(sizes, default=0)
