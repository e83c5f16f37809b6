"""Areas of one value that no diffuse scattering has: beam stops, gaps and corners that were stored as zeros."""
from __future__ import annotations

import numpy as np
from scipy import ndimage

from .geometry import PlaneLattice

FEWEST = 25                     # pixels of an area
RIM = 2                         # pixels around it that are looked at
BRIGHT = 0.03                   # of the mean intensity: what the rim must lie above the area
STEPS = 5.0                     # times the smallest step of the data (one count) that the rim must lie above the area
JUMP = 0.5                      # of the second pixel around it: what the first must have, or the intensity fades to zero
DARK = 0.1                      # of the pixels at one place of all zones that may be brighter, where order forbids intensity
ZONES = 6                       # pixels at least at each place of the cell
FINEST = 64                     # places an edge of the cell


def blank_pixels(volume, lattice: PlaneLattice | None = None) -> np.ndarray:
    """Measured pixels in connected areas of exactly 0, or of exactly the smallest value, with a bright rim, bool.

    Where intensity fades, or is a few counts, zeros have dark neighbours; an area with a bright rim was never measured. Order
    that forbids a part of the cell leaves zeros too; with a lattice they are told by lying at the same place of all zones, and by
    the intensity falling to them steadily, where a gap or a hole cuts it off.
    """
    data, mask = np.where(volume.mask, volume.data, 0.0), np.array(volume.mask)
    out = np.zeros_like(mask)
    for value in {0.0, float(data[mask].min())}:
        same = mask & (data == value)
        if same.sum() < FEWEST:
            continue
        label, count = ndimage.label(same)
        large = np.flatnonzero(np.bincount(label.ravel(), minlength=count + 1)[1:] >= FEWEST) + 1
        others = np.abs(data[mask & ~same] - value)
        if not len(large) or not len(others):
            continue
        least = max(BRIGHT * float(others.mean()), STEPS * float(others.min()))
        places = ndimage.find_objects(label)
        found = np.zeros_like(mask)
        for k in large:
            # the area with room for its rim
            window = tuple(slice(max(s.start - RIM, 0), s.stop + RIM) for s in places[k - 1])
            area = label[window] == k
            rim = ndimage.binary_dilation(area, iterations=RIM) & mask[window] & ~same[window]
            if rim.any() and float(np.median(data[window][rim] - value)) > least:
                found[window] |= area
        if lattice is not None and found.any():
            found &= ~_forbidden(volume, lattice, data - value, same, mask)
        out |= found
    return out


def _cut_off(data: np.ndarray, area: np.ndarray, free: np.ndarray) -> bool:
    """Whether the intensity around an area of a cell does not fall towards it."""
    cross = ndimage.generate_binary_structure(area.ndim, 1)
    first = ndimage.maximum_filter(area, footprint=cross, mode="wrap")
    second = ndimage.maximum_filter(first, footprint=cross, mode="wrap") & ~first
    near, far = (float(np.median(data[part & free])) if (part & free).any() else 0.0 for part in (first, second))
    return near > JUMP * far


def _forbidden(volume, lattice: PlaneLattice, data: np.ndarray, same: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pixels at places of the cell that are dark in all zones, and that the intensity falls to steadily, bool."""
    steps = np.array([float(axis[1] - axis[0]) for axis in volume.axes])
    most = min((mask.sum() / ZONES) ** (1.0 / mask.ndim), FINEST)
    parts = np.clip(np.round(np.linalg.norm(lattice.nodes / steps, axis=1)), 4, max(most, 4)).astype(int)
    x = np.stack(np.meshgrid(*volume.axes, indexing="ij"), -1) - lattice.shift
    # nodes in the middle, which keeps holes about them in one piece
    place = np.floor((x @ lattice.dual.T + 0.5) % 1.0 * parts).astype(int) % parts
    flat = np.ravel_multi_index(tuple(np.moveaxis(place, -1, 0)), tuple(parts))
    size = int(np.prod(parts))
    number = np.bincount(flat[mask], minlength=size).reshape(parts)
    bright = np.bincount(flat[mask & ~same], minlength=size).reshape(parts)
    level = np.bincount(flat[mask & ~same], data[mask & ~same], minlength=size).reshape(parts) / np.maximum(bright, 1)
    dark = bright < DARK * number
    label, count = ndimage.label(dark)
    for k in range(1, count + 1):
        area = label == k
        if _cut_off(level, area, ~dark):
            dark &= ~area
    return dark.ravel()[flat]
