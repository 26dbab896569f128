"""Two servers compared by the probabilities that they give to the same tokens; read compare.py first."""
