"""Warren-Cowley short-range order parameters by linear least squares, with standard uncertainties.

Given the form factor D, the intensity is linear in the unknowns (Cowley, J. Appl. Phys. 21, 24, 1950; Warren, Averbach &
Roberts, J. Appl. Phys. 22, 1493, 1951; Borie & Sparks, Acta Cryst. A27, 198, 1971)::

    I(hkl) = K D(hkl) { 1 + Σ_R α_R cos(2π hkl·R) - Σ_R 2π (hkl·γ_R) sin(2π hkl·R) } + Σ_k b_k |Q|^2k

summed over R and -R. One α belongs to each Laue orbit of lattice vectors; α_000 = 1 fixes what is K and what is α.
"""
from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np

from ...errors import DataError, PlausibilityWarning
from ...physics.lattice import metric_tensor
from .inputs import Inputs, check_coverage, is_separation, pixel_share, prepare_inputs
from .kernels import Design, Geometry, Term, order_terms, order_wave
from .result import SROFit
from .solve import Solution, solve_design
from .vectors import VectorOrbits, vector_orbits

__all__ = ["Advanced", "refine_sro"]


@dataclass(frozen=True)
class Advanced:
    """Options of `refine_sro` that are rarely needed.

    Attributes
    ----------
    concentration : float or None
        Share of one species, 0 to 1; only checks that α is possible, ``α ≥ -min(c/(1-c), (1-c)/c)``.
    serial : bool
        Widen uncertainties where neighbouring residuals are alike (`sro_solve.serial_factor`).
    exact : bool
        For a `Separation` that carries the joint covariance of its α: generalised least squares on these.
    """

    concentration: float | None = None
    serial: bool = True
    exact: bool = True

    def __post_init__(self):
        c = self.concentration
        if c is not None and (isinstance(c, (bool, str)) or not 0 < c < 1):
            raise DataError(f"concentration is {c!r}; expected a share between 0 and 1.")


_FLAG = (bool, np.bool_)


def refine_sro(
    data, *, shells=6, vectors=None, laue=None, form_factor=None, sites=None, background="auto", size_effect=False,
    robust=True, centring=None, **advanced,
) -> SROFit:  # fmt: skip
    """Refine Warren-Cowley parameters.

    Parameters
    ----------
    data : DiffuseVolume or Separation
        Intensity, raw as to D and S (subtract Bragg peaks or mask them), or what `separate` returned.
    shells : int
        Shells of lattice vectors of equal length; on a plane of equal length projected along its zone axis.
    vectors : (n, 3) array_like, optional
        Lattice vectors in place of shells (fractions in a centred cell); each stands for its orbit.
    laue : str, optional
        Laue class whose orbits share one α; by default only R and -R.
    form_factor : DiffuseVolume, array, callable, pair of Molecule, or number
        D = |F_A - F_B|² on any scale, on the same pixels; a callable takes hkl (*shape, 3); a number is a constant.
        By default a raw intensity is separated by physics first. The sigma of a DiffuseVolume is propagated as independent
        from pixel to pixel.
    sites : sequence of Site, optional
        Several disordered sites with known molecules, in place of form_factor; see `sro_sites`.
    background : {"auto", "constant", "none"}, int, array or DiffuseVolume
        ``"auto"`` refines a constant unless D is constant or the data come separated; an integer is the degree of a
        polynomial in |Q|²; an array is subtracted.
    size_effect : bool
        Refine displacement parameters γ_R (a vector of fractional coordinates for each orbit, as symmetry allows) with
        the ratio of the form factors taken as independent of Q.
    robust : bool
        Leave out pixels more than six standard deviations away (residual Bragg peaks, spikes).
    centring : str, optional
        "P", "A", "B", "C", "I", "F" or "R" (obverse); by default that of the separation, or "P".
    **advanced
        Fields of `Advanced`.

    Returns
    -------
    SROFit

    Raises
    ------
    DataError
        One sentence each, before any work: no lattice, less than one zone, fewer pixels than parameters, unknown Laue class
        or one that the lattice does not have, shells or vectors that are none, parameters that the data cannot tell apart.

    Notes
    -----
    Weights are 1/σ² where data has sigma, else from a variance ``a + b I`` estimated from the residuals. The covariance is the
    inverse normal matrix times the reduced χ² times the serial factor; α = coefficient / K by the delta method.
    Equivalent pixels of symmetrised data count once.

    For a Separation with ``alpha_covariance`` (method "physics"), α are the generalised least-squares means of its α over
    each orbit: exact, since that covariance is the joint one of D, S and background. For one without, the measured
    intensity is fitted with the separated D taken as known and its uncertainty added to first order: pixels of D that
    stand for one independent value (their number is that of pixels over Σ S² σ_D² / σ²) are taken as wrong together.
    """
    options = _advanced(advanced)
    _check_kinds(("laue", laue, str), ("centring", centring, str), ("size_effect", size_effect, _FLAG), ("robust", robust, _FLAG))
    if sites is not None:
        from .sites import refine_site_sro

        for name, value in (("form_factor", form_factor), ("laue", laue)):
            if value is not None:
                raise DataError(f"{name} is given beside sites, which have their molecules and no Laue orbits; leave it out.")
        if size_effect:
            raise DataError("size_effect is asked for with several sites, where it is not refined; leave it out.")
        return refine_site_sro(
            data, sites, shells=shells, vectors=vectors, background=background, robust=robust, centring=centring or "P",
            serial=options.serial,
        )  # fmt: skip
    centring = centring or getattr(data, "centring", None) or "P"
    if options.exact and is_separation(data) and getattr(data, "alpha_covariance", None) is not None and not size_effect:
        return _from_covariance(data, shells, vectors, laue, centring, options)
    inputs = prepare_inputs(data, form_factor, background)
    exact = getattr(inputs.separation, "alpha_covariance", None)
    if inputs.separation is not data and options.exact and exact is not None and not size_effect:
        return _from_covariance(inputs.separation, shells, vectors, laue, centring, options)
    orbits = vector_orbits(inputs.volume, shells, vectors, laue, centring)
    return _fit(inputs, orbits, laue, centring, size_effect, robust, options)


def _check_kinds(*given) -> None:
    for name, value, kinds in given:
        if value is not None and not isinstance(value, kinds):
            raise TypeError(f"{name} is a {type(value).__name__}; expected {'text' if kinds is str else 'True or False'}.")


def _advanced(given: dict) -> Advanced:
    known = Advanced.__dataclass_fields__
    unknown = [name for name in given if name not in known]
    if unknown:
        raise TypeError(f"refine_sro got {unknown[0]!r}, which is no option; expected one of {', '.join(known)}.")
    return Advanced(**given)


# -- intensity ------------------------------------------------------------------------------------------------------


def _fit(inputs: Inputs, orbits: VectorOrbits, laue, centring, size_effect, robust, options) -> SROFit:
    terms, kinds = [], []
    for i in range(len(orbits)):
        for k, term in enumerate(order_terms(orbits, i)):
            terms.append(term)
            kinds.append(("alpha" if k == 0 else "odd", i, None))
    if size_effect:
        for i in range(len(orbits)):
            for direction, term in _size_terms(inputs.volume, orbits, i):
                terms.append(term)
                kinds.append(("gamma", i, direction))
    check_coverage(inputs, centring, 1 + len(terms) + len(inputs.powers))
    used = inputs.used
    q2 = inputs.q2() if any(inputs.powers) else None
    design = Design(Geometry.of(inputs.volume), inputs.factor, terms, used, inputs.powers, q2)
    design, kinds = _without_empty(design, kinds)
    y = (inputs.volume.data - inputs.fixed)[used]
    sigma = None if inputs.volume.sigma is None else inputs.volume.sigma[used]
    share = pixel_share(inputs.volume)
    solution = solve_design(design, y, sigma, None if share is None else share[used], robust=robust, serial=options.serial)
    if solution.theta[0] <= 0:
        raise DataError("form_factor does not describe data: the refined scale is not positive.")
    if inputs.factor_sigma is not None:
        solution = _add_factor_uncertainty(inputs, design, solution)
    return _result(inputs, orbits, design, kinds, solution, laue, centring, options)


def _without_empty(design: Design, kinds: list) -> tuple[Design, list]:
    """Drop odd and size-effect columns that vanish on these pixels, or repeat others."""
    nuisance = [i for i, kind in enumerate(kinds) if kind[0] != "alpha"]
    if not nuisance:
        return design, kinds
    n = design.n_used
    matrix, _ = design.normal(np.zeros(n), np.ones(n))
    drop = []
    kept = [0, *(1 + i for i, kind in enumerate(kinds) if kind[0] == "alpha"), *range(1 + len(kinds), design.size)]
    for i in nuisance:
        column = 1 + i
        own = matrix[column, column]
        cross = matrix[kept, column]
        left = own - cross @ np.linalg.pinv(matrix[np.ix_(kept, kept)], rcond=1e-10) @ cross
        if own <= 1e-12 * matrix[0, 0] or left <= 1e-8 * own:
            drop.append(i)
        else:
            kept.append(column)
    return design.without(drop), [kind for i, kind in enumerate(kinds) if i not in set(drop)]


def _size_terms(volume, orbits: VectorOrbits, i: int) -> list[tuple[np.ndarray, Term]]:
    """Displacement directions that symmetry allows for orbit i, and their columns ``-2π Σ_R (hkl·γ_R) sin(2π hkl·R)``."""
    if orbits.quadrature:
        raise DataError(f"size_effect is refined on a plane at offset {orbits.offset:g}; expected a volume or an offset of 0 or ½.")
    vector = orbits.vectors[i]
    images = orbits.operations @ vector
    phase = np.ones(len(images))
    seen = (lambda r: r) if not orbits.projected else (lambda r: r @ volume.basis.T)
    rows = []
    for sign in (1.0, -1.0):
        same = np.abs(seen(images) - sign * seen(vector)).max(1) < 1e-5
        if orbits.projected:
            steps = (images - sign * vector) @ orbits.zone_axis / (orbits.zone_axis @ orbits.zone_axis)
            phase = np.cos(2 * np.pi * orbits.offset * np.round(steps))
        rows.append(phase[same, None, None] * orbits.operations[same] - sign * np.eye(3))
    constraint = np.concatenate(rows).reshape(-1, 3)
    if orbits.projected:  # along the zone axis nothing is seen: take γ perpendicular to it
        constraint = np.concatenate([constraint, (metric_tensor(volume.lattice) @ orbits.zone_axis)[None] / 10.0])
    _, value, right = np.linalg.svd(constraint)
    allowed = right[np.concatenate([value, np.zeros(3 - len(value))]) < 1e-6]
    scale = len(orbits.members[i]) / len(images)
    name = f"γ({', '.join(f'{v:g}' for v in vector)})"
    return [(g, Term(name, images, np.full(len(images), 2j * np.pi * scale), tilt=orbits.operations @ g)) for g in allowed]


def _add_factor_uncertainty(inputs: Inputs, design: Design, solution: Solution) -> Solution:
    """First-order part of the form factor's own uncertainty, see the notes of `refine_sro`."""
    used = inputs.used
    bare = solution.theta.copy()
    bare[1 + len(design.terms) :] = 0.0
    slope = design.predict(bare) / np.where(inputs.factor[used] == 0, np.inf, inputs.factor[used])  # dI/dD = K S
    spread = np.nan_to_num(inputs.factor_sigma[used]) * slope
    together = 1.0
    if inputs.separation is not None:
        values = float((solution.weight * spread**2).sum())  # Σ of leverages: independent values of D
        together = max(1.0, float((solution.weight > 0).sum()) / max(values, 10.0))
    middle, _ = design.normal(np.zeros(len(spread)), (solution.weight * spread) ** 2)
    plain, _ = design.normal(np.zeros(len(spread)), solution.weight)
    inverse = np.linalg.pinv(plain, hermitian=True)
    return replace(solution, covariance=solution.covariance + together * inverse @ middle @ inverse)


def _result(inputs, orbits, design, kinds, solution: Solution, laue, centring, options) -> SROFit:
    theta, covariance = solution.theta, solution.covariance
    scale, n = theta[0], len(kinds)
    value = theta[1 : 1 + n] / scale
    jacobian = np.zeros((n, design.size))
    jacobian[:, 0] = -value / scale
    jacobian[np.arange(n), 1 + np.arange(n)] = 1.0 / scale
    joint = jacobian @ covariance @ jacobian.T
    own = [k for k, kind in enumerate(kinds) if kind[0] == "alpha"]
    alpha, block = value[own], joint[np.ix_(own, own)]
    gamma = gamma_sigma = None
    if any(kind[0] == "gamma" for kind in kinds):
        gamma, variance = np.zeros((len(orbits), 3)), np.zeros((len(orbits), 3))
        for i in range(len(orbits)):
            mine = [k for k, kind in enumerate(kinds) if kind[0] == "gamma" and kind[1] == i]
            if mine:
                directions = np.array([kinds[k][2] for k in mine])
                gamma[i] = value[mine] @ directions
                variance[i] = np.einsum("ki,kl,li->i", directions, joint[np.ix_(mine, mine)], directions)
        gamma_sigma = np.sqrt(variance)
    weights = np.zeros(inputs.volume.shape)
    weights[inputs.used] = solution.weight
    sigma = np.sqrt(np.diag(block))
    _check_alpha(alpha, sigma, options.concentration)
    return SROFit(
        data=inputs.volume, vectors=orbits.vectors, alpha=alpha, sigma=sigma, covariance=block,
        multiplicity=orbits.multiplicity, distance=orbits.distance, orbits=orbits.members,
        r_factor=solution.r_factor, wr_factor=solution.wr_factor, chi2=solution.chi2,
        n_observations=solution.n_observations, scale=float(scale), scale_sigma=float(np.sqrt(covariance[0, 0])),
        calculated=design.everywhere(theta) + inputs.fixed, form_factor=inputs.factor, weights=weights,
        fixed_background=inputs.fixed, groups=orbits, method="intensity", laue=laue or "-1", centring=centring,
        projected=orbits.projected, zone_axis=orbits.zone_axis, background=theta[1 + n :], background_powers=inputs.powers,
        gamma=gamma, gamma_sigma=gamma_sigma,
        n_independent=solution.n_independent, n_outliers=solution.n_outliers, serial=solution.serial,
        concentration=options.concentration,
    )  # fmt: skip


def _check_alpha(alpha, sigma, concentration) -> None:
    low = -1.0 if concentration is None else -min(concentration / (1 - concentration), (1 - concentration) / concentration)
    bad = (alpha < low - 3 * sigma) | (alpha > 1 + 3 * sigma)
    if bad.any():
        k = int(np.flatnonzero(bad)[0])
        warnings.warn(
            f"alpha reaches {alpha[k]:.3g}, outside the possible {low:.3g} to 1; the form factor or the background may be wrong.",
            PlausibilityWarning,
            stacklevel=5,
        )


# -- a separation with its covariance --------------------------------------------------------------------------------


def _from_covariance(parts, shells, vectors, laue, centring, options) -> SROFit:
    """Generalised least squares: α_k of the separation are α of their orbits, with the separation's covariance."""
    inputs = prepare_inputs(parts, None, "auto")
    orbits = vector_orbits(inputs.volume, shells, vectors, laue, centring)
    found, own = np.asarray(parts.alpha_vectors, dtype=float), np.asarray(parts.alpha, dtype=float)
    covariance = np.asarray(parts.alpha_covariance, dtype=float)
    key = _keys(inputs.volume, orbits, found)
    rows, columns = [], []
    for i, members in enumerate(orbits.members):
        mine = set(map(tuple, _keys(inputs.volume, orbits, members)))
        hits = [k for k, v in enumerate(map(tuple, key)) if v in mine]
        if not hits:
            name = ", ".join(f"{v:g}" for v in orbits.vectors[i])
            raise DataError(f"shells reaches ({name}), beyond the vectors of the separation; expected fewer.")
        rows += hits
        columns += [i] * len(hits)
    observed, block = own[rows], covariance[np.ix_(rows, rows)]
    matrix = np.zeros((len(rows), len(orbits)))
    matrix[np.arange(len(rows)), columns] = 1.0
    jitter = 1e-10 * np.trace(block) / len(rows)
    precision = np.linalg.inv(block + jitter * np.eye(len(rows)))
    normal = matrix.T @ precision @ matrix
    joint = np.linalg.inv(normal)
    alpha = joint @ matrix.T @ precision @ observed
    rest = observed - matrix @ alpha
    freedom = len(rows) - len(orbits)
    chi2 = float(rest @ precision @ rest) / freedom if freedom else float("nan")
    if freedom and _improbable(chi2 * freedom, freedom):
        joint = joint * chi2
        warnings.warn(
            f"laue is {laue!r} but the separated parameters differ within its orbits (reduced χ² {chi2:.3g}); "
            "the uncertainties are widened.",
            PlausibilityWarning,
            stacklevel=3,
        )
    sigma = np.sqrt(np.diag(joint))
    _check_alpha(alpha, sigma, options.concentration)
    s = 1.0 + order_wave(orbits, Geometry.of(inputs.volume), alpha)()
    calculated = inputs.factor * s + inputs.fixed
    used = inputs.used
    measured, model = inputs.volume.data[used], calculated[used]
    clean = measured - inputs.fixed[used]
    weight = np.ones(len(measured)) if inputs.volume.sigma is None else 1.0 / np.square(inputs.volume.sigma[used])
    weight = np.nan_to_num(weight)
    return SROFit(
        data=inputs.volume, vectors=orbits.vectors, alpha=alpha, sigma=sigma, covariance=joint,
        multiplicity=orbits.multiplicity, distance=orbits.distance, orbits=orbits.members,
        r_factor=float(np.abs(measured - model).sum() / np.abs(clean).sum()),
        wr_factor=float(np.sqrt((weight * (measured - model) ** 2).sum() / (weight * clean**2).sum())),
        chi2=chi2, n_observations=len(rows), n_independent=float(len(rows)),
        scale=1.0, scale_sigma=float("nan"), calculated=calculated,
        form_factor=inputs.factor, weights=np.zeros(inputs.volume.shape), fixed_background=inputs.fixed, groups=orbits,
        method="separation", laue=laue or "-1", centring=centring, projected=orbits.projected, zone_axis=orbits.zone_axis,
        concentration=options.concentration,
    )  # fmt: skip


def _keys(volume, orbits: VectorOrbits, vectors) -> np.ndarray:
    """Integers that are the same for R and -R, and for vectors of one class of a plane."""
    seen = vectors @ volume.basis.T if orbits.projected else np.asarray(vectors)
    key = np.round(seen * 1e4).astype(np.int64)
    first = key[np.arange(len(key)), (key != 0).argmax(1)]
    return key * np.where(first < 0, -1, 1)[:, None]


def _improbable(chi2: float, freedom: int) -> bool:
    from scipy.stats import chi2 as distribution

    return bool(distribution.sf(chi2, freedom) < 1e-3)
