"""The likelihood of a lattice's lines when only those an extinction group allows are expected.

A screw axis or glide plane removes lines of low angle above all, where few are predicted anyway: garnets (Ia-3d) show about
half of the lines of their lattice. A lattice is therefore scored by the lines it would show in each extinction group,

    ``ln( ε + (1 - ε) N(Q_obs - Q_calc; σ_Q) / ρ(Q) )``,

as in `judgement`, with the nearest *allowed* line for Q_calc and for ρ the number of allowed lines an Å⁻² counted around
Q_obs, and these likelihoods are summed, weighted by how common the groups are. What is gained by few predicted lines is so
weighed against the freedom of choosing a group, and which lines are absent takes part in the choice of a lattice. Lines are
counted by symmetry, not by position: a cell that only looks tetragonal has the lines of an orthorhombic one.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...physics.symmetry import operations
from ..frequencies import extinction_shares
from .absences import settings
from .autoindex_kernels import FREE, SQRT_TWO_PI
from .bravais import BRAVAIS, HIGHEST_GROUP
from .extinction import groups_of_lattice, predicted_reflections, table_index
from .pools import FLOORS, PRICE, TAIL, IndexOptions, LineTable

__all__ = ["allowed_score"]

#: lines are counted within this share of Q on both sides
NEIGHBOURHOOD = 0.5
#: distance in σ beyond which a line is not explained
REACH = 9.0


@lru_cache(maxsize=16)
def _choices(lattice: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Extinction groups of a lattice in all settings: tables of absences (s, 29, 29, 29), group (s,), ln prior (s,)."""
    groups = groups_of_lattice()[lattice]
    share = extinction_shares()[groups]
    tables, own, prior = [], [], []
    for group, p in zip(groups, share / share.sum(), strict=True):
        ways = settings(int(group), lattice)
        tables += ways
        own += [int(group)] * len(ways)
        prior += [np.log(p / len(ways))] * len(ways)
    return np.array(tables), np.array(own), np.array(prior)


@lru_cache(maxsize=16)
def _turns(lattice: str) -> np.ndarray:
    """The operations (g, 3, 3) of the point group of a lattice on indices."""
    return np.unique(operations(HIGHEST_GROUP[lattice]).rotations.round().astype(int), axis=0)


def multiplicity(lattice: str, hkl: np.ndarray) -> np.ndarray:
    """How many reflections (n,) the symmetry of a lattice makes of each (n, 3), Friedel's included."""
    turns = _turns(lattice)
    images = hkl.astype(np.float32) @ turns.astype(np.float32)
    fixed = (images == hkl).all(2).sum(0)
    return len(turns) // fixed


def _predicted(lattice: str, metric, q_max: float, tables) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1/d² of the reflections of a lattice, ascending (n,), whether each choice allows them (s, n), and their share in a
    line (n,)."""
    hkl, q2 = predicted_reflections(metric, lattice, q_max)
    allowed = ~tables[(slice(None), *table_index(hkl))]
    return q2, allowed, 2.0 / multiplicity(lattice, hkl)


def allowed_score(
    lattice: str, metric, zero: float, lines: LineTable, options: IndexOptions
) -> tuple[float, dict[int, float]]:
    """Log-likelihood ratio of the lines against chance, all extinction groups of a lattice weighed.

    Parameters
    ----------
    lattice, metric, zero : Bravais lattice, coefficients (6,) of h², k², l², kl, hl, hk in 1/d² (Å⁻²), zero shift (degrees)
    lines : LineTable, those of lowest angle are used, three times `options.lines`

    Returns
    -------
    score : float, less the price of the free parameters of the cell and of the zero shift
    groups : dict, index of the extinction group → log-likelihood relative to the best of this lattice
    """
    tables, own, prior = _choices(lattice)
    lines = lines.head(3 * options.lines)
    q, widest, *_ = lines.table(FLOORS[-1], zero).T
    q_max = 1.05 * q[-1]
    position, allowed, share = _predicted(lattice, metric, q_max, tables)
    if len(position) == 0:
        return -1e9, {int(g): 0.0 for g in own}
    # many settings allow the same lines in the range at hand
    allowed, which = _different(allowed)
    low, high = q * (1 - NEIGHBOURHOOD), np.minimum(q * (1 + NEIGHBOURHOOD), q_max)
    count = np.concatenate([np.zeros((len(allowed), 1)), np.cumsum(allowed * share, 1)], 1)
    number = count[:, np.searchsorted(position, high)] - count[:, np.searchsorted(position, low)]
    density = (number + 1.0) / (high - low)
    distance = _nearest_allowed(q, position, allowed, REACH * widest)
    values = None
    # how precise the lines are is not known: each cell may choose
    for floor in FLOORS:
        _, sigma, weight, _ = lines.table(floor, zero).T
        x = distance / sigma
        hit = (1 - TAIL) * np.exp(-0.5 * x * x) + TAIL / 3 * np.exp(-x * x / 18)
        hit = np.where(x < REACH, hit, 0.0) / (SQRT_TWO_PI * sigma * density)
        found = (weight * np.log(options.lost + (1 - options.lost) * hit)).sum(1)[which]
        if values is None or np.logaddexp.reduce(found + prior) > np.logaddexp.reduce(values + prior):
            values = found
    price = PRICE * FREE[BRAVAIS[lattice][0]] + 0.5 * (zero / options.prior) ** 2
    best = {int(g): float(np.logaddexp.reduce(values[own == g]) - np.log((own == g).sum())) for g in np.unique(own)}
    top = max(best.values())
    return float(np.logaddexp.reduce(values + prior) - price), {g: v - top for g, v in best.items()}


def _different(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different rows (r, n) of booleans (s, n), and which of them each row is (s,)."""
    bits = np.ascontiguousarray(np.packbits(rows, axis=1))
    _, first, which = np.unique(bits.view(f"V{bits.shape[1]}").ravel(), return_index=True, return_inverse=True)
    return rows[first], which.ravel()


def _nearest_allowed(q, position, allowed, reach) -> np.ndarray:
    """Distance of every line from the nearest that each choice allows, (s, m); infinite beyond ``reach`` (m,)."""
    out = np.full((len(allowed), len(q)), np.inf)
    first, last = np.searchsorted(position, q - reach), np.searchsorted(position, q + reach)
    for i in np.flatnonzero(last > first):
        near = slice(first[i], last[i])
        out[:, i] = np.where(allowed[:, near], np.abs(position[near] - q[i]), np.inf).min(1)
    return out
