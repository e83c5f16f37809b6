"""Which lattices explain the lines: a likelihood search over cells of all systems but triclinic.

For a trial cell every observed line is compared with the nearest predicted one. Its log-likelihood ratio against chance,

    ``ln( ε + (1 - ε) N(Q_obs - Q_calc; σ_Q) / ρ(Q) )``,    ``Q = 1/d²``,

is large for a close hit among few predicted lines, small for a hit that a dense cell cannot miss, and ``ln ε`` for a line
that the cell cannot explain. ``ρ = 2π V √Q / (m c)`` is the density of predicted lines, with the cell volume V, the
multiplicity m of the Laue class and the centring factor c: large cells, low symmetry and free parameters pay. Trial cells
come from assigning low indices to two, three or four low-angle lines. Compare the figures of merit of de Wolff (1968) and
Smith & Snyder (1979), which weight all lines alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..prepare import REFERENCE_WAVELENGTH
from . import search_kernels as kernels
from . import trial_indices as indices
from .search_kernels import CANDIDATES, LATTICES, MARGIN
from .zone_kernels import find_rectangles, find_zones

#: widths beyond this many usual ones speak of a blend
BROADER = 1.3


@dataclass(frozen=True)
class LatticeScores:
    """Best log-likelihood ratio of each Bravais lattice but triclinic, and its cell.

    Attributes
    ----------
    score : (13,) float, in the order of LATTICES; a lattice more than MARGIN below the best has the best less MARGIN
    cell : (13, 4) float, (A, B, C, D) in Å⁻² with ``1/d² = h²A + k²B + l²C + hlD``; on hexagonal axes
        ``(h² + hk + k²)A + l²C``
    zero : (13,) float, zero shift in degrees (observed minus true 2θ for Cu)
    lines : int, lines compared
    weight : float, their summed weight
    candidates : tuple of (row in LATTICES, cell (4,), zero, score), distinct cells of all lattices, best first
    """

    score: np.ndarray
    cell: np.ndarray
    zero: np.ndarray
    lines: int
    weight: float
    candidates: tuple = ()


def reliability(ln_q, ln_height, ln_significance) -> np.ndarray:
    """Probability-like weight that a peak is a line of its own: sure against noise, not the foot of a strong line."""
    real = 1.0 / (1.0 + np.exp(-5.0 * (ln_significance - np.log(4.5))))
    near = np.abs(ln_q[:, None] - ln_q[None]) < 0.010
    overshadowed = np.where(near, ln_height[None] - ln_height[:, None], -np.inf).max(1) > np.log(15.0)
    return np.where(overshadowed, 0.15, 1.0) * real


def excess_width(ln_height, ln_width) -> np.ndarray:
    """By how much lines are broader than those of their pattern usually are, in points: what unresolved neighbours add."""
    order = np.argsort(ln_width)
    weight = np.cumsum(np.exp(0.5 * ln_height[order]))
    usual = np.exp(ln_width[order][np.searchsorted(weight, 0.5 * weight[-1])])
    return np.sqrt(np.maximum(np.exp(2.0 * ln_width) - (BROADER * usual) ** 2, 0.0))


def lattice_scores(
    peaks: np.ndarray,
    *,
    sigma_two_theta: float = 0.045,
    lines: int = 24,
    base: int = 8,
    base_zone: int = 11,
    zone_count: int = 50,
    rectangle_count: int = 16,
) -> LatticeScores:
    """Score every Bravais lattice but triclinic on a peak list.

    Parameters
    ----------
    peaks : (n, ≥3) array
        ln(1/d in Å⁻¹), ln of the height relative to the strongest, ln of height over noise, as
        `crystaldl.powder.line_scales.search_lines` gives them.
    sigma_two_theta : float
        Uncertainty of positions in degrees for Cu Kα1, zero shift included.
    lines, base, base_zone : int
        Lines compared, low-angle lines from which trial cells are made, and those from which monoclinic ones are.
    zone_count, rectangle_count : int
        Zones h0l and hk0 that are completed to monoclinic cells.
    """
    ln_q, ln_height, ln_significance = (np.asarray(peaks, float)[:, k] for k in range(3))
    nothing = np.zeros(len(LATTICES)), np.zeros((len(LATTICES), 4))
    if len(ln_q) < 3:
        return LatticeScores(*nothing, np.zeros(len(LATTICES)), len(ln_q), 0.0)
    real = reliability(ln_q, ln_height, ln_significance)
    # strong, sure lines at low angles decide
    keep = np.argsort(-(ln_height + 2.0 * np.log(np.clip(real, 1e-6, 1)) - 1.2 * (ln_q - ln_q.min())))[:lines]
    q = np.exp(2.0 * ln_q[keep])
    weight = real[keep] * np.clip(1.0 + 0.25 * ln_height[keep], 0.3, 1.0)
    two_theta = 2 * np.arcsin(np.clip(np.sqrt(q) * REFERENCE_WAVELENGTH / 2, 0, 0.999))
    sigma = np.radians(sigma_two_theta) * 2.0 * np.sin(two_theta) / REFERENCE_WAVELENGTH**2
    perfect = weight * np.log(1.0 / (kernels.SQRT_TWO_PI * sigma * np.sqrt(q)))
    order = np.argsort(-weight)
    table = np.ascontiguousarray(np.stack([q, sigma, weight, perfect], 1)[order])
    low_lines, low_many = np.sort(q)[:base], np.sort(q)[:base_zone]
    best, cells = np.full((len(LATTICES), CANDIDATES), -1e3), np.zeros((len(LATTICES), CANDIDATES, 4))
    top = kernels.search_cubic(table, low_lines, best, cells, -1e3)
    top = kernels.search_uniaxial(table, low_lines, indices.PAIRS_T, 3, 5, best, cells, top)
    top = kernels.search_uniaxial(table, low_lines, indices.PAIRS_H, 5, 7, best, cells, top)
    top = kernels.search_orthorhombic(table, low_lines, indices.CODES_O, 7, 11, best, cells, top)
    top = kernels.search_orthorhombic(table, low_lines, indices.CODES_F, 10, 11, best, cells, top)
    zones = find_zones(table, low_many, indices.ZONES_M, zone_count)
    for row, thirds in ((11, indices.THIRDS_P), (12, indices.THIRDS_C)):
        top = kernels.search_monoclinic(table, low_many, zones, thirds, row, best, cells, top)
    for row, forms in ((11, indices.STACKS_P), (12, indices.STACKS_C)):
        rectangles = find_rectangles(table, low_many, indices.RECTANGLES, row == 12, rectangle_count)
        top = kernels.search_stacks(table, low_many, rectangles, forms, row, best, cells, top)
    slope = np.radians(1.0) * 2.0 * np.sin(two_theta[order]) / REFERENCE_WAVELENGTH**2
    scores, cells, zeros = kernels.polish(table, slope, best, cells, 0.5)
    pick = scores.argmax(1)
    rows = np.arange(len(LATTICES))
    best = scores[rows, pick]
    return LatticeScores(
        np.maximum(best, best.max() - MARGIN), cells[rows, pick], zeros[rows, pick], len(keep), float(weight.sum()),
        _distinct(scores, cells, zeros),
    )  # fmt: skip


def _distinct(scores, cells, zeros) -> tuple:
    """Candidates of all lattices within MARGIN of the best, best first, near copies left out."""
    found = []
    for at in np.argsort(-scores, axis=None, kind="stable"):
        row, k = divmod(int(at), scores.shape[1])
        if scores[row, k] <= scores.max() - MARGIN or cells[row, k, 0] <= 0:
            break
        if not any(r == row and np.abs(c - cells[row, k]).max() < 0.003 * c.max() for r, c, _, _ in found):
            found.append((row, cells[row, k], float(zeros[row, k]), float(scores[row, k])))
    return tuple(found)


__all__ = ["LATTICES", "MARGIN", "LatticeScores", "lattice_scores", "reliability"]
