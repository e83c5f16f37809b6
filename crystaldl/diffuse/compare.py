"""Which structural model fits: pairs of molecules ranked against a separated form factor or the intensity itself.

Two criteria, both Gaussian likelihoods of a model ``D = K exp(-2 B s²) |F_A - F_B|²``, s = |Q| / 4π, with K and B free:

* ``"intensity"``: the measured intensity is fitted with the model's D and free short-range order, which is linear. Pixels are
  independent, so the likelihood is what it says.
* ``"form_factor"``: the separated D is fitted. Its values are band-limited by the size d of the molecules, so pixels are not
  independent; χ² is scaled to the number of values that are, ``½ A_Q V_d / (2π)^n`` (A_Q the measured area or volume of
  reciprocal space, V_d the disc or sphere of radius d; Shannon's number, halved since D(Q) = D(-Q)).

Models are compared by ``BIC = χ² / max(1, χ²_best per degree of freedom) + k ln n`` (Schwarz, Ann. Statist. 6, 461, 1978); the
divisor keeps a misfit that all models share from making differences look certain. Probabilities are ``∝ exp(-BIC / 2)``, equal
before.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..errors import DataError
from .compare_fit import Candidate, FixedDesign, Outcome, Target
from .compare_result import FormFactorComparison
from .molecular import Molecule, is_pair
from .sro.inputs import (
    Inputs,
    check_coverage,
    check_volume,
    is_separation,
    pixel_share,
    prepare_inputs,
    resolve_background,
)
from .sro.kernels import Design, Geometry, order_terms
from .sro.solve import solve_design
from .sro.vectors import vector_orbits

__all__ = ["compare_form_factors"]

CRITERIA = ("intensity", "form_factor")


def compare_form_factors(
    parts, models: Mapping, *, scale="free", b_iso="free", rotate=False, criterion="auto", background="auto", shells=6, laue=None,
    centring=None,
) -> FormFactorComparison:  # fmt: skip
    """Rank structural models.

    Parameters
    ----------
    parts : Separation or DiffuseVolume
        A DiffuseVolume is intensity with criterion "intensity" (the default for it) and a separated form factor with
        "form_factor".
    models : mapping of name to (molecule_a, molecule_b)
        Molecules as `Molecule.of` takes them, None for a vacancy; or D itself as a DiffuseVolume, array or callable.
    scale : "free" or float, K
    b_iso : "free" or float
        Overall isotropic B in Å² beside those of the molecules.
    rotate : bool
        Also search for a rotation of both molecules about the centre of the site.
    criterion : {"auto", "intensity", "form_factor"}
        "auto" is "intensity", which tells models apart at fewer counts and needs no separation.
    background : as for `refine_sro`
        With "intensity", "auto" is a polynomial of degree 2 in |Q|² and, with a Separation, its background on a free
        scale; with "form_factor" it is none.
    shells, laue, centring : as for `refine_sro`, for the short-range order of "intensity"

    Returns
    -------
    FormFactorComparison

    Raises
    ------
    DataError
        No or one-sided models, unknown criterion, rotate without molecules, data that hold no lattice or less than a zone.
    """
    models = _check_models(models)
    free = {"scale": _free_or_number(scale, "scale", positive=True), "b_iso": _free_or_number(b_iso, "b_iso")}
    if criterion not in ("auto", *CRITERIA):
        raise DataError(f"criterion is {criterion!r}; expected 'auto', 'intensity' or 'form_factor'.")
    if rotate and not all(is_pair(m) for m in models.values()):
        raise DataError("rotate is asked for, but not every model is a pair of molecules; expected (molecule_a, molecule_b) each.")
    criterion = "intensity" if criterion == "auto" else criterion
    if criterion == "intensity":
        centring = centring or getattr(parts, "centring", None) or "P"
        target = _intensity_target(parts, background, shells, laue, centring)
    else:
        target = _factor_target(parts, background, models)
    outcomes = [Candidate(target, model, free, rotate).run() for model in models.values()]
    return _compare(target, list(models), outcomes, criterion, free, rotate)


def _check_models(models) -> dict:
    if not isinstance(models, Mapping) or not models:
        raise DataError("models is no mapping or empty; expected {name: (molecule_a, molecule_b), …}.")
    out = {}
    for name, model in models.items():
        if isinstance(model, (tuple, list)):
            if len(model) != 2:
                raise DataError(f"models[{name!r}] has {len(model)} entries; expected two molecules, (molecule_a, molecule_b).")
            model = tuple(Molecule.of(m, f"models[{name!r}]") for m in model)
        out[str(name)] = model
    return out


def _free_or_number(value, name: str, positive: bool = False) -> float | None:
    if isinstance(value, str) and value == "free":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = float("nan")
    if isinstance(value, bool) or not np.isfinite(number) or (positive and number <= 0):
        raise DataError(f"{name} is {value!r}; expected 'free' or a {'positive ' if positive else ''}number.")
    return number


# -- what is fitted ----------------------------------------------------------------------------------------------------


def _intensity_target(parts, background, shells, laue, centring) -> Target:
    shape = None
    if is_separation(parts):
        # its background was found with its own D, which every model here replaces: only its shape is kept
        inputs = prepare_inputs(parts, None, None)
        volume, shape = inputs.volume, inputs.fixed if background == "auto" and inputs.fixed.any() else None
    else:
        inputs, volume = None, check_volume(parts, "parts")
    background = 2 if isinstance(background, str) and background == "auto" else background
    fixed, powers = resolve_background(background, volume, volume.q())
    separation = None if inputs is None else inputs.separation
    inputs = Inputs(volume, np.ones(volume.shape), None, fixed, powers, separation)
    orbits = vector_orbits(inputs.volume, shells, None, laue, centring)
    terms = [t for i in range(len(orbits)) for t in order_terms(orbits, i)]
    check_coverage(inputs, centring, 2 + len(terms) + len(inputs.powers))
    used = inputs.used
    design = Design(Geometry.of(inputs.volume), np.ones(inputs.volume.shape), terms, used)
    unit = np.concatenate([block for _, block in design.blocks()], axis=1)
    share = pixel_share(inputs.volume)
    target = _make(inputs, used, (inputs.volume.data - inputs.fixed)[used], np.ones(int(used.sum())), unit)
    if shape is not None:
        target = replace(target, fixed=np.concatenate([target.fixed, shape[used][None]]))
    share = None if share is None else share[used]
    independent = len(target.y) if share is None else float(share.sum())
    return replace(target, share=share, independent=float(independent))


def _factor_target(parts, background, models) -> Target:
    volume = check_volume(parts.form_factor if is_separation(parts) else parts, "parts")
    measured = parts.measured.mask if is_separation(parts) else volume.mask
    fixed, powers = resolve_background("none" if background == "auto" else background, volume, volume.q())
    inputs = Inputs(volume, np.ones(volume.shape), None, fixed, powers)
    used = inputs.used & measured
    if volume.sigma is None:
        weight = np.ones(int(used.sum()))
    else:
        sigma = volume.sigma[used]
        known = sigma[np.isfinite(sigma)]
        # a standard uncertainty that is smaller than a part in a thousand of D says more about a prior than about data
        floor = 1e-3 * float(np.nanmax(np.abs(volume.data[used])))
        weight = 1.0 / np.square(np.maximum(np.nan_to_num(sigma, nan=known.max() if known.size else 1.0), floor))
    target = _make(inputs, used, (volume.data - fixed)[used], weight, np.ones((1, int(used.sum()))))
    longest = max((_reach(m) for m in models.values()), default=0.0)
    step = np.array([a[1] - a[0] for a in volume.axes])
    area = used.sum() * np.sqrt(np.linalg.det(volume.q_metric())) * np.prod(step)
    ball = np.pi * longest**2 if volume.ndim == 2 else 4 / 3 * np.pi * longest**3
    shannon = 0.5 * area * ball / (2 * np.pi) ** volume.ndim
    return replace(target, independent=float(np.clip(shannon, 10.0, used.sum())) if longest else float(used.sum()))


def _make(inputs: Inputs, used, y, weight, unit) -> Target:
    q2 = np.square(inputs.volume.q())[used]
    top = q2.max()
    fixed = np.array([(q2 / top) ** p for p in inputs.powers]).reshape(len(inputs.powers), len(y))
    return Target(inputs, used, y, weight, unit, fixed, q2 / (16 * np.pi**2), None, float(len(y)))


def _reach(model) -> float:
    """Longest vector between atoms of the two variants."""
    if not is_pair(model):
        return 0.0
    xyz = np.concatenate([m.xyz for m in model])
    return float(np.linalg.norm(xyz[:, None] - xyz[None], axis=-1).max()) + 1.0 if len(xyz) else 0.0


# -- all of them ---------------------------------------------------------------------------------------------------


def _compare(target: Target, names, outcomes: list[Outcome], criterion: str, free: dict, rotate: bool) -> FormFactorComparison:
    serial = 1.0
    if criterion == "intensity":
        target, serial = _common_weights(target, outcomes)
    fits = [target.chi2(o.factor[target.used], free["scale"]) for o in outcomes]
    chi2 = np.array([f[0] for f in fits])
    pixels = float(target.share.sum()) if target.share is not None else float(len(target.y))
    independent = target.independent / serial if criterion == "intensity" else target.independent
    chi2 = chi2 * independent / pixels
    k = len(target.unit) + len(target.fixed) + (free["b_iso"] is None) + 3 * rotate - (free["scale"] is not None)
    freedom = max(independent - k, 1.0)
    if criterion == "form_factor" and target.inputs.volume.sigma is None:
        chi2 = chi2 / max(chi2.min() / freedom, 1e-300)
    bic = chi2 / max(1.0, chi2.min() / freedom) + k * np.log(independent)
    relative = np.exp(-0.5 * (bic - bic.min()))
    volume = target.inputs.volume
    models = [theta @ target.columns(o.factor[target.used]) for (_, theta), o in zip(fits, outcomes, strict=True)]
    clean = np.abs(target.y).sum()
    reference = _reference(target, criterion)
    calculated = [theta[0] * o.factor for (_, theta), o in zip(fits, outcomes, strict=True)]
    return FormFactorComparison(
        names=tuple(names), criterion=criterion, chi2=chi2, freedom=freedom, n_independent=independent, bic=bic,
        probability=relative / relative.sum(), r_factor=np.array([np.abs(target.y - m).sum() / clean for m in models]),
        correlation=np.array([_correlation(reference, c, target.used) for c in calculated]),
        scale=np.array([theta[0] for _, theta in fits]), b_iso=np.array([o.b_iso for o in outcomes]),
        rotation=np.array([o.rotation for o in outcomes]), calculated=tuple(calculated),
        observed=None if reference is None else volume.replace(data=reference, mask=None, sigma=None), mask=target.used,
        volume=volume,
    )  # fmt: skip


def _common_weights(target: Target, outcomes) -> tuple[Target, float]:
    """Variances and outliers as the best model has them, the same for all: otherwise a bad model would blame the pixels."""
    volume = target.inputs.volume
    sigma = None if volume.sigma is None else volume.sigma[target.used]
    best = None
    for outcome in outcomes:
        solution = solve_design(FixedDesign(target, outcome.factor[target.used]), target.y, sigma, target.share, robust=True)
        level = float(np.median(np.abs(solution.residual)))
        if best is None or level < best[0]:
            best = (level, solution)
    return replace(target, weight=best[1].weight), best[1].serial


def _reference(target: Target, criterion: str):
    if criterion == "form_factor":
        return target.inputs.volume.data
    parts = target.inputs.separation
    return None if parts is None else parts.form_factor.data


def _correlation(reference, calculated, used) -> float:
    if reference is None:
        return float("nan")
    both = used & np.isfinite(reference)
    return float(np.corrcoef(reference[both], calculated[both])[0, 1])
