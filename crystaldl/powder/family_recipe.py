"""How FamilyNet is made: what measured and library crystals look like under many conditions, and crystals it must not know.

A *family* is one crystal: the look-alikes among the measured patterns (solid solutions of one mineral), or one structure of
the library. Its patterns are varied as samples and instruments vary them: cells by a fraction of a percent, intensities by
texture, lines by size and strain; wavelength, range, zero shift, noise, second phases. Random crystals stand for all that
is in no family.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..physics.crystals import strain
from ..storage.atomic import replacing
from .measured import MeasuredSet, augment
from .network import FamilyNet
from .prepare import REFERENCE_WAVELENGTH, find_peaks, normalise, spectrum_of, strip_doublet
from .simulate import LineLibrary, lines_of, simulate
from .stream import is_held_out, library_crystals, texture, training_lines

log = logging.getLogger(__name__)

VARIANTS, RENDERED, LIBRARY_CELLS, LIBRARY_PATTERNS = 30, 30, 4, 6
UNKNOWN_CHUNKS, UNKNOWN_OF_CHUNK = 8, 3000
SHARES = (96, 96, 128)  # of a batch: measured families, library families, no family
CELL_SPREAD = 0.0025  # standard deviation of ln d among patterns of one measured family
_BATCH = 64


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

    def save(self, path) -> None:
        with replacing(path) as beside, beside.open("wb") as stream:
            np.savez(stream, **vars(self))

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


def library_families(shared: Path | None, everything: bool = False) -> list:
    """Structures that become families: those of the library whose type is not kept out of training, or all of them."""
    return [c for c in library_crystals(shared)[0] if everything or not is_held_out(c)]


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
    """

    name = "powder-families"

    def __init__(self, measured: MeasuredSet, pools: tuple[Pool, Pool, Pool], groups, keep=None, seed: int = 0):
        self.pools, self.seed, self.measured = pools, seed, measured
        group, look = measured.space_group.numpy(), measured.group.numpy()
        pairs, number = np.unique(np.stack([look, group], 1), axis=0, return_inverse=True)
        self.family = number.ravel()
        self.group_of_family = np.concatenate([pairs[:, 1], np.asarray(groups, dtype=int)])
        self.keep = np.ones(len(measured), bool) if keep is None else np.asarray(keep, bool)
        self._first_library = len(pairs)
        self._rows = np.flatnonzero(self.keep[pools[0].source])
        # a family of n patterns counts as √n
        counts = np.bincount(self.family[self.keep], minlength=len(pairs))
        weight = 1 / np.sqrt(counts[self.family[pools[0].source[self._rows]]])
        self._weight = np.cumsum(weight / weight.sum())

    def model(self) -> nn.Module:
        return FamilyNet(len(self.group_of_family), self.group_of_family - 1)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)

    def batch(self, step: int, rank: int, world: int, device) -> dict:
        rng = np.random.default_rng((self.seed, step, rank))
        measured, library, unknown = self.pools
        a = self._rows[np.searchsorted(self._weight, rng.random(SHARES[0])).clip(0, len(self._rows) - 1)]
        b, c = (rng.integers(0, len(p.source), n) for p, n in zip(self.pools[1:], SHARES[1:], strict=True))
        x = np.concatenate([measured.spectrum[a], library.spectrum[b], unknown.spectrum[c]])
        label = np.concatenate(
            [
                self.family[measured.source[a]],
                self._first_library + library.source[b],
                np.full(len(c), len(self.group_of_family)),
            ]
        )
        shift = int(rng.integers(-2, 3))
        return {
            "spectrum": torch.roll(torch.as_tensor(x).float(), shift, 2).to(device),
            "labels": torch.as_tensor(label.astype(np.int64)).to(device),
        }

    def loss(self, model: nn.Module, batch: dict) -> tuple[Tensor, dict]:
        loss = F.cross_entropy(model.family_logits(batch["spectrum"]), batch["labels"], label_smoothing=0.01)
        return loss, {"family": loss.detach()}

    def evaluate(self, model: nn.Module, device) -> dict[str, float]:
        """Space group of the likeliest family, for measured patterns kept out; 0 where none is."""
        rows = np.flatnonzero(~self.keep)
        if not len(rows):
            return {}
        p = group_probabilities(model, self.pools[0].spectrum[rows], device)
        return {"measured_group": float((p.argmax(1) + 1 == self.measured.space_group.numpy()[rows]).mean())}


@torch.no_grad()
def group_probabilities(model: nn.Module, spectrum, device="cpu") -> np.ndarray:
    """Probabilities (n, 230) of known families' space groups; the rest to 1 is that of no known family."""
    rows = torch.as_tensor(spectrum).split(256)
    return np.concatenate([model(x.float().to(device)).cpu().numpy() for x in rows])


def family_task(shared: Path, runs: Path, keep=None, seed: int = 0, everything: bool = False) -> FamilyTask:
    """The task on the shared data; pools and lines are kept under ``runs``.

    ``everything``: types that are kept out of all other training are families too: what ships, but is judged on none of them.
    """
    measured = MeasuredSet.rruff(shared)
    crystals = library_families(shared, everything)
    folder = runs / "families"
    folder.mkdir(parents=True, exist_ok=True)
    pools = (
        Pool.kept(folder / "measured.npz", lambda: measured_pool(measured)),
        Pool.kept(folder / ("library-all.npz" if everything else "library.npz"), lambda: library_pool(crystals)),
        Pool.kept(folder / "unknown.npz", lambda: unknown_pool(training_lines(runs / "lines", shared, UNKNOWN_CHUNKS))),
    )
    return FamilyTask(measured, pools, [c.space_group for c in crystals], keep, seed)


def train_families(task: FamilyTask, out: Path, minutes: float, threads: int | None = None) -> nn.Module:
    """FamilyNet of a task after ``minutes``; its checkpoint stays in ``out``."""
    from ..training.loop import TrainOptions, load_checkpoint_weights, train

    if not (out / "checkpoint").exists():
        options = TrainOptions(
            out=out, minutes=minutes, device="cpu", threads=threads, warmup_steps=200, ema_decay=0.998, progress=False,
            evaluate_every_minutes=1e3, checkpoint_every_minutes=1e3, seed=task.seed,
        )  # fmt: skip
        result = train(task, options)
        log.info("families: %d steps, %s", result.steps, result.figures)
    model = task.model()
    model.load_state_dict(load_checkpoint_weights(out / "checkpoint"))
    return model.eval()


def out_of_fold_families(shared: Path, runs: Path, name: str, fold, minutes: float, threads=None) -> np.ndarray:
    """`group_probabilities` (n, 230) of measured patterns by networks trained without their fold; kept under ``runs``."""
    path = runs / "cv" / f"families-{name}.npy"
    if not path.is_file():
        p = np.zeros((len(fold), 230), np.float32)
        for k in np.unique(fold):
            task = family_task(shared, runs, fold != k, seed=100 + int(k))
            model = train_families(task, runs / "cv" / f"families-{name}-{k}", minutes, threads)
            rows = np.flatnonzero(fold == k)
            p[rows] = group_probabilities(model, task.pools[0].spectrum[rows])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, p)
    return np.load(path, allow_pickle=False)
