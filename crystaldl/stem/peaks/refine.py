"""Refinement of disk positions by variable projection, batched in torch: where the accuracy is made.

Around each disk the measured patch is described as

    I(p) ≈ probe(p - s) · P(p) + b(p)

with the measured probe shifted to s by cubic B-splines, a polynomial P of degree 2 (the uneven filling of a disk under
multiple scattering) and a linear background b. The nine linear coefficients are eliminated exactly for every s
(variable projection; Golub & Pereyra 1973), and s is found by Gauss-Newton with step limits under Poisson weights. The
inverse of the reduced normal matrix, scaled by the fit's own χ², gives the standard uncertainties of s.

Thick crystals fill their disks with fringes that no polynomial of degree 2 describes, and what it leaves of them pulls on s.
From where the polynomial got to, the fit therefore goes on with a filling of whatever fineness the disk itself calls for
(`crystaldl.stem.peaks.filling`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ..probe import Probe
from .between import SHARP
from .blurred import filling_of
from .filling import Filling, refine
from .threads import shared_out
from .varpro import REACH, Shape, Solution, minimise

CHUNK = 256  # disks at once: the working arrays stay in the processor's cache
FULL_WINDOW = 450  # pixels; larger windows are thinned out away from the edge
# Weight of the pixels inside, away from the edge. The position lies in the edge; fringes inside, which no polynomial of
# degree 2 describes, only pull on it (strain errors of thick crystals fall by a fifth).
INSIDE = 0.1
# What the covariance leaves out: a factor, since weights follow the noise and residuals of neighbouring pixels are correlated,
# and in proportion to the radius what is left of how multiple scattering fills a disk. Where a polynomial is enough, its
# quadratic part tells how much there may be of higher degree (root mean square over the disk relative to the mean). Where fringes
# are described, the covariance knows how little can be told from a disk that is filled so closely, and hardly anything is to be
# added: a larger constant would make the disks that are best known count no more than the others. Fitted once for all, and
# `FAINT` with them, to the true errors of the disks of 14 crystals, 5 to 80 nm thick, at 10⁵, 10⁶ and 10⁷ electrons (multislice of
# strained crystals and Bloch waves). Errors have longer tails than a normal distribution: with these values the 68 % interval is
# a little wide, and the 95 % interval a little narrow.
SIGMA_FACTOR, SIGMA_FACTOR_FRINGES = 1.06, 1.08
MODEL_ERROR = 0.0008  # of the radius: also of evenly filled disks
MODEL_ERROR_UNEVEN = 0.015  # of the radius, for an unevenness of 1
MODEL_ERROR_FRINGES = 0.0015  # of the radius, in place of that where fringes are described
MOST_UNEVEN = 2.0  # where the mean filling is hardly known
# The faintest disks are the most unevenly filled ones, for what multiple scattering leaves of them lies near a zero, and too faint
# to measure how: σ is off by √(1 + (FAINT / significance)²). That is too much for even disks as of very thin crystals.
FAINT = 5.0


Images = tuple[Tensor, Tensor | None]  # patterns and what is known of their background, with margins


@dataclass(frozen=True)
class FitSettings:
    """How disks are refined.

    Attributes
    ----------
    degree : 0, 1 or 2
        Of the polynomial that describes the filling.
    filling : float
        Expected size of its linear and quadratic coefficients relative to the mean filling (a weak Gaussian prior). It
        makes them vanish smoothly, quadratic ones first, where counts are too low to measure them.
    max_shift : float or None
        Largest distance from the start, px; by default 0.5 × radius and at least 2.
    iterations : int
        Gauss-Newton steps at most.
    tolerance : float
        A step below this (px) is the last one, and taken without looking where it leads.
    outliers : float
        Pixels this many standard deviations off are left out (hot and dead pixels).
    fringes : bool
        Go on with a Gaussian process in place of the polynomial; with a polynomial of degree 2 only.
    """

    degree: int = 2
    filling: float = 0.4
    max_shift: float | None = None
    iterations: int = 8
    tolerance: float = 0.02
    outliers: float = 6.0
    fringes: bool = True

    def __post_init__(self):
        if self.degree not in (0, 1, 2):
            raise ValueError(f"degree is {self.degree!r}; expected 0, 1 or 2.")
        for name in ("filling", "iterations", "tolerance", "outliers"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a positive number.")


@dataclass
class DiskFits:
    """Refined disks: tensors on the device of the fitter.

    Attributes
    ----------
    positions : (N, 2), px
    sigma : (N, 2), px, one standard uncertainty: counting noise, and what the polynomial leaves of an uneven filling
    intensity : (N,), sum of the disk above its background, in units of the data
    significance : (N,), intensity over its standard uncertainty
    chi2 : (N,), reduced χ² under weights 1 / I (1 for counts that the model describes)
    ok : (N,) bool; where False, positions are the input's and sigma is a quarter of the radius or more
    """

    positions: Tensor
    sigma: Tensor
    intensity: Tensor
    significance: Tensor
    chi2: Tensor
    ok: Tensor


class DiskFitter:
    """Refines disks of one probe on one device.

    Parameters
    ----------
    probe : Probe
    settings : FitSettings, optional
    device : str or torch device
    """

    def __init__(self, probe: Probe, settings: FitSettings | None = None, device="cpu"):
        self.settings = settings or FitSettings()
        self.radius, self.edge = probe.radius, probe.edge
        self.device = torch.device(device)
        self.half = int(np.ceil(probe.radius + 2.5 * probe.edge + max(2.0, 0.25 * probe.radius)))
        self.max_shift = self.settings.max_shift or max(2.0, 0.5 * probe.radius)
        pixels = _window_pixels(self.half, probe.radius, probe.edge)
        self._pixels = torch.as_tensor(pixels, device=self.device)
        emphasis = np.where(np.hypot(*pixels.T) < probe.radius - edge_band(probe.radius, probe.edge), INSIDE, 1.0)
        self._core = torch.as_tensor(np.hypot(*pixels.T) <= probe.radius + probe.edge, device=self.device)
        fine = 2 if probe.edge < SHARP else 1
        image, degree = probe.fine_patch(self.half + 8, fine), self.settings.degree
        self._shape = Shape(image, pixels, probe.radius, degree, self.device, emphasis, fine)
        self._filling: Filling | None = None
        if self.settings.fringes and self.settings.degree == 2:
            self._filling = filling_of(probe, self._shape, pixels, self.device)

    def fit(self, patterns: Tensor, pattern: Tensor, positions: Tensor, known: Tensor | None = None) -> DiskFits:
        """Refine disks.

        Parameters
        ----------
        patterns : (B, H, W) float tensor
            NaN where not measured.
        pattern : (N,) int tensor
            Index of each disk's pattern.
        positions : (N, 2) tensor
            Starting positions (qx, qy), px.
        known : (B, H, W) float tensor, optional
            Background known beforehand, part of ``patterns``.
        """
        pattern = pattern.to(self.device, torch.long)
        positions = positions.to(self.device, torch.float32)
        padded = torch.nn.functional.pad(patterns.to(self.device, torch.float32), (self.half,) * 4, value=float("nan"))
        under = None if known is None else torch.nn.functional.pad(known.to(self.device, torch.float32), (self.half,) * 4)
        near = neighbours(pattern, positions, 2 * self.radius + 2 * self.edge + self.half, len(patterns))
        if len(pattern) == 0:
            none = torch.zeros(0, device=self.device)
            return DiskFits(none.reshape(0, 2), none.reshape(0, 2), none, none, none, none.bool())

        def part(i: int) -> DiskFits:
            return self._fit_chunk((padded, under), *(a[i : i + CHUNK] for a in (pattern, positions, near)))

        parts = shared_out(part, range(0, len(pattern), CHUNK), self.device)
        return DiskFits(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(DiskFits)))

    def _fit_chunk(self, padded: Images, pattern: Tensor, start: Tensor, near: Tensor) -> DiskFits:
        fit = self._fit_window(padded, pattern, start, near)
        # those that reached the end of the window's range go on in a window around where they got to
        moved = (fit.positions - start.round()).abs().amax(1) > REACH - 0.75
        moved &= (fit.positions - start).norm(dim=1) < self.max_shift
        if moved.any():
            again = self._fit_window(padded, pattern[moved], fit.positions[moved], near[moved])
            for f in fields(DiskFits):
                getattr(fit, f.name)[moved] = getattr(again, f.name)
        size = torch.tensor(padded[0].shape[1:], device=self.device) - 2 * self.half
        inside = ((fit.positions > -0.5) & (fit.positions < size - 0.5)).all(1)
        near_start = (fit.positions - start).norm(dim=1) <= self.max_shift
        fit.ok = fit.ok & inside & near_start & (fit.intensity > 0) & (fit.sigma.amax(1) < 0.5 * self.radius)
        fit.sigma = fit.sigma * torch.sqrt(1 + (FAINT / fit.significance.clamp_min(1.0)) ** 2)[:, None]
        poor = max(1.0, 0.25 * self.radius)
        fit.positions = torch.where(fit.ok[:, None], fit.positions, start)
        fit.sigma = torch.where(fit.ok[:, None], fit.sigma, fit.sigma.nan_to_num(poor, poor, poor).clamp(poor, 4 * poor))
        for name in ("intensity", "significance", "chi2"):
            setattr(fit, name, getattr(fit, name).nan_to_num(0.0, 0.0, 0.0))
        return fit

    def _fit_window(self, padded: Images, pattern: Tensor, begin: Tensor, near: Tensor) -> DiskFits:
        size = torch.tensor(padded[0].shape[1:], device=self.device) - 2 * self.half
        centre = torch.minimum(begin.round().clamp_min(0), (size - 1).float())
        data, known, use = self._window(padded, pattern, centre, near)
        scale = (data.abs() * use).sum(1, keepdim=True) / use.sum(1, keepdim=True).clamp_min(1)
        scale = torch.where(scale > 0, scale, 1.0)
        known = known / scale
        data = data / scale - known
        start = (begin - centre).clamp(-REACH, REACH)
        found: Solution = minimise(self._shape, data, use, start, self.settings, known)
        p = found.projection
        total = (p.coefficients[:, : self._shape.filling].float() * self._shape.sums).sum(1)
        significance = total / (p.total_variance * found.chi2).clamp_min(1e-30).sqrt().float()
        shift, variance = found.s, _variances(p.normal / found.chi2[:, None, None])
        uneven = unevenness(p.coefficients[:, : self._shape.filling], total / self._shape.sums[0])
        fringed = torch.zeros(len(shift), dtype=torch.bool, device=self.device)
        if self._filling is not None:
            shift, variance, fringed = self._with_fringes(data, known, found, total / self._shape.sums[0], variance)
        beyond = torch.where(fringed, MODEL_ERROR_FRINGES, MODEL_ERROR_UNEVEN * uneven)
        factor = torch.where(fringed, SIGMA_FACTOR_FRINGES, SIGMA_FACTOR)
        model_error = self.radius**2 * (MODEL_ERROR**2 + beyond**2)
        sigma = torch.sqrt((factor**2)[:, None] * variance + model_error[:, None])
        used = found.weight > 0
        ok = (variance > 0).all(1)
        # most of the disk must have been measured, and more pixels than there are unknowns
        ok &= ((used & self._core).sum(1) > 0.6 * self._core.sum()) & (used.sum(1) > 1.5 * (self._shape.filling + 5))
        ok &= torch.isfinite(shift).all(1)
        chi2 = (found.chi2 * scale[:, 0]).float()
        return DiskFits(centre + shift, sigma, total * scale[:, 0], significance, chi2, ok)

    def _with_fringes(self, data: Tensor, known: Tensor, found: Solution, mean: Tensor, variance: Tensor):
        """Shifts (n, 2), their variances (n, 2), and where (n,) they are those under a filling with fringes.

        Elsewhere they are the polynomial's: where it is enough, or a finer filling leads nowhere.
        """
        start = (found.projection.model, mean, found.chi2)
        assert self._filling is not None
        fine = refine(self._filling, data, (found.weight > 0).float(), found.s, start, known)
        own = _variances(fine.normal)
        good = (own > 0).all(1) & torch.isfinite(fine.s).all(1)
        good &= ((fine.hypothesis > 0) | self._filling.again) & ((fine.s - found.s).norm(dim=1) < max(1.0, 0.25 * self.radius))
        shift = torch.where(good[:, None], fine.s, found.s)
        return shift, torch.where(good[:, None], own, variance), good

    def _window(self, padded: Images, pattern: Tensor, centre: Tensor, near: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels, what is known below them, and 1/0 weights (n, P) around whole-pixel centres.

        Pixels of neighbouring disks have weight 0.
        """
        measured, under = padded
        height, width = measured.shape[1:]
        row, column = (centre.long() + self.half).unbind(1)
        base = (pattern * height + row) * width + column
        at = base[:, None] + self._pixels[:, 0] * width + self._pixels[:, 1]
        values = measured.reshape(-1)[at]
        use = torch.isfinite(values)
        close = torch.isfinite(near[:, :, 0]).any(1)
        if close.any():
            p = self._pixels.float()
            delta = near[close] - centre[close, None]
            distance2 = (p[:, 0] - delta[..., :1]) ** 2 + (p[:, 1] - delta[..., 1:]) ** 2
            theirs = (distance2 < (self.radius + 2 * self.edge + 0.5) ** 2).any(1)
            use[close] &= ~(theirs & ((p**2).sum(1) > (self.radius + self.edge) ** 2))
        values = torch.where(use, values, 0.0)
        return values, torch.zeros_like(values) if under is None else under.reshape(-1)[at], use.float()


def _variances(information: Tensor) -> Tensor:
    """Diagonal (n, 2) of the inverse of matrices (n, 2, 2); NaN where they are not positive definite."""
    determinant = information[:, 0, 0] * information[:, 1, 1] - information[:, 0, 1] ** 2
    variance = information.diagonal(dim1=1, dim2=2).flip(1) / determinant[:, None]
    return torch.where((determinant > 0)[:, None], variance, torch.nan).float()


def unevenness(coefficients: Tensor, mean: Tensor) -> Tensor:
    """Root mean square, over the disk and relative to its mean, of the quadratic part of a filling; 0 without one.

    Parameters
    ----------
    coefficients : (n, 1 or 3 or 6), of 1, y, x, y², yx, x² in units of the radius
    mean : (n,), of the filling
    """
    if coefficients.shape[1] < 6:
        return torch.zeros_like(mean)
    yy, yx, xx = coefficients[:, 3:].float().unbind(1)
    # over the unit disk ⟨y²⟩ = 1/4, ⟨y⁴⟩ = 1/8, ⟨y²x²⟩ = 1/24
    variance = (yy**2 + xx**2) / 8 + (2 * yy * xx + yx**2) / 24 - ((yy + xx) / 4) ** 2
    return (variance.clamp_min(0).sqrt() / mean.abs().clamp_min(1e-9)).clamp_max(MOST_UNEVEN)


def _window_pixels(half: int, radius: float, edge: float) -> np.ndarray:
    """Offsets (P, 2) of the pixels used: a round window; of large disks all of the edge, part of the rest."""
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    r = np.hypot(y, x)
    keep = r <= half + 0.3
    step = max(1, int(np.sqrt(keep.sum() / FULL_WINDOW)))
    if step > 1:  # the position lies in the edge
        keep &= (np.abs(r - radius) < edge_band(radius, edge)) | ((y % step == 0) & (x % step == 0))
    return np.stack([y[keep], x[keep]], axis=1)


def edge_band(radius: float, edge: float) -> float:
    """How far from the outline, px, pixels tell the position."""
    return max(1.5 + 2 * edge, 0.3 * radius)


def neighbours(pattern: Tensor, positions: Tensor, reach: float, count: int, most: int = 6) -> Tensor:
    """Positions (N, most, 2) of the nearest other disks of the same pattern within ``reach``, NaN where there are none."""
    n = len(pattern)
    if n == 0:
        return positions.new_zeros(0, most, 2)
    number = torch.bincount(pattern, minlength=count)
    order = torch.argsort(pattern, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(n, device=pattern.device) - (number.cumsum(0) - number)[pattern[order]]
    table = positions.new_full((count, int(number.max()), 2), float("inf"))
    table[pattern, rank] = positions
    out = positions.new_full((n, most, 2), float("nan"))
    k = min(most + 1, table.shape[1])
    for i in range(0, n, 4096):
        s = slice(i, i + 4096)
        distance = (table[pattern[s]] - positions[s, None]).norm(dim=2)
        distance[torch.arange(len(distance), device=pattern.device), rank[s]] = float("inf")
        near, which = distance.topk(k, dim=1, largest=False)
        found = table[pattern[s, None], which]
        found = torch.where((near <= reach)[:, :, None], found, float("nan"))
        out[s, : min(k, most)] = found[:, :most]
    return out
