"""The same string gives the same bytes, wherever it is read: those of both versions are written down here."""

from __future__ import annotations

import hashlib

import pytest
import torch

from harness.problems import counter, direct_weights
from harness.problems.weights import make_weights
from tests.problems.digests import ALL_TRAPS, LAYERS, TENSORS, digest

PINS = {
    "4x40x64x48:9,24,0,40:normal:3": "15e58fe49c2c6a034a0011d2",
    "4x40x64x48:9,24,0,40:spread:4:relu2+outlier_block": "445ce5fc2591eadbcbdc388b",
    "4x40x64x48:9,24,0,40:grid:5": "ff113f1bc172a16f40c83ee6",
    "3x20x256x128:20,0,7:normal:6:ALL": "40fba1cae21df1226e877ce6",
    "3x20x256x128:20,0,7:spread:7:ALL": "77bb575a904ba6c5f281ab64",
    "3x20x256x128:20,0,7:grid:8:ALL": "ceb7e67f5a72e736e030ec39",
    "2x300x1024x512:300,17:normal:9:magnitude_spread+large+small+alpha_specials": "54d03596cf726517a7eade01",
    "3x20x256x128:20,0,7:normal:6:nan+inf mxfp8 mxfp4 silu": "5e39ec80c5a0a624789c8e39",
    "3x20x256x128:20,0,7:spread:6 fp8_128 mxfp4 gelu": "7ec7e8ade2f33c39febcbc17",
    "3x20x256x128:20,0,7:normal:6:nan fp16 nvfp4_46 swigluoai": "ab82b157b42fca4ae18d31a0",
    "3x20x256x128:20,0,7:spread:6:gates+some_nan bf16 nvfp4_46 silu; up first; interleave 1": "beedc999f3d7142f06bf57d7",
    "8x24x128x64:24*8:normal:0": "d285aeb84c2ceef0b3506dcf",
    "8x24x128x64:24*8:normal:1:logits_equal": "e6d19005fee375b960b1064d",
    "8x24x128x64:24*8:normal:2:logits_spread": "bbb4007373847eac579e4d61",
    "8x24x128x64:24*8:normal:3:topk_tiny": "636878261de2fec4052b634a",
    "8x24x128x64:24*8:normal:4:output_specials": "59255a03b21fe26407d52709",
    "8x24x128x64:24*8:normal:5:whole_layer": "ef19127b15d8b969a503393b",
    "8x24x128x64:24*8:normal:6:logits_low": "f4b29afbc0d46256a89ad9e6",
    "v2:4x40x64x48:9,24,0,40:normal:3": "cbd4daa5e0c06703622ca2b4",
    "v2:4x40x64x48:9,24,0,40:spread:4:relu2+outlier_block": "444ffca28ab32271e32a308c",
    "v2:4x40x64x48:9,24,0,40:grid:5": "6b965185005e0ab7fe8eaa0a",
    "v2:3x20x256x128:20,0,7:normal:6:ALL": "902ea0e3cd34862df28a4aee",
    "v2:3x20x256x128:20,0,7:spread:7:ALL": "7381a7e29c654a670c3810a3",
    "v2:3x20x256x128:20,0,7:grid:8:ALL": "c396dce2e6d8be5e78f03d65",
    "v2:2x300x1024x512:300,17:normal:9:magnitude_spread+large+small+alpha_specials": "190a41f8ca294942e77a86bb",
    "v2:3x20x256x128:20,0,7:normal:6:nan+inf mxfp8 mxfp4 silu": "a090e126a89d8ef5fd905fd4",
    "v2:3x20x256x128:20,0,7:spread:6 fp8_128 mxfp4 gelu": "5f4913463dec5f217fe336e8",
    "v2:3x20x256x128:20,0,7:normal:6:nan fp16 nvfp4_46 swigluoai": "589db3f9e44b9ca52c3f77f5",
    "v2:3x20x256x128:20,0,7:spread:6:gates+some_nan bf16 nvfp4_46 silu; up first; interleave 1": "f19da4d3f0367a0db8c39f92",
    "v2:8x24x128x64:24*8:normal:0": "019d66509af2410fa0feef2f",
    "v2:8x24x128x64:24*8:normal:1:logits_equal": "cdbc5f0f49685be33fd27596",
    "v2:8x24x128x64:24*8:normal:2:logits_spread": "5ec3da994e77da3d54783952",
    "v2:8x24x128x64:24*8:normal:3:topk_tiny": "8ad6ea1d1a1e932ab5effcbb",
    "v2:8x24x128x64:24*8:normal:4:output_specials": "68ca3eb110668a10876cba36",
    "v2:8x24x128x64:24*8:normal:5:whole_layer": "9faed8f604f14dff6738fe7a",
    "v2:8x24x128x64:24*8:normal:6:logits_low": "025adfd010e33991064f357d",
}
OF_TORCH = "6d783bfb54400db496963a47"


def written(text: str) -> str:
    """Return the string of a problem for a test's name: short."""
    return text.replace(ALL_TRAPS, "ALL")


def numbers_of_torch() -> str:
    """Return a hash of what torch's generator draws on this machine."""
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.randn(4096, generator=draw), torch.rand(4096, generator=draw)]
    drawn += [
        torch.randn(9, generator=draw),
        torch.randperm(28, generator=draw),
        torch.randint(99, (999,), generator=draw),
    ]
    return hashlib.sha256(b"".join(bytes(each.view(torch.uint8).numpy()) for each in drawn)).hexdigest()[:24]


@pytest.mark.parametrize("text", [*TENSORS, *LAYERS], ids=written)
def test_a_problem_has_the_same_bytes_everywhere(text: str) -> None:
    """PROBLEM: of version 2, in every version of torch and on every device (tests/gpu/test_problems.py)."""
    assert digest(f"v2:{text}")[:24] == PINS[f"v2:{written(text)}"]


@pytest.mark.skipif(numbers_of_torch() != OF_TORCH, reason="torch's generator draws other numbers here")
@pytest.mark.parametrize("text", [*TENSORS, *LAYERS], ids=written)
def test_a_string_without_version_gives_the_numbers_that_it_always_gave(text: str) -> None:
    """PROBLEM: of version 1, where torch's generator draws what it drew when they were recorded."""
    assert digest(text)[:24] == PINS[written(text)]


@pytest.mark.parametrize("text", [TENSORS[3], TENSORS[4], TENSORS[9], *LAYERS], ids=written)
def test_nothing_is_drawn_by_torch(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PROBLEM: torch's numbers depend on the device and on the version."""

    def drawn(*_: object, **__: object) -> None:
        raise AssertionError("torch's generator is asked")

    for name in ("Generator", "rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"):
        monkeypatch.setattr(torch, name, drawn)
    for name in ("random_", "normal_", "uniform_", "bernoulli_", "exponential_"):
        monkeypatch.setattr(torch.Tensor, name, drawn)
    make_weights.cache_clear()
    digest(f"v2:{text}")
    with pytest.raises(AssertionError, match="generator is asked"):
        digest(text)


def test_how_much_is_made_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """PROBLEM: a GPU makes more words at a time than a CPU."""
    texts = ("v2:" + TENSORS[6], "v2:" + TENSORS[8], "v2:" + TENSORS[9])
    assert counter.WORDS["cpu"] < 2 * 300 * 1024 // 4, "the large problem takes several parts"
    for words in (1 << 10, 1 << 20):
        monkeypatch.setitem(counter.WORDS, "cpu", words)
        monkeypatch.setitem(direct_weights._AT_ONCE, "cpu", 5 * words)
        counter.counters.cache_clear()
        make_weights.cache_clear()
        assert [digest(text)[:24] for text in texts] == [PINS[text] for text in texts]
    monkeypatch.undo()
    counter.counters.cache_clear()
