"""Chemical short-range order of a binary lattice: Monte Carlo, mean-field and damped-oscillator correlations.

Conventions of the whole module
-------------------------------
* A lattice vector R is a row of integers in units of the primitive lattice vectors (2 or 3 numbers). A list ``vectors``
  (n, d) holds **one of each pair ±R** and never R = 0.
* ``alpha`` (n,) are Warren-Cowley parameters, ``⟨Δc(0) Δc(R)⟩ / c(1-c)``: 1 at R = 0, positive where like neighbours are
  preferred. The diffuse modulation is ``S(h) = 1 + 2 Σ α_R cos(2π h·R)`` over the list, which is
  ``1 + Σ_{R≠0} α_R cos(2π h·R)`` over both signs; α_0 = 1 counts once, so the mean of S over a zone is 1.
* Interactions are those of Ising spins σ = ±1 (A: +1, share ``concentration``): ``E / kT = Σ_bonds J_R σ_i σ_{i+R}``, each
  bond counted once. J > 0 prefers unlike neighbours. To first order ``α_R = -4 c(1-c) J_R``; on a chain with
  c = ½ exactly ``α_n = (-tanh J)^n``. (In lattice-gas terms the pair energy is V = 4 J.)

Sources: Cowley, Phys. Rev. 77 (1950) 669; Krivoglaz, Theory of X-ray and Thermal Neutron Scattering (1969); Clapp and Moss,
Phys. Rev. 142 (1966) 418; Kawasaki, Phys. Rev. 145 (1966) 224.
"""
from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numba import njit

from ..errors import DataError
from .geometry import half_space

GRID = {1: 1024, 2: 128, 3: 48}      # points an axis of the cell on which S is checked


@lru_cache(maxsize=32)
def _lattice_vectors(cutoff: float, metric: tuple, ndim: int) -> np.ndarray:
    m = np.array(metric).reshape(ndim, ndim)
    reach = np.floor(cutoff * np.sqrt(np.diag(np.linalg.inv(m))) + 1e-9).astype(int)
    grid = np.array(list(itertools.product(*(range(-n, n + 1) for n in reach))))
    length = np.sqrt(np.einsum("ni,ij,nj->n", grid, m, grid))
    keep = half_space(grid, zero=False) & (length <= cutoff + 1e-9)
    order = np.lexsort((*grid[keep].T[::-1], np.round(length[keep], 9)))
    result = grid[keep][order]
    result.setflags(write=False)
    return result


def lattice_vectors(cutoff: float, metric=None, ndim: int = 2) -> np.ndarray:
    """Lattice vectors with 0 < |R| ≤ cutoff, one of each pair ±R, shortest first.

    Parameters
    ----------
    cutoff : float, in the unit of the metric's root
    metric : (d, d) array_like, optional
        Direct metric tensor of the lattice; by default the unit matrix, so that |R| counts cells.
    ndim : int, used only when no metric is given

    Returns
    -------
    (n, d) integer ndarray, read-only
    """
    metric = np.eye(ndim) if metric is None else np.asarray(metric, dtype=float)
    return _lattice_vectors(float(cutoff), tuple(metric.ravel().tolist()), len(metric))


def structure_factor(vectors, alpha, hkl) -> np.ndarray:
    """``S = 1 + 2 Σ α_R cos(2π h·R)`` at ``hkl`` (..., d) in reciprocal-lattice units; one of each ±R is in the list."""
    vectors, alpha, hkl = np.asarray(vectors), np.asarray(alpha, dtype=float), np.asarray(hkl, dtype=float)
    return 1.0 + 2.0 * np.cos(2 * np.pi * (hkl @ vectors.T)) @ alpha


def cell_structure_factor(vectors, alpha, points: int | None = None) -> np.ndarray:
    """S on a regular grid of one reciprocal cell, (points,) * d, by FFT; index k stands for h = k / points.

    Exact as long as no component of R reaches ``points / 2`` (else it is an error).
    """
    vectors, alpha = np.atleast_2d(np.asarray(vectors)), np.asarray(alpha, dtype=float)
    ndim = vectors.shape[1]
    points = GRID[ndim] if points is None else points
    if len(vectors) and 2 * np.abs(vectors).max() >= points:
        raise DataError(f"points is {points}, expected more than twice the largest index in vectors, {np.abs(vectors).max()}.")
    grid = np.zeros((points,) * ndim)
    np.add.at(grid, tuple(vectors.T % points), alpha)
    np.add.at(grid, tuple(-vectors.T % points), alpha)
    grid[(0,) * ndim] += 1.0
    return np.fft.fftn(grid).real


def minimum(vectors, alpha) -> float:
    """Smallest S over the cell, on a grid at least four times finer than the longest vector."""
    reach = int(np.abs(vectors).max(initial=1))
    ndim = np.atleast_2d(vectors).shape[1]
    return float(cell_structure_factor(vectors, alpha, max(32, 8 * reach) if ndim < 3 else max(16, 4 * reach)).min())


def krivoglaz_clapp_moss(vectors, beta_j, *, cutoff: float | None = None, points: int | None = None):
    """Mean-field correlations ``S(h) = C / (1 + βJ(h))``, with C from the mean over the zone, 1.

    Parameters
    ----------
    vectors : (m, d) integers, one of each ±R
    beta_j : (m,) array_like
        Reduced interactions ``4 c(1-c) J_R / kT``; ``βJ(h) = 2 Σ β_R cos(2π h·R)``. Small β give ``α_R = -β_R``.
    cutoff : float, optional
        Correlations up to this |R| (in cells) are returned; by default all that the grid resolves (|index| < points / 2).
    points : int, optional
        Grid points an axis.

    Returns
    -------
    vectors : (n, d) integers
    alpha : (n,)

    Raises
    ------
    DataError
        ``1 + βJ`` is not positive everywhere: the crystal has ordered.
    """
    vectors, beta_j = np.atleast_2d(np.asarray(vectors)), np.asarray(beta_j, dtype=float)
    ndim = vectors.shape[1]
    points = GRID[ndim] if points is None else points
    denominator = cell_structure_factor(vectors, beta_j, points)
    if denominator.min() <= 0:
        lowest = denominator.min()
        raise DataError(f"beta_j makes 1 + βJ as low as {lowest:.3g}, expected it positive everywhere (no long-range order).")
    correlation = np.fft.ifftn(1.0 / denominator).real
    correlation /= correlation[(0,) * ndim]
    reach = (points - 1) // 2
    chosen = lattice_vectors(min(cutoff, reach), ndim=ndim) if cutoff else _box(reach, ndim)
    return chosen, correlation[tuple(chosen.T % points)]


@lru_cache(maxsize=8)
def _box(reach: int, ndim: int) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * ndim, indexing="ij"), -1).reshape(-1, ndim)
    grid = grid[half_space(grid, zero=False)]
    grid.setflags(write=False)
    return grid


def damped_oscillator(vectors, amplitude: float, decay: float, frequency: float, metric=None) -> np.ndarray:
    """``α_R = A exp(-d n) cos(f n)`` with n = |R| in units of the shortest lattice vector.

    Nothing guarantees S ≥ 0 here: whoever draws parameters asks `minimum` and draws again, and never clips S.

    Parameters
    ----------
    vectors : (m, d) integers, one of each ±R
    amplitude, decay, frequency : float, decay > 0; frequency in radians
    metric : (d, d) array_like, optional direct metric tensor (default: unit)
    """
    vectors = np.atleast_2d(np.asarray(vectors))
    metric = np.eye(vectors.shape[1]) if metric is None else np.asarray(metric, dtype=float)
    n = np.sqrt(np.einsum("ni,ij,nj->n", vectors, metric, vectors) / np.diag(metric).min())
    return amplitude * np.exp(-decay * n) * np.cos(frequency * n)


def peaked(vectors, positions, weights, inverse_width, *, lorentzian: bool = True) -> np.ndarray:
    """Correlations of an S made of periodic peaks: ``α_R = Σ_k w_k cos(2π h_k·R) g(R)``, positive by construction.

    Parameters
    ----------
    vectors : (m, d) integers, one of each ±R
    positions : (p, d) peak positions in r.l.u. (with -h_k implied)
    weights : (p,) ≥ 0, sum ≤ 1; what is missing to 1 is a flat (Laue monotonic) part
    inverse_width : (d, d) array_like
        Symmetric positive definite W; ``g = exp(-|W R|)`` (Lorentzian-like peaks) or ``exp(-|W R|²/2)`` (Gaussian).
        The reciprocal of an eigenvalue is a correlation length in cells.
    """
    vectors, weights = np.asarray(vectors), np.asarray(weights, dtype=float)
    if (weights < 0).any() or weights.sum() > 1 + 1e-9:
        raise DataError(f"weights are {weights.tolist()}, expected none negative and a sum of at most 1.")
    size = np.linalg.norm(vectors @ np.asarray(inverse_width, dtype=float).T, axis=1)
    envelope = np.exp(-size) if lorentzian else np.exp(-0.5 * size**2)
    return envelope * (np.cos(2 * np.pi * (vectors @ np.asarray(positions, dtype=float).T)) @ weights)


def prune(vectors, alpha, threshold: float = 1e-4):
    """Drop the correlations below ``threshold`` and, should that leave S < 0 somewhere, shrink the rest.

    S' = 1 + s (S - 1) with s = 1 / (1 - min S) is the largest share of the modulation that is nowhere negative: the
    parameters returned are the exact parameters of an admissible S (unlike those of a clipped one).
    """
    vectors, alpha = np.asarray(vectors), np.asarray(alpha, dtype=float)
    keep = np.abs(alpha) >= threshold
    vectors, alpha = vectors[keep], alpha[keep]
    lowest = minimum(vectors, alpha) if len(vectors) else 1.0
    return vectors, (alpha / (1.0 - lowest) * (1 - 1e-9) if lowest < 0 else alpha)


def warren_cowley(occupation, cutoff: float, *, stack: bool = False):
    """Warren-Cowley parameters of a configuration (or the mean over a stack of them) by FFT.

    Parameters
    ----------
    occupation : (*shape) or (n, *shape) array_like
        1 where an A stands, 0 for B, on a periodic lattice; all configurations of a stack have the same composition.
    cutoff : float, largest |R| in cells, below half the lattice
    stack : bool, whether the first axis counts configurations

    Returns
    -------
    vectors : (n, d) integers, one of each ±R
    alpha : (n,)
        Freed of the bias of a fixed composition: random occupation has mean α = -1/(N-1), which ``α + (1-α)/N`` undoes.
    """
    occupation = np.asarray(occupation, dtype=float)
    axes = tuple(range(int(stack), occupation.ndim))
    shape = tuple(occupation.shape[a] for a in axes)
    if not np.isin(occupation, (0.0, 1.0)).all():
        raise DataError("occupation holds values other than 0 and 1, expected 1 for A and 0 for B.")
    mean = occupation.mean()
    if mean in (0.0, 1.0):
        raise DataError("occupation holds one species only, expected two.")
    if not 0 < cutoff < min(shape) / 2:
        raise DataError(f"cutoff is {cutoff:g} cells, expected more than 0 and less than half the lattice, {min(shape) / 2:g}.")
    power = np.abs(np.fft.rfftn(occupation - mean, axes=axes)) ** 2
    if stack:
        power = power.mean(0)
    correlation = np.fft.irfftn(power, s=shape, axes=tuple(range(len(shape))))
    correlation /= correlation[(0,) * len(shape)]
    vectors = lattice_vectors(cutoff, ndim=len(shape))
    alpha = correlation[tuple(vectors.T % np.array(shape)[:, None])]
    return vectors, alpha + (1 - alpha) / np.prod(shape)


def _interaction_lists(interactions, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(interactions, Mapping):
        vectors, strength = list(interactions.keys()), list(interactions.values())
    else:
        vectors, strength = interactions
    vectors = np.asarray(vectors)
    strength = np.asarray(strength, dtype=float)
    vectors = vectors[:, None] if vectors.ndim == 1 and ndim == 1 else np.atleast_2d(vectors)
    if vectors.shape != (len(strength), ndim) or not np.equal(np.mod(vectors, 1), 0).all():
        raise DataError(f"interactions have vectors of shape {vectors.shape}, expected {len(strength)} rows of {ndim} integers.")
    vectors = np.where(half_space(vectors)[:, None], vectors, -vectors).astype(np.int64)
    if (vectors == 0).all(1).any() or len(np.unique(vectors, axis=0)) < len(vectors):
        raise DataError("interactions hold R = 0 or name a pair ±R twice, expected each bond once.")
    return vectors, strength


@njit(cache=True, nogil=True)
def _exchange(spin, neighbours, strength, sweeps, interval, seed, out):
    """Exchange Metropolis: swap two unlike atoms anywhere; store every ``interval`` sweeps after the first ``sweeps``."""
    np.random.seed(seed)
    sites, bonds = neighbours.shape
    for sweep in range(sweeps + interval * len(out)):
        for _ in range(sites):
            i, j = np.random.randint(sites), np.random.randint(sites)
            if spin[i] == spin[j]:
                continue
            field_i, field_j, mutual = 0.0, 0.0, 0.0
            for b in range(bonds):
                k = neighbours[i, b]
                field_i += strength[b] * spin[k]
                field_j += strength[b] * spin[neighbours[j, b]]
                if k == j:
                    mutual += strength[b]
            # the bond between the two stays unlike: it is in both fields and must not count
            rise = -2.0 * (spin[i] * field_i + spin[j] * field_j) - 4.0 * mutual
            if rise <= 0.0 or np.random.random() < np.exp(-rise):
                spin[i], spin[j] = spin[j], spin[i]
        done = sweep + 1 - sweeps
        if done > 0 and done % interval == 0:
            out[done // interval - 1] = spin


def ising_configurations(interactions, concentration: float, shape, *, sweeps: int = 200, samples: int = 20,
                         interval: int = 5, seed: int = 0) -> np.ndarray:
    """Equilibrium configurations of a binary lattice of fixed composition (exchange Monte Carlo).

    Kawasaki's conserved dynamics with partners at any distance, which reaches equilibrium sooner and has the same
    equilibrium.

    Parameters
    ----------
    interactions : mapping R → J_R/kT, or (vectors, J_R/kT); each bond ±R named once (see the module)
    concentration : float, share of A
    shape : tuple of 1, 2 or 3 ints, periodic
    sweeps : int, trials a site before the first configuration is kept
    samples, interval : int, configurations kept and sweeps between them
    seed : int

    Returns
    -------
    (samples, *shape) int8, 1 = A, 0 = B
    """
    shape = tuple(int(n) for n in np.atleast_1d(shape))
    if not 1 <= len(shape) <= 3 or min(shape) < 4:
        raise DataError(f"shape is {shape}, expected one to three sizes of at least 4.")
    sites = int(np.prod(shape))
    like = int(round(concentration * sites))
    if not 0 < like < sites:
        raise DataError(f"concentration is {concentration}, expected a share between 0 and 1 with both species on {sites} sites.")
    if sweeps < 0 or samples < 1 or interval < 1:
        raise DataError(f"sweeps, samples, interval are {sweeps}, {samples}, {interval}; expected at least 0, 1, 1.")
    vectors, strength = _interaction_lists(interactions, len(shape))
    both = np.concatenate([vectors, -vectors])
    position = np.stack(np.unravel_index(np.arange(sites), shape), -1)
    moved = (position[:, None] + both[None]) % np.array(shape)
    neighbours = np.ravel_multi_index(tuple(np.moveaxis(moved, -1, 0)), shape).astype(np.int32)
    spin = np.where(np.arange(sites) < like, 1, -1).astype(np.int8)
    np.random.default_rng(seed).shuffle(spin)
    out = np.empty((samples, sites), np.int8)
    _exchange(spin, neighbours, np.concatenate([strength, strength]), sweeps, interval, seed % 2**32, out)
    return ((out + 1) // 2).reshape(samples, *shape)


def ising_correlations(interactions, concentration: float, shape, *, sweeps: int = 200, seed: int = 0,
                       samples: int = 20, cutoff: float | None = None):
    """Warren-Cowley parameters of a binary lattice with pair interactions, by Monte Carlo at fixed composition.

    Parameters
    ----------
    interactions, concentration, shape, sweeps, samples, seed
        As for `ising_configurations`.
    cutoff : float, optional
        Largest |R| in cells; by default a quarter of the lattice.

    Returns
    -------
    vectors : (n, d) integers, one of each ±R
    alpha : (n,), the mean over the samples
    """
    occupation = ising_configurations(interactions, concentration, shape, sweeps=sweeps, samples=samples, seed=seed)
    return warren_cowley(occupation, min(occupation.shape[1:]) / 4 if cutoff is None else cutoff, stack=True)


def project_to_plane(vectors, alpha, offset: float = 0.0):
    """Coefficients of a plane ``l = offset`` cut through the S of a three-dimensional disorder.

    ``S(h, k) ∝ Σ_w Σ_uv α_uvw cos(2π(hu + kv)) cos(2π offset w)``; returned normalised to a **mean of 1 in the plane** (the
    factor of the form factor absorbs the rest), which needs α_uvw = α_uv-w or an offset that is a multiple of ½.

    Returns
    -------
    vectors : (n, 2) integers, one of each ±R
    alpha : (n,)
    mean : float, the mean of S in the plane before normalisation
    """
    vectors, alpha = np.asarray(vectors), np.asarray(alpha, dtype=float)
    both = np.concatenate([vectors, -vectors])
    values = np.concatenate([alpha, alpha])
    plane, inverse = np.unique(both[:, :2], axis=0, return_inverse=True)
    inverse = np.ravel(inverse)
    phase = 2 * np.pi * offset * both[:, 2]
    odd = np.bincount(inverse, values * np.sin(phase), len(plane))
    if np.abs(odd).max() > 1e-6:
        raise DataError(f"offset is {offset:g} and alpha differs between uvw and uv-w, expected an offset 0 or ½ or that mirror.")
    even = np.bincount(inverse, values * np.cos(phase), len(plane))
    zero = (plane == 0).all(1)
    mean = 1.0 + float(even[zero].sum())
    if mean <= 1e-6:
        raise DataError(f"offset is {offset:g}, where the plane holds no intensity; expected another plane.")
    keep = half_space(plane, zero=False)
    return plane[keep], even[keep] / mean, mean
