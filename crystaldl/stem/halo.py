"""Rings of amorphous material around the direct beam, taken away before disks are looked for.

The rings of an amorphous film are hardly wider than a disk, so that neither a kernel of zero mean nor a linear background takes
them away, and pieces of them pass for disks. But unlike disks they are smooth along the azimuth: a ring's level is that at
which most of its pixels lie, whatever disks stand on it, and where two levels are as good the lower one, since disks only add: no
more pixels lie below a ring's level than counting noise and speckle explain, which bounds it where disks cover all but a few.
The middle of the rings is where the pattern is its own inversion (the maximum of its convolution with itself), moved to where
they are roundest. What falls off without rings, as the tail of the direct beam does (a convex function of the radius), stays:
that is background as any other.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from scipy.fft import next_fast_len
from torch import Tensor

from .correlate import fill_unmeasured

AZIMUTHS = 60
STEP = 1 / 6  # of the disks' radius, between two radii
TOGETHER = 0.35  # share of a ring's pixels that agree on its level
ALIKE = 1.6  # how much wider than the shortest an interval of values may be that lies lower
NEAR = 2.2  # half widths of that interval within which pixels belong to the level
SPREAD = 2.2  # standard deviations of normal noise in the half width of that interval
SEEN = 1.5  # standard deviations of its counts that rings must change a disk by
LEAST = 0.15  # share of a ring that must be seen
ROUNDS = 2  # of moving the middle
SMALL = 96  # px: larger patterns are binned to find the middle
SMOOTHING = 1.3  # steps, standard deviation along the radius: no ring is sharper than the disks
LOWER, BELOW = 0.05, 1.65  # share of a ring's pixels that lie lower than so many standard deviations below its level
SPECKLE = 0.2  # standard deviation of rings along the azimuth beside counting noise, of their level
FINE = 4  # points a step of which images are drawn
BEAM = 1.4  # radii: the direct beam hides what lies below it


class Rings:
    """Rings of a stack of patterns.

    Parameters
    ----------
    patterns : (B, H, W)
        NaN where not measured.
    radius : float
        Of the disks, px.
    """

    def __init__(self, patterns: Tensor, radius: float):
        filled = fill_unmeasured(patterns)
        smooth = torch.nn.functional.avg_pool2d(filled[:, None], 3, 1, 1, count_include_pad=False)
        self.shape, self.radius, self.step = patterns.shape, radius, max(1.0, STEP * radius)
        centre = middle(filled)
        values, inside, _ = _unrolled(smooth, centre, 2 * self.step)
        level, half, _, known = _levels(values[:, 0], inside)
        excess = self._profile(level, known, 2 * self.step)
        # of a disk's area, over the counting noise in it, which the smoothed values tell
        weight = math.sqrt(math.pi) * radius / (3 * SPREAD)
        noise = half + 1e-3 * half.amax(1, keepdim=True) + 1e-20
        self.rows = ((weight * excess / noise).amax(1) > SEEN).nonzero()[:, 0]  # the patterns that have rings
        filled, smooth, self.centre = filled[self.rows, None], smooth[self.rows], centre[self.rows]
        for _ in range(ROUNDS if len(self.rows) else 0):
            values, inside, _ = _unrolled(smooth, self.centre, 2 * self.step)
            level, half, *_ = _levels(values[:, 0], inside)
            values = torch.where(inside, values[:, 0], torch.nan)
            self.centre = self.centre + _towards_round(values, level, half, 2 * self.step, radius)
        # with the variance of a mean of nine pixels by their own scatter
        scatter = torch.nn.functional.avg_pool2d(filled**2, 3, 1, 1, count_include_pad=False) - smooth**2
        self.images = torch.cat([smooth, scatter.clamp_min(0) / 8], 1)

    def excess(self, covered: Tensor | None = None, sure: bool = True) -> Tensor:
        """What rings add to the background, (B, H, W), in units of the patterns and not negative.

        ``covered``: (B, H, W), 1 where disks lie, else 0; ``sure``: whether that is known.
        """
        out = torch.zeros(self.shape, device=self.images.device)
        if len(self.rows) == 0:
            return out
        values, inside, grid = _unrolled(self.images, self.centre, self.step)
        level, _, near, known = _levels(values[:, 0], inside)
        highest = _highest(values[:, 0], values[:, 1], inside, level, near)
        if covered is not None:
            at = torch.nn.functional.grid_sample(
                covered[self.rows, None], grid, mode="nearest", padding_mode="border", align_corners=True
            )
            bare, _, _, enough = _levels(values[:, 0], inside & (at[:, 0] == 0))
            # where disks seem to cover a ring, but hardly anything lies below its level, they may be pieces of the ring
            known = enough if sure else enough | (known & (level <= highest))
            level = torch.where(enough, bare, level)
        out[self.rows] = _drawn(self._profile(level, known, self.step, highest), self.centre, self.step, self.shape[1:])
        return out

    def _profile(self, level: Tensor, known: Tensor, step: float, highest: Tensor | None = None) -> Tensor:
        """How far levels (B, R) by radius, the highest at most, rise above a convex function."""
        known[:, : math.ceil(BEAM * self.radius / step) + 1] = False
        values, sure = (np.ascontiguousarray(a.cpu().numpy()) for a in (level.double(), known))
        _bridged(values, sure)
        if highest is not None:
            values = np.minimum(values, highest.cpu().numpy())
        values = _smoothed(torch.from_numpy(values)).numpy()
        hull = values.copy()
        _convex(values, sure, hull)
        return torch.from_numpy(np.maximum(values - hull, 0)).to(level)

    def beside(self, pattern: Tensor, positions: Tensor, reach: float, sure: bool = True) -> Tensor | None:
        """`excess` from the pixels farther than ``reach`` px from disks at positions (N, 2) of patterns (N,); None: no rings."""
        if len(self.rows) == 0:
            return None
        b, h, w = self.shape
        half = math.ceil(reach)
        offset = torch.arange(-half, half + 1, device=positions.device)
        y, x = (positions.round().long()[:, k, None] + offset for k in (0, 1))
        near = (y - positions[:, :1])[:, :, None] ** 2 + (x - positions[:, 1:])[:, None] ** 2 < reach**2
        inside = ((y >= 0) & (y < h))[:, :, None] & ((x >= 0) & (x < w))[:, None]
        index = (pattern[:, None, None] * h + y[:, :, None]) * w + x[:, None]
        covered = torch.zeros(b * h * w, device=positions.device)
        covered[index[near & inside]] = 1.0
        return self.excess(covered.reshape(b, h, w), sure)


def middle(patterns: Tensor) -> Tensor:
    """Middles of inversion (B, 2) of patterns (B, H, W) without NaN, px."""
    b, h, w = patterns.shape
    factor = max(1, min(h, w) // SMALL)
    small = torch.nn.functional.avg_pool2d(patterns.clamp_min(0).sqrt()[:, None], factor)[:, 0]
    small = small - small.mean((1, 2), keepdim=True)
    size = [next_fast_len(2 * n, real=True) for n in small.shape[1:]]
    own = torch.fft.irfft2(torch.fft.rfft2(small, s=size) ** 2, s=size)
    where = own.reshape(b, -1).argmax(1)
    at = torch.stack([where // size[1], where % size[1]], 1).to(patterns.dtype) / 2
    return (at + 0.5) * factor - 0.5


def _directions(like: Tensor) -> tuple[Tensor, Tensor]:
    angle = 2 * math.pi * torch.arange(AZIMUTHS, device=like.device, dtype=like.dtype) / AZIMUTHS
    return angle.sin(), angle.cos()


def _unrolled(images: Tensor, centre: Tensor, step: float) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, C, H, W) around centres (B, 2).

    Returns
    -------
    (B, C, R, A) values by radius and azimuth
    (B, R, A) bool, whether they lie on the images
    (B, R, A, 2) where, for ``grid_sample``
    """
    h, w = images.shape[2:]
    size = torch.tensor([h - 1, w - 1], device=centre.device)
    far = float(torch.maximum(centre, size - centre).norm(dim=1).amax())  # the farthest corner
    r = step * torch.arange(int(far / step) + 2, device=images.device, dtype=images.dtype)
    sine, cosine = _directions(images)
    y, x = centre[:, 0, None, None] + r[:, None] * sine, centre[:, 1, None, None] + r[:, None] * cosine
    inside = (y >= 0) & (y <= h - 1) & (x >= 0) & (x <= w - 1)
    grid = torch.stack([2 * x / (w - 1) - 1, 2 * y / (h - 1) - 1], 3)
    values = torch.nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return values, inside, grid


def _levels(values: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rings of values (B, R, A) by radius and azimuth, as far as they are ``inside``.

    Returns
    -------
    (B, R) levels
    (B, R) half widths of the interval in which many of the values lie
    (B, R, A) bool, values that belong to the level
    (B, R) bool, whether there are enough of them
    """
    ordered = torch.where(inside, values, torch.inf).sort(2).values
    count = inside.sum(2, keepdim=True)
    need = (TOGETHER * count).ceil().long().clamp_min(1)
    end = torch.arange(AZIMUTHS, device=values.device) + need
    width = torch.where(end < count, ordered.gather(2, end.clamp_max(AZIMUTHS - 1)) - ordered, torch.inf)
    low = (width <= ALIKE * width.amin(2, keepdim=True) + 1e-12).byte().argmax(2, keepdim=True)
    bottom, top = ordered.gather(2, low), ordered.gather(2, (low + need).clamp_max(AZIMUTHS - 1))
    half = torch.where(count > 1, 0.5 * (top - bottom), 0.0).nan_to_num(0.0, 0.0, 0.0)
    near = inside & ((values - bottom - half).abs() <= NEAR * half + 1e-12)
    level = (values * near).sum(2) / near.sum(2).clamp_min(1)
    return level, half[:, :, 0], near, count[:, :, 0] >= LEAST * AZIMUTHS


def _highest(values: Tensor, variance: Tensor, inside: Tensor, level: Tensor, near: Tensor) -> Tensor:
    """The highest levels (B, R) that no more of the values (B, R, A) lie below than their variance explains.

    A level L is expected to have the low quantile q = L - `BELOW` · √(g L + (`SPECKLE` · L)²), where g tells how the variance of
    values grows with them.
    """
    ordered = torch.where(inside, values, torch.inf).sort(2).values
    which = (LOWER * inside.sum(2, keepdim=True)).long()
    q = ordered.gather(2, which)[:, :, 0].nan_to_num(0.0, 0.0, 0.0).clamp_min(0)
    g = (variance * near).sum(2) / near.sum(2).clamp_min(1) / level.clamp_min(1e-20)
    b, rest = q + 0.5 * BELOW**2 * g, 1 - (BELOW * SPECKLE) ** 2
    return (b + torch.sqrt((b**2 - rest * q**2).clamp_min(0))) / rest


def _smoothed(level: Tensor) -> Tensor:
    reach = math.ceil(2.5 * SMOOTHING)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=level.device, dtype=level.dtype) / SMOOTHING) ** 2)
    padded = torch.nn.functional.pad(level[:, None], (reach, reach), mode="replicate")
    return torch.nn.functional.conv1d(padded, (kernel / kernel.sum())[None, None])[:, 0]


def _towards_round(values: Tensor, level: Tensor, half: Tensor, step: float, radius: float) -> Tensor:
    """Step (B, 2), px, of the middle that makes the rings rounder, by least squares."""
    slope = torch.zeros_like(level)
    slope[:, 1:-1] = (level[:, 2:] - level[:, :-2]) / (2 * step)
    slope[:, : math.ceil(2 * radius / step)] = 0  # the direct beam is no ring
    off = values - level[:, :, None]
    use = off.abs() <= NEAR * half[:, :, None]
    weight = use / (half**2 + 1e-3 * (half**2).mean(1, keepdim=True) + 1e-20)[:, :, None]
    wo = torch.where(use, weight * off, 0.0)
    sine, cosine = _directions(level)
    # from a middle that is d off, a ring looks higher by slope · (-d · direction)
    right = -torch.stack([(wo @ sine * slope).sum(1), (wo @ cosine * slope).sum(1)], 1)
    parts = [(weight @ a * slope**2).sum(1) for a in (sine**2, sine * cosine, cosine**2)]
    normal = torch.stack([parts[0], parts[1], parts[1], parts[2]], 1).reshape(-1, 2, 2)
    normal = normal + (1e-6 * normal.diagonal(dim1=1, dim2=2).amax(1) + 1e-12)[:, None, None] * torch.eye(2).to(normal)
    return torch.linalg.solve(normal, right).nan_to_num(0.0, 0.0, 0.0).clamp(-radius / 2, radius / 2)


@njit(cache=True, nogil=True)
def _bridged(level, known):  # pragma: no cover - compiled
    """Levels (B, R) where they are not known: on a line between those that are, beyond them as the nearest."""
    for b in range(level.shape[0]):
        last = -1
        for i in range(level.shape[1]):
            if known[b, i]:
                for k in range(last + 1, i):
                    share = (k - last) / (i - last) if last >= 0 else 1.0
                    level[b, k] = (1 - share) * level[b, max(last, 0)] + share * level[b, i]
                last = i
        for k in range(last + 1, level.shape[1]):
            level[b, k] = level[b, last] if last >= 0 else 0.0


@njit(cache=True, nogil=True)
def _convex(level, known, out):  # pragma: no cover - compiled
    """The largest convex functions (B, R) that nowhere exceed ``level``, up to the last radius that is known.

    How much farther the arrays go depends on the other patterns of a batch.
    """
    hull = np.empty(level.shape[1], dtype=np.int64)
    for b in range(level.shape[0]):
        count = level.shape[1]
        while count > 0 and not known[b, count - 1]:
            count -= 1
        y, n = level[b], 0
        for i in range(count):
            while n > 1 and (y[hull[n - 1]] - y[hull[n - 2]]) * (i - hull[n - 2]) >= (y[i] - y[hull[n - 2]]) * (
                hull[n - 1] - hull[n - 2]
            ):
                n -= 1
            hull[n] = i
            n += 1
        for k in range(n - 1):
            low, high = hull[k], hull[k + 1]
            for i in range(low, high + 1):
                out[b, i] = y[low] + (y[high] - y[low]) * (i - low) / (high - low)


def _drawn(level: Tensor, centre: Tensor, step: float, shape) -> Tensor:
    """Levels by radius as images (B, H, W)."""
    fine = torch.nn.functional.interpolate(level[:, None], FINE * (level.shape[1] - 1) + 1, mode="linear", align_corners=True)[:, 0]
    y, x = (torch.arange(n, device=level.device, dtype=level.dtype) - c[:, None] for n, c in zip(shape, centre.T, strict=True))
    r = torch.sqrt((y**2)[:, :, None] + (x**2)[:, None])
    index = (r * (FINE / step) + 0.5).long().clamp_max(fine.shape[1] - 1)
    return fine.gather(1, index.reshape(len(fine), -1)).reshape(index.shape)
