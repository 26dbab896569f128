"""How an explanation is said: the best one first, in words and as JSON. Start with describe.py, then rank.py."""
