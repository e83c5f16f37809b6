"""Least squares of overlapping pseudo-Voigt lines, Kα doublets included, with covariance.

Lines closer than a few widths are fitted together on a straight background.  A group shares one width and one Lorentz
fraction, held near the expected values by a weak prior, so that weak or crowded lines stay well determined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..physics.wavelengths import Radiation
from .linesearch import Proposal, Sampled, kalpha2_position

__all__ = ["Lines", "choose_doublet", "fit_lines", "profile", "split_lines"]

_LN2 = math.log(2)
_MAX_GROUP = 8
_PRIOR_WIDTH, _PRIOR_ETA = 0.25, 0.3  # standard deviations of ln(fwhm) and of the Lorentz fraction
_REACH = 3.0  # a group's window reaches this many widths beyond its outermost lines


_ARRAYS = ("position", "position_sigma", "area", "area_sigma", "fwhm", "eta", "misfit")


@dataclass(frozen=True)
class Lines:
    """Fitted lines, (n,) each: area and height are those of the Kα1 line alone."""

    position: np.ndarray
    position_sigma: np.ndarray
    area: np.ndarray
    area_sigma: np.ndarray
    fwhm: np.ndarray
    eta: np.ndarray
    misfit: np.ndarray  # reduced χ² of the group
    radiation: Radiation

    def __len__(self) -> int:
        return self.position.size

    @property
    def significance(self) -> np.ndarray:
        return self.area / self.area_sigma

    @property
    def height(self) -> np.ndarray:
        peak = (1 - self.eta) * 2 * math.sqrt(_LN2 / math.pi) + self.eta * 2 / math.pi
        return self.area * peak / self.fwhm

    def take(self, index) -> Lines:
        return Lines(*(getattr(self, name)[index] for name in _ARRAYS), self.radiation)

    def model(self, x) -> np.ndarray:
        """The lines without background on a uniform axis; each is drawn within ±15 widths."""
        out = np.zeros_like(x)
        for p, a, w, e in zip(self.position, self.area, self.fwhm, self.eta, strict=True):
            low, high = np.searchsorted(x, (p - 15 * w, p + 15 * w))
            out[low:high] += a * profile(x[low:high], np.array([p]), w, e, self.radiation)[0]
        return out

    def envelope(self, x) -> np.ndarray:
        """At each point the height of the tallest line (Kα1 or Kα2) within about two widths, falling off outwards."""
        out = np.zeros_like(x)
        step = x[1] - x[0]
        for p, h, w in zip(self.position, self.height, self.fwhm, strict=True):
            end = p if self.radiation.alpha2 is None else float(kalpha2_position(p, self.radiation))
            end = p if math.isnan(end) else end
            low, high = np.searchsorted(x, (p - 6 * w, end + 6 * w))
            far = np.maximum(np.maximum(p - x[low:high], x[low:high] - end), 0) / max(w, step)
            out[low:high] = np.maximum(out[low:high], h / (1 + (far / 1.5) ** 2))
        return out

    def width_model(self, x, fallback) -> np.ndarray:
        """Line width at every ``x``: a robust a + b tan θ through the better lines; ``fallback`` when these are few."""
        strong = np.zeros(0, dtype=bool)
        if len(self):
            strong = self.significance > max(10.0, float(np.median(self.significance)))
        if strong.sum() < 5:
            return fallback
        t, w = np.tan(np.radians(self.position[strong] / 2)), self.fwhm[strong]
        keep = np.ones(w.size, dtype=bool)
        for _ in range(4):
            slope, base = np.polyfit(t[keep], w[keep], 1) if np.ptp(t[keep]) > 0.05 else (0.0, np.median(w[keep]))
            residual = np.abs(w - base - slope * t)
            keep = residual <= 2.5 * max(np.median(residual[keep]), 1e-6)
        kept = w[keep]
        return np.clip(base + slope * np.tan(np.radians(x / 2)), 0.6 * kept.min(), 1.5 * kept.max())


def profile(x, position, fwhm: float, eta: float, radiation) -> np.ndarray:
    """(lines, points) pseudo-Voigt lines of unit Kα1 area, each with its Kα2 line where there is one."""
    return _profiles(x, position, fwhm, eta, radiation)[0]


def _profiles(x, position, fwhm, eta, radiation):
    """Value and derivatives by position, ln(fwhm) and eta, (lines, points) each."""
    value = _pseudo_voigt(x, position, fwhm, eta)
    if radiation.alpha2 is None:
        return value
    second = kalpha2_position(position, radiation)
    reach = np.isfinite(second)
    if not reach.any():
        return value
    second = np.where(reach, second, 1e4)
    ratio = radiation.alpha2 / radiation.wavelength
    moved = (
        ratio * np.cos(np.radians(position / 2)) / np.maximum(np.cos(np.radians(np.minimum(second, 179.9) / 2)), 0.05)
    )
    extra = _pseudo_voigt(x, second, fwhm, eta)
    r = radiation.alpha2_ratio
    factor = (r, r * np.where(reach, moved, 0.0)[:, None], r, r)
    return tuple(v + f * e for v, f, e in zip(value, factor, extra, strict=True))


def _pseudo_voigt(x, position, fwhm, eta):
    u = (x[None, :] - position[:, None]) / fwhm
    square = 4 * u * u
    gauss = (2 * math.sqrt(_LN2 / math.pi) / fwhm) * np.exp(-_LN2 * square)
    root = 1 / (1 + square)
    lorentz = (2 / math.pi / fwhm) * root
    by_position = (8 / fwhm) * u * ((1 - eta) * _LN2 * gauss + eta * lorentz * root)
    by_width = (1 - eta) * gauss * (2 * _LN2 * square - 1) + eta * lorentz * (2 * square * root - 1)
    return (1 - eta) * gauss + eta * lorentz, by_position, by_width, lorentz - gauss


def fit_lines(data: Sampled, proposal: Proposal, radiation, threshold: float, lines: Lines | None = None) -> Lines:
    """Fit the proposed lines, together with lines fitted before, and keep those above ``threshold``.

    Groups that no new line touches keep their result.
    """
    new = _start(proposal, radiation)
    everything = new if lines is None else _join([lines, new])
    fresh = np.zeros(len(everything), dtype=bool)
    fresh[len(everything) - len(new) :] = True
    order = np.argsort(everything.position)
    everything, fresh = everything.take(order), fresh[order]
    total = everything.model(data.x)
    done = []
    for group in _groups(everything, radiation):
        part = everything.take(group)
        if not fresh[group].any():
            done.append(part)
            continue
        fitted = _fit_group(data, part, data.y - total, radiation, threshold)
        done.append(fitted)
    return _join(done) if done else everything


def _start(proposal: Proposal, radiation) -> Lines:
    n = len(proposal)
    eta = np.full(n, 0.5)
    area = proposal.height * proposal.width * 1.25
    unknown = np.full(n, np.inf)
    return Lines(proposal.position, unknown, area, unknown, proposal.width.copy(), eta, unknown, radiation)


def _join(parts) -> Lines:
    return Lines(*(np.concatenate([getattr(p, name) for p in parts]) for name in _ARRAYS), parts[0].radiation)


def _groups(lines: Lines, radiation) -> list[np.ndarray]:
    """Indices of lines that overlap, in runs of at most `_MAX_GROUP`, cut at the widest gaps."""
    if not len(lines):
        return []
    end = lines.position if radiation.alpha2 is None else kalpha2_position(lines.position, radiation)
    end = np.where(np.isfinite(end), end, lines.position)
    gap = (lines.position[1:] - np.maximum.accumulate(end)[:-1]) / lines.fwhm[1:]
    return [run for whole in np.split(np.arange(len(lines)), np.flatnonzero(gap > 2.5) + 1) for run in _cut(whole, gap)]


def _cut(run, gap) -> list[np.ndarray]:
    if run.size <= _MAX_GROUP:
        return [run]
    inner = gap[run[:-1]]
    margin = run.size // 4
    at = margin + int(np.argmax(inner[margin : run.size - 1 - margin])) + 1
    return _cut(run[:at], gap) + _cut(run[at:], gap)


def _fit_group(data: Sampled, part: Lines, residual, radiation, threshold: float) -> Lines:
    """Fit one group; drop what is not significant, not positive or has run into its neighbour, and fit again."""
    start = part
    width = float(np.median(part.fwhm))
    for _ in range(6):
        end = start.position[-1]
        if radiation.alpha2 is not None:
            second = float(kalpha2_position(end, radiation))
            end = second if math.isfinite(second) else end
        low, high = np.searchsorted(data.x, (start.position[0] - _REACH * width, end + _REACH * width))
        rows = np.arange(low, high)[data.good[low:high]]
        if rows.size < 2 * len(start) + 5:
            return start.take(slice(0, 0))
        # What other groups put here stays subtracted: residual + this group's own start = data - others.
        target = residual[rows] + part.model(data.x[low:high])[rows - low]
        fitted = _least_squares(data.x[rows], target, data.variance[rows], start, radiation, data.counting)
        keep = _acceptable(fitted, data, threshold)
        if keep.all():
            return fitted
        start = fitted.take(_without_worst(fitted, keep))
        if not len(start):
            return start
        start = start.take(np.argsort(start.position))
    return fitted.take(keep)


def _without_worst(lines: Lines, keep) -> np.ndarray:
    """Drop the less significant half of the unacceptable lines: the others may recover once those are gone."""
    bad = np.flatnonzero(~keep)
    worst = bad[np.argsort(lines.significance[bad])][: (bad.size + 1) // 2]
    keep = np.ones(len(lines), dtype=bool)
    keep[worst] = False
    return keep


def _acceptable(lines: Lines, data: Sampled, threshold: float) -> np.ndarray:
    keep = (lines.area > 0) & (lines.significance >= threshold) & (lines.position_sigma < lines.fwhm)
    keep &= (lines.position > data.x[0] + 0.3 * lines.fwhm) & (lines.position < data.x[-1] - 0.3 * lines.fwhm)
    order = np.argsort(lines.position)
    for a, b in zip(order[:-1], order[1:], strict=True):
        if lines.position[b] - lines.position[a] < 0.3 * lines.fwhm[a]:
            keep[a if lines.area[a] < lines.area[b] else b] = False
    return keep


def _least_squares(x, y, variance, start: Lines, radiation, counting: bool) -> Lines:
    """Levenberg-Marquardt over positions, areas, ln(fwhm), eta and a straight background."""
    n = len(start)
    width0, eta0 = float(np.median(start.fwhm)), float(np.median(start.eta))
    middle, half = (x[0] + x[-1]) / 2, max((x[-1] - x[0]) / 2, 1e-9)
    line = np.vstack([np.ones_like(x), (x - middle) / half])
    weight = 1 / np.sqrt(variance)
    free = _start_vector(x, y, start, width0, eta0)
    damping, best, state = 1e-3, np.inf, None
    for _ in range(25):
        value, jacobian = _model(x, free, n, line, radiation)
        r = np.concatenate(((y - value) * weight, _prior(free, n, width0, eta0)))
        cost = r @ r
        if cost < best:
            improved = best - cost
            best, state = cost, (free.copy(), jacobian * weight, r)
            damping = max(damping * 0.2, 1e-7)
            if improved < 1e-4 * max(1.0, 1e-2 * cost):
                break
        else:
            damping *= 8
            if damping > 1e6:
                break
        free = _next(state, n, damping, start.position, width0)
    free, jacobian, r = state
    return _finish(free, jacobian, r, n, x.size, radiation, counting)


def _start_vector(x, y, start, width, eta):
    base = np.percentile(y, 15)
    return np.concatenate((start.position, start.area, [math.log(width), min(max(eta, 0.05), 0.95), base, 0.0]))


def _model(x, free, n, line, radiation):
    position, area = free[:n], free[n : 2 * n]
    value, by_position, by_width, by_eta = _profiles(x, position, math.exp(free[2 * n]), free[2 * n + 1], radiation)
    jacobian = np.empty((2 * n + 4, x.size))
    jacobian[:n] = by_position * area[:, None]
    jacobian[n : 2 * n] = value
    jacobian[2 * n] = area @ by_width
    jacobian[2 * n + 1] = area @ by_eta
    jacobian[2 * n + 2 :] = line
    return area @ value + free[2 * n + 2 :] @ line, jacobian


def _prior(free, n, width, eta):
    return np.array([(math.log(width) - free[2 * n]) / _PRIOR_WIDTH, (eta - free[2 * n + 1]) / _PRIOR_ETA])


def _normal(jacobian, r, n):
    matrix = jacobian @ jacobian.T
    gradient = jacobian @ r[:-2]
    for k, sd, value in ((2 * n, _PRIOR_WIDTH, r[-2]), (2 * n + 1, _PRIOR_ETA, r[-1])):
        matrix[k, k] += 1 / sd**2
        gradient[k] += value / sd
    return matrix, gradient


def _next(state, n, damping, position0, width0):
    free, jacobian, r = state
    matrix, gradient = _normal(jacobian, r, n)
    scale = np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    system = matrix / np.outer(scale, scale)
    system[np.diag_indices_from(system)] += damping
    step = np.linalg.solve(system, gradient / scale) / scale
    new = free + step
    new[:n] = np.clip(new[:n], position0 - 0.7 * width0, position0 + 0.7 * width0)
    new[2 * n] = np.clip(new[2 * n], math.log(width0 / 3), math.log(width0 * 3))
    new[2 * n + 1] = np.clip(new[2 * n + 1], 0.0, 1.0)
    return new


def _finish(free, jacobian, r, n, points, radiation, counting: bool) -> Lines:
    """Covariance (JᵀWJ)⁻¹, scaled by the reduced χ² where that is above 1 (and always, where noise was guessed)."""
    matrix, _ = _normal(jacobian, r, n)
    scale = np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    inverse = np.linalg.pinv(matrix / np.outer(scale, scale), hermitian=True)
    reduced = float(r[:-2] @ r[:-2]) / max(points - 2 * n - 4, 1)
    variance = np.diag(inverse) / scale**2 * max(reduced, 1.0 if counting else 0.25)
    sigma = np.sqrt(np.maximum(variance, 1e-300))
    shape = np.full(n, math.exp(free[2 * n])), np.full(n, free[2 * n + 1]), np.full(n, reduced)
    return Lines(free[:n].copy(), sigma[:n], free[n : 2 * n].copy(), sigma[n : 2 * n], *shape, radiation)


def split_lines(data: Sampled, lines: Lines, radiation, threshold: float) -> Lines:
    """Replace lines that fit badly by two where that removes most of the misfit.

    Two lines closer than their width have one maximum, which no search for maxima resolves.  A lopsided profile must
    not pass for two lines: the pair must be at least half a width apart, the weaker one a sixth of the stronger.
    """
    total = lines.model(data.x)
    done = []
    for group in _groups(lines, radiation):
        part = lines.take(group)
        counting = part.significance * np.sqrt(part.misfit)  # before the misfit was charged to the uncertainties
        best = int(np.argmax(counting))
        if part.misfit[0] > 1.5 and counting[best] > 12 and len(part) < _MAX_GROUP:
            part = _split(data, part, best, data.y - total, radiation, threshold)
        done.append(part)
    return _join(done) if done else lines


def _split(data: Sampled, part: Lines, index: int, residual, radiation, threshold: float) -> Lines:
    window = part.model(data.x)
    tries = []
    for shrink in (0.65, 0.35):
        base = replace(part, fwhm=part.fwhm * shrink)
        one = base.take([index])
        shift = 0.3 * part.fwhm[index]
        halves = [replace(one, position=one.position + sign * shift, area=one.area / 2) for sign in (-1, 1)]
        start = _join([base.take(np.arange(len(part)) != index), *halves])
        start = start.take(np.argsort(start.position))
        # `_fit_group` adds its start to what it is given: the group's own lines go in, the new start comes out.
        fitted = _fit_group(data, start, residual + window - start.model(data.x), radiation, threshold)
        if len(fitted) == len(part) + 1:
            tries.append(fitted)
    if not tries:
        return part
    fitted = min(tries, key=lambda f: f.misfit[0])
    pair = np.sort(np.argsort(np.abs(fitted.position - part.position[index]))[:2])
    gap, areas = np.ptp(fitted.position[pair]), np.sort(fitted.area[pair])
    better = fitted.misfit[0] - 1 < 0.5 * (part.misfit[0] - 1)
    return fitted if better and gap > 0.5 * fitted.fwhm[0] and areas[0] > areas[1] / 6 else part


def choose_doublet(data: Sampled, proposal: Proposal, radiation):
    """Whether a bare lab wavelength means Kα1 alone or the doublet: the better fit of strong, well split lines.

    Where nothing decides (low angles, broad or weak lines) the doublet is taken: few instruments are without Kα2.
    """
    double, single = radiation.as_doublet(), radiation.as_single()
    if double.alpha2 is None or not len(proposal):
        return double
    split = kalpha2_position(proposal.position, double) - proposal.position
    usable = np.flatnonzero(np.nan_to_num(split) > 0.6 * proposal.width)
    usable = usable[np.argsort(-proposal.height[usable])][:6]
    evidence = 0.0
    for i in usable:
        one = Proposal(*(np.array([v[i]]) for v in (proposal.position, proposal.height, proposal.width)))
        low, high = np.searchsorted(
            data.x, (one.position[0] - 3 * one.width[0], one.position[0] + split[i] + 3 * one.width[0])
        )
        rows = slice(low, high)
        if high - low < 12 or not data.good[rows].all():
            continue
        x, y, v = data.x[rows], data.y[rows], data.variance[rows]
        costs = [_cost(x, y, v, one, kind) for kind in (single, double)]
        # Bounded votes: one crowded region must not outweigh the others.
        evidence += float(np.clip(np.log(costs[0] / costs[1]), -1.5, 1.5))
    return single if evidence < -0.3 else double


def _cost(x, y, variance, one: Proposal, radiation) -> float:
    fitted = _least_squares(x, y, variance, _start(one, radiation), radiation, True)
    model = fitted.model(x)
    line = np.vstack([np.ones_like(x), x - x.mean()]).T / np.sqrt(variance)[:, None]
    rest = (y - model) / np.sqrt(variance)
    rest = rest - line @ np.linalg.lstsq(line, rest, rcond=None)[0]
    return float(rest @ rest) + x.size
