"""`PowderPattern`: a measured powder pattern that knows its axis, its units and its radiation."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..physics.wavelengths import Radiation, resolve_radiation
from . import axes, transform
from .checks import check_axis, check_intensity, check_sigma

__all__ = ["PowderPattern"]


class PowderPattern:
    """One powder diffraction pattern: intensity against 2θ, with its radiation.  Immutable: methods return new patterns.

    Parameters
    ----------
    two_theta : (n,) array_like
        Scattering angle 2θ in degrees, inside (0, 180), strictly increasing.  A strictly decreasing axis is reversed
        together with the data (a scan against d comes that way); any other order is an error.
    intensity : (n,) array_like
        Counts, counts per second or any scale proportional to them.  NaN (or a masked element) means "not measured":
        it is masked, never set to zero.  Negative values are an error unless ``background_subtracted``.
    wavelength : str, float, pair or Radiation
        ``"CuKa"``, ``1.5406`` (Å), … see `crystaldl.physics.wavelengths.resolve_radiation`.  Required.
    name : str
        For titles and tables.
    sigma : (n,) array_like, optional
        Standard uncertainty of each intensity, in its units; 0 or NaN where unknown.
    metadata : dict, optional
        Whatever else is known, as the readers put it there.
    background_subtracted : bool
        Whether a background is already removed, so that noise makes small negative intensities legitimate.

    Raises
    ------
    DataError
        Bad axis or intensity, in one sentence: lengths that differ, fewer than 50 points, constant or negative data, …
    WavelengthError
        No wavelength, or one that cannot be understood.
    """

    __slots__ = ("_two_theta", "_intensity", "_sigma", "_radiation", "_name", "_metadata", "_subtracted", "_background")

    _two_theta: np.ndarray
    _intensity: np.ndarray
    _sigma: np.ndarray | None
    _radiation: Radiation
    _name: str
    _metadata: dict
    _subtracted: bool
    _background: np.ndarray | None

    def __init__(
        self, two_theta, intensity, wavelength=None, name="", sigma=None, metadata=None, *, background_subtracted=False
    ):
        if not isinstance(background_subtracted, (bool, int, np.bool_)):
            found = type(background_subtracted).__name__
            raise TypeError(f"background_subtracted is a {found}; expected True or False.")
        x, reverse = check_axis(two_theta)
        y = check_intensity(intensity, x.size, allow_negative=background_subtracted, reverse=reverse)
        s = check_sigma(sigma, x.size, reverse=reverse)
        radiation = resolve_radiation(wavelength)
        facts = {} if metadata is None else dict(metadata)
        self._set(x, y, s, radiation, str(name), facts, bool(background_subtracted), None)

    def _set(self, x, y, sigma, radiation, name, metadata, subtracted, background):
        for array in (x, y, sigma, background):
            if array is not None:
                array.setflags(write=False)
        values = (x, y, sigma, radiation, name, metadata, subtracted, background)
        for slot, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, slot, value)

    def __setattr__(self, key, value):
        raise AttributeError(f"a PowderPattern cannot be changed; make a new one instead of setting {key!r}.")

    def __delattr__(self, key):
        raise AttributeError(f"a PowderPattern cannot be changed; {key!r} cannot be deleted.")

    def __reduce__(self):
        return _restore, tuple(getattr(self, slot) for slot in self.__slots__)

    def _derive(self, **changes) -> PowderPattern:
        """A pattern with some of two_theta, intensity, sigma, radiation, … replaced (arrays are the library's own)."""
        values = {slot[1:]: getattr(self, slot) for slot in self.__slots__}
        unknown = set(changes) - set(values)
        if unknown:
            raise TypeError(f"unknown fields {sorted(unknown)}")
        values.update(changes)
        if values["two_theta"].size < 2:
            raise DataError(f"the result has {values['two_theta'].size} points left; at least 2 are needed.")
        new = object.__new__(PowderPattern)
        new._set(*values.values())
        return new

    # -- construction ----------------------------------------------------------------------------------------------

    @classmethod
    def from_file(cls, path, wavelength=None) -> PowderPattern:
        """Read a measured pattern: xy, xye, csv, RRUFF, Bruker RAW/BRML, Rigaku RASX/RAS, xrdml, STOE, pdCIF, GSAS.

        Parameters
        ----------
        path : str or Path
        wavelength : optional
            Needed when the file does not say; where both are given, the argument wins, with a PlausibilityWarning when
            they differ by more than 0.1 %.

        Raises
        ------
        FileNotFoundError, FileFormatError, WavelengthError
        """
        from .readers.read import read_pattern

        return read_pattern(path, wavelength)

    @classmethod
    def from_d(cls, d, intensity, wavelength, **kwargs) -> PowderPattern:
        """A pattern measured against d (Å), placed on the 2θ axis of ``wavelength``; in either order of d."""
        radiation = resolve_radiation(wavelength)
        return cls(axes.d_to_two_theta(d, radiation.wavelength), intensity, radiation, **kwargs)

    @classmethod
    def from_q(cls, q, intensity, wavelength, **kwargs) -> PowderPattern:
        """A pattern measured against q = 4π sin θ / λ (Å⁻¹), placed on the 2θ axis of ``wavelength``."""
        radiation = resolve_radiation(wavelength)
        return cls(axes.q_to_two_theta(q, radiation.wavelength), intensity, radiation, **kwargs)

    # -- data ------------------------------------------------------------------------------------------------------

    @property
    def two_theta(self) -> np.ndarray:
        """(n,) 2θ in degrees, strictly increasing, read-only."""
        return self._two_theta

    @property
    def intensity(self) -> np.ndarray:
        """(n,) intensity, NaN where not measured, read-only."""
        return self._intensity

    @property
    def sigma(self) -> np.ndarray | None:
        """(n,) standard uncertainty of the intensity, or None."""
        return self._sigma

    @property
    def mask(self) -> np.ndarray:
        """(n,) bool, True where the point was not measured."""
        return np.isnan(self._intensity)

    @property
    def radiation(self) -> Radiation:
        """The line or the doublet it was measured with."""
        return self._radiation

    @property
    def wavelength(self) -> float:
        """The single wavelength, or the Kα1 wavelength of a doublet, in Å."""
        return self._radiation.wavelength

    @property
    def name(self) -> str:
        return self._name

    @property
    def metadata(self) -> dict:
        """A copy of what is known besides."""
        return dict(self._metadata)

    @property
    def background_subtracted(self) -> bool:
        """Whether a background has been removed."""
        return self._subtracted

    @property
    def background(self) -> np.ndarray | None:
        """(n,) the background that `subtract_background` removed, or None."""
        return self._background

    @property
    def d(self) -> np.ndarray:
        """(n,) lattice spacing d = λ / (2 sin θ) in Å, with the Kα1 wavelength of a doublet; falls along the axis."""
        return 1.0 / self.inverse_d

    @property
    def inverse_d(self) -> np.ndarray:
        """(n,) 1/d in Å⁻¹."""
        return axes.two_theta_to_inverse_d(self._two_theta, self.wavelength)

    @property
    def q(self) -> np.ndarray:
        """(n,) q = 2π/d in Å⁻¹."""
        return 2 * np.pi * self.inverse_d

    @property
    def step(self) -> float:
        """Median step of the axis in degrees."""
        return float(np.median(np.diff(self._two_theta)))

    # -- new patterns ----------------------------------------------------------------------------------------------

    def crop(self, low=None, high=None) -> PowderPattern:
        """The points with low ≤ 2θ ≤ high (degrees)."""
        return transform.crop(self, low, high)

    def rebin(self, step, how="mean") -> PowderPattern:
        """Bins of width ``step`` (degrees), centred on multiples of it; see `crystaldl.powder.transform.rebin`.

        ``how="mean"`` keeps the intensity scale, ``how="sum"`` keeps the total count.
        """
        return transform.rebin(self, step, how)

    def to_wavelength(self, wavelength) -> PowderPattern:
        """The same pattern on the 2θ axis of another wavelength: every point keeps its d; see `transform.to_wavelength`."""
        return transform.to_wavelength(self, wavelength)

    def strip_kalpha2(self) -> PowderPattern:
        """The Kα1 part of a Kα doublet (Rachinger's correction); see `transform.strip_kalpha2`."""
        return transform.strip_kalpha2(self)

    def subtract_background(self, method="arpls", width=None) -> PowderPattern:
        """Remove a smooth background; the result knows it as ``.background``.  See `crystaldl.powder.background`.

        Parameters
        ----------
        method : {"arpls", "asls", "snip", "polynomial"}
        width : float, optional
            Features narrower than this (degrees 2θ) are kept; by default from the data.
        """
        from .background import subtract

        return subtract(self, method, width)

    # -- answers ---------------------------------------------------------------------------------------------------

    def peaks(self, min_significance=5.0, max_peaks=None):
        """Diffraction lines with positions, intensities and uncertainties: a `crystaldl.powder.peaks.PeakList`.

        Parameters
        ----------
        min_significance : float
            Smallest integrated intensity over its standard uncertainty.
        max_peaks : int, optional
            Keep only so many, the most significant.
        """
        from .peaks import find_peaks

        return find_peaks(self, min_significance, max_peaks)

    def classify(self, method="auto", device="auto", model=None, recognise=True):
        """Crystal system, extinction group and space group with probabilities: a `Classification`.

        Arguments as those of `crystaldl.powder.classify.classify_patterns`.
        """
        from .classify import classify_patterns

        options = {"device": device, "model": model, "recognise": recognise}
        return classify_patterns([self], method=method, progress=False, **options)[0]

    def index(self, peaks=None, *, systems=None, progress=True, **settings):
        """Unit cells that explain the lines, best first: a `crystaldl.powder.cells.CellSearch`.

        Soon after a centred cell often stands the same cell without its centring: lines that tell the two apart can be too weak
        to be seen. How far it scores below says how little speaks for them (log-likelihood, less the price of a larger cell).

        Parameters
        ----------
        peaks : PeakList or array of 2θ in degrees, optional
            The lines. By default those that `peaks` finds, and the whole profile: where they do not decide, and for weak
            lines that tell a superlattice (pseudo-centred structures).
        systems : str or sequence of str, optional
            Crystal systems to search; all seven by default. The search ends early when one of high symmetry fits.
        progress : bool
            Whether a bar says what is being searched.
        max_volume : float, optional
            Largest volume of a primitive cell in Å³; by default 3000, for hexagonal axes and tetragonal cells 12000, cubic 27000.
        lines : int
            Low-angle lines that cells are made from and first judged by, 20 by default.
        impurities : int
            How many of these may belong to something else, 2 by default.
        zero_limit : float
            Largest zero shift of 2θ in degrees, 0.2 by default; half of it is expected.
        volume_hint : float, optional
            Expected volume of the primitive cell in Å³; cells from 0.2 to 1.25 times as large are made.
        time_limit : float
            Seconds after which no more is tried than indices of low-angle lines without a zero shift, and the profile;
            10 by default.

        Raises
        ------
        DataError
            Fewer than four lines, or an argument that cannot be meant.
        """
        from .index import index_pattern

        return index_pattern(self, peaks, systems=systems, progress=progress, **settings)

    def show(self, ax=None, axis="two_theta", scale="sqrt", peaks=None):
        """Draw the pattern; returns (figure, axes).

        Parameters
        ----------
        ax : matplotlib Axes, optional
        axis : {"two_theta", "q", "d"}
        scale : {"sqrt", "linear", "log"}
        peaks : bool or PeakList, optional
            Ticks at these lines; True finds them.
        """
        from .plot import plot_pattern

        lines = self.peaks() if peaks is True else None if peaks is False else peaks
        return plot_pattern(self, ax, axis=axis, scale=scale, peaks=lines)

    def save(self, path) -> Path:
        """Write what `from_file` reads back: ``.xy``, ``.xye`` (with sigma) or ``.csv``; ``.h5`` (EMD 1.0) keeps everything."""
        from .writers import write_pattern

        return write_pattern(self, path)

    to_xy = save

    # -- printing --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._two_theta.size

    def _facts(self) -> dict[str, str]:
        missing = int(self.mask.sum())
        facts = {
            "2θ": f"{self._two_theta[0]:.4g}…{self._two_theta[-1]:.4g}° in {len(self)} points",
            "step": f"{self.step:.4g}°",
            "radiation": f"{self._radiation} (λ = {self.wavelength:.6g} Å)",
            "intensity": f"{np.nanmin(self._intensity):.6g}…{np.nanmax(self._intensity):.6g}",
        }
        if missing:
            facts["not measured"] = f"{missing} points"
        if self._subtracted:
            facts["background"] = "subtracted"
        return facts

    def __repr__(self) -> str:
        title = f" {self._name!r}" if self._name else ""
        return f"<PowderPattern{title}: " + ", ".join(f"{k} {v}" for k, v in self._facts().items()) + ">"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in self._facts().items())
        return f"<table><caption>PowderPattern {escape(self._name)}</caption>{rows}</table>"


def _restore(*values) -> PowderPattern:
    """Rebuild a pickled pattern without checking it again (a derived pattern may hold small negative intensities)."""
    new = object.__new__(PowderPattern)
    new._set(*values)
    return new
