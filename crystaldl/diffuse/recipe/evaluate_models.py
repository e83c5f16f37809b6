"""Can similar structural models be told apart? Simulated crystals, each with the right molecules and two that resemble them."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..compare import compare_form_factors
from ..corruption import Corruption
from ..molecular import Molecule
from ..molecules import axis_rotation
from ..separate import separate
from ..simulate import PlaneSpec, plane_form_factor, simulate_planes
from ..volume import DiffuseVolume
from .evaluate_scores import plane_volume
from .stream import DiffuseStream

RIGHT = "right"
CHANGES = ("substituted", "moved", "turned")
DIFFERENT = (0.01, 0.2)     # relative RMS difference of the form factors that counts as similar, but not the same
SHIFT = 0.15                # Å an atom is moved
TURN = 4.0                  # degrees about the normal of the plane
_EXCHANGE = {1: 9, 6: 7, 7: 6, 8: 16, 9: 17, 14: 6, 15: 7, 16: 8, 17: 35, 35: 17, 53: 35}


@dataclass(frozen=True)
class Ranking:
    """One crystal: the candidates, how different they are, and where the right one came out (1 is first).

    Attributes
    ----------
    family : str
    different : tuple of (name, relative RMS difference of the form factor)
    place, margin : dict by criterion; margin is the BIC of the best wrong model minus that of the right one
    """

    family: str
    different: tuple[tuple[str, float], ...]
    place: dict[str, int]
    margin: dict[str, float]


# ------------------------------------------------------------------------------------------ candidates


def candidates(spec: PlaneSpec, rng: np.random.Generator, tries: int = 24) -> dict[str, tuple] | None:
    """The right pair and two of other kinds of change that differ from it by `DIFFERENT`; None where there are none."""
    found: dict[str, tuple] = {RIGHT: tuple(spec.pair)[:4]}
    for _ in range(tries):
        left = [c for c in CHANGES if c not in found]
        name = str(rng.choice(left))
        pair = changed(found[RIGHT], name, rng)
        if pair is not None and DIFFERENT[0] <= difference(spec, pair) <= DIFFERENT[1]:
            found[name] = pair
        if len(found) == 3:
            return found
    return None


def changed(pair: tuple, change: str, rng: np.random.Generator) -> tuple | None:
    """The pair with one change made to the molecule, in both variants where both are the same molecule."""
    z_a, xyz_a, z_b, xyz_b = (np.array(v) for v in pair)
    if change == "turned":
        turn = axis_rotation((0, 0, 1), TURN * rng.choice((-1.0, 1.0))).T
        return z_a, xyz_a @ turn, z_b, xyz_b @ turn
    heavy = np.flatnonzero(z_a > 1)
    if not len(heavy):
        return None
    atom = int(rng.choice(heavy))
    same = len(z_a) == len(z_b) and np.array_equal(z_a, z_b)
    if change == "substituted":
        other = _EXCHANGE.get(int(z_a[atom]), int(z_a[atom]) + 1)
        z_a[atom] = other
        if same:
            z_b[atom] = other
        return z_a, xyz_a, z_b, xyz_b
    step = rng.normal(size=3)
    step *= SHIFT / np.linalg.norm(step)
    if same:
        xyz_b[atom] += step @ _turn_between(xyz_a, xyz_b)
    xyz_a[atom] += step
    return z_a, xyz_a, z_b, xyz_b


def _turn_between(xyz_a: np.ndarray, xyz_b: np.ndarray) -> np.ndarray:
    """The orthogonal matrix that takes A nearest to B, ``(xyz_a - mean) @ matrix`` (Kabsch, Acta Cryst. A32, 922, 1976)."""
    left, _, right = np.linalg.svd((xyz_a - xyz_a.mean(0)).T @ (xyz_b - xyz_b.mean(0)))
    return left @ right


def difference(spec: PlaneSpec, pair: tuple, size: int = 96) -> float:
    """Relative RMS difference of the form factors of a pair and the right one, on the scale where it is smallest."""
    steps = spec.steps * 256 / size
    coarse = [replace(spec, pair=p, steps=steps, centre=None) for p in (spec.pair, pair)]
    right, other = plane_form_factor(coarse, (size, size)).double().flatten(1).numpy()
    cosine = (right @ other) / max(np.linalg.norm(right) * np.linalg.norm(other), 1e-30)
    return float(np.sqrt(max(1.0 - cosine**2, 0.0)))


def molecules(spec: PlaneSpec, volume: DiffuseVolume, pair: tuple) -> tuple[Molecule, Molecule]:
    """The variants of a pair in the Cartesian frame of the volume's cell instead of that of the plane's pixels."""
    pixels = np.array([[0.0, 1.0], [1.0, 0.0]])
    step = [float(axis[1] - axis[0]) for axis in volume.axes]
    q = (volume.basis * np.array(step)[:, None]) @ volume.reciprocal_basis()
    # Q = x @ steps in the plane's frame is x @ q in the volume's: xyz turns with it
    turn = np.eye(3)
    turn[:2, :2] = np.linalg.solve(pixels @ spec.steps, pixels @ q[:, :2])
    z_a, xyz_a, z_b, xyz_b = pair
    return tuple(
        Molecule(tuple(int(k) for k in z), xyz @ turn) if len(z) else Molecule.vacancy() for z, xyz in ((z_a, xyz_a), (z_b, xyz_b))
    )


# ------------------------------------------------------------------------------------------ the trial


def crystals(stream: DiffuseStream, count: int, seed: int = 0) -> list[tuple[PlaneSpec, dict]]:
    """``count`` planes of molecules of the stream, each with its candidates."""
    rng = np.random.default_rng([seed, 5])
    out: list[tuple[PlaneSpec, dict]] = []
    for step in range(1000, 1200):
        for spec in stream.specs(step, 8):
            if not spec.family.startswith("molecule:") or len(spec.pair.z_a) < 4:
                continue
            models = candidates(spec, rng)
            if models is not None:
                out.append((spec, models))
            if len(out) == count:
                return out
    return out


def rank_models(spec: PlaneSpec, models: dict, corruption: Corruption, size=256, seed: int = 0) -> Ranking:
    """Separate one plane and rank its candidates by both criteria of `compare_form_factors`."""
    planes = simulate_planes([spec], corruption, size=size, seed=seed)
    volume = plane_volume(spec, planes, 0)
    parts = separate(volume, device="cpu", progress=False)
    pairs = {name: molecules(spec, volume, pair) for name, pair in models.items()}
    place, margin = {}, {}
    for criterion in ("intensity", "form_factor"):
        outcome = compare_form_factors(parts, pairs, criterion=criterion)
        place[criterion] = outcome.ranking.index(RIGHT) + 1
        bic = dict(zip(outcome.names, outcome.bic, strict=True))
        margin[criterion] = float(min(v for k, v in bic.items() if k != RIGHT) - bic[RIGHT])
    different = tuple((name, difference(spec, pair)) for name, pair in models.items() if name != RIGHT)
    return Ranking(spec.family, different, place, margin)


def format_rankings(rankings: list[Ranking]) -> str:
    """A line a crystal and how often the right model came first."""
    rows = []
    for k, r in enumerate(rankings):
        others = ", ".join(f"{name} {100 * d:.0f} %" for name, d in r.different)
        marks = "  ".join(f"{c} {r.place[c]} ({r.margin[c]:+.0f})" for c in r.place)
        rows.append(f"  {k:2d}  {r.family:34.34s}  {others:34s}  {marks}")
    for criterion in rankings[0].place if rankings else ():
        first = sum(r.place[criterion] == 1 for r in rankings)
        rows.append(f"by {criterion}: the right model first in {first} of {len(rankings)}")
    return "\n".join(rows)
