"""Put first on PYTHONPATH by `python -m harness.capture`: its sitecustomize puts the taps in place."""
