"""Diffraction patterns with known truth, from a bank of dynamical disks. Batched, seeded, on any device.

A pattern takes a crystal and a thickness of the bank, cuts its aperture out of the computed cone (which also tilts the
crystal a little), turns, strains and distorts the reciprocal lattice by a known affine map, draws every disk at its
exact sub-pixel centre, and hands it to `crystaldl.stem.simulate.corruption`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..probe import Probe
from .bank import EXTENT, GRID, HELD_OUT_SEMIANGLES, DiskBank, interpolation
from .corruption import Corruption, count, detect, uniform

VISIBLE = 4.5  # disks this many standard deviations above their background are to be found,
INVISIBLE = 1.0  # those below this are background; between them nothing is asked


@dataclass(frozen=True)
class SceneOptions:
    """Geometry of the patterns of one batch.

    Attributes
    ----------
    shape : (H, W)
    radius : float
        Of the disks, px.
    edge : float
        Standard deviation of their soft edge, px.
    bullseye : float
        Depth of the aperture's rings, 0 for none.
    strain : float
        Standard deviation of the components of the affine map.
    ellipticity : float
        Largest.
    off_centre : float
        Largest distance of the beam from the middle, as a share of the shape.
    probe_dose : float
        Electrons of the probe image.
    held_out : bool
        Semi-angles of `HELD_OUT_SEMIANGLES`, else all others.
    """

    shape: tuple[int, int] = (160, 160)
    radius: float = 5.0
    edge: float = 0.5
    bullseye: float = 0.0
    strain: float = 0.015
    ellipticity: float = 0.03
    off_centre: float = 0.2
    probe_dose: float = 1e6
    held_out: bool = False
    corruption: Corruption = field(default_factory=Corruption)


@dataclass
class Patterns:
    """Simulated patterns and their truth.

    Attributes
    ----------
    patterns : (B, H, W) float32, NaN where not measured
    probe : Probe, as measured
    centres : (B, M, 2), px; disk m of pattern b; NaN where there is none
    counts : (B, M), expected electrons of the disk
    contrast : (B, M), standard deviations above the background
    visible : (B, M) bool, to be found
    ignore : (B, M) bool, neither to be found nor not to be (weak, extinct, at the edge)
    v : (B, M), |V_g| relative to the strongest beam's (000 apart)
    matrix : (B, 2, 2), maps g (cone radii) to px: rotation, scale, strain and distortion
    beam : (B, 2), px, position of 000
    thickness, dose : (B,), nm and electrons
    entry : (B,), in the bank
    """

    patterns: Tensor
    probe: Probe
    centres: Tensor
    counts: Tensor
    contrast: Tensor
    visible: Tensor
    ignore: Tensor
    v: Tensor
    matrix: Tensor
    beam: Tensor
    thickness: Tensor
    dose: Tensor
    entry: Tensor


def aperture(r: Tensor, edge: float, bullseye: float = 0.0) -> Tensor:
    """Transmission of the aperture at r (in radii), for an edge in radii; ``bullseye``: depth of three rings."""
    out = torch.special.ndtr((1 - r) / max(edge, 1e-3))
    if bullseye:
        out = out * (1 - bullseye * 0.5 * (1 + torch.cos(6 * torch.pi * r)))
    return out


def draw_disks(maps: Tensor, centres: Tensor, shape_matrix: Tensor, options: SceneOptions) -> tuple[Tensor, Tensor]:
    """Draw disks at exact centres.

    Parameters
    ----------
    maps : (B, M, GRID, GRID)
        Filling over ±EXTENT radii.
    centres : (B, M, 2), px; NaN: none
    shape_matrix : (B, 2, 2)
        Maps the unit disk to px.

    Returns
    -------
    images : (B, H, W), sums : (B, M) of each whole disk
    """
    (h, w), radius = options.shape, options.radius
    b, m = centres.shape[:2]
    half = int(np.ceil(1.12 * radius + 3.2 * options.edge + 1))
    low = torch.tensor([-half, -half], device=centres.device)
    high = torch.tensor([h + half, w + half], device=centres.device) - 1
    whole = torch.nan_to_num(centres, nan=-1e6).round()
    drawn = ((whole >= low) & (whole <= high)).all(2)
    rows = drawn.reshape(-1).nonzero()[:, 0]
    centre, base = centres.reshape(-1, 2)[rows], whole.reshape(-1, 2)[rows]
    window = torch.arange(-half, half + 1, device=centres.device)
    inverse = torch.linalg.inv(shape_matrix)[rows // m]
    y = base[:, 0, None, None] + window[:, None] - centre[:, 0, None, None]
    x = base[:, 1, None, None] + window - centre[:, 1, None, None]
    u, v = (inverse[:, i, 0, None, None] * y + inverse[:, i, 1, None, None] * x for i in (0, 1))
    grid = torch.stack([v, u], 3).clamp(-EXTENT, EXTENT) / EXTENT
    filling = torch.nn.functional.grid_sample(
        maps.reshape(-1, 1, GRID, GRID)[rows], grid, mode="bicubic", padding_mode="border", align_corners=True
    )[:, 0]
    disk = filling.clamp_min(0) * aperture(torch.sqrt(u**2 + v**2), options.edge / radius, options.bullseye)
    padded = centres.new_zeros(b, (h + 4 * half + 2) * (w + 4 * half + 2))
    width = w + 4 * half + 2
    corner = (base + 2 * half).long()
    index = (corner[:, 0, None, None] + window[:, None]) * width + corner[:, 1, None, None] + window
    index = index + ((rows // m) * padded.shape[1])[:, None, None]
    padded.view(-1).index_add_(0, index.reshape(-1), disk.reshape(-1))
    images = padded.reshape(b, h + 4 * half + 2, width)[:, 2 * half : 2 * half + h, 2 * half : 2 * half + w]
    sums = centres.new_zeros(b * m)
    sums[rows] = disk.sum((1, 2))
    return images, sums.reshape(b, m)


def cut_apertures(bank: DiskBank, entry: Tensor, at: Tensor, share: Tensor, offset: Tensor) -> Tensor:
    """Maps (B, M, GRID, GRID) of disks cut out of the cone: radius ``share`` (B,), middle ``offset`` (B, 2) of its radius."""
    table = torch.as_tensor(interpolation(), dtype=torch.float32, device=entry.device)
    values = bank.values[entry, at].float()
    b, m = values.shape[:2]
    maps = (values.reshape(b * m, -1) @ table).reshape(b, m, GRID, GRID)
    axis = torch.linspace(-EXTENT, EXTENT, GRID, device=entry.device)
    y = axis[:, None] * share[:, None, None] + offset[:, 0, None, None]
    x = axis * share[:, None, None] + offset[:, 1, None, None]
    grid = torch.stack([x.expand(b, GRID, GRID), y.expand(b, GRID, GRID)], 3) / EXTENT
    return torch.nn.functional.grid_sample(maps, grid, mode="bicubic", padding_mode="border", align_corners=True).clamp_min(0)


def simulate(bank: DiskBank, count_: int, g: torch.Generator, options: SceneOptions | None = None) -> Patterns:
    """Simulate ``count_`` patterns of one probe from a bank on the generator's device."""
    o = SceneOptions() if options is None else options
    entry = torch.randint(len(bank), (count_,), generator=g, device=g.device)
    at = torch.randint(bank.values.shape[1], (count_,), generator=g, device=g.device)
    share, offset = choose_aperture(bank, entry, g, o)
    matrix, shape_matrix = _choose_map(g, count_, share, o)
    size = torch.tensor(o.shape, dtype=torch.float32, device=g.device)
    beam = (size - 1) / 2 + uniform(g, -1, 1, count_, 2) * o.off_centre * size
    centres = beam[:, None] + torch.einsum("bij,bmj->bmi", matrix, bank.g[entry])
    maps = cut_apertures(bank, entry, at, share, offset)
    disks, sums = draw_disks(maps, centres, shape_matrix, o)
    incident = _flat_disk(o, g.device).sum()
    counted = count(g, o.corruption, disks / incident, beam, o.radius)
    probe = measured_probe(g, o)
    patterns = detect(g, o.corruption, counted)
    lost = counted.dose[:, None] / incident
    truth = _truth(centres, sums * lost, counted, bank.v[entry], o)
    return Patterns(
        patterns, probe, centres, sums * lost, *truth, bank.v[entry], matrix, beam,
        bank.thickness[entry, at], counted.dose, entry,
    )  # fmt: skip


def choose_aperture(bank: DiskBank, entry: Tensor, g: torch.Generator, o: SceneOptions) -> tuple[Tensor, Tensor]:
    """Part of the cone that is the aperture: disks apart from one another, semi-angles of the right split."""
    b = len(entry)
    nearest = torch.nan_to_num(bank.g[entry, 1:].norm(dim=2), nan=torch.inf).amin(1)
    most = (0.5 * nearest / 1.04).clamp_max(1.0)  # 4 % between neighbouring disks at least
    draws = most[:, None] * uniform(g, 0.55, 1.0, b, 16)
    right = _reserved(draws * bank.semiangle[entry, None]) == o.held_out
    first = right.int().argmax(1)  # the first draw of the right split (or the first of all, if none is)
    share = draws.gather(1, first[:, None])[:, 0]
    direction = uniform(g, 0, 2 * torch.pi, b)
    distance = (1 - share).clamp_min(0) * uniform(g, 0, 1, b).sqrt()
    return share, torch.stack([direction.sin(), direction.cos()], 1) * distance[:, None]


def _reserved(angle: Tensor) -> Tensor:
    out = torch.zeros_like(angle, dtype=torch.bool)
    for low, high in HELD_OUT_SEMIANGLES:
        out |= (angle >= low) & (angle <= high)
    return out


def _choose_map(g: torch.Generator, b: int, share: Tensor, o: SceneOptions) -> tuple[Tensor, Tensor]:
    """Maps (B, 2, 2) from cone radii to px, and from the unit disk to px."""
    angle, axis = uniform(g, 0, 2 * torch.pi, b), uniform(g, 0, torch.pi, b)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(b, 2, 2)
    e = 0.5 * uniform(g, 0, o.ellipticity, b)
    stretch = torch.stack([e * (2 * axis).cos(), e * (2 * axis).sin(), e * (2 * axis).sin(), -e * (2 * axis).cos()], 1)
    eye = torch.eye(2, device=g.device)
    distortion = eye + stretch.reshape(b, 2, 2)
    strain = eye + o.strain * torch.randn(b, 2, 2, generator=g, device=g.device)
    shape_matrix = o.radius * distortion @ rotation
    return (distortion @ rotation @ strain) * (o.radius / share)[:, None, None], shape_matrix


def _flat_disk(o: SceneOptions, device, half: int | None = None) -> Tensor:
    half = half or int(np.ceil(o.radius + 4 * o.edge + 3))
    axis = torch.arange(-half, half + 1, device=device, dtype=torch.float32)
    r = torch.sqrt(axis[:, None] ** 2 + axis**2) / o.radius
    return aperture(r, o.edge / o.radius, o.bullseye)


def measured_probe(g: torch.Generator, o: SceneOptions) -> Probe:
    """The probe as it would be measured: counted, and not quite in the middle."""
    y, x = (torch.arange(n, device=g.device) - n // 2 for n in o.shape)
    shift = uniform(g, -0.5, 0.5, 2)
    r = torch.sqrt((y[:, None] - shift[0]) ** 2 + (x - shift[1]) ** 2) / o.radius
    image = aperture(r, o.edge / o.radius, o.bullseye)
    image = torch.poisson(image * (o.probe_dose / image.sum()), generator=g)
    return Probe.from_array(image.cpu().numpy(), "simulated")


def _truth(centres: Tensor, counts: Tensor, counted, v: Tensor, o: SceneOptions):
    """Contrast in standard deviations, which disks are to be found, and which are left open."""
    h, w = o.shape
    area = torch.pi * o.radius**2
    smooth = torch.nn.functional.avg_pool2d(counted.background[:, None], 5, 1, 2)[:, 0]
    at = torch.nan_to_num(centres, nan=0.0).round().long()
    row, column = at[..., 0].clamp(0, h - 1), at[..., 1].clamp(0, w - 1)
    batch = torch.arange(len(centres), device=centres.device)[:, None]
    under = smooth[batch, row, column].clamp_min(0) * area
    sigma = torch.sqrt(counts + 2 * under + counted.noise[:, None] ** 2 * area + (0.02 * under) ** 2).clamp_min(1e-9)
    contrast = counts / sigma
    low = 0.6 * o.radius
    inside = ((centres > low) & (centres < torch.tensor([h, w], device=centres.device) - 1 - low)).all(2)
    exists = torch.isfinite(centres).all(2)
    whole = inside & exists
    visible = whole & (contrast > VISIBLE) & (v > 0)
    ignore = exists & ~visible & ((contrast > INVISIBLE) | ~inside)
    return contrast, visible, ignore
