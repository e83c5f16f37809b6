"""The three-dimensional difference pair distribution function (3D-ΔPDF): the Fourier transform of diffuse scattering.

Source: Weber & Simonov, Z. Kristallogr. 227, 238 (2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import czt

from ..errors import DataError
from .checks import check_number
from .grid import steps
from .naming import html_table, one_line

__all__ = ["WINDOWS", "DeltaPDF", "delta_pdf"]

WINDOWS = ("gaussian", "hann", None)


@dataclass(frozen=True, repr=False)
class DeltaPDF:
    """A 3D-ΔPDF, or for a plane of reciprocal space its projection along the plane's normal.

    Attributes
    ----------
    data : (n_u, n_v[, n_w]) ndarray
        ``P(u) = Σ w (I - Ī) cos(2π x·u) / Σ w`` over the measured pixels x (axis coordinates, r.l.u.), w the window
        and Ī the mean with the same weights.  Positive: more scattering-power pairs at that vector than on average.
        For a pure short-range-order function S = 1 + Σ α cos(2π hkl·R) this is α at u = R, both at R and -R.
    axes : tuple of (n,) ndarrays
        u, v[, w] in units of the lattice vectors (for a general basis, of its dual); whole numbers are among them.
    basis : (ndim, 3) ndarray
        hkl vectors of the reciprocal axes: u_i = basis[i]·(u, v, w).
    lattice : (6,) tuple or None
        Å and degrees.
    density : float or None
        Times this, data are ``∫ (I - Ī) w cos(Q·r) d³Q / (2π)³``, in units of I Å⁻³ (Å⁻² for a plane) of the crystal's
        scale; None where the lattice is not known.
    window : str or None
    name : str
    history : tuple of str
    """

    data: np.ndarray
    axes: tuple[np.ndarray, ...]
    basis: np.ndarray
    lattice: tuple[float, ...] | None
    density: float | None
    window: str | None
    name: str = ""
    history: tuple[str, ...] = ()

    def __post_init__(self):
        for array in (self.data, self.basis, *self.axes):
            array.setflags(write=False)

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def at(self, vector) -> np.ndarray:
        """Value at vectors (..., ndim) in units of the axes, the nearest grid point's; NaN outside."""
        vector = np.asarray(vector, dtype=np.float64)
        start = np.array([axis[0] for axis in self.axes])
        step = np.array([axis[1] - axis[0] for axis in self.axes])
        index = np.round((vector - start) / step).astype(int)
        inside = ((index >= 0) & (index < self.data.shape)).all(axis=-1)
        flat = self.data[tuple(np.moveaxis(np.where(inside[..., None], index, 0), -1, 0))]
        return np.where(inside, flat, np.nan)

    def metric(self) -> np.ndarray:
        """(ndim, ndim) metric in Å²: |r|² = u·G·u; for a plane, of the projection along its normal."""
        from ..physics.lattice import metric_tensor

        if self.lattice is None:
            return np.eye(self.ndim)
        return np.linalg.inv(self.basis @ np.linalg.inv(metric_tensor(self.lattice)) @ self.basis.T)

    def show(self, ax=None, **options):
        """Draw it, blue below zero and red above; returns (figure, axes).  See `crystaldl.diffuse.plot.plot_delta_pdf`."""
        from .plot import plot_delta_pdf

        return plot_delta_pdf(self, ax, **options)

    def _facts(self) -> dict[str, str]:
        spans = [f"{n} {a[0]:.4g}…{a[-1]:.4g}" for n, a in zip("uvw", self.axes, strict=False)]
        return {
            "shape": " × ".join(map(str, self.shape)),
            "axes": ", ".join(spans),
            "window": str(self.window),
            "values": f"{self.data.min():.4g}…{self.data.max():.4g}",
        }

    def __repr__(self) -> str:
        return one_line("DeltaPDF", self.name, self._facts())

    def _repr_html_(self) -> str:
        return html_table("DeltaPDF", self.name, self._facts())


def delta_pdf(volume, *, window: str | None = "gaussian", maximum: float | None = None, finer: int = 1) -> DeltaPDF:
    """Fourier transform of the measured intensity about its mean.

    Pixels that were not measured count as the mean: they add nothing.  Only the cosine part is kept, since intensities
    are centrosymmetric (a quadrant or an octant measured stands for the whole).  Bragg peaks, if still there, make the
    Patterson function on top: `punch_bragg` first.

    Parameters
    ----------
    volume : DiffuseVolume
    window : {"gaussian", "hann", None}
        Falls towards the ends of each axis, which removes the ripples of the cut-off and widens peaks: "gaussian" to
        5 % at the ends, "hann" to zero.
    maximum : float, optional
        Largest |u|, |v|, |w|; by default half of one over the step, beyond which the transform repeats itself.
    finer : int
        The grid of u is that many times finer than the resolution of the data.

    Returns
    -------
    DeltaPDF

    Raises
    ------
    DataError
    """
    if window not in WINDOWS:
        raise DataError(f"window is {window!r}; expected one of {', '.join(map(repr, WINDOWS))}.")
    if isinstance(finer, bool) or not isinstance(finer, (int, np.integer)) or not 1 <= finer <= 16:
        raise DataError(f"finer is {finer!r}; expected a whole number from 1 to 16.")
    step = steps(volume)
    limit = 0.5 / step
    if maximum is not None:
        limit = np.minimum(limit, check_number(maximum, "maximum", "lattice units", above=0.0))
    weight = _window(volume.axes, window) * volume.mask
    total = weight.sum()
    if not total > 0:
        raise DataError(f"window is {window!r}; it leaves no measured pixel.")
    known = np.where(volume.mask, volume.data, 0.0)
    field = weight * (known - (weight * known).sum() / total)
    axes = []
    values = field.astype(np.complex128)
    for i, (axis, h) in enumerate(zip(volume.axes, step, strict=True)):
        # a whole number of steps of u per lattice vector, so that lattice vectors are on the grid
        per_cell = max(1, int(np.ceil(finer * axis.size * h - 1e-6)))
        m = max(1, int(np.floor(limit[i] * per_cell + 1e-6)))
        u = np.arange(-m, m + 1) / per_cell
        values = _transform(values, i, axis[0], h, u)
        axes.append(u)
    data = np.ascontiguousarray(values.real) / total
    density = None
    if volume.lattice is not None:
        density = float(total * np.prod(step) * np.sqrt(np.linalg.det(volume.q_metric())) / (2 * np.pi) ** volume.ndim)
    history = (*volume.history, f"delta_pdf(window={window!r})")
    return DeltaPDF(data, tuple(axes), volume.basis, volume.lattice, density, window, volume.name, history)


def _window(axes, window: str | None) -> np.ndarray:
    """Product of windows of the axis coordinates, centred on 0."""
    out = np.ones(())
    for axis in axes:
        x = axis / np.abs(axis).max()
        if window == "gaussian":
            part = np.exp(-np.log(20.0) * np.square(x))
        elif window == "hann":
            part = np.square(np.cos(0.5 * np.pi * x))
        else:
            part = np.ones(axis.size)
        out = out[..., None] * part
    return out


def _transform(values, i: int, start: float, step: float, u: np.ndarray) -> np.ndarray:
    """Σ_n values_n exp(-2πi (start + n step) u) along axis i, at any uniform u: a chirp-z transform."""
    du = u[1] - u[0]
    ratio, first = np.exp(-2j * np.pi * step * du), np.exp(2j * np.pi * step * u[0])
    out = czt(values, m=u.size, w=ratio, a=first, axis=i)
    phase = np.exp(-2j * np.pi * start * u)
    return out * phase.reshape([-1 if j == i else 1 for j in range(out.ndim)])
