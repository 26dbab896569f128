"""The engine of tests/capture, captured."""

from tests.capture.conftest import captured_fixture  # noqa: F401 - a fixture
