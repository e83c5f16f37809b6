"""`DiffuseVolume`: single-crystal diffuse scattering on a reciprocal-space grid that knows its lattice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DataError
from ..physics.lattice import cell_matrix
from .checks import (
    check_axes,
    check_basis,
    check_data,
    check_lattice,
    check_mask,
    check_number,
    check_radiation,
    check_sequence,
    check_sigma,
    hkl_geometry,
)
from .grid import q_lengths
from .naming import facts, html_table, one_line

__all__ = ["DiffuseVolume"]

_KEEP = object()


class DiffuseVolume:
    """Diffuse intensity on a plane or a volume of reciprocal space.  Immutable: methods return new volumes.

    Parameters
    ----------
    data : (n_h, n_k, n_l) or (n, m) array_like
        Intensity on any scale; negative values are allowed.  NaN (or a masked element) means "not measured".
    h, k, l : (n,) array_like or float
        Increasing, uniform axes in reciprocal lattice units (r.l.u.), one per dimension of a volume.  For a plane
        exactly one of them is a number, the fixed index, and the data axes are the other two in the order h, k, l.
    lattice : (6,) sequence
        Cell ``(a, b, c, alpha, beta, gamma)`` in Å and degrees.  Required; a plane whose lattice is not known comes
        in through `from_pixels`.
    mask : bool array_like like data, optional
        **True where measured and usable.**  NaN in data is masked anyway.
    sigma : array_like like data, optional
        Standard uncertainty of each intensity; 0 or NaN where unknown.
    radiation : {"xray", "neutron", "electron"}
    name : str
        For titles and tables.

    Raises
    ------
    DataError
        In one sentence: shapes that differ, no lattice, an axis that is not increasing or not uniform, complex or
        infinite data, nothing measured, …

    Notes
    -----
    A pixel (i, j[, m]) lies at ``hkl = origin + axes[0][i] * basis[0] + axes[1][j] * basis[1] [+ axes[2][m] * basis[2]]``.
    |Q| = 2π/d in Å⁻¹, 2π inside, everywhere.  ``data`` is NaN exactly where ``mask`` is False.
    """

    __slots__ = ("_data", "_mask", "_sigma", "_axes", "_basis", "_origin", "_lattice", "_radiation", "_name", "_history")

    _data: np.ndarray
    _mask: np.ndarray
    _sigma: np.ndarray | None
    _axes: tuple[np.ndarray, ...]
    _basis: np.ndarray
    _origin: np.ndarray
    _lattice: tuple[float, ...] | None
    _radiation: str
    _name: str
    _history: tuple[str, ...]

    def __init__(self, data, h, k, l, lattice=None, *, mask=None, sigma=None, radiation="xray", name=""):
        data = check_data(data)
        axes, names, basis, origin = hkl_geometry(h, k, l, data.ndim)
        axes = check_axes(axes, data.shape, names)
        self._fill(data, mask, sigma, (axes, basis, origin, check_lattice(lattice)), radiation, name)

    def _fill(self, data, mask, sigma, geometry, radiation, name, history=()):
        """Check what every constructor shares and freeze; data is the library's own array by now."""
        measured = np.isfinite(data)
        mask = check_mask(mask, data.shape)
        if mask is not None:
            measured &= mask
        if not measured.any():
            reason = "mask is False everywhere data is finite" if mask is not None else "data is NaN everywhere"
            raise DataError(f"{reason}; at least one measured pixel is expected.")
        data[~measured] = np.nan
        sigma = check_sigma(sigma, data.shape)
        if sigma is not None:
            sigma[~measured] = np.nan
        values = (data, measured, sigma, *geometry, check_radiation(radiation), str(name), tuple(history))
        self._freeze(*values)

    def _freeze(self, *values):
        for slot, value in zip(self.__slots__, values, strict=True):
            for array in value if slot == "_axes" else (value,):
                if isinstance(array, np.ndarray):
                    array.setflags(write=False)
            object.__setattr__(self, slot, value)

    def __setattr__(self, key, value):
        raise AttributeError(f"a DiffuseVolume cannot be changed; make a new one instead of setting {key!r}.")

    def __delattr__(self, key):
        raise AttributeError(f"a DiffuseVolume cannot be changed; {key!r} cannot be deleted.")

    def __reduce__(self):
        return _restore, tuple(getattr(self, slot) for slot in self.__slots__)

    # -- construction ----------------------------------------------------------------------------------------------

    @classmethod
    def from_basis(
        cls, data, axes, basis, origin, lattice=None, *, mask=None, sigma=None, radiation="xray", name=""
    ) -> DiffuseVolume:
        """A plane or volume in general orientation.

        Parameters
        ----------
        data : (n, m[, p]) array_like
        axes : sequence of (n,), (m,)[, (p,)] array_like
            Increasing, uniform coordinates, in units of the basis vectors.
        basis : (ndim, 3) array_like
            hkl vector that each axis runs along, linearly independent.
        origin : (3,) array_like
            hkl where all axes are 0.
        lattice, mask, sigma, radiation, name
            As for `DiffuseVolume`.
        """
        lattice = check_lattice(lattice)
        same = {"mask": mask, "sigma": sigma, "radiation": radiation, "name": name}
        return cls._from_parts(data, axes, basis, origin, lattice, **same)

    @classmethod
    def from_pixels(
        cls, data, *, mask=None, sigma=None, radiation="xray", name="", centre=None
    ) -> DiffuseVolume:
        """A plane whose lattice is not known: ``lattice`` is None and the axes count pixels.

        Parameters
        ----------
        data : (n, m) array_like
        centre : (2,) sequence, optional
            Pixel coordinates of Q = 0, counted from 0; by default the middle of the array, ((n-1)/2, (m-1)/2).
        mask, sigma, radiation, name
            As for `DiffuseVolume`.
        """
        data = check_data(data)
        if data.ndim != 2:
            raise DataError(f"data has the shape {data.shape}; from_pixels expects a plane (2-D).")
        middle = [(n - 1) / 2 for n in data.shape]
        centre = [check_number(c, "centre") for c in check_sequence(middle if centre is None else centre, 2, "centre")]
        axes = [np.arange(n) - c for n, c in zip(data.shape, centre, strict=True)]
        same = {"mask": mask, "sigma": sigma, "radiation": radiation, "name": name}
        return cls._from_parts(data, axes, np.eye(3)[:2], np.zeros(3), None, **same)

    @classmethod
    def from_file(cls, path, *, lattice=None, radiation=None, **options) -> DiffuseVolume:
        """Read EMD, Yell, Meerkat, "Disorder scattering 1.0", Mantid MDHisto, NXdata, nxrefine, DISCUS or npy files.

        Parameters
        ----------
        path : str or Path
        lattice : (6,) sequence, optional
            Needed when the file has none; where both are given, the argument wins.
        radiation : {"xray", "neutron", "electron"}, optional
            By default what the file says, else "xray".
        **options
            See `crystaldl.diffuse.readers.read.read_volume`: ``axes`` (npy), ``missing``, ``name``, ``dataset``.

        Raises
        ------
        FileNotFoundError
        FileFormatError
            Truncated, not HDF5, or of a layout that is not known.
        DataError
            Neither the file nor the argument gives a lattice.
        """
        from .readers.read import read_volume

        return read_volume(path, lattice=lattice, radiation=radiation, **options)

    def replace(self, *, data=_KEEP, mask=_KEEP, sigma=_KEEP, name=_KEEP, history=None) -> DiffuseVolume:
        """The same geometry with other values, and one more line of history.

        Parameters
        ----------
        data, sigma : array_like like data
            ``sigma=None`` drops the uncertainties.
        mask : bool array_like like data, or None
            True where usable.  Without it the old mask stays (and NaN in new data is masked besides); ``None`` takes
            every finite pixel of the new data.
        name : str
        history : str, optional
            What was done; by default the names of what was replaced.

        Returns
        -------
        DiffuseVolume
        """
        given = {"data": data, "mask": mask, "sigma": sigma, "name": name}
        changed = [key for key, value in given.items() if value is not _KEEP]
        array = check_data(self._data if data is _KEEP else data)
        if array.shape != self.shape:
            raise DataError(f"data has the shape {array.shape}; expected {self.shape}, that of the volume it replaces.")
        entry = history or (f"replace({', '.join(changed)})" if changed else "")
        new = object.__new__(type(self))
        new._fill(
            array,
            self._mask if mask is _KEEP else mask,
            self._sigma if sigma is _KEEP else sigma,
            (self._axes, self._basis, self._origin, self._lattice),
            self._radiation,
            self._name if name is _KEEP else name,
            (*self._history, entry) if entry else self._history,
        )
        return new

    @classmethod
    def _from_parts(
        cls, data, axes, basis, origin, lattice, *, mask=None, sigma=None, radiation="xray", name="", history=()
    ) -> DiffuseVolume:
        """From everything there is; ``lattice`` is checked already, or None for pixels."""
        data = check_data(data)
        axes = check_sequence(axes, data.ndim)
        axes = check_axes(axes, data.shape, tuple(f"axes[{i}]" for i in range(data.ndim)))
        geometry = (axes, *check_basis(basis, origin, data.ndim), lattice)
        new = object.__new__(cls)
        new._fill(data, mask, sigma, geometry, radiation, name, history)
        return new

    def _derive(self, data, axes, *, basis=None, origin=None, sigma=None, history) -> DiffuseVolume:
        """Another grid over the same lattice; NaN in data is what was not measured."""
        if basis is None:
            basis, origin = self._basis, self._origin
        same = {"sigma": sigma, "radiation": self._radiation, "name": self._name}
        return self._from_parts(data, axes, basis, origin, self._lattice, history=(*self._history, history), **same)

    # -- data ------------------------------------------------------------------------------------------------------

    @property
    def data(self) -> np.ndarray:
        """Intensity, float64, NaN where not measured; read-only."""
        return self._data

    @property
    def mask(self) -> np.ndarray:
        """bool like data, True where measured and usable; read-only."""
        return self._mask

    @property
    def sigma(self) -> np.ndarray | None:
        """Standard uncertainty like data, NaN where unknown or masked, or None; read-only."""
        return self._sigma

    @property
    def axes(self) -> tuple[np.ndarray, ...]:
        """One increasing, uniform coordinate array per dimension, in units of `basis`."""
        return self._axes

    @property
    def basis(self) -> np.ndarray:
        """(ndim, 3) hkl vector of each axis."""
        return self._basis

    @property
    def origin(self) -> np.ndarray:
        """(3,) hkl where all axis coordinates are 0."""
        return self._origin

    @property
    def lattice(self) -> tuple[float, ...] | None:
        """``(a, b, c, alpha, beta, gamma)`` in Å and degrees, or None for a plane of pixels."""
        return self._lattice

    @property
    def radiation(self) -> str:
        return self._radiation

    @property
    def name(self) -> str:
        return self._name

    @property
    def history(self) -> tuple[str, ...]:
        """What was done to the data, in order."""
        return self._history

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    # -- geometry --------------------------------------------------------------------------------------------------

    def hkl(self) -> np.ndarray:
        """(*shape, 3) indices of every pixel, in r.l.u. (pixels from the centre when the lattice is not known)."""
        out = np.broadcast_to(self._origin, (*self.shape, 3)).copy()
        for i, (axis, vector) in enumerate(zip(self._axes, self._basis, strict=True)):
            out += axis.reshape([-1 if j == i else 1 for j in range(self.ndim)] + [1]) * vector
        return out

    def reciprocal_basis(self) -> np.ndarray:
        """(3, 3) rows a*, b*, c* in Å⁻¹, Cartesian, 2π inside; a along x and b in the xy plane."""
        if self._lattice is None:
            raise DataError("the lattice of this plane is not known (from_pixels), so it has no Q in Å⁻¹.")
        return 2 * np.pi * np.linalg.inv(cell_matrix(self._lattice)).T

    def q_vectors(self) -> np.ndarray:
        """(*shape, 3) Cartesian Q of every pixel in Å⁻¹, 2π inside."""
        return self.hkl() @ self.reciprocal_basis()

    def q(self) -> np.ndarray:
        """|Q| of every pixel in Å⁻¹, 2π inside."""
        return q_lengths(self)

    def q_metric(self) -> np.ndarray:
        """(ndim, ndim) metric M of the axes: steps dx of the axis coordinates are |ΔQ|² = dx·M·dx apart, Å⁻²."""
        vectors = self._basis @ self.reciprocal_basis()
        return vectors @ vectors.T

    # -- new volumes -----------------------------------------------------------------------------------------------

    def symmetrize(self, laue, *, outlier_sigma=4.0) -> DiffuseVolume:
        """Average over the Laue class, reject outliers, fill what equivalents measured; see `crystaldl.diffuse.symmetry`.

        Parameters
        ----------
        laue : str
            "-1", "2/m", "mmm", "4/m", "4/mmm", "-3", "-3m1", "-31m", "6/m", "6/mmm", "m-3" or "m-3m".
        outlier_sigma : float or None
            Equivalents further than so many robust standard deviations from their median are left out.
        """
        from .symmetry import symmetrize

        return symmetrize(self, laue, outlier_sigma=outlier_sigma)

    def punch_bragg(self, radius=0.1, *, centring="P", units="rlu", extra=None) -> DiffuseVolume:
        """Mask (never fill) spheres around the Bragg nodes; see `crystaldl.diffuse.transform.punch_bragg`."""
        from .transform import punch_bragg

        return punch_bragg(self, radius, centring=centring, units=units, extra=extra)

    def subtract_background(self, background=None, *, scale=1.0, **options) -> DiffuseVolume:
        """Subtract a smooth radial background, an array or another volume; see `transform.subtract_background`."""
        from .transform import subtract_background

        return subtract_background(self, background, scale=scale, **options)

    def rebin(self, factors) -> DiffuseVolume:
        """Average blocks of ``factors`` pixels, masks and uncertainties minded; see `transform.rebin`."""
        from .transform import rebin

        return rebin(self, factors)

    def plane(self, name=None, *, normal=None, offset=0.0, thickness=0.0) -> DiffuseVolume:
        """A plane of a volume: ``"hk0"``, ``"h0l"``, ``"hk0.5"``, ``"hhl"``, or a normal and an offset; see `slices.plane`."""
        from .slices import plane

        return plane(self, name, normal=normal, offset=offset, thickness=thickness)

    # -- answers ---------------------------------------------------------------------------------------------------

    def delta_pdf(self, *, window="gaussian", **options):
        """The 3D-ΔPDF (for a plane its projection): a `crystaldl.diffuse.delta_pdf.DeltaPDF`."""
        from .delta_pdf import delta_pdf

        return delta_pdf(self, window=window, **options)

    def separate(self, *, method="auto", model=None, device="auto", **options):
        """Molecular form factor and short-range order, each with its uncertainty; see `crystaldl.diffuse.separate`."""
        from .separate import separate

        return separate(self, method=method, model=model, device=device, **options)

    def refine_sro(self, shells=6, laue=None, **options):
        """Warren-Cowley parameters with standard uncertainties; see `crystaldl.diffuse.sro.refine`."""
        from .sro.refine import refine_sro

        return refine_sro(self, shells=shells, laue=laue, **options)

    def show(self, ax=None, **options):
        """Draw it in Cartesian aspect; returns (figure, axes); see `crystaldl.diffuse.plot.plot_volume`."""
        from .plot import plot_volume

        return plot_volume(self, ax, **options)

    def save(self, path, *, format=None) -> Path:
        """Write EMD 1.0 (default), Yell 1.0 or NXdata; see `crystaldl.diffuse.writers.write_volume`."""
        from .writers import write_volume

        return write_volume(self, path, format=format)

    to_file = save

    # -- printing --------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return one_line("DiffuseVolume", self._name, facts(self))

    def _repr_html_(self) -> str:
        return html_table("DiffuseVolume", self._name, facts(self))


def _restore(*values) -> DiffuseVolume:
    """Rebuild a pickled volume without checking it again."""
    new = object.__new__(DiffuseVolume)
    new._freeze(*values)
    return new
