"""What a candidate is given: problems as short strings, drawn and filled with numbers. Start with problem.py, then tensors.py."""
