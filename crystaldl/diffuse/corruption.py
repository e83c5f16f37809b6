"""What an experiment does to ideal diffuse scattering: counting, gaps, Bragg peaks, background, blur, wrong lattice.

Everything is batched on the device of the scene; parameters are drawn on the CPU, noise on the device, both from one seed.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .masks import procedural_masks

KINDS = ("flat", "smooth", "ring")
BRAGG_LIMIT = 100.0         # brightest residual Bragg peak, in units of the diffuse peak
_PATCH = 8                  # half width in pixels of what is drawn of a Bragg peak


@dataclass(frozen=True, eq=False)
class Corruption:
    """How much of what; each strength is a number, or a range (low, high) from which every plane draws its own.

    Attributes
    ----------
    counts : counts in the brightest pixel of D·S, for Poisson noise; None = no noise. Ranges are drawn log-uniformly
    masks : None, "procedural" (random coverage, gaps, beam stop), or a bool bank (n, H, W), True = measured
    missing : share of the pixels that procedural masks hide
    hole_radius : pixels cut out about every Bragg position, at most ``hole_limit`` of the shortest period
    bragg : median height of residual Bragg peaks in units of the peak of D·S (log-normal, at most 100)
    bragg_sigma : spread of the logarithm of the heights
    bragg_width : their Gaussian standard deviation in pixels
    background : in units of the peak of D·S: mean of a flat or smooth background, height of the strongest powder ring
    background_kind : "flat", "smooth", "ring" or "mixed" (each plane one of the three)
    blur : standard deviation of a Gaussian resolution function, pixels
    lattice_error : largest relative error, in the direction where it is largest, of the lattice told to the analyst
    size_effect : largest relative change of the intensity by atomic size: ``I = D S (1 + Q·v)``, v odd and periodic
    share : probability that a plane suffers from it, by name; 1 where not named
    """

    counts: float | tuple | None = None
    masks: str | np.ndarray | Tensor | None = None
    missing: float | tuple = (0.07, 0.55)
    hole_radius: float | tuple = 0.0
    hole_limit: float = 0.35
    bragg: float | tuple = 0.0
    bragg_sigma: float = 1.2
    bragg_width: float | tuple = (0.5, 2.0)
    background: float | tuple = 0.0
    background_kind: str = "mixed"
    blur: float | tuple = 0.0
    lattice_error: float | tuple = 0.0
    size_effect: float | tuple = 0.0
    share: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        names = ("counts", "missing", "hole_radius", "bragg", "bragg_width", "background", "blur", "lattice_error", "size_effect")
        for name in names:
            value = getattr(self, name)
            if value is None:
                continue
            pair = np.atleast_1d(np.asarray(value, dtype=float))
            if pair.size > 2 or not np.isfinite(pair).all() or (pair < 0).any() or pair[0] > pair[-1]:
                raise DataError(f"{name} is {value!r}, expected a number or (low, high), none negative.")
        if self.counts is not None and np.min(self.counts) <= 0:
            raise DataError(f"counts is {self.counts!r}, expected more than 0 (None for no noise).")
        if self.background_kind not in (*KINDS, "mixed"):
            raise DataError(f"background_kind is {self.background_kind!r}, expected one of {', '.join(KINDS)} or mixed.")
        if isinstance(self.masks, str) and self.masks != "procedural":
            raise DataError(f"masks is {self.masks!r}, expected None, 'procedural' or an array (n, H, W).")
        unknown = set(self.share) - {*names, "masks"}
        if unknown:
            raise DataError(f"share names {', '.join(sorted(unknown))}, expected names among {', '.join((*names, 'masks'))}.")
        object.__setattr__(self, "share", MappingProxyType(dict(self.share)))


CLEAN = Corruption()


@dataclass(frozen=True, eq=False)
class Scene:
    """The ideal planes and their geometry, as in `simulate`: D, S (B, H, W), centre, period, steps, vectors, alpha."""

    form_factor: Tensor
    sro: Tensor
    centre: Tensor
    period: Tensor
    steps: Tensor
    vectors: Tensor
    alpha: Tensor

    def __len__(self) -> int:
        return len(self.sro)

    def axes(self) -> tuple[Tensor, Tensor]:
        """Pixel coordinates from the centre, (B, H, 1) and (B, 1, W)."""
        _, h, w = self.sro.shape
        device, dtype = self.sro.device, self.sro.dtype
        rows = torch.arange(h, device=device, dtype=dtype) - self.centre[:, :1]
        columns = torch.arange(w, device=device, dtype=dtype) - self.centre[:, 1:]
        return rows[:, :, None], columns[:, None, :]

    def hk(self) -> tuple[Tensor, Tensor]:
        """h and k of every pixel, (B, H, W) each."""
        rows, columns = self.axes()
        inverse = torch.linalg.inv(self.period)[..., None, None]
        return rows * inverse[:, 0, 0] + columns * inverse[:, 1, 0], rows * inverse[:, 0, 1] + columns * inverse[:, 1, 1]

    def q(self) -> Tensor:
        """|Q| within the plane, (B, H, W), Å⁻¹."""
        rows, columns = self.axes()
        m = (self.steps @ self.steps.transpose(1, 2))[..., None, None]
        return (rows.square() * m[:, 0, 0] + columns.square() * m[:, 1, 1] + 2 * m[:, 0, 1] * rows * columns).clamp_min(0.0).sqrt()


@dataclass(frozen=True, eq=False)
class Measured:
    """What `corrupt` returns; the meaning of each is that of `simulate.SimulatedPlanes`."""

    intensity: Tensor
    mask: Tensor
    sigma: Tensor
    form_factor: Tensor
    background: Tensor
    bragg: Tensor
    given_period: Tensor
    peak: Tensor


def phases(axis: Tensor, rate: Tensor, dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of 2π (axis × rate): (..., M, N) from axis (..., N) in pixels and rate (..., M) in turns a pixel."""
    turns = rate[..., None] * axis[..., None, :]
    angle = (2 * np.pi * (turns - turns.round())).to(dtype)
    return torch.cos(angle), torch.sin(angle)


class Draw:
    """Random numbers: small parameters from a CPU generator (the same on every device), fields on the device."""

    def __init__(self, seed: int, batch: int, like: Tensor) -> None:
        self.cpu = torch.Generator().manual_seed(int(seed) % 2**63)
        self.device_generator = torch.Generator(device=like.device).manual_seed((int(seed) + 1) % 2**63)
        self.batch, self.device, self.dtype = batch, like.device, like.dtype

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        value = low + (high - low) * torch.rand((self.batch, *shape), generator=self.cpu, dtype=torch.float64)
        return value.to(self.device, self.dtype)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn((self.batch, *shape), generator=self.cpu, dtype=torch.float64).to(self.device, self.dtype)

    def strength(self, value, share: float = 1.0, log: bool = False) -> Tensor:
        """(B,) a strength for each plane, 0 for those that do not suffer."""
        low, high = np.broadcast_to(np.asarray(value, dtype=float), 2).tolist()
        if log and low > 0:
            drawn = torch.exp(self.uniform(low=float(np.log(low)), high=float(np.log(high))))
        else:
            drawn = self.uniform(low=low, high=high)
        return torch.where(self.uniform() < share, drawn, torch.zeros_like(drawn))


def corrupt(scene: Scene, c: Corruption, seed: int) -> Measured:
    """Spoil a batch. D and the additions come back in the unit of the intensity (counts, where there are counts)."""
    draw = Draw(seed, len(scene.sro), scene.sro)
    share = lambda name: c.share.get(name, 1.0)  # noqa: E731
    ideal = scene.form_factor * scene.sro.clamp_min(0.0)
    peak = ideal.amax((1, 2)).clamp_min(1e-20)
    counts = draw.strength(c.counts, share("counts"), log=True) if c.counts is not None else torch.zeros_like(peak)
    noisy = counts > 0
    scale = torch.where(noisy, counts / peak, torch.ones_like(peak))[:, None, None]
    factor, ideal, peak = scene.form_factor * scale, ideal * scale, peak * scale[:, 0, 0]
    effect = draw.strength(c.size_effect, share("size_effect"))
    ideal = ideal * (1.0 + size_effect(scene, effect, draw)) if bool((effect > 0).any()) else ideal
    blur = draw.strength(c.blur, share("blur"))
    which = torch.nonzero(blur > 0)[:, 0]
    if len(which):
        ideal = ideal.index_copy(0, which, gaussian_blur(ideal[which], blur[which]))
    height = draw.strength(c.background, share("background")) * peak
    background = backgrounds(scene, height, c.background_kind, draw) if bool((height > 0).any()) else torch.zeros_like(ideal)
    height = draw.strength(c.bragg, share("bragg"), log=True) * peak
    width = draw.strength(c.bragg_width, log=True)
    bragg = bragg_peaks(scene, height, peak, width, c.bragg_sigma, draw) if bool((height > 0).any()) else torch.zeros_like(ideal)
    mean = ideal + background + bragg
    intensity = mean
    if bool(noisy.any()):
        intensity = torch.where(noisy[:, None, None], torch.poisson(mean, generator=draw.device_generator), mean)
    mask = _mask(scene, c, draw, share)
    error = draw.strength(c.lattice_error, share("lattice_error"))
    counting, nominal = intensity.clamp_min(1.0).sqrt(), (1e-3 * peak)[:, None, None].expand_as(intensity)
    sigma = torch.where(noisy[:, None, None], counting, nominal)
    return Measured(intensity * mask, mask, sigma, factor, background, bragg, wrong_lattice(scene.period, error, draw), peak)


def _mask(scene: Scene, c: Corruption, draw: Draw, share) -> Tensor:
    b, h, w = scene.sro.shape
    mask = torch.ones((b, h, w), dtype=torch.bool, device=scene.sro.device)
    if c.masks is not None:
        chosen = draw.uniform() < share("masks")
        if isinstance(c.masks, str):
            made = procedural_masks((h, w), draw, c.missing, scene.centre)
        else:
            bank = torch.as_tensor(c.masks).to(mask.device, torch.bool)
            if bank.ndim != 3 or tuple(bank.shape[1:]) != (h, w):
                raise DataError(f"masks has shape {tuple(bank.shape)}, expected (n, {h}, {w}).")
            made = bank[(draw.uniform() * len(bank)).long().clamp_max(len(bank) - 1)]
        mask = torch.where(chosen[:, None, None], made, mask)
    radius = draw.strength(c.hole_radius, share("hole_radius"))
    if bool((radius > 0).any()):
        shortest = torch.linalg.vector_norm(scene.period, dim=-1).amin(1)
        mask = mask & ~bragg_holes(scene, torch.minimum(radius, c.hole_limit * shortest))
    return mask


def bragg_holes(scene: Scene, radius: Tensor) -> Tensor:
    """(B, H, W) True within ``radius`` (B,) pixels of a Bragg position."""
    h, k = scene.hk()
    h, k = h - h.round(), k - k.round()
    p = scene.period[..., None, None]
    distance = (h * p[:, 0, 0] + k * p[:, 1, 0]).square() + (h * p[:, 0, 1] + k * p[:, 1, 1]).square()
    return distance <= (radius.square() - 1e-6)[:, None, None]


def _nodes(scene: Scene) -> tuple[Tensor, Tensor]:
    """Integer hk (N, 2) of every Bragg position that any plane shows, and their pixels (B, N, 2)."""
    b, h, w = scene.sro.shape
    corners = torch.tensor([[0, 0], [0, w - 1], [h - 1, 0], [h - 1, w - 1]], device=scene.sro.device, dtype=scene.sro.dtype)
    hk = (corners[None] - scene.centre[:, None]) @ torch.linalg.inv(scene.period)
    reach = int(hk.abs().max().ceil()) + 1
    index = torch.arange(-reach, reach + 1, device=hk.device, dtype=hk.dtype)
    nodes = torch.stack(torch.meshgrid(index, index, indexing="ij"), -1).reshape(-1, 2)
    return nodes, nodes[None] @ scene.period + scene.centre[:, None]


def bragg_peaks(scene: Scene, height: Tensor, peak: Tensor, width: Tensor, spread: float, draw: Draw) -> Tensor:
    """Residual Bragg peaks: Gaussians on the reciprocal lattice, log-normal, Friedel-symmetric, fading with Q, some extinct."""
    b, h, w = scene.sro.shape
    nodes, position = _nodes(scene)
    side = round(len(nodes) ** 0.5)
    logarithm = torch.randn((b, side, side), generator=draw.device_generator, device=draw.device, dtype=draw.dtype)
    logarithm = (logarithm + logarithm.flip((1, 2))) / 2**0.5
    q2 = torch.einsum("bnx,bxy->bny", position - scene.centre[:, None], scene.steps).square().sum(-1)
    b_iso = draw.uniform(low=0.5, high=4.0)[:, None]
    size = height[:, None] * torch.exp(spread * logarithm.reshape(b, -1) - 2 * b_iso * q2 / (16 * np.pi**2))
    size = torch.minimum(size, BRAGG_LIMIT * peak[:, None])
    centred = draw.uniform()[:, None] < 0.3
    size = torch.where(centred & ((nodes[:, 0] + nodes[:, 1]) % 2 != 0)[None], torch.zeros_like(size), size)
    limit = torch.tensor([h, w], device=size.device, dtype=size.dtype) + _PATCH
    seen = ((position > -_PATCH) & (position < limit)).all(-1) & (size > 1e-5 * peak[:, None])
    which, node = torch.nonzero(seen, as_tuple=True)
    patch = torch.arange(-_PATCH, _PATCH + 1, device=size.device)
    place = position[which, node]
    row = place[:, 0].round().long()[:, None] + patch
    column = place[:, 1].round().long()[:, None] + patch
    slope = (-0.5 / width[which].square())[:, None]
    along_row = torch.exp(slope * (row - place[:, :1]).square()) * ((row >= 0) & (row < h)) * size[which, node][:, None]
    along_column = torch.exp(slope * (column - place[:, 1:]).square()) * ((column >= 0) & (column < w))
    flat = (which[:, None] * h + row.clamp(0, h - 1))[:, :, None] * w + column.clamp(0, w - 1)[:, None]
    out = torch.zeros(b * h * w, device=size.device, dtype=size.dtype)
    out.index_add_(0, flat.reshape(-1), (along_row[:, :, None] * along_column[:, None]).reshape(-1))
    return out.reshape(b, h, w)


def backgrounds(scene: Scene, height: Tensor, kind: str, draw: Draw) -> Tensor:
    """Flat, smooth (air scatter falling and Compton scattering rising with Q, a tilt) or powder rings, (B, H, W) ≥ 0."""
    rows, columns = scene.axes()
    u = scene.q()
    u = u / u.amax((1, 2), keepdim=True)
    number = lambda low, high: draw.uniform(low=low, high=high)[:, None, None]  # noqa: E731
    tilt = rows / rows.abs().amax() * number(-0.25, 0.25) + columns / columns.abs().amax() * number(-0.25, 0.25)
    smooth = number(0.0, 1.0) * torch.exp(-u / number(0.05, 0.5)) + number(0.0, 0.6) * u.square() + number(0.02, 0.5)
    smooth = (smooth * (1 + tilt)).clamp_min(0.0)
    smooth = smooth / smooth.mean((1, 2), keepdim=True)
    ring = torch.zeros_like(u)
    for k in range(3):
        size = 1.0 if k == 0 else number(0.0, 0.8) * (number(0.0, 1.0) < 0.6)
        ring = ring + size * torch.exp(-0.5 * ((u - number(0.1, 0.9)) / number(0.004, 0.03)).square())
    ring = ring / ring.amax((1, 2), keepdim=True)
    drawn = (draw.uniform() * 3).long().clamp_max(2)
    choice = (drawn if kind == "mixed" else torch.full_like(drawn, KINDS.index(kind)))[:, None, None]
    shape = torch.where(choice == 0, torch.ones_like(u), torch.where(choice == 1, smooth, ring))
    return shape * height[:, None, None]


def size_effect(scene: Scene, strength: Tensor, draw: Draw) -> Tensor:
    """``Q·v(h)`` with v odd and periodic, v = Σ_R β_R R sin(2π h·R) over the shortest R; its largest value is ``strength``.

    First order in the displacements by atomic size (Warren, Averbach & Roberts, J. Appl. Phys. 22, 1951, 1493), written
    as a factor of S so that the intensity stays positive.
    """
    count = min(6, scene.vectors.shape[1])
    vectors = scene.vectors[:, :count].to(scene.sro.dtype)
    order = torch.arange(count, device=draw.device, dtype=draw.dtype)
    beta = draw.normal(count) * torch.exp(-order / 2.0) * (scene.vectors[:, :count].abs().sum(-1) > 0)
    rate = torch.linalg.inv(scene.period) @ vectors.transpose(1, 2)
    rows, columns = scene.axes()
    cr, sr = phases(rows[:, :, 0], rate[:, 0], scene.sro.dtype)
    cc, sc = phases(columns[:, 0], rate[:, 1], scene.sro.dtype)
    right, g = torch.cat([cc, sc], 1), 0.0
    for axis, index in enumerate(scene.hk()):
        weight = (beta * vectors[..., axis])[..., None]
        g = g + index * torch.bmm(torch.cat([sr * weight, cr * weight], 1).transpose(1, 2), right)
    return g * (strength / g.abs().amax((1, 2)).clamp_min(1e-20))[:, None, None]


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Convolve each plane with a Gaussian of its own standard deviation in pixels (edges repeated)."""
    reach = max(1, int(4 * float(sigma.max()) + 0.5))
    x = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (x[None] / sigma[:, None].clamp_min(1e-3)).square())
    kernel = kernel / kernel.sum(1, keepdim=True)
    b = len(image)
    padded = torch.nn.functional.pad(image[None], (reach,) * 4, mode="replicate")
    rows = torch.nn.functional.conv2d(padded, kernel[:, None, :, None], groups=b)
    return torch.nn.functional.conv2d(rows, kernel[:, None, None, :], groups=b)[0]


def wrong_lattice(period: Tensor, error: Tensor, draw: Draw) -> Tensor:
    """The period strained by a random symmetric 2 × 2 matrix whose larger eigenvalue, in size, is ``error``."""
    m = draw.normal(2, 2)
    m = (m + m.transpose(1, 2)) / 2
    half = (m[:, 0, 0] - m[:, 1, 1]) / 2
    mean = (m[:, 0, 0] + m[:, 1, 1]) / 2
    largest = mean.abs() + torch.sqrt(half.square() + m[:, 0, 1].square())
    strain = m * (error / largest.clamp_min(1e-12))[:, None, None]
    return period + period @ strain
