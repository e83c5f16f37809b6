"""Superlattices: do weak lines between those of a lattice belong to a larger cell?

Many structures are pseudo-centred: their strong lines have a cell several times too small, and the lines that tell the true
one are, each by itself, near the noise. No list of lines holds them, but together they are plain. What the Pawley fit of a
lattice leaves is correlated with the profile of a line at all places where a superlattice has lines of its own, in units z of
what the same correlation gives elsewhere. The likelihood against chance,

    ``ln mean_{w, τ} Π_j [ 1 - w + w ∫ N(z_j; a, 1) e^{-a/τ_j} da / τ_j / n(z_j) ]``,

has w, the share of those lines that can be seen, and τ, their mean intensity, integrated out; ``n`` is the distribution where
no line is expected, with as many stray lines as are found, of any strength: those of a second phase can be strong. What a
superlattice leaves of the lines that the lattice does not explain speaks against it, too. Superlattices are groups of wave
vectors k, whose lines are at ``G + k``: a vector and its multiples, or all its equivalents by the symmetry of the metric (as
in the search for magnetic propagation vectors, Wilkinson et al., J. Appl. Cryst. 24, 365, 1991).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from itertools import product

import numpy as np
from scipy.ndimage import maximum_filter1d, median_filter
from scipy.special import log_ndtr

from ...physics.crystals import find_symmetry
from ...physics.lattice import cell_from_metric, metric_tensor
from ..prepare import AXIS_START, AXIS_STEP
from . import profile_kernels as kernels
from .bravais import (
    BRAVAIS,
    cell_of,
    derivative_index,
    hermite_forms,
    lattices_of,
    metric_of,
    niggli_cell,
    same_lattice,
)
from .extinction import centred, predicted_reflections
from .pawley import LAGS, PawleyFit, noise_level, pawley_fit
from .pools import Lattice

__all__ = ["Measured", "Superlattice", "superlattices", "with_superlattices"]

#: what a fit gets wrong: share of its height, and of its largest height within so many widths
OWN_ERROR, TAILS, WING = 0.05, 0.02, 2.5
#: widths: how far a profile extends, within which two places are one, by which a place misses a line; window of the background
REACH, TOGETHER, CLEAR, WINDOW = 2.5, 0.6, 1.0, 12.0
#: lines that are nobody's: least and largest share of the places, and median strength in σ
STRAY, STRAY_STRENGTH = (0.01, 0.25), 5.0
#: σ from which a line is foreign to the lattice, beyond which more does not count, and the share that a superlattice has to explain
FOREIGN, STRONG, SHARE = 5.0, 30.0, 0.6
#: w, and τ in degrees times the height of the strongest line, that the likelihood is averaged over
SHARES, STRENGTHS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0), np.geomspace(1e-4, 0.1, 7)
#: denominators of wave vectors, and largest index of a superlattice
DENOMINATORS, LARGEST = (2, 3, 4, 5, 6, 7), 8
#: denominators beyond this are rare, and there are many of them to choose from: log-likelihood that one has to earn besides
COMMON, RARE = 4, 2.5
#: log-likelihood that a superlattice has to earn, and more for each of its places; steeper where several compete
NEEDED, EACH, STEEP = 4.5, 0.05, 0.5
#: superlattices of superlattices
STEPS = 3
#: less than this below what is needed, a superlattice is worth mentioning
MENTIONED = 2.7
#: superlattices of each lattice that are told, and listed
PLAINEST, LISTED = 8, 2
#: so many of the best lattices are asked for the same cell without its centring
ASKED = 3
_PRIMITIVE_OF = {name: "hP" if name == "hR" else name[0] + "P" for name in BRAVAIS}

Vector = tuple[Fraction, Fraction, Fraction]


@dataclass(frozen=True, eq=False)
class Measured:
    """A pattern on the common axis: ``y`` and ``mask`` (AXIS_POINTS,), Kα2 over Kα1, ln(λ2/λ1)."""

    y: np.ndarray
    mask: np.ndarray
    ratio: float
    doublet: float

    def fit(self, lattice: str, metric, zero: float) -> PawleyFit | None:
        of = {"ratio": self.ratio, "doublet": self.doublet}
        return pawley_fit(self.y, self.mask, lattice, metric, zero, strict=True, **of)


@dataclass(frozen=True, eq=False)
class _Rest:
    """What a fit leaves: ``left`` (m,) on the fit's axis, ``weight`` (m,) its inverse variance, the centre and the scale of z
    and the share of stray lines where no line is expected, and these lines, ``foreign`` (n, 2): 2θ in degrees and z, at most
    `STRONG`."""

    fit: PawleyFit
    measured: Measured
    left: np.ndarray
    weight: np.ndarray
    centre: float = 0.0
    scale: float = 1.0
    stray: float = STRAY[0]
    foreign: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))

    def explained(self, places: np.ndarray) -> float:
        """Share of the lines that are not of the lattice, by how far they stand out, at some places; 1 where there are none."""
        if not len(self.foreign):
            return 1.0
        width = np.interp(self.foreign[:, 0], self.fit.position, self.fit.width)
        near = (np.abs(self.foreign[:, :1] - places[None]) < TOGETHER * width[:, None]).any(1)
        return float(self.foreign[near, 1].sum() / self.foreign[:, 1].sum())

    def z(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """z (n,) of lines at observed 2θ (n,) in degrees, and that of a line of area 1."""
        sine = np.clip(np.sin(np.radians(places / 2)) * np.exp(self.measured.doublet), 0, 0.999)
        start, points = AXIS_START + AXIS_STEP * self.fit.first, len(self.left)
        width = np.interp(places, self.fit.position, self.fit.width)
        second = 2 * np.degrees(np.arcsin(sine))
        value, _, _, _, offset, size = kernels.columns(
            start, AXIS_STEP, points, places, second, self.measured.ratio, width, 0.5, REACH
        )
        steps = np.arange(value.shape[1])
        at = np.minimum(offset[:, None] + steps, points - 1)
        value = np.where(steps < size[:, None], value, 0.0)
        norm = np.sqrt((self.weight[at] * value**2).sum(1))
        found = (self.weight[at] * value * self.left[at]).sum(1) / np.maximum(norm, 1e-9)
        return (found - self.centre) / self.scale, norm / self.scale


def _rest(measured: Measured, fit: PawleyFit) -> _Rest:
    part = slice(fit.first, fit.first + len(fit.curve))
    good, curve = measured.mask[part] > 0, np.maximum(fit.curve.astype(float), 0.0)
    top = max(float(np.where(measured.mask > 0, measured.y, 0.0).max()), 1e-9)
    y = np.where(good, measured.y[part] / top, 0.0)
    noise, width = max(noise_level(y, good, LAGS), 1e-4), float(np.median(fit.width)) / AXIS_STEP
    left = np.where(good, y - fit.curve, 0.0)
    left -= median_filter(left, int(WINDOW * width) | 1)
    near = maximum_filter1d(curve, 2 * int(WING * width) + 1)
    weight = good / (noise**2 + (OWN_ERROR * curve) ** 2 + (TAILS * near) ** 2)
    rest = _Rest(fit, measured, left, weight)
    low, high = _range(fit)
    places = np.arange(low, high, 0.5 * width * AXIS_STEP)
    places = places[_clear(places, fit)]
    if len(places) < 30:
        return rest
    z, _ = rest.z(places)
    centre = float(np.median(z))
    scale = max(1.4826 * float(np.median(np.abs(z - centre))), 0.3)
    stray = float(np.clip((z > centre + 4 * scale).mean() + STRAY[0], *STRAY))
    above = (z - centre) / scale
    top = np.flatnonzero((above > FOREIGN) & (above >= maximum_filter1d(above, 5)))
    foreign = np.stack([places[top], np.minimum(above[top], STRONG)], 1)
    return replace(rest, centre=centre, scale=scale, stray=stray, foreign=foreign)


def _range(fit: PawleyFit) -> tuple[float, float]:
    """2θ in degrees between which lines are looked for: what was fitted, less half a degree at the ends."""
    low = AXIS_START + AXIS_STEP * fit.first
    return low + 0.5, low + AXIS_STEP * (len(fit.curve) - 1) - 0.5


def _clear(places: np.ndarray, fit: PawleyFit) -> np.ndarray:
    """Which places (n,) miss every line of the fit."""
    lines = np.sort(fit.observed(fit.q2))
    after = np.clip(np.searchsorted(lines, places), 0, len(lines) - 1)
    gap = np.minimum(np.abs(places - lines[after]), np.abs(places - lines[np.maximum(after - 1, 0)]))
    return gap > CLEAR * np.interp(places, fit.position, fit.width)


def _apart(places: np.ndarray, fit: PawleyFit) -> np.ndarray:
    """Places that miss the lines of the fit and each other: the mean of those that are close, ascending."""
    low, high = _range(fit)
    places = np.sort(places[(places > low) & (places < high)])
    places = places[_clear(places, fit)]
    width = TOGETHER * np.interp(places, fit.position, fit.width)
    out: list[list[float]] = []
    for place, reach in zip(places.tolist(), width.tolist(), strict=True):
        if out and place - out[-1][0] < reach:
            out[-1].append(place)
        else:
            out.append([place])
    return np.array([sum(own) / len(own) for own in out])


def against_chance(z: np.ndarray, norm: np.ndarray, stray: float) -> float:
    """Log-likelihood ratio of lines at all of some places against none, see the head of this file.

    Parameters
    ----------
    z, norm : (n,) correlation at each place in units of its scatter, and what a line of area 1 would give
    stray : share of places with a line that is nobody's
    """
    root = np.sqrt(2 * np.pi)
    above = np.where(z > 0, STRAY_STRENGTH / (STRAY_STRENGTH + np.maximum(z, 0)) ** 2, 0.0)
    wide = np.exp(-0.5 * (z / 3) ** 2) / (3 * root)  # what the fit leaves on either side of zero
    none = (1 - stray) * np.exp(-0.5 * z * z) / root + 0.5 * stray * (above + wide)
    values = []
    for strength in STRENGTHS:
        tau = np.maximum(strength * norm, 1e-3)
        line = 0.5 / tau**2 - z / tau + log_ndtr(z - 1 / tau) - np.log(tau)
        ratio = np.exp(np.clip(line, -60, 60)) / none  # never 0: w may be 1
        values += [np.log(1 - w + w * ratio).sum() for w in SHARES]
    return float(np.logaddexp.reduce(values) - np.log(len(values)))


# ---------------------------------------------------------------------------------------------- which superlattices


def _wave_vectors() -> list[Vector]:
    """Those with components of the denominators looked at, one of each pair ±k."""
    out: dict[Vector, None] = {}
    for n in DENOMINATORS:
        for a, b, c in product(range(n), repeat=3):
            k = Fraction(a, n), Fraction(b, n), Fraction(c, n)
            if any(k) and tuple(-x % 1 for x in k) not in out:
                out[k] = None
    return list(out)


def _sum(a: Vector, b: Vector) -> Vector:
    return (a[0] + b[0]) % 1, (a[1] + b[1]) % 1, (a[2] + b[2]) % 1


def _group(generators) -> frozenset[Vector]:
    """All sums of some wave vectors, zero included; empty where there are more than `LARGEST`."""
    group = {(Fraction(0),) * 3}
    for k in generators:
        multiple, own = k, set(group)
        while multiple not in own:
            group |= {_sum(multiple, other) for other in own}
            multiple = _sum(multiple, k)
            if len(group) > LARGEST:
                return frozenset()
    return frozenset(group)


def wave_groups(cell) -> list[frozenset[Vector]]:
    """Superlattices of a primitive cell (6,) as groups of wave vectors, in units of its reciprocal axes."""
    data = find_symmetry(cell, [[0.0, 0.0, 0.0]], [1], 1e-4 * float(np.max(cell[:3])))
    turns = np.eye(3, dtype=int)[None] if data is None else np.unique(data.rotations, axis=0)
    return list(_groups_under(tuple(turns.ravel().tolist())))


@lru_cache(maxsize=64)
def _groups_under(turns: tuple[int, ...]) -> tuple[frozenset[Vector], ...]:
    """The groups of `wave_groups` by the rotations of a lattice, 9 numbers each."""
    matrices = np.array(turns).reshape(-1, 3, 3)
    found: dict[frozenset[Vector], None] = {}
    seen: set[Vector] = set()
    for k in _wave_vectors():
        if k in seen:
            continue
        star = {tuple(sum(int(r[i, j]) * k[i] for i in range(3)) % 1 for j in range(3)) for r in matrices}
        seen |= star | {tuple(-x % 1 for x in other) for other in star}
        for group in (_group([k]), _group(sorted(star))):
            if group:
                found[group] = None
    return tuple(found)


def cell_of_group(cell, group) -> np.ndarray:
    """Niggli cell of the superlattice of a primitive cell that a group of wave vectors stands for."""
    fits = lambda form: all((form @ np.array(k, object))[i].denominator == 1 for k in group for i in range(3))  # noqa: E731
    form = next(form for form in hermite_forms(len(group)) if fits(form.astype(object)))
    return niggli_cell(cell_from_metric(form @ metric_tensor(cell) @ form.T))


@dataclass(frozen=True, eq=False)
class Superlattice:
    """A superlattice: its Niggli cell, the log-likelihood of its lines against chance, and their number; ``rare``: wave
    vectors of large denominators."""

    niggli: np.ndarray
    likelihood: float
    places: int
    rare: bool = False

    @property
    def worth(self) -> float:
        """Log-likelihood beyond what is needed."""
        return self.likelihood - NEEDED - EACH * self.places - RARE * self.rare


def without_centring(measured: Measured, fit: PawleyFit) -> Superlattice | None:
    """The primitive lattice of the same conventional cell as that of a fit; None where the latter is primitive.

    Most pseudo-centred structures have it. It is there also where its lines are not seen.
    """
    if fit.lattice[1] == "P":
        return None
    hkl, q2 = predicted_reflections(fit.metric, _PRIMITIVE_OF[fit.lattice], float(fit.q2.max()))
    at, rest = _apart(fit.observed(q2[~centred(hkl, fit.lattice)]), fit), _rest(measured, fit)
    likelihood = against_chance(*rest.z(at), rest.stray) if len(at) else 0.0
    return Superlattice(niggli_cell(cell_of(fit.metric), "P"), likelihood, len(at))


def superlattices(measured: Measured, fit: PawleyFit) -> list[Superlattice]:
    """Superlattices of a fitted lattice whose lines are seen rather than not, the `PLAINEST` first."""
    cell = niggli_cell(cell_of(fit.metric), "PIFCR"[BRAVAIS[fit.lattice][1]])
    rest, star, top = _rest(measured, fit), np.linalg.inv(metric_tensor(cell)), fit.q2.max()
    bound = np.ceil(cell[:3] * np.sqrt(top)).astype(int) + 1
    grid = np.stack(np.meshgrid(*[np.arange(-b, b + 1) for b in bound], indexing="ij"), -1).reshape(-1, 3)
    places: dict[Vector, np.ndarray] = {}
    out = []
    for group in wave_groups(cell):
        for k in group:
            if any(k) and k not in places:
                h = grid + np.array(k, float)
                q2 = np.einsum("ni,ij,nj->n", h, star, h)
                places[k] = fit.observed(np.unique(np.round(q2[q2 <= top], 7)))
        at = _apart(np.concatenate([places[k] for k in group if any(k)]), fit)
        likelihood = against_chance(*rest.z(at), rest.stray) if len(at) else 0.0
        if likelihood > 0 and rest.explained(at) > SHARE:
            rare = any(x.denominator > COMMON for k in group for x in k)
            out.append((likelihood, len(at), rare, group))
    out.sort(key=lambda entry: STEEP * entry[1] + RARE * entry[2] - entry[0])
    return [Superlattice(cell_of_group(cell, group), value, n, rare) for value, n, rare, group in out[:PLAINEST]]


def with_superlattices(found: list[Lattice], measured: Measured, scale: float = 1.0) -> list[Lattice]:
    """Lattices, best first, with superlattices of the first one whose lines are seen, before or after it by what they are worth,
    and the cells of the first ones without their centring, whose lines need not be seen, after them.

    ``scale``: the radiation's wavelength relative to that of the common axis, for the zero shifts.
    """
    if not found:
        return found
    base, more, fits = found[0], [], {}

    def fit_of(lattice: Lattice) -> PawleyFit | None:
        if id(lattice) not in fits:
            fits[id(lattice)] = measured.fit(lattice.bravais, metric_of(lattice.cell), lattice.zero / scale)
        return fits[id(lattice)]

    for _ in range(STEPS):
        fit = fit_of(base)
        if fit is None:
            break
        likely = [s for s in superlattices(measured, fit) if s.worth > -MENTIONED - RARE * s.rare]
        if not likely:
            break
        step = [_step_up(base, larger, scale * fit.zero) for larger in likely[:LISTED]]
        base = step[0]
        # what has all lines of the first and others that are not seen is no alternative
        others = [x for x in step[1:] if x.score > base.score or not derivative_index(x.niggli, base.niggli)]
        more += [base, *(replace(x, score=min(x.score, base.score - EACH)) for x in others)]
        if likely[0].worth < 0:
            break
    listed = _joined(more, found)
    plain = [_plain(x, measured, fit_of(x)) for x in listed[:ASKED] if x.bravais != _PRIMITIVE_OF[x.bravais]]
    return _joined(listed, [lattice for lattice in plain if lattice is not None])


def _step_up(base: Lattice, larger: Superlattice, zero: float) -> Lattice:
    """A superlattice of a lattice in the highest symmetry of its metric, scored by what its lines are worth."""
    name, cell = lattices_of(larger.niggli, (4e-4, 2e-4))[-1]
    return Lattice(name, cell, larger.niggli, zero, base.score + larger.worth)


def _joined(first: list[Lattice], then: list[Lattice]) -> list[Lattice]:
    """Lattices of two lists, best first; of those in both, the one of the first, and of those twice in the second, the better."""
    value = lambda lattice: -lattice.score  # noqa: E731
    out = list(first)
    for lattice in sorted(then, key=value):
        if not any(same_lattice(lattice.niggli, known.niggli) for known in out):
            out.append(lattice)
    return sorted(out, key=value)


def _plain(lattice: Lattice, measured: Measured, fit: PawleyFit | None) -> Lattice | None:
    """The cell of a centred lattice without its centring, scored by what its lines are worth; not before it."""
    larger = None if fit is None else without_centring(measured, fit)
    if larger is None:
        return None
    score = lattice.score + min(larger.worth, -EACH)
    return Lattice(_PRIMITIVE_OF[lattice.bravais], lattice.cell, larger.niggli, lattice.zero, score)
