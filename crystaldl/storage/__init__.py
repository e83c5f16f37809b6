"""Files as all wings write and read them: written whole or not at all, read within bounds, objects as EMD 1.0."""
