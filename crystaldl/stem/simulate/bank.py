"""A bank of dynamical disks: Bloch-wave intensities across the disk for many crystals, zones and thicknesses.

Diagonalising is the dear part of a simulated pattern, so it is done once; `crystaldl.stem.simulate.patterns` then makes any
number of patterns of it, with other apertures (parts of the computed cone), strains, probes, doses and detectors.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...storage.atomic import replacing
from .bloch import beam_intensities, prepare_zone, zone_reflections
from .electrons import wavelength
from .specimens import held_out, random_specimen

RINGS = 4  # 61 directions across the disk
GRID = 16  # pixels of the map they are interpolated to, over ±EXTENT radii
EXTENT = 1.15
VOLTAGES = (60.0, 80.0, 100.0, 200.0, 300.0)
HELD_OUT_VOLTAGES = (120.0,)
HELD_OUT_SEMIANGLES = ((1.4, 1.6), (2.4, 2.6))  # mrad


@dataclass
class DiskBank:
    """Disks of E crystals: tensors on one device.

    Attributes
    ----------
    g : (E, M, 2) float32
        Reflections relative to the cone's semi-angle: position = ``g · (disk radius)`` for the whole cone. NaN: none.
    values : (E, T, M, 61) float16
        Intensity of each beam for every direction; sums over M to 1 without absorption.
    v : (E, M) float32
        ``|U_g|`` relative to the strongest beam's other than 000; 0 where extinct.
    semiangle : (E,) float32, of the whole cone, mrad
    voltage : (E,) float32, kV
    thickness : (E, T) float32, nm
    family : (E,) int64
    """

    g: Tensor
    values: Tensor
    v: Tensor
    semiangle: Tensor
    voltage: Tensor
    thickness: Tensor
    family: Tensor

    def __len__(self) -> int:
        return len(self.g)

    def to(self, device) -> DiskBank:
        return DiskBank(*(getattr(self, f.name).to(device) for f in fields(self)))

    def save(self, path) -> None:
        """Write as safetensors; an interrupted write leaves an old file whole."""
        from safetensors.torch import save_file

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside:
            save_file({f.name: getattr(self, f.name).contiguous() for f in fields(self)}, beside)

    @classmethod
    def load(cls, path) -> DiskBank:
        from safetensors.torch import load_file

        return cls(**load_file(path))


@lru_cache(maxsize=1)
def directions() -> np.ndarray:
    """Directions across the unit disk, (61, 2): the middle and rings of 6, 12, 18, 24."""
    rings = [np.zeros((1, 2))]
    for n in range(1, RINGS + 1):
        angle = 2 * np.pi * (np.arange(6 * n) / (6 * n)) + 0.5 * n
        rings.append(n / RINGS * np.stack([np.sin(angle), np.cos(angle)], 1))
    return np.concatenate(rings)


@lru_cache(maxsize=1)
def interpolation() -> np.ndarray:
    """Matrix (61, GRID²) from the directions to a square map over ±EXTENT (thin-plate splines)."""
    from scipy.interpolate import RBFInterpolator

    axis = np.linspace(-EXTENT, EXTENT, GRID)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    radius = np.hypot(*points.T)
    points = points * np.minimum(1, 1.02 / np.maximum(radius, 1e-9))[:, None]  # hardly any extrapolation
    return RBFInterpolator(directions(), np.eye(len(directions())), kernel="thin_plate_spline")(points).T.copy()


def build_bank(
    count: int, seed: int = 0, *, evaluation: bool = False, beams: int = 100, stored: int = 96, thicknesses: int = 6
) -> DiskBank:
    """Compute a bank of ``count`` crystal orientations.

    Deterministic in ``seed``. ``evaluation``: only families kept out of training and `HELD_OUT_VOLTAGES`; else none.
    """
    entries, number = [], 0
    while len(entries) < count:
        number += 1
        rng = np.random.default_rng((seed, number, 3))
        family = int(rng.integers(4000))
        if held_out(family) != evaluation:
            continue
        entry = _entry(rng, family, seed * 1_000_003 + number, evaluation, beams, stored, thicknesses)
        if entry is not None:
            entries.append(entry)
    return DiskBank(*(torch.stack(column) for column in zip(*entries, strict=True)))


def _cone(rng, shortest: float, wave: float) -> float | None:
    """A semi-angle in rad so that disks of part of the cone stay apart, or None."""
    touching = 0.5 * shortest * wave
    low, high = max(0.3e-3, touching / 3.5), min(7e-3, 1.35 * touching)
    return float(np.exp(rng.uniform(np.log(low), np.log(high)))) if low < high else None


def _entry(rng, family, seed, evaluation, beams, stored, thicknesses):
    specimen = random_specimen(seed, family)
    voltage = float(rng.choice(HELD_OUT_VOLTAGES if evaluation else VOLTAGES))
    wave = wavelength(voltage)
    _, short = zone_reflections(specimen.crystal, specimen.zone, 1.2)
    if len(short) < 8:
        return None
    semiangle = _cone(rng, float(np.linalg.norm(short[1])), wave)
    if semiangle is None:
        return None
    # most people tilt to the zone, some do not: up to 30 mrad
    size = rng.rayleigh(2e-3) if rng.random() < 0.7 else rng.uniform(0, 30e-3)
    angle = rng.uniform(0, 2 * np.pi)
    tilt = size / wave * np.array([np.sin(angle), np.cos(angle)])
    g_max = min(2.4, 26 * semiangle / wave + 0.5)
    conditions = {"voltage": voltage, "b_iso": specimen.b_iso, "g_max": g_max, "beams": beams, "tilt": tilt}
    zone = prepare_zone(specimen.crystal, specimen.zone, **conditions)
    thickness = 10 * np.exp(rng.uniform(np.log(1.0), np.log(120.0), thicknesses))
    tilts = torch.as_tensor(tilt + directions() * semiangle / wave)
    absorption = float(rng.uniform(0, 0.1))
    values = beam_intensities(zone, tilts, torch.as_tensor(thickness), absorption=absorption)  # (D, T, M)
    values = values.permute(1, 2, 0)
    strength = torch.as_tensor(zone.structure_factor)
    relative = strength / strength[1:].max().clamp_min(1e-30)
    relative = torch.where(relative > 1e-4, relative, 0.0)
    peak = values.amax((0, 2))
    peak[0] = torch.inf
    keep = peak.argsort(descending=True)[:stored]
    g = torch.as_tensor(zone.g)[keep] * wave / semiangle
    full_g = torch.full((stored, 2), torch.nan)
    full_g[: len(keep)] = g
    full_values = torch.zeros(thicknesses, stored, values.shape[2], dtype=torch.float16)
    full_values[:, : len(keep)] = values[:, keep].half()
    full_v = torch.zeros(stored)
    full_v[: len(keep)] = relative[keep]
    scalars = (torch.tensor(1e3 * semiangle), torch.tensor(voltage))
    return full_g, full_values, full_v, *scalars, torch.as_tensor(thickness / 10).float(), torch.tensor(family)
