"""Readers of powder patterns: one module a family of formats."""
