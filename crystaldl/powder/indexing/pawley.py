"""Pawley fit: intensities of all lines of a trial lattice, with the cell, from the whole profile.

Least squares of ``y(x) = Σ_i I_i P(x - x_i) + background``, ``P`` a pseudo-Voigt doublet whose width follows
``w0 + w1 tan θ``, over intensities, background, reciprocal metric, zero shift, sample displacement and profile at once
(Pawley, J. Appl. Cryst. 14, 357, 1981). Lines closer than a third of a width share one intensity, so that what the data
cannot tell apart is never asked. The covariance of the intensities is what the question about absent lines needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..prepare import AXIS_POINTS, AXIS_START, AXIS_STEP, CU_DOUBLET, REFERENCE_WAVELENGTH
from . import profile_kernels as kernels
from .extinction import predicted_reflections

MAX_LINES = 150
_REACH = 9.0  # widths
_HATS = 12.0  # degrees between the knots of the background
_ROUNDS = 9

#: free parameters of the reciprocal metric (h², k², l², kl, hl, hk) by crystal family
_FREE = {
    "c": [[1, 1, 1, 0, 0, 0]],
    "t": [[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]],
    "h": [[1, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0]],
    "o": [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]],
    "m": [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]],
    "a": np.eye(6),
}
FREE_PARAMETERS = {k: np.array(v, float).T for k, v in _FREE.items()}


@dataclass(frozen=True)
class PawleyFit:
    """Result of a Pawley fit.

    Attributes
    ----------
    lattice : str, Bravais lattice
    metric : (6,) reciprocal metric: coefficients of h², k², l², kl, hl, hk in 1/d² (Å⁻²)
    zero, displacement : float, degrees: observed minus true 2θ is ``zero + displacement cos θ``
    hkl : (r, 3) int, reflections; ``line`` (r,) the line each belongs to
    position : (n,) 2θ of the lines in degrees for Cu Kα1, true (without zero shift); ``q2`` (n,) their 1/d²
    intensity, sigma : (n,) integrated intensity and its standard uncertainty, misfit included; the pattern's maximum is 1
    width : (n,) full width at half maximum in degrees
    misfit : float, robust mean of squared residuals over σ²
    explained : float, weighted share of the pattern's variance that the fit explains
    gain : float, half of the robust misfit that the lines take away, summed over independent points (one a line width)
    curve : (m,) calculated pattern, background included, the measured maximum being 1; ``first`` index of its first
        point on the common axis
    """

    lattice: str
    metric: np.ndarray
    zero: float
    displacement: float
    hkl: np.ndarray
    line: np.ndarray
    position: np.ndarray
    q2: np.ndarray
    intensity: np.ndarray
    sigma: np.ndarray
    width: np.ndarray
    misfit: float
    explained: float
    gain: float
    curve: np.ndarray
    first: int


class _Model:
    """The parameters of a fit and what follows from them."""

    def __init__(self, lattice, metric, zero, hkl, line, count, ratio, doublet, width):
        self.lattice, self.hkl, self.line, self.count = lattice, hkl, line, count
        self.ratio, self.doublet = ratio, doublet
        self.free = FREE_PARAMETERS[lattice[0]]
        h, k, l = hkl.T.astype(float)
        squares = np.stack([h * h, k * k, l * l, k * l, h * l, h * k], 1)
        size = np.bincount(line, minlength=count)
        self.squares = np.stack([np.bincount(line, c, count) / size for c in squares.T], 1)
        self.metric, self.zero, self.displacement = np.asarray(metric, float), float(zero), 0.0
        self.ln_width, self.ln_slope, self.eta = np.log(width), np.log(0.04), 0.5

    def positions(self):
        """1/d², θ (radians), observed positions of both components (degrees)."""
        q2 = np.maximum(self.squares @ self.metric, 1e-6)
        sine = np.clip(np.sqrt(q2) * REFERENCE_WAVELENGTH / 2, 0, 0.995)
        theta = np.arcsin(sine)
        second = np.arcsin(np.clip(sine * np.exp(self.doublet), 0, 0.999))
        shift = self.zero + self.displacement * np.cos(theta)
        return q2, theta, 2 * np.degrees(theta) + shift, 2 * np.degrees(second) + shift

    def widths(self, theta):
        return np.clip(np.exp(self.ln_width) + np.exp(self.ln_slope) * np.tan(theta), 0.03, 2.0)

    def columns(self, start, points):
        q2, theta, first, second = self.positions()
        width = self.widths(theta)
        parts = kernels.columns(start, AXIS_STEP, points, first, second, self.ratio, width, self.eta, _REACH)
        return q2, theta, width, parts

    def directions(self, intensity, theta, parts, points):
        """Derivatives of the pattern with respect to metric, zero, displacement, ln widths and η: (points, k)."""
        value, by_position, by_width, by_eta, offset, size = parts
        strength = np.maximum(intensity, 0.0)
        sine, cosine = np.sin(theta), np.cos(theta)
        # x = 2 asin(λ √q² / 2): dx/dq² = λ² / (4 sin θ cos θ), in degrees
        slope = np.degrees(REFERENCE_WAVELENGTH**2 / (4 * sine * cosine))
        metric = (self.squares * slope[:, None]) @ self.free
        shifts = [*metric.T, np.ones_like(theta), cosine]
        out = [kernels.add_up(by_position, strength * s, offset, size, points) for s in shifts]
        for s in (np.full_like(theta, np.exp(self.ln_width)), np.exp(self.ln_slope) * np.tan(theta)):
            out.append(kernels.add_up(by_width, strength * s, offset, size, points))
        out.append(kernels.add_up(by_eta, strength, offset, size, points))
        return np.stack(out, 1), metric

    def prior(self):
        """Precision and mean step of the prior of the nonlinear parameters."""
        k = self.free.shape[1]
        widths = self.ln_width - np.log(0.12), self.ln_slope - np.log(0.04)
        values = np.array([self.zero, self.displacement, *widths, self.eta - 0.5])
        precision = np.array([1 / 0.05, 1 / 0.05, 1 / 1.0, 1 / 0.7, 1 / 0.3]) ** 2
        a, b, c = self.metric[:3]
        # the scale of a coefficient of kl, hl or hk is that of an angle of a radian, however close to 90° it is
        sizes = np.maximum(np.abs(self.metric), np.array([a, b, c, np.sqrt(b * c), np.sqrt(a * c), np.sqrt(a * b)]))
        scale = np.array([sizes[column > 0].min() for column in self.free.T])
        return np.concatenate([1 / (0.004 * scale) ** 2, precision]), np.concatenate([np.zeros(k), -values])

    def move(self, step, reach):
        """Take a step, shortened so that no line moves farther than ``reach`` (a factor computed by the caller)."""
        k = self.free.shape[1]
        step = step * reach
        self.metric = self.metric + self.free @ step[:k]
        self.zero = float(np.clip(self.zero + step[k], -0.3, 0.3))
        self.displacement = float(np.clip(self.displacement + step[k + 1], -0.3, 0.3))
        self.ln_width = float(np.clip(self.ln_width + np.clip(step[k + 2], -0.5, 0.5), np.log(0.04), np.log(1.2)))
        self.ln_slope = float(np.clip(self.ln_slope + np.clip(step[k + 3], -0.5, 0.5), np.log(0.002), np.log(1.0)))
        self.eta = float(np.clip(self.eta + np.clip(step[k + 4], -0.2, 0.2), 0.0, 1.0))


def lines_of_lattice(lattice: str, metric, limits, resolution: float, most: int = MAX_LINES):
    """Reflections inside ``limits`` (1/d², Å⁻²) and the line each belongs to: hkl (r, 3), line (r,), number of lines."""
    hkl, q2 = predicted_reflections(metric, lattice, limits[1])
    inside = q2 >= limits[0]
    hkl, q2 = hkl[inside], q2[inside]
    if len(q2) == 0:
        return hkl, np.zeros(0, int), 0
    x = np.degrees(2 * np.arcsin(np.clip(np.sqrt(q2) * REFERENCE_WAVELENGTH / 2, 0, 0.999)))
    line = np.zeros(len(x), int)
    origin = x[0]
    for i in range(1, len(x)):
        apart = x[i] - origin > resolution
        line[i] = line[i - 1] + apart
        origin = x[i] if apart else origin
    keep = line < most
    return hkl[keep], line[keep], int(min(line[-1] + 1, most))


def typical_width(y: np.ndarray) -> float:
    """Full width at half maximum (degrees) of the strong lines: half height of the autocorrelation of the squares."""
    z = np.maximum(y, 0.0) ** 2
    spectrum = np.abs(np.fft.rfft(z, 2 * len(z))) ** 2
    acf = np.fft.irfft(spectrum)[:80]
    below = np.flatnonzero(acf < 0.5 * acf[0])
    return float(np.clip((below[0] if len(below) else 79) * AXIS_STEP * 1.6, 0.05, 1.0))


def noise_level(y: np.ndarray, mask: np.ndarray) -> float:
    """Standard deviation of the noise from second differences of the measured, not rectified points."""
    d = (y[2:] - 2 * y[1:-1] + y[:-2])[(mask[2:] > 0) & (mask[:-2] > 0) & (y[1:-1] != 0)]
    return float(np.median(np.abs(d)) * 1.4826 / np.sqrt(6.0)) if len(d) > 50 else 1e-3


def pawley_fit(
    y: np.ndarray,
    mask: np.ndarray,
    lattice: str,
    metric,
    zero: float = 0.0,
    *,
    ratio: float = 0.5,
    doublet: float = CU_DOUBLET,
    rounds: int = _ROUNDS,
) -> PawleyFit | None:
    """Fit all lines of a lattice to a pattern on the common axis.

    Parameters
    ----------
    y, mask : (AXIS_POINTS,) background-subtracted intensity and which points were measured
    lattice, metric, zero : Bravais lattice, coefficients (6,) of h², k², l², kl, hl, hk in 1/d² (Å⁻²), zero shift (degrees)
    ratio, doublet : Kα2 over Kα1 intensity (0 for one line) and ln(λ2/λ1)

    Returns
    -------
    PawleyFit, or None where the lattice has no line in the measured range
    """
    measured = np.flatnonzero(mask > 0)
    if len(measured) < 100:
        return None
    low, high = AXIS_START + AXIS_STEP * measured[0], AXIS_START + AXIS_STEP * min(measured[-1], AXIS_POINTS - 1)
    width = typical_width(y * mask)
    bounds = [(2 * np.sin(np.radians(v / 2)) / REFERENCE_WAVELENGTH) ** 2 for v in (low + 0.5 * width, high - 0.5 * width)]
    hkl, line, count = lines_of_lattice(lattice, metric, bounds, 0.3 * width)
    if count == 0:
        return None
    model = _Model(lattice, metric, zero, hkl, line, count, ratio, doublet, width)
    last = model.positions()[2][-1] + 2 * width if count == MAX_LINES else high
    points = slice(measured[0], min(int((min(last, high) - AXIS_START) / AXIS_STEP) + 1, measured[-1] + 1))
    data, good = y[points].astype(float), mask[points] > 0
    data = np.where(good, data, 0.0) / max(float(data[good].max()), 1e-9)
    return _fit(model, data, good, measured[0], rounds)


def _hats(points: int) -> np.ndarray:
    """Piecewise linear background, (points, knots)."""
    knots = max(2, int(points * AXIS_STEP / _HATS) + 1)
    at = np.linspace(0, knots - 1, points)[:, None]
    return np.clip(1 - np.abs(at - np.arange(knots)), 0, 1)


def _fit(model: _Model, y, good, at: int, rounds) -> PawleyFit:
    start = AXIS_START + AXIS_STEP * at
    points, n, k = len(y), model.count, model.free.shape[1] + 5
    hats = _hats(points)
    noise = max(noise_level(y, good), 1e-3)
    fitted, intensity = np.zeros(points), np.zeros(n)
    for turn in range(rounds + 1):
        q2, theta, width, parts = model.columns(start, points)
        value, _, _, _, offset, size = parts
        # 5 % of a line's height is what the profile function gets wrong
        sigma2 = noise**2 + (0.05 * np.maximum(fitted, 0.0 if turn else y)) ** 2 + 0.002 * noise * np.abs(fitted)
        weight = good / sigma2
        residual = y - fitted
        if turn > 1:
            weight = weight / (1 + np.maximum(residual, 0) ** 2 / (9.0 * sigma2))
        nonlinear = np.zeros((points, 0))
        if 0 < turn < rounds:
            nonlinear, metric = model.directions(intensity, theta, parts, points)
        dense = np.concatenate([hats, nonlinear], 1)
        matrix, right = kernels.normal_equations(value, offset, size, dense, weight, y)
        h = n + hats.shape[1]
        matrix[np.arange(n), np.arange(n)] += 1e-6 * matrix.diagonal()[:n].max() + 1e-9
        if nonlinear.shape[1]:
            precision, mean = model.prior()
            # how far the fit may be trusted: points along a line width are not independent of the profile's misfit
            matrix[h:, h:] += np.diag(precision)
            right[h:] += precision * mean
        solution = np.linalg.solve(matrix, right)
        intensity = solution[:n]
        if nonlinear.shape[1]:
            step = solution[h:]
            moved = np.abs(metric @ step[: k - 5] + step[k - 5] + step[k - 4] * np.cos(theta))
            model.move(step, float(np.minimum(1.0, 0.5 * np.min(width) / max(moved.max(), 1e-9))))
        fitted = kernels.add_up(value, intensity, offset, size, points) + hats @ solution[n:h]
    return _result(model, (q2, theta, width), intensity, matrix, fitted, sigma2, good, y, at)


def _result(model, lines, intensity, matrix, fitted, sigma2, good, y, at) -> PawleyFit:
    (q2, theta, width), residual = lines, y - fitted
    n = model.count
    robust = 9.0 * np.log1p(residual**2 / sigma2 / 9.0)[good]
    without = 9.0 * np.log1p((y - np.median(y[good])) ** 2 / sigma2 / 9.0)[good]
    misfit = float(robust.mean())
    per_line = max(float(np.median(width)) / AXIS_STEP, 1.0)
    covariance = np.linalg.inv(matrix)[:n, :n]
    # residuals are correlated along a line width: the misfit's share of the variance counts once a width
    inflate = 1.0 + max(misfit - 1.0, 0.0) * 0.5 * per_line
    sigma = np.sqrt(np.diag(covariance) * inflate)
    weight = good / (np.maximum(np.maximum(y, fitted), 0.0) + 0.02)  # as counting statistics would have it
    mean = (weight * y).sum() / weight.sum()
    explained = 1 - (weight * residual**2).sum() / max((weight * (y - mean) ** 2).sum(), 1e-12)
    return PawleyFit(
        model.lattice, model.metric, model.zero, model.displacement, model.hkl, model.line, 2 * np.degrees(theta), q2,
        intensity, sigma, width, misfit, float(explained), float(0.5 * (without - robust).sum() / per_line),
        fitted.astype(np.float32), int(at),
    )  # fmt: skip
