"""Refinement of short-range order: Warren-Cowley parameters, pair energies, several sites."""
