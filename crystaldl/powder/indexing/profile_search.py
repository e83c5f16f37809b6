"""Cells for `index` where lines alone do not decide: the whole profile proposes and judges.

Lines that overlap, are missed or do not exist mislead a search that knows lines only. Where its answer is not convincing,
the trial lattices of a classification (`trials`: from lines found in another way, and from the profile) join, and all cells
are compared by the likelihood of the lines and the sieve's score of the profile together.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from ...errors import DataError
from ...physics.lattice import cell_volume
from ..prepare import REFERENCE_WAVELENGTH, normalise
from .allowed_lines import allowed_score
from .bravais import (
    BRAVAIS,
    LATTICE_POINTS,
    cell_of,
    derivative_index,
    lattice_lengths,
    metric_of,
    niggli_cell,
    system_of,
)
from .coincidences import exact_multiples, owes, prices
from .evidence import listed_lines
from .judgement import unexplained
from .pools import FLOORS, IndexOptions, Lattice, LineTable, Pool
from .sieve import Sieve, make_sieve
from .superlattices import Measured, with_superlattices
from .trials import BEYOND, LEVEL, PROFILE_WEIGHT, WORTH, trial_lattices

__all__ = ["ProfileSearch"]

#: lattices that the search of the lines hands on
KEPT = 25


class ProfileSearch:
    """Lattices that the profile of a pattern suggests, and the order of all by lines and profile.

    Parameters
    ----------
    pattern : PowderPattern
    lines, options : of the search; cells outside its systems, volumes and zero shifts are left out
    """

    def __init__(self, pattern, lines: LineTable, options: IndexOptions):
        self._measured = on_axis(pattern)
        #: factor on zero shifts: those on the common axis are those of Cu
        self._scale = pattern.radiation.wavelength / REFERENCE_WAVELENGTH
        self._lines, self._options = lines, options

    @cached_property
    def _ready(self) -> tuple[np.ndarray, Sieve] | None:
        """Lines (n, 4) and sieve of the pattern; None where too little of it was measured."""
        m = self._measured
        if m is None:
            return None
        (peaks,) = listed_lines(m.y[None], m.mask[None], np.array([m.ratio]), np.array([m.doublet]))
        return (peaks, make_sieve(m.y, m.mask, peaks, m.ratio, m.doublet)) if len(peaks) >= 4 else None

    @cached_property
    def _suggested(self) -> Pool:
        """What a classification would look at."""
        peaks, sieve = self._ready
        _, trials = trial_lattices(peaks, lambda: sieve, any_edge=True)
        found = [t for own in trials.found.values() for t in own]
        return Pool(
            np.array([t.metric for t in found]).reshape(-1, 6),
            np.array([self._scale * t.zero for t in found]),
            np.array([t.bravais for t in found], "U2"),
            np.zeros(len(found)),
        )

    def joined(self, found: list[Lattice], search: bool = True) -> list[Lattice]:
        """The lattices of a search by lines, best first, and, where asked to ``search``, those the profile suggests, scored by
        both, best first."""
        if self._ready is None:
            return found
        pool = _pool_of(found[:KEPT])
        if search:
            few = self._lines.head(3 * self._options.lines)
            pool = sum((self._suggested.improve(few, self._options, (1.4 * f, f), 3.0, 5) for f in FLOORS), pool)
        pool = pool[_wanted(pool, self._options)]
        scored = _scored(pool, self._ready[1], self._scale, self._lines, self._options)
        return _without_copies(*scored, self._lines)

    def with_larger_cells(self, found: list[Lattice]) -> list[Lattice]:
        """Lattices, best first, with superlattices of the first that weak lines of the pattern speak for, as far as allowed."""
        if self._measured is None or not found:
            return found
        made = with_superlattices(found, self._measured, self._scale)
        return [made[i] for i in np.flatnonzero(_wanted(_pool_of(made), self._options))]


def on_axis(pattern) -> Measured | None:
    """A pattern on the common axis; None where too little of it was measured."""
    from ..classify import on_common_axis

    try:
        y, mask, ratio, delta = on_common_axis([pattern])
    except DataError:
        return None
    return Measured(normalise(y, mask)[0].numpy(), mask[0].numpy(), float(ratio[0]), float(delta[0]))


def _pool_of(found: list[Lattice]) -> Pool:
    return Pool(
        np.array([metric_of(c.cell) for c in found]).reshape(-1, 6),
        np.array([c.zero for c in found]),
        np.array([c.bravais for c in found], "U2"),
        np.array([c.score for c in found]),
    )


def _wanted(pool: Pool, options: IndexOptions) -> np.ndarray:
    """Which cells (n,) the options allow; hexagonal and trigonal cells are not told apart."""
    both = {"hexagonal", "trigonal"}
    systems = set(options.systems) | (both if both & set(options.systems) else set())
    out = np.array([system_of(b) in systems for b in pool.bravais], bool)
    largest = np.array([LATTICE_POINTS[b[1]] * options.largest(b) for b in pool.bravais])
    volume = np.array([cell_volume(c) for c in cell_of(pool.g)]) if len(pool) else np.zeros(0)
    return out & (volume < 1.02 * largest) & (np.abs(pool.zero) < options.zero_limit + 0.02)


def _scored(pool: Pool, sieve: Sieve, scale: float, lines: LineTable, options: IndexOptions):
    """Lattices by their value, and the profile's part of it (n,), relative to the best."""
    start = Pool(pool.g, pool.zero / scale, pool.bravais, pool.score)
    temper = sieve.temper(sieve.refine(start, 3, 3.0)[1].max(initial=0.0))
    refined = [sieve.refine(start[i : i + 1], 3, temper)[0] for i in range(len(pool))]
    profile = sieve.judge(refined)
    found = []
    for i in range(len(pool)):
        cell = cell_of(pool.g[i])
        name = str(pool.bravais[i])
        niggli = niggli_cell(cell, "PIFCR"[BRAVAIS[name][1]])
        score, _ = allowed_score(name, pool.g[i], float(pool.zero[i]), lines, options)
        found.append(Lattice(name, cell, niggli, float(pool.zero[i]), score))
    profile = np.maximum(profile - profile.max(initial=-np.inf), -LEVEL)
    pairs = exact_multiples([c.bravais for c in found], [c.niggli for c in found])
    for i, j, _ in pairs:  # the larger lattice has all lines of the smaller one
        profile[j] = max(profile[j], profile[i])
    price = prices(pairs, len(found))
    scored = [
        replace(c, score=c.score + PROFILE_WEIGHT * p - owed) for c, p, owed in zip(found, profile, price, strict=True)
    ]
    order = sorted(range(len(scored)), key=lambda i: -scored[i].score)
    return [scored[i] for i in order], profile[order]


def _without_copies(found: list[Lattice], profile: np.ndarray, lines: LineTable) -> list[Lattice]:
    """One entry a lattice, in the symmetry that scores best; no superlattices of a better one that explain no more."""
    kept: list[tuple[Lattice, np.ndarray, float, float]] = []
    for lattice, own in zip(found, profile, strict=True):
        lengths = lattice_lengths(lattice.niggli)
        if any((np.abs(lengths / known - 1) < 0.006).all() for _, known, _, _ in kept):
            continue
        weight = float(lines.weight[unexplained(lattice, lines)].sum())
        if not any(
            weight > w - WORTH and own <= p + BEYOND and derivative_index(lattice.niggli, other.niggli)
            for other, _, w, p in kept
            if not owes(other, lattice)
        ):
            kept.append((lattice, lengths, weight, own))
    return [entry[0] for entry in kept]
