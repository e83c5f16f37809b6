"""Which pixels of a reconstructed plane were measured: random masks in the manner of real detectors and rotations."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, FileFormatError


def procedural_masks(size: tuple[int, int], draw, missing=(0.07, 0.55), centre: Tensor | None = None) -> Tensor:
    """Random coverage masks (B, H, W), True = measured.

    A mask is made of: the limit of the Ewald-sphere coverage (an ellipse, or the lens that two of them share), the blind
    cone about the rotation axis, curved gaps between detector modules, a beam stop with or without its arm, sectors
    that no rotation reached, and a few shadows. The coverage limit is moved until the share of missing pixels is the drawn one.

    Parameters
    ----------
    size : (H, W)
    draw : corruption.Draw, which also says how many
    missing : number or (low, high), share of hidden pixels
    centre : (B, 2) pixel coordinates of Q = 0, by default the middle
    """
    h, w = size
    device, dtype = draw.device, draw.dtype
    rows, columns = torch.arange(h, device=device, dtype=dtype), torch.arange(w, device=device, dtype=dtype)
    if centre is None:
        centre = torch.tensor([(h - 1) / 2, (w - 1) / 2], device=device, dtype=dtype).expand(draw.batch, 2)
    half = 0.5 * max(h, w)
    y = ((rows[None] - centre[:, :1]) / half)[:, :, None].expand(-1, h, w)
    x = ((columns[None] - centre[:, 1:]) / half)[:, None].expand(-1, h, w)
    target = draw.strength(missing)
    keep = _modules(x, y, draw) & _beam_stop(x, y, draw) & _blind_cone(x, y, draw)
    sectors = _sectors(x, y, draw) & _shadows(x, y, draw)
    both = keep & sectors
    crowded = both.to(dtype).mean((1, 2)) < 1 - target
    keep = torch.where(crowded[:, None, None], keep, both)
    return keep & _coverage(x, y, keep, target, draw)


def _number(draw, low: float, high: float) -> Tensor:
    return draw.uniform(low=low, high=high)[:, None, None]


def _chance(draw, probability: float) -> Tensor:
    return draw.uniform()[:, None, None] < probability


def _rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    c, s = torch.cos(angle), torch.sin(angle)
    return c * x + s * y, c * y - s * x


def _coverage(x: Tensor, y: Tensor, keep: Tensor, target: Tensor, draw) -> Tensor:
    """Inside an ellipse or the lens of two; the level is the one that hides ``target`` of all pixels."""
    level = torch.zeros_like(x)
    lens = _chance(draw, 0.4)
    for k in range(2):
        u, v = _rotate(x - _number(draw, -0.25, 0.25), y - _number(draw, -0.25, 0.25), _number(draw, 0.0, np.pi))
        radius = u.square() + (v * _number(draw, 0.7, 1.4)).square()
        level = radius if k == 0 else torch.where(lens, torch.maximum(level, radius), level)
    thin = torch.where(keep, level, torch.full_like(level, 1e3))[:, ::3, ::3].reshape(len(x), -1).sort(1).values
    rank = ((1 - target) * thin.shape[1]).long().clamp(0, thin.shape[1] - 1)
    limit = thin.gather(1, rank[:, None])[:, :, None]
    return level <= limit.clamp_min(0.05)


def _modules(x: Tensor, y: Tensor, draw) -> Tensor:
    """Gaps between modules: families of thin ellipses, arcs or, rarely, straight lines."""
    keep = torch.ones_like(x, dtype=torch.bool)
    for probability in (0.8, 0.3):
        u, v = _rotate(x - _number(draw, -0.15, 0.15), y - _number(draw, -0.15, 0.15), _number(draw, 0.0, np.pi))
        ring = torch.sqrt(u.square() + (v * _number(draw, 0.3, 1.2)).square() + _number(draw, 0.0, 0.02))
        arc = u + _number(draw, -0.6, 0.6) * v.square()
        g = torch.where(_chance(draw, 0.6), ring, arc)
        spacing = _number(draw, 0.22, 0.6)
        phase = (g / spacing + _number(draw, 0.0, 1.0)) % 1.0 * spacing
        keep = keep & ~((phase < _number(draw, 0.006, 0.024)) & _chance(draw, probability))
    return keep


def _beam_stop(x: Tensor, y: Tensor, draw) -> Tensor:
    radius = _number(draw, 0.015, 0.09)
    stop = x.square() + y.square() < radius.square()
    u, v = _rotate(x, y, _number(draw, 0.0, 2 * np.pi))
    arm = (u > 0) & (v.abs() < radius * _number(draw, 0.2, 0.7)) & _chance(draw, 0.3)
    return ~((stop | arm) & _chance(draw, 0.7))


def _blind_cone(x: Tensor, y: Tensor, draw) -> Tensor:
    u, v = _rotate(x, y, _number(draw, 0.0, 2 * np.pi))
    u = torch.where(_chance(draw, 0.6), u.abs(), u)
    cone = (u > _number(draw, 0.2, 0.8)) & (v.square() < _number(draw, 0.005, 0.05) + (u * _number(draw, 0.05, 0.35)).square())
    inside = v.abs() < _number(draw, 0.05, 0.3) * torch.sqrt((u - _number(draw, 0.2, 0.8)).clamp_min(0.0))
    return ~(torch.where(_chance(draw, 0.5), cone, inside) & _chance(draw, 0.35))


def _sectors(x: Tensor, y: Tensor, draw) -> Tensor:
    """One wide sector (up to a quadrant) or its Friedel-symmetric pair."""
    angle = torch.atan2(y, x)
    start, width = _number(draw, -np.pi, np.pi), _number(draw, 0.15, np.pi / 2)
    turn = torch.where(_chance(draw, 0.5), torch.full_like(start, 2 * np.pi), torch.full_like(start, np.pi))
    return ~(((angle - start) % turn < width) & _chance(draw, 0.2))


def _shadows(x: Tensor, y: Tensor, draw) -> Tensor:
    keep = torch.ones_like(x, dtype=torch.bool)
    for _ in range(2):
        dark = (x - _number(draw, -1, 1)).square() + (y - _number(draw, -1, 1)).square() < _number(draw, 0.02, 0.15).square()
        keep = keep & ~(dark & _chance(draw, 0.15))
    return keep


def read_masks(path, count: int = 48, seed: int = 0) -> np.ndarray:
    """Planes through real coverage masks stored as packed bits, for evaluation.

    Parameters
    ----------
    path : path of an ``.npz`` with ``shape`` (3,) and one or more packed-bit volumes of that shape (1 = measured)
    count : int, planes to draw: random axis and height, evenly over the volumes
    seed : int

    Returns
    -------
    (count, n, n) bool ndarray, True = measured
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path is {path}, where there is no file; expected an .npz of packed masks.")
    with np.load(path, allow_pickle=False) as stored:
        names = [n for n in stored.files if n != "shape"]
        if "shape" not in stored.files or not names:
            raise FileFormatError(f"{path.name} holds {', '.join(stored.files)}; expected 'shape' and packed mask volumes.")
        shape = tuple(int(n) for n in stored["shape"])
        volumes = [np.unpackbits(stored[n])[: int(np.prod(shape))].reshape(shape).astype(bool) for n in names]
    if len(set(shape)) != 1:
        raise DataError(f"{path.name} holds volumes of shape {shape}, expected three equal sides.")
    rng = np.random.default_rng(seed)
    planes = []
    for k in range(count):
        volume = volumes[k % len(volumes)]
        level = int(np.clip(rng.normal(0.5, 0.15), 0.2, 0.8) * shape[0])
        planes.append(np.take(volume, level, axis=int(rng.integers(3))))
    return np.array(planes)
