"""What absent lines say: the likelihood of each extinction group on an indexed cell.

Every predicted line that stands alone is either seen or not. An extinction group that allows it expects it to be seen with
the frequency at which this pattern shows lines of its kind; one that forbids it expects nothing but a chance coincidence.
The logarithms add up over lines (compare Markvardsen et al., Acta Cryst. A57, 47, 2001, who use extracted intensities).
Axes of orthorhombic cells and cell choices of monoclinic ones are tried in turn.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations

import numpy as np

from ..physics.symmetry import BRAVAIS_LATTICES, bravais_of_group, extinction_members, extinction_of_group, space_group
from .prepare import REFERENCE_WAVELENGTH

_LIMIT = 14  # largest |index| in the tables of extinctions
MAX_PREDICTED = 90
#: transposed index transformations that rename the axes of a cell
_AXES = {
    "o": [np.eye(3, dtype=int)[list(p)] for p in permutations(range(3))],
    "m": [
        np.array(t)
        for t in (
            [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
            [[0, 0, 1], [0, -1, 0], [1, 0, 0]],
            [[1, 0, 1], [0, 1, 0], [0, 0, 1]],
            [[1, 0, 0], [0, 1, 0], [1, 0, 1]],
            [[1, 0, -1], [0, 1, 0], [0, 0, 1]],
            [[1, 0, 0], [0, 1, 0], [-1, 0, 1]],
            [[0, 0, 1], [0, -1, 0], [1, 0, 1]],
            [[0, 0, 1], [0, -1, 0], [1, 0, -1]],
        )
    ],
}


@lru_cache(maxsize=1)
def groups_of_lattice() -> dict[str, np.ndarray]:
    """Indices of the extinction groups of every Bravais lattice."""
    bravais, extinction = bravais_of_group(), extinction_of_group()
    return {name: np.unique(extinction[bravais == i]) for i, name in enumerate(BRAVAIS_LATTICES)}


@lru_cache(maxsize=128)
def _absent(extinction: int) -> np.ndarray:
    """Whether a reflection is extinct in the standard setting: bool, indexed [h + LIMIT, k + LIMIT, l + LIMIT]."""
    axis = np.arange(-_LIMIT, _LIMIT + 1)
    hkl = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3).astype(np.int32)
    group = space_group(extinction_members()[extinction][0])
    flags = np.asarray(group.operations().systematic_absences(hkl), dtype=bool)
    return flags.reshape((2 * _LIMIT + 1,) * 3)


def predicted_reflections(cell, lattice: str, q2_max: float):
    """Distinct reflections of a cell (A, B, C, D) up to ``1/d² = q2_max``: hkl (n, 3) and 1/d² (n,), ascending."""
    a, b, c, d = cell
    reach = [
        min(_LIMIT // 2, int(np.sqrt(q2_max / max(v, 1e-5)) * (1.3 if lattice[0] == "m" else 1.0)) + 1)
        for v in (a, b, c)
    ]
    if lattice[0] == "h":
        reach[0] = reach[1] = min(_LIMIT // 2, int(np.sqrt(q2_max / a) * 1.16) + 1)
    h, k, l = np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij")
    hkl = np.stack([h, k, l], -1).reshape(-1, 3)
    hkl = hkl[(hkl[:, 0] > 0) | ((hkl[:, 0] == 0) & ((hkl[:, 1] > 0) | ((hkl[:, 1] == 0) & (hkl[:, 2] > 0))))]
    h, k, l = hkl.T
    q2 = (h * h + h * k + k * k) * a + l * l * c if lattice[0] == "h" else h * h * a + k * k * b + l * l * c + h * l * d
    centring = {
        "I": (h + k + l) % 2 == 0,
        "F": ((h + k) % 2 == 0) & ((k + l) % 2 == 0),
        "C": (h + k) % 2 == 0,
        "R": (-h + k + l) % 3 == 0,
    }.get(lattice[1], np.ones(len(h), bool))
    keep = centring & (q2 <= q2_max) & (q2 > 1e-5)
    order = np.argsort(q2[keep], kind="stable")
    return hkl[keep][order], q2[keep][order]


def extinction_evidence(
    lattice: str, cell, zero: float, peaks: np.ndarray, limits, tolerance: float = 0.06
) -> dict[int, float]:
    """Log-likelihood of every extinction group of a Bravais lattice, relative to the mean over them.

    Parameters
    ----------
    lattice : str, one of BRAVAIS_LATTICES
    cell : (4,) A, B, C, D as in `LatticeScores`
    zero : float, zero shift in degrees
    peaks : (n, 3) ln(1/d), ln relative height, ln significance
    limits : (2,) ln(1/d) of the measured range
    tolerance : float, how close in 2θ (degrees, Cu) a line must be to count as seen

    Returns
    -------
    dict: index of the extinction group → log-likelihood
    """
    groups = groups_of_lattice()[lattice]
    if len(groups) == 1:
        return {int(groups[0]): 0.0}
    q2_max = float(np.exp(2 * limits[1]))
    hkl, q2 = predicted_reflections(cell, lattice, q2_max)
    inside = q2 >= np.exp(2 * limits[0])
    hkl, q2 = hkl[inside], q2[inside]
    if len(q2) == 0:
        return {int(g): 0.0 for g in groups}
    # lines: reflections at one position (pseudo-overlap included)
    tt = np.degrees(2 * np.arcsin(np.clip(np.sqrt(q2) * REFERENCE_WAVELENGTH / 2, 0, 1)))
    line = np.concatenate([[0], np.cumsum(np.diff(tt) > 0.012)])
    count = min(line[-1] + 1, MAX_PREDICTED)
    hkl, tt, line = hkl[line < count], tt[line < count], line[line < count]
    position = np.bincount(line, tt, count) / np.bincount(line, minlength=count)
    observed = np.degrees(2 * np.arcsin(np.clip(np.exp(peaks[:, 0]) * REFERENCE_WAVELENGTH / 2, 0, 1))) - zero
    distance = np.abs(observed[None] - position[:, None])
    nearest = distance.min(1)
    seen = nearest < tolerance
    # how likely a peak lies within the tolerance by chance: other lines' peaks nearby
    neighbours = np.abs(position[:, None] - position[None])
    np.fill_diagonal(neighbours, 9.0)
    alone = neighbours.min(1) > 2.0 * tolerance
    strength = np.exp(peaks[np.argmin(distance, 1), 2])
    sure = np.clip((strength / 6.0) ** 2, 0.2, 1.0)  # a faint peak is weak evidence for a line
    return _evidence(groups, lattice, hkl, line, count, seen, alone, sure, position)


def _evidence(groups, lattice, hkl, line, count, seen, alone, sure, position):
    kinds = _AXES.get(lattice[0], [np.eye(3, dtype=int)])
    # visibility falls with angle: estimated from the lines themselves, general ones dominate
    third = np.minimum(np.arange(count) * 3 // max(count, 1), 2)
    visible = np.array([(seen[third == t].sum() + 1.0) / ((third == t).sum() + 2.0) for t in range(3)])[third]
    visible = np.clip(1.25 * visible, 0.08, 0.92)
    chance = np.clip(0.03 + 0.10 * (~alone), 0.02, 0.5)
    out = {}
    for g in groups:
        absent_table = _absent(int(g))
        best = -np.inf
        for axes in kinds:
            t = hkl @ axes.T
            inside = np.abs(t).max(1) <= _LIMIT
            absent = absent_table[tuple((np.clip(t, -_LIMIT, _LIMIT) + _LIMIT).T)] & inside
            allowed = np.bincount(line, ~absent, count) > 0
            log_seen = np.where(allowed, np.log(visible), np.log(chance))
            log_missing = np.where(allowed, np.log1p(-visible), np.log1p(-chance))
            weight = np.where(seen, sure, 1.0) * np.where(alone, 1.0, 0.35)
            best = max(best, float((weight * np.where(seen, log_seen, log_missing)).sum()))
        out[int(g)] = best
    mean = np.mean(list(out.values()))
    return {g: v - mean for g, v in out.items()}
