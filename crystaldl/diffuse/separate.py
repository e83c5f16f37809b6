"""`separate`: molecular form factor and short-range order of a plane or volume.

Methods:

``"physics"``
    The factorisation by least squares with cosines of α (`factorise`, linear form only), on pixels as given.
``"dsfunet"``
    The published two-network architecture, re-trained (`dsfunet`).
``"unrolled"``
    Rounds of least squares with learned denoisers in between, which know the lattice (`unrolled`).
``"auto"``
    The factorisation with everything it can decide: Bragg residues found and fitted, background, refined repeats, support,
    and S or 1/S as the short series.
"""
from __future__ import annotations

import math
import warnings
from dataclasses import fields

import numpy as np
import torch
from tqdm import tqdm

from ..errors import DataError
from ..physics.device import resolve_device
from .blank import blank_pixels
from .factorise.centring import factorise_centred
from .factorise.gauss_newton import Problem
from .factorise.solver import Factorisation, FactoriseOptions, factorise, plain_centring, r_factor
from .factorise.states import State
from .factorise.uncertainty import hidden_mode, order_covariance, sigma_maps
from .geometry import PlaneLattice, centring_vectors, pixel_lattice, plane_lattice
from .separation import Separation
from .volume import DiffuseVolume

METHODS = ("auto", "physics", "dsfunet", "unrolled")
NETWORKS = ("dsfunet", "unrolled")
APPLIES = 0.15
"""R above which the product model is said not to apply, unless noise alone explains it."""
UNSEEN = 0.1
"""Standard uncertainty of the mean of S over what no pixel sees, from which the verdict mentions it."""


def separate(volume: DiffuseVolume, *, method: str = "auto", model: str | None = None, device: str = "auto",
             progress: bool = True, **options) -> Separation:
    """Factorise diffuse scattering into molecular form factor and short-range order.

    Parameters
    ----------
    volume : DiffuseVolume
        A plane or a 3-D volume; unmeasured pixels masked. A plane from `DiffuseVolume.from_pixels` gets its repeats from
        the data.
    method : {"auto", "physics", "dsfunet", "unrolled"}
    model : str, optional
        Exact name of a network (``method="dsfunet"`` or ``"unrolled"``).
    device : str
        "auto", "cpu", "cuda", …; the factorisation needs float64 and uses the CPU where a device has none.
    progress : bool
        Whether to show a bar.
    **options
        Fields of `factorise.FactoriseOptions`: support, support_vectors, reach, links, background, bragg, robust, polish,
        centring, blank, holdout, seed.

    Returns
    -------
    Separation

    Raises
    ------
    DataError
        Unknown method or option, no whole zone measured, nothing positive.
    """
    if not isinstance(volume, DiffuseVolume):
        raise TypeError(f"volume is a {type(volume).__name__}, expected a DiffuseVolume.")
    if method not in METHODS:
        raise DataError(f"method is {method!r}, expected one of {', '.join(map(repr, METHODS))}.")
    if model is not None and method not in NETWORKS:
        raise DataError(f"model is {model!r}, but method {method!r} uses no network; expected method='dsfunet' or 'unrolled'.")
    known = {f.name for f in fields(FactoriseOptions)}
    if set(options) - known:
        raise DataError(f"unknown option {sorted(set(options) - known)[0]!r}, expected some of {', '.join(sorted(known))}.")
    if method == "physics":
        options = {"links": ("linear",), "bragg": None, "background": 0, "polish": False} | options
    if not isinstance(progress, (bool, np.bool_)):
        raise TypeError(f"progress is a {type(progress).__name__}; expected True or False.")
    choices = FactoriseOptions(**options)
    place = _device(device)
    given = volume
    if choices.blank:
        known = None if given.lattice is None else plane_lattice(given, plain_centring(choices.centring))
        volume = _without_blank(given, known)
    lattice = _lattice(volume, choices, place)
    if volume is not given and given.lattice is None:
        volume = _without_blank(given, lattice, warn=False)
    if method in NETWORKS:
        return _by_network(volume, lattice, choices, method, model, device)
    with tqdm(total=3, desc="separating", unit="step", disable=not progress, leave=False) as bar:

        def report(text: str) -> None:
            bar.set_postfix_str(text)
            bar.update()

        found = factorise(volume, lattice, choices, device=place, report=report)
        if volume.ndim == 2 and volume.lattice is not None and found.centring != choices.centring:
            found = factorise_centred(volume, lattice, choices, found, device=place)
    return _result(volume, found, choices, method)


def _without_blank(volume: DiffuseVolume, lattice: PlaneLattice | None, *, warn: bool = True) -> DiffuseVolume:
    """The volume with areas that were stored as zeros masked, and a warning where there are any."""
    blank = blank_pixels(volume, lattice)
    number = int(blank.sum())
    if not number or number == int(volume.mask.sum()):
        return volume
    if warn:
        warnings.warn(f"{number} pixels lie in areas of exactly one value with bright neighbours and are taken for not measured; "
                      "mask them, or pass blank=False to have them fitted.", stacklevel=4)
    return volume.replace(mask=np.array(volume.mask) & ~blank, history=f"separate: {number} pixels of blank areas left out")


def _device(name: str) -> torch.device:
    device = resolve_device(name)
    return torch.device("cpu") if device.type == "mps" else device


def _lattice(volume: DiffuseVolume, choices: FactoriseOptions, device: torch.device) -> PlaneLattice:
    if volume.lattice is not None:
        return plane_lattice(volume, plain_centring(choices.centring))
    from .factorise.lattice_search import find_centre, find_lattice

    centre = find_centre(volume)
    return pixel_lattice(find_lattice(volume, choices, centre=centre, device=device), centre)


def _result(volume: DiffuseVolume, found: Factorisation, choices: FactoriseOptions, method: str) -> Separation:
    factors, problem = found.factors, found.problem
    sigma_d, sigma_s = (t.cpu().numpy() for t in sigma_maps(problem, factors))
    out = {name: getattr(factors.fields, name).cpu().numpy() for name in ("factor", "order", "background")}
    if factors.fields.peaks is not None:
        out["background"] = out["background"] + factors.fields.peaks.cpu().numpy()

    def part(data, sigma, text) -> DiffuseVolume:
        return volume.replace(data=data, sigma=sigma, mask=None, history=f"separate: {text}")

    vectors, alpha, covariance = _order(volume, found)
    used = found.used.cpu().numpy()
    r = r_factor(problem.intensity, factors.fields.model, found.used)
    scale = (factors.state.grid.to_lattice.cpu() @ torch.linalg.inv(found.start_lattice).cpu()).numpy()
    period = found.lattice.nodes @ np.linalg.inv(scale)
    shown = found.r_free if np.isfinite(found.r_free) else r
    applies = bool(shown < APPLIES or shown < 1.3 * noise_r(volume, used))
    return Separation(
        measured=volume, form_factor=part(out["factor"], sigma_d, "form factor"),
        sro=part(out["order"], sigma_s, "short-range order"), background=part(out["background"], None, "background"),
        method=method, link=found.link, r_factor=r, r_free=found.r_free, lattice=_refined_cell(volume, scale),
        period=period, support=found.support, centring=found.centring, bragg_radius=found.bragg_radius, used=used,
        verdict=_verdict(applies, shown) + _unseen(problem, factors.state), applies=applies,
        alpha_vectors=vectors, alpha=alpha, alpha_covariance=covariance, parameters=_plain(choices),
    )


def _plain(choices: FactoriseOptions) -> dict:
    out = {f.name: getattr(choices, f.name) for f in fields(choices)}
    vectors = out.pop("support_vectors")
    return out if vectors is None else out | {"support_vectors": np.array(vectors, dtype=float)}


def noise_r(volume: DiffuseVolume, used: np.ndarray) -> float:
    """R that noise alone would give, from second differences along the axes: mean |x₋ − 2x + x₊| / √6 over the mean."""
    data = np.where(used, volume.data, np.nan)
    parts = []
    for axis in range(data.ndim):
        moved = np.moveaxis(data, axis, 0)
        parts.append(np.abs(moved[:-2] - 2.0 * moved[1:-1] + moved[2:]).ravel())
    rough = np.concatenate(parts)
    rough = rough[np.isfinite(rough)]
    return float(rough.mean() / math.sqrt(6.0) / np.nanmean(np.abs(data))) if len(rough) else 0.0


def _verdict(applies: bool, r: float) -> str:
    if applies:
        return f"form factor × order describes the data (R {100 * r:.1f} %)"
    why = "displacements, several sites or residues may dominate"
    return f"form factor × order does not describe the data (R {100 * r:.0f} %): {why}"


def _unseen(problem: Problem, state: State) -> str:
    """What to say about the part of the cell that no pixel sees, where that matters."""
    mode = hidden_mode(problem, state)
    if mode is None or mode.spread < UNSEEN:
        return ""
    return f"; no pixel sees {100 * mode.share:.0f} % of the cell of S, whose mean there is uncertain by {mode.spread:.2g}"


def _order(volume: DiffuseVolume, found: Factorisation):
    """α of one of each ±R as 3-D lattice vectors, with covariance; None where there is no lattice or S is not even."""
    basis = found.problem.basis
    if volume.lattice is None or bool(basis.order_sine.any()):
        return None, None, None
    alpha, covariance = (t.cpu().numpy() for t in order_covariance(found.problem, found.factors))
    # cycles a unit of u, then of the axis coordinates
    frequency = basis.order.cpu().numpy() / np.array(found.denominators) @ found.start_lattice.cpu().numpy().T
    vectors = direct_vectors(frequency, np.asarray(volume.basis, float), found.centring)
    # the cosines are those of x, not of Q = o + x; a node lies at o + shift, so o·R = −shift·R but for whole cycles
    sign = np.where(np.cos(2.0 * math.pi * (frequency @ found.lattice.shift)) < 0, -1.0, 1.0)
    return vectors, sign * alpha, sign[:, None] * covariance * sign


def direct_vectors(frequency: np.ndarray, basis: np.ndarray, centring: str) -> np.ndarray:
    """Lattice vectors R (n, 3) with ``R · basis_i = frequency_i``, the shortest in indices where a plane leaves a choice."""
    if len(basis) == 3:
        return frequency @ np.linalg.inv(basis).T
    normal = np.cross(basis[0], basis[1])
    particular = frequency @ np.linalg.pinv(basis).T
    points = centring_vectors(centring)
    grid = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    offsets = (points[:, None] + grid[None]).reshape(-1, 3)
    out = np.empty_like(particular)
    unit = normal / np.linalg.norm(normal)
    for i, start in enumerate(particular):
        # lattice points near the line start + t · unit
        near = offsets + np.round(start)
        step = near - start
        off = step - np.outer(step @ unit, unit)
        on = np.square(off).sum(1) < 1e-8
        out[i] = near[on][np.argmin(np.abs(step[on] @ unit))] if on.any() else start
    return out


def _refined_cell(volume: DiffuseVolume, scale: np.ndarray):
    """Cell whose repeats along the axes are the refined ones; unchanged in directions the plane does not contain."""
    if volume.lattice is None:
        return None
    cell = np.array(volume.lattice, float)
    for i, row in enumerate(volume.basis):
        along = np.flatnonzero(np.abs(row) > 1e-9)
        if len(along) == 1:                     # u = x·scale: a repeat of 1/scale in x is a cell edge longer by scale
            cell[along[0]] *= scale[i, i]
    return tuple(cell)


def _by_network(volume: DiffuseVolume, lattice: PlaneLattice, choices: FactoriseOptions, method: str, model,
                device) -> Separation:
    from .dsfunet import run_dsfunet
    from .unrolled import run_unrolled

    if volume.ndim != 2:
        raise DataError(f"method {method!r} works on planes, but the volume has three dimensions; expected volume.plane(…).")
    if method == "unrolled":
        factor, order, background, card = run_unrolled(volume, lattice, model=model, device=device)
    else:
        factor, order, card = run_dsfunet(volume, lattice, model=model, device=device)
        background = np.zeros_like(factor)
    measured = np.where(volume.mask, volume.data, 0.0)
    r = float(np.abs(measured - factor * order - background)[volume.mask].sum() / np.abs(measured).sum())
    part = {name: volume.replace(data=data, sigma=None, mask=None, history=f"separate: {name}") for name, data in
            (("form factor", factor), ("short-range order", order), ("background", background))}
    return Separation(
        measured=volume, form_factor=part["form factor"], sro=part["short-range order"], background=part["background"],
        method=method, link="network", r_factor=r, r_free=float("nan"), lattice=volume.lattice, period=lattice.nodes,
        support=float("nan"), centring=plain_centring(choices.centring), bragg_radius=0.0, used=np.array(volume.mask),
        verdict=_verdict(r < APPLIES, r), applies=r < APPLIES, model=card.name, model_sha256=card.sha256,
    )
