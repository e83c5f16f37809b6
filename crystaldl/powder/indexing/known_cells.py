"""Whether the cell of a known crystal explains the lines of a pattern: Bragg's law has a say in what a network recognises."""

from __future__ import annotations

import numpy as np

from .bravais import cell_of
from .evidence import Evidence, Lattice
from .judgement import misfits
from .pools import IndexOptions, LineTable, Pool
from .trials import line_table_of

__all__ = ["belief", "foreign_share", "unexplained_shares"]

#: factors on the edges that a search begins with: solid solutions and thermal expansion
STRETCHES = (1.0, 0.995, 1.005, 0.985, 1.015)
#: refinements in turn, on the strongest lines and on those of low angle (how many), and systematic errors of lines (degrees) in
#: two rounds each
STRONGEST, STRONG_STAGES = 12, ((0.15, 0.06), (0.06, 0.03))
STAGES = ((10, (0.15, 0.06)), (20, (0.06, 0.03)), (40, (0.03, 0.012)))
#: standard deviations that a line may be off, and systematic errors (degrees): of strains, displacement, what a fit has left
TOLERANCE, SYSTEMATIC = 3.5, 0.02
#: share of the lines' height, beyond what the best lattice leaves unexplained, at which a cell is half believed, and how
#: sharply: the cells of crystals in measured patterns left less than 0.3, those of wrongly recognised ones 0.4 to 0.9
HALF, SHARPNESS = 0.35, 0.04
_OPTIONS = IndexOptions(impurities=3.0, zero_limit=0.15, hold=False)


def _share(lattice: Lattice, lines: LineTable, height: np.ndarray) -> float:
    far = misfits(lattice, lines) > TOLERANCE * np.hypot(1.5 * lines.sigma, SYSTEMATIC)
    return float(height[far].sum() / height.sum())


def _lines(peaks: np.ndarray) -> tuple[LineTable, np.ndarray]:
    lines = line_table_of(peaks)
    return lines, np.exp(peaks[lines.source, 1]) * lines.weight


def unexplained_shares(cells: Pool, peaks: np.ndarray) -> np.ndarray:
    """Share of the summed height of the lines, 0 to 1, that each cell leaves unexplained after its refinement, (n,).

    Parameters
    ----------
    cells : Pool of n cells
    peaks : (m, 4) as `crystaldl.powder.line_scales.search_lines` gives them, m ≥ 4
    """
    (lines, height), n, out = _lines(peaks), len(STRETCHES), np.ones(len(cells))
    strong = lines[np.sort(np.argsort(-height, kind="stable")[:STRONGEST])]
    ways = [[(strong, floors) for floors in STRONG_STAGES], [(lines.head(count), floors) for count, floors in STAGES]]
    for i in range(len(cells)):
        g = np.stack([cells.g[i] / stretch**2 for stretch in STRETCHES])
        start = Pool(g, np.zeros(n), np.repeat(cells.bravais[i], n), np.zeros(n))
        every = start
        for way in ways:
            tries = start
            for chosen, floors in way:
                tries = tries.improve(chosen, _OPTIONS, floors, 3.0, 5)
                every += tries
        for name, metric, zero in zip(every.bravais, every.g, every.zero, strict=True):
            out[i] = min(out[i], _share(Lattice(str(name), cell_of(metric), 0.0, float(zero)), lines, height))
    return out


def foreign_share(evidence: Evidence) -> float:
    """Share of the summed height of the lines, 0 to 1, that the best lattice leaves unexplained; 0 where nothing was found."""
    if len(evidence.peaks) < 4 or not evidence.lattices:
        return 0.0
    return _share(evidence.lattices[0], *_lines(evidence.peaks))


def belief(cells: Pool, peaks: np.ndarray, foreign: float) -> np.ndarray:
    """How far crystals with these cells can be in the pattern, 0 to 1 each, by the lines they leave unexplained, (n,).

    Lines that the best lattice does not explain either, ``foreign`` as `foreign_share` gives it, may be those of a second
    phase, and are not held against them. Of a pattern with fewer than four lines nothing is said.
    """
    if len(peaks) < 4 or not len(cells):
        return np.ones(len(cells))
    excess = unexplained_shares(cells, peaks) - foreign
    return 1 / (1 + np.exp((excess - HALF) / SHARPNESS))
