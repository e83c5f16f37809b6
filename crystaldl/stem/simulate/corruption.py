"""What stands between the electrons and the file: backgrounds, counts, the detector. Batched, seeded torch.

Every function takes patterns (B, H, W) normalised to one incident electron and a torch.Generator, and draws its
parameters for each pattern of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Corruption:
    """Ranges from which the conditions of each pattern are drawn; pairs are (low, high).

    Attributes
    ----------
    log_dose : decimal logarithm of the electrons of a pattern
    diffuse : share of the electrons in smooth backgrounds around the beam (thermal diffuse, amorphous, support)
    plasmon : share of the electrons spread by inelastic scattering around every disk
    texture : contrast of the background's unevenness
    bands : number of Kikuchi bands at most
    read_noise : standard deviation, electrons (half of the patterns have none)
    bad_pixels : share of hot and dead pixels at most
    saturation : share of patterns that saturate
    stop : share of patterns with pixels not measured (NaN)
    """

    log_dose: tuple[float, float] = (3.3, 7.0)
    diffuse: tuple[float, float] = (0.01, 0.6)
    plasmon: tuple[float, float] = (0.0, 0.5)
    texture: float = 0.4
    bands: int = 4
    read_noise: tuple[float, float] = (0.05, 2.0)
    bad_pixels: float = 3e-4
    saturation: float = 0.1
    stop: float = 0.05

    def __post_init__(self) -> None:
        for name in ("log_dose", "diffuse", "plasmon", "read_noise"):
            low, high = getattr(self, name)
            least = 1e-12 if name == "read_noise" else -math.inf      # drawn on a logarithmic scale
            if not least <= low <= high:
                raise ValueError(f"{name} is ({low!r}, {high!r}); expected a lower and a higher number"
                                 + (" above 0." if name == "read_noise" else "."))


@dataclass
class Counted:
    """Counts (B, H, W) with what they were expected to be made of.

    ``dose`` (B,): electrons; ``background`` (B, H, W): expected background counts; ``noise`` (B,): read-out noise.
    """

    patterns: Tensor
    background: Tensor
    dose: Tensor
    noise: Tensor


def uniform(g: torch.Generator, low: float, high: float, *size: int) -> Tensor:
    """Uniform numbers on the generator's device."""
    return low + (high - low) * torch.rand(*size, generator=g, device=g.device)


def log_uniform(g: torch.Generator, low: float, high: float, *size: int) -> Tensor:
    """Numbers uniform in their logarithm."""
    ends = torch.tensor([low, high]).log()
    return uniform(g, float(ends[0]), float(ends[1]), *size).exp()


def radii(centre: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets y, x and distance from the centres (B, 2), each broadcastable to (B, H, W)."""
    y = torch.arange(shape[0], device=centre.device)[None, :, None] - centre[:, 0, None, None]
    x = torch.arange(shape[1], device=centre.device)[None, None, :] - centre[:, 1, None, None]
    return y, x, torch.sqrt(y**2 + x**2)


def smooth_field(g: torch.Generator, b: int, shape: tuple[int, int], cells: int = 6) -> Tensor:
    """Smooth random fields (B, H, W) of zero mean and unit standard deviation."""
    low = torch.randn(b, 1, cells, cells, generator=g, device=g.device)
    field = torch.nn.functional.interpolate(low, size=shape, mode="bicubic", align_corners=False)[:, 0]
    return (field - field.mean((1, 2), keepdim=True)) / field.std((1, 2), keepdim=True)


def plasmon_blur(clean: Tensor, share: Tensor, width: Tensor) -> Tensor:
    """Spread a share (B,) of the electrons over a Lorentzian of half width (B,) px around where they were."""
    h, w = clean.shape[1:]
    fy = torch.fft.fftfreq(h, device=clean.device)[:, None]
    fx = torch.fft.rfftfreq(w, device=clean.device)
    f = torch.sqrt(fy**2 + fx**2)
    transfer = torch.exp(-2 * torch.pi * f * width[:, None, None])  # of a 2-D Lorentzian to the power 3/2
    blurred = torch.fft.irfft2(torch.fft.rfft2(clean) * transfer, s=(h, w)).clamp_min(0)
    return share[:, None, None] * blurred


def diffuse_background(g: torch.Generator, c: Corruption, centre: Tensor, shape: tuple[int, int], radius: float) -> Tensor:
    """Backgrounds around the beam (B, H, W), each summing to 1: tails, amorphous rings, bands, unevenness."""
    b = len(centre)
    y, x, r = radii(centre, shape)
    r = r / radius

    def pick(low, high):
        return log_uniform(g, low, high, b)[:, None, None]

    tail = 1 / (1 + (r / pick(1.5, 12)) ** 2) ** uniform(g, 0.8, 2.0, b)[:, None, None]
    hump = torch.exp(-0.5 * (r / pick(3, 20)) ** 2)
    share = uniform(g, 0, 1, b)[:, None, None]
    out = share * _normal(tail) + (1 - share) * _normal(hump)
    ring_at, ring_width = pick(4, 16), pick(0.5, 3)
    ring = torch.exp(-0.5 * ((r - ring_at) / ring_width) ** 2)
    some = (torch.rand(b, generator=g, device=g.device) < 0.3).float()[:, None, None]
    out = out + some * uniform(g, 0, 0.6, b)[:, None, None] * _normal(ring)
    factor = 1 + uniform(g, 0, c.texture, b)[:, None, None] * smooth_field(g, b, shape, 8)
    for _ in range(c.bands):
        angle = uniform(g, 0, torch.pi, b)[:, None, None]
        across = (y * torch.sin(angle) + x * torch.cos(angle)) / radius - uniform(g, -8, 8, b)[:, None, None]
        half, soft = uniform(g, 0.8, 5, b)[:, None, None], uniform(g, 0.1, 0.6, b)[:, None, None]
        band = torch.sigmoid((half - across.abs()) / soft)
        factor = factor + (torch.randn(b, generator=g, device=g.device) * 0.15)[:, None, None] * band
    return _normal(out * factor.clamp_min(0.05))


def _normal(image: Tensor) -> Tensor:
    """Sum 1 a pattern (0 where there is nothing)."""
    return image / image.sum((1, 2), keepdim=True).clamp_min(1e-20)


def count(g: torch.Generator, c: Corruption, clean: Tensor, centre: Tensor, radius: float) -> Counted:
    """Clean disks (B, H, W) and beam centres (B, 2) to counted patterns."""
    b, h, w = clean.shape
    spread = uniform(g, *c.plasmon, b) * (torch.rand(b, generator=g, device=g.device) < 0.7)
    width = radius * log_uniform(g, 0.2, 3.0, b)
    share = log_uniform(g, *c.diffuse, b)
    background = plasmon_blur(clean, spread, width)
    background = background + share[:, None, None] * diffuse_background(g, c, centre, (h, w), radius)
    dose = 10 ** uniform(g, *c.log_dose, b)
    signal = clean * (1 - spread - share).clamp_min(0.1)[:, None, None]
    noisy = torch.poisson((signal + background).clamp_min(0) * dose[:, None, None], generator=g)
    has_noise = torch.rand(b, generator=g, device=g.device) < 0.5
    noise = log_uniform(g, *c.read_noise, b) * has_noise
    noisy = noisy + noise[:, None, None] * torch.randn(b, h, w, generator=g, device=g.device)
    return Counted(noisy, background * dose[:, None, None], dose, noise)


def detect(g: torch.Generator, c: Corruption, counted: Counted) -> Tensor:
    """Hot and dead pixels, saturation, unmeasured areas and an unknown gain, on counts."""
    p = counted.patterns
    b, h, w = p.shape
    bad = torch.rand(b, h, w, generator=g, device=g.device) < c.bad_pixels * torch.rand(b, 1, 1, generator=g, device=g.device)
    level = p.amax((1, 2), keepdim=True) * torch.rand(b, h, w, generator=g, device=g.device)
    p = torch.where(bad, torch.where(level > 0.3 * p.amax((1, 2), keepdim=True), level, torch.zeros_like(p)), p)
    full = torch.rand(b, generator=g, device=g.device) < c.saturation
    limit = p.amax((1, 2)) * log_uniform(g, 0.05, 0.8, b)
    p = torch.where(full[:, None, None], torch.minimum(p, limit[:, None, None]), p)
    if bool(torch.rand(1, generator=g, device=g.device) < c.stop * b):
        row = int(torch.randint(h, (1,), generator=g, device=g.device))
        p[0, row : row + 2] = torch.nan  # a gap between detector tiles
    scaled = torch.rand(b, generator=g, device=g.device) < 0.5
    gain = log_uniform(g, 1e-3, 1e3, b)
    return p * torch.where(scaled, gain, torch.ones_like(gain))[:, None, None]
