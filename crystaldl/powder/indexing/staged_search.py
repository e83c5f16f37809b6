"""The search of `index` by lines alone: what is tried, in which order, and when to stop.

High symmetry first, at five zero shifts, then cells of any lattice without a zero shift and at the one that the best cells
agree on: `StagedSearch.first`. Other zero shifts (`StagedSearch.more`) take longer than asking the profile, which knows of them.
"""

from __future__ import annotations

import time

import numpy as np

from .bravais import derivative_index, metric_of, sparser
from .coincidences import has_special_metric, owes
from .judgement import beyond_doubt, convincing, raised, ranked, sift, unexplained
from .pools import IndexOptions, Lattice, LineTable, Pool
from .trial_cells import any_lattice, boxes, high_symmetry

__all__ = ["StagedSearch", "alone", "settled"]

#: the strongest lines, which make trial cells too: low-angle lines may be those of a second phase
STRONG = 14
#: score, lead, and lead over lattices that are no kin of the best, that convince: of cells with one or two free parameters, which
#: few lines settle, of orthorhombic and of other ones
FEW, HIGH, LOW = (30.0, 6.0, 6.0), (40.0, 6.0, 15.0), (30.0, 8.0, 8.0)
#: score and lead over others than kin where lines are left over; where nothing below orthorhombic was tried
ALONE, ALONE_HIGH = (75.0, 15.0), (100.0, 20.0)
#: zero shifts at which cells of high symmetry are tried, in quarters of the limit
ZEROS = (0.0, 1.2, -1.2, 2.4, -2.4)


class StagedSearch:
    """Lattices that explain the lines.

    Parameters
    ----------
    lines : LineTable
    options : IndexOptions
    report : callable, told in words what is being done

    Attributes
    ----------
    pool : Pool, cells under examination
    found : list of Lattice, best first, as they came out last
    """

    def __init__(self, lines: LineTable, options: IndexOptions, report=lambda what: None):
        self.lines, self.options, self.report = lines, options, report
        self.pool, self.found = Pool(), []
        self._step = options.zero_limit / 4
        self._few, self._strong = lines.head(options.lines), lines.strong(STRONG)
        self._looked: set[float] = set()  # zero shifts at which low symmetry was tried, and was with more lines, too
        self._tried: set[float] = set()

    def first(self) -> bool:
        """Down to orthorhombic, then cells of any lattice without a zero shift and at the likely one; whether one convinces."""
        if self._down_to_orthorhombic():
            return True
        if not self._low:
            return False
        self.report("monoclinic and triclinic")
        self._low_symmetry(0.0)
        if self._convinced() or self._at(0.0):
            return True
        likely = self._likely(1.0)
        return likely is not None and self._at(likely)

    def more(self, end: float) -> bool:
        """Low symmetry at other zero shifts; whether a cell convinces.

        ``end``: reading of `time.monotonic` after which no other zero shift is tried.
        """
        waiting = [f * self._step for f in ZEROS]
        while self._low and time.monotonic() < end:
            waiting = [zero for zero in waiting if self._is_new(zero, 0.6)]
            likely = self._likely(0.4)
            if likely is None and not waiting:
                break
            if self._at(waiting.pop(0) if likely is None else likely):
                return True
        return False

    def lattices(self) -> list[Lattice]:
        """What was found, best first: smaller cells whose lines suffice are tried, and superlattices of a better cell that
        explain no more lines left out."""
        self.report("smaller cells")
        found, lines, options = self.found, self.lines, self.options
        smaller = [(lattice.zero, cell) for lattice in found[:6] for n in (2, 3) for cell in sparser(lattice.niggli, n)]
        if smaller:
            g = np.array([metric_of(cell) for _, cell in smaller])
            trials = Pool(g, np.array([zero for zero, _ in smaller]), np.full(len(g), "aP"), np.zeros(len(g)))
            trials = trials.improve(lines.head(2 * options.lines), options, (0.012, 0.008), 3.0, 4)
            if len(trials) and trials.score.max() > 0.6 * found[0].score:
                found = self._ranked(self.pool + trials.best(20))
        missed = [float(lines.weight[unexplained(lattice, lines)].sum()) for lattice in found]
        kept: list[int] = []
        for i, lattice in enumerate(found):
            known = (j for j in kept if derivative_index(lattice.niggli, found[j].niggli))
            if not any(missed[i] > missed[j] - 0.8 for j in known if not owes(found[j], lattice)):
                kept.append(i)
        return [found[i] for i in kept]

    @property
    def _low(self) -> bool:
        """Whether cells of low symmetry were asked for."""
        return not {"monoclinic", "triclinic"}.isdisjoint(self.options.systems)

    def _is_new(self, zero: float, apart: float) -> bool:
        """Whether no zero shift within ``apart`` steps was tried."""
        return all(abs(zero - other) > apart * self._step for other in self._tried)

    def _likely(self, apart: float) -> float | None:
        """The zero shift (degrees) that the best lattices agree on, for even wrong ones do; None where it is not new."""
        zero = float(np.median([lattice.zero for lattice in self.found[:5]])) if self.found else 0.0
        return zero if self._is_new(zero, apart) else None

    def _at(self, zero: float) -> bool:
        """Cells of any lattice at a zero shift, monoclinic ones from more lines and indices; whether one convinces."""
        self.report(f"monoclinic and triclinic, zero shift {zero:+.2f}°")
        self._low_symmetry(zero)
        self._monoclinic(zero, self.lines.head(self.options.lines + 8), 12, 60)
        self._tried.add(zero)
        return self._convinced()

    def _low_symmetry(self, zero: float) -> None:
        if zero in self._looked:
            return
        self._looked.add(zero)
        cells = any_lattice(self.lines, zero, self.options)
        self._add(cells + any_lattice(self._strong, zero, self.options) if zero == 0.0 else cells)
        self._monoclinic(zero, self._few, 9, 24)

    def _monoclinic(self, zero: float, lines: LineTable, base: int, count: int) -> None:
        if "monoclinic" in self.options.systems:
            self._add(high_symmetry(lines, zero, ("monoclinic",), base, count))

    def _down_to_orthorhombic(self) -> bool:
        high = tuple(s for s in self.options.systems if s not in ("monoclinic", "triclinic"))
        for zero in tuple(f * self._step for f in ZEROS) if high else ():
            self.report(f"cubic to orthorhombic, zero shift {zero:+.2f}°")
            self._add(high_symmetry(self._few, zero, high))
            if self._convinced(high_only=True):
                return True
            if zero == 0.0:
                self._add(high_symmetry(self._strong, zero, high))
                if self._convinced(high_only=True):
                    return True
        if "orthorhombic" not in high:
            return False
        self.report("orthorhombic, strong lines")
        self._add(boxes(self.lines, 0.0, self.options))
        return self._convinced(high_only=True)

    def _add(self, trials: Pool) -> None:
        self.pool += sift(trials, self.lines, self.options, thorough=True)

    def _ranked(self, pool: Pool) -> list[Lattice]:
        """Different lattices, each raised to the symmetry that the lines bear, best first."""
        return ranked(raised(pool, self.lines, self.options), self.options)

    def _convinced(self, high_only: bool = False) -> bool:
        self.found = self._ranked(self.pool)
        return alone(self.found, self.lines, self.options, high_only)


def settled(found: list[Lattice], lines: LineTable, options: IndexOptions, high_only: bool = False) -> bool:
    """Whether the lines tell the lattice; ``high_only``: where nothing below orthorhombic has been tried."""
    convince = convincing(found, lines, options, *_needed(found, high_only))
    return convince and not has_special_metric(found[0])


def alone(found: list[Lattice], lines: LineTable, options: IndexOptions, high_only: bool = False) -> bool:
    """Whether the lines tell the lattice or at least its kin: no other need be looked for, but the profile asked which."""
    score, _, apart = _needed(found, high_only)
    enough = convincing(found, lines, options, score, -np.inf, apart)
    enough = enough or beyond_doubt(found, lines, options, *(ALONE_HIGH if high_only else ALONE))
    if not enough or not has_special_metric(found[0]):
        return enough
    return any(owes(found[0], other) for other in found[1:])  # what makes it special is there


def _needed(found: list[Lattice], high_only: bool) -> tuple[float, float, float]:
    """Score and leads that convince of the best of some lattices."""
    kind = found[0].bravais[0] if found else "a"
    return FEW if kind in "cth" else HIGH if high_only or kind == "o" else LOW
