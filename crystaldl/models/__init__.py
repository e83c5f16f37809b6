"""Trained networks that ship with the package: cards, weights and the registry that loads them by exact name."""
