"""What the methods are measured on and how: multislice patterns of known strain, peers, lattice fits.

The patterns come from another simulator than the training stream's (multislice with all Laue zones, a convergent wave
propagated through a supercell), of crystals, a voltage and semi-angles kept out of training. It is the crystal that is strained:
its disks move, and keep the shape of the aperture. The shift is applied in the last transform, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..disks import find_disks
from ..options import DiskOptions
from ..probe import Probe
from ..simulate.abtem_waves import exit_waves
from ..simulate.bank import HELD_OUT_VOLTAGES
from ..simulate.electrons import coupling, gaussians, wavelength
from ..simulate.multislice import convergent_probe, diffraction, make_slab, propagate
from ..simulate.specimens import PROTOTYPES, held_out, orthogonal_cell, random_specimen

SHAPE = (256, 256)
RADIUS = 6.0  # px
THICKNESSES = (5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0)  # nm
SEMIANGLES = (1.5, 2.5)  # mrad, both within the held-out ranges
RESOLUTION = 1.7  # Å⁻¹: what multislice keeps


@dataclass(frozen=True)
class Known:
    """Patterns of one crystal and probe with their truth.

    Attributes
    ----------
    patterns : (B, H, W) float32
    probe : Probe
    g : (M, 2) reflections, Å⁻¹ along the axes of the pattern
    centres : (B, M, 2) px
    unstrained : float, px a Å⁻¹
    strain : (B, 2), of axis 0 and 1 (reciprocal lattice: +0.01 is a lattice 1 % larger in the pattern)
    thickness : (B,) nm
    intensity : (B, M), share of the electrons in each disk
    structure_factor : (M,), |U_g|, Å⁻²
    name : str
    """

    patterns: np.ndarray
    probe: Probe
    g: np.ndarray
    centres: np.ndarray
    unstrained: float
    strain: np.ndarray
    thickness: np.ndarray
    intensity: np.ndarray
    structure_factor: np.ndarray
    name: str


def benchmark_crystals(count: int, seed: int = 0) -> list[tuple]:
    """Held-out prototype crystals along axes that have an orthogonal cell: (name, edges, numbers, positions, b_iso).

    Left out are those whose disks overlap at all `SEMIANGLES`.
    """
    out, number = [], 0
    names = {p.name for p in PROTOTYPES}
    rng = np.random.default_rng((seed, 41))
    while len(out) < count:
        number += 1
        family = int(rng.integers(4000))
        if not held_out(family):
            continue
        specimen = random_specimen(number, family)
        crystal = specimen.crystal
        if crystal.name.split()[0] not in names:
            continue
        zone = [(0, 0, 1), (1, 1, 0), (1, 0, 0)][len(out) % 3]
        try:
            edges, numbers, positions = orthogonal_cell(crystal, zone)
        except ValueError:
            continue
        if edges[2] > 12 or len(numbers) > 60 or any(n.startswith(crystal.name) for n, *_ in out):
            continue
        found = (f"{crystal.name} [{''.join(map(str, zone))}]", edges, numbers, positions, specimen.b_iso)
        if fitting_semiangles(found):
            out.append(found)
    return out


def cell_factors(edges, numbers, positions, b_iso: float, voltage: float, g_max: float):
    """Reflections (M, 2) in Å⁻¹ of the projected cell and their |U_g| (M,); the zero-order Laue zone."""
    limit = [int(g_max * e) for e in edges[:2]]
    index = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in limit), indexing="ij"), -1).reshape(-1, 2)
    g = index / np.asarray(edges[:2])
    q = np.hypot(*g.T)
    index, g, q = index[q < g_max], g[q < g_max], q[q < g_max]
    a, b = gaussians()
    factor = (a[numbers][:, None] * np.exp(-0.25 * (b[numbers][:, None] + b_iso) * q[None, :, None] ** 2)).sum(-1)
    phase = np.exp(-2j * np.pi * positions[:, :2] @ index.T)
    u = np.abs((factor * phase).sum(0)) * coupling(voltage) / np.prod(edges)
    return g, u


def _supercell(edges, semiangle: float, voltage: float):
    """Repeats and grid so that the probe's tails fit in it, without which the disks' edges blur, and `RESOLUTION` survives the
    band limit."""
    size = max(90.0, 13.5 * 0.6 * wavelength(voltage) / semiangle)
    repeat = [int(np.ceil(size / e)) for e in edges[:2]]
    grid = [int(np.ceil(2 * 1.5 * RESOLUTION * e / 2) * 2) for e in edges[:2]]
    return repeat, [g * r for g, r in zip(grid, repeat, strict=True)]


def multislice_patterns(
    crystal: tuple, semiangle: float, rng: np.random.Generator, *, dose: float = 1e5, draws: int = 2,
    strain: float | tuple = 0.01, tilt: float = 1e-3, background: float | tuple[float, float] = 0.1, radius: float = RADIUS,
    simulator: str = "own",
) -> Known:
    """Patterns of one crystal at every thickness of `THICKNESSES`, ``draws`` each, with random shift and counts, and a random
    strain for each draw.

    ``semiangle`` and ``tilt`` (Rayleigh parameter) in rad, ``dose`` in electrons; ``background``:
    share of the electrons in a smooth tail, or that and the share in the rings of an amorphous film (`carbon_rings`);
    ``strain``: standard deviation, or the two components; ``radius``: of the disks, px; ``simulator``: ``"own"`` or ``"abtem"``
    (`crystaldl.stem.simulate.abtem_waves`).
    """  # fmt: skip
    name, edges, numbers, positions, b_iso = crystal
    voltage = HELD_OUT_VOLTAGES[0]
    tail, film = background if isinstance(background, tuple) else (background, 0.0)
    wave = wavelength(voltage)
    repeat, grid = _supercell(edges, semiangle, voltage)
    angle, size = rng.uniform(0, 2 * np.pi), rng.rayleigh(tilt) / wave
    k = size * np.array([np.sin(angle), np.cos(angle)])
    strains = [np.array(strain)] if isinstance(strain, tuple) else [rng.normal(0, strain, 2) for _ in range(draws)]
    specimens = [_exits(_strained(crystal, e), (repeat, grid), semiangle, k, simulator) for e in strains]
    pixel = semiangle / wave / radius
    g, u = cell_factors(edges, numbers, positions, b_iso, voltage, 0.75 * min(SHAPE) * pixel)
    rows = []
    for i, thickness in enumerate(THICKNESSES):
        for draw in range(draws):
            e, (slab, exits) = strains[draw % len(strains)], specimens[draw % len(strains)]
            shift = rng.uniform(-3, 3, 2)
            beam = np.array(SHAPE) // 2 + shift
            # the transform's centre is k = 0; the beam lies at k
            clean = diffraction(exits[i], slab, SHAPE, pixel, centre=tuple(beam - k / pixel)).numpy()
            centres = beam + g / pixel * (1 + e)
            mean = clean / clean.sum()
            if film:
                mean = (1 - film) * mean + film * carbon_rings(SHAPE, beam, pixel)
            counts = counted(mean, beam, dose, tail, rng)
            rows.append((counts, centres, e, thickness, (1 - film) * _disk_sums(clean, centres, radius)))
    patterns, centres, e, thickness, sums = (np.array(c) for c in zip(*rows, strict=True))
    slab = specimens[0][0]
    vacuum = diffraction(convergent_probe(slab, semiangle, edge=0.08), slab, SHAPE, pixel).numpy()
    probe = Probe.from_array(rng.poisson(vacuum / vacuum.sum() * 1e6), "simulated vacuum")
    return Known(patterns, probe, g, centres, 1 / pixel, e, thickness, sums, u, f"{name} {1e3 * semiangle:g} mrad")


def _strained(crystal: tuple, e: np.ndarray) -> tuple:
    """The crystal whose reciprocal lattice is longer by the shares ``e`` along the axes of the pattern."""
    name, edges, *rest = crystal
    return (name, np.asarray(edges, dtype=float) / np.array([*(1 + e), 1.0]), *rest)


def _exits(crystal: tuple, cells: tuple, semiangle: float, k: np.ndarray, simulator: str):
    """The slab of a crystal, and the waves behind it at every thickness; ``cells``: repeats and grid (`_supercell`)."""
    _, edges, numbers, positions, b_iso = crystal
    (repeat, grid), voltage = cells, HELD_OUT_VOLTAGES[0]
    slab = make_slab(edges, numbers, positions, grid, voltage=voltage, b_iso=b_iso, dz=2.0, absorption=0.04, repeat=repeat)
    # moving the aperture tilts the beam; the pattern is recentred on it later
    incident = convergent_probe(slab, semiangle, edge=0.08, tilt=tuple(k))
    depths = [10 * t for t in THICKNESSES]
    if simulator == "abtem":
        return slab, exit_waves(crystal, repeat, slab.shape, incident, depths, voltage)
    return slab, propagate(slab, incident[None], depths)[:, 0]


def counted(clean: np.ndarray, beam, dose: float, background: float, rng: np.random.Generator) -> np.ndarray:
    """Poisson counts of a pattern with a smooth tail around the beam."""
    y, x = np.indices(clean.shape)
    r = np.hypot(y - beam[0], x - beam[1]) / RADIUS
    tail = 1 / (1 + (r / 5) ** 2) ** 1.2
    mean = (1 - background) * clean / clean.sum() + background * tail / tail.sum()
    return rng.poisson(dose * mean).astype(np.float32)


def carbon_rings(shape, beam, pixel: float) -> np.ndarray:
    """Rings of amorphous carbon around ``beam`` (px), which sum to 1; ``pixel`` in Å⁻¹.

    Two Gaussian rings at the film's distances of 2.06 and 1.20 Å on what it scatters forwards.
    """
    y, x = np.indices(shape)
    s = np.hypot(y - beam[0], x - beam[1]) * pixel
    out = 0.8 * np.exp(-s / 0.12) + 0.35 / (1 + (s / 0.35) ** 2) ** 2
    for middle, width, height in ((1 / 2.06, 0.07, 1.0), (1 / 1.20, 0.10, 0.45)):
        out += height * np.exp(-0.5 * ((s - middle) / width) ** 2)
    return out / out.sum()


def _disk_sums(clean: np.ndarray, centres: np.ndarray, radius: float) -> np.ndarray:
    """Share of the electrons within 1.3 radii of each centre; 0 outside the pattern."""
    n = int(np.ceil(1.3 * radius))
    window = np.stack(np.mgrid[-n : n + 1, -n : n + 1], -1).reshape(-1, 2)
    window = window[np.hypot(*window.T) <= 1.3 * radius]
    at = np.round(centres).astype(int)
    inside = ((at >= 0) & (at < np.array(clean.shape))).all(1)
    p = (at[:, None] + window).clip(0, np.array(clean.shape) - 1)
    return np.where(inside, clean[p[..., 0], p[..., 1]].sum(1), 0.0)


def benchmark(count: int = 12, seed: int = 0, **conditions) -> Iterator[Known]:
    """Patterns of ``count`` crystals, each at the largest held-out semi-angle that keeps its disks apart."""
    rng = np.random.default_rng((seed, 5))
    for crystal in benchmark_crystals(count, seed):
        yield multislice_patterns(crystal, 1e-3 * fitting_semiangles(crystal)[-1], rng, **conditions)


def fitting_semiangles(crystal: tuple) -> list[float]:
    """Those of `SEMIANGLES`, mrad, at which the disks of a crystal keep apart."""
    touching = 0.5e3 * least_spacing(crystal) * wavelength(HELD_OUT_VOLTAGES[0])
    return [a for a in SEMIANGLES if a < 0.95 * touching]


def least_spacing(crystal: tuple) -> float:
    """Distance in Å⁻¹ of the two reflections that lie closest together, of those that are not extinct.

    Not the shortest one's length: in a row of reflections of which every other one is extinct through the direct beam, all may
    be there beside it.
    """
    _, edges, numbers, positions, b_iso = crystal
    g, u = cell_factors(edges, numbers, positions, b_iso, 200.0, 1.0)
    g = g[u > 1e-3 * u.max()]
    distance = np.linalg.norm(g[:, None] - g[None], axis=2)
    return float(distance[distance > 1e-9].min())


# --------------------------------------------------------------------------------------------- methods

Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # positions (N, 2), score (N,), sigma (N, 2)
Method = Callable[[np.ndarray, Probe], list[Found]]


def py4dstem_correlation(radii: tuple[float, float], least: float = 0.005) -> Method:
    """py4DSTEM's own detection: sigmoid kernel of the given radii (in probe radii), multicorr × 16.

    ``least``: its minimum relative intensity.
    """

    def run(patterns: np.ndarray, probe: Probe) -> list[Found]:
        import py4DSTEM
        from py4DSTEM.braggvectors.diskdetection import find_Bragg_disks

        image = py4DSTEM.Probe(np.array(probe.image))
        inner, outer = (r * probe.radius for r in radii)
        kernel = image.get_kernel(mode="sigmoid", origin=probe.centre, radii=(inner, outer))
        kernel = getattr(kernel, "kernel", kernel)
        settings = {
            "corrPower": 1.0, "sigma_cc": 2, "edgeBoundary": round(probe.radius), "minRelativeIntensity": least,
            "minPeakSpacing": 1.6 * probe.radius, "maxNumPeaks": 300, "subpixel": "multicorr", "upsample_factor": 16,
        }  # fmt: skip
        found = []
        for pattern in patterns:
            peaks = find_Bragg_disks(np.asarray(pattern, dtype=float), kernel, **settings)
            positions = np.stack([peaks.data["qx"], peaks.data["qy"]], 1)
            score = np.asarray(peaks.data["intensity"], dtype=float)
            found.append((positions, score / max(score.max(initial=0), 1e-30), np.ones_like(positions)))
        return found

    return run


def ours(method: str, network=None, model: str | None = None, **options) -> Method:
    """`find_disks` with a method, a shipped model or a network in training."""

    def run(patterns: np.ndarray, probe: Probe) -> list[Found]:
        chosen = DiskOptions(**({"min_confidence": 0.0} | options))
        disks = find_disks(patterns, probe, method=method, network=network, model=model, options=chosen, device="cpu")
        parts = (disks.of(i) for i in range(len(patterns)))
        return [(d.positions, d.confidence, d.sigma) for d in parts]

    return run


# --------------------------------------------------------------------------------------------- lattice fits


def fit_lattice(g: np.ndarray, positions: np.ndarray, weight: np.ndarray, robust: bool) -> np.ndarray:
    """Matrix (2, 2) of ``position = centre + matrix · g`` by weighted least squares, by Tukey's biweight if robust."""
    design = np.concatenate([np.ones((len(g), 1)), g], 1)
    w = weight.copy()
    for _ in range(20 if robust else 1):
        root = np.sqrt(w)[:, None]
        solution = np.linalg.lstsq(design * root, positions * root, rcond=None)[0]
        if not robust:
            break
        miss = np.sqrt((((positions - design @ solution) ** 2).sum(1)) * weight)
        scale = max(1.4826 * np.median(miss), 1e-6)
        w = weight * np.clip(1 - (miss / (4.7 * scale)) ** 2, 0, None) ** 2
    return solution[1:].T


def measured_strain(known: Known, i: int, found: Found, weighting: str) -> np.ndarray | None:
    """e_xx, e_yy, e_xy of pattern i, from found disks assigned to the true lattice; None with fewer than 6 of them.

    ``weighting``: ``"intensity"`` (as py4DSTEM: squared), ``"none"``, or ``"sigma"`` (1 / σ², robust).
    """
    positions, score, sigma = found
    if len(positions) == 0:
        return None
    distance = np.linalg.norm(positions[:, None] - known.centres[i][None], axis=2)
    nearest = distance.argmin(1)
    keep = distance.min(1) < 0.6 * known.probe.radius
    if len(np.unique(nearest[keep])) < 6:
        return None
    weight = {"intensity": score**2, "none": np.ones(len(score)), "sigma": 1 / (sigma**2).mean(1)}[weighting][keep]
    matrix = fit_lattice(known.g[nearest[keep]], positions[keep], weight, weighting == "sigma") / known.unstrained
    e = 0.5 * (matrix + matrix.T) - np.eye(2)
    return np.array([e[0, 0], e[1, 1], e[0, 1]])


__all__ = [
    "Known", "benchmark", "benchmark_crystals", "carbon_rings", "fit_lattice", "measured_strain", "multislice_patterns", "ours",
    "py4dstem_correlation",
]  # fmt: skip
