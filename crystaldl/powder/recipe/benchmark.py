"""How often `PowderPattern.index` finds the true cell: figures on simulated patterns, and a table of hard cases.

``python -m crystaldl.powder.recipe.benchmark --library structures.json.gz --count 30`` prints both, and with
``--second-phase 0.2`` how often the main phase of a mixture is found. Patterns come from `crystaldl.powder.simulate` with
counting noise, Kα doublet, texture, grain statistics, zero shift, displacement and asymmetry; lines from
`PowderPattern.peaks`. A cell is right when its lattice has the reduced cell of the crystal within 1 %.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ...errors import DataError
from ...physics.crystals import Crystal, find_symmetry, read_library
from ...physics.lattice import cell_from_metric
from ...physics.random_crystals import random_crystal
from ...physics.symmetry import CRYSTAL_SYSTEMS, SYSTEM_OF_GROUP, operations, space_group
from ..indexing.bravais import niggli_cell, same_lattice
from ..pattern import PowderPattern
from ..prepare import common_axis
from ..simulate import Conditions, lines_of, simulate

#: a laboratory instrument: Cu Kα, zero shift 0.03°, displacement 0.05° (standard deviations), peak to noise 50 … 1000
CONDITIONS = Conditions(
    cu_share=1.0, unstripped_share=0.0, instrument_fwhm=(0.04, 0.12), size=(300.0, 4000.0), strain=(1e-5, 1.5e-3),
    second_phase_share=0.0, peak_to_noise=(50.0, 1000.0), cut_share=0.0,
)  # fmt: skip
#: the same with a well crystallised, well ground sample: lines of 0.05 to 0.15°, true intensities, quieter
FINE = replace(CONDITIONS, instrument_fwhm=(0.04, 0.10), size=(800.0, 5000.0), strain=(1e-5, 5e-4),
               peak_to_noise=(100.0, 2000.0), grain_sigma=0.15)  # fmt: skip
SAMPLES = {"any": CONDITIONS, "fine": FINE}
#: space groups of random crystals, as common in nature
_GROUPS = {"monoclinic": (14, 14, 14, 15, 12, 4, 11, 5, 9), "triclinic": (1, 2, 2)}


@dataclass(frozen=True)
class Outcome:
    """One pattern: what it was, the rank of the true lattice (0: not found), lines, and seconds of the search."""

    name: str
    rank: int
    lines: int
    seconds: float


def simulated_pattern(
    crystal: Crystal, seed: int, conditions: Conditions = CONDITIONS, second: Crystal | None = None, share: float = 0.2
) -> PowderPattern:
    """A measured-looking Cu pattern of a crystal from 4° on, textured in half of the draws.

    ``second``: a crystal whose strongest line, as the other's, is ``share`` of the first one's.
    """
    rng = np.random.default_rng(seed)
    axis = rng.integers(-1, 2, 3)
    axis = axis if axis.any() else np.array([0, 0, 1])
    texture = (axis, float(np.exp(rng.uniform(np.log(0.6), np.log(1.5))))) if rng.random() < 0.5 else None
    q, intensity = (torch.as_tensor(v[None]) for v in lines_of(crystal, texture))
    other = None
    if second is not None:
        other = tuple(torch.as_tensor(v[None, :96]) for v in lines_of(second))
        conditions = replace(conditions, second_phase_share=1.0, second_phase_strength=(share, share + 1e-6))
    drawn = simulate(q, intensity, torch.Generator().manual_seed(seed), conditions, other)
    inside = drawn.mask[0].numpy() > 0
    y = 1e4 * drawn.y[0].numpy().astype(float)[inside]
    lamp = "CuKa" if float(drawn.doublet_ratio[0]) > 0 else "CuKa1"
    return PowderPattern(common_axis()[inside], y, lamp, crystal.name, background_subtracted=True)


def choose_crystals(
    library: Path | None, count: int, seed: int = 1, largest: float = 1500.0
) -> list[tuple[str, Crystal]]:
    """``count`` crystals of each system: from the library, filled up with random monoclinic and triclinic ones."""
    rng = np.random.default_rng(seed)
    known = [] if library is None else [c for c in read_library(library) if c.volume < 2 * largest]
    out = []
    for index, system in enumerate(CRYSTAL_SYSTEMS):
        own = [c for c in known if SYSTEM_OF_GROUP[c.space_group - 1] == index]
        take = min(count if system not in _GROUPS else count // 2, len(own))
        chosen = [own[i] for i in rng.choice(len(own), take, replace=False)] if take else []
        while system in _GROUPS and len(chosen) < count:
            atoms = int(np.exp(rng.uniform(np.log(6), np.log(90))))
            try:
                crystal = random_crystal(int(rng.choice(_GROUPS[system])), rng, max_atoms=atoms)
            except RuntimeError:  # no crystal of this group and size in so many draws
                continue
            if crystal.volume < largest:
                chosen.append(crystal)
        out += [(system, c) for c in chosen]
    return out


def true_cell(crystal: Crystal) -> np.ndarray:
    """Niggli cell of a crystal's lattice, whatever the setting that its conventional cell is in."""
    found = find_symmetry(crystal.cell, crystal.positions, crystal.numbers, 0.01)
    if found is None:
        return niggli_cell(crystal.cell, space_group(crystal.space_group).hm[0])
    basis = np.asarray(found.primitive_lattice)
    return niggli_cell(cell_from_metric(basis @ basis.T), "P")


def try_pattern(name: str, crystal: Crystal, pattern: PowderPattern, peaks=None, **settings) -> Outcome:
    """Index one pattern and look for the true lattice among the answers."""
    start = time.process_time()
    try:
        found = pattern.index(peaks, progress=False, **settings)
    except DataError:  # hardly any lines
        found = ()
    seconds = time.process_time() - start
    truth = true_cell(crystal)
    rank = next((i + 1 for i, cell in enumerate(found) if same_lattice(cell.niggli, truth)), 0)
    return Outcome(name, rank, len(pattern.peaks() if peaks is None else peaks), seconds)


def success_table(outcomes: list[Outcome]) -> str:
    """Shares of patterns with the true lattice first, and among the first three, and the median CPU time, by name."""
    rows = [f"{'':14s}{'patterns':>9s}{'first':>8s}{'first 3':>9s}{'median s':>10s}{'largest s':>10s}"]
    for name in dict.fromkeys(o.name for o in outcomes):
        own = [o for o in outcomes if o.name == name]
        rank, seconds = np.array([o.rank for o in own]), [o.seconds for o in own]
        first, three = (rank == 1).mean(), ((rank > 0) & (rank <= 3)).mean()
        rows.append(f"{name:14s}{len(own):9d}{first:8.1%}{three:9.1%}{np.median(seconds):10.2f}{max(seconds):10.2f}")
    return "\n".join(rows)


# ---------------------------------------------------------------------------------------------- hard cases

_HARD = {
    "dominant zone": (14, (3.85, 15.60, 9.10, 90, 97.0, 90)),
    "oP, a ≈ b": (62, (7.410, 7.455, 10.20, 90, 90, 90)),
    "mP, β ≈ 90°": (14, (6.30, 8.10, 9.40, 90, 90.3, 90)),
    "hR near cubic": (148, (6.00, 6.00, 14.90, 90, 90, 120)),
    "oP, 2200 Å³": (62, (9.10, 12.30, 19.70, 90, 90, 90)),
    "mP, 2000 Å³": (14, (9.40, 13.90, 15.70, 90, 103.0, 90)),
    "aP, 1600 Å³": (2, (9.30, 11.80, 15.60, 83.0, 78.0, 85.0)),
    "zero + 0.1°": (14, (7.10, 8.30, 9.60, 90, 104.0, 90)),
    "3 impurities": (14, (7.10, 8.30, 9.60, 90, 104.0, 90)),
    "12 lines": (14, (7.10, 8.30, 9.60, 90, 104.0, 90)),
    "aP, zero + 0.1°": (2, (6.60, 7.90, 9.20, 84.0, 77.0, 71.0)),
    "aP, 3 impurities": (2, (6.60, 7.90, 9.20, 84.0, 77.0, 71.0)),
    "aP, 12 lines": (2, (6.60, 7.90, 9.20, 84.0, 77.0, 71.0)),
}


def crystal_in(group: int, cell, seed: int) -> Crystal:
    """A crystal of random atoms on general positions in a given cell: about one atom per 22 Å³."""
    rng = np.random.default_rng(seed)
    ops = operations(group)
    empty = Crystal([8], [[0.1, 0.2, 0.3]], cell, group)
    atoms = max(2, round(empty.volume / 22 / len(ops.rotations)))
    numbers, positions = [], []
    for z in rng.choice([8, 8, 8, 14, 20, 26], atoms):
        x = rng.random(3)
        images = (ops.rotations @ x + ops.translations) % 1.0
        numbers += [int(z)] * len(images)
        positions.append(images)
    return Crystal(numbers, np.concatenate(positions), cell, group, f"random atoms, no. {group}")


def hard_outcomes(seeds=range(3), only=None) -> list[Outcome]:
    """The table of hard cases, each on several random crystals."""
    out = []
    quiet = replace(CONDITIONS, peak_to_noise=(200.0, 500.0), zero=0.01, displacement=0.02)
    for name, (group, cell) in _HARD.items():
        if only is not None and name not in only:
            continue
        for seed in seeds:
            crystal = crystal_in(group, cell, seed)
            pattern = simulated_pattern(crystal, 100 + seed, quiet)
            peaks = pattern.peaks()
            if "zero" in name:
                peaks = replace(peaks, position=peaks.position + 0.1)
            if "impurities" in name:
                peaks = _with_impurities(peaks, 3, seed)
            if "12" in name:
                peaks = peaks[:12]
            out.append(try_pattern(name, crystal, pattern, peaks))
    return out


def _with_impurities(peaks, count: int, seed: int):
    """A peak list with copies of some lines moved to random places among the first twenty."""
    rng = np.random.default_rng(seed)
    copies = peaks[rng.choice(min(20, len(peaks)), count, replace=False)]
    place = rng.uniform(peaks.position[0], peaks.position[min(19, len(peaks) - 1)], count)
    columns = [n for n in vars(peaks) if n != "radiation"]
    moved = replace(copies, position=place)
    both = {n: np.concatenate([getattr(peaks, n), getattr(moved, n)]) for n in columns}
    order = np.argsort(both["position"])
    return replace(peaks, **{n: v[order] for n, v in both.items()})


def main(arguments=None) -> str:
    """Both tables as text."""
    parser = argparse.ArgumentParser(prog="python -m crystaldl.powder.recipe.benchmark", description=__doc__.split("\n")[0])
    parser.add_argument("--library", type=Path, help="structures as JSON (gz); without it only random crystals")
    parser.add_argument("--count", type=int, default=30, help="patterns of each crystal system")
    parser.add_argument("--systems", nargs="+", choices=CRYSTAL_SYSTEMS, default=CRYSTAL_SYSTEMS)
    parser.add_argument("--second-phase", type=float, default=0.0, help="strongest line of a second phase over the first's")
    parser.add_argument("--sample", choices=SAMPLES, default="any", help="any, or a well crystallised and ground one")
    parser.add_argument("--draw", type=int, default=1, help="which crystals are drawn, and the seeds of their patterns")
    parser.add_argument("--seeds", type=int, default=3, help="random crystals of each hard case; 0 leaves them out")
    args = parser.parse_args(arguments)
    drawn = choose_crystals(args.library, args.count, args.draw) if args.count else []
    chosen = [(s, c) for s, c in drawn if s in args.systems]
    rng = np.random.default_rng(5)
    seconds = [chosen[rng.integers(len(chosen))][1] if args.second_phase else None for _ in chosen]
    seed, conditions = 1000 + 9000 * (args.draw - 1), SAMPLES[args.sample]
    outcomes = [
        try_pattern(s, c, simulated_pattern(c, seed + i, conditions, second=other, share=args.second_phase))
        for i, ((s, c), other) in enumerate(zip(chosen, seconds, strict=True))
    ]
    parts = [success_table(outcomes)] if outcomes else []
    if args.seeds:
        parts.append("Hard cases\n" + success_table(hard_outcomes(range(args.seeds))))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(main())
