"""Measured, labelled patterns for training and evaluation, and their augmentation on the common axis.

What a measured pattern teaches survives changes that keep its symmetry: scaling the cell (a shift of ln 1/d), other
structure factors (a smooth random modulation of the intensities; absent lines stay absent), more noise, broader lines,
a shorter range.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..prepare import AXIS_POINTS, AXIS_START, AXIS_STEP, common_axis, to_common_axis

#: reference of the measured development set
RRUFF_FILE = ("powder", "rruff_measured.npz")


@dataclass
class MeasuredSet:
    """Patterns on the common axis with labels.

    Attributes
    ----------
    y, mask : (n, AXIS_POINTS) float32 tensors, strongest point 1
    ratio : (n,) Kα2/Kα1 of the radiation
    space_group : (n,) long, 1…230
    group : (n,) long; look-alikes share a number: always split by it
    """

    y: Tensor
    mask: Tensor
    ratio: Tensor
    space_group: Tensor
    group: Tensor

    def __len__(self) -> int:
        return len(self.space_group)

    def subset(self, index) -> MeasuredSet:
        return MeasuredSet(
            self.y[index], self.mask[index], self.ratio[index], self.space_group[index], self.group[index]
        )

    @classmethod
    def rruff(cls, shared) -> MeasuredSet:
        """The measured RRUFF patterns (Cu Kα doublet) under a shared data folder."""
        path = Path(shared).joinpath(*RRUFF_FILE)
        if not path.is_file():
            raise FileNotFoundError(f"shared is {str(shared)!r}, which has no {'/'.join(RRUFF_FILE)}.")
        with np.load(path, allow_pickle=False) as data:
            pairs = [to_common_axis(data["two_theta"], row, 1.540593) for row in data["intensity"]]
            y = torch.tensor(np.array([p[0] for p in pairs]))
            y = y / y.amax(1, keepdim=True).clamp_min(1e-9)
            return cls(
                y,
                torch.tensor(np.array([p[1] for p in pairs])),
                torch.full((len(y),), 0.5),
                torch.tensor(data["space_group"].astype(np.int64)),
                torch.tensor(data["group"].astype(np.int64)),
            )


def group_folds(group, space_group, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Fold number of each pattern, (n,): look-alike groups are never divided; folds are balanced in crystal systems."""
    from ...physics.symmetry import SYSTEM_OF_GROUP

    group, system = np.asarray(group), SYSTEM_OF_GROUP[np.asarray(space_group) - 1]
    rng = np.random.default_rng(seed)
    names = np.unique(group)
    counts = np.array([np.bincount(system[group == g], minlength=7) for g in names])
    fold_counts = np.zeros((folds, 7))
    out = np.empty(len(group), dtype=int)
    # largest groups first, each to the fold that has least of its systems
    for i in sorted(range(len(names)), key=lambda i: (-counts[i].sum(), rng.random())):
        load = (fold_counts * (counts[i] > 0)).sum(1) + 0.05 * fold_counts.sum(1)
        best = int(np.argmin(load + 1e-3 * rng.random(folds)))
        fold_counts[best] += counts[i]
        out[group == names[i]] = best
    return out


def _randn(shape, g, device):
    return torch.randn(shape, generator=g, device=device)


def _smooth_field(b: int, spacing: float, g, device) -> Tensor:
    """A smooth random function on the axis, unit variance, correlation length ``spacing`` degrees, (b, AXIS_POINTS)."""
    knots = max(4, int(AXIS_POINTS * AXIS_STEP / spacing) + 2)
    return F.interpolate(_randn((b, 1, knots), g, device), size=AXIS_POINTS, mode="linear", align_corners=True)[:, 0]


def rescale(y: Tensor, mask: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Patterns of the same crystal with its cell scaled by ``exp(-shift)``: ln(1/d) of every line grows by ``shift`` (B,)."""
    x = torch.as_tensor(common_axis(), dtype=torch.float32, device=y.device)
    s = torch.sin(torch.deg2rad(x / 2))[None] * torch.exp(-shift)[:, None]
    position = (torch.rad2deg(2 * torch.asin(s.clamp(0, 1))) - AXIS_START) / AXIS_STEP
    left = position.floor().clamp(0, AXIS_POINTS - 2)
    weight = (position - left).clamp(0, 1)
    left = left.long()
    valid = ((position >= 0) & (position <= AXIS_POINTS - 1) & (s < 1)).to(y.dtype)
    new = y.gather(1, left) * (1 - weight) + y.gather(1, left + 1) * weight
    return new * valid, mask.gather(1, left) * mask.gather(1, left + 1) * valid


def augment(
    y: Tensor, mask: Tensor, g: torch.Generator, strength: float = 1.0, cell_spread: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Random symmetry-keeping variants of measured patterns (B, AXIS_POINTS).

    ``strength`` scales all changes; ``cell_spread`` is the standard deviation of ln d.
    """
    b, device = y.shape[0], y.device
    shift = strength * cell_spread * _randn(b, g, device)
    y, mask = rescale(y, mask, shift)
    amplitude = strength * 0.8 * torch.rand((b, 1), generator=g, device=device)
    spacing = float(np.exp(torch.rand(1, generator=g, device=device).item() * np.log(30.0)) * 0.4)
    y = y * torch.exp(amplitude * _smooth_field(b, spacing, g, device))
    # broaden some patterns
    width = 3.0 * torch.rand(1, generator=g, device=device).item() + 0.3
    t = torch.arange(-12, 13, device=device, dtype=y.dtype)
    kernel = torch.exp(-0.5 * (t / width) ** 2)
    broad = F.conv1d(y[:, None], (kernel / kernel.sum())[None, None], padding=12)[:, 0]
    y = torch.where(torch.rand((b, 1), generator=g, device=device) < 0.3, broad, y)
    y = y / y.amax(1, keepdim=True).clamp_min(1e-9)
    noise = torch.exp(-3.0 - 4.5 * torch.rand((b, 1), generator=g, device=device))
    noise = torch.where(torch.rand((b, 1), generator=g, device=device) < 0.5, noise, torch.zeros_like(noise))
    y = y + noise * torch.sqrt(0.2 + y.clamp_min(0)) * _randn(y.shape, g, device)
    axis = torch.as_tensor(common_axis(), dtype=torch.float32, device=device)[None]
    cut = torch.rand((b, 2), generator=g, device=device)
    low, high = (torch.rand((b, 1), generator=g, device=device) for _ in range(2))
    lo = torch.where(cut[:, :1] < 0.25, 4.0 + 16.0 * low, torch.zeros_like(low))
    hi = torch.where(cut[:, 1:] < 0.25, 55.0 + 35.0 * high, torch.full_like(high, 200.0))
    mask = mask * ((axis >= lo) & (axis <= hi)).to(mask.dtype)
    return y * mask, mask
