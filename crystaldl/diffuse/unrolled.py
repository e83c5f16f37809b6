"""The unrolled network at work: weights by exact name, a plane and its lattice in, both components on their absolute scale out."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError, UnknownModelError
from ..models.registry import ModelCard, available, card, load_weights
from ..physics.device import resolve_device
from .dsfunet import brightest
from .network import COARSEST, SIDE, Fold, UnrolledNet

if TYPE_CHECKING:
    from .geometry import PlaneLattice
    from .volume import DiffuseVolume

NEAR = 3.0              # pixels: width of the map that says where nodes are
SHORTEST = 8.0          # pixels a period must have for the network
LARGEST = 1024          # pixels an edge beyond which planes are not enlarged


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the pixels of planes are.

    Attributes
    ----------
    zone : (B, H, W, 2), coordinates in units of the reciprocal lattice vectors in the plane, 0 at a node
    period : (B, 2, 2), rows: these vectors in pixels (row, column)
    q : (B, H, W), distance from the origin of reciprocal space, in any unit
    even : (B,) bool, whether S(h) = S(-h)
    """

    zone: Tensor
    period: Tensor
    q: Tensor
    even: Tensor

    def guide(self) -> Tensor:
        """(B, 2, H, W) nearness to a node (1 there), and Q over its largest value."""
        u = self.zone - self.zone.round()
        far = torch.einsum("bijx,bxy->bijy", u, self.period.to(u.dtype)).square().sum(-1)
        return torch.stack([torch.exp(-0.5 * far / NEAR**2), self.q / self.q.amax((1, 2), keepdim=True).clamp_min(1e-30)], 1).float()


def padded(x: Tensor, multiple: int = COARSEST) -> Tensor:
    """Planes (..., H, W) with zeros on the right and below, up to multiples."""
    return F.pad(x, (0, -x.shape[-1] % multiple, 0, -x.shape[-2] % multiple))


def scaled(intensity: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Planes (B, H, W) in units of what counts as brightest, cut there and 0 where not measured, and these units (B,)."""
    top = brightest(intensity, mask)
    cut = torch.minimum(intensity, top[:, None, None]) / top[:, None, None]
    return torch.where(mask, cut, 0.0), top


def run_padded(net, intensity: Tensor, mask: Tensor, place: Geometry) -> list[dict[str, Tensor]]:
    """The answers of every round on planes of any size (see `network.UnrolledNet.forward`)."""
    height, columns = intensity.shape[1:]
    zone = padded(place.zone.movedim(-1, 1)).movedim(1, -1)
    answers = net(padded(intensity), padded(mask), padded(place.guide()), Fold(zone, place.even))
    return [{k: v if k == "cell" else v[:, :height, :columns] for k, v in answer.items()} for answer in answers]


@torch.no_grad()
def unrolled_planes(net, intensity: Tensor, mask: Tensor, place: Geometry) -> dict[str, Tensor]:
    """Form factor, order and background (B, H, W) of planes, in their units, and the order in one cell (B, n, n)."""
    data, top = scaled(intensity, mask)
    answer = dict(run_padded(net, data, mask, place)[-1])
    for name in ("form_factor", "background"):
        answer[name] = answer[name] * top[:, None, None]
    return answer
