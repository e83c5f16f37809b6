"""Which of very many trial cells explain the whole profile: a fit of intensities in microseconds.

For given positions of lines, the non-negative intensities that fit a pattern best follow from correlations of the pattern
with the profile of a line, and of two such profiles with each other. Here both are tabulated along the axis, once a pattern,
so that a cell costs no more than its lines, and is refined by Gauss-Newton steps from the same tables: a Pawley fit with
fixed profile parameters, a thousand times faster. Cells are ranked by

    ``gain / T - Σ_i ½ ln(1 + p Σ W P_i² / T)``,

half of the misfit that the lines take away less what each line costs, the evidence of a linear model (MacKay, Neural Comput.
4, 415, 1992) whose intensities are of the order √p. T is larger than 1 where even good cells leave more misfit than noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d, maximum_filter1d, minimum_filter1d

from ..prepare import AXIS_STEP, CU_DOUBLET, REFERENCE_WAVELENGTH, common_axis
from . import profile_kernels, search_kernels
from . import sieve_kernels as kernels
from .autoindex_kernels import FREE
from .bravais import BRAVAIS, shortest_vector
from .pawley import noise_level
from .pools import PRICE, Pool

__all__ = ["Sieve", "make_sieve"]

#: what the profile function gets wrong: share of the intensity, and of the strongest intensity within so many widths
FLEXIBLE, TAILS, WING = 0.08, 0.03, 2.0
#: points whose misfit beyond the noise is one and the same
CORRELATED = 4.0
#: the background is what an opening by this many line widths leaves
OPENING = 5.0
#: variance of intensities relative to the strongest line's
USUAL = 1e-3
#: widths that a profile extends; widths beyond which two lines do not touch; points a width, at least
REACH, APART, POINTS = 3.0, 2.2, 7.0
#: reflections of a cell, at most
MOST = 6000
#: log-likelihood that a line which no cell predicts has to earn: it could be anywhere, and single phases have few of them
FOREIGN = 20.0


@dataclass(frozen=True)
class Shape:
    """Full width at half maximum ``width (1 + slope tan θ)`` in degrees, and Lorentz fraction."""

    width: float
    slope: float
    lorentz: float

    def widths(self, theta) -> np.ndarray:
        return np.clip(self.width * (1 + self.slope * np.tan(theta)), 0.05, 2.5)


@dataclass(frozen=True, eq=False)
class Sieve:
    """Tables of one pattern.

    Attributes
    ----------
    tables : tuple of arrays, see `sieve_kernels.tabulate`, and the widths of lines in points
    axis : (4,) λ/2 in Å, first 2θ and step in degrees, number of points
    limits : 1/d² in Å⁻² between which lines are looked at
    total : (m,) Σ W y² up to each point
    listed : float, gain of the listed lines, each at its own place: about what the right cell reaches
    shape : Shape of the lines
    places : (n,) listed lines, in points of the axis, sorted
    """

    tables: tuple
    axis: np.ndarray
    limits: tuple[float, float]
    total: np.ndarray
    listed: float
    shape: Shape
    places: np.ndarray

    def temper(self, gain: float, top: float | None = None) -> float:
        """T of patterns that are explained by no more than ``gain``, up to 1/d² = ``top``."""
        at = len(self.total) - 1
        if top is not None and top < self.limits[1]:
            x = 2 * np.degrees(np.arcsin(np.sqrt(top) * self.axis[0]))
            at = int(np.clip((x - self.axis[1]) / self.axis[2], 0, at))
        return 1.0 + CORRELATED * max((self.total[at] - 2 * gain) / (at + 1) - 1.0, 0.0)

    def refine(self, pool: Pool, rounds: int, temper: float, top: float | None = None, prior: float = 0.06):
        """Cells refined with the zero shift by ``rounds`` steps, and scored; those that cannot be judged are left out.

        Parameters
        ----------
        pool : Pool
        rounds : int; 0 scores the cells as they are
        temper : float, T
        top : float, 1/d² up to which lines are looked at; all by default
        prior : float, standard deviation expected of the zero shift in degrees

        Returns
        -------
        Pool of at most as many cells, its scores less the price of free parameters; gain of each (n,)
        """
        if not len(pool):
            return pool, np.zeros(0)
        codes = np.array([BRAVAIS[b] for b in pool.bravais])
        bounds = self.limits[0], min(self.limits[1], top or self.limits[1])
        settings = rounds, prior, USUAL, temper, MOST
        cells, zeros = np.ascontiguousarray(pool.g, float), np.ascontiguousarray(pool.zero, float)
        score, gain, g, zero = kernels.refine_all(self.tables, self.axis, cells, zeros, codes, bounds, settings)
        good = score > -1e8
        good[good] = shortest_vector(g[good], pool.bravais[good]) > search_kernels.SHORTEST
        return Pool(g, zero, pool.bravais, score - PRICE * FREE[codes[:, 0]])[good], gain[good]

    def judge(self, pools: list[Pool], prior: float = 0.06) -> np.ndarray:
        """Scores of cells as they are, (n,), where listed lines may belong to another phase; -inf where a pool is empty.

        A second phase must not make the cell of the first look worse than a large one that has reflections everywhere: what
        foreign lines explain counts for every cell, at the price of `FOREIGN` a line. T is that of the best of the cells.
        """
        out = np.full(len(pools), -np.inf)
        made = np.flatnonzero([len(pool) > 0 for pool in pools])
        if not len(made):
            return out
        pool = sum((pools[i] for i in made), Pool())
        codes = np.array([BRAVAIS[b] for b in pool.bravais])
        cells, zeros = np.ascontiguousarray(pool.g, float), np.ascontiguousarray(pool.zero, float)
        temper = 3.0
        for _ in range(2):
            settings = 0, prior, USUAL, temper, MOST
            score, gain = kernels.judge_all(
                self.tables, self.axis, cells, zeros, codes, self.limits, settings, self.places, FOREIGN
            )
            temper = self.temper(gain.max())
        out[made] = np.where(score > -1e8, score - PRICE * FREE[codes[:, 0]], -np.inf)
        return out


def _widths_of(peaks: np.ndarray) -> Shape:
    """Widths of the listed lines: those of the narrower half, strong ones first."""
    tangent = np.tan(np.arcsin(np.clip(np.exp(peaks[:, 0]) * REFERENCE_WAVELENGTH / 2, 0, 0.99)))
    width = 2.3548 * AXIS_STEP * np.exp(peaks[:, 3])
    weight = np.exp(0.5 * peaks[:, 1]) * (np.exp(peaks[:, 2]) > 5) + 1e-6
    best = np.inf, Shape(0.1, 0.0, 0.5)
    for slope in (0.0, 0.5, 1.0, 2.0):
        ratio = np.log(width / (1 + slope * tangent))
        order = np.argsort(ratio)
        sums = np.cumsum(weight[order])
        middle = ratio[order][np.searchsorted(sums, 0.4 * sums[-1])]
        cost = (weight * np.minimum(np.abs(ratio - middle), 0.7)).sum() * (1 + 0.02 * slope)
        best = min(best, (cost, Shape(float(np.exp(middle)), slope, 0.5)), key=lambda entry: entry[0])
    return best[1]


def _without_background(y: np.ndarray, width: float) -> np.ndarray:
    """What remains above the lower envelope; ``width`` of the lines in points."""
    smooth, size = gaussian_filter1d(y, 0.4 * width), int(OPENING * width) | 1
    return y - gaussian_filter1d(maximum_filter1d(minimum_filter1d(smooth, size), size), width)


@dataclass(frozen=True, eq=False)
class _Data:
    """A pattern made ready: 2θ of the points, intensity, weight, Kα2 over Kα1, 2θ of Kα2 at each point."""

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    ratio: float
    doublet: float

    @property
    def step(self) -> float:
        return float(self.x[1] - self.x[0])

    def second(self, x) -> np.ndarray:
        sine = np.sin(np.radians(x / 2)) * np.exp(self.doublet)
        return 2 * np.degrees(np.arcsin(np.clip(sine, 0, 0.999)))

    def gain(self, places: np.ndarray, shape: Shape) -> float:
        """Gain of lines at given 2θ."""
        width = shape.widths(np.radians(places / 2))
        value, _, _, _, offset, size = profile_kernels.columns(
            self.x[0], self.step, len(self.x), places, self.second(places), self.ratio, width, shape.lorentz, REACH
        )
        nothing = np.zeros((len(self.x), 0))
        matrix, right = profile_kernels.normal_equations(value, offset, size, nothing, self.weight, self.y)
        matrix += np.diag(1e-4 * matrix.diagonal() + 1e-9)
        intensity = np.maximum(np.linalg.solve(matrix, right), 0.0)
        return float(right @ intensity - 0.5 * intensity @ matrix @ intensity)


def _data(y, mask, ratio, doublet, width) -> _Data:
    measured = np.flatnonzero(mask > 0)
    inside = slice(measured[0], measured[-1] + 1)
    y = np.where(mask > 0, y, 0.0)[inside].astype(float)
    y /= max(y.max(), 1e-9)
    noise = max(noise_level(y, mask[inside]), 1e-3)
    # a background that was taken off too generously leaves dips
    y = np.maximum(_without_background(y, max(width / AXIS_STEP, 2.0)), -noise)
    near = maximum_filter1d(y, 2 * int(WING * width / AXIS_STEP) + 1)
    weight = (mask[inside] > 0) / (noise**2 + (FLEXIBLE * np.abs(y) + TAILS * near) ** 2)
    together = max(1, int(width / AXIS_STEP / POINTS))
    n = len(y) // together
    join = lambda v: v[: n * together].reshape(n, together)  # noqa: E731
    total = join(weight).sum(1)
    mean = join(weight * y).sum(1) / np.maximum(total, 1e-12)
    return _Data(join(common_axis()[inside]).mean(1), mean, total, ratio, doublet)


def _shape_of(data: _Data, start: Shape, places: np.ndarray) -> tuple[Shape, float]:
    """The shape with which the listed lines explain the pattern best, and their gain."""
    best, gain = start, data.gain(places, start)
    for lorentz, widths, slopes in (((0.1, 0.9), (1.15, 0.87, 1.3), (0.5, -0.5)), ((0.2, 0.5, 0.8), (1.08, 0.93), ())):
        trials = [Shape(best.width, best.slope, v) for v in lorentz]
        best, gain = _better(data, places, trials, best, gain)
        best, gain = _better(
            data, places, [Shape(best.width * f, best.slope, best.lorentz) for f in widths], best, gain
        )
        trials = [
            Shape(best.width * (1 + 0.35 * best.slope) / (1 + 0.35 * (best.slope + s)), best.slope + s, best.lorentz)
            for s in slopes
            if 0 <= best.slope + s <= 2.5
        ]
        best, gain = _better(data, places, trials, best, gain)
    return best, gain


def _better(data, places, trials, best, gain) -> tuple[Shape, float]:
    for trial in trials:
        new = data.gain(places, trial)
        if new > gain:
            best, gain = trial, new
    return best, gain


def make_sieve(
    y: np.ndarray, mask: np.ndarray, peaks: np.ndarray, ratio: float = 0.5, doublet: float = CU_DOUBLET
) -> Sieve:
    """Tables of a pattern on the common axis.

    Parameters
    ----------
    y, mask : (AXIS_POINTS,) intensity with Kα2, background removed, and which points were measured
    peaks : (n, 4) as `crystaldl.powder.line_scales.search_lines` gives them, n ≥ 1
    ratio, doublet : Kα2 over Kα1 and ln(λ2/λ1)
    """
    shape = _widths_of(peaks)
    data = _data(y, mask, ratio, doublet, shape.width)
    sine = np.clip(np.exp(np.sort(peaks[:, 0])) * REFERENCE_WAVELENGTH / 2, 0, 0.999)
    places = 2 * np.degrees(np.arcsin(sine))
    places = places[(places > data.x[1]) & (places < data.x[-2])]
    shape, listed = _shape_of(data, shape, places)
    width = shape.widths(np.radians(data.x / 2))
    span = int(np.ceil(APART * np.median(width) / data.step)) + 1
    tables = kernels.tabulate(
        data.y, data.weight, data.x[0], data.second(data.x), ratio, width, shape.lorentz, data.step, REACH, span
    )
    ends = np.array([data.x[0] + 0.5 * width[0], data.x[-1] - 0.5 * width[-1]])
    low, high = (2.0 * np.sin(np.radians(ends / 2)) / REFERENCE_WAVELENGTH) ** 2
    axis = np.array([REFERENCE_WAVELENGTH / 2, data.x[0], data.step, len(data.x)])
    total = np.cumsum(data.weight * data.y**2)
    points = (places - data.x[0]) / data.step
    return Sieve((*tables, width / data.step), axis, (low, high), total, listed, shape, points)
