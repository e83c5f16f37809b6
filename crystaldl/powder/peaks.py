"""Diffraction lines of a measured pattern: found by a matched filter, measured by least squares.

The search (`crystaldl.powder.linesearch`) proposes lines, the fit (`crystaldl.powder.linefit`) measures them in groups
of overlapping profiles, what is left is searched again, and lines that are not significant are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from numbers import Real

import numpy as np

from ..errors import DataError
from ..physics.wavelengths import Radiation
from . import axes
from .linefit import Lines, choose_doublet, fit_lines, split_lines
from .linesearch import Sampled, line_width, sample, search

__all__ = ["PeakList", "find_peaks"]


@dataclass(frozen=True, eq=False)
class PeakList:
    """Diffraction lines in order of 2θ; every field but ``radiation`` is an (n,) array.

    Attributes
    ----------
    position, position_sigma : degrees 2θ
        Of the Kα1 line where the radiation is a doublet, with its standard uncertainty (counting statistics, scaled up
        where the profile does not fit; systematic errors such as a zero shift are not in it).
    d : Å
    intensity, intensity_sigma : intensity × degrees
        Integrated above the background, Kα2 included, with its standard uncertainty.
    height : intensity
        Maximum of the Kα1 line above the background.
    fwhm : degrees 2θ
        Full width at half maximum of one spectral line.
    significance : float
        intensity / intensity_sigma.
    radiation : Radiation
        What the positions refer to; a doublet left open by the pattern is decided here.
    """

    position: np.ndarray
    position_sigma: np.ndarray
    d: np.ndarray
    intensity: np.ndarray
    intensity_sigma: np.ndarray
    height: np.ndarray
    fwhm: np.ndarray
    significance: np.ndarray
    radiation: Radiation

    def __len__(self) -> int:
        return self.position.size

    def __iter__(self):
        """One dict a line."""
        names = self._columns()
        for row in zip(*(getattr(self, name).tolist() for name in names), strict=True):
            yield dict(zip(names, row, strict=True))

    def __getitem__(self, index) -> PeakList:
        """Some of the lines: a slice, a mask or an array of indices (an integer gives a list of one)."""
        index = [index] if isinstance(index, (int, np.integer)) else index
        return replace(self, **{name: getattr(self, name)[index] for name in self._columns()})

    @staticmethod
    def _columns() -> list[str]:
        return [f.name for f in fields(PeakList) if f.name != "radiation"]

    def to_dataframe(self):
        """A pandas DataFrame, one row a line."""
        import pandas as pd

        return pd.DataFrame({name: getattr(self, name) for name in self._columns()})

    def __repr__(self) -> str:
        if not len(self):
            return f"<PeakList: no lines, {self.radiation}>"
        return f"<PeakList: {len(self)} lines, {self.position[0]:.3f}…{self.position[-1]:.3f}° 2θ, {self.radiation}>"

    def _repr_html_(self) -> str:
        return f"<p>{len(self)} lines ({self.radiation})</p>" + self.to_dataframe().to_html(
            float_format="{:.4f}".format
        )


def find_peaks(pattern, min_significance: float = 5.0, max_peaks: int | None = None) -> PeakList:
    """Find and measure the diffraction lines of a `PowderPattern`.

    Parameters
    ----------
    pattern : PowderPattern
        With or without background: a straight background is part of the search and of the fit.
    min_significance : float
        Smallest integrated intensity over its standard uncertainty.
    max_peaks : int, optional
        Keep only the most significant ones.

    Returns
    -------
    PeakList
        Possibly empty.
    """
    if not (isinstance(min_significance, Real) and 0 < min_significance < np.inf):
        raise DataError(f"min_significance is {min_significance!r}; expected a finite number above 0.")
    if max_peaks is not None and not (isinstance(max_peaks, (int, np.integer)) and max_peaks > 0):
        raise DataError(f"max_peaks is {max_peaks!r}; expected a whole number above 0, or None.")
    data = sample(pattern)
    width = line_width(data)
    radiation = pattern.radiation
    if radiation.doublet is None:
        radiation = choose_doublet(data, search(data, width, 8.0, radiation.as_doublet()), radiation)
    lines = _measure(data, width, radiation, float(min_significance))
    return _result(lines, radiation, max_peaks)


def _measure(data: Sampled, width, radiation: Radiation, threshold: float) -> Lines:
    """Search and fit, then search what the fit leaves, twice: shoulders show only when their neighbour is gone."""
    proposal = search(data, width, 0.7 * threshold, radiation)
    lines = fit_lines(data, proposal, radiation, threshold)
    for _ in range(2):
        width = lines.width_model(data.x, width)
        more = search(data, width, threshold, radiation, lines)
        if not len(more):
            break
        before = len(lines)
        lines = fit_lines(data, more, radiation, threshold, lines)
        if len(lines) == before:
            break
    return split_lines(data, lines, radiation, threshold)


def _result(lines: Lines, radiation: Radiation, max_peaks: int | None) -> PeakList:
    order = np.argsort(-lines.significance)[:max_peaks]
    lines = lines.take(order[np.argsort(lines.position[order])])
    doublet = 1 + radiation.alpha2_ratio
    return PeakList(
        position=lines.position,
        position_sigma=lines.position_sigma,
        d=1.0 / axes.two_theta_to_inverse_d(lines.position, radiation.wavelength),
        intensity=lines.area * doublet,
        intensity_sigma=lines.area_sigma * doublet,
        height=lines.height,
        fwhm=lines.fwhm,
        significance=lines.significance,
        radiation=radiation,
    )
