"""What a run found out, kept as one JSON file. Start with record.py. Standard library only."""
