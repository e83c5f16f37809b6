"""What a lattice search works on: its options, lines, and cells under examination."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import autoindex_kernels as kernels
from . import search_kernels
from .bravais import BRAVAIS, shortest_vector

__all__ = ["FLOORS", "PRICE", "SYSTEMS", "TAIL", "IndexOptions", "Lattice", "LineTable", "Pool", "line_table"]

#: largest primitive cells that are looked for, Å³, by crystal family: few parameters need few lines
LARGEST = {"c": 27000.0, "t": 12000.0, "h": 12000.0, "a": 3000.0}
SYSTEMS = ("cubic", "tetragonal", "hexagonal", "trigonal", "orthorhombic", "monoclinic", "triclinic")
#: log-likelihood that a free parameter of the cell has to earn
PRICE = 2.0
#: systematic errors of lines in degrees that are tried
FLOORS = (0.0025, 0.005, 0.010)
#: share of lines with three times the usual error: overlaps, tails
TAIL = 0.2


@dataclass(frozen=True)
class IndexOptions:
    """What to search, see `crystaldl.powder.pattern.PowderPattern.index`; ``prior``: standard deviation expected of the zero
    shift, degrees; ``hold``: cells with a parameter that low-angle lines do not tell are kept."""

    systems: tuple[str, ...] = SYSTEMS
    max_volume: float | None = None
    lines: int = 20
    impurities: float = 2.0
    zero_limit: float = 0.2
    prior: float = 0.1
    volume_hint: float | None = None
    time_limit: float = 10.0
    hold: bool = True

    @property
    def lost(self) -> float:
        """Share of lines that are expected to stay unexplained."""
        return min(max(self.impurities, 0.6) / self.lines, 0.3)

    def largest(self, bravais: str = "aP") -> float:
        """Largest volume of a primitive cell in Å³: what was asked for, or what the search reaches (`LARGEST`)."""
        return LARGEST.get(bravais[0], LARGEST["a"]) if self.max_volume is None else self.max_volume


@dataclass(frozen=True)
class LineTable:
    """Lines as the search sees them, in order of 2θ; (n,) each.

    Attributes
    ----------
    two_theta, sigma : degrees, with counting statistics only
    weight : 0…1, that it is a line of its own
    wavelength : float, Å
    source : index of the line (the strongest where several were merged) in the list that was given
    height : intensity on any scale; all alike where it is not known
    """

    two_theta: np.ndarray
    sigma: np.ndarray
    weight: np.ndarray
    wavelength: float
    source: np.ndarray
    height: np.ndarray | None = None

    def __len__(self) -> int:
        return self.two_theta.size

    @property
    def slope(self) -> np.ndarray:
        """dQ/d2θ in Å⁻² per degree."""
        return np.radians(1.0) * 2.0 * np.sin(np.radians(self.two_theta)) / self.wavelength**2

    def head(self, n: int) -> LineTable:
        """The ``n`` lines of lowest angle, doubtful ones not counted."""
        last = np.searchsorted(np.cumsum(self.weight > 0.3), n, side="left") + 1
        return self[:last]

    def __getitem__(self, index) -> LineTable:
        columns = (self.two_theta, self.sigma, self.weight, self.source, self.height)
        x, sigma, weight, source, height = (None if v is None else v[index] for v in columns)
        return LineTable(x, sigma, weight, self.wavelength, source, height)

    def strong(self, n: int) -> LineTable:
        """The strongest of the first ``3 n`` lines: hardly any of them belong to a second phase."""
        few = self.head(3 * n)
        if few.height is None or len(few) <= n:
            return few
        return few[np.sort(np.argsort(-few.height * few.weight, kind="stable")[:n])]

    def table(self, floor: float, zero: float = 0.0) -> np.ndarray:
        """(n, 4) for the kernels: Q, σ_Q, weight, weighted gain of a perfect hit; ``floor`` (degrees) adds to σ."""
        q = (2.0 * np.sin(np.radians((self.two_theta - zero) / 2)) / self.wavelength) ** 2
        sigma = np.hypot(1.5 * self.sigma, floor) * self.slope
        gain = self.weight * np.log(1.0 / (kernels.SQRT_TWO_PI * sigma * np.sqrt(q)))
        return np.ascontiguousarray(np.stack([q, sigma, self.weight, gain], 1))


def line_table(peaks) -> LineTable:
    """Lines of a `PeakList` for the search: what a fit split is put together again, feet of strong lines count little."""
    x, order = np.sort(peaks.position), np.argsort(peaks.position)
    sigma, area = peaks.position_sigma[order].copy(), peaks.intensity[order].copy()
    significance, width = peaks.significance[order].copy(), _usual_width(peaks.fwhm[order], area)
    source = order.copy()
    i = 0
    while i < len(x) - 1:
        if x[i + 1] - x[i] > 0.6 * width[i] or min(area[i : i + 2]) < 0.3 * max(area[i : i + 2]):
            i += 1
            continue
        share = area[i + 1] / (area[i] + area[i + 1])
        source[i] = source[i] if share < 0.5 else source[i + 1]
        gap = x[i + 1] - x[i]
        x[i] += share * gap
        sigma[i] = np.hypot(np.hypot((1 - share) * sigma[i], share * sigma[i + 1]), 0.2 * min(share, 1 - share) * gap)
        area[i] += area[i + 1]
        significance[i] = max(significance[i], significance[i + 1])
        x, sigma, area, significance, width, source = (
            np.delete(v, i + 1) for v in (x, sigma, area, significance, width, source)
        )
    weight = 1.0 / (1.0 + np.exp(-(significance - 6.0) / 1.5))
    gap = np.abs(x[:, None] - x[None])
    ratio = area[None] / area[:, None]
    # how often a line this close to a stronger one is a line of its own, on simulated patterns
    for reach, stronger, trust in ((1.0, 1.0, 0.6), (3.0, 15.0, 0.3), (1.3, 3.3, 0.2)):
        weight *= np.where(((gap < reach * width[:, None]) & (ratio > stronger)).any(1), trust, 1.0)
    return LineTable(x, sigma, weight, peaks.radiation.wavelength, source, area)


def _usual_width(fwhm, area) -> np.ndarray:
    """Width expected at each line: the median of the nine nearest, at least; a split line is too narrow."""
    out = np.empty_like(fwhm)
    for i in range(len(fwhm)):
        low = max(min(i - 4, len(fwhm) - 9), 0)
        near = slice(low, low + 9)
        out[i] = np.median(np.repeat(fwhm[near], 1 + (3 * area[near] / area[near].max()).astype(int)))
    return out


@dataclass
class Pool:
    """Cells under examination: metric, start of the zero shift, Bravais lattice, score."""

    g: np.ndarray = field(default_factory=lambda: np.zeros((0, 6)))
    zero: np.ndarray = field(default_factory=lambda: np.zeros(0))
    bravais: np.ndarray = field(default_factory=lambda: np.zeros(0, "U2"))
    score: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __len__(self) -> int:
        return len(self.zero)

    def __getitem__(self, index) -> Pool:
        return Pool(self.g[index], self.zero[index], self.bravais[index], self.score[index])

    def __add__(self, other: Pool) -> Pool:
        return Pool(*(np.concatenate([getattr(self, k), getattr(other, k)]) for k in ("g", "zero", "bravais", "score")))

    def improve(self, lines: LineTable, options: IndexOptions, floors, wide: float, rounds: int) -> Pool:
        """Refined and scored: log-likelihood ratio less the price of the free parameters; failures are left out."""
        if not len(self):
            return self
        codes = np.array([BRAVAIS[b] for b in self.bravais])
        settings = (options.lost, TAIL, wide, rounds, options.prior, float(options.hold))
        tables = (lines.table(floor) for floor in floors)
        score, g, zero = kernels.improve_all(*tables, lines.slope, self.g, self.zero, codes, settings)
        good = score > -1e8
        good[good] = shortest_vector(g[good], self.bravais[good]) > search_kernels.SHORTEST
        return Pool(g, zero, self.bravais, score - PRICE * kernels.FREE[codes[:, 0]])[good]

    def best(self, count: int) -> Pool:
        return self[np.argsort(-self.score, kind="stable")[:count]]


@dataclass(frozen=True)
class Lattice:
    """A lattice that explains the lines: Bravais lattice, conventional and Niggli cell, zero shift (degrees), log-likelihood
    ratio less the price of the free parameters."""

    bravais: str
    cell: np.ndarray
    niggli: np.ndarray
    zero: float
    score: float
