"""Networks as proposers of disks: from patterns to `Candidates`, for shipped models and for networks in training.

|V_g| of a candidate is relative to the strongest reflection of its pattern other than the direct beam, as the network
estimates it. Once disks are measured, another network tells it better (`factor_model`).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from ..errors import DataError, UnknownModelError
from .correlate import Candidates, fill_unmeasured, local_maxima, parabola, thin
from .network import STRIDE, DiskNet, FCUNet, fused
from .options import DiskOptions
from .prepare import Preparer
from .probe import Probe

LOW = 0.05  # candidates of lower confidence are never looked at
THRESHOLD = 0.5  # operating points of networks without a card: of a probability,
FCUNET_THRESHOLD = 0.1  # and of |V_g|
FACTORS = "stem-factors"  # the task of networks that tell |V_g| of measured disks
FCUNET_PASSES = 1
FCUNET_MOST = 1024  # px: larger patterns would lose their disks in scaling
FCUNET_RADIUS = 6.5  # px, of the largest disks it is trained on


def detector(model, network, probe: Probe, shape, options: DiskOptions, device):
    """A function patterns → Candidates, and its confidence threshold.

    Parameters
    ----------
    model : str or None
        Exact name of a shipped model; None: the default one.
    network : nn.Module or None
        A network in its place.

    Raises
    ------
    UnknownModelError
        No such model, no model at all, or one that does not find disks.
    """
    if network is not None:
        if model is not None:
            raise ValueError("model and network are both given; expected one of them.")
        if not isinstance(network, nn.Module):
            raise TypeError(f"network is a {type(network).__name__}; expected a torch module (crystaldl.stem.network).")
        module, point = network.to(device).eval(), {}
    else:
        name = _model_name(model)
        module, point = load_network(name, str(device))
    if isinstance(module, FCUNet):
        found = FCUNetDetector(module, probe, shape, options, device, int(point.get("passes", FCUNET_PASSES)))
    elif isinstance(module, DiskNet):
        found = DiskNetDetector(module, probe, shape, options, device, point)
    else:
        raise UnknownModelError(f"network is a {type(module).__name__}, which finds no disks; expected DiskNet or FCUNet.")
    usual = FCUNET_THRESHOLD if isinstance(module, FCUNet) else THRESHOLD
    return found, float(point.get("threshold", usual))


def _model_name(model: str | None) -> str:
    from ..models.registry import available, card, default

    names = available("stem")
    if model is None:
        if not names:
            raise UnknownModelError(
                "method is 'fcunet', but no 4D-STEM model ships with this version; "
                "expected method='correlation', or a trained network."
            )
        return default("stem")
    if card(model).task != "stem":
        raise UnknownModelError(f"model is {model!r}, which finds no disks; expected one of {', '.join(names) or 'none'}.")
    return model


@lru_cache(maxsize=4)
def load_network(name: str, device: str):
    """The network of a shipped model in evaluation mode and its operating point, kept for the next call."""
    from ..models.registry import card, load_weights
    from . import network as architectures

    entry = card(name)
    module = getattr(architectures, entry.architecture)(**entry.arguments)
    module.load_state_dict(load_weights(name))
    return module.to(device).eval(), entry.operating_point


def factor_model(architecture: str, options: DiskOptions) -> str | None:
    """Name of the shipped model that tells |V_g| of measured disks (`crystaldl.stem.reflections`).

    None where the method's own estimate stays: of networks other than `DiskNet`, without refinement, or where none ships.
    """
    from ..models.registry import available, default

    return default(FACTORS) if architecture == "DiskNet" and options.refine and available(FACTORS) else None


class DiskNetDetector:
    """Proposes disks by a `DiskNet`."""

    def __init__(self, network: DiskNet, probe: Probe, shape, options: DiskOptions, device, point: dict | None = None):
        self.network = fused(network).to(memory_format=torch.channels_last) if type(network) is DiskNet else network
        self.prepare = Preparer(probe, shape, device)
        self.options, self.shape, self.radius = options, shape, probe.radius
        self.point = point or {}

    def __call__(self, patterns: Tensor) -> Candidates:
        frame = self.prepare.frame
        with torch.inference_mode():
            out = self.network(self.prepare(patterns).to(memory_format=torch.channels_last))
        scale = min(frame.factor)
        spacing = self.options.spacing(self.radius) * scale / STRIDE
        # the network knows disks to the edge: where they may lie is decided on their final positions
        probability = torch.nn.functional.threshold(torch.sigmoid(out["heat"]), LOW, 0.0)
        found = local_maxima(probability, 1.5, 2 * self.options.max_disks, 0.0, 0.0)
        pattern, cell, confidence = found.pattern, found.positions.long(), found.strength
        at = (pattern, cell[:, 0], cell[:, 1])
        offset = torch.stack([out["offset"][:, 0][at], out["offset"][:, 1][at]], 1)
        positions = frame.to_pattern(STRIDE * cell + offset)
        sigma = (out["log_sigma"][at].exp() / scale)[:, None].expand(-1, 2)
        candidates = Candidates(pattern, positions, out["log_v"][at].exp(), confidence, sigma)
        return select(candidates, len(patterns), spacing * STRIDE / scale, self.options, self.radius, self.shape)


def select(c: Candidates, count: int, spacing: float, options: DiskOptions, radius: float, shape) -> Candidates:
    """Candidates that keep apart from more confident ones and lie inside the pattern, at most ``max_disks`` each."""
    edge = options.boundary(radius)
    size = torch.tensor(shape, device=c.positions.device)
    inside = ((c.positions >= edge - 0.5) & (c.positions <= size - edge - 0.5)).all(1)
    c = c.select(inside)
    if len(c.pattern) == 0:
        return c
    order = torch.argsort(c.confidence, descending=True)
    order = order[torch.argsort(c.pattern[order], stable=True)]
    c = c.select(order)
    number = torch.bincount(c.pattern, minlength=count)
    rank = torch.arange(len(c.pattern), device=order.device) - (number.cumsum(0) - number)[c.pattern]
    table = c.positions.new_full((count, int(number.max()), 2), 1e9)
    table[c.pattern, rank] = c.positions
    valid = table[..., 0] < 1e8
    keep = thin(table, valid, spacing)
    keep &= keep.cumsum(1) <= options.max_disks
    return c.select(keep[c.pattern, rank])


class FCUNetDetector:
    """Proposes disks by an `FCUNet`: maxima of its image of |V_g|.

    The network reads patterns of one size: others are scaled so that the whole pattern fits, its disks no larger than
    those it was trained on, and padded about their middle. With several passes, dropout stays on and the images are
    averaged.
    """

    def __init__(self, network: FCUNet, probe: Probe, shape, options: DiskOptions, device, passes: int = 1):
        if max(shape) > FCUNET_MOST:
            raise DataError(f"patterns have {shape[0]} × {shape[1]} px; FCU-Net takes at most {FCUNET_MOST} px.")
        self.network, self.passes, self.options, self.radius, self.shape = network, passes, options, probe.radius, shape
        factor = min(1.0, network.size / max(shape), FCUNET_RADIUS / probe.radius)
        self.scaled = [max(1, round(n * factor)) for n in shape]
        self.corner = [(network.size - n) // 2 for n in self.scaled]
        half = min(shape) // 2 - 1
        patch = torch.as_tensor(probe.patch(half), dtype=torch.float32, device=device)
        # an odd number of pixels, the middle one on the pixel that the Fourier transform counts from
        middle = min(round(factor * half), (network.size - 1) // 2)
        patch = _scaled(patch[None], [2 * middle + 1] * 2)
        self.probe = _placed(patch, [network.size // 2 - middle] * 2, network.size)

    def image(self, patterns: Tensor) -> Tensor:
        """The network's image of |V_g| in its own pixels, (B, h, w)."""
        p = _placed(_scaled(fill_unmeasured(patterns), self.scaled), self.corner, self.network.size)
        probe = self.probe.expand(len(p), -1, -1)
        sample = self.passes > 1
        return torch.stack([self.network(p, probe, sample=sample) for _ in range(self.passes)]).mean(0)

    def __call__(self, patterns: Tensor) -> Candidates:
        with torch.inference_mode():
            image = self.image(patterns)
        factor = torch.tensor([n / m for n, m in zip(self.scaled, self.shape, strict=True)], device=image.device)
        corner = torch.tensor(self.corner, device=image.device)
        spacing = self.options.spacing(self.radius)
        found = local_maxima(image, spacing * float(factor.min()), self.options.max_disks, 0.0, 0.2 * LOW)
        refined, strength = parabola(image, found)
        positions = (refined - corner + 0.5) / factor - 0.5
        candidates = Candidates(found.pattern, positions, strength, strength.clamp(0, 1))
        return select(candidates, len(patterns), spacing, self.options, self.radius, self.shape)


def _scaled(images: Tensor, size: list[int]) -> Tensor:
    """Images (B, H, W) at another, smaller size."""
    if list(images.shape[1:]) == size:
        return images
    return torch.nn.functional.interpolate(images[:, None], size, mode="bilinear", antialias=True, align_corners=False)[:, 0]


def _placed(images: Tensor, corner: list[int], size: int) -> Tensor:
    """Images (B, h, w) with zeros around them, (B, size, size), their first pixel at ``corner``."""
    bottom, right = (size - n - o for n, o in zip(images.shape[1:], corner, strict=True))
    return torch.nn.functional.pad(images, (corner[1], right, corner[0], bottom))
