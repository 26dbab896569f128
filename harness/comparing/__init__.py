"""Two records, or many, against each other: what changed, and what is a regression. Start with runs.py."""
