"""Damaged files and hostile calls: what `tests/test_robustness_*.py` runs in part and ``tests/fuzz/run.py`` in full."""
