"""Lines of every width in one pattern: what the lattice search reads.

A line is a maximum, along the axis and over scales, of the negative second derivative of the pattern smoothed with a
Gaussian (Lindeberg, Int. J. Comput. Vis. 30, 79 (1998)). Responses are calibrated: a Gaussian line of width σ and height h
answers a filter of scale s at a distance o with

    ``h · 2^1.5 σ s² / (σ² + s²)^1.5 · (1 - o² / (σ² + s²)) · exp(-o² / 2(σ² + s²))``,

which is h for s = σ, o = 0. So what the lines that were accepted already answer is taken off before the next one is judged,
and at the end the heights of all are solved for together: shoulders stay, and neither the ripples on a broad line nor the
hump of two sharp ones are taken for lines.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.ndimage import maximum_filter1d, uniform_filter1d

from .prepare import AXIS_POINTS, AXIS_START, AXIS_STEP, MAX_PEAKS, REFERENCE_WAVELENGTH

__all__ = ["search_lines"]

#: widths (standard deviations) of the filters in points of the common axis: 0.03° to 1.1°; what is still broader is a hump
#: of the background
SCALES = 1.5 * 1.35 ** np.arange(13)
#: how far a kernel reaches, in widths
_REACH = 5.0
_PAD = int(np.ceil(_REACH * SCALES[-1]))
_LENGTH = next_fast_len(AXIS_POINTS + 2 * _PAD, real=True)
#: signal to noise that a line needs; more of it where it is much sharper than the lines of its pattern
_THRESHOLD, _SHARP = 4.0, 6.0
#: height relative to the strongest line that a line needs; more of it where it is much broader than the others
_FLOOR, _BROAD = 0.004, 0.015
#: by how much a line's answer at finer scales may exceed that of a Gaussian, at its centre and beside it: Lorentzian lines
#: are more pointed
_CUSP = 50.0, 1.0
#: windows of the noise estimate, points
_WINDOW = 160
#: scales whose noise is read from the response itself
_FINE = 4
#: signal to noise is largest at twice a line's width (more for Lorentzian tails): power of the scale that counters it
_FINER = 0.25
#: width of the maximum of a line's answer at its own scale, in widths of the line
_AT_HOME = (2.0 / 3.0) ** 0.5
#: maxima closer than this, in widths of the finer filter, are one line
_SAME = 0.7
#: candidates looked at, most significant first
_CANDIDATES = 400


@lru_cache(maxsize=1)
def _kernels() -> tuple[np.ndarray, np.ndarray]:
    """Transforms of the kernels (response 1 to a Gaussian of their width and height 1), and of their squares."""
    t = np.arange(_LENGTH)
    t = np.where(t > _LENGTH // 2, t - _LENGTH, t)
    plain = []
    for s in SCALES:
        g = np.exp(-0.5 * (t / s) ** 2)
        inside = np.abs(t) <= np.ceil(_REACH * s)
        c = np.where(inside, (1 - (t / s) ** 2) * g, 0.0)
        c[inside] -= c[inside].mean()
        plain.append(c / (c @ g))
    plain = np.array(plain)
    return rfft(plain), rfft(plain**2)


def _held(y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values between measured points interpolated, the first and last held on, with room for the kernels."""
    measured = np.flatnonzero(mask > 0)
    full = np.interp(np.arange(AXIS_POINTS), measured, y[measured])
    full[: measured[0]] = y[measured[:20]].mean()
    full[measured[-1] + 1 :] = y[measured[-20:]].mean()
    return np.pad(full, (_PAD, _LENGTH - AXIS_POINTS - _PAD), mode="edge")


def _variance(y: np.ndarray, mask: np.ndarray, finest: np.ndarray) -> np.ndarray:
    """Variance of each point from second differences: that of the baseline, and a part that grows with the signal.

    ``finest``, the response at the finest scale, tells where lines are straight enough for differences to be noise.
    """
    rough = np.zeros_like(y)
    rough[1:-1] = (y[2:] - 2 * y[1:-1] + y[:-2]) ** 2 / 6.0
    good = (mask > 0) & (np.roll(mask, 1) > 0) & (np.roll(mask, -1) > 0)
    blocks = np.where(good, rough, np.nan).reshape(-1, _WINDOW)
    enough = good.reshape(-1, _WINDOW).sum(1) >= _WINDOW // 8
    if not enough.any():
        return np.full_like(y, 1e-10)
    centre = _WINDOW * (np.arange(len(blocks)) + 0.5) - 0.5
    # 0.2104 is the 35th percentile of a squared unit normal: lines may fill half of a window
    base = np.nanpercentile(blocks[enough], 35, axis=1) / 0.2104
    base = np.interp(np.arange(y.size), centre[enough], base)
    level = uniform_filter1d(y, 7)
    curvature = finest / (2.0**1.5 * SCALES[0] ** 2)
    strong = good & (level > 0.1) & (curvature**2 < base)
    gain = max(np.median((rough - base)[strong] / level[strong]) / 0.4549, 0.0) if strong.sum() > 10 else 0.0
    return base + gain * np.maximum(level, 0.0) + 1e-10


def _responses(y: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scales, points) responses and their standard deviations."""
    plain, squared = _kernels()
    cut = slice(_PAD, _PAD + AXIS_POINTS)
    response = irfft(rfft(_held(y, mask)) * plain, _LENGTH)[:, cut]
    variance = _variance(y, mask, response[0])
    spread = irfft(rfft(_held(variance, mask)) * squared, _LENGTH)[:, cut]
    noise = np.sqrt(np.maximum(spread, 1e-12))
    # data that were smoothed scatter more than their second differences say: at fine scales, where lines leave room
    correlation, centre = 1.0, _WINDOW * (np.arange(AXIS_POINTS // _WINDOW) + 0.5) - 0.5
    for k in range(len(SCALES)):
        local = correlation
        if k < _FINE:
            blocks = np.where(mask > 0, np.abs(response[k] / noise[k]), np.nan).reshape(-1, _WINDOW)
            enough = np.isfinite(blocks).sum(1) >= _WINDOW // 8
            if enough.any():
                scatter = np.nanpercentile(blocks[enough], 30, axis=1) / 0.3853
                correlation = max(float(np.percentile(scatter, 25)), correlation)
                local = np.maximum(np.interp(np.arange(AXIS_POINTS), centre[enough], scatter), correlation)
        noise[k] *= local
    return response, noise


def _answer(offset, width, scale) -> np.ndarray:
    """Response of a Gaussian of unit height, see the module."""
    v = width**2 + scale**2
    u = offset**2 / v
    return 2.0**1.5 * width * scale**2 / v**1.5 * (1.0 - u) * np.exp(-0.5 * u)


def _pointed(offset, width, scale) -> np.ndarray:
    """Share of the answer of a line of this ``width`` that may be the shape of its top, at finer scales."""
    near = np.abs(offset) / width
    share = np.where(near < 0.4, _CUSP[0], np.where(near < 1.5, _CUSP[1], 0.0))
    return np.where(scale < width / 1.2, share, 0.0)


def _candidates(response: np.ndarray, noise: np.ndarray, inside: np.ndarray):
    """Maxima along the axis at each scale that stand out of the noise, the best first: scale, point.

    ``inside``: how many points away the end of the measured range is.
    """
    scale, point = [], []
    for k, s in enumerate(SCALES):
        near = maximum_filter1d(response[k], 2 * max(int(0.7 * s), 1) + 1)
        top = (response[k] >= near) & (response[k] > _THRESHOLD * noise[k]) & (inside > 1.2 * s)
        at = np.flatnonzero(top)
        scale.append(np.full(at.size, k))
        point.append(at)
    scale, point = np.concatenate(scale), np.concatenate(point)
    sure = response[scale, point] / noise[scale, point] / SCALES[scale] ** _FINER
    order = np.argsort(-sure, kind="stable")[:_CANDIDATES]
    return scale[order], point[order]


def _usual_width(response, noise, scale, point) -> float:
    """Width of the strong lines of a pattern: the median over its most significant maxima, each at its best scale."""
    found: list[tuple[int, int]] = []
    for k, at in zip(scale, point, strict=True):
        if all(abs(at - other) > 1.5 * max(SCALES[k], SCALES[j]) for j, other in found):
            found.append((k, at))
        if len(found) == 9:
            break
    weight = np.array([response[k, at] for k, at in found])
    strong = weight > 0.1 * weight.max()
    return float(np.median(SCALES[[k for k, _ in found]][strong]))


def _accept(response, noise, inside) -> tuple[np.ndarray, ...]:
    """Lines one after the other: position (points), height, ln width, index of the scale they were found at."""
    scale, point = _candidates(response, noise, inside)
    if not scale.size:
        return (np.zeros(0),) * 4
    usual = _usual_width(response, noise, scale, point)
    value, sigma, width = response[scale, point], noise[scale, point], SCALES[scale]
    # what accepted lines answer at each candidate
    cross = _answer(point[:, None] - point[None].astype(float), width[None], width[:, None])
    foreign = np.zeros(scale.size)
    top = value[np.abs(np.log(width / usual)) < 0.7].max(initial=0.0) or value.max()
    need = np.where(width < usual / 1.6, _SHARP, _THRESHOLD) * sigma
    need = np.maximum(need, np.where(width > 1.6 * usual, _BROAD, _FLOOR) * top)
    taken: list[int] = []
    cusp = np.zeros(scale.size)
    for i in range(scale.size):
        rest = value[i] - foreign[i]
        if rest < need[i] + cusp[i]:
            continue
        finer = [j for j in taken if width[j] < width[i] and abs(point[j] - point[i]) < 1.2 * width[i]]
        if finer and rest < 0.5 * value[i]:
            continue
        if any(abs(point[j] - point[i]) < _SAME * min(width[i], width[j]) for j in taken):
            continue
        taken.append(i)
        foreign += rest * cross[:, i]
        cusp += _pointed(point - point[i], width[i], width) * rest * np.abs(cross[:, i])
    if not taken:
        return (np.zeros(0),) * 4
    keep = np.array(taken, int)
    scale, point = _split(response, noise, scale[keep], point[keep])
    return _solved(response, scale, point, np.maximum(_THRESHOLD * noise[scale, point], _FLOOR * top))


def _split(response, noise, scale, point) -> tuple[np.ndarray, np.ndarray]:
    """Lines that finer scales resolve into two with a gap between them that cannot be noise, replaced by the two."""
    out: list[tuple[int, int]] = []
    for k, at in zip(scale.tolist(), point.tolist(), strict=True):
        for new in _pair(response, noise, k, at) or [(k, at)]:
            if all(abs(new[1] - old[1]) >= _SAME * SCALES[min(new[0], old[0])] for old in out):
                out.append(new)
    pairs = np.array(out, int).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _pair(response, noise, scale: int, point: int) -> list[tuple[int, int]]:
    """Two resolved lines within a line found at a coarser scale, (scale, point) each; empty where there is one line."""
    reach = round(1.4 * SCALES[scale])
    low, high = max(point - reach, 1), min(point + reach + 1, AXIS_POINTS - 1)
    for k in range(scale - 1, max(scale - 5, -1), -1):
        r = response[k, low:high]
        tops = np.flatnonzero((r >= response[k, low - 1 : high - 1]) & (r > response[k, low + 1 : high + 1]))
        tops = tops[r[tops] > 1.5 * _THRESHOLD * noise[k, low + tops]]
        if tops.size < 2:
            continue
        first, second = tops[np.argsort(-r[tops])][:2]
        gap = r[min(first, second) : max(first, second)].min()
        if r[second] > 0.25 * r[first] and r[second] - gap > _THRESHOLD * noise[k, low + second]:
            return [(k, low + int(first)), (k, low + int(second))]
    return []


def _solved(response, scale, point, need) -> tuple[np.ndarray, ...]:
    """Heights of all lines together, what is left too low dropped; positions with the neighbours' answers taken off."""
    for _ in range(6):
        x, s, k = point.astype(float), SCALES[scale], scale
        matrix = _answer(x[:, None] - x[None], s[None], s[:, None])
        height = np.linalg.lstsq(matrix, response[k, point], rcond=1e-3)[0]
        weak = height < need
        near = (np.abs(x[:, None] - x[None]) < 1.2 * s[:, None]) & (s[None] < s[:, None])
        sharp = _pointed(x[:, None] - x[None], s[None], s[:, None])
        weak |= height < (sharp * np.abs(matrix) * height[None]).max(1)
        weak |= (near & (height[None] > 0.5 * height[:, None])).any(1)
        if not weak.any() or weak.all():
            break
        scale, point, need = scale[~weak], point[~weak], need[~weak]
    step = np.maximum(np.round(s / 3.0), 1.0)
    three = []
    for side in (-1, 0, 1):
        at = np.clip(x + side * step, 0, AXIS_POINTS - 1)
        others = _answer(at[:, None] - x[None], s[None], s[:, None]) * height[None]
        np.fill_diagonal(others, 0.0)
        three.append(response[k, at.astype(int)] - others.sum(1))
    left, mid, right = three
    bend = np.maximum(2 * mid - left - right, 1e-9)
    offset = np.clip(0.5 * (right - left) / bend, -1.0, 1.0) * step
    # a Gaussian's answer bends with σ² + s² = 3 r / |r''|
    square = 3.0 * mid / bend * step**2 - s * s
    true = np.sqrt(np.clip(square, 0.5 * s * s, 2.0 * s * s))
    top = 1.0 + np.minimum(0.125 * (right - left) ** 2 / (bend * np.maximum(mid, 1e-9)), 0.5)
    columns = x + offset, height * top / _answer(0.0, true, s), np.log(true * _AT_HOME), k
    hump = (k == len(SCALES) - 1) & (square > 2.0 * s * s)
    return tuple(c[~hump] for c in columns)


def search_lines(y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Lines of one pattern on the common axis, of whatever widths it has.

    Parameters
    ----------
    y : (AXIS_POINTS,) intensity, background and Kα2 removed, the strongest line about 1
    mask : (AXIS_POINTS,), 1 where measured

    Returns
    -------
    (n, 4) float, as `crystaldl.powder.prepare.find_peaks` gives it, strongest first: ln(1/d), ln of the height relative to
    the strongest, ln of height over noise, ln of the width (points of the common axis)
    """
    if (mask > 0).sum() < 50:
        return np.zeros((0, 4))
    response, noise = _responses(np.asarray(y, float), np.asarray(mask, float))
    # where the filter reaches beyond the measured range, the edge itself looks like a line
    measured = np.flatnonzero(mask > 0)
    at = np.arange(AXIS_POINTS)
    inside = np.where(mask > 0, np.minimum(at - measured[0], measured[-1] - at) - 8.0, -1.0)
    found = _accept(response, noise, inside)
    if len(found[0]) == 0:
        return np.zeros((0, 4))
    point, height, spread, scale = found
    at = np.clip(np.round(point).astype(int), 0, AXIS_POINTS - 1)
    significance = height * _answer(0.0, np.exp(spread) / _AT_HOME, SCALES[scale]) / noise[scale, at]
    two_theta = AXIS_START + AXIS_STEP * point
    q = 2.0 * np.sin(np.radians(two_theta / 2)) / REFERENCE_WAVELENGTH
    order = np.argsort(-height)[:MAX_PEAKS]
    columns = [
        np.log(q),
        np.log(np.maximum(height / height.max(), 1e-4)),
        np.log(np.clip(significance, 1.0, 1e4)),
        spread,
    ]
    return np.stack(columns, 1)[order]
