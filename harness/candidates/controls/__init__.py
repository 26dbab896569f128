"""Candidates that are right in unusual ways, which every rule must pass. Start with catalog.py."""
