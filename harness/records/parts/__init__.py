"""The parts of a record beside the rules."""
