"""Low indices from which the lattice search makes trial cells: tables computed once at import."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations_with_replacement, permutations, product

import numpy as np


def _pairs(forms) -> np.ndarray:
    """Two indexed lines as (h² + …, l², h² + …, l²), simple indices first."""
    found = [(*u, *v) for u, v in product(forms, forms) if u[0] * v[1] != u[1] * v[0]]
    return np.array(sorted(found, key=sum), dtype=np.float64)


def _codes(matrices: np.ndarray, renamed: list[np.ndarray]) -> np.ndarray:
    """Inverses (n, 9) of those index matrices (m, 3, 3) that have one, simple ones first, each cell once.

    ``renamed``: the same matrices under the other names of their axes, (m, 3, 3) each. Entries are small integers.
    """
    regular = np.abs(np.linalg.det(matrices)) > 1e-6
    # a name is a word of nine letters, a byte each
    letters = np.stack([other[regular].reshape(-1, 9) for other in renamed]) + 64
    words = np.sort(letters.astype(np.uint8).view("S9")[..., 0], axis=0)[0]
    first = np.sort(np.unique(words, return_index=True)[1])
    distinct = matrices[regular][first]
    order = np.argsort(np.abs(distinct).sum((1, 2)), kind="stable")
    return np.linalg.inv(distinct[order]).reshape(-1, 9)


def _orthorhombic_codes(forms) -> np.ndarray:
    """Inverse index matrices giving (A, B, C) from three lines, one for each way to name the axes, simple ones first.

    ``forms`` are (h², k², l²), each standing for all its permutations.
    """
    forms = sorted({p for f in forms for p in permutations(f)})
    matrices = np.array(list(product(forms, repeat=3)), float)
    return _codes(matrices, [matrices[:, :, list(p)] for p in permutations(range(3))])


@lru_cache(maxsize=1)
def wide_codes() -> np.ndarray:
    """As `CODES_O`, of all indices up to 3 but with at most one 3 in a line: half a second, when first asked for."""
    low = combinations_with_replacement(range(4), 3)
    return _orthorhombic_codes([(a * a, b * b, c * c) for a, b, c in low if a + b + c > 0 and (a, b, c).count(3) < 2])


def _monoclinic_zones() -> np.ndarray:
    """Inverse matrices giving (A, C, D) from three lines h0l."""
    forms = [(1, 0), (0, 1), (1, 1), (1, -1), (2, 0), (0, 2)]
    matrices = np.array([[(h * h, l * l, h * l) for h, l in triple] for triple in permutations(forms, 3)], float)
    swapped = matrices[:, :, [1, 0, 2]]
    # exchanging a and c, or reversing one of them, names the same cell
    return _codes(matrices, [matrices, swapped, matrices * [1, 1, -1], swapped * [1, 1, -1]])


PAIRS_T = _pairs(
    [(1, 0), (0, 1), (1, 1), (2, 0), (2, 1), (1, 4), (2, 4), (0, 4), (4, 0), (5, 0), (5, 1), (4, 1), (2, 9), (1, 9)]
)
PAIRS_H = _pairs(
    [
        (1, 0),
        (0, 1),
        (1, 1),
        (3, 0),
        (3, 1),
        (1, 4),
        (0, 4),
        (4, 0),
        (3, 4),
        (4, 1),
        (1, 9),
        (0, 9),
        (1, 16),
        (3, 9),
        (0, 36),
    ]
)
CODES_O = _orthorhombic_codes([(1, 0, 0), (1, 1, 0), (1, 1, 1), (4, 0, 0), (4, 1, 0), (4, 1, 1)])
#: all-even or all-odd indices: what F cells show, with or without d glides
CODES_F = _orthorhombic_codes([(1, 1, 1), (4, 4, 0), (9, 1, 1), (4, 0, 0), (16, 0, 0)])
ZONES_M = _monoclinic_zones()
#: lines that fix B once the zone is known; in a C cell h + k is even
THIRDS_P = np.array([(0, 1, 0), (0, 2, 0), (1, 1, 0), (0, 1, 1), (1, 1, 1), (-1, 1, 1), (1, 2, 0), (0, 2, 1), (0, 1, 2), (2, 1, 0),
                     (1, 1, 2), (-1, 1, 2), (1, 2, 1), (-1, 2, 1)], float)  # fmt: skip
THIRDS_C = np.array([(0, 2, 0), (1, 1, 0), (1, 1, 1), (-1, 1, 1), (0, 2, 1), (1, 1, 2), (-1, 1, 2), (2, 2, 0), (1, 3, 0), (1, 3, 1),
                     (-1, 3, 1), (0, 2, 2), (3, 1, 0), (-3, 1, 1), (2, 2, 1), (-2, 2, 1)], float)  # fmt: skip
#: two lines of a rectangular zone as (h², k²), one for each way to name the axes; with and without centring
RECTANGLES = _pairs([(1, 0), (0, 1), (1, 1), (4, 0), (0, 4), (1, 4), (4, 1), (1, 9), (9, 1), (4, 4), (16, 0), (0, 16)])
#: h and k that lines hk1 of a monoclinic cell may have, primitive and C centred
STACKS_P = np.array([(h, k) for h in range(-2, 3) for k in range(4)], float)
STACKS_C = np.array([(h, k) for h in range(-3, 4) for k in range(6) if (h + k) % 2 == 0], float)
