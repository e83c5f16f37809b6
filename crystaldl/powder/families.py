"""Whether a pattern shows a crystal known from training, and what that says about its space group.

`crystaldl.powder.network.FamilyNet` gives the probability of each space group's known crystals. Among these, the ones whose
lattice the other evidence excludes count less. How far to believe what remains depends on how sure the recognition is and
on whether the other evidence agrees: four numbers, weighed by a logistic function that is fitted on measured patterns with
and without look-alikes among the known crystals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..physics.symmetry import BRAVAIS_LATTICES, bravais_of_group, extinction_of_group

_LEAST = 1e-3
#: how much a lattice's probability counts among the known crystals; labels of measured patterns are not all right
POWER = 0.5
#: probability from which a known crystal is named
NAMED = 0.05
#: probability from which the cell of a known crystal is tried, how many are, and from which it is held against the lines
LIKELY, LOOKED_UP, CHECKED = 0.2, 3, 0.02


@dataclass(frozen=True)
class KnownCrystal:
    """A crystal known from training that a pattern looks like.

    ``name``: a mineral or a formula, empty for minerals known from measured patterns alone; ``space_group``: 1…230;
    ``probability``: by the look of the pattern alone, 0 to 1.
    """

    name: str
    space_group: int
    probability: float


def named(p: np.ndarray, names: list[str], groups: np.ndarray, count: int = 3) -> tuple[KnownCrystal, ...]:
    """The likeliest known crystals of one pattern: ``p`` (families,) or longer, ``groups`` (families,) 1…230.

    Families of one name and space group are one crystal.
    """
    total: dict[tuple[str, int], float] = {}
    for k in np.argsort(-p[: len(names)])[: 4 * count]:
        key = names[k], int(groups[k])
        total[key] = total.get(key, 0.0) + float(p[k])
    best = sorted(total.items(), key=lambda item: -item[1])[:count]
    return tuple(KnownCrystal(*key, value) for key, value in best if value >= NAMED)


def by_group(p: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Probabilities of families (n, families + 1) summed over those of each space group, (n, 230); the rest to 1 is none's."""
    out = np.zeros((230, len(p)))
    np.add.at(out, groups - 1, p[:, :-1].T.astype(float))
    return out.T


def _over(table: np.ndarray, p: np.ndarray) -> np.ndarray:
    """(n, 230): the probability of each group's lattice, or extinction group, by ``table`` (230,)."""
    totals = np.zeros((len(p), int(table.max()) + 1))
    np.add.at(totals.T, table, p.T)
    return totals[:, table]


def _log_odds(p: np.ndarray) -> np.ndarray:
    p = np.clip(p.astype(float), 1e-4, 1 - 1e-4)
    return np.log(p / (1 - p))


def likely(known: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Probabilities (n, 230) of space groups if the crystal is a known one: ``known · √(p of the lattice)``.

    Parameters
    ----------
    known : (n, 230) probabilities of the known crystals, summed over those of one space group; they sum to at most 1
    p : (n, 230) probabilities from all other evidence
    """
    q = known * (_over(bravais_of_group(), p) + _LEAST) ** POWER
    return q / q.sum(1, keepdims=True).clip(1e-12)


def signs(known: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """What a recognition is judged by, (n, 4); arguments as for `likely`, and what it gives.

    The columns: log-odds of the likely extinction group among the known crystals (powder patterns tell no more), log-odds
    that the crystal is known at all, ln of the probability that the other evidence gives to the likely space group's
    Bravais lattice, and to its extinction group.
    """
    rows, best = np.arange(len(q)), q.argmax(1)
    lattice, like = (_over(table(), p)[rows, best] for table in (bravais_of_group, extinction_of_group))
    sure = _over(extinction_of_group(), known)[rows, best]
    return np.stack([_log_odds(sure), _log_odds(known.sum(1)), np.log(lattice + _LEAST), np.log(like + _LEAST)], 1)


def _logistic(weights, x) -> np.ndarray:
    return 1 / (1 + np.exp(-(weights[0] + x @ weights[1:]).clip(-40, 40)))


def mix(known: np.ndarray, p: np.ndarray, weights) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, 230) of recognition and other evidence together, and the share (n,) of the former, 0 to 1.

    ``weights`` (5,) as `fit_trust` gives them: constant and factors of the logistic function.
    """
    weights = np.asarray(weights, dtype=float)
    q = likely(known, p)
    share = _logistic(weights, signs(known, p, q))
    return (1 - share[:, None]) * p + share[:, None] * q, share


def fit_trust(known: np.ndarray, p: np.ndarray, group: np.ndarray, ridge: float = 2e-3) -> list[float]:
    """Weights for `mix` that make the true space groups ``group`` (n,), 1…230, most likely."""
    from scipy.optimize import minimize

    rows, q = np.arange(len(p)), likely(known, p)
    x, ours, theirs = signs(known, p, q), p[rows, group - 1], q[rows, group - 1]

    def loss(w):
        share = _logistic(w, x)
        return -np.log((1 - share) * ours + share * theirs + 1e-6).mean() + ridge * (w[1:] ** 2).sum()

    return [round(float(w), 4) for w in minimize(loss, np.r_[-1.0, 0.3, 0.3, 0.2, 0.2], method="BFGS").x]


def cross_validated_mix(known, p, group, look_alike, folds: int = 5) -> np.ndarray:
    """Mixed probabilities, the weights for each pattern fitted without its look-alikes.

    Rows may hold one pattern several times (recognised by networks that knew look-alikes of it, and that did not).
    """
    number = np.unique(look_alike, return_inverse=True)[1] % folds
    out = np.zeros_like(p)
    for k in range(folds):
        test = number == k
        out[test] = mix(known[test], p[test], fit_trust(known[~test], p[~test], group[~test]))[0]
    return out


@dataclass(frozen=True)
class Known:
    """What FamilyNet says of a batch of patterns.

    ``p``: probabilities of families (B, families + 1); ``network``; ``weights`` of `mix`; ``threshold``: the probability of a
    crystal system from which an answer is confident (None: the arbiter's).
    """

    p: np.ndarray
    network: Any
    weights: list
    threshold: float | None

    @property
    def groups(self) -> np.ndarray:
        """Space groups of the families, 1…230."""
        return self.network.groups.cpu().numpy().astype(int) + 1

    @property
    def families(self) -> tuple[np.ndarray, np.ndarray]:
        """Cells of the families, (families, 6), NaN where not known, and their space groups."""
        return self.network.cells.cpu().numpy().reshape(-1, 6).astype(float), self.groups

    def cells(self) -> list:
        """Cells of the families that each pattern looks like, as `gather_evidence` takes them."""
        cells, groups = self.families
        return [_likely_cells(row, cells, groups, LIKELY, LOOKED_UP)[1] for row in self.p]

    def checked(self, evidence) -> Known:
        """The same, less of those crystals whose cell does not explain the lines of the pattern."""
        from .indexing.known_cells import foreign_share

        return replace(self, p=held_against(self.p, *self.families, [(e.peaks, foreign_share(e)) for e in evidence]))


def held_against(p: np.ndarray, cells: np.ndarray, groups: np.ndarray, lines) -> np.ndarray:
    """Probabilities of families (n, families + 1), less of those whose cell does not explain the lines, the last one more.

    ``cells`` (families, 6), NaN where not known; ``groups`` (families,) 1…230; ``lines``: of each pattern its peaks and the share
    that the best lattice leaves, as `crystaldl.powder.indexing.known_cells.belief` takes them.
    """
    from .indexing.known_cells import belief

    p = p.copy()
    for row, (peaks, foreign) in zip(p, lines, strict=True):
        likely, own = _likely_cells(row, cells, groups, CHECKED, len(row))
        row[likely] *= belief(own, peaks, foreign)
        row[-1] = 1 - row[:-1].sum()
    return p


def _likely_cells(row, cells, groups, least: float, count: int) -> tuple:
    """Families of a pattern that are likelier than ``least``, at most ``count``, and their cells, a Pool."""
    from .indexing.bravais import metric_of
    from .indexing.pools import Pool

    likely = [k for k in np.argsort(-row[:-1])[:count] if row[k] > least and np.isfinite(cells[k]).all()]
    g = np.array([metric_of(cells[k]) for k in likely]).reshape(-1, 6)
    names = np.array([BRAVAIS_LATTICES[bravais_of_group()[groups[k] - 1]] for k in likely], "U2")
    return likely, Pool(g, np.zeros(len(g)), names, np.zeros(len(g)))
