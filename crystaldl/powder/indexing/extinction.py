"""What absent lines say: the likelihood of each extinction group on an indexed cell.

Every predicted line is either seen or not. An extinction group that allows it expects it to be seen with some frequency,
unknown beforehand and integrated out (a beta-binomial marginal likelihood in each third of the pattern); one that forbids
it expects nothing but a chance coincidence (compare Markvardsen et al., Acta Cryst. A57, 47, 2001, who use extracted
intensities). The likelihood is averaged over the axes of orthorhombic cells and the cell choices of monoclinic ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
from scipy.special import betaln

from ...physics.symmetry import BRAVAIS_LATTICES, bravais_of_group, extinction_members, extinction_of_group, space_group
from ..prepare import REFERENCE_WAVELENGTH

LIMIT = 14  # largest |index| in the tables of extinctions
FARTHEST = 40  # largest |index| of a reflection
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


@lru_cache(maxsize=1)
def reflection_grid() -> np.ndarray:
    """All hkl from -LIMIT to LIMIT, (n, 3) int32, l fastest; not to be written to."""
    axis = np.arange(-LIMIT, LIMIT + 1)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3).astype(np.int32)
    grid.flags.writeable = False
    return grid


@lru_cache(maxsize=128)
def absent_table(extinction: int) -> np.ndarray:
    """Whether a reflection is extinct in the standard setting: bool, indexed [h + LIMIT, k + LIMIT, l + LIMIT]."""
    group = space_group(extinction_members()[extinction][0])
    flags = np.asarray(group.operations().systematic_absences(reflection_grid()), dtype=bool)
    return flags.reshape((2 * LIMIT + 1,) * 3)


def table_index(hkl: np.ndarray) -> tuple[np.ndarray, ...]:
    """Where the reflections (n, 3) stand in tables like `absent_table`: three arrays (n,).

    Absences repeat every 12 indices; larger ones are brought back by multiples of that, never to or across zero.
    """
    size = np.abs(hkl)
    turns = np.maximum(-((LIMIT - size) // 12), 0)
    return tuple((hkl - 12 * turns * np.sign(hkl) + LIMIT).T)


def centred(hkl: np.ndarray, lattice: str) -> np.ndarray:
    """Which reflections (n, 3) the centring of a Bravais lattice lets be seen, (n,) bool; hR obverse."""
    h, k, l = hkl.T
    match lattice[1]:
        case "I":
            return (h + k + l) % 2 == 0
        case "F":
            return ((h + k) % 2 == 0) & ((k + l) % 2 == 0)
        case "C":
            return (h + k) % 2 == 0
        case "R":
            return (-h + k + l) % 3 == 0
    return np.ones(len(h), bool)


def predicted_reflections(metric, lattice: str, q2_max: float):
    """Distinct reflections of a lattice up to ``1/d² = q2_max``: hkl (n, 3) and 1/d² (n,), ascending.

    ``metric`` (6,): coefficients of h², k², l², kl, hl, hk in 1/d² (Å⁻²) of the conventional cell.
    """
    a, b, c, d, e, f = metric
    direct = np.linalg.inv([[a, f / 2, e / 2], [f / 2, b, d / 2], [e / 2, d / 2, c]])
    # |h| = |r*·a| ≤ |r*| |a|
    reach = [min(FARTHEST, int(np.sqrt(q2_max * max(v, 1.0)))) for v in np.diag(direct)]
    h, k, l = np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij")
    hkl = np.stack([h, k, l], -1).reshape(-1, 3)
    hkl = hkl[(hkl[:, 0] > 0) | ((hkl[:, 0] == 0) & ((hkl[:, 1] > 0) | ((hkl[:, 1] == 0) & (hkl[:, 2] > 0))))]
    h, k, l = hkl.T
    q2 = h * h * a + k * k * b + l * l * c + k * l * d + h * l * e + h * k * f
    keep = centred(hkl, lattice) & (q2 <= q2_max) & (q2 > 1e-5)
    order = np.argsort(q2[keep], kind="stable")
    return hkl[keep][order], q2[keep][order]


def extinction_evidence(
    lattice: str, metric, zero: float, peaks: np.ndarray, limits, tolerance: float = 0.06
) -> dict[int, float]:
    """Log-likelihood of every extinction group of a Bravais lattice, relative to the mean over them.

    Parameters
    ----------
    lattice : str, one of BRAVAIS_LATTICES
    metric : (6,) coefficients of h², k², l², kl, hl, hk in 1/d²
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
    hkl, q2 = predicted_reflections(metric, lattice, q2_max)
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
    lines = _observations(position, observed, peaks, tolerance)
    return _evidence(groups, lattice, hkl, line, lines)


@dataclass(frozen=True)
class _Lines:
    """Predicted lines against observed ones, (n,) each."""

    seen: np.ndarray  # bool
    weight: np.ndarray  # how much the line says: overlapped lines and faint peaks say less
    chance: np.ndarray  # probability that some peak lies within the tolerance anyway
    third: np.ndarray  # 0, 1, 2: low, middle, high angle


def _observations(position, observed, peaks, tolerance) -> _Lines:
    distance = np.abs(observed[None] - position[:, None])
    seen = distance.min(1) < tolerance
    neighbours = np.abs(position[:, None] - position[None])
    np.fill_diagonal(neighbours, 9.0)
    alone = neighbours.min(1) > 2.0 * tolerance
    strength = np.exp(peaks[np.argmin(distance, 1), 2])
    weight = np.where(alone, 1.0, 0.35) * np.where(seen, np.clip((strength / 6.0) ** 2, 0.2, 1.0), 1.0)
    # peaks within ±4° of the line, spread at random
    local = (np.abs(observed[None] - position[:, None]) < 4.0).sum(1) / 8.0
    chance = np.clip(1.0 - np.exp(-2.0 * tolerance * local) + 0.1 * ~alone, 0.02, 0.6)
    third = np.minimum(np.arange(len(position)) * 3 // max(len(position), 1), 2)
    return _Lines(seen, weight, chance, third)


def _evidence(groups, lattice, hkl, line, lines: _Lines) -> dict[int, float]:
    """Marginal likelihood of every group: visibility of its allowed lines unknown (uniform) in each third of the pattern."""
    count = len(lines.seen)
    kinds = _AXES.get(lattice[0], [np.eye(3, dtype=int)])
    # a line of few equivalents is easily missed: its absence says less
    general = {"a": 1, "m": 2, "o": 4, "t": 8, "h": 12, "c": 24}[lattice[0]]
    share = np.sqrt(np.minimum(np.bincount(line, minlength=count) / general, 1.0))
    hits, misses = lines.weight * lines.seen, lines.weight * ~lines.seen * share
    forbidden = lines.weight * np.where(lines.seen, np.log(lines.chance), np.log1p(-lines.chance))
    indices = [table_index(hkl @ axes.T) for axes in kinds]
    out = {}
    for g in groups:
        table = absent_table(int(g))
        values = []
        for t in indices:
            allowed = np.bincount(line, ~table[t], count) > 0
            s = np.bincount(lines.third, hits * allowed, 3)
            n = np.bincount(lines.third, misses * allowed, 3)
            values.append(float(betaln(s + 1.0, n + 1.0).sum() + forbidden[~allowed].sum()))
        # settings are equally likely beforehand: the mean over them, not the best
        out[int(g)] = float(np.logaddexp.reduce(values) - np.log(len(values)))
    mean = np.mean(list(out.values()))
    return {g: v - mean for g, v in out.items()}
