"""Weighted, robust linear least squares on a `Design`, and honest standard uncertainties."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import numpy as np

from ...errors import DataError, PlausibilityWarning
from .kernels import Design

__all__ = ["Noise", "Solution", "invert", "serial_factor", "solve_design"]

logger = logging.getLogger(__name__)

TUNING = 6.0            # Tukey's biweight, and what is left out in the end, in standard deviations
_ROUNDS = 12
_BINS = 24
_SAMPLE = 200_000
_MANY = 0.02            # share of outliers that deserves a warning
SINGULAR = 1e-9         # smallest eigenvalue of the normal matrix scaled to unit diagonal


@dataclass(frozen=True, eq=False)
class Solution:
    """Outcome of `solve_design`.

    Attributes
    ----------
    theta : (p,) coefficients of the columns
    covariance : (p, p)
        Inverse normal matrix × chi2 × serial.
    weight : (n_used,) share / variance; 0 for pixels left out as outliers
    chi2 : float, Σ w r² / (n - p); n counts independent pixels
    n_observations : int, pixels with weight; n_independent : float, the sum of their shares
    serial : float, how much neighbouring residuals that resemble each other widen the covariance
    """

    theta: np.ndarray
    covariance: np.ndarray
    weight: np.ndarray
    residual: np.ndarray
    chi2: float
    n_observations: int
    n_independent: float
    n_outliers: int
    serial: float
    r_factor: float
    wr_factor: float


class Noise:
    """Variance of each pixel, ``constant + slope · model`` or as given.

    Parameters
    ----------
    y : (n,) observations
    sigma : (n,) or None
        Given uncertainties; NaN is filled with the smallest. When their squares are a linear function of the
        observations themselves (counting data, σ² = counts) the same function of the model is used instead, because
        weights from own counts favour whatever counted low. Without sigma, whole numbers are taken for counts, and
        otherwise both coefficients are estimated from the residuals.
    """

    def __init__(self, y: np.ndarray, sigma: np.ndarray | None) -> None:
        self.y, self.constant, self.slope, self.given = y, 1.0, 0.0, None
        if sigma is None:
            counts = bool((y >= 0).all() and (y == np.round(y)).all() and y.max() > 2)
            self.estimate = not counts
            if counts:
                self.constant, self.slope = 0.0, 1.0
            return
        self.estimate = False
        finite = np.isfinite(sigma)
        if not finite.any():
            raise DataError("sigma is not known on any measured pixel; expected standard uncertainties, or none at all.")
        self.given = np.where(finite, sigma, sigma[finite].min()) ** 2
        self._look_for_counting(finite)

    def _look_for_counting(self, finite) -> None:
        y, variance = self.y[finite], self.given[finite]
        spread = y.var()
        if spread == 0:
            return
        slope = np.mean((y - y.mean()) * (variance - variance.mean())) / spread
        constant = variance.mean() - slope * y.mean()
        misfit = np.mean((variance - constant - slope * y) ** 2)
        if slope > 0 and misfit < 1e-3 * variance.var():
            self.given, self.constant, self.slope = None, max(constant, 0.0), slope

    def update(self, model: np.ndarray, residual: np.ndarray) -> None:
        """Estimate constant and slope from residuals in bins of like model intensity, both at least zero."""
        if not self.estimate:
            return
        step = max(1, model.size // _SAMPLE)
        level, residual = np.maximum(model[::step], 0.0), residual[::step]
        bins = np.array_split(np.argsort(level, kind="stable"), min(_BINS, max(1, level.size // 50)))
        mean = np.array([level[b].mean() for b in bins])
        spread = np.array([_clipped_mean_square(residual[b], m) for b, m in zip(bins, mean, strict=True)])
        floor = 1e-20 * max(float(np.mean(self.y**2)), 1e-300)
        rows = np.stack([np.ones_like(mean), mean], 1) / (spread + floor)[:, None]
        from scipy.optimize import nnls

        scale = np.abs(rows).max(0).clip(1e-300)
        constant, slope = nnls(rows / scale, np.ones(len(mean)))[0] / scale
        self.constant, self.slope = max(constant, floor), slope

    def variance(self, model: np.ndarray) -> np.ndarray:
        if self.given is not None:
            return self.given
        out = self.constant + self.slope * np.maximum(model, 0.0)
        return np.maximum(out, 0.02 * max(np.median(out), np.mean(out)))

    def z(self, model: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """Standardised residuals; square roots (Anscombe) for counting noise, whose tail is no bell curve."""
        if self.given is not None or self.slope <= 0:
            return (self.y - model) / np.sqrt(variance)
        b = self.slope
        rest = 0.375 * b * b + self.constant
        return 2.0 / b * (np.sqrt(np.maximum(b * self.y + rest, 0.0)) - np.sqrt(b * np.maximum(model, 0.0) + rest))


def _clipped_mean_square(r: np.ndarray, level: float) -> float:
    """Mean square without what is beyond five standard deviations, unless that is what makes up the intensity."""
    square = r * r
    now = float((1.4826 * np.median(np.abs(r))) ** 2) or float(square.mean())
    for _ in range(10):
        inside = square[square <= 25.0 * now]
        new = float(inside.mean()) if inside.size else now
        if abs(new - now) <= 1e-3 * now:
            break
        now = new
    left = r[square <= 25.0 * now].mean() if now else 0.0
    # few counts a pixel: hardly any pixel counts at all, and those that do are no outliers
    return float(square.mean()) if left < -0.2 * level else now


def invert(matrix: np.ndarray, names) -> np.ndarray:
    """Inverse of a normal matrix; a DataError that names what cannot be told apart when it is singular."""
    diagonal = np.diag(matrix)
    if (diagonal <= 0).any():
        raise DataError(f"the data hold no information on {names[int(np.argmin(diagonal))]}; leave it out or measure more.")
    scale = 1.0 / np.sqrt(diagonal)
    value, vector = np.linalg.eigh(matrix * scale[:, None] * scale)
    if value[0] < SINGULAR:
        mixed = np.argsort(-np.abs(vector[:, 0]))[:4]
        mixed = [names[i] for i in mixed if abs(vector[i, 0]) > 0.15]
        raise DataError(f"the measured pixels cannot tell apart {', '.join(mixed)}; expected fewer shells, or a larger region.")
    return (vector / value @ vector.T) * scale[:, None] * scale


def solve_design(design: Design, y: np.ndarray, sigma=None, share=None, *, robust=True, serial=True) -> Solution:
    """Fit the columns of a design to the used pixels.

    Parameters
    ----------
    design : Design
    y : (n_used,)
    sigma : (n_used,) or None, see `Noise`
    share : (n_used,) or None
        1 / number of pixels that carry the same information (symmetrised data).
    robust : bool
        Find outliers with Tukey's biweight (c = 6) and leave out what is further than six standard deviations; the
        last fit is plain weighted least squares on the others, so its covariance is the textbook's (reweighted
        least squares: Rousseeuw & Leroy, Robust Regression and Outlier Detection, 1987).
    serial : bool
        Widen the covariance by `serial_factor`.
    """
    share = np.ones(design.n_used) if share is None else share
    noise = Noise(y, sigma)
    weight = share if noise.given is None else share / noise.given
    theta = _solve(design, y, weight)
    model = design.predict(theta)
    for round_ in range(_ROUNDS):
        noise.update(model, y - model)
        variance = noise.variance(model)
        weight = share / variance
        if robust:
            weight = weight * _biweight(noise.z(model, variance), gentle=round_ < 3)
        old = model
        theta = _solve(design, y, weight)
        model = design.predict(theta)
        if round_ >= 3 and np.mean(weight * (model - old) ** 2) < 1e-6 * np.mean(weight * (y - model) ** 2) + 1e-300:
            break
        if not robust and not noise.estimate and noise.given is not None:
            break
    noise.update(model, y - model)
    variance = noise.variance(model)
    weight = share / variance
    outliers = 0
    if robust:
        bad = np.abs(z := noise.z(model, variance)) > TUNING * max(1.0, 1.4826 * float(np.median(np.abs(z))))
        outliers = int(bad.sum())
        weight = np.where(bad, 0.0, weight)
        if outliers > _MANY * bad.size:
            warnings.warn(
                f"{outliers / bad.size:.1%} of the pixels were left out as outliers; more shells may explain them, "
                "or robust=False keeps them.",
                PlausibilityWarning,
                stacklevel=5,
            )
    return _finish(design, y, weight, share, outliers, serial)


def _biweight(z: np.ndarray, *, gentle: bool) -> np.ndarray:
    """Huber's weights first, which forgive any start, then Tukey's biweight."""
    scale = max(1.4826 * float(np.median(np.abs(z))), 1.0)
    if gentle:
        return 1.0 / np.maximum(1.0, np.abs(z) / (1.5 * scale))
    return np.square(np.maximum(1.0 - np.square(z / (TUNING * scale)), 0.0))


def _solve(design: Design, y, weight) -> np.ndarray:
    matrix, right = design.normal(y, weight)
    return invert(matrix, design.names) @ right


def _finish(design: Design, y, weight, share, outliers: int, serial: bool) -> Solution:
    matrix, right = design.normal(y, weight)
    inverse = invert(matrix, design.names)
    theta = inverse @ right
    residual = y - design.predict(theta)
    kept = weight > 0
    freedom = float(share[kept].sum()) - design.size
    if freedom < 1:
        n = int(share[kept].sum())
        raise DataError(f"data has {n} independent usable pixels for {design.size} parameters; expected more pixels.")
    weighted = weight * residual**2
    chi2 = float(weighted.sum()) / freedom
    widen = 1.0
    if serial:
        grid = np.zeros(design.geometry.shape)
        grid[design.used] = np.sqrt(weight) * residual
        inside = np.zeros(design.geometry.shape)
        inside[design.used] = kept
        widen = serial_factor(grid, inside)
        if widen > 1.5:
            logger.info("neighbouring residuals are alike; standard uncertainties are widened by %.2f", np.sqrt(widen))
    clean = np.abs(y[kept]).sum()
    return Solution(
        theta, inverse * chi2 * widen, weight, residual, chi2, int(kept.sum()), float(share[kept].sum()), outliers, widen,
        float(np.abs(residual[kept]).sum() / clean), float(np.sqrt(weighted.sum() / (weight * y**2).sum())),
    )  # fmt: skip


def serial_factor(z: np.ndarray, inside: np.ndarray, reach: int = 4) -> float:
    """Sum of the autocorrelation of residuals over near lags: by how much their covariance matrix widens that of the parameters.

    Interpolated or smoothed data, and small misfits of the model, leave neighbouring residuals alike; standard
    uncertainties that take them for independent are too small (Bérar & Lelann, J. Appl. Cryst. 24, 1, 1991). For
    columns that vary slowly over the reach of the correlation, Σ_ij x_i ρ(i - j) x_j ≈ Σ_i x_i² · Σ_k ρ(k). Only correlations
    above three times their own noise count, so white noise gives 1.

    Parameters
    ----------
    z : (*shape) residual / sigma, 0 where not used
    inside : (*shape) 1 where used
    reach : int, pixels along each axis
    """
    lags = [min(reach, n - 1) for n in z.shape]
    shape = [n + m for n, m in zip(z.shape, lags, strict=True)]
    from scipy import fft

    shape = [fft.next_fast_len(n, real=True) for n in shape]

    def correlate(a):
        full = fft.irfftn(np.abs(fft.rfftn(a, shape)) ** 2, shape)
        index = np.ix_(*(np.arange(-m, m + 1) for m in lags))
        return full[index]

    pairs = np.maximum(correlate(inside), 1.0)
    product = correlate(z)
    centre = tuple(lags)
    rho = (product / pairs) / (product[centre] / pairs[centre] + 1e-300)
    rho[np.abs(rho) < 3.0 / np.sqrt(pairs)] = 0.0
    return float(max(1.0, rho.sum()))
