"""How FamilyNet is made: the training loop's view of it, its two stages, and what it says of patterns it has not seen.

A *family* is one crystal: the look-alikes among the measured patterns (solid solutions of one mineral), or one structure of
the library. Random crystals stand for all that is in no family. `family_patterns` makes what it is shown.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...physics.symmetry import BRAVAIS_LATTICES, bravais_of_group, space_group
from ..families import by_group, held_against
from ..indexing.bravais import lattices_of, niggli_cell
from ..network import FamilyNet
from ..prepare import SPECTRUM_POINTS
from .family_names import cells_of, counterparts, title
from .family_patterns import UNKNOWN_CHUNKS, Pool, library_pool, measured_pool, unknown_pool
from .measured import MeasuredSet
from .stream import is_held_out, library_crystals, training_lines

log = logging.getLogger(__name__)

SHARES = (72, 152, 96)  # of a batch: measured families, library families, no family
LIBRARY_ONLY = (0, 224, 96)  # in the first stage


class FamilyTask:
    """The training loop's view of FamilyNet (see `crystaldl.training.loop.Task`).

    ``keep`` (n,) bool says which measured patterns training may see; families and their numbers do not depend on it.
    ``crystals`` are those of the library's families. Where no measured pattern may be seen, batches hold none.
    """

    name = "powder-families"

    def __init__(self, measured: MeasuredSet, pools: tuple[Pool, Pool, Pool], crystals, keep=None, seed: int = 0):
        self.pools, self.seed, self.measured, self.crystals = pools, seed, measured, crystals
        group, look = measured.space_group.numpy(), measured.group.numpy()
        pairs, number = np.unique(np.stack([look, group], 1), axis=0, return_inverse=True)
        self.family = number.ravel()
        self.group_of_family = np.concatenate([pairs[:, 1], [c.space_group for c in crystals]]).astype(int)
        self.names = [""] * len(pairs) + [title(c) for c in crystals]
        self.keep = np.ones(len(measured), bool) if keep is None else np.asarray(keep, bool)
        self._first_library = len(pairs)
        self._rows = np.flatnonzero(self.keep[pools[0].source])
        self.shares = SHARES if len(self._rows) else LIBRARY_ONLY
        # a family of n patterns counts as √n
        counts = np.bincount(self.family[self.keep], minlength=len(pairs))
        weight = 1 / np.sqrt(counts[self.family[pools[0].source[self._rows]]])
        self._weight = np.cumsum(weight / weight.sum())

    def model(self) -> nn.Module:
        return FamilyNet(len(self.group_of_family), self.group_of_family - 1)

    def cells(self) -> np.ndarray:
        """Conventional cells of the families, (families, 6); NaN for measured ones."""
        out = np.full((len(self.group_of_family), 6), np.nan)
        for k, c in enumerate(self.crystals, self._first_library):
            bravais = BRAVAIS_LATTICES[bravais_of_group()[c.space_group - 1]]
            choices = dict(reversed(lattices_of(niggli_cell(c.cell, space_group(c.space_group).hm[0]))))
            out[k] = choices.get(bravais, np.nan)
        return out

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)

    def batch(self, step: int, rank: int, world: int, device) -> dict:
        rng = np.random.default_rng((self.seed, step, rank))
        measured, library, _ = self.pools
        a = self._rows[np.searchsorted(self._weight, rng.random(self.shares[0])).clip(0, len(self._rows) - 1)]
        b, c = (rng.integers(0, len(p.source), n) for p, n in zip(self.pools[1:], self.shares[1:], strict=True))
        x = torch.cat([pool.looks[torch.as_tensor(rows)] for pool, rows in zip(self.pools, (a, b, c), strict=True)]).float()
        label = np.concatenate(
            [
                self.family[measured.source[a]],
                self._first_library + library.source[b],
                np.full(len(c), len(self.group_of_family)),
            ]
        )
        points = SPECTRUM_POINTS // 2
        shifted = torch.cat([torch.roll(x[:, :points], int(rng.integers(-1, 2)), 1), x[:, points:]], 1)
        return {
            "look": shifted.to(device),
            "labels": torch.as_tensor(label.astype(np.int64)).to(device),
        }

    def loss(self, model: nn.Module, batch: dict) -> tuple[Tensor, dict]:
        loss = F.cross_entropy(model.logits_of_look(batch["look"]), batch["labels"], label_smoothing=0.01)
        return loss, {"family": loss.detach()}

    def evaluate(self, model: nn.Module, device) -> dict[str, float]:
        """Space group of the likeliest family, for measured patterns kept out; 0 where none is."""
        rows = np.flatnonzero(~self.keep)
        if not len(rows):
            return {}
        p = by_group(family_probabilities(model, self.pools[0].spectrum[rows], device), self.group_of_family)
        return {"measured_group": float((p.argmax(1) + 1 == self.measured.space_group.numpy()[rows]).mean())}


@torch.no_grad()
def family_probabilities(model: nn.Module, spectrum, device="cpu") -> np.ndarray:
    """Probabilities (n, families + 1) of known families, the last that of none."""
    rows = torch.as_tensor(spectrum).split(256)
    return np.concatenate([model(x.float().to(device)).cpu().numpy() for x in rows])


def distinct(crystals: list, tolerance: float = 0.004) -> list:
    """The crystals without those of an earlier one's space group, atoms a cell and (to ``tolerance``) cell."""
    kept: dict[tuple, list] = {}
    out = []
    for crystal in crystals:
        others = kept.setdefault((crystal.space_group, len(crystal.numbers)), [])
        size = np.r_[np.log(crystal.cell[:3]), np.radians(crystal.cell[3:])]
        if all(np.abs(size - other).max() > tolerance for other in others):
            others.append(size), out.append(crystal)
    return out


@lru_cache(maxsize=1)
def _ingredients(shared: Path, runs: Path) -> tuple:
    """Measured patterns, pools and library crystals; pools and lines are kept under ``runs``."""
    measured, crystals = MeasuredSet.rruff(shared), distinct(library_crystals(shared)[0])
    folder = runs / "families"
    folder.mkdir(parents=True, exist_ok=True)
    pools = (
        Pool.kept(folder / "measured.npz", lambda: measured_pool(measured)),
        Pool.kept(folder / "library.npz", lambda: library_pool(crystals)),
        Pool.kept(folder / "unknown.npz", lambda: unknown_pool(training_lines(runs / "lines", shared, UNKNOWN_CHUNKS))),
    )
    return measured, pools, crystals


def family_task(shared: Path, runs: Path, keep=None, seed: int = 0, everything: bool = True) -> FamilyTask:
    """The task on the shared data.

    ``everything=False``: structure types that are kept out of all other training are no families.
    """
    measured, pools, crystals = _ingredients(Path(shared), Path(runs))
    if not everything:
        number = np.cumsum(known := ~np.array([is_held_out(c) for c in crystals])) - 1
        rows = known[pools[1].source]
        library = Pool(pools[1].spectrum[rows], number[pools[1].source[rows]])
        pools, crystals = (pools[0], library, pools[2]), [c for c, k in zip(crystals, known, strict=True) if k]
    return FamilyTask(measured, pools, crystals, keep, seed)


#: minutes of the first stage, on the library alone, and of the second, with measured families
FIRST, SECOND = 8.0, 2.0


def train_families(task: FamilyTask, out: Path, minutes: float, threads: int | None = None, init: Path | None = None) -> nn.Module:
    """FamilyNet of a task after ``minutes``; its checkpoint stays in ``out``. ``init``: a checkpoint to begin with."""
    from ...training.loop import TrainOptions, load_checkpoint_weights, train

    if not (out / "checkpoint").exists():
        options = TrainOptions(
            out=out, minutes=minutes, device="cpu", threads=threads, init=init, warmup_steps=100, ema_decay=0.998, progress=False,
            evaluate_every_minutes=1e3, checkpoint_every_minutes=1e3, seed=task.seed,
        )  # fmt: skip
        result = train(task, options)
        log.info("families: %d steps, %s", result.steps, result.figures)
    model = task.model()
    model.load_state_dict(load_checkpoint_weights(out / "checkpoint"))
    return model.eval()


def first_stage(task: FamilyTask, runs: Path, threads: int | None = None) -> tuple[nn.Module, Path]:
    """FamilyNet of the library alone, and its checkpoint, kept under ``runs`` and shared by tasks of the same library."""
    nothing = FamilyTask(task.measured, task.pools, task.crystals, np.zeros(len(task.keep), bool), task.seed)
    out = runs / f"families-library-{len(task.crystals)}"
    return train_families(nothing, out, FIRST, threads), out / "checkpoint"


def two_stages(task: FamilyTask, runs: Path, out: Path, threads: int | None = None) -> nn.Module:
    """FamilyNet after both stages."""
    return train_families(task, out, SECOND, threads, first_stage(task, runs, threads)[1])


def explained(task: FamilyTask, runs: Path, p: np.ndarray, lines, threads: int | None = None) -> np.ndarray:
    """Space groups of known crystals ``p`` (n, families + 1), (2, n, 230): as the network sees them, as method "network" takes
    it, and with cells that do not explain the lines counting less, as "auto" does. ``lines`` as `held_against` takes them.
    """
    seen = family_probabilities(first_stage(task, runs, threads)[0], task.pools[0].spectrum[: len(task.measured)])
    cells = cells_of(task, counterparts(task, seen))
    held = held_against(p, cells, task.group_of_family, lines)
    return np.stack([by_group(v, task.group_of_family) for v in (p, held)])


def out_of_fold_families(shared, runs, name: str, fold, lines, threads=None) -> np.ndarray:
    """What `explained` makes of measured patterns, (2, n, 230), by networks trained without their fold; kept under ``runs``.

    ``lines`` of the patterns as for `explained`.
    """
    out = np.zeros((2, len(fold), 230))
    for k in np.unique(fold):
        rows, path = np.flatnonzero(fold == k), runs / "cv" / f"families-{name}-{k}.npy"
        task = family_task(shared, runs, fold != k, seed=100 + int(k))
        if not path.is_file():
            model = two_stages(task, runs, runs / "cv" / f"families-{name}-{k}", threads)
            np.save(path, family_probabilities(model, task.pools[0].spectrum[rows]))
        out[:, rows] = explained(task, runs, np.load(path, allow_pickle=False), [lines[i] for i in rows], threads)
    return out
