"""The Kaiser-Bessel window with which non-uniform Fourier sums are put on a twofold finer grid."""
from __future__ import annotations

import math

import torch
from torch import Tensor

OVERSAMPLING = 2


def _shape(width: int) -> float:
    """The best β of a window of ``width`` points (Beatty et al., IEEE Trans. Med. Imaging 24, 799, 2005)."""
    return math.pi * math.sqrt((width / OVERSAMPLING) ** 2 * (OVERSAMPLING - 0.5) ** 2 - 0.8)


def kaiser_bessel(x: Tensor, width: int) -> Tensor:
    """Window at distances ``x``, in grid points."""
    inside = (1.0 - (2.0 * x / width) ** 2).clamp(min=0.0)
    return torch.special.i0(_shape(width) * inside.sqrt()) / width * (inside > 0)


def kaiser_bessel_transform(nu: Tensor, width: int) -> Tensor:
    """Fourier transform of the window at ``nu`` cycles a point, ``|nu| ≤ 1/4``."""
    root = torch.sqrt(_shape(width) ** 2 - (math.pi * width * nu) ** 2)
    return torch.sinh(root) / root
