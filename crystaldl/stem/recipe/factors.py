"""How well intensities rank |V_g|: multislice patterns of crystals kept out of training (`crystaldl.stem.recipe.benchmark`)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..disks import find_disks
from ..factors import structure_factors
from .benchmark import Known

THICKEST = 30.0  # nm
EXTINCT = 1e-4  # of the strongest |V_g|: below, a reflection has no rank
FEWEST = 5  # reflections of a pattern that has a rank correlation
MEASURES = ("fitted intensity", "network's |V_g|", "structure_factors")


def factor_ranks(known: Iterable[Known], network=None, model: str | None = None) -> dict[str, tuple[float, float]]:
    """Spearman's correlation with |V_g| of the disks found up to `THICKEST`, by measure.

    The mean over patterns, and that over crystals of the correlation of the mean over a crystal's thicknesses (disks that
    were found at two of them or more; the others count as nothing there).
    """
    single: dict[str, list] = {name: [] for name in MEASURES}
    joint: dict[str, list] = {name: [] for name in MEASURES}
    for k in known:
        hk, fitted, estimate = found_reflections(k, network, model)
        v = k.structure_factor / k.structure_factor[(hk != 0).any(1)].max()
        asked = (hk != 0).any(1) & (v > EXTINCT)
        values = (fitted, estimate, structure_factors(hk, fitted, estimate))
        often = asked & (np.isfinite(fitted).sum(1) > 1)
        for name, value in zip(MEASURES, values, strict=True):
            single[name] += [_rank(column, v, asked & np.isfinite(column)) for column in value.T]
            joint[name].append(_rank(np.nan_to_num(value).mean(1), v, often))
    return {name: (float(np.nanmean(single[name])), float(np.nanmean(joint[name]))) for name in MEASURES}


def found_reflections(k: Known, network=None, model: str | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices (M, 2), fitted intensities (as shares of the electrons) and the network's |V_g|, (M, B), of the disks found."""
    step = [np.abs(c[np.abs(c) > 1e-9]).min() for c in k.g.T]
    hk = np.round(k.g / step).astype(int)
    thin = np.flatnonzero(k.thickness <= THICKEST)
    disks = find_disks(k.patterns[thin], k.probe, network=network, model=model, device="cpu")
    fitted, estimate = (np.full((len(hk), len(thin)), np.nan) for _ in range(2))
    for column, i in enumerate(thin):
        mine = disks.of(column)
        if len(mine) == 0:
            continue
        distance = np.linalg.norm(mine.positions[:, None] - k.centres[i][None], axis=2)
        near, which = distance.min(1) < 0.5 * k.probe.radius, distance.argmin(1)
        fitted[which[near], column] = mine.fitted[near] / k.patterns[i].sum()
        estimate[which[near], column] = mine.intensity[near]
    return hk, fitted, estimate


def _rank(values: np.ndarray, v: np.ndarray, rows: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if rows.sum() < FEWEST:
        return float("nan")
    return float(spearmanr(values[rows], v[rows]).statistic)


def factor_table(ranks: dict[str, tuple[float, float]]) -> str:
    """The figures as text."""
    lines = [f"{'':20}  pattern  mean over thicknesses"]
    lines += [f"{name:20}  {one:7.3f}  {several:7.3f}" for name, (one, several) in ranks.items()]
    return "\n".join(lines)
