"""The engine of tests/capture, captured."""

from tests.capture.conftest import captured_fixture, engine_fixture  # noqa: F401 - fixtures
