"""Simulated diffraction patterns with known truth: specimens, Bloch waves, multislice, detector faults."""
