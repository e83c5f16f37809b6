"""What the networks of this wing share: planes of any size to their size and back, what counts as bright, weights by exact name."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError, UnknownModelError
from ..models.registry import ModelCard, available, card, load_weights
from ..physics.device import resolve_device
from .network import MULTIPLE, SIDE

if TYPE_CHECKING:
    from .volume import DiffuseVolume

BRIGHT = 0.003          # share of the pixels that may be Bragg residues
SPIKE = 4.0             # what exceeds the brightest of the rest by this factor is cut


def brightest(intensity: Tensor, mask: Tensor) -> Tensor:
    """(B,) what counts as the brightest measured pixel of planes (B, H, W).

    It is the maximum, as published, unless that exceeds `SPIKE` times the (1 - `BRIGHT`) quantile: then it is that multiple, so
    that residual Bragg peaks do not darken all the rest.
    """
    value = intensity.masked_fill(~mask, -math.inf).flatten(1)
    count = mask.flatten(1).sum(1)
    most = int(BRIGHT * value.shape[1]) + 1
    top = value.topk(most, dim=1).values
    rank = (BRIGHT * count).long().clamp_max(most - 1)
    quantile = top.gather(1, rank[:, None])[:, 0]
    limit = torch.where(quantile > 0, SPIKE * quantile, math.inf)      # too few counts to tell
    return torch.minimum(top[:, 0], limit).clamp_min(1e-30)


def plane_of(volume: DiffuseVolume) -> tuple[Tensor, Tensor, float]:
    """A plane for a network: float64 data (1, H, W) over its largest intensity, so that float32 holds it whatever the unit,
    0 where not measured; which pixels were measured (1, H, W); that intensity.

    Raises
    ------
    DataError
        The volume is not a plane, or nothing in it is positive.
    """
    if volume.ndim != 2:
        raise DataError(f"volume has {volume.ndim} dimensions, expected a plane: take one with volume.plane('hk0').")
    mask = torch.as_tensor(np.array(volume.mask))[None]
    data = torch.as_tensor(np.where(volume.mask, volume.data, 0.0))[None]
    peak = float(data.max())
    if not peak > 0:
        raise DataError(f"the largest intensity of the plane is {peak:.3g}, expected some above 0.")
    return data / peak, mask, peak


def to_network_size(intensity: Tensor, mask: Tensor, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Resample planes (B, H, W) so that their longer edge has ``side`` pixels, and pad to multiples of 64 as unmeasured.

    A pixel of the result is measured where at least half of what it averages is.
    """
    height, columns = intensity.shape[1:]
    shape = resampled(height, columns, side)
    if shape != (height, columns):
        weight = mask.to(intensity.dtype)
        both = torch.stack([intensity.masked_fill(~mask, 0.0), weight], 1)
        shrinks = shape[0] < height or shape[1] < columns
        total, weight = F.interpolate(both, size=shape, mode="bilinear", antialias=shrinks).unbind(1)
        mask = weight >= 0.5
        intensity = torch.where(mask, total / weight.clamp_min(0.5), 0.0)
    pad = (0, -shape[1] % MULTIPLE, 0, -shape[0] % MULTIPLE)
    return F.pad(intensity, pad), F.pad(mask, pad)


def from_network_size(answer: Tensor, height: int, columns: int, side: int = SIDE) -> Tensor:
    """Answers (B, 1, h, w) to planes made by `to_network_size`, back on ``height`` × ``columns`` pixels."""
    shape = resampled(height, columns, side)
    answer = answer[..., : shape[0], : shape[1]]
    if shape == (height, columns):
        return answer
    shrinks = height < shape[0] or columns < shape[1]
    return F.interpolate(answer, size=(height, columns), mode="bilinear", antialias=shrinks)


def resampled(height: int, columns: int, side: int) -> tuple[int, int]:
    factor = side / max(height, columns)
    return max(1, round(height * factor)), max(1, round(columns * factor))


def load_network(kind: type, title: str, model: str | None, device: str | torch.device, folder=None) -> tuple[Any, ModelCard]:
    """A trained network of a class of `network` in evaluation mode, the newest where no name is given, and its card."""
    if model is None:
        names = [name for name in available("diffuse", folder) if card(name, folder).architecture == kind.__name__]
        if not names:
            raise UnknownModelError(f"no trained {title} is installed, expected one (crystaldl train diffuse makes it).")
        model = max(names, key=_version)
    entry = card(model, folder)
    if (entry.task, entry.architecture) != ("diffuse", kind.__name__):
        found = f"{entry.architecture} for the task {entry.task!r}"
        raise UnknownModelError(f"model={model!r} is a {found}, expected a {kind.__name__} for 'diffuse'.")
    net = kind(**entry.arguments)
    net.load_state_dict(load_weights(model, folder))
    return net.to(resolve_device(device)).eval().requires_grad_(False), entry


def _version(name: str) -> tuple[int, str]:
    tail = name.rpartition("-v")[2]
    return (int(tail) if tail.isdigit() else 0), name
