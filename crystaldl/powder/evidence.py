"""The search's side of a classification: lattice scores and extinction evidence for prepared patterns."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..physics.lattice import cell_from_metric
from . import search_kernels
from .extinction import extinction_evidence
from .indexing import LATTICES, MARGIN, lattice_scores

log = logging.getLogger(__name__)

EXTINCTION_GROUPS = 99
#: lattices whose absent lines are examined: the best few within this log-likelihood of the best
CANDIDATES, WITHIN = 3, 6.0


@dataclass(frozen=True)
class Lattice:
    """A lattice that explains the lines.

    Attributes
    ----------
    bravais : str, e.g. ``"oP"``
    cell : (6,) float, a, b, c in Å and alpha, beta, gamma in degrees (conventional; hexagonal axes for hP and hR)
    score : float, log-likelihood ratio against chance
    zero : float, zero shift in degrees: observed minus true 2θ
    """

    bravais: str
    cell: np.ndarray
    score: float
    zero: float


@dataclass(frozen=True)
class Evidence:
    """What the lattice search found for one pattern.

    Attributes
    ----------
    scores : (13,) float, in the order of LATTICES
    facts : (3,) float: best score, summed weight of the lines, number of lines
    extinction : (99,) float, log-likelihood of extinction groups, 0 where not examined
    lattices : tuple of Lattice, best first
    """

    scores: np.ndarray
    facts: np.ndarray
    extinction: np.ndarray
    lattices: tuple[Lattice, ...]


def conventional_cell(bravais: str, coefficients) -> np.ndarray:
    """(a, b, c, α, β, γ) from (A, B, C, D) of ``1/d² = h²A + k²B + l²C + hlD`` (hexagonal: ``(h² + hk + k²)A + l²C``)."""
    a, b, c, d = coefficients
    reciprocal = np.diag([a, b, c]).astype(float)
    if bravais[0] == "h":
        reciprocal[1, 1] = a
        reciprocal[0, 1] = reciprocal[1, 0] = a / 2
    reciprocal[0, 2] = reciprocal[2, 0] = d / 2
    return cell_from_metric(np.linalg.inv(reciprocal))


def pattern_evidence(peaks: np.ndarray, limits) -> Evidence:
    """Search lattices for one peak list (n, ≥3) as `crystaldl.powder.prepare.find_peaks` gives it."""
    found = lattice_scores(peaks)
    extinction = np.zeros(EXTINCTION_GROUPS)
    order = [
        j for j in np.argsort(-found.score) if found.cell[j, 0] > 0 and found.score[j] > found.score.max() - MARGIN
    ]
    # the best lattice has the last word where two share an extinction group (trigonal and hexagonal)
    for j in reversed(order[:CANDIDATES]):
        if found.score[j] >= found.score.max() - WITHIN:
            values = extinction_evidence(LATTICES[j], found.cell[j], float(found.zero[j]), peaks[:, :3], limits)
            extinction[list(values)] = list(values.values())
    lattices = tuple(
        Lattice(LATTICES[j], conventional_cell(LATTICES[j], found.cell[j]), float(found.score[j]), float(found.zero[j]))
        for j in order
    )
    return Evidence(found.score, np.array([found.score.max(), found.weight, found.lines]), extinction, lattices)


@lru_cache(maxsize=1)
def _announce_compilation() -> None:
    """Say why the very first search after an installation takes half a minute."""
    cached = Path(search_kernels.__file__).parent.glob("__pycache__/search_kernels.*.nbi")
    if "NUMBA_CACHE_DIR" not in os.environ and not any(cached):
        log.warning("compiling the lattice search, once per installation: about half a minute")


def gather_evidence(peaks, peak_mask, limits, workers: int | None = None) -> list[Evidence]:
    """Evidence for a batch of prepared patterns (tensors or arrays); the search releases the GIL and runs on all cores."""
    peaks, peak_mask, limits = (np.asarray(t.cpu() if hasattr(t, "cpu") else t) for t in (peaks, peak_mask, limits))
    _announce_compilation()
    jobs = [(p[m].astype(float), r) for p, m, r in zip(peaks, peak_mask, limits, strict=True)]
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(jobs) == 1:
        return [pattern_evidence(*job) for job in jobs]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda job: pattern_evidence(*job), jobs))
