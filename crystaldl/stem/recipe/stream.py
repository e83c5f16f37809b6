"""The training stream: batches of simulated patterns as the networks read them, with targets on their grids.

A batch is a function of (seed, step, rank): its probes and geometries, the crystals it takes from the bank, its noise.
It mixes several scenes (a scene is one probe and geometry): batch normalisation over a single scene would cancel what
is constant in it, such as the radius of the disks, and a network so trained is off wherever that constant is unusual.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..network import STRIDE
from ..prepare import Preparer
from ..simulate.bank import DiskBank
from ..simulate.patterns import Patterns, SceneOptions, simulate

TARGET_SIGMA = 0.8  # cells, of the peaks of the target map
SPOT_SIGMA = 1.5  # px, of the spots in FCU-Net's target image
FCUNET_RADII = (2.0, 6.5)  # px, of the disks that FCU-Net sees


@dataclass(frozen=True)
class StreamOptions:
    """``size``: px of the network's input; ``batch_size``: patterns of a batch; ``seed``; ``scenes``: of a batch."""

    size: int = 160
    batch_size: int = 16
    seed: int = 0
    scenes: int = 1

    def __post_init__(self):
        if self.scenes < 1 or self.batch_size % self.scenes:
            raise ValueError(f"scenes is {self.scenes}; expected a divisor of batch_size, which is {self.batch_size}.")

    def of_scene(self, step: int, number: int) -> tuple[StreamOptions, int]:
        """Options and step of scene ``number`` of a batch, to draw it by itself."""
        return replace(self, batch_size=self.batch_size // self.scenes, scenes=1), step * self.scenes + number


def draw_scene(rng: np.random.Generator, size: int, *, held_out: bool = False) -> SceneOptions:
    """Geometry of one batch: disks of 2.8 to 9 px, most of them near what the networks see in the end."""
    kind = rng.random()
    if kind < 0.55:
        radius, factor = rng.uniform(4.4, 5.8), 1.0
    else:
        radius = rng.uniform(2.8, 4.4) if kind < 0.75 else rng.uniform(5.8, 9.0)
        factor = 5.0 / radius
    n = int(round(size / factor))
    edge = rng.uniform(0.25, 1.1) * np.sqrt(radius / 5)
    bullseye = rng.uniform(0.3, 0.9) if rng.random() < 0.1 else 0.0
    strain = rng.choice([0.0, 0.01, 0.03])
    dose = 10 ** rng.uniform(3.7, 7)
    return SceneOptions((n, n), radius, edge, bullseye, strain, off_centre=0.25, probe_dose=dose, held_out=held_out)


def draw_fcunet_scene(rng: np.random.Generator, size: int, *, held_out: bool = False) -> SceneOptions:
    """Geometry of one batch as `FCUNet` sees it: whole patterns that fill ``size`` px or part of it, disks of any radius."""
    n = size if rng.random() < 0.7 else int(rng.uniform(0.6, 1.0) * size)
    low, high = FCUNET_RADII
    radius = min(float(np.exp(rng.uniform(np.log(low), np.log(high)))), n / 14)
    edge = max(0.35, rng.uniform(0.25, 1.1) * np.sqrt(radius / 5))
    bullseye = rng.uniform(0.3, 0.9) if rng.random() < 0.1 else 0.0
    strain = rng.choice([0.0, 0.01, 0.03])
    dose = 10 ** rng.uniform(3.7, 7)
    return SceneOptions((n, n), radius, edge, bullseye, strain, off_centre=0.1, probe_dose=dose, held_out=held_out)


def draw_patterns(
    bank: DiskBank, options: StreamOptions, step: int, rank: int, device, held_out: bool = False, scene_of=draw_scene
) -> Patterns:
    """Patterns of one scene, which ``scene_of`` (`draw_scene` or `draw_fcunet_scene`) draws."""
    rng = np.random.default_rng((options.seed, step, rank, int(held_out)))
    g = torch.Generator(device=device).manual_seed(int(rng.integers(2**62)))
    scene = scene_of(rng, options.size, held_out=held_out)
    return simulate(bank, options.batch_size, g, scene)


def disk_targets(p: Patterns, prepare: Preparer) -> dict[str, Tensor]:
    """Targets of `DiskNet` on its grid of cells.

    Returns
    -------
    dict
        ``heat`` (B, h, w) in [0, 1], 1 where a disk is centred; ``weight`` (B, h, w), 0 where nothing is asked;
        ``index`` (K, 3): pattern and cell of every place where the other heads are asked, ``offset`` (K, 2) from the
        cell to the centre, input px, ``log_v`` (K,), NaN where |V_g| is not asked.
    """
    b = len(p.patterns)
    h, w = ((n + STRIDE - 1) // STRIDE for n in prepare.size)
    centres = prepare.frame.from_pattern(p.centres) / STRIDE
    device = centres.device
    heat, weight = torch.zeros(b, h, w, device=device), torch.ones(b, h, w, device=device)
    radius = prepare.frame.radius / STRIDE
    for kind, reach in ((p.visible, 3 * TARGET_SIGMA), (p.ignore, 1.2 * radius)):
        which, disk = kind.nonzero(as_tuple=True)
        c = centres[which, disk]
        n = int(np.ceil(reach))
        window = torch.arange(-n, n + 1, device=device)
        y = c[:, :1].round().long() + window
        x = c[:, 1:].round().long() + window
        d2 = (y - c[:, :1])[:, :, None] ** 2 + (x - c[:, 1:])[:, None] ** 2
        index = (which[:, None, None] * h + y.clamp(0, h - 1)[:, :, None]) * w + x.clamp(0, w - 1)[:, None]
        inside = ((y >= 0) & (y < h))[:, :, None] & ((x >= 0) & (x < w))[:, None]
        if kind is p.visible:
            peak = torch.exp(-0.5 * d2 / TARGET_SIGMA**2) * inside
            heat.view(-1).scatter_reduce_(0, index.reshape(-1), peak.reshape(-1), "amax")
        else:
            off = torch.where(inside & (d2 <= reach**2), 0.0, 1.0)
            weight.view(-1).scatter_reduce_(0, index.reshape(-1), off.reshape(-1), "amin")
    weight = torch.where(heat > 0.3, torch.ones_like(weight), weight)
    which, disk = p.visible.nonzero(as_tuple=True)
    c = centres[which, disk]
    near = torch.tensor([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)], device=device)
    cell = c.round().long()[:, None] + near
    ok = ((cell >= 0) & (cell < torch.tensor([h, w], device=device))).all(2).reshape(-1)
    offset = (STRIDE * (c[:, None] - cell)).reshape(-1, 2)[ok]
    log_v = p.v[which, disk].clamp_min(1e-4).log()
    log_v = torch.where(disk == 0, torch.nan, log_v)[:, None].expand(-1, 9).reshape(-1)[ok]
    middle = (near == 0).all(1)[None].expand(len(c), -1).reshape(-1)[ok]
    index = torch.cat([which[:, None, None].expand(-1, 9, 1), cell], 2).reshape(-1, 3)[ok]
    # the nearest cell is a positive of its own, wherever in it the centre lies
    heat[tuple(index[middle].T)] = 1.0
    return {"heat": heat, "weight": weight, "index": index, "offset": offset, "log_v": log_v}


def disknet_batch(p: Patterns, device) -> dict:
    """Inputs and targets of `DiskNet`."""
    prepare = Preparer(p.probe, p.patterns.shape[1:], device)
    targets = disk_targets(p, prepare)
    return {"inputs": prepare(p.patterns).contiguous(memory_format=torch.channels_last), **targets}


def mixed(batches: list[dict]) -> dict:
    """One batch of several of `disknet_batch`: all are brought to the largest size; what is added counts for nothing."""
    if len(batches) == 1:
        return batches[0]
    out: dict = {}
    rows = [len(b["inputs"]) for b in batches]
    for name in ("inputs", "heat", "weight"):
        size = [max(b[name].shape[d] for b in batches) for d in (-2, -1)]
        grown = [pad(b[name], (0, size[1] - b[name].shape[-1], 0, size[0] - b[name].shape[-2])) for b in batches]
        out[name] = torch.cat(grown)
    out["inputs"] = out["inputs"].contiguous(memory_format=torch.channels_last)
    first = np.cumsum([0] + rows[:-1])
    index = [torch.cat([b["index"][:, :1] + int(n), b["index"][:, 1:]], 1) for b, n in zip(batches, first, strict=True)]
    out["index"] = torch.cat(index)
    return out | {name: torch.cat([b[name] for b in batches]) for name in ("offset", "log_v")}


def fcunet_batch(p: Patterns, size: int, device) -> dict:
    """Inputs and target image of `FCUNet`: patterns about their middle in ``size`` px, spots of height |V_g|."""
    from ..correlate import fill_unmeasured

    h, w = p.patterns.shape[1:]
    top, left = (max(0, (n - size) // 2) for n in (h, w))
    patterns = fill_unmeasured(p.patterns)[:, top : top + size, left : left + size]
    low = ((size - patterns.shape[1]) // 2, (size - patterns.shape[2]) // 2)
    high = (size - patterns.shape[1] - low[0], size - patterns.shape[2] - low[1])
    patterns = pad(patterns, (low[1], high[1], low[0], high[0]))
    half = min(size // 2 - 1, min(p.probe.shape) // 2 - 1)
    patch = torch.as_tensor(p.probe.patch(half), dtype=torch.float32, device=device)
    probe = torch.zeros(size, size, device=device)
    corner = size // 2 - half
    probe[corner : corner + 2 * half + 1, corner : corner + 2 * half + 1] = patch
    centres = p.centres - torch.tensor([top - low[0], left - low[1]], device=device)
    y = torch.arange(size, device=device)
    strength = torch.where(p.visible, p.v, torch.zeros_like(p.v))
    strength[:, 0] = p.visible[:, 0].float()
    centres = torch.nan_to_num(centres, nan=-1e4)
    rows, columns = (torch.exp(-0.5 * ((y - centres[..., i, None]) / SPOT_SIGMA) ** 2) for i in (0, 1))
    image = torch.einsum("bm,bmy,bmx->byx", strength, rows, columns)
    return {"pattern": patterns, "probe": probe.expand(len(patterns), -1, -1), "image": image}
