"""How FamilyNet is made: what measured and library crystals look like under many conditions, and crystals it must not know.

A *family* is one crystal: the look-alikes among the measured patterns (solid solutions of one mineral), or one structure of
the library. Its patterns are varied as samples and instruments vary them: cells by a fraction of a percent, intensities by
texture, lines by size and strain; wavelength, range, zero shift, noise, second phases. Random crystals stand for all that
is in no family.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import gemmi
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...physics.crystals import strain
from ...physics.symmetry import BRAVAIS_LATTICES, SYSTEM_OF_GROUP, bravais_of_group, space_group
from ...storage.atomic import replacing
from ..families import by_group
from ..indexing.bravais import lattices_of, niggli_cell
from ..network import FamilyNet
from ..prepare import REFERENCE_WAVELENGTH, SPECTRUM_POINTS, find_peaks, normalise, spectrum_of, strip_doublet
from ..simulate import LineLibrary, lines_of, simulate
from .measured import MeasuredSet, augment
from .stream import is_held_out, library_crystals, texture, training_lines

log = logging.getLogger(__name__)

VARIANTS, RENDERED, LIBRARY_CELLS, LIBRARY_PATTERNS = 30, 30, 4, 6
UNKNOWN_CHUNKS, UNKNOWN_OF_CHUNK = 8, 3000
SHARES = (72, 152, 96)  # of a batch: measured families, library families, no family
LIBRARY_ONLY = (0, 224, 96)  # in the first stage
CELL_SPREAD = 0.0025  # standard deviation of ln d among patterns of one measured family
_BATCH = 64
_ANIONS = (1, 7, 8, 9, 16, 17, 34, 35, 52, 53)  # last in formulas


@dataclass
class Pool:
    """Ready-made spectra to train on.

    Attributes
    ----------
    spectrum : (n, 2, SPECTRUM_POINTS) float16, as `crystaldl.powder.prepare.spectrum_of`
    source : (n,) index of the measured pattern or of the library structure that each shows; -1 for no family
    """

    spectrum: np.ndarray
    source: np.ndarray

    @cached_property
    def looks(self) -> Tensor:
        """`FamilyNet.look` of all of them, float16: what its fixed first layers see is made once."""
        reader = FamilyNet(1)
        with torch.no_grad():
            return torch.cat([reader.look(part.float()).half() for part in torch.as_tensor(self.spectrum).split(1024)])

    def save(self, path) -> None:
        with replacing(path) as beside, beside.open("wb") as stream:
            np.savez(stream, spectrum=self.spectrum, source=self.source)

    @classmethod
    def load(cls, path) -> Pool:
        with np.load(Path(path), allow_pickle=False) as data:
            return cls(data["spectrum"], data["source"])

    @classmethod
    def kept(cls, path: Path, make) -> Pool:
        """The pool in ``path``; made by ``make()`` and kept there where it is missing."""
        if not path.is_file():
            make().save(path)
        return cls.load(path)


def _spectra(y: Tensor, mask: Tensor, ratio: Tensor) -> np.ndarray:
    return spectrum_of(strip_doublet(normalise(y, mask), ratio) * mask, mask).half().numpy()


def lines_in(measured: MeasuredSet) -> tuple[Tensor, Tensor]:
    """Lines of measured patterns as the simulator takes them: 1/d and m|F|² up to a factor, (n, 64) each."""
    stripped = strip_doublet(normalise(measured.y, measured.mask), measured.ratio) * measured.mask
    features, found = find_peaks(stripped, measured.mask)
    q = torch.where(found, features[..., 0].exp(), torch.ones(()))
    sin = (q * REFERENCE_WAVELENGTH / 2).clamp(1e-3, 0.985)
    polarisation = (1 + (1 - 2 * sin**2) ** 2) / (sin**2 * torch.sqrt(1 - sin**2))
    return q, torch.where(found, features[..., 1].exp() / polarisation, torch.zeros(()))


def measured_pool(measured: MeasuredSet, seed: int = 0, variants: int = VARIANTS, rendered: int = RENDERED) -> Pool:
    """Every pattern as it is (first, in order), altered as `augment` does, and its lines seen by other instruments."""
    g = torch.Generator().manual_seed(seed)
    spectra = [_spectra(measured.y, measured.mask, measured.ratio)]
    source = [np.arange(len(measured))]
    q, intensity = lines_in(measured)
    for turn in range(variants + rendered):
        for rows in torch.randperm(len(measured), generator=g).split(_BATCH):
            if turn < variants:
                y, mask = augment(measured.y[rows], measured.mask[rows], g, cell_spread=CELL_SPREAD)
                ratio = measured.ratio[rows]
            else:
                change = torch.exp(CELL_SPREAD * torch.randn((len(rows), 1), generator=g))
                other = torch.randint(len(q), (len(rows),), generator=g)
                p = simulate(q[rows] * change, intensity[rows], g, second=(q[other], intensity[other]))
                y, mask, ratio = p.y, p.mask, p.doublet_ratio
            spectra.append(_spectra(y, mask, ratio))
            source.append(rows.numpy())
    return Pool(np.concatenate(spectra), np.concatenate(source))


def _rendered(q: np.ndarray, intensity: np.ndarray, source: np.ndarray, g: torch.Generator) -> Pool:
    """Patterns of lines (n, L) under the simulator's usual conditions."""
    q, intensity = torch.as_tensor(q), torch.as_tensor(intensity)
    out = []
    for rows in torch.arange(len(q)).split(_BATCH):
        other = torch.randint(len(q), (len(rows),), generator=g)
        p = simulate(q[rows], intensity[rows], g, second=(q[other, :96], intensity[other, :96]))
        out.append(_spectra(p.y, p.mask, p.doublet_ratio))
    return Pool(np.concatenate(out), source)


def title(crystal) -> str:
    """A crystal's name as a reader knows it: the library's where that is a name, else its formula."""
    name = crystal.name.split("/")[-1].removesuffix(".cif")
    _, _, mineral = name.partition("-")
    if re.match("[A-Z][a-z]{2}", mineral):  # TiO2-Rutile
        return mineral
    if name and not name.startswith("POSCAR") and "_" not in name:
        return name
    numbers, counts = np.unique(crystal.numbers, return_counts=True)
    counts = counts // np.gcd.reduce(counts)
    order = np.lexsort((numbers, np.isin(numbers, _ANIONS)))
    return "".join(gemmi.Element(int(numbers[i])).name + (str(counts[i]) if counts[i] > 1 else "") for i in order)


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


def library_pool(crystals: list, seed: int = 0) -> Pool:
    """Patterns of library structures, cells strained by 0.4 %, half of the samples textured."""
    rng, g = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    q, intensity, source = [], [], []
    for number, crystal in enumerate(crystals):
        for turn in range(LIBRARY_CELLS):
            cell = strain(crystal, rng, sigma=0.004, volume_sigma=0.003) if turn else crystal
            a, b = lines_of(cell, texture(cell, rng) if turn > 1 else None)
            if (b > 0).sum() >= 3:
                q.append(a), intensity.append(b), source.append(number)
    repeated = [np.tile(np.array(a), (LIBRARY_PATTERNS, 1)) for a in (q, intensity)]
    return _rendered(*repeated, np.tile(np.array(source), LIBRARY_PATTERNS), g)


def unknown_pool(lines: LineLibrary, seed: int = 0) -> Pool:
    """Patterns of random crystals."""
    rows = np.flatnonzero(lines.family < 0)[: UNKNOWN_CHUNKS * UNKNOWN_OF_CHUNK]
    g = torch.Generator().manual_seed(seed + 1)
    return _rendered(lines.q[rows], lines.intensity[rows], np.full(len(rows), -1), g)


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


def counterparts(task: FamilyTask, p: np.ndarray, least: float = 0.3) -> np.ndarray:
    """The library's family that each measured one looks like, (measured families,); -1 where none of its space group does.

    ``p`` (n, families + 1) is what a network of the library alone says of the measured patterns; families of one name count
    together, and must have ``least``.
    """
    first, names = len(np.unique(task.family)), np.array(task.names)
    out = np.full(first, -1)
    for k in range(first):
        mean = p[task.family == k, :-1].mean(0)
        mean[:first], mean[task.group_of_family != task.group_of_family[k]] = 0.0, 0.0
        best = int(mean.argmax())
        if mean[names == names[best]].sum() >= least:
            out[k] = best
    return out


def doubted(task: FamilyTask, p: np.ndarray, known: float = 0.3, own: float = 0.03, other: float = 0.4) -> np.ndarray:
    """The library's family that is believed instead of a measured pattern's label, (measured families,); -1 where none is.

    A few in a hundred labels of measured patterns are wrong (quartz on a triclinic mineral). A pattern without look-alikes is
    doubted where the library's network, arguments as for `counterparts`, has a known crystal (probability ``known``), of
    the label's crystal system with a share of at most ``own``, and of one space group with a share of ``other``.
    """
    first, system = len(np.unique(task.family)), SYSTEM_OF_GROUP[task.group_of_family - 1]
    out = np.full(first, -1)
    for k in range(first):
        rows = task.family == k
        mean = p[rows, :-1].mean(0)
        mean[:first] = 0.0
        total, same = mean.sum(), mean[system == system[k]].sum()
        group = np.bincount(task.group_of_family, weights=mean, minlength=231)
        if rows.sum() == 1 and total > known and same < own * total and group.max() > other * total:
            out[k] = np.where(task.group_of_family == group.argmax(), mean, 0.0).argmax()
    return out


def shipped_facts(task: FamilyTask, p: np.ndarray) -> tuple[dict[str, Tensor], int]:
    """What FamilyNet is given besides its weights: names, space groups and cells of the families; number of labels doubted.

    Measured families have the name and the cell of the library's crystal that they look like; ``p`` as for `counterparts`.
    """
    twin, instead = counterparts(task, p), doubted(task, p)
    twin, first = np.where(instead < 0, twin, instead), len(twin)
    groups, names, cells = task.group_of_family.copy(), np.array(task.names, object), task.cells()
    groups[:first] = np.where(instead < 0, groups[:first], groups[instead])
    names[:first] = np.where(twin < 0, "", names[twin])
    cells[:first] = np.where(twin[:, None] < 0, np.nan, cells[twin])
    text = torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8)
    facts = {"groups": torch.as_tensor(groups - 1).float(), "cells": torch.as_tensor(cells.ravel()).float(), "text": text}
    return facts, int((instead >= 0).sum())


def out_of_fold_families(shared, runs, name: str, fold, threads=None) -> np.ndarray:
    """Known crystals of measured patterns, space groups (n, 230), by networks trained without their fold; kept under ``runs``."""
    out = np.zeros((len(fold), 230))
    for k in np.unique(fold):
        rows, path = np.flatnonzero(fold == k), runs / "cv" / f"families-{name}-{k}.npy"
        task = family_task(shared, runs, fold != k, seed=100 + int(k))
        if not path.is_file():
            model = two_stages(task, runs, runs / "cv" / f"families-{name}-{k}", threads)
            np.save(path, family_probabilities(model, task.pools[0].spectrum[rows]))
        out[rows] = by_group(np.load(path, allow_pickle=False), task.group_of_family)
    return out
