"""How well |V_g| is ranked, on patterns of crystals kept out of training: multislice and Bloch waves with all corruptions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..disks import Disks, find_disks
from ..factors import structure_factors
from ..simulate.patterns import Patterns
from .benchmark import Known

THICKEST = 30.0  # nm
EXTINCT = 1e-4  # of the strongest |V_g|: below, a reflection has no rank
FEWEST = 5  # reflections of a pattern that has a rank correlation
MEASURES = ("fitted intensity", "proposing network", "all disks together", "structure_factors")
THICKNESSES = ((0, 7), (7, 15), (15, THICKEST), (0, THICKEST))  # nm


def factor_ranks(known: Iterable[Known], network=None, model: str | None = None, factors=None) -> dict[str, tuple[float, float]]:
    """Spearman's correlation with |V_g| of the disks found up to `THICKEST`, by measure.

    The mean over patterns, and that over crystals of the correlation of the mean over a crystal's thicknesses (disks that
    were found at two of them or more; the others count as nothing there). ``network``, ``model`` and ``factors`` are those
    of `crystaldl.stem.disks.find_disks`.
    """
    single: dict[str, list] = {name: [] for name in MEASURES}
    joint: dict[str, list] = {name: [] for name in MEASURES}
    for k in known:
        hk, fitted, proposed = found_reflections(k, network, model, factors=False)
        together = found_reflections(k, network, model, factors)[2]
        v = k.structure_factor / k.structure_factor[(hk != 0).any(1)].max()
        asked = (hk != 0).any(1) & (v > EXTINCT)
        final = rule(hk, fitted, proposed, together)
        often = asked & (np.isfinite(fitted).sum(1) > 1)
        for name, value in zip(MEASURES, (fitted, proposed, together, final), strict=True):
            single[name] += [_rank(column, v, asked & np.isfinite(column)) for column in value.T]
            joint[name].append(_rank(np.nan_to_num(value).mean(1), v, often))
    return {name: (float(np.nanmean(single[name])), float(np.nanmean(joint[name]))) for name in MEASURES}


def rule(hk: np.ndarray, fitted: np.ndarray, proposed: np.ndarray, together: np.ndarray) -> np.ndarray:
    """What `StrainDetails.structure_factors` makes of disks: by the network for all of a pattern where there is one."""
    if np.array_equal(proposed, together, equal_nan=True):
        return structure_factors(hk, fitted, proposed)
    return structure_factors(hk, np.full_like(fitted, np.nan), together)


def found_reflections(
    k: Known, network=None, model: str | None = None, factors=None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices (M, 2), fitted intensities (as shares of the electrons) and the estimated |V_g|, (M, B), of the disks found."""
    step = [np.abs(c[np.abs(c) > 1e-9]).min() for c in k.g.T]
    hk = np.round(k.g / step).astype(int)
    thin = np.flatnonzero(k.thickness <= THICKEST)
    disks = find_disks(k.patterns[thin], k.probe, network=network, model=model, device="cpu", factors=factors)
    fitted, estimate = (np.full((len(hk), len(thin)), np.nan) for _ in range(2))
    for column, i in enumerate(thin):
        mine = disks.of(column)
        rows, which = _matched(mine, k.centres[i], k.probe.radius)
        fitted[which, column] = mine.fitted[rows] / k.patterns[i].sum()
        estimate[which, column] = mine.intensity[rows]
    return hk, fitted, estimate


def _matched(disks: Disks, centres: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Disks within half a radius of a centre, and which it is."""
    if len(disks) == 0:
        return np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    distance = np.linalg.norm(disks.positions[:, None] - np.nan_to_num(centres, nan=1e9)[None], axis=2)
    near = np.flatnonzero(distance.min(1) < 0.5 * radius)
    return near, distance.argmin(1)[near]


def bloch_ranks(
    patterns: Sequence[Patterns], network=None, model: str | None = None, factors=None
) -> dict[str, tuple[float, ...]]:
    """Spearman's correlation with |V_g| of the disks found, mean over patterns of each of `THICKNESSES`; no pairs are averaged."""
    ranks: dict[str, list] = {name: [] for name in MEASURES[:3]}
    thickness: list[float] = []
    for p in patterns:
        found = [
            find_disks(p.patterns.numpy(), p.probe, network=network, model=model, device="cpu", factors=f)
            for f in (False, factors)
        ]
        thickness += p.thickness.tolist()
        for i in range(len(p.patterns)):
            v = p.v[i].numpy()
            for name, disks in zip(ranks, (found[0], *found), strict=True):
                mine = disks.of(i)
                rows, which = _matched(mine, p.centres[i].numpy(), p.probe.radius)
                value = mine.fitted if name == MEASURES[0] else mine.intensity
                asked = (which > 0) & (v[which] > EXTINCT)
                ranks[name].append(_rank(value[rows[asked]], v[which[asked]], np.ones(asked.sum(), dtype=bool)))
    t = np.array(thickness)
    return {name: tuple(_mean(np.array(r)[(t > low) & (t <= high)]) for low, high in THICKNESSES) for name, r in ranks.items()}


def _mean(values: np.ndarray) -> float:
    """Mean of what is finite; NaN where nothing is."""
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan")


def _rank(values: np.ndarray, v: np.ndarray, rows: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if rows.sum() < FEWEST:
        return float("nan")
    return float(spearmanr(values[rows], v[rows]).statistic)


def factor_table(ranks: dict[str, tuple[float, float]]) -> str:
    """The figures of `factor_ranks` as text."""
    lines = [f"{'':20}  pattern  mean over thicknesses"]
    lines += [f"{name:20}  {one:7.3f}  {several:7.3f}" for name, (one, several) in ranks.items()]
    return "\n".join(lines)


def bloch_table(ranks: dict[str, tuple[float, ...]]) -> str:
    """The figures of `bloch_ranks` as text."""
    lines = [" " * 20 + "".join(f"  {f'{low:g}-{high:g} nm':>8}" for low, high in THICKNESSES)]
    lines += [f"{name:20}" + "".join(f"  {value:8.3f}" for value in row) for name, row in ranks.items()]
    return "\n".join(lines)
