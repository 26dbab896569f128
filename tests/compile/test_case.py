"""A case and its string."""

from __future__ import annotations

import pytest

from harness.compile.case import CompileCase, make_case, pair, parse_case
from harness.compile.matrix import matrix
from harness.verdict import UsageError


def test_every_case_of_the_matrix_is_its_string_and_back():
    for entry in matrix():
        assert parse_case(str(entry.case)) == entry.case


def test_defaults_and_their_order_make_no_second_case():
    short = make_case("masked_gemm", "sm_100a", k=512, l=1, m=2, n=8)
    long = make_case("masked_gemm", "sm_100a", l=1, m=2, n=8, k=512, tile="128x128", alpha=1)
    assert short == long
    assert str(short) == "masked_gemm@sm_100a,l=1,m=2,n=8,k=512"
    assert short.full()["out"] == "bfloat16"
    assert short.shape == str(long.shape) == "masked_gemm@*,l=1,m=2,n=8,k=512"
    assert parse_case("nvfp4_quantize@sm_103a,k=64,layout=8x4") == CompileCase(
        "nvfp4_quantize", "sm_103a", (("k", 64), ("layout", "8x4"))
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("masked_gemm", "KERNEL@ARCH"),
        ("gemm@sm_100a", "unknown kernel 'gemm'"),
        ("masked_gemm@sm_90a,l=1", "unknown architecture 'sm_90a'"),
        ("masked_gemm@sm_100a,l=1,m=2,n=8", "needs the option k"),
        ("masked_gemm@sm_100a,l=1,m=2,n=8,k=x", "k must be an integer"),
        ("masked_gemm@sm_100a,l=1,m=2,n=8,k=64,size=3", "no option 'size'"),
        ("nvfp4_quantize@sm_100a,k", "got 'k'"),
        ("nvfp4_quantize@sm_100a,k=", "got 'k='"),
        ("nvfp4_quantize@sm_100a,k=64,k=32", "got 'k=32'"),
    ],
)
def test_what_is_no_case_is_bad_usage(text, words):
    with pytest.raises(UsageError) as caught:
        parse_case(text)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["128", "128x", "x128", "-1x2", "axb"])
def test_a_tile_is_two_numbers(text):
    with pytest.raises(UsageError, match="ROWSxCOLUMNS"):
        pair(text)
    assert pair("256x128") == (256, 128)
