"""Radius and edge of the probe from the disks of the patterns themselves, where no pattern of the vacuum tells them.

The middle of the central disk is uneven, so that its extent at some level is not the aperture's. But all disks of a scan share
one outline, whatever fills them: the radius and edge are those under which the disks, each with a filling of its own (a
polynomial of degree 2, `crystaldl.stem.peaks.varpro`), are most probable.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import ndtr

from .correlate import Correlator
from .options import DiskOptions
from .peaks.between import SHARP
from .peaks.refine import DiskFitter, FitSettings, neighbours
from .peaks.varpro import REACH, Shape, minimise
from .probe import MIN_RADIUS, Probe

PATTERNS = 12  # that are looked at
DISKS, LEAST = 80, 8  # that are fitted: the most significant ones; fewer than that tell nothing
SIGNIFICANT = 12.0  # intensity over its standard uncertainty
ROUNDS = 6  # of search and fit: a start that is far off finds other disks
SETTLED, NEARLY = 0.03, 0.08  # relative change of the radius that ends them, and that is good enough after the last
WIDEST = 0.4  # of the radius: no edge is taken to be softer
NARROWEST = 0.3  # px: the pixels' own
GRID = np.array([0.005, 0.05])  # of the logarithms of radius and edge


def outline(patterns: np.ndarray, start: Probe) -> Probe | None:
    """An evenly filled probe with the radius and edge of the disks.

    Parameters
    ----------
    patterns : (n, H, W)
        NaN where not measured.
    start : Probe
        Roughly the probe: its radius may be off by a third, rather too small than too large.

    Returns
    -------
    Probe or None
        With the middle of ``start``; None where too few disks are found, or no radius describes them.
    """
    patterns = _spread(patterns)
    stack = torch.as_tensor(np.ascontiguousarray(patterns, dtype=np.float32))
    stack = torch.where(torch.isfinite(stack), stack, torch.nan)
    probe, count = start, 0
    with torch.inference_mode():
        for _ in range(ROUNDS):
            disks = _Disks(stack, probe)
            if disks.count < LEAST or 4 * probe.radius > min(stack.shape[1:]):
                return None
            radius, edge = disks.best()
            change, count = abs(np.log(radius / probe.radius)), disks.count
            source = f"{start.source}, its radius and edge from {count} disks"
            probe = Probe.synthetic(radius, start.shape, edge=edge, centre=start.centre, source=source)
            if change < SETTLED:
                break
    return probe if change < NEARLY else None


def _spread(patterns: np.ndarray) -> np.ndarray:
    """Some patterns from all over the stack."""
    return patterns[np.unique(np.linspace(0, len(patterns) - 1, PATTERNS).round().astype(int))]


class _Disks:
    """Windows around the disks that a probe finds, and how probable they are under another radius and edge."""

    def __init__(self, stack: torch.Tensor, probe: Probe):
        self.radius, self.edge = probe.radius, probe.edge
        found = Correlator(probe, tuple(stack.shape[1:]), DiskOptions(min_relative_intensity=0.002), stack.device)(
            stack
        )
        settings = FitSettings(fringes=False)
        fit = DiskFitter(probe, settings, stack.device).fit(stack, found.pattern, found.positions)
        good = torch.nonzero(fit.ok & (fit.significance > SIGNIFICANT))[:, 0]
        good = good[fit.significance[good].argsort(descending=True)][:DISKS]
        self.count = len(good)
        if self.count == 0:
            return
        reach = int(np.ceil(1.5 * probe.radius + 3 * probe.edge + 2))
        window = np.stack(np.mgrid[-reach : reach + 1, -reach : reach + 1], -1).reshape(-1, 2)
        self.pixels = window[np.hypot(*window.T) <= reach]
        self.half = reach
        pattern, positions = found.pattern[good], fit.positions[good]
        near = neighbours(found.pattern, fit.positions, 2.5 * reach, len(stack))[good]
        middle = positions.round()
        padded = torch.nn.functional.pad(stack, (reach,) * 4, value=float("nan"))
        at = middle.long()[:, None] + torch.as_tensor(self.pixels) + reach
        at = torch.minimum(at.clamp_min(0), torch.tensor(padded.shape[1:]) - 1)
        values = padded[pattern[:, None], at[..., 0], at[..., 1]]
        offset = torch.as_tensor(self.pixels, dtype=torch.float32) + (middle - positions)[:, None]
        own = (offset**2).sum(2)
        theirs = ((offset[:, :, None] + (positions[:, None] - near)[:, None]) ** 2).sum(3)
        use = torch.isfinite(values) & ~(theirs.nan_to_num(float("inf")).amin(2) < own)
        self.use = use.float()
        values = torch.where(use, values, 0.0)
        self.data = values / (values.abs().sum(1) / self.use.sum(1).clamp_min(1)).clamp_min(1e-20)[:, None]
        self.start = (positions - middle).clamp(-REACH, REACH)
        self.settings = settings

    def cost(self, radius: float, edge: float) -> float:
        """-2 × the logarithm of the likelihood of all disks, each with a scale of the noise of its own."""
        fine = 2 if edge < SHARP else 1
        reach = fine * (self.half + 8)
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1] / fine
        image = ndtr((radius - np.hypot(y, x)) / edge)
        shape = Shape(image, self.pixels, self.radius, 2, self.data.device, fine=fine)
        found = minimise(shape, self.data, self.use, self.start, self.settings)
        return float((self.use.sum(1) * found.chi2.float().clamp_min(1e-9).log()).sum())

    def best(self) -> tuple[float, float]:
        """The radius and edge of least cost, on a grid: what threads round differently does not change them."""
        least = np.log([max(MIN_RADIUS * 1.02, 0.65 * self.radius), NARROWEST]) / GRID
        most = np.log([1.5 * self.radius, max(WIDEST * self.radius, 1.1 * NARROWEST)]) / GRID
        known: dict[tuple, float] = {}

        def cost(at) -> float:
            key = tuple(int(n) for n in at)
            if key not in known:
                inside = (np.array(key) >= np.ceil(least)).all() and (np.array(key) <= most).all()
                known[key] = self.cost(*np.exp(GRID * key)) if inside else np.inf
            return known[key]

        centre = np.log([self.radius, self.edge]) / GRID
        first = np.linspace(np.ceil(least[0]), np.floor(most[0]), 7).round()
        at = min(([r, np.clip(centre[1], np.ceil(least[1]), most[1]).round()] for r in first), key=cost)
        for step in (8, 4, 2, 1):
            for _ in range(6):
                around = [np.array(at) + d for d in ((0, 0), (step, 0), (-step, 0), (0, step), (0, -step))]
                new = min(around, key=cost)
                if new is around[0]:
                    break
                at = new
        radius, edge = np.exp(GRID * np.array(at))
        return float(radius), float(edge)
