"""Lattices whose metric is exactly that of a larger one of higher symmetry.

Of a cubic crystal with many weak lines a tetragonal sublattice may explain all that is seen, with fewer lines that are not.
But nothing makes its c/a exactly √2 or ½: that it is so speaks for the cubic lattice.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from ...physics.lattice import cell_from_metric, cell_volume, metric_tensor
from .autoindex_kernels import FREE
from .bravais import BRAVAIS, alike, derivative_index, hermite_forms, lattice_lengths, lattices_of, niggli_cell

__all__ = ["COINCIDENCE", "exact_multiples", "has_special_metric", "owes", "prices"]

#: relative agreement of lengths, and log-likelihood of a free parameter that could be anything and yet is what the multiple of
#: higher symmetry makes it
EXACT, COINCIDENCE = 1e-3, 4.0
#: multiples of a lattice whose symmetry is looked at
MULTIPLES = (2, 3)


def exact_multiples(bravais, cells) -> list[tuple[int, int, int]]:
    """Pairs of lattices of which the second is a multiple of the first, of higher symmetry and of exactly its metric.

    Parameters
    ----------
    bravais : sequence of n str
    cells : sequence of n Niggli cells (6,)

    Returns
    -------
    list of (number of the smaller lattice, that of the larger, free parameters that the larger has less)
    """
    volumes = [cell_volume(cell) for cell in cells]
    own = [int(FREE[BRAVAIS[b][0]]) for b in bravais]
    # a lattice that is there in higher symmetry owes nothing more by being there in a lower one, too
    lengths = lattice_lengths(np.reshape(cells, (-1, 6)))
    free = [min(n for n, same in zip(own, alike(mine, lengths), strict=True) if same) for mine in lengths]
    found = []
    for i, j in permutations(range(len(cells)), 2):
        more = free[i] - own[j]
        if more > 0 and volumes[j] > 1.5 * volumes[i] and derivative_index(cells[j], cells[i], EXACT):
            found.append((i, j, more))
    return found


def owes(small, large) -> bool:
    """Whether a lattice has its metric from the symmetry of a larger one; both with ``bravais`` and Niggli cell ``niggli``."""
    return bool(exact_multiples([small.bravais, large.bravais], [small.niggli, large.niggli]))


def prices(pairs, count: int) -> np.ndarray:
    """Log-likelihood (n,) that each of ``count`` lattices owes to what `exact_multiples` found."""
    out = np.zeros(count)
    for i, _, more in pairs:
        out[i] = max(out[i], COINCIDENCE * more)
    return out


def has_special_metric(lattice) -> bool:
    """Whether a multiple of a lattice is, exactly, of a higher symmetry: then that or a relative may be the true one.

    An orthorhombic cell with b/a = √3, say, may stand for a hexagonal or rhombohedral lattice some of whose lines are not seen.
    """
    metric, own = metric_tensor(lattice.niggli), int(FREE[BRAVAIS[lattice.bravais][0]])
    for form in (form for n in MULTIPLES for form in hermite_forms(n)):
        larger = niggli_cell(cell_from_metric(form @ metric @ form.T))
        if any(FREE[BRAVAIS[name][0]] < own for name, _ in lattices_of(larger, (EXACT, EXACT / 2))):
            return True
    return False
