"""Figures of the 4D-STEM methods, side by side: strain by thickness, position errors, recall at equal false positives.

Strain and positions are measured on multislice patterns (`crystaldl.stem.recipe.benchmark`); recall on the training
simulator's patterns of crystals, voltages and semi-angles kept out of training, under all its corruptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..detect import FCUNET_THRESHOLD, THRESHOLD
from ..network import DiskNet, FactorNet, FCUNet
from ..simulate import abtem_waves
from ..simulate.bank import DiskBank
from ..simulate.patterns import Patterns, SceneOptions, simulate
from .benchmark import (
    SEMIANGLES,
    THICKNESSES,
    Known,
    Method,
    benchmark,
    benchmark_crystals,
    measured_strain,
    multislice_patterns,
    ours,
    py4dstem_correlation,
)
from .training import EVALUATION_BANK, bank_in

FALSE_POSITIVES = (0, 1, 3)  # in each pattern
ABTEM_CRYSTALS = 4  # at most, of the patterns by abTEM
FILM_CRYSTALS, FILM = 2, 0.5  # at most, of the patterns with an amorphous film, and its share of the electrons
POSITION_SHARE = 1e-3  # of the electrons: positions are compared on disks brighter than this, faint ones are noise


@dataclass(frozen=True)
class Entry:
    """A method and how its peaks enter the lattice fit."""

    name: str
    method: Method
    weighting: str
    threshold: float = 0.0  # least score of peaks that enter a lattice fit


@dataclass
class Scores:
    """Figures of one method.

    Attributes
    ----------
    strain : {nm: percent}
        RMS of e_xx, e_yy, e_xy against the truth, by thickness.
    slope : float
        Of measured against true e_xx and e_yy.
    median, p95 : float
        Distance from the truth, px, of the disks that hold more than `POSITION_SHARE` of the electrons.
    found : float
        Share of those disks that was found.
    failed : int
        Patterns without a lattice.
    recall : {most false positives in a pattern: share}
    """

    strain: dict = field(default_factory=dict)
    slope: float = float("nan")
    median: float = float("nan")
    p95: float = float("nan")
    found: float = float("nan")
    failed: int = 0
    recall: dict = field(default_factory=dict)


def entries(networks: dict) -> list[Entry]:
    """The methods compared: classical ones, then the networks by name."""
    rows = [
        Entry("py4DSTEM correlation, tutorial kernel", py4dstem_correlation((1.0, 4.0), 0.001), "intensity", 0.005),
        Entry("py4DSTEM correlation, tuned kernel", py4dstem_correlation((0.0, 2.0), 0.001), "none", 0.002),
        Entry("correlation + VarPro", ours("correlation", min_relative_intensity=0.001), "sigma", 0.5),
    ]
    for name, network in networks.items():
        threshold = FCUNET_THRESHOLD if isinstance(network, FCUNet) else THRESHOLD
        rows.append(Entry(f"{name} + VarPro", ours("fcunet", network=network), "sigma", threshold))
    return rows


def strain_scores(known: Sequence[Known], entry: Entry) -> Scores:
    """Strain and position errors of one method on multislice patterns."""
    errors, truths, misses, by_thickness = [], [], [], {t: [] for t in THICKNESSES}
    out, bright_ones = Scores(), 0
    for k in known:
        found = entry.method(k.patterns, k.probe)
        for i, f in enumerate(found):
            keep = f[1] >= entry.threshold
            f = tuple(a[keep] for a in f)
            distance = _distances(k, i, f[0])
            bright_ones += len(distance)
            misses += distance[distance < 0.6 * k.probe.radius].tolist()
            e = measured_strain(k, i, f, entry.weighting)
            if e is None:
                out.failed += 1
                continue
            true = np.array([*k.strain[i], 0.0])
            by_thickness[float(k.thickness[i])].append(e - true)
            errors.append(e[:2])
            truths.append(true[:2])
    out.strain = {t: 100 * float(np.sqrt(np.mean(np.square(v)))) for t, v in by_thickness.items() if v}
    if errors:
        out.slope = float(np.polyfit(np.concatenate(truths), np.concatenate(errors), 1)[0])
    if misses:
        out.median, out.p95 = (float(np.quantile(misses, q)) for q in (0.5, 0.95))
    out.found = len(misses) / max(1, bright_ones)
    return out


def _distances(known: Known, i: int, positions: np.ndarray) -> np.ndarray:
    """Distance of each bright disk of pattern i to the nearest position found, px."""
    reach = 1.6 * known.probe.radius
    inside = ((known.centres[i] > reach) & (known.centres[i] < np.array(known.patterns.shape[1:]) - 1 - reach)).all(1)
    bright = known.centres[i][inside & (known.intensity[i] > POSITION_SHARE)]
    if len(positions) == 0:
        return np.full(len(bright), np.inf)
    return np.linalg.norm(bright[:, None] - positions[None], axis=2).min(1)


@dataclass(frozen=True)
class Constancy:
    """False strains in percent, by crystal: what should not move the lattice, and by how much it does.

    Attributes
    ----------
    semiangle : largest change of the strain (mean over thicknesses and noise) between two condenser semi-angles
    wedge : largest strain, averaged over noise, along an unstrained thickness wedge
    """

    semiangle: dict
    wedge: dict


def constancy(entry: Entry, crystals: int = 3, draws: int = 8, dose: float = 1e6) -> Constancy:
    """Strain that is not there: another condenser aperture (at one camera length), and a wedge of one crystal."""
    semiangle, wedge = {}, {}
    for crystal in benchmark_crystals(crystals):
        small, large = (1e-3 * a for a in SEMIANGLES)
        conditions = {"strain": (0.01, -0.005), "tilt": 1e-9, "draws": draws, "dose": dose}
        means = []
        for angle in (small, large):
            k = multislice_patterns(crystal, angle, np.random.default_rng(0), radius=2.4 * angle * 1e3, **conditions)
            true = np.array([0.01, -0.005, 0.0])
            errors = {t: [] for t in THICKNESSES}
            for i, f in enumerate(entry.method(k.patterns, k.probe)):
                keep = f[1] >= entry.threshold
                e = measured_strain(k, i, tuple(a[keep] for a in f), entry.weighting)
                if e is not None:
                    errors[float(k.thickness[i])].append(e - true)
            by_thickness = np.array([np.mean(v, axis=0) for v in errors.values() if v])
            means.append(by_thickness.mean(0))
        semiangle[crystal[0]] = 100 * float(np.abs(means[1] - means[0]).max())
        wedge[crystal[0]] = 100 * float(np.abs(by_thickness).max())
    return Constancy(semiangle, wedge)


def corrupted_patterns(bank: DiskBank, count: int, seed: int = 5) -> list[Patterns]:
    """Held-out patterns of 256 × 256 px under all corruptions, eight of each probe."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(max(1, count // 8)):
        g = torch.Generator().manual_seed(int(rng.integers(2**62)))
        radius = float(rng.uniform(3.5, 9.0))
        edge = float(rng.uniform(0.3, 1.0)) * (radius / 5) ** 0.5
        out.append(simulate(bank, 8, g, SceneOptions((256, 256), radius, edge, off_centre=0.1, held_out=True)))
    return out


def recall_at(patterns: Sequence[Patterns], method: Method, levels=FALSE_POSITIVES) -> dict[int, float]:
    """Recall of visible disks with at most so many false positives in each pattern.

    The threshold is chosen for each pattern by its truth: what a user who tunes it for every scan could reach at best.
    A correlation's height means different things in different scans, so one threshold for all would not be fair to it.
    """
    hits, visible = dict.fromkeys(levels, 0), 0
    for p in patterns:
        visible += int(p.visible.sum())
        for i, (positions, score, _) in enumerate(method(p.patterns.numpy(), p.probe)):
            _, hit = _judged(positions, score, p, i)
            false = np.cumsum(~hit)
            for level in levels:
                hits[level] += int(hit[: np.searchsorted(false, level, side="right")].sum())
    return {level: hits[level] / max(1, visible) for level in levels}


def _judged(positions, score, p: Patterns, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of detections that count, and whether each is the best one of a visible disk."""
    if len(positions) == 0:
        return np.zeros(0), np.zeros(0, bool)
    reach = 0.5 * p.probe.radius
    centres = p.centres[i].numpy()
    order = np.argsort(-score, kind="stable")
    distance = np.linalg.norm(positions[order][:, None] - np.nan_to_num(centres, nan=1e9)[None], axis=2)
    visible, open_ = p.visible[i].numpy(), p.ignore[i].numpy()
    near_visible = np.where(visible, distance, np.inf)
    best = near_visible.argmin(1)
    hit = near_visible.min(1) <= reach
    first = np.zeros(len(hit), bool)
    first[np.unique(np.where(hit, best, -1 - np.arange(len(hit))), return_index=True)[1]] = True
    near_open = np.where(open_, distance, np.inf).min(1) <= 1.2 * p.probe.radius
    counts = (hit & first) | (~hit & ~near_open)
    return score[order][counts], hit[counts]


def table(rows: dict[str, Scores]) -> str:
    """The figures as text."""
    head = ["method", *(f"{t:g} nm" for t in THICKNESSES), "slope", "median px", "p95 px", "found", "failed"]
    head += [f"recall@{f:g}" for f in FALSE_POSITIVES]
    lines = [head]
    for name, s in rows.items():
        strain = [f"{s.strain[t]:.3f}" if t in s.strain else "-" for t in THICKNESSES]
        recall = [f"{s.recall[f]:.3f}" if f in s.recall else "-" for f in FALSE_POSITIVES]
        lines.append([name, *strain, f"{s.slope:.3f}", f"{s.median:.3f}", f"{s.p95:.3f}", f"{s.found:.3f}", str(s.failed), *recall])
    width = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, width, strict=True)).rstrip() for line in lines)


def load_network(path) -> DiskNet | FCUNet | FactorNet:
    """The network of a training run (its output directory or checkpoint), averaged weights, evaluation mode."""
    from ...training.checkpoint import load_checkpoint_weights, read_state
    from .training import FULL_ARGUMENTS, NETWORKS

    kind = read_state(path)["task"].removeprefix("stem-")
    network = (NETWORKS | {"factornet": FactorNet})[kind](**FULL_ARGUMENTS.get(kind, {}))
    network.load_state_dict(load_checkpoint_weights(path))
    return network.eval()


def training_runs(folder: Path) -> list[Path]:
    """Output directories of training runs of networks that find disks, in a folder which may hold others."""
    from ...training.checkpoint import read_state
    from .training import NETWORKS

    found = [path for path in sorted(folder.iterdir()) if (path / "checkpoint").is_dir()]
    return [path for path in found if read_state(path)["task"].removeprefix("stem-") in NETWORKS]


def compare(networks: dict, out: Path, crystals: int = 12, patterns: int = 160, **conditions) -> dict[str, Scores]:
    """All methods on the same patterns; ``out`` keeps the bank of held-out disks."""
    known = list(benchmark(crystals, **conditions))
    corrupted = corrupted_patterns(bank_in(out / "banks", EVALUATION_BANK, 1, evaluation=True), patterns)
    rows = {}
    for entry in entries(networks):
        rows[entry.name] = strain_scores(known, entry)
        rows[entry.name].recall = recall_at(corrupted, entry.method)
    return rows


def film_scores(networks: dict, crystals: int = FILM_CRYSTALS, film: float = FILM) -> dict[str, Scores]:
    """All methods on patterns with the rings of an amorphous film."""
    known = list(benchmark(crystals, background=(0.1, film)))
    return {entry.name: strain_scores(known, entry) for entry in entries(networks)}


def shipped_networks() -> dict:
    """The networks of the package by name, the default first, in evaluation mode."""
    from ...models.registry import available, default
    from .. import detect

    names = available("stem")
    return {name: detect.load_network(name, "cpu")[0] for name in sorted(names, key=lambda n: n != default("stem"))}


def evaluate_command(args) -> str:
    """``crystaldl evaluate stem``: tables for the shipped models and the training runs under ``--runs``, and the cards' figures."""
    from .factors import THICKEST, bloch_ranks, bloch_table, factor_ranks, factor_table
    from .release import card_table

    if getattr(args, "threads", None):
        torch.set_num_threads(args.threads)
    runs, crystals, patterns = Path(args.runs), getattr(args, "crystals", 12), getattr(args, "patterns", 160)
    runs.mkdir(parents=True, exist_ok=True)
    trained = {path.name: load_network(path) for path in training_runs(runs)}
    shipped = shipped_networks()
    networks = shipped | trained
    text = "Strain RMS (percent) by thickness; recall with that many false positives in a pattern\n"
    text += table(compare(networks, runs, crystals, patterns)) + "\n"
    text += f"\nWith {100 * FILM:.0f} % of the electrons in the rings of an amorphous film\n"
    text += table(film_scores(networks, min(crystals, FILM_CRYSTALS))) + "\n"
    if abtem_waves.available():
        known = list(benchmark(min(crystals, ABTEM_CRYSTALS), simulator="abtem"))
        rows = {entry.name: strain_scores(known, entry) for entry in entries(networks)}
        text += "\nPatterns by abTEM\n" + table(rows) + "\n"
    else:
        text += "\nPatterns by abTEM: left out, since abTEM is not installed (pip install abtem)\n"
    known = list(benchmark(crystals, draws=1))
    corrupted = corrupted_patterns(bank_in(runs / "banks", EVALUATION_BANK, 1, evaluation=True), patterns)
    for name in shipped:
        text += f"\nRank correlation with |V_g| up to {THICKEST:g} nm, {name}\n"
        text += factor_table(factor_ranks(known, model=name)) + "\n"
        text += bloch_table(bloch_ranks(corrupted, model=name)) + "\n"
        text += f"\nFigures of the card of {name}\n" + card_table(name, crystals=crystals, patterns=patterns) + "\n"
    return text
