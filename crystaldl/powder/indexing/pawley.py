"""Pawley fit: intensities of all lines of a trial lattice, with the cell, from the whole profile.

Least squares of ``y(x) = Σ_i I_i P(x - x_i) + background``, ``P`` a pseudo-Voigt doublet whose width follows
``w0 + w1 tan θ``, over intensities, background, reciprocal metric, zero shift, sample displacement and profile at once
(Pawley, J. Appl. Cryst. 14, 357, 1981). Lines closer than a third of a width share one intensity, so that what the data
cannot tell apart is never asked. The covariance of the intensities is what the question about absent lines needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from ..prepare import AXIS_POINTS, AXIS_START, AXIS_STEP, CU_DOUBLET, REFERENCE_WAVELENGTH
from . import profile_kernels as kernels
from .extinction import predicted_reflections

#: lines of one fit, at most: cells that have more are fitted up to the last of these, see `compared`
MAX_LINES = 150
_REACH = 9.0  # widths
_HATS = 12.0  # degrees between the knots of the background
_ROUNDS = 9
#: of strict fits: points over which noise is looked for; (residual / 3σ)² beyond which a point is no more foreign; precision
#: that holds an intensity at zero, relative to the largest
LAGS, FOREIGN, HELD = (1, 2, 4), 20.0, 1e3

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

    def observed(self, q2) -> np.ndarray:
        """Where lines of 1/d² (n,) in Å⁻² are seen: 2θ in degrees for Cu Kα1, zero shift and displacement included."""
        theta = np.arcsin(np.clip(np.sqrt(q2) * REFERENCE_WAVELENGTH / 2, 0, 0.999))
        return 2 * np.degrees(theta) + self.zero + self.displacement * np.cos(theta)


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


def lines_of_lattice(lattice: str, metric, limits, resolution: float):
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
    keep = line < MAX_LINES
    return hkl[keep], line[keep], int(min(line[-1] + 1, MAX_LINES))


def typical_width(y: np.ndarray) -> float:
    """Full width at half maximum (degrees) of the strong lines: half height of the autocorrelation of the squares."""
    z = np.maximum(y, 0.0) ** 2
    spectrum = np.abs(np.fft.rfft(z, 2 * len(z))) ** 2
    acf = np.fft.irfft(spectrum)[:80]
    below = np.flatnonzero(acf < 0.5 * acf[0])
    return float(np.clip((below[0] if len(below) else 79) * AXIS_STEP * 1.6, 0.05, 1.0))


def noise_level(y: np.ndarray, mask: np.ndarray, lags=(1,)) -> float:
    """Standard deviation of the noise from second differences of the measured, not rectified points.

    ``lags``: over how many points; over several, too, where a pattern may have been smoothed or interpolated, so that
    neighbours agree.
    """
    out = []
    for lag in lags:
        d = (y[2 * lag :] - 2 * y[lag:-lag] + y[: -2 * lag])[
            (mask[2 * lag :] > 0) & (mask[: -2 * lag] > 0) & (y[lag:-lag] != 0)
        ]
        out.append(float(np.median(np.abs(d)) * 1.4826 / np.sqrt(6.0)) if len(d) > 50 else 1e-3)
    return max(out)


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
    strict: bool = False,
) -> PawleyFit | None:
    """Fit all lines of a lattice to a pattern on the common axis.

    Parameters
    ----------
    y, mask : (AXIS_POINTS,) background-subtracted intensity and which points were measured
    lattice, metric, zero : Bravais lattice, coefficients (6,) of h², k², l², kl, hl, hk in 1/d² (Å⁻²), zero shift (degrees)
    ratio, doublet : Kα2 over Kα1 intensity (0 for one line) and ln(λ2/λ1)
    strict : bool
        For what the fit leaves: noise that neighbours share is seen, no intensity is below zero, and a strong line that was
        missed at first comes back. Not the default: trained judgement of fits (`LatticeArbiter`) knows them without.

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
    points = min(int((min(last, high) - AXIS_START) / AXIS_STEP) + 1, measured[-1] + 1) - measured[0]
    data = _data(y, mask, LAGS if strict else (1,))
    return _fit(model, replace(data, y=data.y[:points], good=data.good[:points]), measured[0], rounds, strict)


@dataclass(frozen=True)
class _Data:
    """What was measured, from the first measured point on: intensity (m,), the maximum 1; whether it is; noise."""

    y: np.ndarray
    good: np.ndarray
    noise: float

    def sigma2(self, fitted) -> np.ndarray:
        """Variances: 5 % of a line's height is what the profile function gets wrong."""
        return self.noise**2 + (0.05 * np.maximum(fitted, 0.0)) ** 2 + 0.002 * self.noise * np.abs(fitted)

    def quality(self, fitted, width: float) -> dict[str, float]:
        """Misfit, explained share and gain of a fitted curve; ``width`` of the lines in points. See `PawleyFit`."""
        y, good, sigma2 = self.y, self.good, self.sigma2(fitted)
        robust = 9.0 * np.log1p((y - fitted) ** 2 / sigma2 / 9.0)[good]
        without = 9.0 * np.log1p((y - np.median(y[good])) ** 2 / sigma2 / 9.0)[good]
        weight = good / (np.maximum(np.maximum(y, fitted), 0.0) + 0.02)  # as counting statistics would have it
        mean = (weight * y).sum() / weight.sum()
        explained = 1 - (weight * (y - fitted) ** 2).sum() / max((weight * (y - mean) ** 2).sum(), 1e-12)
        gain = 0.5 * (without - robust).sum() / max(width, 1.0)
        return {"misfit": float(robust.mean()), "explained": float(explained), "gain": float(gain)}


def _data(y, mask, lags=(1,)) -> _Data:
    measured = np.flatnonzero(mask > 0)
    inside = slice(measured[0], measured[-1] + 1)
    good = mask[inside] > 0
    data = np.where(good, y[inside].astype(float), 0.0)
    data /= max(float(data.max()), 1e-9)
    return _Data(data, good, max(noise_level(data, good, lags), 1e-3))


def compared(fits: list[PawleyFit | None], y: np.ndarray, mask: np.ndarray) -> list[PawleyFit | None]:
    """Fits of one pattern whose misfit, explained share and gain can be compared.

    A fit that had too many lines to reach the end of the pattern is judged as if it went on like the best of those that
    go farthest: where it says nothing, nothing speaks for or against it.
    """
    made = [fit for fit in fits if fit is not None]
    longest = max((len(fit.curve) for fit in made), default=0)
    if all(len(fit.curve) == longest for fit in made):
        return fits
    best = max((fit for fit in made if len(fit.curve) == longest), key=lambda fit: fit.gain)
    data = _data(y, mask)
    data = replace(data, y=data.y[:longest], good=data.good[:longest])
    out = []
    for fit in fits:
        if fit is not None and len(fit.curve) < longest:
            curve = np.concatenate([fit.curve, best.curve[len(fit.curve) :]]).astype(float)
            fit = replace(fit, **data.quality(curve, float(np.median(fit.width)) / AXIS_STEP))
        out.append(fit)
    return out


def _hats(points: int) -> np.ndarray:
    """Piecewise linear background, (points, knots)."""
    knots = max(2, int(points * AXIS_STEP / _HATS) + 1)
    at = np.linspace(0, knots - 1, points)[:, None]
    return np.clip(1 - np.abs(at - np.arange(knots)), 0, 1)


def _fit(model: _Model, data: _Data, at: int, rounds, strict: bool) -> PawleyFit:
    start, y = AXIS_START + AXIS_STEP * at, data.y
    points, n, k = len(y), model.count, model.free.shape[1] + 5
    hats = _hats(points)
    fitted, intensity = np.zeros(points), np.zeros(n)
    for turn in range(rounds + 1):
        q2, theta, width, parts = model.columns(start, points)
        value, _, _, _, offset, size = parts
        sigma2 = data.sigma2(fitted if turn else np.maximum(y, 0.0))
        weight = data.good / sigma2
        residual = y - fitted
        if turn > 1:
            foreign = np.maximum(residual, 0) ** 2 / (9.0 * sigma2)
            weight = weight / (1 + (np.minimum(foreign, FOREIGN) if strict else foreign))
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
        solution = _solved(matrix, right)
        below = np.flatnonzero(solution[:n] < 0) if strict else []
        if len(below):  # of lines that overlap, one must not grow at the cost of another below zero
            held = matrix.copy()
            held[below, below] += HELD * matrix.diagonal()[:n].max()
            solution = _solved(held, right)
        intensity = solution[:n]
        if nonlinear.shape[1]:
            step = solution[h:]
            moved = np.abs(metric @ step[: k - 5] + step[k - 5] + step[k - 4] * np.cos(theta))
            model.move(step, float(np.minimum(1.0, 0.5 * np.min(width) / max(moved.max(), 1e-9))))
        fitted = kernels.add_up(value, intensity, offset, size, points) + hats @ solution[n:h]
    return _result(model, (q2, theta, width), intensity, matrix, fitted, data, at)


def _solved(matrix, right) -> np.ndarray:
    """Solution of normal equations."""
    try:
        return cho_solve(cho_factor(matrix, check_finite=False), right, check_finite=False)
    except np.linalg.LinAlgError:  # rounding made it indefinite
        return np.linalg.solve(matrix, right)


def _result(model, lines, intensity, matrix, fitted, data: _Data, at) -> PawleyFit:
    (q2, theta, width), n = lines, model.count
    per_line = max(float(np.median(width)) / AXIS_STEP, 1.0)
    quality = data.quality(fitted, per_line)
    covariance = np.linalg.inv(matrix)[:n, :n]
    # residuals are correlated along a line width: the misfit's share of the variance counts once a width
    inflate = 1.0 + max(quality["misfit"] - 1.0, 0.0) * 0.5 * per_line
    sigma = np.sqrt(np.diag(covariance) * inflate)
    return PawleyFit(
        model.lattice, model.metric, model.zero, model.displacement, model.hkl, model.line, 2 * np.degrees(theta), q2,
        intensity, sigma, width, curve=fitted.astype(np.float32), first=int(at), **quality,
    )  # fmt: skip
