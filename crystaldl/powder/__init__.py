"""Powder diffraction: patterns in, crystal system, extinction group and space group out."""
