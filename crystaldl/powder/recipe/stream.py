"""The crystals of the training stream: structure-library variants and random crystals, reduced to their powder lines.

Lines are computed once (minutes) and patterns are rendered from them on the fly. The space groups follow the
frequencies of minerals and inorganic compounds, mixed with a uniform share so that no group is unknown.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...physics.amcsd import amcsd_file, read_amcsd
from ...physics.crystals import Crystal, aflow_prototypes, jitter, read_library, strain, substitute
from ...physics.minerals import minerals
from ...physics.random_crystals import random_crystal
from ...physics.symmetry import BRAVAIS_LATTICES, CRYSTAL_SYSTEMS, SYSTEM_OF_GROUP, bravais_of_group
from ..frequencies import group_shares
from ..simulate import LineLibrary, lines_of

log = logging.getLogger(__name__)

HELD_OUT = 0.12  # share of library prototypes not trained on; the shipped FamilyNet alone knows them too


def prototype(crystal: Crystal) -> str:
    """A name for the structure type: space group, atoms a cell and multiplicities of the species. Same type, same name."""
    counts = sorted(np.unique(crystal.numbers, return_counts=True)[1].tolist())
    return f"{crystal.space_group}:{len(crystal.numbers)}:{','.join(map(str, counts))}"


def is_held_out(crystal: Crystal) -> bool:
    """Whether the structure type is kept out of training (decided by the hash of its prototype's name)."""
    return int(hashlib.sha256(prototype(crystal).encode()).hexdigest()[:8], 16) / 2**32 < HELD_OUT


def library_crystals(shared: Path | None) -> tuple[list[Crystal], str]:
    """Structures to vary, those with fewer than 400 atoms whose listed symmetry spglib confirms, and where they came from.

    A library and the minerals that ship with the package; those of the American Mineralogist database
    (`crystaldl.physics.amcsd`) join where the package larixite is installed.
    """
    path = None if shared is None else Path(shared) / "powder" / "structures.json.gz"
    if path is not None and path.is_file():
        crystals, source = read_library(path), "structure library (1,251 structures)"
    else:
        crystals, source = aflow_prototypes(), "AFLOW prototypes shipped with pymatgen"
    crystals = [*crystals, *minerals()]
    database = amcsd_file()
    if database is not None:
        more = read_amcsd(database)
        crystals, source = [*crystals, *more], f"{source}; AMCSD as carried by larixite ({len(more):,} structures)"
    return [c for c in crystals if len(c.numbers) <= 400 and c.symmetry().number == c.space_group], source


def texture(crystal: Crystal, rng: np.random.Generator) -> tuple[np.ndarray, float] | None:
    """A random preferred orientation, (hkl axis, March-Dollase r), or none."""
    if rng.random() < 0.45:
        return None
    axis = np.array(
        [(0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 1, 1), (1, 0, 1)][
            rng.choice(6, p=[0.4, 0.15, 0.2, 0.1, 0.1, 0.05])
        ],
        float,
    )
    return axis, float(np.clip(np.exp(rng.normal(-0.15, 0.35)), 0.35, 2.2))


def primitive_volume(crystal: Crystal) -> float:
    """Volume of the primitive cell in Å³."""
    letter = BRAVAIS_LATTICES[bravais_of_group()[crystal.space_group - 1]][1]
    return crystal.volume / {"P": 1, "C": 2, "I": 2, "F": 4, "R": 3}[letter]


@dataclass
class CrystalSource:
    """Draws crystals: a space group from the prior, then a varied library structure or a random crystal of it."""

    crystals: list[Crystal]
    prior: np.ndarray
    library_strength: float = 12.0  # a group with this many known structure types takes half its crystals from them

    def __post_init__(self):
        types: dict[int, dict[str, list[int]]] = {}
        for i, crystal in enumerate(self.crystals):
            types.setdefault(crystal.space_group, {}).setdefault(prototype(crystal), []).append(i)
        self._types = {n: list(t.values()) for n, t in types.items()}

    def draw(
        self, rng: np.random.Generator, random_only: bool = False, library_only: bool = False
    ) -> tuple[Crystal, int]:
        """A crystal and its family number (-1 for a random crystal)."""
        while True:
            number = int(rng.choice(230, p=self.prior)) + 1
            types = self._types.get(number, [])
            if library_only and not types:
                continue
            share = len(types) / (len(types) + self.library_strength)
            if not random_only and types and (library_only or rng.random() < share):
                index = int(rng.choice(types[rng.integers(len(types))]))
                return self._vary(self.crystals[index], rng), index
            try:
                return random_crystal(number, rng, max_atoms=int(rng.choice([60, 120, 200]))), -1
            except RuntimeError:
                continue

    @staticmethod
    def _vary(crystal: Crystal, rng) -> Crystal:
        cubic = CRYSTAL_SYSTEMS[SYSTEM_OF_GROUP[crystal.space_group - 1]] == "cubic"
        if rng.random() < 0.7:
            crystal = substitute(crystal, rng)
        crystal = strain(crystal, rng, sigma=rng.choice([0.005, 0.02, 0.06]), volume_sigma=0.2 if cubic else 0.08)
        return jitter(crystal, rng, sigma=rng.choice([0.0, 0.05, 0.15]))


def build_lines(source: CrystalSource, count: int, seed: int, **choice) -> LineLibrary:
    """Lines of ``count`` crystals drawn with ``seed`` (about 300 a second on one core)."""
    rng = np.random.default_rng(seed)
    q, intensity, group, family, volume = [], [], [], [], []
    while len(q) < count:
        crystal, index = source.draw(rng, **choice)
        a, b = lines_of(crystal, texture(crystal, rng))
        if (b > 0).sum() < 3:
            continue
        q.append(a), intensity.append(b), group.append(crystal.space_group), family.append(index)
        volume.append(primitive_volume(crystal))
    return LineLibrary(
        np.array(q),
        np.array(intensity),
        np.array(group, np.int16),
        np.array(family, np.int32),
        np.array(volume, np.float32),
    )


def _build_chunk(job) -> str:
    shared, seed, count, path, held_out, choice = job
    crystals, _ = library_crystals(shared)
    source = CrystalSource([c for c in crystals if is_held_out(c) == held_out], group_shares())
    build_lines(source, count, seed, **choice).save(path)
    return str(path)


def training_lines(
    folder,
    shared: Path | None,
    chunks: int,
    chunk_size: int = 5000,
    seed: int = 0,
    workers: int = 1,
    held_out: bool = False,
    **choice,
) -> LineLibrary:
    """Lines of ``chunks × chunk_size`` training crystals, cached as one file a chunk under ``folder``.

    ``held_out=True`` draws from the library prototypes that training never sees instead.
    """
    from concurrent.futures import ProcessPoolExecutor

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tag = "held" if held_out else "train"
    jobs = [
        (
            shared,
            1000 * (seed + 1) + k + (500_000 if held_out else 0),
            chunk_size,
            folder / f"{tag}-s{seed}-n{chunk_size}-{k:03d}.npz",
            held_out,
            choice,
        )
        for k in range(chunks)
    ]
    missing = [j for j in jobs if not j[3].is_file()]
    if missing:
        log.info("computing the lines of %d crystals", chunk_size * len(missing))
        if workers > 1:
            with ProcessPoolExecutor(workers) as pool:
                list(pool.map(_build_chunk, missing))
        else:
            for job in missing:
                _build_chunk(job)
    return LineLibrary.concatenate([LineLibrary.load(j[3]) for j in jobs])
