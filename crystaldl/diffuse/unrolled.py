"""The unrolled network at work: weights by exact name, a plane and its lattice in, both components on their absolute scale out."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.registry import ModelCard
from .network import COARSEST, SIDE, Fold, UnrolledNet
from .network_planes import brightest, from_network_size, load_network, plane_of, resampled, to_network_size

if TYPE_CHECKING:
    from .geometry import PlaneLattice
    from .volume import DiffuseVolume

NEAR = 3.0              # pixels: width of the map that says where nodes are
SHORTEST = 8.0          # pixels a period must have for the network
WINDOW, HOLD, OUTLIER = 1.5, 0.05, 2.0      # of `consistent`: pixels, λ, residual over D from which a pixel counts half
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
        relative = self.q / self.q.amax((1, 2), keepdim=True).clamp_min(1e-30)
        return torch.stack([torch.exp(-0.5 * far / NEAR**2), relative], 1).float()


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


def consistent(data: Tensor, mask: Tensor, answer: dict[str, Tensor]) -> Tensor:
    """The form factor (B, H, W) made to agree with the measured planes, given the order and background of an answer.

    One weighted least-squares step for D that is constant over a Gaussian window of `WINDOW` pixels:
    ``D + G[w S (I - B - D S)] / (G[w S²] + λ)`` with Cauchy weights ``w = 1 / (1 + (residual / scale)²)``, 0 where not measured,
    and a scale of `OUTLIER` times D. Far from measured pixels the answer stays the network's.
    """
    factor, order = answer["form_factor"], answer["sro"]
    residual = (data - answer["background"] - factor * order) * mask
    weight = mask / (1.0 + (residual / (OUTLIER * (factor + 0.02))).square())
    upper, lower = (_smooth(x) for x in (order * weight * residual, order.square() * weight))
    return (factor + upper / (lower + HOLD)).clamp_min(0.0)


def _smooth(x: Tensor) -> Tensor:
    reach = math.ceil(3 * WINDOW)
    t = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (t / WINDOW).square())
    kernel = kernel / kernel.sum()
    rows = F.conv2d(x[:, None], kernel[None, None, :, None], padding=(reach, 0))
    return F.conv2d(rows, kernel[None, None, None, :], padding=(0, reach))[:, 0]


@torch.no_grad()
def unrolled_planes(net, intensity: Tensor, mask: Tensor, place: Geometry) -> dict[str, Tensor]:
    """Form factor, order and background (B, H, W) of planes, in their units, and the order in one cell (B, n, n).

    The last round's, the form factor after `consistent`.
    """
    data, top = scaled(intensity, mask)
    answer = dict(run_padded(net, data, mask, place)[-1])
    answer["form_factor"] = consistent(data, mask, answer)
    for name in ("form_factor", "background"):
        answer[name] = answer[name] * top[:, None, None]
    return answer


# ---------------------------------------------------------------------- the user's side


def load_unrolled(model: str | None = None, device: str | torch.device = "auto", folder=None) -> tuple[UnrolledNet, ModelCard]:
    """A trained network in evaluation mode, and its card; parameters and errors as in `dsfunet.load_dsfunet`."""
    return load_network(UnrolledNet, "unrolled network", model, device, folder)


def place_pixels(volume: DiffuseVolume, lattice: PlaneLattice, shape: tuple[int, int]) -> Geometry:
    """Where the pixels of a plane are when it is resampled to ``shape``.

    S is even about the nodes, and about the origin where the plane has none but meets their mirror images.
    """
    ratio = np.array(volume.shape) / np.array(shape)
    first = np.array([axis[0] for axis in volume.axes])
    step = np.array([(axis[-1] - axis[0]) / (len(axis) - 1) for axis in volume.axes])
    axes = [first[k] + ((np.arange(n) + 0.5) * ratio[k] - 0.5) * step[k] for k, n in enumerate(shape)]
    x = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    zone = (x - lattice.shift) @ lattice.dual.T
    if lattice.centre is not None:
        x = x - lattice.centre
    q = np.sqrt(np.einsum("ijx,xy,ijy->ij", x, np.linalg.inv(lattice.metric), x).clip(0.0))
    even = torch.tensor([bool(lattice.has_nodes or lattice.even_order)])
    period = lattice.nodes / (step * ratio)
    return Geometry(*(torch.as_tensor(v)[None] for v in (zone, period, q)), even)


def working_side(volume: DiffuseVolume, lattice: PlaneLattice) -> int:
    """Pixels of the longer edge for the network: those of training, more where a period would have fewer than `SHORTEST`."""
    longest = max(volume.shape)
    steps = np.array([abs(axis[-1] - axis[0]) / (len(axis) - 1) for axis in volume.axes])
    period = float(np.linalg.norm(lattice.nodes / steps, axis=1).min()) / longest      # of the longer edge
    return int(min(max(SIDE, math.ceil(SHORTEST / period)), LARGEST))


def run_unrolled(volume: DiffuseVolume, lattice: PlaneLattice, *, model: str | None = None,
                 device: str | torch.device = "auto") -> tuple[np.ndarray, np.ndarray, np.ndarray, ModelCard]:
    """Separate one plane of any size with the unrolled network.

    Parameters
    ----------
    volume : DiffuseVolume
        A plane, resampled so that its longer edge has 256 pixels (more where periods are short); the answers come back on
        its own pixels, the order from its cell.
    lattice : PlaneLattice
    model : str, optional
        Exact name of a model; the newest when left out.
    device : str or torch.device

    Returns
    -------
    form_factor, sro, background : (n, m) ndarray
        Everywhere, also where nothing was measured; S has the mean 1 over its cell.
    card : ModelCard

    Raises
    ------
    DataError
        The volume is not a plane, or nothing in it is positive.
    UnknownModelError
        See `load_unrolled`.
    """
    data, mask, peak = plane_of(volume)
    net, entry = load_unrolled(model, device)
    where = next(net.parameters()).device
    side = working_side(volume, lattice)
    shape = resampled(*volume.shape, side)
    single, seen = (t[:, : shape[0], : shape[1]] for t in to_network_size(data.float(), mask, side))
    place = place_pixels(volume, lattice, shape)
    moved = Geometry(place.zone.float().to(where) if where.type == "mps" else place.zone.to(where),
                     place.period.float().to(where), place.q.float().to(where), place.even.to(where))
    answer = unrolled_planes(net, single.to(where), seen.to(where), moved)
    factor, background = (from_network_size(answer[k][:, None], *volume.shape, side)[0, 0].cpu().double().numpy() * peak
                          for k in ("form_factor", "background"))
    own = place_pixels(volume, lattice, volume.shape)
    order = Fold(own.zone, own.even, answer["cell"].shape[-1]).plane(answer["cell"].cpu())
    return factor, order[0].double().numpy(), background, entry
