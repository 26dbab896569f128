"""A failing problem as a plain script with its tensors. Start with calls.py; plain.py is what the script holds."""
