"""One run: from a request to verdicts. Start with check.py; rule by rule in runner.py, in the child in judge.py."""
