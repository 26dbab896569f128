"""What was seen, what is right there, and the units it is judged in. Start with observation.py, then case.py."""
