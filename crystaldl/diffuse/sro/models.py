"""Pair energies from diffuse scattering in mean-field theory.

Krivoglaz (1969), Clapp & Moss (Phys. Rev. 142, 418, 1966)::

    S(hkl) = 1 / (λ + Σ_R v_R cos(2π hkl·R)),        v_R = 2 c (1 - c) β V_R,      sum over R and -R

V_R is the pair energy ``(V_AA + V_BB) / 2 - V_AB`` at R and β = 1/kT: **v > 0 prefers unlike neighbours**, and for weak energies
``α_R = -v_R``. λ is no parameter: the mean of S over a zone is 1 (the spherical model: Brout, Phase Transitions, 1965). With
``S = C / (1 + βJ)`` as Clapp and Moss write it, ``C = 1/λ`` and ``βJ_R = v_R / λ``.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ... import __version__
from ...errors import DataError
from ...storage.atomic import write_json
from ...storage.records import ENDINGS
from .inputs import period_basis
from .kernels import Geometry, Wave, order_terms, order_wave
from .refine import refine_sro
from .result import SROFit, number
from .vectors import VectorOrbits, vector_orbits

__all__ = ["InteractionFit", "refine_interactions"]

_ZONE = {2: 96, 3: 32}      # points an axis of the zone over which S is averaged
_STEPS = 60
_ROWS = 2_000_000


@dataclass(frozen=True, eq=False)
class InteractionFit:
    """Mean-field pair energies with standard uncertainties.

    Attributes
    ----------
    fit : SROFit, the refinement it started from
    vectors : (n, 3); distance : (n,) Å; multiplicity : (n,); orbits : tuple of (m, 3)
    beta_v : (n,) ``2 c (1 - c) β V_R``; positive where unlike neighbours are preferred. Projected ones for a plane.
    sigma : (n,) standard uncertainties; covariance : (n, n)
    lam : float, λ of the spherical model; 1 / C of Clapp and Moss
    alpha : (m,) parameters of the vectors of ``fit`` that the model gives
    method : "intensity" or "alpha"
    chi2 : float, reduced; r_factor : float (NaN for "alpha")
    """

    fit: SROFit
    vectors: np.ndarray
    beta_v: np.ndarray
    sigma: np.ndarray
    covariance: np.ndarray
    distance: np.ndarray
    multiplicity: np.ndarray
    orbits: tuple[np.ndarray, ...]
    lam: float
    alpha: np.ndarray
    method: str
    chi2: float
    r_factor: float
    groups: VectorOrbits = field(repr=False)
    version: str = __version__

    @property
    def correlation(self) -> np.ndarray:
        """(n, n) correlation matrix."""
        return self.covariance / np.maximum(np.outer(self.sigma, self.sigma), 1e-300)

    @property
    def clapp_moss(self) -> np.ndarray:
        """(n,) βJ_R of ``S = C / (1 + Σ_R βJ_R cos(2π hkl·R))``."""
        return self.beta_v / self.lam

    def structure_factor(self):
        """S on the pixels of the data, a DiffuseVolume."""
        data = self.fit.data
        s = 1.0 / (self.lam + order_wave(self.groups, Geometry.of(data), self.beta_v)())
        name = f"{data.name} mean-field SRO".strip()
        return data.replace(data=s, mask=None, sigma=None, name=name, history="S of refine_interactions")

    def to_dataframe(self):
        """One row an interaction."""
        import pandas as pd

        table = dict(zip("uvw", self.vectors.T, strict=True))
        table |= {"distance": self.distance, "multiplicity": self.multiplicity, "beta_v": self.beta_v, "sigma": self.sigma}
        return pd.DataFrame(table)

    def save(self, path) -> Path:
        """Write everything (``.h5``, EMD 1.0: `crystaldl.read` reads it back), else the figures as JSON.

        An interrupted write leaves an old file whole.
        """
        if str(path).lower().endswith(ENDINGS):
            from ..files import RECORDS

            return RECORDS.save(path, self)
        return write_json(path, {
            "name": self.fit.data.name, "vectors": self.vectors, "beta_v": self.beta_v, "sigma": self.sigma,
            "covariance": self.covariance, "distance": self.distance, "multiplicity": self.multiplicity, "lam": self.lam,
            "alpha_vectors": self.fit.vectors, "alpha": self.alpha, "method": self.method, "chi2": self.chi2,
            "r_factor": self.r_factor, "laue": self.fit.laue, "centring": self.fit.centring, "crystaldl": self.version,
        })  # fmt: skip

    def __repr__(self) -> str:
        rows = zip(self.vectors, self.beta_v, self.sigma, strict=True)
        parts = [f"({' '.join(f'{v:g}' for v in r)}) {number(b, s)}" for r, b, s in rows]
        more = ", …" if len(parts) > 4 else ""
        return f"<InteractionFit 2c(1-c)βV: {', '.join(parts[:4])}{more}; λ {self.lam:.4g}, χ² {self.chi2:.3g}, from {self.method}>"


def refine_interactions(data, *, shells: int | None = None, vectors=None, on: str = "auto", **options) -> InteractionFit:
    """Refine mean-field pair energies.

    Parameters
    ----------
    data : SROFit, DiffuseVolume or Separation
        What is no SROFit goes through `refine_sro` first (at least six shells), with ``options``.
    shells : int, optional
        Shells that interact; by default the orbits of the SROFit, or six shells.
    vectors : (n, 3) array_like, in place of shells
    on : {"auto", "intensity", "alpha"}
        Fit the intensity (default where the SROFit was fitted to intensity) or the α with their covariance.
    **options
        As for `refine_sro` (when ``data`` is no SROFit).

    Returns
    -------
    InteractionFit

    Raises
    ------
    DataError
        Several sites; more interactions than α to fit; an irrational plane; anything that `refine_sro` refuses.
    """
    if isinstance(data, SROFit):
        if options:
            raise TypeError(f"refine_interactions got {next(iter(options))!r} beside an SROFit; expected shells, vectors or on.")
        fit = data
    else:
        # energies of short range make order of longer range: the linear fit takes more shells than interact
        fit = refine_sro(data, shells=max(6, shells or 0), **options)
        shells = 6 if shells is None and vectors is None else shells
    if on not in ("auto", "intensity", "alpha"):
        raise DataError(f"on is {on!r}; expected 'auto', 'intensity' or 'alpha'.")
    if fit.pairs is not None:
        raise DataError("data is a fit of several sites; mean-field energies are refined for one disordered site.")
    if fit.zone_axis is None and fit.data.ndim == 2:
        raise DataError("data is a plane in irrational orientation, where S has no period; expected a rational plane or a volume.")
    on = on if on != "auto" else ("intensity" if fit.method == "intensity" else "alpha")
    if on == "intensity" and not fit.weights.any():
        raise DataError("on is 'intensity' but the fit rests on the parameters of a separation; expected 'alpha'.")
    groups = fit.groups
    if shells is not None or vectors is not None:
        groups = vector_orbits(fit.data, shells, vectors, fit.laue, fit.centring)
    if on == "alpha" and len(groups) > len(fit.alpha):
        raise DataError(f"{len(groups)} interactions are asked for but the fit has only {len(fit.alpha)} α to fit.")
    zone = _Zone(fit, groups)
    start = zone.start(fit)
    problem = _OnIntensity(fit, groups, zone) if on == "intensity" else _OnAlpha(fit, zone)
    value, inverse, cost, freedom = _minimise(problem, problem.first(start))
    n = len(groups)
    chi2 = cost / freedom if freedom > 0 else float("nan")
    covariance = inverse[:n, :n] * (chi2 * fit.serial if on == "intensity" else max(1.0, chi2) if freedom > 0 else 1.0)
    lam, _ = zone.solve(value[:n])
    return InteractionFit(
        fit, groups.vectors, value[:n], np.sqrt(np.diag(covariance)), covariance, groups.distance, groups.multiplicity,
        groups.members, lam, zone.alpha(value[:n]), on, chi2, problem.r_factor(value), groups,
    )  # fmt: skip


def _waves(groups: VectorOrbits, geometry: Geometry) -> list[Wave]:
    """``Σ_R cos(2π hkl·R)`` of each orbit."""
    terms = (order_terms(groups, i)[0] for i in range(len(groups)))
    return [Wave(geometry, t.vectors, t.amplitude) for t in terms]


class _Zone:
    """S on a grid over whole zones: λ from its mean, and α as its Fourier coefficients."""

    def __init__(self, fit: SROFit, groups: VectorOrbits) -> None:
        data = fit.data
        basis = period_basis(data, fit.centring)
        points = max(_ZONE[data.ndim], 10 * int(np.ceil(np.abs(groups.vectors).max())))
        # x = θ @ inv(basis).T walks along the periods of S; a grid in θ is a grid in x with other axes
        step = np.linalg.inv(basis).T
        axis = np.arange(points) / points
        geometry = Geometry((axis,) * data.ndim, step @ data.basis, data.origin)
        self.phi = np.array([wave().ravel() for wave in _waves(groups, geometry)])
        self.multiplicity = fit.groups.multiplicity[:, None]
        self.look = np.array([wave().ravel() for wave in _waves(fit.groups, geometry)]) / self.multiplicity

    def solve(self, beta) -> tuple[float, np.ndarray]:
        """λ with a mean of S of 1, and S on the grid."""
        v = beta @ self.phi
        low = -v.min()
        # <1/(λ+v)> falls from infinity (practically) to 0: Newton on 1/mean, which is nearly a straight line
        lam = max(1.0, low + 1e-6 + 1e-6 * abs(low))
        for _ in range(80):
            s = 1.0 / (lam + v)
            mean, slope = s.mean(), -(s * s).mean()
            step = mean * (mean - 1.0) / -slope
            lam = max(lam + step, low + 0.05 * (lam - low))
            if abs(step) < 1e-13 * (1 + abs(lam)):
                break
        return float(lam), 1.0 / (lam + v)

    def slope(self, s: np.ndarray) -> np.ndarray:
        """(n,) dλ/dβ."""
        square = s * s
        return -(self.phi @ square) / square.sum()

    def alpha(self, beta) -> np.ndarray:
        """(m,) α of the vectors of the fit."""
        _, s = self.solve(beta)
        return self.look @ s / s.size

    def start(self, fit: SROFit) -> np.ndarray:
        """Energies of the inverse of the fitted S (kept positive), 1/S = λ + v."""
        s = np.maximum(1.0 + fit.alpha @ (self.look * self.multiplicity), 0.08)
        inverse = 1.0 / s
        solution = np.linalg.lstsq(np.vstack([np.ones(s.size), self.phi]).T, inverse, rcond=None)[0]
        return solution[1:]


class _OnAlpha:
    """Residuals: α of the fit minus α of the model, by the fit's covariance."""

    def __init__(self, fit: SROFit, zone: _Zone) -> None:
        self.fit, self.zone = fit, zone
        scale = np.sqrt(np.diag(fit.covariance))
        jitter = 1e-10 * np.diag(scale**2)
        self.precision = np.linalg.inv(fit.covariance + jitter)
        self.observations = len(fit.alpha)

    def first(self, start):
        return start

    def evaluate(self, value):
        lam_s = self.zone.solve(value)[1]
        rest = self.fit.alpha - self.zone.look @ lam_s / lam_s.size
        change = -np.square(lam_s) * (self.zone.phi + self.zone.slope(lam_s)[:, None])
        jacobian = (self.zone.look @ change.T) / lam_s.size
        return jacobian.T @ self.precision @ jacobian, jacobian.T @ self.precision @ rest, float(rest @ self.precision @ rest)

    def r_factor(self, value) -> float:
        return float("nan")


class _OnIntensity:
    """Residuals: intensity minus ``K D / (λ + v)`` minus background, with the weights of the fit."""

    def __init__(self, fit: SROFit, groups: VectorOrbits, zone: _Zone) -> None:
        self.fit, self.zone, self.n = fit, zone, len(groups)
        geometry = Geometry.of(fit.data)
        self.waves = _waves(groups, geometry)
        self.used = fit.weights > 0
        powers = fit.background_powers
        q2 = np.square(fit.data.q()) if any(powers) else None
        self.columns = [np.ones(fit.data.shape) if p == 0 else (q2 / q2.max()) ** p for p in powers]
        rows = max(1, _ROWS // int(np.prod(fit.data.shape[1:])))
        self.slabs = [slice(i, i + rows) for i in range(0, fit.data.shape[0], rows)]
        self.observations = fit.n_independent

    def first(self, start):
        return np.concatenate([start, [self.fit.scale], self.fit.background])

    def _slab(self, value, lam, rows):
        used = self.used[rows]
        v = sum(b * w(rows)[used] for b, w in zip(value, self.waves, strict=False))
        s = 1.0 / np.maximum(lam + v, 1e-3 * abs(lam))
        factor = self.fit.form_factor[rows][used]
        model = value[self.n] * factor * s
        columns = [c[rows][used] for c in self.columns]
        for b, c in zip(value[self.n + 1 :], columns, strict=True):
            model = model + b * c
        rest = (self.fit.data.data - self.fit.fixed_background)[rows][used] - model
        return used, factor, s, columns, rest

    def evaluate(self, value):
        lam, zone_s = self.zone.solve(value[: self.n])
        slope = self.zone.slope(zone_s)
        size = len(value)
        matrix, right, cost = np.zeros((size, size)), np.zeros(size), 0.0
        for rows in self.slabs:
            used, factor, s, columns, rest = self._slab(value, lam, rows)
            if not used.any():
                continue
            weight = self.fit.weights[rows][used]
            jacobian = np.empty((size, len(rest)))
            common = -value[self.n] * factor * s * s
            for i, wave in enumerate(self.waves):
                jacobian[i] = common * (wave(rows)[used] + slope[i])
            jacobian[self.n] = factor * s
            for i, column in enumerate(columns):
                jacobian[self.n + 1 + i] = column
            matrix += (jacobian * weight) @ jacobian.T
            right += jacobian @ (weight * rest)
            cost += float(weight @ rest**2)
        return matrix, right, cost

    def r_factor(self, value) -> float:
        lam, _ = self.zone.solve(value[: self.n])
        top = bottom = 0.0
        for rows in self.slabs:
            used, *_, rest = self._slab(value, lam, rows)
            top += float(np.abs(rest).sum())
            bottom += float(np.abs((self.fit.data.data - self.fit.fixed_background)[rows][used]).sum())
        return top / bottom


def _minimise(problem, value):
    """Levenberg-Marquardt: (parameters, inverse normal matrix, cost, degrees of freedom)."""
    matrix, right, cost = problem.evaluate(value)
    damping = 1e-4
    for _ in range(_STEPS):
        scale = np.diag(matrix)
        step = np.linalg.solve(matrix + damping * np.diag(scale), right)
        new = problem.evaluate(value + step)
        if new[2] <= cost:
            small = cost - new[2] <= 1e-10 * cost or float(right @ step) < 1e-8 * max(cost / problem.observations, 1e-300)
            value, (matrix, right, cost) = value + step, new
            damping = max(damping * 0.2, 1e-12)
            if small:
                break
        else:
            damping *= 8.0
            if damping > 1e8:
                break
    scale = 1.0 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    inverse = np.linalg.pinv(matrix * scale[:, None] * scale, rcond=1e-12, hermitian=True) * scale[:, None] * scale
    return value, inverse, cost, problem.observations - len(value)
