"""Definitions of the formats and of the masked MoE, in plain torch: oracles, bounds, legal-code sets.

Imports torch and the standard library only. Knows no kernel and no candidate.
"""
