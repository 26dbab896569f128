"""What a candidate computes, found through its own stages before it is judged. Start with measure.py."""
