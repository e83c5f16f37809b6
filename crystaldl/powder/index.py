"""`PowderPattern.index`: arguments, search, refinement, result."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from numbers import Real

import numpy as np

from ..errors import DataError
from .cell_refinement import build_cell, peaks_from
from .cells import CellSearch
from .indexing.allowed_lines import allowed_score
from .indexing.bravais import metric_of
from .indexing.pools import SYSTEMS, IndexOptions, Lattice, LineTable, line_table
from .indexing.staged_search import StagedSearch, alone, settled
from .peaks import PeakList

__all__ = ["index_pattern"]

#: fewer lines cannot tell anything, not even of a cubic cell
MIN_LINES = 4
#: cells returned at most
MAX_CELLS = 20


def index_pattern(pattern, peaks=None, *, progress: bool = True, **settings) -> CellSearch:
    """Unit cells that explain the lines of a pattern; see `crystaldl.powder.pattern.PowderPattern.index`."""
    options = check_options(**settings)
    given = peaks is not None
    peaks = pattern.peaks() if peaks is None else peaks_from(peaks, pattern.radiation)
    if len(peaks) < MIN_LINES:
        raise DataError(f"peaks holds {len(peaks)} lines; at least {MIN_LINES} are needed to find a cell.")
    start = time.monotonic()
    lines = line_table(peaks)
    report = _reporter(progress)
    found = _search(None if given else pattern, lines, options, report)
    report("done")
    merged = _merged(peaks, lines)
    cells = []
    for lattice in found:
        try:
            cells.append(build_cell(lattice.bravais, lattice.cell, lattice.zero, lattice.score, merged))
        except DataError:  # as many parameters as lines: nothing is left to be right or wrong
            continue
        if len(cells) == MAX_CELLS:
            break
    return CellSearch(tuple(cells), merged, pattern, time.monotonic() - start, options)


def _search(pattern, lines: LineTable, options: IndexOptions, report) -> list[Lattice]:
    """Lattices, best first: by the lines, where these do not decide by the profile, then by more of either.

    ``pattern`` is None where lines alone were given.
    """
    end = time.monotonic() + options.time_limit
    by_lines = StagedSearch(lines, options, report)
    by_lines.first()
    found = by_lines.lattices()
    plain, enough = settled(found, lines, options), alone(found, lines, options)
    found = _with_absences(found, lines, options)
    by_profile = None
    if pattern is not None:
        from .indexing.profile_search import ProfileSearch

        by_profile = ProfileSearch(pattern, lines, options)
    if by_profile is not None and not plain:
        report("by the profile")
        found = by_profile.joined(found, search=not enough)
        enough = enough or settled(found, lines, options)
    if not enough and time.monotonic() < end:
        by_lines.more(end)
        found = _with_absences(by_lines.lattices(), lines, options)
        found = found if by_profile is None else by_profile.joined(found)
    if by_profile is not None:
        report("larger cells")
        found = by_profile.with_larger_cells(found)
    return found


def check_options(
    *, systems=None, max_volume=None, lines=20, impurities=2, zero_limit=0.2, volume_hint=None, time_limit=10.0
) -> IndexOptions:
    """The arguments of `index` as `IndexOptions`; DataError for what cannot be meant."""
    if isinstance(systems, str):
        systems = (systems,)
    if systems is not None and not isinstance(systems, Iterable):
        raise DataError(f"systems is of type {type(systems).__name__}; expected names of crystal systems.")
    chosen = SYSTEMS if systems is None else tuple(systems)
    for name in chosen:
        if name not in SYSTEMS:
            raise DataError(f"systems holds {name!r}; expected some of {', '.join(SYSTEMS)}.")
    if not chosen:
        raise DataError("systems is empty; expected at least one crystal system, or None for all.")
    if max_volume is not None:
        max_volume = _number(max_volume, "max_volume", 10.0, 30000.0, "Å³")
    lines = int(_number(lines, "lines", 5, 60, "lines", whole=True))
    impurities = _number(impurities, "impurities", 0, lines // 2, "lines", whole=True)
    zero_limit = _number(zero_limit, "zero_limit", 0.0, 1.0, "degrees")
    time_limit = _number(time_limit, "time_limit", 0.0, 1e6, "seconds")
    if volume_hint is not None:
        volume_hint = _number(volume_hint, "volume_hint", 10.0, 20000.0, "Å³")
    zero_limit = max(zero_limit, 1e-3)
    return IndexOptions(chosen, max_volume, lines, impurities, zero_limit, zero_limit / 2, volume_hint, time_limit)


def _number(value, name: str, low: float, high: float, unit: str, whole: bool = False) -> float:
    kind = "a whole number" if whole else "a number"
    good = isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) and low <= value <= high
    if not good or (whole and value != int(value)):
        raise DataError(f"{name} is {value!r}; expected {kind} of {unit} from {low:g} to {high:g}.")
    return float(value)


def _with_absences(found: list[Lattice], lines: LineTable, options: IndexOptions) -> list[Lattice]:
    """The lattices scored with absent lines in mind, see `crystaldl.powder.indexing.allowed_lines`, best first."""
    scored = [replace(c, score=allowed_score(c.bravais, metric_of(c.cell), c.zero, lines, options)[0]) for c in found]
    return sorted(scored, key=lambda lattice: -lattice.score)


def _merged(peaks: PeakList, lines: LineTable) -> PeakList:
    """The lines of the search as a `PeakList`."""
    chosen = peaks[lines.source]
    return replace(
        chosen,
        position=lines.two_theta,
        position_sigma=lines.sigma,
        d=lines.wavelength / (2 * np.sin(np.radians(lines.two_theta / 2))),
    )


def _reporter(progress: bool):
    """A function that says what is searched in a tqdm bar; nothing where it is not wanted."""
    if not progress:
        return lambda what: None
    from tqdm.auto import tqdm

    bar = tqdm(total=None, unit=" stages", desc="indexing", leave=False, delay=1.0)

    def report(what: str) -> None:
        bar.set_description(f"indexing, {what}")
        bar.update()
        if what == "done":
            bar.close()

    return report
