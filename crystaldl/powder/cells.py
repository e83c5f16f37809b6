"""`Cell` and `CellSearch`: what `PowderPattern.index` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from ..physics.lattice import cell_volume
from .axes import inverse_d_to_two_theta
from .cell_refinement import cell_cif, predicted_lines, refine_cell, shifted, with_uncertainty
from .indexing.bravais import system_of
from .peaks import PeakList

__all__ = ["Cell", "CellSearch", "IndexedLines"]

_NAMES = ("a", "b", "c", "α", "β", "γ")


@dataclass(frozen=True, eq=False)
class IndexedLines:
    """Lines that a cell explains, in order of 2θ.

    Attributes
    ----------
    hkl : (n, 3) int, one of the reflections of each line, in the conventional cell
    observed, calculated : (n,) degrees 2θ; the zero shift is part of the calculated position
    difference : (n,) degrees, observed less calculated
    """

    hkl: np.ndarray
    observed: np.ndarray
    calculated: np.ndarray

    @property
    def difference(self) -> np.ndarray:
        return self.observed - self.calculated

    def __len__(self) -> int:
        return len(self.observed)

    def to_dataframe(self):
        """A pandas DataFrame, one row a line."""
        import pandas as pd

        h, k, l = self.hkl.T.reshape(3, -1)
        columns = {"h": h, "k": k, "l": l, "observed": self.observed, "calculated": self.calculated}
        return pd.DataFrame({**columns, "difference": self.difference})


@dataclass(frozen=True, eq=False)
class Cell:
    """A unit cell that explains the lines of a powder pattern.

    Attributes
    ----------
    bravais : str
        One of aP, mP, mC, oP, oC, oI, oF, tP, tI, hP, hR, cP, cI, cF: the highest symmetry of the metric
        that the lines bear, found after Niggli reduction.
    lengths_angles, sigma : (6,) float
        a, b, c in Å and α, β, γ in degrees of the conventional cell (hexagonal axes for hR, unique axis b in monoclinic
        cells) and their standard uncertainties, 0 where symmetry fixes a value.
    volume_sigma : float, Å³
    zero, zero_sigma : float, degrees
        Observed less true 2θ; with ``shift="displacement"`` its value at θ = 0, falling off as cos θ.
    shift : {"zero", "displacement", "none"}
    niggli : (6,) float
        The Niggli-reduced cell: the same for every description of the lattice.
    score : float
        Log-likelihood ratio against chance, less the price of the free parameters; what cells are ranked by.
    m20, fn : float
        Figures of merit of de Wolff (1968) and of Smith & Snyder (1979) of the first ``merit_lines`` indexed lines.
    merit_lines : int, 20 where there are as many
    lines : IndexedLines
    unindexed : (m,) float, 2θ in degrees of lines that the cell does not explain
    peaks : PeakList, all lines that were looked at
    """

    bravais: str
    lengths_angles: np.ndarray
    sigma: np.ndarray
    volume_sigma: float
    zero: float
    zero_sigma: float
    niggli: np.ndarray
    score: float
    m20: float
    fn: float
    merit_lines: int
    lines: IndexedLines
    unindexed: np.ndarray
    peaks: PeakList = field(repr=False)
    shift: str = "zero"

    def __post_init__(self):
        for name in ("lengths_angles", "sigma", "niggli", "unindexed"):
            value = np.array(getattr(self, name), dtype=float)
            value.setflags(write=False)
            object.__setattr__(self, name, value)

    @property
    def system(self) -> str:
        """Crystal system of the lattice; ``hR`` is called trigonal and ``hP`` hexagonal, which lines cannot tell apart."""
        return system_of(self.bravais)

    @property
    def volume(self) -> float:
        """Volume of the conventional cell, Å³."""
        return cell_volume(self.lengths_angles)

    @property
    def wavelength(self) -> float:
        """Å, of the lines."""
        return self.peaks.radiation.wavelength

    def reflections(self, two_theta_max: float) -> tuple[np.ndarray, np.ndarray]:
        """Lines that the lattice allows up to 2θ (degrees): indices (n, 3) and positions (n,), the zero shift included."""
        hkl, q = predicted_lines(
            self.bravais, self.lengths_angles, 2 * np.sin(np.radians(two_theta_max / 2)) / self.wavelength
        )
        return hkl, shifted(inverse_d_to_two_theta(q, self.wavelength), self.zero, self.shift)

    def refine(self, data=None, *, shift: str = "zero") -> Cell:
        """This cell refined by least squares of its parameters and of the shift of the lines.

        Parameters
        ----------
        data : PowderPattern, PeakList or (n,) array of 2θ in degrees, optional
            The lines this cell was found with by default.
        shift : {"zero", "displacement", "none"}
            A constant shift of 2θ; one that falls off as cos θ (height of the sample); none.

        Returns
        -------
        Cell
            With standard uncertainties. Lines farther off than 3.5 standard deviations take no part; scatter beyond
            the uncertainties of the positions is estimated from the residuals and added to them.

        Raises
        ------
        DataError
            Fewer indexed lines than parameters, or a bad argument.
        """
        return refine_cell(self, data, shift)

    def to_cif(self, path) -> Path:
        """Write the cell, its standard uncertainties and the highest space group of its lattice as CIF (no atoms)."""
        from ..storage.atomic import write_text

        write_text(Path(path), cell_cif(self))
        return Path(path)

    def show(self, pattern=None, ax=None):
        """The pattern with ticks where the cell has lines: (figure, axes); without a pattern, the lines as sticks."""
        from .plot_cells import plot_cell

        return plot_cell(self, pattern, ax)

    def _texts(self) -> list[str]:
        return [with_uncertainty(v, s) for v, s in zip(self.lengths_angles, self.sigma, strict=True)]

    def _free(self) -> str:
        """The parameters that symmetry leaves free, as text."""
        texts = self._texts()
        shown = {"c": (0,), "t": (0, 2), "h": (0, 2), "o": (0, 1, 2), "m": (0, 1, 2, 4)}.get(self.bravais[0], range(6))
        return ", ".join(f"{_NAMES[i]} {texts[i]}" for i in shown)

    def __repr__(self) -> str:
        return (
            f"<Cell {self.bravais} {self._free()}; V {self.volume:.2f} Å³, M{self.merit_lines} {self.m20:.1f}, "
            f"F{self.merit_lines} {self.fn:.1f}, {len(self.lines)} lines indexed, {len(self.unindexed)} not, "
            f"score {self.score:.1f}>"
        )

    def _repr_html_(self) -> str:
        return f"<div><b>{self.system}, {self.bravais}</b>: {escape(self._free())}<br>{escape(repr(self)[6:-1])}</div>"


@dataclass(frozen=True, eq=False)
class CellSearch:
    """Cells that explain the lines of a pattern, best first: a sequence of `Cell`.

    Attributes
    ----------
    cells : tuple of Cell
    peaks : PeakList, the lines
    pattern : PowderPattern or None, where the lines come from
    seconds : float, that the search took
    options : the settings of the search, `crystaldl.powder.indexing.pools.IndexOptions`
    """

    cells: tuple[Cell, ...]
    peaks: PeakList
    pattern: object
    seconds: float
    options: object

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self):
        return iter(self.cells)

    def __getitem__(self, index):
        return self.cells[index]

    @property
    def best(self) -> Cell | None:
        """The first cell; None where nothing explains the lines."""
        return self.cells[0] if self.cells else None

    def to_dataframe(self):
        """A pandas DataFrame, one row a cell."""
        import pandas as pd

        return pd.DataFrame([_row(cell) for cell in self.cells])

    def show(self, which: int = 0, ax=None):
        """The pattern with ticks of cell number ``which``: (figure, axes)."""
        from ..errors import DataError

        if not self.cells:
            raise DataError("the search found no cell; there is nothing to show.")
        if not isinstance(which, (int, np.integer)) or not 0 <= which < len(self.cells):
            raise DataError(f"which is {which!r}; expected a whole number from 0 to {len(self.cells) - 1}.")
        return self.cells[which].show(self.pattern, ax)

    def __repr__(self) -> str:
        head = f"<CellSearch: {len(self)} cells from {len(self.peaks)} lines in {self.seconds:.1f} s"
        return "\n".join([head, *(f"  {i} {repr(c)[6:-1]}" for i, c in enumerate(self.cells[:5]))]) + ">"

    def _repr_html_(self) -> str:
        names = ("", "lattice", *_NAMES, "V", "M", "F", "zero", "indexed", "not", "score")
        rows = [f"<tr>{''.join(f'<th>{escape(n)}</th>' for n in names)}</tr>"]
        for i, c in enumerate(self.cells[:10]):
            values = [i, c.bravais, *c._texts(), f"{c.volume:.1f}", f"{c.m20:.1f}", f"{c.fn:.1f}", f"{c.zero:+.3f}",
                      len(c.lines), len(c.unindexed), f"{c.score:.1f}"]  # fmt: skip
            rows.append(f"<tr>{''.join(f'<td>{escape(str(v))}</td>' for v in values)}</tr>")
        return f"<table><caption>{len(self)} cells from {len(self.peaks)} lines</caption>{''.join(rows)}</table>"


def _row(cell: Cell) -> dict:
    values = dict(zip(("a", "b", "c", "alpha", "beta", "gamma"), cell.lengths_angles.tolist(), strict=True))
    return {
        "bravais": cell.bravais, "system": cell.system, **values, "volume": cell.volume, "zero": cell.zero,
        "m20": cell.m20, "fn": cell.fn, "indexed": len(cell.lines), "unindexed": len(cell.unindexed), "score": cell.score,
    }  # fmt: skip
