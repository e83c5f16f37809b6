"""The training stream: endless simulated planes, deterministic in (seed, step), whose truth is exact.

Molecules and correlations are drawn once into banks (seconds) and combined afresh in every batch: orientation, lattice, range and
grid of Q, plane, strength of the order, Debye-Waller factor, radiation, and all that spoils a measurement.
"""
from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from ...errors import DataError
from .. import disorder
from ..corruption import Corruption
from ..geometry import half_space
from ..molecules import Pair, axis_rotation, random_pair, random_rotation
from ..simulate import PlaneSpec, SimulatedPlanes, simulate_planes

HELD_OUT = 0.1              # share of the compositions that training never sees
KINDS = {"kcm": 0.4, "monte_carlo": 0.3, "oscillator": 0.2, "sharp": 0.1}
SYMMETRIES = {"square": 0.27, "rectangular": 0.25, "hexagonal": 0.25, "rhombic": 0.08, "oblique": 0.15}
# generators of the point group on direct lattice vectors (u, v); -1 is implied
_GENERATORS = {
    "square": ([[0, -1], [1, 0]], [[1, 0], [0, -1]]), "rectangular": ([[1, 0], [0, -1]],),
    "hexagonal": ([[1, -1], [1, 0]], [[0, 1], [1, 0]]), "rhombic": ([[0, 1], [1, 0]],), "oblique": (),
}  # fmt: skip
TRAINING = Corruption(
    counts=(10.0, 1e4), masks="procedural", missing=(0.05, 0.55), hole_radius=(1.0, 5.0), bragg=(0.05, 20.0), background=(0.0, 0.1),
    blur=(0.3, 1.2), lattice_error=(0.0, 0.005), size_effect=(0.02, 0.3),
    share={"counts": 0.9, "masks": 0.65, "hole_radius": 0.5, "bragg": 0.4, "background": 0.6, "blur": 0.3, "lattice_error": 0.6,
           "size_effect": 0.25},
)  # fmt: skip


def is_held_out(family: str, extra=()) -> bool:
    """Whether a family is kept for evaluation: any of its compositions hashes into the held-out share or is named in ``extra``."""
    names = family.split(":")[-1].split("/")
    return any(n in extra or int(hashlib.sha256(n.encode()).hexdigest()[:8], 16) / 2**32 < HELD_OUT for n in names)


def orbits(vectors: np.ndarray, symmetry: str) -> np.ndarray:
    """(n,) number of the orbit of each vector under the plane group's point group (and -1)."""
    operations = [np.eye(2, dtype=int)]
    for generator in _GENERATORS[symmetry]:
        g, power = np.array(generator), np.array(generator)
        powers = [np.eye(2, dtype=int)]
        while not (power == np.eye(2, dtype=int)).all():
            powers.append(power)
            power = power @ g
        operations = [a @ b for a in operations for b in powers]
    images = np.stack([vectors @ np.array(o).T for o in operations], 1)
    flat = images.reshape(-1, 2)
    images = np.where(half_space(flat)[:, None], flat, -flat).reshape(images.shape)
    code = images[..., 0] * 100_003 + images[..., 1]
    return np.unique(code.min(1), return_inverse=True)[1].ravel()


def _metric(symmetry: str, rng) -> np.ndarray:
    """Direct metric of the class in units of a², for the length of R."""
    if symmetry == "square":
        return np.eye(2)
    if symmetry == "hexagonal":
        return np.array([[1.0, -0.5], [-0.5, 1.0]])
    ratio = 1.0 if symmetry == "rhombic" else float(np.exp(rng.uniform(-0.5, 0.5)))
    cosine = 0.0 if symmetry == "rectangular" else float(np.cos(np.radians(rng.uniform(68, 112))))
    return np.array([[1.0, ratio * cosine], [ratio * cosine, ratio**2]])


def _interactions(symmetry: str, rng, m: float) -> tuple[np.ndarray, np.ndarray]:
    """Reduced interactions βJ, alike within an orbit, so strong that the smallest 1 + βJ(h) is m."""
    metric = _metric(symmetry, rng)
    vectors = disorder.lattice_vectors(rng.uniform(1.05, 3.2), metric if symmetry in ("square", "hexagonal") else None)
    group = orbits(vectors, symmetry if rng.random() < 0.8 else "oblique")
    length = np.sqrt(np.einsum("ni,ij,nj->n", vectors, metric, vectors))
    beta = rng.normal(size=group.max() + 1)[group] * length ** -rng.uniform(0.5, 2.5)
    if np.abs(beta).max() < 1e-9:
        beta = np.ones_like(beta)
    lowest = 2 * (disorder.cell_structure_factor(vectors, beta / 2, 32) - 1).min()
    return vectors, beta * (1 - m) / -lowest


def _kcm(symmetry, rng):
    vectors, beta = _interactions(symmetry, rng, float(np.exp(rng.uniform(np.log(0.05), np.log(0.7)))))
    return disorder.prune(*disorder.krivoglaz_clapp_moss(vectors, beta, cutoff=16.0, points=64))


def _monte_carlo(symmetry, rng, shape=(64, 64), samples=24):
    # mean field orders too soon: true transitions in the plane lie near m = -0.7
    vectors, beta = _interactions(symmetry, rng, rng.uniform(-0.3, 0.6))
    share = float(rng.choice((0.5, rng.uniform(0.12, 0.5))))
    interactions = (vectors, beta / (4 * share * (1 - share)))
    vectors, alpha = disorder.ising_correlations(interactions, share, shape, sweeps=120, samples=samples,
                                                 seed=int(rng.integers(2**31)), cutoff=12.0)
    group = orbits(vectors, symmetry)
    number = np.bincount(group)
    # the symmetry of the lattice is that of the crystal; what remains of the sampling noise is shrunk away
    if np.ptp(beta) > 0 and rng.random() < 0.8:
        alpha = (np.bincount(group, alpha) / number)[group]
    noise = 1.0 / np.sqrt(np.prod(shape) * samples)
    alpha = alpha * alpha**2 / (alpha**2 + noise**2)
    alpha = alpha * np.exp(-0.5 * (np.linalg.norm(vectors, axis=1) / 4.5) ** 2)     # positive definite, hence keeps S ≥ 0
    return disorder.prune(vectors, alpha, 3e-4)


def _oscillator(symmetry, rng):
    """Damped oscillation; a draw with S < 0 anywhere is thrown away."""
    vectors = disorder.lattice_vectors(14.0)
    while True:
        metric = _metric(symmetry, rng)
        amplitude = rng.uniform(0.15, 1.0) * rng.choice((-1.0, 1.0))
        alpha = disorder.damped_oscillator(vectors, amplitude, rng.uniform(0.35, 1.6), rng.uniform(0, np.pi), metric)
        keep = np.abs(alpha) >= 1e-4
        if keep.any() and disorder.minimum(vectors[keep], alpha[keep]) >= 0:
            return vectors[keep], alpha[keep]


def _sharp(symmetry, rng):
    """Peaks, rods or lines: six cells or more of correlation, at symmetry points or anywhere."""
    vectors = disorder.lattice_vectors(22.0)
    count = int(rng.integers(1, 3))
    special = np.array([[0.5, 0.0], [0.0, 0.5], [0.5, 0.5], [1 / 3, 1 / 3], [0.25, 0.25], [0.0, 0.0]])
    positions = np.where(rng.random((count, 1)) < 0.5, special[rng.integers(6, size=count)], rng.random((count, 2)))
    length = np.exp(rng.uniform(np.log(2.0), np.log(5.5), 2))
    if rng.random() < 0.3:
        length[rng.integers(2)] = rng.uniform(0.2, 0.8)
    turn = axis_rotation((0, 0, 1), rng.choice((0.0, 45.0, rng.uniform(0, 180))))[:2, :2]
    width = turn @ np.diag(1 / length) @ turn.T
    weights = rng.dirichlet(np.ones(count)) * rng.uniform(0.25, 0.98)
    alpha = disorder.peaked(vectors, positions, weights, width, lorentzian=bool(rng.random() < 0.5))
    alpha *= np.exp(-0.5 * (np.linalg.norm(vectors, axis=1) / 7.0) ** 2)
    group = orbits(vectors, symmetry)
    if rng.random() < 0.8 and length.min() > 1:     # all symmetry-equivalent peaks; the rim of the list has whole orbits only
        alpha = (np.bincount(group, alpha) / np.bincount(group))[group]
    return disorder.prune(vectors, alpha, 2e-4)


_MAKERS = {"kcm": _kcm, "monte_carlo": _monte_carlo, "oscillator": _oscillator, "sharp": _sharp}


def random_order(kind: str, symmetry: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random admissible set (vectors (n, 2), alpha (n,)), one of each ±R, with S ≥ 0 everywhere.

    Parameters
    ----------
    kind : {"kcm", "monte_carlo", "oscillator", "sharp"}
    symmetry : {"square", "rectangular", "hexagonal", "rhombic", "oblique"}
    """
    while True:
        vectors, alpha = _MAKERS[kind](symmetry, rng)
        # a truncated set may dip below zero; the margin is a half of what the simulator forgives
        if len(alpha) and np.abs(alpha).max() > 0.02 and disorder.minimum(vectors, alpha) > -5e-4:
            return vectors, alpha


@lru_cache(maxsize=4)
def _order_bank(seed: int, monte_carlo: int, others: int) -> dict[tuple[str, str], list]:
    rng = np.random.default_rng([seed, 1])
    bank = {}
    for kind in KINDS:
        total = monte_carlo if kind == "monte_carlo" else others
        for symmetry, share in SYMMETRIES.items():
            bank[kind, symmetry] = [random_order(kind, symmetry, rng) for _ in range(max(2, round(total * share)))]
    return bank


@lru_cache(maxsize=4)
def _pair_bank(seed: int, count: int, held_out: tuple, evaluation: bool) -> list[Pair]:
    rng = np.random.default_rng([seed, 2, int(evaluation)])
    pairs = []
    while len(pairs) < count:
        pair = random_pair(rng)
        if is_held_out(pair.family, held_out) == evaluation:
            pairs.append(pair)
    return pairs


@dataclass(frozen=True, eq=False)
class DiffuseStream:
    """Batches of simulated planes, the same for the same (seed, step) whatever came before.

    Attributes
    ----------
    seed : int
    size : int or (rows, columns) of the planes
    corruption : Corruption, ranges from which every plane draws; `TRAINING` by default
    held_out : tuple of str
        Compositions (Hill formulas, as `molecules.formula` writes them) kept out of training besides the hashed share.
    evaluation : bool, draw pairs of held-out families only (with other correlations than the training's)
    radiation : shares of X-rays, electrons and neutrons
    monte_carlo, orders, pairs : sizes of the banks (Monte Carlo sets, sets of each other kind, pairs)
    library : pairs to draw from instead of generated ones
    """

    seed: int = 0
    size: int | tuple[int, int] = 256
    corruption: Corruption = TRAINING
    held_out: tuple[str, ...] = ()
    evaluation: bool = False
    radiation: tuple[float, float, float] = (0.8, 0.1, 0.1)
    monte_carlo: int = 128
    orders: int = 512
    pairs: int = 4096
    library: tuple[Pair, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if min(self.monte_carlo, self.orders, self.pairs) < 1:
            banks = f"{self.monte_carlo}, {self.orders}, {self.pairs}"
            raise DataError(f"monte_carlo, orders, pairs are {banks}, expected at least 1 each.")
        if len(self.radiation) != 3 or abs(sum(self.radiation) - 1) > 1e-6 or min(self.radiation) < 0:
            raise DataError(f"radiation is {self.radiation}, expected three shares (X-ray, electron, neutron) that sum to 1.")

    def batch(self, step: int, count: int = 16, device="cpu") -> SimulatedPlanes:
        """The batch of a step: ``count`` planes on ``device``."""
        noise = int(np.random.SeedSequence([self.seed, int(self.evaluation), step, 4]).generate_state(1, np.uint64)[0]) >> 1
        return simulate_planes(self.specs(step, count), self.corruption, size=self.size, seed=noise, device=device)

    def specs(self, step: int, count: int = 16) -> list[PlaneSpec]:
        """The planes of a step before they are rendered."""
        rng = np.random.default_rng([self.seed, int(self.evaluation), step, 3])
        orders = _order_bank(self.seed + (7919 if self.evaluation else 0), self.monte_carlo, self.orders)
        pairs = self.library or _pair_bank(self.seed, self.pairs, tuple(self.held_out), self.evaluation)
        return [self._spec(rng, orders, pairs) for _ in range(count)]

    def _spec(self, rng, orders, pairs) -> PlaneSpec:
        size = (self.size, self.size) if np.ndim(self.size) == 0 else tuple(self.size)
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        symmetry = str(rng.choice(list(SYMMETRIES), p=list(SYMMETRIES.values())))
        sets = orders[kind, symmetry]
        vectors, alpha = sets[rng.integers(len(sets))]
        if symmetry == "oblique" and rng.random() < 0.5:
            vectors = vectors[:, ::-1]
            vectors = np.where(half_space(vectors)[:, None], vectors, -vectors)
        alpha = alpha * (1.0 if rng.random() < 0.6 else rng.uniform(0.4, 1.0))
        pair = pairs[rng.integers(len(pairs))]
        upright = axis_rotation((0, 0, 1), rng.choice((0, 30, 45, 60, 90)))
        pair = pair.transformed(random_rotation(rng) if rng.random() < 0.6 else upright)
        direct = random_cell(pair, symmetry, rng)
        reciprocal, steps = random_grid(direct, size, rng)
        c = rng.uniform(3.5, 12.0)
        index = float(rng.choice((0.0, rng.integers(1, 4), rng.uniform(0.1, 3.0)), p=(0.6, 0.2, 0.2)))
        return PlaneSpec(
            pair, reciprocal, steps, vectors, alpha, offset=min(index * 2 * np.pi / c, 5.0), b_iso=5.0 * rng.random() ** 1.5,
            concentration=rng.uniform(0.1, 0.9), centre=_centre(size, rng), family=pair.family,
            radiation=str(rng.choice(("xray", "electron", "neutron"), p=self.radiation)),
        )  # fmt: skip


def _centre(size, rng) -> tuple[float, float]:
    draw = rng.random()
    if draw < 0.4:
        return (size[0] - 1) / 2, (size[1] - 1) / 2
    shift = rng.uniform(-0.05, 0.05, 2) if draw > 0.8 else np.zeros(2)
    return size[0] * (0.5 + shift[0]), size[1] * (0.5 + shift[1])


def random_cell(pair: Pair, symmetry: str, rng: np.random.Generator) -> np.ndarray:
    """Rows a, b (Å) of a plane lattice with room for the pair, 3.5 to 12 Å long; a along x or rotated at random."""
    xy = np.concatenate([pair.xyz_a, pair.xyz_b])[:, :2]
    angle = 0.0 if rng.random() < 0.7 else rng.uniform(0, 2 * np.pi)
    turn = axis_rotation((0, 0, 1), np.degrees(angle))[:2, :2]
    gamma = {"square": 90.0, "rectangular": 90.0, "hexagonal": 120.0}.get(symmetry, rng.uniform(66, 114))
    g = np.radians(gamma)
    way = np.array([[1.0, 0.0], [np.cos(g), np.sin(g)]]) @ turn.T
    extent = np.ptp(xy @ way.T, axis=0)
    if symmetry in ("square", "hexagonal", "rhombic"):
        extent = np.full(2, extent.max())
    room = rng.uniform(1.0, 4.5, 2)
    length = np.clip(extent * rng.uniform(0.65, 1.05) + room, 3.5, 12.0)
    if symmetry in ("square", "hexagonal", "rhombic"):
        length[1] = length[0]
    return way * length[:, None]


def random_grid(direct: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """In-plane reciprocal vectors and the Q step of the pixels: Cartesian pixels, turned ones, or pixels along the lattice.

    Half the plane's shorter side reaches 6 to 8 Å⁻¹ (2.5 to 6 in one case of six), less where a period would fall below 8 pixels.
    """
    reciprocal = 2 * np.pi * np.linalg.inv(direct).T
    length = np.linalg.norm(reciprocal, axis=1)
    half = min(size) / 2
    reach = rng.uniform(6.0, 8.0) if rng.random() < 5 / 6 else rng.uniform(2.5, 6.0)
    reach = min(max(reach, 1.3 * length.max()), half * length.min() / 8.0)
    if rng.random() < 0.25:
        period = length * half / reach
        period = np.round(period) if rng.random() < 0.5 else period
        return reciprocal, reciprocal / period[:, None]
    turn = axis_rotation((0, 0, 1), 0.0 if rng.random() < 0.8 else rng.uniform(0, 360))[:2, :2]
    return reciprocal, np.eye(2) * (reach / half) @ turn
