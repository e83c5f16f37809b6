"""DSFU-Net at work: weights by exact name, planes of any size in, form factor and short-range order on their absolute scale out.

The networks see and give planes on a square-root scale, ``y = 2 √(x / x_max) - 1``, as published. The publication rescales each
answer on its own and loses the scale; here it is restored: S has the mean 1 over a zone of the reciprocal lattice, and D the
factor with which D·S fits the measured intensity best (least squares over the measured pixels).
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..models.registry import ModelCard
from .network import DARK, DSFUNet
from .network_planes import brightest, from_network_size, load_network, plane_of, to_network_size

if TYPE_CHECKING:
    from .geometry import PlaneLattice
    from .volume import DiffuseVolume

FOLD = 16               # parts of a zone's edge when S is averaged over it


def spread(x: Tensor, top: Tensor) -> Tensor:
    """Planes (B, H, W) ≥ 0 on the networks' scale: 0 is -1, ``top`` (B,) is 1."""
    return 2.0 * (x.clamp_min(0.0) / top.clamp_min(1e-30)[:, None, None]).sqrt() - 1.0


def unspread(y: Tensor) -> Tensor:
    """The inverse of `spread`, between 0 and 1."""
    return ((y + 1.0) / 2.0).clamp_min(0.0).square()


def network_input(intensity: Tensor, mask: Tensor) -> Tensor:
    """(B, 1, H, W) for the networks from measured planes (B, H, W); negative and unmeasured pixels are dark."""
    top = brightest(intensity, mask)
    cut = torch.minimum(intensity, top[:, None, None])
    return torch.where(mask, spread(torch.where(mask, cut, 0.0), top), DARK)[:, None]


def zone_mean(sro: Tensor, zone: Tensor | None, fold: int = FOLD) -> Tensor:
    """(B,) mean of planes (B, H, W) over a zone.

    Parameters
    ----------
    sro : (B, H, W)
    zone : (B, H, W, 2), optional
        Coordinates of the pixels in units of the reciprocal lattice vectors in the plane. The plane is folded into one zone
        of ``fold`` × ``fold`` parts, each of which counts the same, so that zones cut by the edge do no harm. Without it,
        the mean is over the plane, which is that over a zone as far as the plane holds many.
    """
    if zone is None:
        return sro.mean((1, 2))
    total, number = fold_planes(sro, zone, fold)
    seen = number > 0
    return torch.where(seen, total / number.clamp_min(1.0), 0.0).sum(1) / seen.sum(1)


def fold_planes(value: Tensor, zone: Tensor, fold: int) -> tuple[Tensor, Tensor]:
    """Sums and numbers of pixels in the ``fold`` × ``fold`` parts of one zone, (B, fold²) each."""
    part = ((zone - zone.floor()) * fold).long().clamp_(0, fold - 1)
    index = (part[..., 0] * fold + part[..., 1]).flatten(1)
    index = index + fold * fold * torch.arange(len(index), device=index.device)[:, None]
    size = len(index) * fold * fold
    total = torch.bincount(index.flatten(), value.flatten().double(), size).to(value.dtype)
    number = torch.bincount(index.flatten(), minlength=size).to(value.dtype)
    return total.reshape(len(value), -1), number.reshape(len(value), -1)


def absolute(answers: tuple[Tensor, Tensor], intensity: Tensor, mask: Tensor, zone: Tensor | None) -> tuple[Tensor, Tensor]:
    """The form factor in units of the intensity and S with mean 1 over a zone, from the networks' answers.

    Parameters
    ----------
    answers : two tensors (B, 1, H, W), as `DSFUNet` gives them
    intensity, mask : (B, H, W)
    zone : as in `zone_mean`

    Returns
    -------
    form_factor, sro : (B, H, W)
    """
    factor, sro = (unspread(answer[:, 0]) for answer in answers)
    sro = sro / zone_mean(sro, zone).clamp_min(1e-12)[:, None, None]
    cut = torch.minimum(intensity, brightest(intensity, mask)[:, None, None])
    product = (factor * sro).masked_fill(~mask, 0.0)
    cut = cut.masked_fill(~mask, 0.0)
    scale = (cut * product).sum((1, 2)) / product.square().sum((1, 2)).clamp_min(1e-30)
    return factor * scale.clamp_min(0.0)[:, None, None], sro


@torch.no_grad()
def separate_planes(net, intensity: Tensor, mask: Tensor, zone: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Form factor and S (B, H, W) of planes of the size that the network was trained on."""
    return absolute(net(network_input(intensity, mask)), intensity, mask, zone)


# ---------------------------------------------------------------------- the user's side


def load_dsfunet(model: str | None = None, device: str | torch.device = "auto", folder=None) -> tuple[DSFUNet, ModelCard]:
    """A trained pair in evaluation mode, and its card.

    Parameters
    ----------
    model : str, optional
        Exact name; the newest DSFU-Net of the package when left out.
    device : str or torch.device
    folder : path-like, optional
        Another folder of models, as in `crystaldl.models.registry`.

    Raises
    ------
    UnknownModelError
        There is no such model, or it is no DSFU-Net.
    """
    return load_network(DSFUNet, "DSFU-Net", model, device, folder)


def run_dsfunet(volume: DiffuseVolume, lattice: PlaneLattice | None = None, *, model: str | None = None,
                device: str | torch.device = "auto") -> tuple[np.ndarray, np.ndarray, ModelCard]:
    """Separate one plane of any size with DSFU-Net.

    Parameters
    ----------
    volume : DiffuseVolume
        A plane. It is resampled so that its longer edge has 256 pixels; the answers come back on its own pixels.
    lattice : PlaneLattice, optional
        Says where the zones are over which S has the mean 1; without it, the mean over the plane is 1.
    model : str, optional
        Exact name of a model; the newest DSFU-Net when left out.
    device : str or torch.device

    Returns
    -------
    form_factor, sro : (n, m) ndarray
        Everywhere, also where nothing was measured; the form factor in units of the intensity.
    card : ModelCard

    Raises
    ------
    DataError
        The volume is not a plane, or nothing in it is positive.
    UnknownModelError
        See `load_dsfunet`.
    """
    data, mask, peak = plane_of(volume)
    net, entry = load_dsfunet(model, device)
    place = next(net.parameters()).device
    with torch.no_grad():
        answers = net(network_input(*to_network_size(data.float(), mask)).to(place))
        answers = tuple(from_network_size(a, *volume.shape).cpu().double() for a in answers)
    zone = None
    if lattice is not None:
        x = np.stack(np.meshgrid(*volume.axes, indexing="ij"), -1) - lattice.shift
        zone = torch.as_tensor(x @ lattice.dual.T)[None]
    factor, sro = absolute(answers, data, mask, zone)
    return factor[0].numpy() * peak, sro[0].numpy(), entry
