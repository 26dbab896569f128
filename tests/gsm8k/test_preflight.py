"""Finding the server: the base URL with or without /v1, and what a listing has to look like."""

from __future__ import annotations

import pytest

from harness.gsm8k.credentials import parse_base_url


@pytest.mark.parametrize(
    ("prefix", "given"), [("/v1", ""), ("", "/v1"), ("/v1", "/v1"), ("", ""), ("/v1", "/v1/models")]
)
def test_the_api_is_found_with_v1_and_without_it(prefix, given, small, run_here):
    server = small(prefix=prefix)
    root = server.url.removesuffix("/v1")
    stage = run_here(root + given, questions=8)
    assert (stage["answered"], stage["correct_strict"]) == (8, 8)
    assert stage["server"]["url"] == root + prefix
    moved = [note for note in stage["notes"] if note.startswith(f"the API is at {root}{prefix}")]
    assert len(moved) == (given.removesuffix("/models") != prefix)


def test_a_run_goes_on_when_its_base_url_is_written_in_the_other_way(small, run_here):
    server = small()
    run_here(server.url, questions=8)
    again = run_here(server.url.removesuffix("/v1"), questions=8, resume=True)
    assert again["resumed"] == {"flag": True, "samples": 8}


def test_the_other_base_keeps_its_credentials_hidden():
    endpoint = parse_base_url("http://user:pl4nted@h:8000?api-key=longsecret")
    other = endpoint.other_base()
    assert (other.url, other.display) == ("http://h:8000/v1", "http://[hidden]@h:8000/v1?api-key=[hidden]")
    assert other.other_base() == endpoint
    assert (endpoint.host, endpoint.port, parse_base_url("https://h/v1").port) == ("h", 8000, 443)
