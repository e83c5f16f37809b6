"""Short-range order of several disordered sites, each with two known variants.

With the site centres r_s and the contrasts ΔF_s = F_A,s - F_B,s the intensity does not factorise, yet is linear in the
correlations α_st,R of site s in cell n + R with site t in cell n::

    I = K Σ_st Σ_R √(m_s m_t) ΔF_s ΔF_t* exp(iQ·(r_s - r_t)) α_st,R exp(2πi hkl·R) + background,      m = c (1 - c)

with α_ss,0 = 1 and α_ts,-R = α_st,R: for s ≠ t R and -R are different distances, and both are parameters. Which variant of
a site is called A sets the sign of its α with other sites.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from ...errors import DataError
from ...physics.lattice import cell_matrix
from ..geometry import centring_vectors
from ..molecular import Molecule
from .inputs import Inputs, check_coverage, check_volume, is_separation, pixel_share, resolve_background
from .kernels import Design, Geometry, Term
from .result import SROFit
from .solve import solve_design
from .vectors import MAX_SHELLS, SAME_LENGTH, VectorOrbits, in_lattice, lattice_points, zone_axis

__all__ = ["Site", "refine_site_sro", "site_products"]

_EPS = 1e-5


@dataclass(frozen=True, eq=False)
class Site:
    """A disordered site of the unit cell.

    Parameters
    ----------
    position : (3,) fractional coordinates of its centre
    molecule_a, molecule_b : Molecule (or what `Molecule.of` takes; None is a vacancy), Cartesian Å from the centre
    concentration : float, share of A
    """

    position: Sequence[float]
    molecule_a: Molecule
    molecule_b: Molecule
    concentration: float = 0.5

    def __post_init__(self):
        try:
            position = np.array(self.position, dtype=float)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            position = np.empty(0)
        if position.shape != (3,) or not np.isfinite(position).all():
            raise DataError(f"position is {self.position!r}; expected three fractional coordinates.")
        if isinstance(self.concentration, bool) or not isinstance(self.concentration, Real) or not 0 < self.concentration < 1:
            raise DataError(f"concentration is {self.concentration!r}; expected a share between 0 and 1.")
        position.setflags(write=False)
        object.__setattr__(self, "position", position)
        object.__setattr__(self, "molecule_a", Molecule.of(self.molecule_a, "molecule_a"))
        object.__setattr__(self, "molecule_b", Molecule.of(self.molecule_b, "molecule_b"))

    @property
    def variance(self) -> float:
        """m = c (1 - c)."""
        return self.concentration * (1 - self.concentration)


def site_products(volume, sites: Sequence[Site]) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """What multiplies the correlations.

    Returns
    -------
    factor : (*shape) Σ_s m_s |ΔF_s|²
    contrasts : list of (*shape) complex, √m_s ΔF_s exp(iQ·r_s)
    """
    q = volume.q_vectors()
    hkl = volume.hkl()
    contrasts = []
    for site in sites:
        change = site.molecule_a.form_factor(q, volume.radiation) - site.molecule_b.form_factor(q, volume.radiation)
        contrasts.append(np.sqrt(site.variance) * change * np.exp(2j * np.pi * (hkl @ site.position)))
    factor = sum(c.real**2 + c.imag**2 for c in contrasts)
    return factor, contrasts


def refine_site_sro(data, sites, *, shells=6, vectors=None, background="auto", robust=True, centring="P", serial=True) -> SROFit:
    """Refine α_st,R of several disordered sites; called by `refine_sro` with ``sites``.

    Parameters
    ----------
    data : DiffuseVolume
    sites : sequence of Site
    shells : int
        All pairs up to so many different distances between site centres. On a plane distances are projected, and the sum
        of α_ss along the zone axis is taken to be the same for all sites.
    vectors : (n, 3) array_like, in place of shells: these lattice vectors for every pair of sites
    background, robust, centring
        As for `refine_sro`.

    Returns
    -------
    SROFit
        With ``pairs`` (n, 2); ``vectors`` are R and ``distance`` is |R + r_s - r_t|.
    """
    volume = check_volume(data.measured if is_separation(data) else data)
    sites = _check_sites(sites)
    found = _vectors_of_pairs(volume, sites, shells, vectors, centring)
    factor, contrasts = site_products(volume, sites)
    fixed, powers = resolve_background(background, volume, factor)
    products, index, terms = [], {}, []
    for s, t, r in found.rows:
        if (s, t) not in index:
            index[s, t] = len(products)
            products.append(contrasts[s] * contrasts[t].conj())
        terms.append(Term(f"α{s}{t}({', '.join(f'{v:g}' for v in r)})", np.array([r]), np.array([2.0 + 0j]), product=index[s, t]))
    inputs = Inputs(volume, factor, None, fixed, powers)
    check_coverage(inputs, centring, 1 + len(terms) + len(powers))
    used = inputs.used
    design = Design(Geometry.of(volume), factor, terms, used, powers, inputs.q2() if any(powers) else None, np.array(products))
    sigma = None if volume.sigma is None else volume.sigma[used]
    share = pixel_share(volume)
    y = (volume.data - fixed)[used]
    solution = solve_design(design, y, sigma, None if share is None else share[used], robust=robust, serial=serial)
    if solution.theta[0] <= 0:
        raise DataError("sites do not describe data: the refined scale is not positive.")
    return _result(inputs, found, design, solution, centring)


def _check_sites(sites) -> list[Site]:
    try:
        sites = list(sites)
    except TypeError:
        sites = []
    if not sites or not all(isinstance(s, Site) for s in sites):
        raise DataError("sites is no sequence of Site; expected a Site(position, molecule_a, molecule_b) for each disordered site.")
    return sites


@dataclass(frozen=True, eq=False)
class _Pairs:
    rows: list            # (s, t, R)
    distance: np.ndarray
    axis: np.ndarray | None


def _vectors_of_pairs(volume, sites, shells, vectors, centring) -> _Pairs:
    """Pairs of sites and lattice vectors that differ on this volume, nearest first."""
    cell = cell_matrix(volume.lattice)
    axis = zone_axis(volume.basis, centring) if volume.ndim == 2 else None
    offset = 0.0 if axis is None else float(volume.origin @ axis)
    if axis is not None and abs(2 * offset - round(2 * offset)) > _EPS:
        raise DataError(f"data is a plane at offset {offset:g}; with several sites a volume or a plane through 0 or ½ is expected.")
    if vectors is None:
        if isinstance(shells, bool) or not isinstance(shells, (int, np.integer)) or not 1 <= shells <= MAX_SHELLS:
            raise DataError(f"shells is {shells!r}; expected a whole number from 1 to {MAX_SHELLS}.")
        radius = min(volume.lattice[:3])
        while True:
            pairs = _collect(volume, sites, _points(volume, radius, centring, sites, axis), axis, cell)
            inside = pairs.distance <= radius
            steps = np.flatnonzero(np.diff(pairs.distance[inside]) > SAME_LENGTH * pairs.distance[inside][1:]) + 1
            if len(steps) >= shells:
                n = int(steps[shells - 1])
                return _Pairs(pairs.rows[:n], pairs.distance[:n], axis)
            radius *= 1.3
    try:
        points = np.atleast_2d(np.asarray(vectors, dtype=float))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        points = np.empty((0, 0))
    if points.ndim != 2 or points.shape[1] != 3 or not len(points) or not np.isfinite(points).all():
        raise DataError("vectors is no (n, 3) array of lattice vectors.")
    if not in_lattice(points, centring).all():
        raise DataError(f"vectors holds rows that are no vectors of a {centring} lattice.")
    return _collect(volume, sites, np.concatenate([points, -points]), axis, cell)


def _points(volume, radius, centring, sites, axis) -> np.ndarray:
    """Lattice vectors, the origin among them, that may join two sites within a (projected) distance."""
    cell = cell_matrix(volume.lattice)
    spread = max(np.linalg.norm((a.position - b.position) @ cell) for a in sites for b in sites)
    thick = 0.0 if axis is None else 0.5 * np.linalg.norm(axis @ cell)
    points = lattice_points(volume.lattice, float(np.hypot(radius + spread, thick + spread)), centring)
    return np.concatenate([centring_vectors(centring)[:1], points])


def _collect(volume, sites, points, axis, cell) -> _Pairs:
    rows, distance, seen = [], [], set()
    unit = None if axis is None else (axis @ cell) / np.linalg.norm(axis @ cell)
    for s in range(len(sites)):
        for t in range(s, len(sites)):
            join = (points + sites[s].position - sites[t].position) @ cell
            full = np.linalg.norm(join, axis=1)
            length = full if unit is None else np.linalg.norm(join - np.outer(join @ unit, unit), axis=1)
            for k in np.lexsort((full, np.round(length, 6))):
                r = points[k]
                key = np.round((r if axis is None else volume.basis @ r) * 1e5).astype(int)
                if s == t:
                    first = key[np.flatnonzero(key)[:1]]
                    if not len(first):
                        continue
                    key = key * np.sign(first[0])
                if (s, t, *key) not in seen:
                    seen.add((s, t, *key))
                    rows.append((s, t, r))
                    distance.append(length[k])
    order = np.argsort(np.round(distance, 6), kind="stable")
    return _Pairs([rows[i] for i in order], np.array(distance)[order], axis)


def _result(inputs, found: _Pairs, design: Design, solution, centring) -> SROFit:
    n = len(found.rows)
    scale = solution.theta[0]
    alpha = solution.theta[1 : 1 + n] / scale
    jacobian = np.zeros((n, design.size))
    jacobian[:, 0] = -alpha / scale
    jacobian[np.arange(n), 1 + np.arange(n)] = 1.0 / scale
    joint = jacobian @ solution.covariance @ jacobian.T
    weights = np.zeros(inputs.volume.shape)
    weights[inputs.used] = solution.weight
    vectors = np.array([r for _, _, r in found.rows])
    members = tuple(np.array([r, -r]) if s == t else np.array([r]) for s, t, r in found.rows)
    groups = VectorOrbits(vectors, members, np.eye(3)[None], np.ones(1), found.distance, found.axis)
    return SROFit(
        data=inputs.volume, vectors=vectors, alpha=alpha, sigma=np.sqrt(np.diag(joint)), covariance=joint,
        multiplicity=groups.multiplicity, distance=found.distance, orbits=members, r_factor=solution.r_factor,
        wr_factor=solution.wr_factor, chi2=solution.chi2, n_observations=solution.n_observations, scale=float(scale),
        scale_sigma=float(np.sqrt(solution.covariance[0, 0])), calculated=design.everywhere(solution.theta) + inputs.fixed,
        form_factor=inputs.factor, weights=weights, fixed_background=inputs.fixed, groups=groups, method="sites",
        centring=centring, projected=found.axis is not None, zone_axis=found.axis,
        background=solution.theta[1 + n :], background_powers=inputs.powers,
        pairs=np.array([(s, t) for s, t, _ in found.rows]), n_independent=solution.n_independent,
        n_outliers=solution.n_outliers, serial=solution.serial,
    )  # fmt: skip
