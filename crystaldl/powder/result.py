"""`Classification`: what `PowderPattern.classify` returns."""
from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import __version__
from ..physics.symmetry import (
    CRYSTAL_SYSTEMS,
    SYSTEM_OF_GROUP,
    extinction_members,
    extinction_of_group,
    extinction_symbols,
    symbols,
)
from ..storage.atomic import write_json
from ..storage.records import ENDINGS
from .pattern import PowderPattern

if TYPE_CHECKING:
    from .cells import Cell
    from .families import KnownCrystal
    from .indexing.evidence import Lattice


#: summed height of lines foreign to the best lattice (strongest line 1) above which an answer is not confident
UNEXPLAINED = 0.3


@dataclass(frozen=True, eq=False)
class Classification:
    """Crystal system, extinction group and space group of a powder pattern, with calibrated probabilities.

    Attributes
    ----------
    pattern : PowderPattern, the input
    space_group_probabilities : (230,) float, sums to 1; entry n - 1 belongs to space group n
    method : str
    model, model_sha256 : str, the network
    arbiter, arbiter_sha256 : str, what weighed the network against the lattice search; empty where nothing did
    confident : bool
        The probability of the crystal system reaches the model's threshold (above which 95 % of the development patterns
        are right, cross-validated: four fifths of the measured ones), the best lattice is of that system or the crystal is
        recognised, no strong lines stay unexplained, at least four lines were found, and no second phase is suspected.
    second_phase_probability : float, that lines of another phase exceed 3 % of the strongest; NaN if the model cannot say
    primitive_volume : float, estimated volume of the primitive cell in Å³; NaN if the model cannot say
    lines : int, lines found in the pattern; -1 if the model does not use lines
    lattices : tuple of Lattice, what the lattice search found, best first; empty where the method does not search
    recognised : float
        Share of the answer that rests on recognising a crystal known from training (look-alikes of the same cell), 0 to 1;
        NaN where the method does not look for known crystals.
    known_crystals : tuple of (name, space_group, probability), crystals known from training that the pattern looks like, the
        likeliest first; see `crystaldl.powder.families.KnownCrystal`
    unexplained : (k, 2) float, lines that the best of them does not explain: 1/d in Å⁻¹ and height relative to the
        strongest line, strongest first
    """

    pattern: PowderPattern
    space_group_probabilities: np.ndarray
    method: str
    model: str
    model_sha256: str
    confident: bool
    second_phase_probability: float = float("nan")
    primitive_volume: float = float("nan")
    lines: int = -1
    lattices: tuple[Lattice, ...] = ()
    recognised: float = float("nan")
    known_crystals: tuple[KnownCrystal, ...] = ()
    arbiter: str = ""
    arbiter_sha256: str = ""
    unexplained: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    version: str = __version__

    def __post_init__(self):
        for name in ("space_group_probabilities", "unexplained"):
            value = np.array(getattr(self, name), dtype=float)
            value.setflags(write=False)
            object.__setattr__(self, name, value)

    # ------------------------------------------------------------------------------------------ answers

    @property
    def space_group(self) -> int:
        """Number of the most probable space group.

        The most probable system sums many groups: where no group stands out, it can differ from this group's system.
        """
        return int(np.argmax(self.space_group_probabilities)) + 1

    @property
    def space_group_symbol(self) -> str:
        """Hermann-Mauguin symbol of `space_group`."""
        return symbols()[self.space_group - 1]

    @property
    def crystal_system(self) -> str:
        """The most probable crystal system."""
        p = self.crystal_system_probabilities
        return max(p, key=p.get)

    @property
    def crystal_system_probabilities(self) -> dict[str, float]:
        """Probability of each crystal system: sums of its space groups' probabilities."""
        totals = np.bincount(SYSTEM_OF_GROUP, weights=self.space_group_probabilities, minlength=len(CRYSTAL_SYSTEMS))
        return dict(zip(CRYSTAL_SYSTEMS, totals.tolist(), strict=True))

    @property
    def looks_like(self) -> str:
        """Name of the likeliest known crystal of the answer's space group, empty where none is likely: a guess at the phase."""
        own = (k.name for k in self.known_crystals if k.name and k.space_group == self.space_group)
        return next(own, "")

    @property
    def extinction_group_probabilities(self) -> np.ndarray:
        """Probability of each of the 99 powder extinction groups, (99,), in the order of `extinction_symbols`."""
        return np.bincount(extinction_of_group(), weights=self.space_group_probabilities, minlength=len(extinction_symbols()))

    @property
    def extinction_group(self) -> str:
        """Symbol of the most probable extinction group (International Tables A): what absent lines can tell."""
        return extinction_symbols()[int(np.argmax(self.extinction_group_probabilities))]

    @property
    def extinction_space_groups(self) -> tuple[int, ...]:
        """Space groups that the most probable extinction group leaves possible."""
        return extinction_members()[int(np.argmax(self.extinction_group_probabilities))]

    def top(self, n: int = 5) -> list[tuple[int, str, float]]:
        """The ``n`` most probable space groups: (number, symbol, probability), most probable first."""
        if not isinstance(n, (int, np.integer)) or isinstance(n, bool) or not 1 <= n <= 230:
            raise ValueError(f"n is {n!r}, expected a whole number from 1 to 230.")
        best = np.argsort(-self.space_group_probabilities, kind="stable")[:n]
        return [(int(i) + 1, symbols()[i], float(self.space_group_probabilities[i])) for i in best]

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Unit cells of the likely lattices, refined on the pattern's own lines, best first: `crystaldl.powder.cells.Cell`.

        ``result.cells[0].refine(pattern)`` refines again, ``to_cif(path)`` exports. Empty where the method does not search.
        `PowderPattern.index` searches longer, over more zero shifts.
        """
        from .cell_refinement import build_cell

        peaks = self.pattern.peaks() if self.lattices else None
        return tuple(
            build_cell(c.bravais, c.cell, c.zero, c.score, peaks)
            for c in self.lattices[:5]
            if len(peaks) > {"c": 1, "t": 2, "h": 2, "o": 3, "m": 4, "a": 6}[c.bravais[0]]
        )

    def explain(self) -> str:
        """What decided, in a few sentences: the lattice, its rivals, lines that speak for or against, the network's part."""
        from .explain import explanation

        return explanation(self)

    def remainder(self) -> PowderPattern:
        """What the first lattice leaves of the pattern, background removed: classify it to look at a second phase.

        Points beneath the fitted lines, where the difference is the fit's own error, are NaN (not measured), so lines of the
        second phase that coincide with those of the first are lost.

        Raises
        ------
        DataError
            The result holds no fitted lattice: the method does not search, nothing was found, or it was read from a file.
        """
        from .remainder import remainder

        return remainder(self)

    # ------------------------------------------------------------------------------------------ out

    def to_dict(self) -> dict:
        """Everything but the pattern's data, ready for JSON."""
        finite = lambda v: v if np.isfinite(v) else None  # noqa: E731
        return {
            "name": self.pattern.name, "crystal_system": self.crystal_system, "space_group": self.space_group,
            "space_group_symbol": self.space_group_symbol, "extinction_group": self.extinction_group,
            "confident": self.confident, "crystal_system_probabilities": self.crystal_system_probabilities,
            "top": [{"space_group": n, "symbol": s, "probability": p} for n, s, p in self.top(10)],
            "space_group_probabilities": self.space_group_probabilities.tolist(),
            "second_phase_probability": finite(self.second_phase_probability),
            "primitive_volume": finite(self.primitive_volume), "recognised": finite(self.recognised),
            "looks_like": self.looks_like,
            "known_crystals": [asdict(k) for k in self.known_crystals],
            "lines": self.lines, "method": self.method,
            "lattices": [{"bravais": c.bravais, "cell": [round(float(v), 5) for v in c.cell], "score": c.score, "zero": c.zero}
                         for c in self.lattices],
            "unexplained": [{"d": 1 / q, "height": h} for q, h in self.unexplained.tolist()],
            "model": self.model, "model_sha256": self.model_sha256, "arbiter": self.arbiter,
            "arbiter_sha256": self.arbiter_sha256, "crystaldl": self.version,
            "wavelength": self.pattern.radiation.wavelength,
            "two_theta_range": [float(self.pattern.two_theta[0]), float(self.pattern.two_theta[-1])],
        }  # fmt: skip

    def save(self, path) -> Path:
        """Write the result and the pattern it came from: ``.h5`` (EMD 1.0, `crystaldl.read` reads it back), else JSON.

        An interrupted write leaves an old file whole.
        """
        if str(path).lower().endswith(ENDINGS):
            from .files import RECORDS

            return RECORDS.save(path, self)
        return write_json(path, {**self.to_dict(), "two_theta": self.pattern.two_theta, "intensity": self.pattern.intensity})

    def show(self, n: int = 5):
        """The pattern beside the probabilities of the crystal systems and the ``n`` best space groups: (figure, axes)."""
        from .plot import plot_classification

        return plot_classification(self, n)

    def __repr__(self) -> str:
        system = self.crystal_system_probabilities[self.crystal_system]
        group = self.space_group_probabilities[self.space_group - 1]
        name = f"{self.pattern.name}: " if self.pattern.name else ""
        doubt = "" if self.confident else ", not confident"
        return (f"<Classification {name}{self.crystal_system} ({system:.0%}), {self.space_group_symbol} no. {self.space_group} "
                f"({group:.0%}), extinction group {self.extinction_group}{doubt}; {self.model}>")

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{number}</td><td>{escape(symbol)}</td><td>{p:.1%}</td></tr>" for number, symbol, p in self.top(5))
        systems = sorted(self.crystal_system_probabilities.items(), key=lambda item: -item[1])[:3]
        verdict = "confident" if self.confident else "<b>not confident</b>"
        name = escape(self.looks_like or "a known crystal")
        known = f"; {self.recognised:.0%} of it from its likeness to {name}" if self.recognised >= 0.01 else ""
        return (f"<div><b>{escape(self.pattern.name or 'powder pattern')}</b>: {self.crystal_system}, "
                f"{escape(self.space_group_symbol)} ({verdict})<br>"
                f"{', '.join(f'{s} {p:.0%}' for s, p in systems)}; extinction group {escape(self.extinction_group)}{known}"
                f"<table><tr><th>no.</th><th>space group</th><th>probability</th></tr>{rows}</table>"
                f"<small>{escape(self.model)}, {self.lines} lines</small></div>")
