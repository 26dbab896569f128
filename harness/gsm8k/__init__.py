"""The end-to-end gate on a served model; see README.md in this folder. Imports nothing."""
