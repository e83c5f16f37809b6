"""The search for lines: resampling, noise, the data's own line width, and a matched filter.

The filter is the least-squares amplitude of a Gaussian line on a constant within ±1.5 widths (a slope is orthogonal to
both), evaluated at every point: a convolution whose kernel follows the line width along the axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d, percentile_filter, uniform_filter1d
from scipy.signal import fftconvolve

from .transform import counting_sigma

__all__ = ["Proposal", "Sampled", "kalpha2_position", "line_width", "sample", "search"]

_MAX_GRID = 60_000
#: by how many standard deviations noise may lift the filter's output at one scale above that of the next
SPIKE = 3.0


@dataclass(frozen=True)
class Sampled:
    """A pattern on a uniform axis: 2θ, intensity (gaps interpolated), variance of each point, which were measured."""

    x: np.ndarray
    y: np.ndarray
    variance: np.ndarray
    good: np.ndarray
    counting: bool

    @property
    def step(self) -> float:
        return float(self.x[1] - self.x[0])


@dataclass(frozen=True)
class Proposal:
    """Candidate lines: position (degrees), height above the background, expected width (degrees)."""

    position: np.ndarray
    height: np.ndarray
    width: np.ndarray

    def __len__(self) -> int:
        return self.position.size


def sample(pattern) -> Sampled:
    """The pattern on a uniform axis (its own where that is uniform to 1 % of a step), with a noise estimate."""
    x, good = pattern.two_theta, ~pattern.mask
    y = np.interp(x, x[good], pattern.intensity[good])
    sigma = counting_sigma(pattern)
    variance = None
    if sigma is not None:
        known = good & np.isfinite(sigma) & (sigma > 0)
        if known.mean() > 0.5:
            variance = np.interp(x, x[known], np.square(sigma[known]))
            # The uncertainty of an observed count is itself noisy; the neighbours know better.
            variance = np.convolve(np.pad(variance, 2, mode="edge"), np.array([1, 2, 3, 2, 1]) / 9, mode="valid")
    steps = np.diff(x)
    if np.ptp(steps) > 0.01 * steps.mean():
        n = int(min(np.ceil((x[-1] - x[0]) / np.median(steps)) + 1, _MAX_GRID))
        grid = np.linspace(x[0], x[-1], n)
        nearest = np.clip(np.searchsorted(x, grid), 1, x.size - 1)
        good = good[nearest] & good[nearest - 1]
        variance = None if variance is None else np.interp(grid, x, variance)
        x, y = grid, np.interp(grid, x, y)
    counting = variance is not None
    if not counting:
        variance = _estimate_variance(x, y, good)
    variance = np.where(good, variance, 1e6 * variance.max())
    return Sampled(x, y, variance, good, counting)


def _estimate_variance(x, y, good) -> np.ndarray:
    """Local noise of the baseline plus a part proportional to the signal, from fourth differences.

    Fourth differences remove lines that are wider than a few steps; the scale between data that were smoothed,
    interpolated or rectified and white noise is set later, by the filter output and by the residuals of the fit.
    """
    kernel = np.array([1.0, -4.0, 6.0, -4.0, 1.0]) / np.sqrt(70)
    rough = np.convolve(np.pad(y, 2, mode="edge"), kernel, mode="valid") ** 2
    window = max(25, int(4.0 / (x[1] - x[0])) | 1)
    level = gaussian_filter1d(y, 3)
    # A low percentile of the squares: lines may fill half of a window.  0.2104 is that of a squared unit normal at 35 %.
    base = percentile_filter(rough, 35, size=window) / 0.2104
    base = np.maximum(uniform_filter1d(base, window), 0.05 * np.median(base[good]))
    floor = percentile_filter(level, 20, size=window)
    strong = good & (level - floor > 0.1 * (level[good].max() - np.median(level)))
    gain = 0.0
    if strong.sum() > 10:
        gain = max(float(np.median((rough - base)[strong] / (level - floor)[strong])) / 0.4549, 0.0)
    if base.max() <= 0:  # noiseless data: a thousandth of the range keeps the arithmetic finite
        base = np.full_like(y, (1e-3 * np.ptp(y)) ** 2)
    base = np.maximum(base, (1e-5 * np.ptp(y)) ** 2)
    return base + gain * np.maximum(level - floor, 0)


def _kernel(points: float) -> np.ndarray:
    """Kernel of the amplitude of a Gaussian of FWHM ``points`` on a constant."""
    half = max(2, round(1.5 * points))
    g = np.exp(-4 * np.log(2) * (np.arange(-half, half + 1) / points) ** 2)
    g -= g.mean()
    return g / (g @ g)


def _filter(y, variance, points: float) -> tuple[np.ndarray, np.ndarray]:
    """Amplitude and its variance at every point, for one width."""
    kernel = _kernel(points)
    half = kernel.size // 2
    amplitude = fftconvolve(np.pad(y - y.min(), half, mode="edge"), kernel, mode="valid")
    spread = fftconvolve(np.pad(variance, half, mode="edge"), kernel**2, mode="valid")
    return amplitude, np.maximum(spread, variance.min() * (kernel @ kernel))


def line_width(data: Sampled) -> np.ndarray:
    """Full width at half maximum (degrees) of the strong lines, as an (n,) constant array.

    Strong maxima are taken at the finest scale that shows some; each is followed to coarser scales as long as it
    stands out better, which ends at its own width (at the next larger one it would merge with its neighbours). Where the
    maxima are spikes of noise on broad lines, more lines stand out at a coarser width: then that one.
    """
    limit = max(min(1.5 / data.step, data.x.size / 8), 2.5)
    scales = 2.5 * 1.25 ** np.arange(1 + int(np.log(limit / 2.5) / np.log(1.25)))
    ratios = []
    for points in scales:
        amplitude, spread = _filter(data.y, data.variance, points)
        ratios.append(amplitude / np.sqrt(spread))
    first, tops = _strongest(ratios)
    if not tops.size:
        return np.full(data.x.size, 5.0 * data.step)
    fine, coarse = (
        np.full(data.x.size, data.step * float(np.median([
            _half_width(data.y, top, _best_scale(ratios, scales, first, top, spike)) for top in tops
        ])))
        for spike in (0.0, SPIKE)
    )  # fmt: skip
    return coarse if _standing_out(data, coarse) > _standing_out(data, fine) else fine


def _strongest(ratios) -> tuple[int, np.ndarray]:
    """Index of the finest scale at which some maxima are strong, and the strongest of them; none where there are none."""
    for count, level in ((3, 12.0), (1, 12.0), (1, 6.0)):
        for first, ratio in enumerate(ratios):
            tops = _maxima(ratio)
            tops = tops[ratio[tops] > level]
            if tops.size >= count:
                return first, tops[np.argsort(-ratio[tops])][:12]
    return 0, np.zeros(0, int)


def _standing_out(data: Sampled, width) -> int:
    """Number of lines of a given width that stand out of the noise."""
    amplitude, noise = _filter_along(data, data.y, width)
    ratio = amplitude / noise
    tops = _maxima(ratio)
    tops = tops[ratio[tops] > 5.0]
    return int(_tallest(data.x[tops], ratio[tops], width[tops]).sum())


def _best_scale(ratios, scales, first: int, top: int, spike: float) -> float:
    """The scale at which a maximum stands out best, of those up to where it begins to stand out less by ``spike``.

    A spike of noise on a broad line is at its best at a scale of its own, the line at a coarser one.
    """
    best, chosen = -np.inf, first
    for i in range(first, len(scales)):
        slack = max(1, round(0.2 * scales[i]))
        value = ratios[i][max(top - slack, 0) : top + slack + 1].max()
        if value < best - spike:
            break
        if value > best:
            best, chosen = value, i
    return float(scales[chosen])


def _half_width(y, top: int, points: float) -> float:
    """Full width at half maximum (points) around ``top``, at most ``points``: Lorentzian tails favour wide filters."""
    half = max(3, round(1.5 * points))
    low = max(top - half, 0)
    piece = gaussian_filter1d(y[low : top + half + 1], max(0.1 * points, 0.5))
    above = piece - np.percentile(piece, 10) > 0.5 * (piece[top - low] - np.percentile(piece, 10))
    left, right = above[: top - low + 1][::-1], above[top - low :]
    run = [int(np.argmin(side)) if not side.all() else side.size for side in (left, right)]
    return float(np.clip(sum(run) - 1, 2.5, points))


def search(data: Sampled, width, threshold: float, radiation, lines=None) -> Proposal:
    """Candidate lines above ``threshold`` standard deviations of the filter.

    Parameters
    ----------
    data : Sampled
    width : (n,) array
        Expected line width along the axis, in degrees.
    threshold : float
    radiation : Radiation
        Maxima at the Kα2 position of a stronger candidate are left out.
    lines : Lines, optional
        Lines already fitted: the residuals are searched, allowing for a profile that is wrong by some per cent.
    """
    y = data.y if lines is None else data.y - lines.model(data.x)
    amplitude, noise = _filter_along(data, y, width)
    if lines is not None:
        envelope = lines.envelope(data.x)
        noise = noise + 0.08 * envelope
    ratio = amplitude / noise
    tops = _maxima(ratio)
    tops = tops[(ratio[tops] > threshold) & data.good[tops] & (tops > 1) & (tops < data.x.size - 2)]
    offset = _vertex(ratio, tops)
    position, height, local = data.x[tops] + offset * data.step, amplitude[tops], width[tops]
    keep = np.ones(tops.size, dtype=bool)
    if lines is not None and len(lines):
        distance = np.abs(position[:, None] - lines.position[None, :]).min(axis=1)
        keep &= distance > 0.5 * local
    keep &= _tallest(position, ratio[tops], local)
    if radiation.alpha2 is not None:
        keep &= ~_is_kalpha2(position, height, local, radiation)
    return Proposal(position[keep], height[keep], local[keep])


def _filter_along(data: Sampled, y, width) -> tuple[np.ndarray, np.ndarray]:
    """Amplitude and its standard deviation with a width that changes along the axis, in steps of at most 15 %."""
    low, high = width.min(), width.max()
    n = 1 + int(np.ceil(np.log(high / low) / np.log(1.15) - 1e-9)) if high > low else 1
    levels = np.geomspace(low, high, n) if n > 1 else np.array([low])
    which = np.abs(np.log(width[None, :] / levels[:, None])).argmin(axis=0)
    amplitude, spread = np.empty_like(y), np.empty_like(y)
    for i, level in enumerate(levels):
        rows = which == i
        if rows.any():
            a, s = _filter(y, data.variance, level / data.step)
            amplitude[rows], spread[rows] = a[rows], s[rows]
    noise = np.sqrt(spread)
    return amplitude, noise if data.counting else noise * _correlation(data, amplitude / noise)


def _correlation(data: Sampled, ratio) -> float:
    """By how much the filter output scatters more than the point-to-point noise says (smoothed data: several times).

    One number for the pattern, from its windows with the fewest lines: smoothing is the same everywhere.
    """
    window = max(51, int(8.0 / data.step) | 1)
    # 0.3853 is the 30th percentile of |unit normal|; lines fill the upper part of the distribution.
    scatter = percentile_filter(np.abs(ratio), 30, size=window) / 0.3853
    return max(float(np.percentile(scatter[data.good], 15)), 1.0)


def kalpha2_position(position, radiation) -> np.ndarray:
    """2θ (degrees) of the Kα2 line whose Kα1 line is at ``position``; NaN beyond 180°."""
    sine = np.sin(np.radians(np.asarray(position) / 2)) * radiation.alpha2 / radiation.wavelength
    with np.errstate(invalid="ignore"):
        return 2 * np.degrees(np.arcsin(sine))


def _tallest(position, ratio, width) -> np.ndarray:
    """Drop maxima within 0.6 widths of a more significant one: noise on the flat top of a broad line."""
    keep = np.ones(position.size, dtype=bool)
    for i in np.argsort(-ratio):
        if keep[i]:
            near = np.abs(position - position[i]) < 0.6 * width[i]
            near[i] = False
            keep &= ~near
    return keep


def _is_kalpha2(position, height, width, radiation) -> np.ndarray:
    second = kalpha2_position(position, radiation)
    near = np.abs(position[:, None] - second[None, :]) < 0.4 * width[:, None]
    near &= (second - position)[None, :] > 0.5 * width[:, None]
    return np.any(near & (height[:, None] < 0.75 * height[None, :]), axis=1)


def _maxima(values) -> np.ndarray:
    return np.flatnonzero((values[1:-1] > values[:-2]) & (values[1:-1] >= values[2:])) + 1


def _vertex(values, index) -> np.ndarray:
    """Offset of the parabola's top through three points, in steps."""
    left, mid, right = values[index - 1], values[index], values[index + 1]
    curvature = left - 2 * mid + right
    return np.clip(np.where(curvature < 0, 0.5 * (left - right) / np.minimum(curvature, -1e-300), 0.0), -0.5, 0.5)
