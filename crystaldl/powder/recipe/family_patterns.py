"""Patterns that FamilyNet learns from: measured ones, library structures and random crystals, seen under many conditions.

Cells vary by a fraction of a percent, intensities by texture, lines by size and strain; so do wavelength, range, zero shift,
noise and second phases.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...physics.crystals import strain
from ...storage.atomic import replacing
from ..network import FamilyNet
from ..prepare import REFERENCE_WAVELENGTH, find_peaks, normalise, spectrum_of, strip_doublet
from ..simulate import LineLibrary, lines_of, simulate
from .measured import MeasuredSet, augment
from .stream import texture

VARIANTS, RENDERED, LIBRARY_CELLS, LIBRARY_PATTERNS = 30, 30, 4, 6
UNKNOWN_CHUNKS, UNKNOWN_OF_CHUNK = 8, 3000
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
