"""The linear model of diffuse intensity on a regular grid: its columns, made slab by slab from separable tables.

Every column is a periodic sum ``Re Σ_v a_v exp(2πi hkl·R_v)`` times a factor known on each pixel. On a regular grid the
exponential is a product of one factor an axis, so a sum over many vectors is one small matrix product; for a plane of
65,536 pixels and twelve vectors this takes a millisecond.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .vectors import VectorOrbits

__all__ = ["Design", "Geometry", "Term", "Wave", "order_terms", "order_wave"]

_SLAB = 4_000_000           # numbers in the columns of a slab
_KEEP = 60_000_000          # numbers in all columns that are kept between passes (480 MB)


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the pixels are: ``hkl = origin + Σ axes[i] basis[i]``."""

    axes: tuple[np.ndarray, ...]
    basis: np.ndarray
    origin: np.ndarray

    @classmethod
    def of(cls, volume) -> Geometry:
        return cls(volume.axes, volume.basis, volume.origin)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(a) for a in self.axes)

    def index(self, j: int, rows: slice) -> np.ndarray:
        """h, k or l (j = 0, 1, 2) of the pixels of some rows."""
        out = self.origin[j]
        for i, axis in enumerate(self.axes):
            axis = axis[rows] if i == 0 else axis
            out = out + (axis * self.basis[i, j]).reshape([-1 if m == i else 1 for m in range(len(self.axes))])
        return out


class Wave:
    """``Re Σ_v a_v exp(2πi hkl·R_v)`` on the pixels of a geometry.

    Parameters
    ----------
    geometry : Geometry
    vectors : (m, 3)
    amplitude : (m,) complex
    """

    def __init__(self, geometry: Geometry, vectors, amplitude) -> None:
        vectors = np.atleast_2d(np.asarray(vectors, dtype=float))
        first = np.asarray(amplitude, dtype=complex) * np.exp(2j * np.pi * (vectors @ geometry.origin))
        tables = [np.exp(2j * np.pi * np.outer(vectors @ b, x)) for b, x in zip(geometry.basis, geometry.axes, strict=True)]
        tables[0] = first[:, None] * tables[0]
        self._tables, self._last = tables, np.concatenate([tables[-1].real, -tables[-1].imag])

    def __call__(self, rows: slice = slice(None), *, imaginary: bool = False) -> np.ndarray:
        """The sum on some rows of pixels; with ``imaginary`` the imaginary part of the same sum."""
        left = self._tables[0][:, rows]
        for table in self._tables[1:-1]:
            left = (left[..., None] * table.reshape(len(table), *(1,) * (left.ndim - 1), -1))
        shape = left.shape[1:]
        left = left.reshape(len(left), -1)
        if imaginary:
            left = -1j * left
        return (np.concatenate([left.real, left.imag]).T @ self._last).reshape(*shape, -1)


@dataclass(frozen=True, eq=False)
class Term:
    """One column: a periodic sum times the form factor, or times one of the complex products of two sites.

    Attributes
    ----------
    name : str, for messages
    vectors : (m, 3); amplitude : (m,) complex
    tilt : (m, 3) or None
        Size effect: the column is ``Σ_v (hkl · tilt_v) Re[a_v exp(2πi hkl·R_v)]``.
    product : int or None
        Number of the complex factor G; the column is then ``Re[G Σ_v a_v exp(2πi hkl·R_v)]``.
    """

    name: str
    vectors: np.ndarray
    amplitude: np.ndarray
    tilt: np.ndarray | None = None
    product: int | None = None


def order_terms(orbits: VectorOrbits, i: int) -> list[Term]:
    """The column of orbit i, ``Σ_R cos(2π hkl·R)``, and its sine partner where the projected parameter may be complex."""
    name = f"α({', '.join(f'{v:g}' for v in orbits.vectors[i])})"
    if not orbits.projected:
        members = orbits.members[i]
        half = _half(members)
        return [Term(name, members[half], np.full(int(half.sum()), 2.0 + 0j))]
    images = orbits.operations @ orbits.vectors[i]
    unique, where, count = np.unique(np.round(images, 6), axis=0, return_inverse=True, return_counts=True)
    scale = len(orbits.members[i]) / len(images)
    terms = [Term(name, unique, scale * count + 0j)]
    if orbits.quadrature:
        sign = np.bincount(np.ravel(where), orbits.signs, len(unique))
        terms.append(Term(f"odd {name}", unique, 1j * scale * sign))
    return terms


def order_wave(orbits: VectorOrbits, geometry: Geometry, alpha) -> Wave:
    """``Σ_o α_o Σ_R cos(2π hkl·R)`` of all orbits at once: S - 1."""
    terms = [order_terms(orbits, i)[0] for i in range(len(orbits))]
    amplitude = np.concatenate([a * t.amplitude for a, t in zip(alpha, terms, strict=True)])
    return Wave(geometry, np.concatenate([t.vectors for t in terms]), amplitude)


def _half(vectors) -> np.ndarray:
    """One of each ±R: the one whose first non-zero index is positive."""
    keep, decided = np.zeros(len(vectors), bool), np.zeros(len(vectors), bool)
    for column in np.asarray(vectors).T:
        keep |= ~decided & (column > 1e-9)
        decided |= np.abs(column) > 1e-9
    return keep


class Design:
    """Columns of the linear model on the pixels in use.

    Parameters
    ----------
    geometry : Geometry
    factor : (*shape) float
        D, the first column ("scale").
    terms : sequence of Term
    powers : (k,) ints
        Background columns ``q2 ** power``.
    q2 : (*shape) float or None
        |Q|² in units of its largest value.
    products : (s, *shape) complex or None
    used : (*shape) bool
    """

    def __init__(self, geometry, factor, terms, used, powers=(), q2=None, products=None) -> None:
        self.geometry, self.factor, self.used = geometry, factor, used
        self.terms, self.powers, self.q2, self.products = tuple(terms), tuple(powers), q2, products
        self._waves = [self._prepare(t) for t in self.terms]
        self.size = 1 + len(self.terms) + len(self.powers)
        self.names = ("scale", *(t.name for t in self.terms), *(f"background {p}" for p in self.powers))
        per_row = self.size * int(np.prod(geometry.shape[1:]))
        step = max(1, _SLAB // per_row)
        self.slabs = [slice(i, min(i + step, geometry.shape[0])) for i in range(0, geometry.shape[0], step)]
        self.n_used = int(used.sum())
        self._kept: dict[int, np.ndarray] | None = {} if self.size * self.n_used <= _KEEP else None

    def _prepare(self, term: Term) -> list[Wave]:
        if term.tilt is None:
            return [Wave(self.geometry, term.vectors, term.amplitude)]
        return [Wave(self.geometry, term.vectors, term.amplitude * term.tilt[:, j]) for j in range(3)]

    def columns(self, rows: slice) -> np.ndarray:
        """All columns on some rows of the grid, (size, rows, …)."""
        factor = self.factor[rows]
        out = np.empty((self.size, *factor.shape))
        out[0] = factor
        for i, (term, waves) in enumerate(zip(self.terms, self._waves, strict=True), start=1):
            if term.tilt is not None:
                out[i] = factor * sum(self.geometry.index(j, rows) * wave(rows) for j, wave in enumerate(waves))
            elif term.product is not None:
                g = self.products[term.product][rows]
                out[i] = g.real * waves[0](rows) - g.imag * waves[0](rows, imaginary=True)
            else:
                np.multiply(factor, waves[0](rows), out=out[i])
        for i, power in enumerate(self.powers, start=1 + len(self.terms)):
            out[i] = 1.0 if power == 0 else self.q2[rows] ** power
        return out

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """(place among the used pixels, columns (size, n)) slab by slab."""
        start = 0
        for k, rows in enumerate(self.slabs):
            used = self.used[rows]
            n = int(used.sum())
            if n == 0:
                continue
            if self._kept is None:
                block = self.columns(rows)[:, used]
            elif k not in self._kept:
                block = self._kept[k] = self.columns(rows)[:, used]
            else:
                block = self._kept[k]
            yield slice(start, start + n), block
            start += n

    def normal(self, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``Σ w x xᵀ`` and ``Σ w x y`` over the used pixels."""
        matrix, right = np.zeros((self.size, self.size)), np.zeros(self.size)
        for place, block in self.blocks():
            weighted = block * weight[place]
            matrix += weighted @ block.T
            right += weighted @ y[place]
        return matrix, right

    def predict(self, theta: np.ndarray) -> np.ndarray:
        """The model on the used pixels."""
        out = np.empty(self.n_used)
        for place, block in self.blocks():
            out[place] = theta @ block
        return out

    def everywhere(self, theta: np.ndarray) -> np.ndarray:
        """The model on all pixels, (*shape); NaN where the form factor is not known."""
        out = np.empty(self.geometry.shape)
        for rows in self.slabs:
            out[rows] = np.tensordot(theta, self.columns(rows), axes=1)
        return out

    def without(self, drop) -> Design:
        """The same design without some of its terms (numbers in `terms`)."""
        terms = [t for i, t in enumerate(self.terms) if i not in set(drop)]
        return Design(self.geometry, self.factor, terms, self.used, self.powers, self.q2, self.products)
