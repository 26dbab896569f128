"""The misbehaving candidates, as the tests of running have them."""

from tests.running.conftest import faulty

__all__ = ["faulty"]
