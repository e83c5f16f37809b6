"""Fit of one structural model: overall scale and displacement parameter, and if asked a rotation."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import DataError
from .molecular import Molecule, difference_form_factor, is_pair
from .sro.inputs import Inputs, resolve_factor
from .sro.kernels import Geometry
from .sro.solve import Noise

__all__ = ["Candidate", "FixedDesign", "Outcome", "Target"]

B_RANGE = (-8.0, 20.0)      # Å²; negative where the model's own B is too large
_COARSE = 4000              # pixels of the search for a rotation
_ENOUGH = 60_000            # pixels of the search for B
_ROTATIONS = 240


@dataclass(frozen=True, eq=False)
class Target:
    """Observations and the columns that multiply D (unit) and those that do not."""

    inputs: Inputs
    used: np.ndarray            # (*shape) bool
    y: np.ndarray               # (n,)
    weight: np.ndarray          # (n,) 1 / variance × share
    unit: np.ndarray            # (p, n) columns for D = 1
    fixed: np.ndarray           # (k, n) background columns
    s2: np.ndarray              # (n,)
    share: np.ndarray | None
    independent: float          # number of independent observations

    def columns(self, factor: np.ndarray) -> np.ndarray:
        """All columns for a given D, (p + k, n)."""
        return np.concatenate([self.unit * factor, self.fixed]) if len(self.fixed) else self.unit * factor

    def chi2(self, factor: np.ndarray, scale: float | None = None) -> tuple[float, np.ndarray]:
        """Smallest Σ w r² for a given D, and the coefficients."""
        weight, columns, y = self.weight, self.columns(factor), self.y
        if scale is not None:
            y, columns = y - scale * columns[0], columns[1:]
            if not len(columns):
                return float(weight @ y**2), np.array([scale])
        weighted = columns * weight
        matrix = weighted @ columns.T
        size = np.sqrt(np.maximum(np.diag(matrix), 1e-300))
        theta = np.linalg.pinv(matrix / np.outer(size, size), rcond=1e-11, hermitian=True) @ (weighted @ y / size) / size
        rest = y - theta @ columns
        if scale is not None:
            theta = np.concatenate([[scale], theta])
        return float(weight @ rest**2), theta

    def subset(self, n: int) -> Target:
        if len(self.y) <= n:
            return self
        pick = np.sort(np.random.default_rng(0).choice(len(self.y), n, replace=False))
        used = np.zeros(self.used.size, bool)
        used[np.flatnonzero(self.used)[pick]] = True
        return replace(
            self, used=used.reshape(self.used.shape), y=self.y[pick], weight=self.weight[pick], unit=self.unit[:, pick],
            fixed=self.fixed[:, pick], s2=self.s2[pick], share=None,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Outcome:
    factor: np.ndarray          # (*shape) |F_A - F_B|² exp(-2 B s²), unscaled
    b_iso: float
    rotation: np.ndarray        # rotation vector, radians


class Candidate:
    """Finds B and, if asked, the rotation of one model."""

    def __init__(self, target: Target, model, free: dict, rotate: bool) -> None:
        self.target, self.model, self.free, self.rotate = target, model, free, rotate

    def run(self) -> Outcome:
        volume = self.target.inputs.volume
        rotation = self._rotation() if self.rotate else np.zeros(3)
        if is_pair(self.model):
            a, b = (_turned(m, rotation) for m in self.model)
            bare = difference_form_factor(volume, a, b) * 4.0  # |F_A - F_B|²
        else:
            bare = resolve_factor(self.model, volume)[0]
        inside = bare[self.target.used]
        if not np.isfinite(inside).all():
            raise DataError("models holds a form factor that is not known on every measured pixel.")
        b_iso = self._b_iso(inside)
        s2 = np.square(volume.q()) / (16 * np.pi**2)
        return Outcome(bare * np.exp(-2 * b_iso * s2), b_iso, rotation)

    def _b_iso(self, inside) -> float:
        if self.free["b_iso"] is not None:
            return self.free["b_iso"]
        from scipy.optimize import minimize_scalar

        target = self.target.subset(_ENOUGH)
        inside = inside[target.used[self.target.used]]
        if len(target.unit) > 1:
            target = _weighted(target, inside)

        def cost(b: float) -> float:
            return target.chi2(inside * np.exp(-2 * b * target.s2), self.free["scale"])[0]

        return float(minimize_scalar(cost, bounds=B_RANGE, method="bounded", options={"xatol": 2e-3}).x)

    def _rotation(self) -> np.ndarray:
        from scipy.optimize import minimize

        target = self.target.subset(_COARSE)
        volume = target.inputs.volume
        q = volume.q_vectors()[target.used]
        fixed_b = self.free["b_iso"]

        def cost(x) -> float:
            a, b = (_turned(m, x[:3]) for m in self.model)
            amplitude = a.form_factor(q, volume.radiation) - b.form_factor(q, volume.radiation)
            factor = (amplitude.real**2 + amplitude.imag**2) * np.exp(-2 * (x[3] if fixed_b is None else fixed_b) * target.s2)
            return target.chi2(factor, self.free["scale"])[0]

        starts = np.concatenate([np.zeros((1, 4)), np.pad(_rotations(_ROTATIONS), ((0, 0), (0, 1)))])
        costs = np.array([cost(x) for x in starts])
        best = None
        for k in np.argsort(costs)[:3]:
            simplex = starts[k] + np.concatenate([np.zeros((1, 4)), np.diag([0.15, 0.15, 0.15, 1.0])])
            options = {"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-6 * costs[k]}
            found = minimize(cost, starts[k], method="Nelder-Mead", options=options)
            if best is None or found.fun < best.fun:
                best = found
        return best.x[:3]


def _weighted(target: Target, inside) -> Target:
    """Weights for the search of B: the noise that this model leaves, or the given one."""
    volume = target.inputs.volume
    model = target.chi2(inside)[1] @ target.columns(inside)
    noise = Noise(target.y, None if volume.sigma is None else volume.sigma[target.used])
    noise.update(model, target.y - model)
    return replace(target, weight=1.0 / noise.variance(model))


def _turned(molecule: Molecule, rotation) -> Molecule:
    from scipy.spatial.transform import Rotation

    return molecule.rotated(Rotation.from_rotvec(rotation).as_matrix()) if len(molecule.elements) else molecule


def _rotations(n: int) -> np.ndarray:
    """Rotation vectors spread evenly over all rotations (super-Fibonacci: Alexa, CVPR 2022, 8281)."""
    from scipy.spatial.transform import Rotation

    phi, psi = np.sqrt(2.0), 1.533751168755204288118041
    s = np.arange(n) + 0.5
    r, big = np.sqrt(s / n), np.sqrt(1.0 - s / n)
    a, b = 2 * np.pi * s / phi, 2 * np.pi * s / psi
    return Rotation.from_quat(np.stack([r * np.sin(a), r * np.cos(a), big * np.sin(b), big * np.cos(b)], 1)).as_rotvec()


class FixedDesign:
    """The columns of a target as a design for `solve_design`."""

    def __init__(self, target: Target, factor) -> None:
        self.columns = target.columns(factor)
        self.size, self.n_used = self.columns.shape
        self.names = tuple(f"column {i}" for i in range(self.size))
        self.used, self.geometry = target.used, Geometry.of(target.inputs.volume)

    def normal(self, y, weight):
        weighted = self.columns * weight
        return weighted @ self.columns.T, weighted @ y

    def predict(self, theta):
        return theta @ self.columns


