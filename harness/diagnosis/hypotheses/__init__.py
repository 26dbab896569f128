"""What may explain a case: the catalog's faults planted in a right model. Start with search.py, then hypothesis.py."""
