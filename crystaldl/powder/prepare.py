"""From any measured powder pattern to what the networks see; batched torch, the same code for measured and simulated data.

Every pattern is put on one *common axis*: the 2θ at which copper Kα1 would show the same d-spacing. That axis is
wavelength-free (Bragg's law), natural for laboratory data and long enough for both networks. From it follow

* the *spectrum*: √intensity over a logarithmic axis of 1/d, where scaling the cell is a shift, the Kα2 component
  removed, with the measured range as a second channel;
* the *peak list*: up to 64 lines found by a matched second-derivative filter against a local noise estimate;
* NPCNN's input: 8,500 points from 5.00° to 89.99°.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

#: Cu Kα1 in Å; defines the common axis
REFERENCE_WAVELENGTH = 1.540593
AXIS_START, AXIS_STEP, AXIS_POINTS = 4.0, 0.02, 4800
#: ln(λ2/λ1) of copper, for patterns made on the common axis
CU_DOUBLET = float(np.log(1.544427 / 1.540593))

SPECTRUM_POINTS = 2048
SPECTRUM_LN_Q = (float(np.log(0.050)), float(np.log(0.995)))     # ln(1/d) of the first and last edge, 1/d in Å⁻¹

MAX_PEAKS = 64
PEAK_FEATURES = 4           # ln(1/d), ln relative height, significance, width
_SIGMAS = (1.5, 2.2, 3.2, 4.8, 7.0)      # matched-filter widths in points of the common axis
_WINDOW = 160                            # noise and baseline windows: 3.2°


def common_axis() -> np.ndarray:
    """2θ in degrees of the common axis, (AXIS_POINTS,)."""
    return AXIS_START + AXIS_STEP * np.arange(AXIS_POINTS)


def ln_q_of_axis(x: Tensor) -> Tensor:
    """ln(1/d), 1/d in Å⁻¹, at positions ``x`` (degrees) of the common axis."""
    return torch.log(2.0 * torch.sin(torch.deg2rad(x) / 2.0) / REFERENCE_WAVELENGTH)


def to_common_axis(two_theta, intensity, wavelength: float, mask=None) -> tuple[np.ndarray, np.ndarray]:
    """Resample one pattern to the common axis: mean intensity in each bin, and which bins were measured.

    Parameters
    ----------
    two_theta, intensity : (n,) arrays, degrees and counts; ``mask`` (n,) bool, True where not measured
    wavelength : float, Å (Kα1 of a doublet)

    Returns
    -------
    (AXIS_POINTS,) float32 intensity, zero where not measured; (AXIS_POINTS,) float32, 1 where measured
    """
    two_theta, intensity = np.asarray(two_theta, float), np.asarray(intensity, float)
    good = np.isfinite(intensity) & (np.ones(len(intensity), bool) if mask is None else ~np.asarray(mask, bool))
    s = np.sin(np.radians(two_theta / 2)) * (REFERENCE_WAVELENGTH / wavelength)
    good &= (s < np.sin(np.radians(80.0))) & (two_theta > 0)
    x, y = np.degrees(2 * np.arcsin(np.clip(s[good], 0, 1))), intensity[good]
    axis = common_axis()
    if x.size < 2:
        return np.zeros(AXIS_POINTS, np.float32), np.zeros(AXIS_POINTS, np.float32)
    # bin means through the running integral: keeps counts when the axis is coarser, interpolates when it is finer
    area = np.concatenate([[0.0], np.cumsum(0.5 * (y[1:] + y[:-1]) * np.diff(x))])
    edges = np.concatenate([axis - AXIS_STEP / 2, [axis[-1] + AXIS_STEP / 2]])
    out = np.diff(np.interp(edges, x, area)) / AXIS_STEP
    # not measured: outside the range, or inside a gap much wider than the usual step
    nearest = np.clip(np.searchsorted(x, axis), 1, x.size - 1)
    gap = x[nearest] - x[nearest - 1]
    inside = (axis >= x[0]) & (axis <= x[-1]) & (gap <= max(10 * np.median(np.diff(x)), 0.3))
    return np.where(inside, out, 0.0).astype(np.float32), inside.astype(np.float32)


@dataclass
class Prepared:
    """Network inputs of a batch, all float32 on one device."""

    spectrum: Tensor        # (B, 2, SPECTRUM_POINTS): sqrt intensity 0…1, measured range
    peaks: Tensor           # (B, MAX_PEAKS, PEAK_FEATURES)
    peak_mask: Tensor       # (B, MAX_PEAKS) bool, True for a peak
    limits: Tensor          # (B, 2): ln(1/d) of the first and last measured point

    def to(self, device) -> Prepared:
        return Prepared(*(t.to(device) for t in (self.spectrum, self.peaks, self.peak_mask, self.limits)))

    def __len__(self) -> int:
        return self.spectrum.shape[0]

    def __getitem__(self, index) -> Prepared:
        return Prepared(self.spectrum[index], self.peaks[index], self.peak_mask[index], self.limits[index])


# --------------------------------------------------------------------------------------------- pieces

@lru_cache(maxsize=16)
def _shift_table(doublet: float, order: int, device: str) -> tuple[Tensor, Tensor]:
    """Where on the axis the pattern lies ``order`` doublet steps lower in ln(1/d): left index and weight of the right."""
    x = torch.tensor(common_axis())
    s = torch.sin(torch.deg2rad(x) / 2) * np.exp(-doublet * order)
    position = (torch.rad2deg(2 * torch.asin(s)) - AXIS_START) / AXIS_STEP
    left = position.floor().clamp(-1, AXIS_POINTS - 2)
    return left.long().to(device), (position - left).float().to(device)


def strip_doublet(y: Tensor, ratio: Tensor, doublet: float = CU_DOUBLET) -> Tensor:
    """Remove Kα2 (Rachinger 1948): ``I1(ln q) = I - r I(ln q - δ) + r² I(ln q - 2δ) - …``.

    On a logarithmic 1/d axis the second component is a constant shift δ = ln(λ2/λ1), so the recursion is a short
    filter. ``y`` (B, AXIS_POINTS); ``ratio`` (B,) intensity of Kα2 over Kα1, 0 for none.
    """
    out = y.clone()
    for order in range(1, 9):
        left, weight = _shift_table(doublet, order, str(y.device))
        valid = (left >= 0).to(y.dtype)
        at = left.clamp_min(0)
        shifted = (y[:, at] * (1 - weight) + y[:, at + 1] * weight) * valid
        out = out + ((-ratio) ** order)[:, None] * shifted
    return out


def _windowed(y: Tensor, mask: Tensor, quantile: float) -> Tensor:
    """A quantile in windows of _WINDOW points, interpolated back to the axis; ignores unmeasured points."""
    b = y.shape[0]
    blocks = torch.where(mask > 0, y, torch.full_like(y, torch.inf)).reshape(b, -1, _WINDOW)
    count = mask.reshape(b, -1, _WINDOW).sum(-1)
    ordered = blocks.sort(dim=-1).values
    pick = ((count - 1).clamp_min(0) * quantile).long()
    value = ordered.gather(-1, pick[..., None])[..., 0]
    empty = count < _WINDOW // 8
    fallback = torch.where(empty, torch.inf, value).amin(-1, keepdim=True)
    value = torch.where(empty, torch.where(torch.isfinite(fallback), fallback, torch.zeros_like(fallback)), value)
    return F.interpolate(value[:, None], size=AXIS_POINTS, mode="linear", align_corners=False)[:, 0]


@lru_cache(maxsize=4)
def _kernels(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Smoothing and negative-second-derivative kernels for each width, and the norms of the latter and former."""
    t = torch.arange(-24, 25, dtype=torch.float64)
    smooth, curve = [], []
    for s in _SIGMAS:
        g = torch.exp(-0.5 * (t / s) ** 2)
        smooth.append(g / g.sum())
        c = (1 - (t / s) ** 2) * g
        c = c - c.mean()
        curve.append(c / (c * g).sum())            # unit response to a Gaussian of its own width and unit height
    smooth, curve = torch.stack(smooth), torch.stack(curve)
    out = smooth.float()[:, None], curve.float()[:, None], curve.norm(dim=1).float(), smooth.norm(dim=1).float()
    return tuple(o.to(device) for o in out)


def _choose_width(y: Tensor) -> Tensor:
    """Index of the matched filter whose width fits the lines of each pattern, from the pattern's autocorrelation, (B,)."""
    z = F.avg_pool1d(y[:, None], 3, 1, 1)[:, 0]
    z = (z - z.mean(1, keepdim=True)).clamp_min(0) ** 2       # squares favour the strong lines
    lags = torch.arange(1, 31, device=y.device)
    base = (z * z).sum(1).clamp_min(1e-12)
    acf = torch.stack([(z[:, :-lag] * z[:, lag:]).sum(1) for lag in lags.tolist()], 1) / base[:, None]
    below = acf < 0.5
    half = torch.where(below.any(1), below.float().argmax(1), torch.full_like(below[:, 0].long(), 29)).float() + 1.0
    # a Gaussian line of σ: its square has σ/√2, the autocorrelation of that σ; half width at half maximum 1.18 σ
    sigma = half / 1.18
    table = torch.tensor(_SIGMAS, device=y.device)
    return (torch.log(sigma[:, None]) - torch.log(table)).abs().argmin(1)


def find_peaks(y: Tensor, mask: Tensor, threshold: float = 4.0, floor: float = 0.004) -> tuple[Tensor, Tensor]:
    """Lines of patterns on the common axis: features (B, MAX_PEAKS, PEAK_FEATURES) and mask (B, MAX_PEAKS).

    A line is a maximum of the negative second derivative, filtered at the pattern's own line width, that exceeds
    ``threshold`` times the local noise and ``floor`` times the strongest line. Strongest first.
    """
    smooth, curve, curve_norm, _ = _kernels(str(y.device))
    which = _choose_width(y)
    pad = smooth.shape[-1] // 2
    padded = F.pad(y[:, None], (pad, pad), mode="replicate")
    filtered = F.conv1d(padded, curve)
    d = filtered.gather(1, which[:, None, None].expand(-1, 1, AXIS_POINTS))[:, 0]
    # white noise from second differences, robust to lines; 1.4826 for the median, sqrt(6) for the differences
    diff = F.pad((y[:, 2:] - 2 * y[:, 1:-1] + y[:, :-2]).abs(), (1, 1))
    noise = _windowed(diff, mask, 0.5) * (1.4826 / 6**0.5) * curve_norm[which][:, None]
    # smoothed data hide their noise from second differences, but not from the filter itself: the 30th percentile of
    # |response| (0.385 σ for noise) is noise as long as lines fill less than two thirds of a window
    response = _windowed(d.abs(), mask, 0.30) / 0.385
    noise = torch.maximum(noise, response) + 1e-5
    # where the filter reaches beyond the measured range, the edge itself looks like a line
    inside = -F.max_pool1d(-F.pad(mask, (20, 20))[:, None], 41, 1)[:, 0]
    top = (d * inside).amax(1, keepdim=True).clamp_min(1e-9)
    local = F.max_pool1d(d[:, None], 5, 1, 2)[:, 0]
    is_peak = (d >= local) & (d > threshold * noise) & (d > floor * top) & (inside > 0)
    score = torch.where(is_peak, d, torch.zeros_like(d))
    value, at = score.topk(MAX_PEAKS, dim=1)
    found = value > 0
    at = at.clamp(1, AXIS_POINTS - 2)
    left, mid, right = d.gather(1, at - 1), d.gather(1, at), d.gather(1, at + 1)
    bend = (2 * mid - left - right).clamp_min(1e-9)
    offset = (0.5 * (right - left) / bend).clamp(-1, 1)
    x = AXIS_START + AXIS_STEP * (at + offset)
    width = torch.log((mid / bend).clamp(0.5, 200.0)) * 0.5
    features = torch.stack([ln_q_of_axis(x), torch.log((value / top).clamp_min(1e-4)),
                            torch.log((value / noise.gather(1, at)).clamp(1.0, 1e4)), width], -1)
    return torch.where(found[..., None], features, torch.zeros_like(features)), found


@lru_cache(maxsize=4)
def _spectrum_edges(device: str) -> tuple[Tensor, Tensor]:
    edges = np.exp(np.linspace(*SPECTRUM_LN_Q, SPECTRUM_POINTS + 1))
    x = np.degrees(2 * np.arcsin(edges * REFERENCE_WAVELENGTH / 2))
    position = np.clip((x - (AXIS_START - AXIS_STEP / 2)) / AXIS_STEP, 0, AXIS_POINTS - 1e-3)
    left = np.floor(position)
    return (torch.tensor(left, dtype=torch.long, device=device),
            torch.tensor(position - left, dtype=torch.float64, device=device))


def _to_spectrum(y: Tensor) -> Tensor:
    """Mean of ``y`` in each bin of the logarithmic axis."""
    left, weight = _spectrum_edges(str(y.device))
    dtype = torch.float64 if y.device.type != "mps" else torch.float32
    area = F.pad(y.to(dtype).cumsum(1), (1, 0))
    at = area[:, left] * (1 - weight.to(dtype)) + area[:, left + 1] * weight.to(dtype)
    span = (left[1:] - left[:-1]).to(dtype) + weight[1:].to(dtype) - weight[:-1].to(dtype)
    return ((at[:, 1:] - at[:, :-1]) / span).float()


def subtract_background(y: Tensor, mask: Tensor, half_width: float = 3.0) -> Tensor:
    """Remove a smooth background by statistics-sensitive non-linear iterative peak clipping (SNIP), (B, AXIS_POINTS).

    Ryan et al., Nucl. Instrum. Methods B 34, 396 (1988): on ``ln(ln(√(y + 1) + 1) + 1)`` each point is clipped to the
    mean of its neighbours ``w`` away, for w from ``half_width`` (degrees) down. Meant for batches of raw scans;
    `PowderPattern.subtract_background` offers slower methods with more choice.
    """
    low = torch.where(mask > 0, y, torch.full_like(y, torch.inf)).amin(1, keepdim=True)
    scale = torch.where(mask > 0, y - low, torch.zeros_like(y)).amax(1, keepdim=True).clamp_min(1e-12) / 1e4
    # hold the first and last measured values outside the measured range, so that the edges are not clipped away
    first = mask.argmax(1, keepdim=True)
    last = AXIS_POINTS - 1 - mask.flip(1).argmax(1, keepdim=True)
    at = torch.arange(AXIS_POINTS, device=y.device)[None]
    raw = (y - low).gather(1, torch.minimum(torch.maximum(at, first), last)) / scale
    smooth = F.avg_pool1d(F.pad(raw[:, None], (4, 4), mode="replicate"), 9, 1)[:, 0].clamp_min(0.0)
    z = torch.log1p(torch.log1p(torch.sqrt(smooth + 1.0)))
    widths = torch.unique(torch.logspace(0, float(np.log10(half_width / AXIS_STEP)), 24).round().long()).flip(0)
    for w in widths.tolist():
        padded = F.pad(z[:, None], (w, w), mode="replicate")[:, 0]
        z = torch.minimum(z, 0.5 * (padded[:, : AXIS_POINTS] + padded[:, 2 * w:]))
    background = (torch.expm1(torch.expm1(z)) ** 2 - 1.0).clamp_min(0.0) * scale + low
    return (y - background) * mask


def has_doublet(y: Tensor, mask: Tensor, doublet: float = CU_DOUBLET) -> Tensor:
    """Whether patterns show a Kα2 component, (B,) bool: removing one that is not there leaves holes beside strong lines.

    Judged above 35° where the components separate; with nothing to see there, the answer is yes (laboratory data).
    """
    z = normalise(y, mask)
    stripped = strip_doublet(z, torch.full((len(y),), 0.5, device=y.device), doublet)
    region = mask * (torch.as_tensor(common_axis(), device=y.device) > 35.0)
    box = lambda t: F.avg_pool1d(t[:, None], 5, 1, 2)[:, 0] * region  # noqa: E731
    before, after = box(z), box(stripped)
    holes, dips = (after.clamp_max(0) ** 2).sum(1), (before.clamp_max(0) ** 2).sum(1)
    return (holes - dips) < 0.04 * (before**2).sum(1)


def normalise(y: Tensor, mask: Tensor) -> Tensor:
    """Baseline off, strongest line 1, zero where not measured; the baseline is the lower quartile in 3.2° windows."""
    y = y - _windowed(y, mask, 0.25)
    y = y * mask
    return y / F.avg_pool1d(y[:, None], 5, 1, 2)[:, 0].amax(1, keepdim=True).clamp_min(1e-12)


def spectrum_of(y: Tensor, mask: Tensor) -> Tensor:
    """√intensity and measured range on the ln(1/d) axis, (B, 2, SPECTRUM_POINTS), of normalised patterns without Kα2."""
    return torch.stack([_to_spectrum(y).clamp(0.0, 1.5).sqrt(), _to_spectrum(mask)], 1)


def prepare(y: Tensor, mask: Tensor, doublet_ratio: Tensor, doublet: float = CU_DOUBLET) -> Prepared:
    """Network inputs from patterns on the common axis.

    Parameters
    ----------
    y : (B, AXIS_POINTS) background-subtracted intensity, any scale
    mask : (B, AXIS_POINTS), 1 where measured
    doublet_ratio : (B,) Kα2/Kα1 intensity, 0 for a single line
    doublet : float, ln(λ2/λ1)
    """
    y = normalise(y, mask)
    y = strip_doublet(y, doublet_ratio, doublet) * mask
    peaks, peak_mask = find_peaks(y, mask)
    axis = torch.as_tensor(common_axis(), dtype=torch.float32, device=y.device)
    first, last = mask.argmax(1), AXIS_POINTS - 1 - mask.flip(1).argmax(1)
    return Prepared(spectrum_of(y, mask), peaks, peak_mask, ln_q_of_axis(torch.stack([axis[first], axis[last]], 1)))


def npcnn_input(y: Tensor, mask: Tensor) -> Tensor:
    """NPCNN's 8,500 points, 2θ = 5.00…89.99° for copper, 0…1, as published (Kα2 left in), (B, 8500)."""
    y = normalise(y, mask).clamp_min(0.0)
    position = (torch.arange(8500, device=y.device) * 0.01 + 5.0 - AXIS_START) / AXIS_STEP
    left = position.long().clamp_max(AXIS_POINTS - 2)
    weight = (position - left).to(y.dtype)
    return (y[:, left] * (1 - weight) + y[:, left + 1] * weight).clamp_max(1.0)
