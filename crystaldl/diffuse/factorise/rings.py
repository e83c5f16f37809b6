"""Background as a function of |Q|: a few hat functions, and cubic splines where the misfit shows powder rings.

A ring may be as narrow as a pixel. What the background cannot follow is no noise: it goes into D, and no covariance knows of it.
So the knots of the splines lie as close as the mean misfit in narrow rings asks for, and no closer, since every function costs.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.interpolate import BSpline
from torch import Tensor

if TYPE_CHECKING:
    from .unknowns import Arrays

RING = 1.5                      # pixels: width of the rings in which a rough background is looked for
RING_CLIP, RING_SIGMA, RING_HEIGHT = 5.0, 5.0, 4e-3     # of a residual; of the mean in a ring, in σ and in the mean intensity
RING_TRACE = 8e-4               # of the mean intensity, the same beside a ring
RING_MARGIN = 3                 # rings on both sides of a rough one
RING_MOST = 64                  # spline functions
FINE = 0.25                     # pixels: width of the rings to which the splines are fitted
WIDEST, NARROWEST = 6.0, 0.35   # pixels between knots
SPLIT = 2.0                     # mean squared misfit in σ from which an interval between knots is halved
TRUE_TO = 5e-4                  # of the mean intensity: no ring is known better than that
FEWEST = 4                      # pixels of a narrow ring


@dataclass(frozen=True, eq=False)
class Radial:
    """Functions of |Q|; all places are fractions of the largest |Q|.

    Attributes
    ----------
    smooth : (k,) ndarray, ascending knots of hat functions
    zones : tuple of ndarray, ascending knots of cubic B-splines that vanish at both ends, for each zone
    uneven : int, hat functions times each of x, y, x² − y² and 2 x y, for a background that is not the same all round
    """

    smooth: np.ndarray
    zones: tuple[np.ndarray, ...] = ()
    uneven: int = 0

    @property
    def key(self) -> tuple[bytes, ...]:
        """Equal for equal functions."""
        return bytes(self.uneven), self.smooth.tobytes(), *(zone.tobytes() for zone in self.zones)

    def __len__(self) -> int:
        return self.plain + sum(len(zone) - 4 for zone in self.zones)

    @property
    def plain(self) -> int:
        """How many functions there are before the splines."""
        return len(self.smooth) + 4 * self.uneven

    def kind(self, device) -> Tensor:
        """0 for each smooth function, 1 for each spline, 2 for each that is not the same all round."""
        parts = (0, len(self.smooth)), (2, 4 * self.uneven), (1, len(self) - self.plain)
        return torch.cat([torch.full((n,), kind, dtype=torch.long, device=device) for kind, n in parts])

    def functions(self, radius: Tensor, at: Tensor | None = None) -> Tensor:
        """Their values, (len(self), *radius.shape); uneven ones take the coordinates ``at`` (2, *radius.shape), 1 at the edge."""
        parts = [hats(radius, self.smooth)]
        if self.uneven and at is not None:
            x, y = at
            turned = torch.stack([x, y, x * x - y * y, 2.0 * x * y])
            parts.append((turned[:, None] * hats(radius, even_knots(self.uneven))).flatten(0, 1))
        if self.zones:
            place = radius.cpu().numpy()
            parts += [torch.as_tensor(splines(place, zone), device=radius.device) for zone in self.zones]
        return torch.cat(parts)


def even_knots(count: int) -> np.ndarray:
    """Knots of ``count`` background functions, fractions of the largest |Q|."""
    return np.linspace(0.0, 1.0, count) if count > 1 else np.zeros(count)


def hats(radius: Tensor, knots: np.ndarray) -> Tensor:
    """Hat functions between ascending knots that add up to 1, (len(knots), *radius.shape); one function is a constant."""
    if len(knots) == 0:
        return radius.new_zeros((0, *radius.shape))
    if len(knots) == 1:
        return torch.ones_like(radius)[None]
    place = torch.as_tensor(knots, device=radius.device)
    right = torch.searchsorted(place, radius, right=True).clamp(1, len(knots) - 1)
    share = (radius - place[right - 1]) / (place[right] - place[right - 1])
    out = radius.new_zeros((len(knots), *radius.shape))
    out.scatter_(0, (right - 1)[None], (1.0 - share).clamp(0.0, 1.0)[None])
    return out.scatter_(0, right[None], share.clamp(0.0, 1.0)[None])


def splines(place: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Cubic B-splines on ascending knots, zero with two derivatives at both ends, (len(knots) − 4, *place.shape)."""
    out = np.zeros((len(knots) - 4, place.size))
    inside = np.flatnonzero((place >= knots[0]) & (place < knots[-1]))
    if len(inside):
        own = BSpline.design_matrix(place.ravel()[inside], _with_ends(knots), 3).tocoo()
        function = own.col - 3          # the first and the last three do not vanish at the ends
        ours = (function >= 0) & (function < len(out))
        out[function[ours], inside[own.row[ours]]] = own.data[ours]
    return out.reshape(len(out), *place.shape)


def _with_ends(knots: np.ndarray) -> np.ndarray:
    """Knots with three more at both ends."""
    gap = knots[-1] - knots[0]
    return np.concatenate([knots[0] - gap * np.arange(3, 0, -1), knots, knots[-1] + gap * np.arange(1, 4)])


def rough_zones(arrays: Arrays, residual: Tensor, weight: Tensor, scale: float, radial: Radial) -> list[tuple[float, float]]:
    """Where the mean residual of narrow rings says that the background is rougher than its functions allow, in pixels.

    The zones that it has are kept; beside them and within a weaker sign is enough.

    Parameters
    ----------
    residual : (*shape) tensor, measured − model
    weight : (*shape) tensor, 1 / variance, zero where not measured
    scale : float, mean intensity
    radial : Radial, the functions of now
    """
    bins = max(int(_reach(arrays) / RING), 8)
    ring = (arrays.radius * (bins - 1e-6)).long().flatten()
    sigma = torch.where(weight > 0, weight, math.inf).rsqrt()
    # a ring far above the noise must not be cut down to it, nor a Bragg peak make a ring
    bound = (RING_CLIP * sigma).clamp(min=RING_CLIP * RING_HEIGHT * scale)
    kept = torch.where(weight > 0, residual.clamp(-bound, bound), torch.zeros_like(residual))
    total, amount, number = (torch.zeros(bins, dtype=torch.float64, device=ring.device).index_add_(0, ring, v.flatten()) for v in
                             (kept / sigma.clamp(min=1e-300), weight.sqrt(), (weight > 0).double()))
    old = np.zeros(bins, dtype=bool)
    for zone in radial.zones:
        # knots halved at an end: a ring goes on there that D may still hide
        low, high = (RING_MARGIN * (step < 0.9 * np.diff(zone).max()) for step in np.diff(zone)[[0, -1]])
        old[max(int(zone[0] * bins + 0.5) - low, 0) : int(zone[-1] * bins + 0.5) + high] = True
    near = torch.as_tensor(_widened(old), device=ring.device)
    height = torch.where(near, RING_TRACE, RING_HEIGHT) * scale
    strong = (total.abs() > RING_SIGMA * number.sqrt()) & (total.abs() > height * amount)
    rough = old | _widened(strong.cpu().numpy())
    edge = np.flatnonzero(np.diff(np.concatenate([[False], rough, [False]]).astype(int)))
    width = _reach(arrays) / bins
    return [(float(a * width), float(b * width)) for a, b in edge.reshape(-1, 2)]


def ring_share(arrays: Arrays, residual: Tensor, variance: Tensor, valid: Tensor) -> float:
    """The share of the squared residual, in σ, that the means of narrow rings make up."""
    bins = max(int(_reach(arrays) / RING), 8)
    ring = (arrays.radius[valid] * (bins - 1e-6)).long()
    z = (residual[valid] / variance[valid].sqrt()).clamp(-RING_CLIP, RING_CLIP)
    number, total = (torch.zeros(bins, dtype=torch.float64, device=ring.device).index_add_(0, ring, v) for v in
                     (torch.ones_like(z), z))
    return float((total.square() / number.clamp(min=1.0)).sum() / z.square().sum().clamp(min=1e-300))


def _widened(rings: np.ndarray) -> np.ndarray:
    return np.convolve(rings, np.ones(2 * RING_MARGIN + 1), "same") > 0


def ring_functions(arrays: Arrays, residual: Tensor, valid: Tensor, zones: list[tuple[float, float]], scale: float,
                   plain: Radial) -> tuple[Radial, np.ndarray]:
    """Splines in the zones that follow the mean residual of narrow rings, and their coefficients to begin with.

    Parameters
    ----------
    residual : (*shape) tensor, measured − model without what is sought here
    valid : (*shape) bool tensor
    zones : list of (first, last) pixel
    scale : float, mean intensity
    plain : Radial, the functions beside the splines
    """
    reach = _reach(arrays)
    place, value = arrays.radius[valid].cpu().numpy() * reach, residual[valid].cpu().numpy()
    own = [(place > first) & (place < last) for first, last in zones]
    tolerance = 1.0
    while True:                     # where there would be too many, all follow less closely
        curves = [_fitted(place[inside], value[inside], zone, tolerance, TRUE_TO * scale)
                  for inside, zone in zip(own, zones, strict=True)]
        curves = [curve for curve in curves if curve is not None]
        if sum(len(curve.c) - 6 for curve in curves) <= RING_MOST or tolerance > 1e6:
            break
        tolerance *= 3.0
    found = tuple(curve.t[3:-3] / reach for curve in curves)
    return replace(plain, zones=found), np.concatenate([curve.c[3:-3] for curve in curves] or [np.zeros(0)])


def _reach(arrays: Arrays) -> float:
    """Pixels from the middle to a corner."""
    return 0.5 * math.sqrt(sum(n * n for n in arrays.radius.shape))


def _fitted(place: np.ndarray, value: np.ndarray, zone: tuple[float, float], tolerance: float,
            true_to: float) -> BSpline | None:
    """A spline through the medians of narrow rings, its knots halved where it does not follow them."""
    knots, curve = np.linspace(*zone, max(int(math.ceil((zone[1] - zone[0]) / WIDEST)), 4) + 1), None
    while True:
        rest = value if curve is None else value - curve(place)
        for _ in range(2):              # the spread within a ring is that about the curve, not its slope
            centre, level, error = _profile(place, rest, true_to)
            if len(centre) < 5:
                return None
            target = level if curve is None else level + curve(centre)
            columns = splines(centre, knots) / error
            heights = np.linalg.lstsq(columns.T, target / error, rcond=1e-8)[0]
            none = np.zeros(3)
            curve = BSpline(_with_ends(knots), np.concatenate([none, heights, none]), 3)
            rest = value - curve(place)
        centre, level, error = _profile(place, rest, true_to)
        own = np.searchsorted(knots, centre) - 1
        number, total = (np.bincount(own, v, len(knots) - 1) for v in (np.ones(len(own)), np.square(level / error)))
        split = (total > SPLIT * tolerance * number) & (np.diff(knots) > 2.0 * NARROWEST) & (number > 1)
        if not split.any() or len(knots) - 4 > RING_MOST:       # too many already: what comes of that is of no interest
            return curve
        knots = np.sort(np.concatenate([knots, 0.5 * (knots[:-1] + knots[1:])[split]]))


def _profile(place: np.ndarray, value: np.ndarray, true_to: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean place, median and its standard error in rings of ``FINE`` pixels that hold enough of them."""
    ring = (place / FINE).astype(int)
    order = np.lexsort((value, ring))
    ring, place, value = ring[order], place[order], value[order]
    start = np.flatnonzero(np.diff(ring, prepend=-1))
    number = np.diff(np.append(start, len(ring)))
    centre = np.add.reduceat(place, start) / number if len(start) else np.zeros(0)
    keep = number >= FEWEST
    start, number = start[keep], number[keep]
    level = 0.5 * (value[start + (number - 1) // 2] + value[start + number // 2])
    spread = (value[start + (3 * number) // 4] - value[start + number // 4]) / 1.349
    return centre[keep], level, np.hypot(1.2533 * spread / np.sqrt(number), true_to)
