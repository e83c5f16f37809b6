"""Which centring the lattice of the order has, where the user gives a conventional cell and does not say.

A centred crystal taken for a primitive one lacks most of its order vectors. The form factor then takes their modulations on
itself, and the product may fit as well as the right one. So the lattices that a plane would have with each centring are
compared: all of them by a coarse factorisation, the best of the centred ones by a full one where that looks promising.
"""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from .factorise import SUPPORT_GAIN, Factorisation, FactoriseOptions, factorise
from .geometry import PlaneLattice, plane_lattice
from .lattice_search import coarse_fit

CENTRED = "CABIF"               # tried in this order; of those that a plane cannot tell apart, the first
PERFECT = 1e-3                  # R free that leaves nothing to explain
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
    if found.r_free < PERFECT:
        return found
    # the same pixels for all: what was left out around the nodes of the primitive lattice takes in those of the others
    used = volume.replace(mask=found.used.cpu().numpy())
    quick = replace(options, links=("reciprocal",), background=0, polish=False, support=None, reach=None)
    small = used.rebin(2) if min(volume.shape) >= 160 else used
    level = coarse_fit(small, lattice, quick, device)[0]
    best = None
    for name, other in centred_lattices(volume, lattice).items():
        value = coarse_fit(small, other, quick, device)[0]
        if value > level:
            best, level = name, value
    if best is None:
        return found
    again = factorise(used, plane_lattice(volume, best), replace(options, centring=best, bragg=None), device=device)
    if again.factors.evidence < found.factors.evidence + SUPPORT_GAIN:
        return found
    return replace(again, bragg_radius=found.bragg_radius)
