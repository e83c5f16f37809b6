"""What `FactorNet` learns from: disks of simulated crystals as a pattern would show them, without drawing the patterns.

Intensities and the moments of the fillings are those of the bank's Bloch waves. What optics and detector add is drawn for each:
distortion, counting noise, a background that falls off with |g|, saturation, edges, disks that were overlooked. A batch is a
function of (seed, step, rank).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..reflections import Reflections, zernike
from ..simulate.bank import EXTENT, GRID, DiskBank
from ..simulate.corruption import log_uniform, uniform
from ..simulate.patterns import SceneOptions, choose_aperture, cut_apertures

MOST_DISKS = 80
THICKEST = 45.0  # nm: thicker crystals tell little
FEWEST = 8  # disks of a pattern to learn from
FIT_ERROR, UNEVEN = (-2.3, -1.0), (-2.0, -1.0)  # decimal logarithms: of errors over the intensity and over the background
DISTORTION, SATURATED = 0.02, 0.1  # standard deviation of the components of the affine map; share of the patterns
OVERLOOKED, LARGEST = 0.03, 30.0  # share of the disks; of a moment
FAR = 1e4  # radii: where there is no beam
AT_ONCE = 64


@dataclass
class CleanDisks:
    """Disks of patterns without noise.

    Attributes
    ----------
    g : (B, M, 2), disk radii, the direct beam first; `FAR` where there is none
    intensity : (B, M), share of the electrons
    moments : (B, M, 8) complex, of the filling over its mean
    v : (B, M), |V_g| relative to the strongest reflection, 0 where extinct
    thickness : (B,), nm
    """

    g: Tensor
    intensity: Tensor
    moments: Tensor
    v: Tensor
    thickness: Tensor


@dataclass
class Seen:
    """Disks as a pattern shows them, with the truth (B, N) and the thickness (B,) in nm."""

    reflections: Reflections
    v: Tensor
    thickness: Tensor

    def part(self, rows: Tensor) -> Seen:
        """Some of the patterns, with as many columns as they need."""
        r = self.reflections
        n = int(r.valid[rows].sum(1).amax())
        parts = (a[rows, :n] for a in (r.g, r.intensity, r.significance, r.moments, r.valid))
        return Seen(Reflections(*parts), self.v[rows, :n], self.thickness[rows])


def clean_disks(bank: DiskBank, count: int, g: torch.Generator, held_out: bool = False) -> CleanDisks:
    """Disks of ``count`` patterns of crystals of the bank up to `THICKEST`, each with an aperture of its own."""
    pairs = (bank.thickness <= THICKEST).nonzero()
    entry, at = pairs[torch.randint(len(pairs), (count,), generator=g)].T
    axis = torch.linspace(-EXTENT, EXTENT, GRID)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = (torch.hypot(y, x) <= 1)[..., None]
    table = torch.cat([inside.to(torch.complex64), zernike(y, x) * inside], 2).reshape(GRID * GRID, -1) / inside.sum()
    table = torch.view_as_real(table).flatten(1)
    rows: list[CleanDisks] = []
    for e, a in zip(entry.split(AT_ONCE), at.split(AT_ONCE), strict=True):
        share, offset = choose_aperture(bank, e, g, SceneOptions(held_out=held_out))
        sums = cut_apertures(bank, e, a, share, offset).flatten(2) @ table
        sums = torch.view_as_complex(sums.unflatten(2, (-1, 2)).contiguous())
        mean = sums[..., 0].real.clamp_min(0)
        vectors = torch.nan_to_num(bank.g[e] / share[:, None, None], nan=FAR)
        rows.append(CleanDisks(vectors, mean, sums[..., 1:] / mean.clamp_min(1e-9)[..., None], bank.v[e], bank.thickness[e, a]))
    return CleanDisks(*(torch.cat([getattr(r, name) for r in rows]) for name in CleanDisks.__dataclass_fields__))


def seen(clean: CleanDisks, g: torch.Generator) -> Seen:
    """Disks as found and measured, strongest first after the direct beam; patterns with fewer than `FEWEST` are left out."""
    b, device = len(clean.g), clean.g.device
    vectors = clean.g @ (torch.eye(2, device=device) + DISTORTION * torch.randn(b, 2, 2, generator=g, device=device))
    q = vectors.norm(dim=2)
    dose = 10 ** uniform(g, 3.3, 7, b, 1)
    under = dose * 10 ** uniform(g, -5.5, -2.7, b, 1) / (1 + (q / 5) ** 2) ** uniform(g, 0.3, 1.2, b, 1)
    counts = dose * clean.intensity
    limit = torch.where(uniform(g, 0, 1, b, 1) < SATURATED, log_uniform(g, 0.05, 0.8, b, 1), 1.0) * counts.amax(1, keepdim=True)
    cut = limit / counts.clamp_min(limit)
    counts = cut * counts
    variance = counts + 2 * under
    noise = torch.sqrt(variance + (10 ** uniform(g, *UNEVEN, b, 1) * under) ** 2).clamp_min(1e-6)
    error = noise + 10 ** uniform(g, *FIT_ERROR, b, 1) * counts
    measured = counts + error * torch.randn(counts.shape, generator=g, device=device)
    half = uniform(g, 9, 26, b, 1)  # radii, of the detector
    middle = 0.15 * half * uniform(g, -1, 1, b, 2)
    found = (measured > uniform(g, 3.5, 6, b, 1) * noise) & ((vectors - middle[:, None]).abs().amax(2) < half - 0.6)
    found &= uniform(g, 0, 1, *q.shape) > OVERLOOKED
    found[:, 0] = True
    relative = (noise.clamp_min(1) / counts.clamp_min(1e-3))[..., None]
    scatter = torch.view_as_complex(torch.randn(*clean.moments.shape, 2, generator=g, device=device)) * 0.5**0.5
    moments = cut[..., None] * clean.moments + relative * scatter
    moments = moments * (LARGEST / moments.abs().clamp_min(LARGEST))
    order = torch.where(found, measured, -torch.inf)
    order[:, 0] = torch.inf
    order = order.argsort(1, descending=True)[:, :MOST_DISKS]
    valid = found.gather(1, order)
    keep = valid.sum(1) >= FEWEST
    order, valid, mirrored = order[keep], valid[keep], uniform(g, 0, 1, b)[keep] < 0.5
    vectors = vectors[keep].gather(1, order[..., None].expand(-1, -1, 2))
    vectors[..., 1] = torch.where(mirrored[:, None], -vectors[..., 1], vectors[..., 1])
    moments = moments[keep].gather(1, order[..., None].expand(-1, -1, moments.shape[2]))
    moments = torch.where(mirrored[:, None, None], moments.conj(), moments)
    intensity, significance = (a[keep].gather(1, order).clamp_min(1e-3) for a in (measured, measured / noise))
    r = Reflections(vectors, intensity, significance, moments, valid)
    return Seen(r, clean.v[keep].gather(1, order), clean.thickness[keep])


def parts_of_like_size(count: Tensor, parts: int, g: torch.Generator) -> list[Tensor]:
    """Rows in ``parts`` shares of about as many disks each, patterns of like numbers of disks together, in random order."""
    order = torch.argsort(count + 0.5 * torch.rand(count.shape, generator=g))
    total = count[order].cumsum(0)
    number = ((total - 1) * parts // total[-1]).clamp_max(parts - 1)
    shares = [order[number == i] for i in range(parts)]
    return [shares[i] for i in torch.randperm(parts, generator=g).tolist()]


def generator(*numbers: int) -> torch.Generator:
    """A generator of the CPU seeded by a tuple of integers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))
