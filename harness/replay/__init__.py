"""What `python -m harness.capture` recorded, read and judged: `harness replay`."""
