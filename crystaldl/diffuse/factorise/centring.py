"""Which centring the lattice of the order has, where the user gives a conventional cell and does not say.

A centred crystal taken for a primitive one lacks most of its order vectors. The form factor then takes their modulations on
itself, and the product may fit as well as the right one. So the lattices that a plane would have with each centring are
compared: those that the outcome with the primitive lattice gives any reason for by a coarse factorisation, the best of them by
a full one where that looks promising.
"""
from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from ..geometry import PlaneLattice, plane_lattice, vectors_within
from .finer import REPEATS
from .lattice_search import coarse_fit
from .looks import SUPPORT_GAIN
from .solver import Factorisation, FactoriseOptions, factorise, held_out
from .uncertainty import order_covariance

CENTRED = "CABIF"               # tried in this order; of those that a plane cannot tell apart, the first
PERFECT = 1e-3                  # R free that leaves nothing to explain
REACH = 1.5                     # cells: vectors that are looked at
SIDE = 2.0                      # over the extent of the data: how far from a vector D is compared with
CONTROLS, STANDS_OUT = 24, 6.0  # as long vectors, and how many times their median sharpness says that one stands out
SEEN = 5.0                      # standard uncertainties of an α that is there
HEXAGONAL = 1e-3                # relative, of the edges and in degrees of the angles


def centred_lattices(volume, start: PlaneLattice) -> dict[str, PlaneLattice]:
    """Lattices of a plane under the centrings that it tells from ``start`` and from each other."""
    a, b, _, alpha, beta, gamma = volume.lattice
    hexagonal = abs(a - b) < HEXAGONAL * a and max(abs(alpha - 90.0), abs(beta - 90.0), abs(gamma - 120.0)) < HEXAGONAL
    found: dict[str, PlaneLattice] = {}
    for name in CENTRED + "R" * hexagonal:
        other = plane_lattice(volume, name)
        if not any(_alike(other, known) for known in (start, *found.values())):
            found[name] = other
    return found


def _alike(a: PlaneLattice, b: PlaneLattice) -> bool:
    """Whether two lattices have the same nodes."""
    turn, shift = a.nodes @ np.linalg.inv(b.nodes), (a.shift - b.shift) @ np.linalg.inv(b.nodes)
    whole = all(np.abs(v - np.round(v)).max() < 1e-6 for v in (turn, shift))
    return bool(whole and abs(abs(np.linalg.det(turn)) - 1.0) < 1e-6)


def promising(volume, lattice: PlaneLattice, other: PlaneLattice, found: Factorisation) -> bool:
    """Whether D has a modulation, or the misfit one of S, along a short vector that ``other`` has and ``lattice`` has not."""
    factors = found.factors
    weight, factor = (t.cpu().numpy() for t in (factors.weight, factors.fields.factor))
    residual = (found.problem.intensity - factors.fields.model).cpu().numpy()
    cell = math.sqrt(lattice.cell_measure)
    vectors = vectors_within(other.dual, other.metric, REACH * cell) @ other.dual
    share = vectors @ lattice.nodes.T
    vectors = vectors[np.abs(share - np.round(share)).max(1) > 1e-6]
    if not len(vectors):
        return False
    centre = np.zeros(2) if lattice.centre is None else lattice.centre
    axes = [axis - c for axis, c in zip(volume.axes, centre, strict=True)]
    gradient = _sums(weight * factor * residual, axes, vectors)
    if np.square(np.abs(gradient)).mean() > REPEATS * (weight * factor**2).sum():
        return True
    flat = factor / found.problem.basis.envelope.cpu().numpy()
    window = np.outer(*(np.hanning(n + 2)[1:-1] for n in flat.shape))
    flat = window * (flat - (window * flat).sum() / window.sum())
    sides = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j])
    sides = SIDE * sides / np.array([np.ptp(axis) for axis in axes])

    def sharp(points: np.ndarray) -> np.ndarray:
        around = _sums(flat, axes, (points[:, None] + sides).reshape(-1, 2)).reshape(len(points), -1)
        return np.abs(_sums(flat, axes, points) - around.mean(1))

    vectors = vectors[other.length(vectors) <= found.support]
    if not len(vectors):
        return False
    to_cartesian = np.linalg.cholesky(lattice.metric)
    turn = np.linspace(0.0, np.pi, CONTROLS, endpoint=False) + 0.1
    turns = np.stack([np.cos(turn), np.sin(turn), -np.sin(turn), np.cos(turn)], -1).reshape(-1, 1, 2, 2)
    turned = ((vectors @ to_cartesian)[None, :, None] @ turns).reshape(-1, 2) @ np.linalg.inv(to_cartesian)
    return bool(sharp(vectors).max() > STANDS_OUT * np.median(sharp(turned)))


def _sums(weight: np.ndarray, axes, frequency: np.ndarray) -> np.ndarray:
    """``Σ w exp(2πi ν·x)`` at a few frequencies (n, 2)."""
    rows, columns = (np.exp(2j * np.pi * np.outer(axis, frequency[:, i])) for i, axis in enumerate(axes))
    return ((weight @ columns) * rows).sum(0)


def _keeps_up(volume, lattice: PlaneLattice, options: FactoriseOptions, found: Factorisation, device) -> bool:
    """Whether another lattice is as good once its search has chosen support and form of S, long before the fit is at its end."""
    held = held_out(found.used, options).cpu().numpy()
    seen = volume.replace(mask=np.array(volume.mask) & ~held)
    return coarse_fit(seen, lattice, options, device, whole=True)[0] > max(found.evidence.values())


def _ordered(found: Factorisation, lattice: PlaneLattice) -> bool:
    """Whether there is any order along the vectors that ``lattice`` has not: if not, S repeats on that one too."""
    alpha, covariance = (t.cpu().numpy() for t in order_covariance(found.problem, found.factors))
    vectors = found.problem.basis.order.cpu().numpy() / np.array(found.denominators) @ found.start_lattice.cpu().numpy().T
    share = vectors @ lattice.nodes.T
    own = np.abs(share - np.round(share)).max(1) > 1e-6
    return bool((np.abs(alpha[own]) > SEEN * np.sqrt(np.diag(covariance)[own])).any())


def factorise_centred(volume, lattice: PlaneLattice, options: FactoriseOptions, found: Factorisation, *,
                      device: torch.device | str = "cpu") -> Factorisation:
    """The factorisation of a plane with another centring, where the evidence is for it; otherwise ``found``.

    Parameters
    ----------
    volume : DiffuseVolume
        A plane with lattice.
    lattice : PlaneLattice
        The primitive one.
    options : FactoriseOptions
    found : Factorisation
        With the primitive lattice.
    device : torch.device
    """
    lattices = {name: other for name, other in centred_lattices(volume, lattice).items()
                if found.r_free >= PERFECT and promising(volume, lattice, other, found)}
    if not lattices:
        return found
    # the same pixels for all: what was left out around the nodes of the primitive lattice takes in those of the others
    used = volume.replace(mask=found.used.cpu().numpy())
    # both forms of S: one alone may not have got anywhere with the lattice that is right, and the full fit is dear
    links = tuple(link for link in options.links if link != "positive") or options.links
    quick = replace(options, links=links, background=0, polish=False, support=None, reach=None)
    small = used.rebin(2) if min(volume.shape) >= 160 else used
    level, best = coarse_fit(small, lattice, quick, device)[0], None
    for name, other in lattices.items():
        value = coarse_fit(small, other, quick, device)[0]
        if value > level:
            best, level = name, value
    if best is None:
        return found
    other, own = plane_lattice(volume, best), replace(options, centring=best)
    if found.problem.peaks is None:
        own = replace(own, bragg=None)
        if not _keeps_up(used, other, own, found, device):
            return found
    else:                   # what Bragg peaks leave on the other pixels looks like order: with peaks once more, on all of them
        used = volume
    again = factorise(used, other, own, device=device)
    if again.factors.evidence < found.factors.evidence + SUPPORT_GAIN or not _ordered(again, lattice):
        return found
    return again if found.problem.peaks is not None else replace(again, bragg_radius=found.bragg_radius)
