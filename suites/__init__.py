"""The suites: thin pytest wrappers over harness.rules, to be run with `pytest suites --moe-candidate NAME`."""
