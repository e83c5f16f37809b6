"""Template matching of the probe, batched in torch: the classical method that needs no weights.

The kernel is the probe minus a broad sine-squared hump of the same sum, so that smooth intensity gives nothing. The
hybrid correlation (Pekin et al., Ultramicroscopy 176:170, 2017) is ``F⁻¹{|X|^p exp(i arg X)}`` with
``X = F{pattern} · conj F{kernel}``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .options import DiskOptions
from .probe import Probe


@dataclass
class Candidates:
    """Where disks may be, before they are measured: flat tensors of length N.

    Attributes
    ----------
    pattern : (N,) int64, index of the pattern
    positions : (N, 2), (qx, qy) px
    strength : (N,), height of the correlation peak, or the network's |V_g|
    confidence : (N,) in [0, 1], or None where only the measurement can tell
    sigma : (N, 2) px, or None
    """

    pattern: Tensor
    positions: Tensor
    strength: Tensor
    confidence: Tensor | None = None
    sigma: Tensor | None = None

    def select(self, rows: Tensor) -> Candidates:
        """Some of them, by mask or index."""
        parts = (self.pattern, self.positions, self.strength, self.confidence, self.sigma)
        return Candidates(*(None if p is None else p[rows] for p in parts))


def probe_kernel(probe: Probe, shape: tuple[int, int], trench: tuple[float, float] = (0.0, 2.0)) -> np.ndarray:
    """Zero-mean kernel (H, W) with its centre at the array origin, wrapped around the corners.

    ``trench``: radii, in probe radii, between which the subtracted hump falls from 1 to 0 as a squared sine.
    """
    half = int(np.ceil(max(probe.radius + 4 * probe.edge + 2, trench[1] * probe.radius)))
    half = min(half, (min(shape) - 1) // 2)
    disk = probe.patch(half)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    inner, outer = (t * probe.radius for t in trench)
    hump = np.cos(0.5 * np.pi * np.clip((np.hypot(y, x) - inner) / (outer - inner), 0, 1)) ** 2
    patch = disk / disk.sum() - hump / hump.sum()
    kernel = np.zeros(shape)
    kernel[: 2 * half + 1, : 2 * half + 1] = patch
    return np.roll(kernel, (-half, -half), (0, 1))


def box_mean(image: Tensor, half: int) -> Tensor:
    """Mean over (2 half + 1)² px of (B, H, W); at the edges over what is there. By running sums, whatever the size."""
    for dim in (1, 2):
        n = image.shape[dim]
        i = torch.arange(n, device=image.device)
        high, low = (i + half + 1).clamp(max=n), (i - half).clamp(min=0)
        pad = (1, 0) if dim == 2 else (0, 0, 1, 0)
        total = torch.nn.functional.pad(image.cumsum(dim), pad)
        count = (high - low).to(image.dtype)
        image = (total.index_select(dim, high) - total.index_select(dim, low)) / (count if dim == 2 else count[:, None])
    return image


def fill_unmeasured(patterns: Tensor) -> Tensor:
    """Patterns (B, H, W) with NaN replaced by the mean of measured pixels around them (of the pattern, if none)."""
    measured = torch.isfinite(patterns)
    whole = measured.flatten(1).all(1)
    if bool(whole.all()):
        return patterns
    out = patterns.clone()
    out[~whole] = _filled(patterns[~whole], measured[~whole])
    return out


def _filled(patterns: Tensor, measured: Tensor) -> Tensor:
    values = torch.where(measured, patterns, 0.0)
    weight = measured.to(patterns.dtype)
    whole = values.sum((1, 2), keepdim=True) / weight.sum((1, 2), keepdim=True).clamp_min(1)
    out, hole = values, ~measured
    for half in (1, 3, 7, 15):
        mean, count = box_mean(values, half), box_mean(weight, half)
        found = hole & (count > 1.5 / (2 * half + 1) ** 2)
        out = torch.where(found, mean / count.clamp_min(1e-12), out)
        hole = hole & ~found
    return torch.where(hole, whole.expand_as(out), out)


class Correlator:
    """Finds disks of one probe in patterns of one shape.

    Parameters
    ----------
    probe : Probe
    shape : (H, W)
    options : DiskOptions
    device : str or torch device
    """

    def __init__(self, probe: Probe, shape: tuple[int, int], options: DiskOptions, device="cpu"):
        self.options, self.radius, self.shape = options, probe.radius, shape
        kernel = torch.as_tensor(probe_kernel(probe, shape, options.trench), dtype=torch.float32, device=device)
        self._kernel = torch.fft.rfft2(kernel).conj()

    def spectrum(self, patterns: Tensor) -> Tensor:
        """Fourier transform (B, H, W // 2 + 1) of the hybrid correlation."""
        product = torch.fft.rfft2(fill_unmeasured(patterns)) * self._kernel
        power = self.options.correlation_power
        if power == 1.0:
            return product
        size = product.abs()
        # what is zero but for rounding has no phase to speak of
        floor = 1e-6 * size.amax((1, 2), keepdim=True)
        return product * torch.where(size > floor, size.clamp_min(1e-30) ** (power - 1), torch.zeros_like(size))

    def __call__(self, patterns: Tensor) -> Candidates:
        """Correlation peaks of patterns (B, H, W; NaN = not measured), strongest first within each pattern."""
        o = self.options
        spectrum = self.spectrum(patterns)
        correlation = torch.fft.irfft2(spectrum, s=self.shape)
        found = local_maxima(
            correlation, o.spacing(self.radius), o.max_disks, o.boundary(self.radius), o.min_relative_intensity
        )
        if o.subpixel != "none":
            found.positions, found.strength = parabola(correlation, found)
        if o.subpixel == "upsampled":
            found.positions, found.strength = upsampled(spectrum, found, self.shape, o.upsample)
        return found


def local_maxima(image: Tensor, spacing: float, most: int, boundary: float, relative: float) -> Candidates:
    """Local maxima of (B, H, W), at least ``spacing`` apart (the higher one stays), whole pixels.

    ``boundary``: least distance from the edge, px; ``relative``: least height relative to the image's highest.
    """
    b, h, w = image.shape
    flat = image.reshape(b, -1)
    highest = torch.nn.functional.max_pool2d(image[:, None], 3, 1, 1)[:, 0] == image
    edge = int(np.ceil(boundary))
    inside = torch.zeros(h, w, dtype=torch.bool, device=image.device)
    inside[edge : h - edge if edge else h, edge : w - edge if edge else w] = True
    top = torch.where(inside, image, 0.0).amax((1, 2))
    highest &= inside & (image > (relative * top)[:, None, None]) & (image > 0)
    score = torch.where(highest, image, torch.zeros_like(image)).reshape(b, -1)
    k = min(2 * most, int(highest.sum((1, 2)).max())) if b else 0
    if k == 0:
        none = flat.new_zeros(0)
        return Candidates(none.long(), none.reshape(0, 2), none)
    value, where = score.topk(k, dim=1)
    place = torch.stack([where // w, where % w], 2).to(image.dtype)
    keep = thin(place, value > 0, spacing)
    keep &= keep.cumsum(1) <= most
    pattern = torch.arange(b, device=image.device)[:, None].expand(b, k)
    return Candidates(pattern[keep], place[keep], value[keep])


def thin(place: Tensor, valid: Tensor, spacing: float) -> Tensor:
    """Greedy selection (B, K) of points (B, K, 2), best first, that keep ``spacing`` from every better one kept."""
    keep = valid.clone()
    if spacing <= 1:
        return keep
    close = torch.cdist(place, place, compute_mode="donot_use_mm_for_euclid_dist") < spacing
    for i in range(place.shape[1] - 1):
        keep[:, i + 1 :] &= ~(close[:, i, i + 1 :] & keep[:, i, None])
    return keep


def parabola(image: Tensor, found: Candidates) -> tuple[Tensor, Tensor]:
    """Positions and heights of maxima from a parabola through three pixels along each axis."""
    h, w = image.shape[1:]
    row, column = found.positions.long().unbind(1)
    p = found.pattern
    middle = image[p, row, column]
    shift, height = [], middle
    for low, high in (
        (image[p, (row - 1) % h, column], image[p, (row + 1) % h, column]),
        (image[p, row, (column - 1) % w], image[p, row, (column + 1) % w]),
    ):
        curvature = (2 * middle - low - high).clamp_min(1e-30)
        d = (0.5 * (high - low) / curvature).clamp(-0.5, 0.5)
        shift.append(d)
        height = height + 0.25 * (high - low) * d
    return found.positions + torch.stack(shift, 1), height


def upsampled(spectrum: Tensor, found: Candidates, shape: tuple[int, int], factor: int) -> tuple[Tensor, Tensor]:
    """Positions and heights of maxima on a grid ``factor`` times finer, ±0.5 px around each start.

    The inverse Fourier transform by matrix products (Guizar-Sicairos, Thurman & Fienup, Opt. Lett. 33:156, 2008).
    """
    h, w = shape
    device, dtype = spectrum.device, found.positions.dtype
    fy = torch.fft.fftfreq(h, device=device, dtype=dtype)
    fx = torch.fft.rfftfreq(w, device=device, dtype=dtype)
    twice = torch.full_like(fx, 2.0)
    twice[0] = 1.0
    if w % 2 == 0:
        twice[-1] = 1.0
    step = torch.arange(-(factor // 2), factor // 2 + 1, device=device, dtype=dtype) / factor
    positions, height = found.positions.clone(), found.strength.clone()
    for i in torch.unique(found.pattern).tolist():
        rows = torch.nonzero(found.pattern == i)[:, 0]
        start = found.positions[rows]
        y = start[:, :1] + step
        x = start[:, 1:] + step
        ey = torch.polar(torch.ones(()).to(y), 2 * np.pi * y[:, :, None] * fy)
        ex = torch.polar(torch.ones(()).to(x), 2 * np.pi * x[:, None, :] * fx[:, None])
        fine = ((ey @ (spectrum[i] * twice)) @ ex).real.reshape(len(rows), -1) / (h * w)
        best, where = fine.max(1)
        n = len(step)
        positions[rows] = torch.stack(
            [y.gather(1, (where // n)[:, None])[:, 0], x.gather(1, (where % n)[:, None])[:, 0]], 1
        )
        height[rows] = best
    return positions, height
