"""Batched, seeded simulator of measured-looking powder patterns: known crystal in, pattern on the common axis out.

Two floors: `LineLibrary` holds the lines (1/d, m|F|²) of many crystals, computed once; `simulate` renders a batch of
them under random instrument and sample conditions in torch, on any device. Peak profiles are true Voigt functions,
applied in Fourier space with widths that vary along the axis.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..physics.crystals import Crystal
from ..physics.reflections import march_dollase, powder_lines
from ..storage.atomic import replacing
from .prepare import AXIS_POINTS, AXIS_START, AXIS_STEP, REFERENCE_WAVELENGTH, common_axis

Q_MAX = 1.0                 # Å⁻¹, the end of the common axis
MAX_LINES = 320             # strongest lines kept of each crystal
_FFT = 8192                 # 4,800 points and room for the tails to fade
_ANCHORS = (4.0, 11.0, 25.0, 50.0, 75.0, 100.0)      # where peak widths are exact; linear in between


@dataclass
class LineLibrary:
    """Powder lines of many crystals, padded to the same length with zero intensity.

    Attributes
    ----------
    q : (n, MAX_LINES) float32, 1/d in Å⁻¹
    intensity : (n, MAX_LINES) float32, m|F|² relative to the strongest line after the Lorentz-polarisation factor
    space_group : (n,) int16
    family : (n,) int32, crystals made from one structure share a number: split by it
    volume : (n,) float32, primitive-cell volume in Å³
    """

    q: np.ndarray
    intensity: np.ndarray
    space_group: np.ndarray
    family: np.ndarray
    volume: np.ndarray

    def __len__(self) -> int:
        return len(self.space_group)

    def subset(self, index) -> LineLibrary:
        return LineLibrary(*(getattr(self, k)[index] for k in ("q", "intensity", "space_group", "family", "volume")))

    def save(self, path) -> None:
        with replacing(path) as beside, beside.open("wb") as stream:
            np.savez(stream, **vars(self))

    @classmethod
    def load(cls, path) -> LineLibrary:
        with np.load(Path(path), allow_pickle=False) as data:
            return cls(*(data[k] for k in ("q", "intensity", "space_group", "family", "volume")))

    @classmethod
    def concatenate(cls, parts: list[LineLibrary]) -> LineLibrary:
        return cls(*(np.concatenate([getattr(p, k) for p in parts]) for k in ("q", "intensity", "space_group", "family", "volume")))


def lines_of(crystal: Crystal, texture: tuple | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The strongest MAX_LINES lines of a crystal, (q, m|F|²), padded; ``texture`` is (hkl axis, March-Dollase r)."""
    weight = None if texture is None else (lambda hkl, q: march_dollase(hkl, q, crystal.cell, *texture))
    q, intensity = powder_lines(crystal.numbers, crystal.positions, crystal.cell, Q_MAX, q_min=0.045,
                                occupancy=crystal.occupancy, weight=weight)
    sin = np.clip(q * REFERENCE_WAVELENGTH / 2, 1e-4, 0.999)
    visible = intensity * (1 + (1 - 2 * sin**2) ** 2) / (sin**2 * np.sqrt(1 - sin**2))
    keep = np.argsort(-visible)[:MAX_LINES]
    keep = keep[visible[keep] > 1e-4 * visible[keep[0]]] if len(keep) else keep
    out_q, out_i = np.ones(MAX_LINES, np.float32), np.zeros(MAX_LINES, np.float32)
    out_q[: len(keep)] = q[keep]
    out_i[: len(keep)] = intensity[keep] / max(visible.max(initial=0.0), 1e-30)
    return out_q, out_i


@dataclass(frozen=True)
class Conditions:
    """Ranges of instrument and sample conditions; a pattern draws each anew (2θ in degrees, lengths in Å)."""

    cu_share: float = 0.85                          # the rest: Co, Fe, Cr, Mo, Ag or one line of 0.4…2.3 Å
    single_share: float = 0.10                      # of the copper patterns, with Kα1 alone
    unstripped_share: float = 0.03                  # doublet present but not known to the preparation
    zero: float = 0.03                              # standard deviation of the zero shift
    displacement: float = 0.05
    instrument_fwhm: tuple = (0.035, 0.14)
    size: tuple = (80.0, 4000.0)                    # Scherrer size
    strain: tuple = (1e-5, 3e-3)
    asymmetry: float = 0.06
    b_iso: tuple = (0.1, 2.5)
    grain_sigma: float = 0.35                       # lognormal scatter of single lines: few grains, wrong atoms
    second_phase_share: float = 0.15
    second_phase_strength: tuple = (0.01, 0.2)      # of its strongest line, relative to the main phase's
    peak_to_noise: tuple = (25.0, 1500.0)
    offset_share: float = 0.6                       # baseline left standing on the noise, then rectified
    cut_share: float = 0.35


DEFAULT_CONDITIONS = Conditions()


def _uniform(g, shape, lo, hi, device):
    return lo + (hi - lo) * torch.rand(shape, generator=g, device=device)


def _loguniform(g, shape, lo, hi, device):
    return torch.exp(_uniform(g, shape, float(np.log(lo)), float(np.log(hi)), device))


@dataclass
class Patterns:
    """Rendered patterns on the common axis, ready for `prepare`."""

    y: Tensor               # (B, AXIS_POINTS)
    mask: Tensor            # (B, AXIS_POINTS)
    doublet_ratio: Tensor   # (B,), as the preparation believes it
    second_share: Tensor    # (B,) strongest line of the second phase over that of the first
    clean: Tensor | None = None     # (B, AXIS_POINTS) before noise


_WAVELENGTHS = ((1.540593, 1.544427), (1.788996, 1.792835), (1.936041, 1.939973), (2.289726, 2.293651),
                (0.709317, 0.713607), (0.5594218, 0.5638131))


def _radiation(g, b, c: Conditions, device):
    """Wavelength of Kα1 and of Kα2 (B,), intensity ratio, and the ratio told to the preparation."""
    table = torch.tensor(_WAVELENGTHS, device=device)
    draw = torch.rand(b, generator=g, device=device)
    which = torch.where(draw < c.cu_share, 0, torch.randint(1, 7, (b,), generator=g, device=device))
    single_line = which == 6
    w1 = torch.where(single_line, _uniform(g, b, 0.4, 2.3, device), table[which.clamp_max(5), 0])
    w2 = torch.where(single_line, w1, table[which.clamp_max(5), 1])
    ratio = torch.where(single_line, 0.0, 0.5 + 0.02 * torch.randn(b, generator=g, device=device))
    ratio = torch.where(torch.rand(b, generator=g, device=device) < c.single_share, torch.zeros_like(ratio), ratio)
    # the filter of the preparation is made for copper; other doublets differ slightly in δ and are left in
    told = torch.where((which == 0) & (ratio > 0), torch.full_like(ratio, 0.5), torch.zeros_like(ratio))
    told = torch.where(torch.rand(b, generator=g, device=device) < c.unstripped_share, torch.zeros_like(told), told)
    return w1, w2, ratio, told


def _observed(q, wavelength, line_wavelength, zero, displacement):
    """Position on the common axis (degrees) of lines q seen with ``line_wavelength`` but evaluated with ``wavelength``."""
    sin = q * line_wavelength / 2
    theta = torch.asin(sin.clamp(0, 0.9999))
    theta = theta + torch.deg2rad(0.5 * (zero + displacement * torch.cos(theta)))
    s0 = torch.sin(theta) * (REFERENCE_WAVELENGTH / wavelength)
    x = torch.rad2deg(2 * torch.asin(s0.clamp(-0.9999, 0.9999)))
    return torch.where((sin < 0.985) & (s0 < 0.98), x, torch.full_like(x, 1e4)), theta


def _scatter(hist, x, weight):
    """Add sticks at x (degrees) to a histogram (B, A, _FFT), split linearly between bins and between width anchors."""
    anchors = torch.tensor(_ANCHORS, device=x.device)
    b, a, n = hist.shape
    ok = (x > AXIS_START - 4.0) & (x < AXIS_START + AXIS_STEP * AXIS_POINTS + 4.0)
    x = torch.where(ok, x, torch.full_like(x, AXIS_START))
    weight = torch.where(ok, weight, torch.zeros_like(weight))
    position = (x - AXIS_START) / AXIS_STEP + 256          # margin on the left for tails
    left = position.floor()
    frac = position - left
    seg = (torch.searchsorted(anchors, x.clamp(anchors[0], anchors[-1] - 1e-3).contiguous(), right=True) - 1).clamp(0, a - 2)
    u = ((x - anchors[seg]) / (anchors[seg + 1] - anchors[seg])).clamp(0, 1)
    row = torch.arange(b, device=x.device)[:, None] * (a * n)
    flat = hist.view(-1)
    for da, wa in ((0, 1 - u), (1, u)):
        base = row + (seg + da) * n + left.long()
        flat.index_add_(0, base.reshape(-1), (weight * wa * (1 - frac)).reshape(-1))
        flat.index_add_(0, (base + 1).reshape(-1), (weight * wa * frac).reshape(-1))


def _profiles(g, b, c: Conditions, w1, device):
    """Fourier transforms of the peak profile at every anchor: (B, A, _FFT // 2 + 1) complex."""
    anchors = torch.tensor(_ANCHORS, device=device)[None]
    sin0 = torch.sin(torch.deg2rad(anchors) / 2)
    sin = (sin0 * (w1 / REFERENCE_WAVELENGTH)[:, None]).clamp(1e-3, 0.985)
    cos, tan = torch.sqrt(1 - sin**2), sin / torch.sqrt(1 - sin**2)
    base = _loguniform(g, (b, 1), *c.instrument_fwhm, device)
    # Caglioti, Paoletti & Ricci 1958: FWHM² = U tan² θ + V tan θ + W, kept positive
    u = base**2 * _uniform(g, (b, 1), 0.0, 2.0, device)
    v = -base**2 * _uniform(g, (b, 1), 0.0, 0.9, device)
    gauss = torch.sqrt((u * tan**2 + v * tan + base**2).clamp_min(0.25 * base**2))
    size = _loguniform(g, (b, 1), *c.size, device)
    micro = _loguniform(g, (b, 1), *c.strain, device)
    lorentz = torch.rad2deg(0.94 * w1[:, None] / (size * cos)) + torch.rad2deg(4 * micro * tan)
    lorentz = lorentz + base * _uniform(g, (b, 1), 0.0, 0.5, device)
    cot = torch.clamp(1 / torch.tan(torch.deg2rad(anchors)), 0, 6)
    tail = 0.6 * c.asymmetry * torch.rand((b, 1), generator=g, device=device) ** 2 * cot
    jacobian = (REFERENCE_WAVELENGTH / w1)[:, None] * cos / torch.sqrt(1 - sin0**2)
    gauss, lorentz, tail = gauss * jacobian, lorentz * jacobian, tail * jacobian
    f = torch.fft.rfftfreq(_FFT, AXIS_STEP, device=device)[None, None]
    amplitude = torch.exp(-((torch.pi * f * gauss[..., None]) ** 2) / (4 * np.log(2)) - torch.pi * f * lorentz[..., None])
    # axial divergence: an exponential tail towards low angles
    phase = 2 * torch.pi * f * tail[..., None]
    return amplitude * torch.complex(1 / (1 + phase**2), phase / (1 + phase**2))


def _line_intensity(g, q, intensity, w1, c: Conditions, device):
    """m|F|² to observed: Lorentz-polarisation, Debye-Waller and the scatter of real samples."""
    b = q.shape[0]
    sin = (q * w1[:, None] / 2).clamp(1e-3, 0.985)
    cos2, cos = (1 - 2 * sin**2) ** 2, torch.sqrt(1 - sin**2)
    polarised = torch.where(torch.rand((b, 1), generator=g, device=device) < 0.5, 1.0, 0.8)
    b_iso = _uniform(g, (b, 1), *c.b_iso, device)
    sigma = c.grain_sigma * torch.rand((b, 1), generator=g, device=device)
    scatter = torch.exp(sigma * torch.randn(q.shape, generator=g, device=device))
    return intensity * scatter * torch.exp(-0.5 * b_iso * q**2) * (1 + polarised * cos2) / (sin**2 * cos)


def _measure(g, clean, c: Conditions, device):
    """Counting noise, the baseline a background routine leaves, rectification, and a limited range."""
    b = clean.shape[0]
    sigma0 = 1.0 / _loguniform(g, (b, 1), *c.peak_to_noise, device)
    background = _loguniform(g, (b, 1), 0.01, 0.6, device)
    noise = torch.randn(clean.shape, generator=g, device=device)
    smooth = (noise + noise.roll(1, 1) + noise.roll(-1, 1)) / 3**0.5
    noise = torch.where(torch.rand((b, 1), generator=g, device=device) < 0.2, smooth, noise)
    axis = torch.as_tensor(common_axis(), dtype=torch.float32, device=device)[None]
    slope = 1 + _uniform(g, (b, 1), 0.0, 1.0, device) * torch.exp(-(axis - AXIS_START) / 12.0)
    y = clean + sigma0 * torch.sqrt(slope**2 + clean / background) * noise
    # slow undulation that the background routine did not follow
    wave = torch.sin(axis / _uniform(g, (b, 1), 3.0, 15.0, device) + _uniform(g, (b, 1), 0, 6.3, device))
    y = y + sigma0 * _uniform(g, (b, 1), 0.0, 0.6, device) * wave
    offset = torch.where(torch.rand((b, 1), generator=g, device=device) < c.offset_share,
                         _uniform(g, (b, 1), 1.0, 2.6, device), torch.full((b, 1), -1e3, device=device))
    y = torch.where(offset > 0, (y + offset * sigma0).clamp_min(0.0), y)
    cut = torch.rand((b, 2), generator=g, device=device) < c.cut_share
    lo = torch.where(cut[:, :1], _uniform(g, (b, 1), 4.0, 20.0, device), _uniform(g, (b, 1), 4.0, 6.0, device))
    hi = torch.where(cut[:, 1:], _uniform(g, (b, 1), 55.0, 100.0, device), torch.full((b, 1), 89.99, device=device))
    mask = ((axis >= lo) & (axis <= hi)).float()
    return y * mask, mask


def simulate(q: Tensor, intensity: Tensor, generator: torch.Generator, conditions: Conditions = DEFAULT_CONDITIONS,
             second: tuple[Tensor, Tensor] | None = None, keep_clean: bool = False) -> Patterns:
    """Render a batch of measured-looking patterns.

    Parameters
    ----------
    q, intensity : (B, L) lines of each crystal: 1/d in Å⁻¹ and m|F|² (0 pads)
    generator : torch.Generator on the device of ``q``; the same seed gives the same batch
    conditions : Conditions
    second : lines (q, intensity) of impurity phases, mixed into a share of the patterns at up to 20 % of the strongest line
    keep_clean : bool, keep the noise-free patterns too

    Returns
    -------
    Patterns, strongest line 1 before noise
    """
    device, b, g = q.device, q.shape[0], generator
    w1, w2, ratio, told = _radiation(g, b, conditions, device)
    observed = _line_intensity(g, q, intensity, w1, conditions, device)
    share = torch.zeros((b, 1), device=device)
    if second is not None:
        present = torch.rand((b, 1), generator=g, device=device) < conditions.second_phase_share
        share = _uniform(g, (b, 1), *conditions.second_phase_strength, device) * present
        other = _line_intensity(g, second[0], second[1], w1, conditions, device)
        other = other * share * observed.amax(1, keepdim=True) / other.amax(1, keepdim=True).clamp_min(1e-20)
        q, observed = torch.cat([q, second[0]], 1), torch.cat([observed, other], 1)
    zero = conditions.zero * torch.randn((b, 1), generator=g, device=device)
    displacement = conditions.displacement * torch.randn((b, 1), generator=g, device=device)
    hist = torch.zeros((b, len(_ANCHORS), _FFT), device=device)
    x1, _ = _observed(q, w1[:, None], w1[:, None], zero, displacement)
    x2, _ = _observed(q, w1[:, None], w2[:, None], zero, displacement)
    _scatter(hist, x1, observed)
    _scatter(hist, x2, observed * ratio[:, None])
    spectrum = (torch.fft.rfft(hist) * _profiles(g, b, conditions, w1, device)).sum(1)
    clean = torch.fft.irfft(spectrum, n=_FFT)[:, 256:256 + AXIS_POINTS].clamp_min(0.0)
    clean = clean / clean.amax(1, keepdim=True).clamp_min(1e-20)
    y, mask = _measure(g, clean, conditions, device)
    return Patterns(y, mask, told, share[:, 0], clean if keep_clean else None)

