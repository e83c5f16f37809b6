"""How far Bragg scattering reaches around the nodes of a plane or volume, found from the data alone."""
from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np

from ..geometry import PlaneLattice

BRAGG_SCATTER, BRAGG_TAIL = 0.5, 0.12   # relative scatter over equivalent points that diffuse scattering does not have; of tails
SMOOTH_MARGIN = 1.5             # times the scatter about other points of the cell
BRAGG_RING = 0.75               # pixels: width of the rings
BRIGHT, BRIGHT_SHARE, BRIGHT_MORE = 5.0, 0.1, 5.0   # σ of a bright misfit; its share of a ring, and that over its share elsewhere


def bragg_radius(volume, lattice: PlaneLattice, reach: float) -> float:
    """Radius in pixels of Bragg scattering around the nodes; 0 where there is none.

    Diffuse scattering is D times something periodic, and D is smooth: the intensity at a given distance from a node, over
    that in a reference ring further out, is nearly the same for all nodes. Bragg intensities differ from node to node by
    orders of magnitude. Rings in which the robust relative scatter of that ratio is wide are Bragg scattering; from the
    outermost of them on, so are those that still scatter more than diffuse scattering does. How much D alone makes them scatter
    is seen around the points furthest from all nodes, where they are far enough.
    """
    steps = np.array([float(axis[1] - axis[0]) for axis in volume.axes])
    own, noise = _ring_scatter(volume, lattice, reach, steps)
    smooth, (place, far) = np.zeros_like(own), _furthest(lattice, steps)
    if far >= 2.0 * reach + 2.0:
        between = replace(lattice, shift=lattice.shift + place @ lattice.nodes)
        smooth = np.nan_to_num(_ring_scatter(volume, between, reach, steps)[0])
    strong, weak = (own > np.hypot(np.maximum(limit, SMOOTH_MARGIN * smooth), noise) for limit in (BRAGG_SCATTER, BRAGG_TAIL))
    if not strong.any():
        return 0.0
    last = int(np.flatnonzero(strong)[-1])
    while last + 1 < len(weak) and weak[last + 1]:
        last += 1
    return BRAGG_RING * (last + 1) + 0.5


def residue_radius(volume, lattice: PlaneLattice, reach: float, misfit: np.ndarray, factor: np.ndarray) -> float:
    """Radius in pixels of Bragg scattering that a fit without it has left; 0 where there is none.

    What a fit leaves at a node that stands for order too sharp for its series is in proportion to D; Bragg intensities are not.

    Parameters
    ----------
    misfit : (*shape) ndarray, measured − model in σ, 0 where not measured
    factor : (*shape) ndarray, D in σ
    """
    steps = np.array([float(axis[1] - axis[0]) for axis in volume.axes])
    distance = lattice.distance_to_node(volume.axes, steps)
    bright = misfit > BRIGHT
    elsewhere = float(bright[volume.mask & (distance > reach)].mean())
    lows = np.arange(0.0, reach, BRAGG_RING)
    rings = [volume.mask & (distance >= low) & (distance < low + BRAGG_RING) for low in lows]
    share = np.array([float(bright[ring].mean()) if ring.any() else 0.0 for ring in rings])
    there = share > max(BRIGHT_SHARE, BRIGHT_MORE * elsewhere)
    core = volume.mask & (distance < 1.0)
    if not there[:2].any() or core.sum() < 8:
        return 0.0
    ratio = misfit[core] / np.maximum(factor[core], 1e-9)
    centre = float(np.median(ratio))
    if 1.4826 * float(np.median(np.abs(ratio - centre))) < BRAGG_SCATTER * abs(centre):
        return 0.0
    last = int(np.argmin(np.append(there[1:], False))) + 1
    return BRAGG_RING * (last + 1) + 0.5


def _furthest(lattice: PlaneLattice, steps: np.ndarray, fine: int = 12) -> tuple[np.ndarray, float]:
    """The point of a cell, in fractions of its edges, that is furthest from all nodes, and how many pixels."""
    rows, ndim = lattice.nodes / steps, len(lattice.nodes)
    points = np.array(list(itertools.product(np.arange(fine) / fine, repeat=ndim)))
    corners = np.array(list(itertools.product((-1, 0, 1, 2), repeat=ndim)))
    distance = np.linalg.norm((points[:, None] - corners) @ rows, axis=-1).min(1)
    best = int(distance.argmax())
    return points[best], float(distance[best])


def _ring_scatter(volume, lattice: PlaneLattice, reach: float, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Robust relative scatter over the nodes of rings about them, and the part that noise has in it; NaN and 0 where unknown."""
    distance = lattice.distance_to_node(volume.axes, steps)
    x = np.stack(np.meshgrid(*volume.axes, indexing="ij"), -1) - lattice.shift
    node = np.round(x @ lattice.dual.T).astype(int)
    near = (distance < reach + 2.0) & volume.mask
    _, label = np.unique(node[near], axis=0, return_inverse=True)
    label, distance, value = label.ravel(), distance[near], volume.data[near]
    count = int(label.max()) + 1 if len(label) else 0
    around = (distance >= reach) & (distance < reach + 2.0)
    outer = _ring_means(label, value, around, count)
    usable = np.isfinite(outer) & (outer > 0.3 * np.nanmedian(outer)) & (outer > 0) if count else np.zeros(0, dtype=bool)
    square = _ring_means(label, value * value, around, count)
    with np.errstate(invalid="ignore"):
        noise = np.nanmedian(np.sqrt(np.maximum(square - outer**2, 0.0))[usable] / outer[usable]) if usable.any() else 0.0
    lows = np.arange(0.0, reach, BRAGG_RING)
    scatter, expected = np.full(len(lows), np.nan), np.zeros(len(lows))
    for k, low in enumerate(lows):
        ring = (distance >= low) & (distance < low + BRAGG_RING)
        inner = _ring_means(label, value, ring, count)
        both = usable & np.isfinite(inner)
        if both.sum() < 8:
            continue
        ratio = inner[both] / outer[both]
        centre = np.median(ratio)
        if centre > 0.5:
            pixels = max(ring.sum() / max(count, 1), 1.0)
            scatter[k] = 1.4826 * np.median(np.abs(ratio - centre)) / centre
            expected[k] = 2.0 * noise / math.sqrt(pixels * max(centre, 0.1))
    return scatter, expected


def _ring_means(label: np.ndarray, value: np.ndarray, inside: np.ndarray, count: int) -> np.ndarray:
    total = np.bincount(label[inside], value[inside], count)
    number = np.bincount(label[inside], minlength=count)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(number > 0, total / number, np.nan)
