"""`Classification`: what `PowderPattern.classify` returns."""
from __future__ import annotations

import json
import os
from dataclasses import dataclass
from html import escape
from pathlib import Path

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
from .evidence import Lattice
from .pattern import PowderPattern


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
        The crystal system is calibrated to be right at least nine times in ten, at least four lines were found and no
        second phase is suspected.
    second_phase_probability : float, that lines of another phase exceed 3 % of the strongest; NaN if the model cannot say
    primitive_volume : float, estimated volume of the primitive cell in Å³; NaN if the model cannot say
    lines : int, lines found in the pattern; -1 if the model does not use lines
    lattices : tuple of Lattice, what the lattice search found, best first; empty where the method does not search
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
    arbiter: str = ""
    arbiter_sha256: str = ""
    version: str = __version__

    def __post_init__(self):
        p = np.array(self.space_group_probabilities, dtype=float)
        p.setflags(write=False)
        object.__setattr__(self, "space_group_probabilities", p)

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
            "primitive_volume": finite(self.primitive_volume), "lines": self.lines, "method": self.method,
            "lattices": [{"bravais": c.bravais, "cell": [round(float(v), 5) for v in c.cell], "score": c.score, "zero": c.zero}
                         for c in self.lattices],
            "model": self.model, "model_sha256": self.model_sha256, "arbiter": self.arbiter,
            "arbiter_sha256": self.arbiter_sha256, "crystaldl": self.version,
            "wavelength": self.pattern.radiation.wavelength,
            "two_theta_range": [float(self.pattern.two_theta[0]), float(self.pattern.two_theta[-1])],
        }  # fmt: skip

    def save(self, path) -> Path:
        """Write the result and the pattern it came from as JSON; an interrupted write leaves an old file whole."""
        path = Path(path)
        clean = [None if np.isnan(v) else float(v) for v in self.pattern.intensity]
        content = {**self.to_dict(), "two_theta": self.pattern.two_theta.tolist(), "intensity": clean}
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        beside.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        os.replace(beside, path)
        return path

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
        return (f"<div><b>{escape(self.pattern.name or 'powder pattern')}</b>: {self.crystal_system}, "
                f"{escape(self.space_group_symbol)} ({verdict})<br>"
                f"{', '.join(f'{s} {p:.0%}' for s, p in systems)}; extinction group {escape(self.extinction_group)}"
                f"<table><tr><th>no.</th><th>space group</th><th>probability</th></tr>{rows}</table>"
                f"<small>{escape(self.model)}, {self.lines} lines</small></div>")
