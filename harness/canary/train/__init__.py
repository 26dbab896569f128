"""Training a canary on one GPU: `python -m harness.canary.train --help`. README.md in the folder above says how and why."""
