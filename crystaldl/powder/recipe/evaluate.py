"""Figures of the powder models, each reproducible by ``crystaldl evaluate powder``.

Everything is measured on what training has not seen: measured patterns by look-alike group, simulated patterns of
structure types kept out.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ...physics.symmetry import BRAVAIS_LATTICES, CRYSTAL_SYSTEMS, SYSTEM_OF_GROUP, bravais_of_group
from .. import network as architectures
from ..families import cross_validated_mix
from ..indexing.evidence import listed_lines
from ..prepare import CU_DOUBLET, common_axis, normalise, prepare
from ..simulate import DEFAULT_CONDITIONS, LineLibrary, Patterns, simulate
from .arbiter import SearchTable, cross_validated_logits, kept_search_table, simulated_logits
from .benchmark import CONDITIONS
from .crossval import (
    FOLDS,
    Figures,
    apply_calibration,
    calibrated_out_of_fold,
    figures,
    fit_calibration,
    format_table,
    nearest_neighbour,
    out_of_fold_logits,
    softmax,
)
from .families import explained, family_probabilities, family_task, out_of_fold_families, two_stages
from .measured import MeasuredSet, group_folds
from .stream import training_lines
from .training import predict_logits

log = logging.getLogger(__name__)

#: simulated patterns that are drawn at once, so that fewer of them are the first of more
BLOCK = 300


def measured_table(shared: Path, runs: Path, minutes: float, threads: int | None = None) -> dict[str, Figures]:
    """Group-wise cross-validation on the measured patterns: every method side by side.

    ``runs`` holds (or receives) the adaptations of each fold; pretrained weights are looked for in
    ``runs/<network>-pre/checkpoint``, made by ``crystaldl train powder --model <network> --out runs/<network>-pre``.
    """
    from ...training.checkpoint import load_checkpoint_weights

    measured = MeasuredSet.rruff(shared)
    group = measured.space_group.numpy()
    fold = group_folds(measured.group, measured.space_group, FOLDS)
    rows = {"1-NN on ln(1/d)": figures(nearest_neighbour(measured, fold), group)}
    lines = None
    logits = {}
    for name, label in (("npcnn", "NPCNN re-trained"), ("powdernet", "PowderNet")):
        pretrained = runs / f"{name}-pre" / "checkpoint"
        if name == "npcnn" and not pretrained.exists():
            log.warning("%s is not there: NPCNN is left out of the table", pretrained)
            continue
        model = {"npcnn": architectures.NPCNN, "powdernet": architectures.PowderNet}[name]()
        model.load_state_dict(load_checkpoint_weights(pretrained))
        base = predict_logits(model.eval(), name, measured.y, measured.mask, measured.ratio)
        rows[f"{label}, simulated only"] = figures(softmax(base), group)
        if lines is None and not all((runs / "cv" / f"{name}-fold{k}.npy").is_file() for k in range(FOLDS)):
            lines = training_lines(runs / "lines", shared, 16, seed=0)
        logits[name] = out_of_fold_logits(name, pretrained, measured, lines, runs / "cv", minutes, threads=threads)
        rows[f"{label}, + measured"] = figures(calibrated_out_of_fold(logits[name], group, fold), group)
    table = measured_search(measured, runs)
    simulated = simulated_table(shared, runs)
    full, blind = cross_validated_logits(table, logits["powdernet"], measured.group.numpy(), fold, simulated)
    rows["lattice search alone (indexing)"] = figures(calibrated_out_of_fold(blind, group, fold), group)
    rows["both"] = figures(calibrated_out_of_fold(full, group, fold), group)
    known = known_crystals(shared, runs, measured, threads)
    for name, table in trust_tables(shared, runs, known, {"network": logits["powdernet"], "auto": full}, fold).items():
        new, again, unseen = np.split(cross_validated_mix(*table), [len(group), 2 * len(group)])
        rows[f"{name}: with known crystals"] = figures(new, group)
        rows[f"{name}, look-alikes known"] = figures(again, group)
        rows[f"{name}, simulated, types kept out"] = figures(unseen, table[2][2 * len(group) :])
    return rows


def measured_search(measured: MeasuredSet, runs: Path) -> SearchTable:
    """Search evidence of the measured patterns; kept under ``runs``."""
    group = measured.space_group.numpy()
    return kept_search_table(runs / "search-measured.npz", measured.y, measured.mask, measured.ratio, group)


def known_crystals(shared: Path, runs: Path, measured: MeasuredSet, threads: int | None = None) -> np.ndarray:
    """What FamilyNet says of each measured pattern, (2, 2 n, 230): not knowing its look-alikes, then knowing most of them.

    Twice, see `crystaldl.powder.recipe.families.explained`: before and after the lines have been asked.

    First the networks are trained without the pattern's look-alikes, then without a random fifth of the patterns. Structures
    of the libraries are known to both.
    """
    by_look = group_folds(measured.group, measured.space_group, FOLDS)
    by_chance = np.random.default_rng(0).permutation(len(measured)) % FOLDS
    folds = {"group": by_look, "random": by_chance}
    lines = _lines_of(measured.y, measured.mask, measured.ratio, measured_search(measured, runs))
    parts = [out_of_fold_families(shared, runs, name, fold, lines, threads) for name, fold in folds.items()]
    return np.concatenate(parts, axis=1)


def _lines_of(y, mask, ratio, table: SearchTable) -> list[tuple[np.ndarray, float]]:
    """Of each pattern its peaks and the share of their height that the best lattice leaves."""
    doublet = np.full(len(y), CU_DOUBLET)
    peaks = listed_lines(normalise(y, mask).numpy(), mask.numpy(), np.asarray(ratio), doublet)
    return list(zip(peaks, table.foreign.tolist(), strict=True))


def trust_tables(shared: Path, runs: Path, known: np.ndarray, logits: dict, fold: np.ndarray) -> dict[str, tuple]:
    """What `cross_validated_mix` takes, for each method: first the measured patterns as in `known_crystals`, then simulated
    ones of structure types that the network asked did not know.

    ``logits`` are those of the measured patterns, out of fold (n, 230), before calibration.
    """
    measured = MeasuredSet.rruff(shared)
    group, look = measured.space_group.numpy(), measured.group.numpy()
    table = simulated_table(shared, runs)
    kept = measured_search(measured, runs)
    unseen = {"network": table.logits, "auto": simulated_logits(kept, logits["network"], look, table)}
    strange = _unknown_types(shared, runs, len(table.group))
    out = {}
    for name, z in logits.items():
        asked = int(name == "auto")
        p = calibrated_out_of_fold(z, group, fold)
        q = apply_calibration(unseen[name], fit_calibration(z, group))
        out[name] = (
            np.concatenate([known[asked], strange[asked]]),
            np.concatenate([p, p, q]),
            np.concatenate([group, group, table.group]),
            np.concatenate([look, look, look.max() + 1 + np.arange(len(q))]),
        )
    return out


def _unknown_types(shared: Path, runs: Path, count: int) -> np.ndarray:
    """What a FamilyNet that knows all measured patterns says of the patterns of `simulated_table`, (2, count, 230)."""
    task = family_task(shared, runs, everything=False)
    model = two_stages(task, runs, runs / "families-unseen")
    p, table = _arbiter_patterns(shared, runs, count)[1], simulated_table(shared, runs, count)
    seen = family_probabilities(model, prepare(p.y, p.mask, p.doublet_ratio).spectrum)
    return explained(task, runs, seen, _lines_of(p.y, p.mask, p.doublet_ratio, table))


# ------------------------------------------------------------------------------------------ simulated


def _held_out(shared: Path, runs: Path, count: int = 2500) -> LineLibrary:
    return training_lines(runs / "lines", shared, 1, count, seed=0, held_out=True, library_only=True)


def _split(lines: LineLibrary, judged: int = 700) -> tuple[np.ndarray, np.ndarray]:
    """Held-out crystals that the figures are taken from, and those that help to fit the arbiter."""
    pick = np.random.default_rng(5).choice(len(lines), min(judged, len(lines)), replace=False)
    return pick, np.setdiff1d(np.arange(len(lines)), pick)


def _arbiter_patterns(shared: Path, runs: Path, count: int) -> tuple[LineLibrary, Patterns]:
    """Patterns of unseen structure types that help to fit the arbiter."""
    lines = _held_out(shared, runs)
    lines, conditions = lines.subset(_split(lines)[1][:count]), replace(DEFAULT_CONDITIONS, cu_share=1.0)
    blocks = [np.arange(i, min(i + BLOCK, count)) for i in range(0, count, BLOCK)]
    parts = [_patterns_for(lines.subset(rows), 41 + i, conditions) for i, rows in enumerate(blocks)]
    names = ("y", "mask", "doublet_ratio", "second_share")
    return lines, Patterns(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def simulated_table(shared: Path, runs: Path, count: int = 2 * BLOCK) -> SearchTable:
    """Search evidence and pretrained network's logits of simulated patterns of unseen structure types; kept under ``runs``."""
    from ...training.checkpoint import load_checkpoint_weights

    lines, p = _arbiter_patterns(shared, runs, count)
    path = runs / "arbiter-simulated.npz"
    table = kept_search_table(path, p.y, p.mask, p.doublet_ratio, lines.space_group.astype(int))
    if table.logits is None:
        model = architectures.PowderNet()
        model.load_state_dict(load_checkpoint_weights(runs / "powdernet-pre" / "checkpoint"))
        table.logits = predict_logits(model.eval(), "powdernet", p.y, p.mask, p.doublet_ratio)
        table.save(path)
    return table


def _patterns_for(lines: LineLibrary, seed: int, conditions=DEFAULT_CONDITIONS, second=None) -> Patterns:
    g = torch.Generator().manual_seed(seed)
    return simulate(torch.as_tensor(lines.q), torch.as_tensor(lines.intensity), g, conditions, second)


def shipped_probabilities(patterns: Patterns, method: str = "auto") -> np.ndarray:
    """Probabilities (n, 230) of a shipped method for simulated patterns, known crystals not recognised."""
    from ..classify import classify_patterns

    results = classify_patterns(_as_patterns(patterns), method, recognise=False, progress=False)
    return np.stack([r.space_group_probabilities for r in results])


def held_out_table(shared: Path, runs: Path, count: int = 300, method: str = "auto") -> dict[str, Figures]:
    """Figures on simulated patterns of structure types kept out of training, and on those of each crystal system."""
    lines = _held_out(shared, runs)
    lines = lines.subset(_split(lines)[0][:count])
    p = _patterns_for(lines, 11, replace(DEFAULT_CONDITIONS, cu_share=1.0))
    probability = shipped_probabilities(p, method)
    group = lines.space_group.astype(int)
    rows = {f"{method}, held-out types": figures(probability, group)}
    for s, name in enumerate(CRYSTAL_SYSTEMS):
        inside = SYSTEM_OF_GROUP[group - 1] == s
        if inside.sum() > 5:
            rows[f"  {name}"] = figures(probability[inside], group[inside])
    return rows


def cubic_scaling(shared: Path, runs: Path, method: str = "auto", count: int = 60) -> list[tuple[float, float, int]]:
    """(edge scale, crystal-system accuracy, patterns) for held-out cubic crystals, where at least four lines remain.

    Measured as in the benchmark of `index`: a laboratory instrument, samples of any kind.
    """
    lines = _held_out(shared, runs)
    lines = lines.subset(np.flatnonzero(SYSTEM_OF_GROUP[lines.space_group.astype(int) - 1] == 6)[:count])
    out = []
    for scale in np.linspace(0.5, 1.5, 5):
        scaled = replace(lines, q=np.where(lines.intensity > 0, lines.q / scale, 1.0).astype(np.float32))
        q_top = 2 * np.sin(np.radians(45.0)) / 1.540593
        strong = (scaled.intensity > 0.01 * scaled.intensity.max(1, keepdims=True)) & (scaled.q < q_top)
        keep = scaled.subset(np.flatnonzero(strong.sum(1) >= 4))
        if len(keep) < 10:
            continue
        p = _patterns_for(keep, 21, CONDITIONS)
        probability = shipped_probabilities(p, method)
        system = np.zeros((len(keep), 7))
        np.add.at(system.T, SYSTEM_OF_GROUP, probability.T)
        out.append((float(scale), float((system.argmax(1) == 6).mean()), len(keep)))
    return out


@dataclass(frozen=True)
class MixtureRow:
    """What `classify` makes of patterns whose main phase is known; shares of the patterns.

    ``system`` and ``lattice``: the main phase's crystal system is the answer, its Bravais lattice the first one;
    ``warned``: not confident, or foreign lines are listed; ``probability``: mean probability of the best system.
    """

    system: float
    lattice: float
    warned: float
    probability: float
    count: int


def mixtures(shared: Path, runs: Path, count: int = 100, method: str = "auto") -> dict[str, MixtureRow]:
    """Single phases and the same with 20 % of a second phase, structure types kept out of training."""
    from ..classify import classify_patterns

    lines = _held_out(shared, runs)
    lines = lines.subset(_split(lines)[0][:count])
    other = lines.subset(np.random.default_rng(3).permutation(len(lines)))
    second = torch.as_tensor(other.q[:, :96]), torch.as_tensor(other.intensity[:, :96])
    group = lines.space_group.astype(int)
    out = {}
    for name, share, strength in (("single phase", 0.0, (0.01, 0.2)), ("with 20 %", 1.0, (0.19, 0.2))):
        conditions = replace(DEFAULT_CONDITIONS, cu_share=1.0, second_phase_share=share, second_phase_strength=strength)
        patterns = _as_patterns(_patterns_for(lines, 31, conditions, second))
        results = classify_patterns(patterns, method, recognise=False, progress=False)
        system = [r.crystal_system == CRYSTAL_SYSTEMS[SYSTEM_OF_GROUP[g - 1]] for r, g in zip(results, group, strict=True)]
        first = [r.lattices[0].bravais if r.lattices else "" for r in results]
        lattice = [b == BRAVAIS_LATTICES[bravais_of_group()[g - 1]] for b, g in zip(first, group, strict=True)]
        warned = [not r.confident or len(r.unexplained) > 0 for r in results]
        best = [max(r.crystal_system_probabilities.values()) for r in results]
        out[name] = MixtureRow(*(float(np.mean(v)) for v in (system, lattice, warned, best)), len(results))
    return out


def _as_patterns(p: Patterns) -> list:
    """Simulated patterns as a user would have them: the measured points, without background."""
    from ..pattern import PowderPattern

    axis, out = common_axis(), []
    for y, mask, ratio in zip(p.y.numpy(), p.mask.numpy(), p.doublet_ratio.tolist(), strict=True):
        wavelength = "CuKa" if ratio else "CuKa1"
        out.append(PowderPattern(axis[mask > 0], y[mask > 0], wavelength, background_subtracted=True))
    return out


# ------------------------------------------------------------------------------------------ realism


@dataclass(frozen=True)
class Realism:
    """How well a classifier tells simulated from measured patterns: 0.5 is not at all."""

    auc: float
    accuracy: float


class _Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 12, 21, 4, 10),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Conv1d(12, 24, 11, 4, 5),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Conv1d(24, 32, 7, 4, 3),
            nn.ReLU(),
        )
        self.out = nn.Linear(64, 1)

    def forward(self, x):
        h = self.net(x[:, None])
        return self.out(torch.cat([h.mean(-1), h.amax(-1)], 1))[:, 0]


def realism(shared: Path, runs: Path, seed: int = 0, epochs: int = 12) -> Realism:
    """Train a small network to tell measured from simulated patterns; judged on look-alike groups it has not seen."""
    measured = MeasuredSet.rruff(shared)
    lines = training_lines(runs / "lines", shared, 1, 5000, seed=0)
    rng = np.random.default_rng(seed)
    lines = lines.subset(rng.choice(len(lines), len(measured), replace=False))
    conditions = replace(DEFAULT_CONDITIONS, cu_share=1.0, single_share=0.0, cut_share=0.0, offset_share=1.0)
    p = _patterns_for(lines, seed, conditions)
    # the same measured range for both, so that the range does not give the answer away
    inside = measured.mask.mean(0) > 0.99
    x = torch.cat(
        [normalise(y, m).clamp(0, 1.5).sqrt() * inside for y, m in ((measured.y, measured.mask), (p.y, p.mask))]
    )
    label = torch.cat([torch.ones(len(measured)), torch.zeros(len(lines))])
    fold = np.concatenate([group_folds(measured.group, measured.space_group), rng.integers(0, FOLDS, len(lines))])
    score = torch.zeros(len(x))
    for k in range(FOLDS):
        torch.manual_seed(seed + k)
        model, train = _Discriminator(), torch.as_tensor(np.flatnonzero(fold != k))
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
        for _ in range(epochs):
            for rows in train[torch.randperm(len(train))].split(64):
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(model(x[rows]), label[rows]).backward()
                optimizer.step()
        test = torch.as_tensor(np.flatnonzero(fold == k))
        with torch.no_grad():
            score[test] = model.eval()(x[test])
    rank = score.argsort().argsort().double()
    positive = label > 0
    n1, n0 = int(positive.sum()), int((~positive).sum())
    auc = float((rank[positive].sum() - n1 * (n1 - 1) / 2) / (n1 * n0))
    return Realism(auc, float(((score > 0) == positive).double().mean()))


def evaluate_command(args) -> str:
    """``crystaldl evaluate powder``: the figures of the cards as text, or those that ``args.only`` names."""
    shared, runs = Path(args.shared), Path(args.runs)
    if not shared.is_dir():
        raise FileNotFoundError(f"shared is {str(shared)!r}, which is not a directory; expected one with powder/ in it.")
    parts = []
    wanted = args.only or ("measured",)
    if "measured" in wanted:
        parts.append(
            "Measured patterns, group-wise cross-validation (percent)\n"
            + format_table(measured_table(shared, runs, args.minutes, args.threads))
        )
    if "held-out" in wanted:
        parts.append(
            "Simulated patterns of structure types kept out of training (percent)\n"
            + format_table(held_out_table(shared, runs))
        )
    if "cubic" in wanted:
        rows = "\n".join(f"  edges × {s:.3f}: {100 * a:5.1f} % of {n}" for s, a, n in cubic_scaling(shared, runs))
        parts.append("Cubic crystals with scaled edges, crystal system\n" + rows)
    if "mixtures" in wanted:
        rows = "\n".join(
            f"  {k}: crystal system {100 * r.system:.1f}, lattice first {100 * r.lattice:.1f}, warned {100 * r.warned:.1f}, "
            f"mean probability {100 * r.probability:.1f}, of {r.count}"
            for k, r in mixtures(shared, runs).items()
        )
        parts.append("Mixtures, main phase (percent)\n" + rows)
    if "realism" in wanted:
        r = realism(shared, runs)
        parts.append(
            f"Simulated against measured patterns: AUC {r.auc:.3f}, accuracy {100 * r.accuracy:.1f} % (50 % is chance)"
        )
    return "\n\n".join(parts) + "\n"
