"""What extracted intensities say about extinction groups: Bayes factors from a Pawley fit.

For a line whose reflections a group forbids, the data's verdict is the ratio of their likelihood for intensity zero to that
for an intensity drawn from what allowed lines show (compare Markvardsen et al., Acta Cryst. A57, 47, 2001). Crystals hold
many allowed lines that are nearly absent (heavy atoms on special positions), so the prior of allowed lines is a broad
mixture of exponentials about the local mean; a forbidden line may be hit by a foreign one, so no single line decides.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations

import numpy as np
from scipy.special import log_ndtr

from .extinction import LIMIT, absent_table, centred, groups_of_lattice, reflection_grid, table_index
from .pawley import PawleyFit

#: intensities of allowed lines relative to the local mean: weights and means of exponentials
MIXTURE = ((0.30, 0.03), (0.25, 0.2), (0.30, 0.9), (0.15, 3.0))
#: share of forbidden lines that a foreign line or an imperfect profile lights up, and how brightly
_FOREIGN = ((0.05, 0.1), (0.02, 1.0))
#: reflections that lie on no symmetry element of any crystal family
_GENERAL = np.array(
    [
        (1, 2, 3),
        (2, 3, 1),
        (3, 1, 2),
        (1, 3, 5),
        (2, 1, 4),
        (3, 5, 2),
        (1, 2, 5),
        (2, 4, 1),
        (2, 4, 3),
        (1, 3, 2),
        (3, 5, 1),
    ]
)


def _axes(lattice: str) -> list[np.ndarray]:
    """Index transformations that rename the axes of a cell or choose another cell of the same lattice."""
    if lattice[0] == "o":
        return [np.eye(3, dtype=int)[list(p)] for p in permutations(range(3))]
    if lattice == "mP":  # glides along c, a and the diagonal
        swaps = (
            [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
            [[0, 0, 1], [0, -1, 0], [1, 0, 0]],
            [[1, 0, 0], [0, 1, 0], [1, 0, 1]],
        )
        return [np.array(s) for s in swaps]
    return [np.eye(3, dtype=int)]


@lru_cache(maxsize=16)
def _turned(lattice: str) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Which reflections of the grid the centring lets be seen, and for each naming of the axes where a table has them.

    For each naming: places of the general reflections and of the whole grid in the ravelled table.
    """
    grid = reflection_grid().astype(int)
    general = _GENERAL[centred(_GENERAL, lattice)]
    shape = (2 * LIMIT + 1,) * 3
    places = [
        tuple(np.ravel_multi_index(table_index(hkl @ turn.T), shape) for hkl in (general, grid))
        for turn in _axes(lattice)
    ]
    return centred(grid, lattice), places


@lru_cache(maxsize=512)
def settings(extinction: int, lattice: str) -> tuple[np.ndarray, ...]:
    """Distinct tables of absent reflections of an extinction group in the settings a cell of ``lattice`` may have.

    Boolean arrays indexed [h + 14, k + 14, l + 14]; settings with another centring than the lattice's are left out.
    """
    seen, places = _turned(lattice)
    table, found = absent_table(extinction), {}
    for general, grid in places:
        if table.ravel()[general].any():
            continue
        flags = table.ravel()[grid]
        found.setdefault(flags[seen].tobytes(), flags.reshape(table.shape))
    return tuple(found.values())


def _log_exponential(intensity, sigma, mean):
    """ln of an exponential intensity distribution of the given mean seen through Gaussian errors."""
    return -np.log(mean) - intensity / mean + 0.5 * (sigma / mean) ** 2 + log_ndtr(intensity / sigma - sigma / mean)


def _log_mixture(intensity, sigma, mean, mixture):
    return np.logaddexp.reduce([np.log(w) + _log_exponential(intensity, sigma, s * mean) for w, s in mixture], axis=0)


def expected_intensity(fit: PawleyFit, bandwidth: float = 12.0) -> np.ndarray:
    """What a line of as many reflections has on average near its angle, (n,)."""
    members = np.bincount(fit.line, minlength=len(fit.intensity)).astype(float)
    kernel = np.exp(-0.5 * ((fit.position[:, None] - fit.position[None]) / bandwidth) ** 2)
    total, count = kernel @ np.maximum(fit.intensity, 0.0), kernel @ members
    overall = np.maximum(fit.intensity, 0.0).sum() / members.sum()
    return members * np.maximum((total + 3 * overall) / (count + 3), 1e-6)


def line_likelihoods(fit: PawleyFit, mixture=MIXTURE) -> tuple[np.ndarray, np.ndarray]:
    """ln likelihood of each line if allowed and if absent, relative to its best-fitting intensity, (n,) each."""
    mean = expected_intensity(fit)
    sigma = np.maximum(fit.sigma, 1e-9)
    zero = -0.5 * (fit.intensity / sigma) ** 2 - np.log(sigma * np.sqrt(2 * np.pi))
    foreign = [np.log(w) + _log_exponential(fit.intensity, sigma, s * mean) for w, s in _FOREIGN]
    absent = np.logaddexp.reduce([np.log(1 - sum(w for w, _ in _FOREIGN)) + zero, *foreign], axis=0)
    best = np.log(sigma * np.sqrt(2 * np.pi))
    return _log_mixture(fit.intensity, sigma, mean, mixture) + best, absent + best


def _forbidden(extinction: int, fit: PawleyFit) -> list[np.ndarray]:
    """Lines that an extinction group forbids, (n,) bool for each setting: those whose reflections are all absent."""
    index = table_index(fit.hkl)
    return [
        np.bincount(fit.line, ~table[index], len(fit.intensity)) == 0 for table in settings(extinction, fit.lattice)
    ]


def absence_evidence(fit: PawleyFit, mixture=MIXTURE) -> tuple[float, dict[int, float]]:
    """Log-likelihood of the intensities with every line allowed, and what each extinction group of the lattice adds.

    Settings are equally likely beforehand.
    """
    allowed, absent = line_likelihoods(fit, mixture)
    verdict, out = absent - allowed, {}
    for group in groups_of_lattice()[fit.lattice]:
        values = [verdict[forbidden].sum() for forbidden in _forbidden(int(group), fit)]
        out[int(group)] = float(np.logaddexp.reduce(values) - np.log(len(values))) if values else 0.0
    return float(allowed.sum()), out


def forbidden_lines(extinction: int, fit: PawleyFit) -> np.ndarray:
    """Which lines of a fit an extinction group forbids in its most likely setting, (n,) bool."""
    allowed, absent = line_likelihoods(fit)
    choices = _forbidden(extinction, fit)
    none = np.zeros(len(fit.intensity), bool)
    return max(choices, key=lambda forbidden: (absent - allowed)[forbidden].sum(), default=none)
