"""Make the samples of this folder, powder, diffuse scattering and 4D-STEM: ``python data/make_samples.py [--out FOLDER]``.

Textbook structures, typed in below from the publication named with each, are turned into laboratory scans with the
structure factors of `crystaldl.physics`: Kα doublet, Voigt lines that widen along the axis, texture, specimen
displacement, air scatter, an amorphous hump and counting statistics. Every file follows from its seed alone, so that
a second run writes the same bytes; ``MANIFEST.json`` holds digests and truths.

The lines are drawn here, on the scan's own axis, rather than by the training simulator: its random stream may change
with every improvement, and these files must not. For the same reason diffuse scattering is summed here,
``I = c (1 - c) |F_A - F_B|² S``: two orientations of a molecule on one site, and short-range order S = C / (1 + βJ)
(Krivoglaz-Clapp-Moss), which is positive. Their cells are made up; bond lengths are those of textbooks.

Disks of the 4D-STEM scan are filled with the Bloch-wave intensities of `crystaldl.stem`, which draw no random numbers,
and drawn at exact centres that follow from the strain of each position.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import gemmi
import h5py
import numpy as np
from scipy.special import voigt_profile
from scipy.stats import poisson

from crystaldl.physics.reflections import lorentz_polarisation, march_dollase, powder_lines
from crystaldl.physics.scattering import scattering_factor
from crystaldl.physics.symmetry import CRYSTAL_SYSTEMS, SYSTEM_OF_GROUP, operations, symbols
from crystaldl.physics.wavelengths import LINES

SEED = 20230214
LICENCE = "CC0-1.0"


@dataclass(frozen=True)
class Structure:
    """A crystal as published: reference setting of International Tables (hexagonal axes, origin choice 2)."""

    formula: str
    space_group: int
    cell: tuple
    sites: tuple  # (element, x, y, z)
    source: str


STRUCTURES = {
    "halite": Structure("NaCl", 225, (5.64056, 5.64056, 5.64056, 90, 90, 90),
                        (("Na", 0, 0, 0), ("Cl", 0.5, 0.5, 0.5)),
                        "R. W. G. Wyckoff, Crystal Structures 1 (1963) 85"),
    "silicon": Structure("Si", 227, (5.431021, 5.431021, 5.431021, 90, 90, 90), (("Si", 0.125, 0.125, 0.125),),
                         "P. J. Mohr, B. N. Taylor, D. B. Newell, Rev. Mod. Phys. 84 (2012) 1527 (CODATA 2010)"),
    "zincite": Structure("ZnO", 186, (3.2495, 3.2495, 5.2069, 90, 90, 120),
                         (("Zn", 1 / 3, 2 / 3, 0.0), ("O", 1 / 3, 2 / 3, 0.3826)),
                         "S. C. Abrahams, J. L. Bernstein, Acta Cryst. B25 (1969) 1233"),
    "quartz": Structure("SiO2", 154, (4.916, 4.916, 5.4054, 90, 90, 120),
                        (("Si", 0.4697, 0.0, 2 / 3), ("O", 0.4135, 0.2669, 0.7858)),
                        "L. Levien, C. T. Prewitt, D. J. Weidner, Am. Mineral. 65 (1980) 920"),
    "corundum": Structure("Al2O3", 167, (4.7589, 4.7589, 12.991, 90, 90, 120),
                          (("Al", 0.0, 0.0, 0.352), ("O", 0.306, 0.0, 0.25)),
                          "R. E. Newnham, Y. M. de Haan, Z. Kristallogr. 117 (1962) 235"),
    "calcite": Structure("CaCO3", 167, (4.99, 4.99, 17.0615, 90, 90, 120),
                         (("Ca", 0.0, 0.0, 0.0), ("C", 0.0, 0.0, 0.25), ("O", 0.2578, 0.0, 0.25)),
                         "D. L. Graf, Am. Mineral. 46 (1961) 1283"),
    "rutile": Structure("TiO2", 136, (4.593659, 4.593659, 2.958682, 90, 90, 90),
                        (("Ti", 0.0, 0.0, 0.0), ("O", 0.30479, 0.30479, 0.0)),
                        "S. C. Abrahams, J. L. Bernstein, J. Chem. Phys. 55 (1971) 3206"),
    "forsterite": Structure("Mg2SiO4", 62, (10.193, 5.977, 4.752, 90, 90, 90),
                            (("Mg", 0.0, 0.0, 0.0), ("Mg", 0.2774, 0.25, 0.9915), ("Si", 0.0940, 0.25, 0.4262),
                             ("O", 0.0913, 0.25, 0.7657), ("O", 0.4474, 0.25, 0.2215), ("O", 0.1628, 0.0331, 0.2777)),
                            "R. M. Hazen, Am. Mineral. 61 (1976) 1280 (Pbnm there)"),
    "baddeleyite": Structure("ZrO2", 14, (5.1505, 5.2116, 5.3173, 90, 99.23, 90),
                             (("Zr", 0.2754, 0.0395, 0.2083), ("O", 0.07, 0.3317, 0.3447), ("O", 0.4496, 0.7569, 0.4792)),
                             "C. J. Howard, R. J. Hill, B. E. Reichert, Acta Cryst. B44 (1988) 116"),
    "diopside": Structure("CaMgSi2O6", 15, (9.7397, 8.9174, 5.2503, 90, 105.866, 90),
                          (("Mg", 0.0, 0.90808, 0.25), ("Ca", 0.0, 0.30148, 0.25), ("Si", 0.28619, 0.09319, 0.22936),
                           ("O", 0.11554, 0.0869, 0.14186), ("O", 0.36094, 0.25019, 0.31776),
                           ("O", 0.35073, 0.01744, 0.99543)),
                          "R. M. Thompson, R. T. Downs, Am. Mineral. 93 (2008) 177"),
    "kyanite": Structure("Al2SiO5", 2, (7.1262, 7.852, 5.5724, 89.99, 101.11, 106.03),
                         (("Al", 0.3254, 0.7040, 0.4582), ("Al", 0.2974, 0.6989, 0.9505), ("Al", 0.0998, 0.3862, 0.6403),
                          ("Al", 0.1120, 0.9175, 0.1649), ("Si", 0.2962, 0.0649, 0.7066), ("Si", 0.2910, 0.3317, 0.1892),
                          ("O", 0.1095, 0.1468, 0.1288), ("O", 0.1230, 0.6856, 0.1812), ("O", 0.2747, 0.4545, 0.9547),
                          ("O", 0.2831, 0.9354, 0.9353), ("O", 0.1084, 0.1520, 0.6669), ("O", 0.1219, 0.6307, 0.6389),
                          ("O", 0.2822, 0.4453, 0.4288), ("O", 0.2915, 0.9467, 0.4659), ("O", 0.5008, 0.2749, 0.2440),
                          ("O", 0.5015, 0.2312, 0.7553)),
                         "J. K. Winter, S. Ghose, Am. Mineral. 64 (1979) 573"),
}  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """One file: which phases, measured how. Angles in degrees 2θ, sizes in Å, B in Å²."""

    file: str
    title: str
    phases: dict  # structure: weight fraction
    anode: str = "Cu"
    range: tuple = (5.0, 90.0, 0.02)  # first, last, step
    peak_counts: float = 12000.0
    fwhm: float = 0.08  # Gaussian part at 2θ = 0, from the instrument
    size: float = 700.0  # Scherrer size
    strain: float = 4e-4
    b_iso: float = 0.5
    texture: dict = field(default_factory=dict)  # structure: (hkl, March-Dollase r)
    displacement: float = 0.0  # shift of the lines at low angle
    background: tuple = (0.015, 0.02, 0.15)  # of the strongest line: flat, amorphous hump, air scatter at 5°


SCANS = (
    Scan("halite.xy", "Halite NaCl", {"halite": 1.0}, peak_counts=24000, texture={"halite": ((1, 0, 0), 0.9)}),
    Scan("silicon.xye", "Silicon", {"silicon": 1.0}, peak_counts=30000, size=1500, strain=1e-4, fwhm=0.06),
    Scan("rutile.xy", "Rutile TiO2", {"rutile": 1.0}, displacement=0.02),
    Scan("zincite.csv", "Zincite ZnO", {"zincite": 1.0}, size=300, background=(0.02, 0.01, 0.2)),
    Scan("quartz.xy", "Quartz SiO2", {"quartz": 1.0}, peak_counts=20000),
    Scan("corundum.xye", "Corundum Al2O3", {"corundum": 1.0}, peak_counts=9000, size=1200, strain=1e-4, fwhm=0.06),
    Scan("calcite.csv", "Calcite CaCO3", {"calcite": 1.0}, texture={"calcite": ((1, 0, 4), 0.85)}),
    Scan("forsterite.xy", "Forsterite Mg2SiO4", {"forsterite": 1.0}, peak_counts=8000, displacement=-0.015),
    Scan("baddeleyite.xy", "Baddeleyite ZrO2", {"baddeleyite": 1.0}, size=400, strain=8e-4),
    Scan("diopside.xye", "Diopside CaMgSi2O6", {"diopside": 1.0}, peak_counts=10000, background=(0.02, 0.03, 0.15)),
    Scan("kyanite.xy", "Kyanite Al2SiO5", {"kyanite": 1.0}, peak_counts=10000, texture={"kyanite": ((1, 0, 0), 0.8)}),
    Scan("rutile_with_corundum.xy", "Rutile with 40 % corundum", {"rutile": 0.6, "corundum": 0.4}),
    Scan("quartz_mo.xye", "Quartz SiO2, Mo Kα", {"quartz": 1.0}, anode="Mo", range=(3.0, 50.0, 0.01), fwhm=0.05,
         peak_counts=15000),
)  # fmt: skip


@dataclass(frozen=True)
class Diffuse:
    """A plane or a volume of diffuse scattering; on every site a molecule or its inverted copy, at equal shares.

    ``shape`` counts the pixels along h, k, l, which run from -limit to limit; an interaction is reduced, 4 c (1 - c) J / kT.
    """

    file: str
    title: str
    cell: tuple
    shape: tuple
    limits: tuple
    atoms: tuple  # (element, x, y, z) in Å from the centre of the site
    interactions: dict  # one lattice vector of each ±R: βJ
    laue: str
    peak_counts: float = 1000.0
    b_iso: float = 2.0


def para_ring(tilt: float) -> tuple:
    """1-bromo-4-chlorobenzene in the xy plane, its long axis ``tilt`` degrees from x; C-C 1.39, C-Br 1.90, C-Cl 1.74 Å."""
    polar = [("C", 1.39, 60.0 * k) for k in range(6)] + [("H", 2.48, 60.0 * k) for k in (1, 2, 4, 5)]
    polar += [("Br", 3.29, 0.0), ("Cl", 3.13, 180.0)]
    angle = lambda a: np.radians(a + tilt)  # noqa: E731
    return tuple((e, round(r * np.cos(angle(a)), 4), round(r * np.sin(angle(a)), 4), 0.0) for e, r, a in polar)


DIFFUSE = (
    Diffuse("hk0_poisson.h5", "Head-to-tail disorder of 1-bromo-4-chlorobenzene, hk0", (8.2, 6.0, 3.9, 90, 90, 90), (256, 256, 1),
            (8.0, 6.0, 0.0), para_ring(24.0), {(1, 0, 0): 0.16, (0, 1, 0): -0.2, (1, 1, 0): 0.07, (1, -1, 0): -0.09}, "112/m"),
    Diffuse("rods.h5", "Head-to-tail disorder of cyanogen bromide", (5.8, 5.8, 6.4, 90, 90, 90), (61, 61, 61), (3.0, 3.0, 3.0),
            (("Br", 0.0, 0.0, 1.59), ("C", 0.0, 0.0, -0.20), ("N", 0.0, 0.0, -1.36)),
            {(1, 0, 0): -0.1, (0, 1, 0): -0.1, (0, 0, 1): 0.16, (1, 1, 0): 0.05, (1, -1, 0): 0.05}, "4/mmm", peak_counts=500.0),
)  # fmt: skip


@dataclass(frozen=True)
class Strained:
    """A scan over a wedge of one crystal with a strained and turned layer in it, and vacuum before it.

    Rows (x) run through the layer, columns (y) along the wedge. ``vacuum`` and ``layer`` count rows, ``strain`` is e_xx, e_yy,
    e_xy and theta (rad) of the layer against the rest, ``spacing`` the distance of the nearest disks in px.
    """

    file: str
    title: str
    structure: str
    zone: tuple
    scan: tuple = (20, 20)
    pattern: tuple = (96, 96)
    voltage: float = 200.0  # kV
    radius: float = 5.0  # of the disks, px
    spacing: float = 12.5
    turn: float = 12.0  # of the crystal in the pattern, degrees
    thickness: tuple = (15.0, 35.0)  # nm, of the first and last column
    tilt: tuple = (2e-3, -1e-3)  # of the crystal, rad
    vacuum: tuple = (0, 2)
    layer: tuple = (10, 15)
    strain: tuple = (0.015, 0.0, 0.0, 0.004)
    descan: tuple = (2.0, -1.5)  # px along qx over all rows, along qy over all columns
    electrons: float = 1e5  # a pattern
    background: float = 0.08  # share of the electrons in a smooth tail
    b_iso: float = 0.5


STRAINED = (Strained("strained_scan.h5", "Zincite ZnO [001] with a buried strained layer", "zincite", (0, 0, 1)),)


def cell_content(structure: Structure) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers and fractional coordinates of all atoms of the cell."""
    ops = operations(structure.space_group)
    numbers, positions = [], []
    for element, *xyz in structure.sites:
        orbit: list[np.ndarray] = []
        for point in (ops.rotations @ np.array(xyz, dtype=float) + ops.translations) % 1.0:
            apart = (np.abs((point - q + 0.5) % 1.0 - 0.5).max() > 1e-3 for q in orbit)
            if all(apart):
                orbit.append(point)
        numbers += [gemmi.Element(element).atomic_number] * len(orbit)
        positions += orbit
    return np.array(numbers), np.array(positions)


def phase_lines(name: str, scan: Scan, q_max: float) -> tuple[np.ndarray, np.ndarray]:
    """1/d and m|F|² of a phase, scaled so that phases add up by weight: by W / (mass of the cell × its volume)."""
    structure = STRUCTURES[name]
    numbers, positions = cell_content(structure)
    cell = np.array(structure.cell, dtype=float)
    texture = scan.texture.get(name)
    weight = None if texture is None else (lambda hkl, q: march_dollase(hkl, q, cell, *texture))
    q, intensity = powder_lines(numbers, positions, cell, q_max, b_iso=scan.b_iso, weight=weight)
    mass = sum(gemmi.Element(int(z)).weight for z in numbers)
    volume = gemmi.UnitCell(*structure.cell).volume
    return q, intensity * scan.phases[name] / (mass * volume)


def profile(scan: Scan, two_theta: np.ndarray) -> np.ndarray:
    """The lines of all phases on the scan's axis, strongest point 1, with the Kα doublet of its anode."""
    alpha1, alpha2, _ = LINES[scan.anode]
    q_max = 2 * np.sin(np.radians(min(two_theta[-1] + 3.0, 170.0) / 2)) / alpha1
    out = np.zeros_like(two_theta)
    for name in scan.phases:
        q, intensity = phase_lines(name, scan, q_max)
        for wavelength, ratio in ((alpha1, 1.0), (alpha2, 0.5)):
            seen = q * wavelength / 2 < 0.99
            theta = np.arcsin(q[seen] * wavelength / 2)
            tan, cos = np.tan(theta), np.cos(theta)
            position = np.degrees(2 * theta) + scan.displacement * cos
            height = ratio * intensity[seen] * lorentz_polarisation(np.degrees(2 * theta))
            sigma = scan.fwhm * np.sqrt(1.0 + 0.6 * tan**2) / 2.3548
            gamma = np.degrees(0.94 * wavelength / (scan.size * cos) + 4 * scan.strain * tan) / 2
            for x, h, s, g in zip(position, height, sigma, gamma, strict=True):
                window = slice(*np.searchsorted(two_theta, (x - 4.0, x + 4.0)))
                out[window] += h * voigt_profile(two_theta[window] - x, s, g)
    return out / out.max()


def counts(scan: Scan, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The scan: 2θ (degrees) and counts.

    Counts are quantiles of the Poisson distribution at seeded uniform numbers, one for each point, so that a
    difference in the last digit of an expectation cannot spread to other points.
    """
    first, last, step = scan.range
    two_theta = first + step * np.arange(round((last - first) / step) + 1)
    flat, hump, air = scan.background
    scale = LINES[scan.anode][0] / LINES["Cu"][0]
    centre, width = 22.0 * scale, 8.0 * scale
    background = flat + hump * np.exp(-0.5 * ((two_theta - centre) / width) ** 2) + air * 5.0 * scale / two_theta**1.5
    expected = scan.peak_counts * (profile(scan, two_theta) + background)
    uniform = np.random.default_rng([SEED, number]).random(two_theta.size)
    return two_theta, poisson.ppf(uniform, expected)


def text(scan: Scan, two_theta: np.ndarray, y: np.ndarray) -> str:
    """The file's content: a header that says the wavelength, then the columns."""
    alpha1, alpha2, _ = LINES[scan.anode]
    separator = "," if scan.file.endswith(".csv") else " "
    columns, formats = ["two_theta", "intensity"], ["{:.2f}", "{:.0f}"]
    data = [two_theta, y]
    if scan.file.endswith(".xye"):
        columns, formats, data = [*columns, "sigma"], [*formats, "{:.2f}"], [*data, np.sqrt(np.maximum(y, 1.0))]
    header = (
        f"# name = {scan.title}",
        "# simulated scan, CC0; see MANIFEST.json",
        f"# radiation = {scan.anode} Kα",
        f"# wavelength = {alpha1:.7g}",
        f"# wavelength_alpha2 = {alpha2:.7g}",
        "# " + separator.join(columns),
    )
    line = separator.join(formats)
    return "\n".join([*header, *(line.format(*row) for row in zip(*data, strict=True))]) + "\n"


def entry(scan: Scan, content: bytes) -> dict:
    """What the manifest says about one file; phases by falling weight fraction."""
    phases = []
    for name, fraction in sorted(scan.phases.items(), key=lambda item: -item[1]):
        s = STRUCTURES[name]
        symbol = symbols()[s.space_group - 1].replace("H", "R")  # rhombohedral groups on hexagonal axes
        phases.append({
            "phase": name, "formula": s.formula, "weight_fraction": fraction, "space_group": s.space_group,
            "symbol": symbol, "crystal_system": CRYSTAL_SYSTEMS[SYSTEM_OF_GROUP[s.space_group - 1]],
            "cell": list(s.cell), "structure": s.source,
        })  # fmt: skip
    return {
        "file": f"powder/{scan.file}", "sha256": hashlib.sha256(content).hexdigest(), "title": scan.title,
        "radiation": f"{scan.anode}Ka", "phases": phases, "licence": LICENCE,
        "made": "simulated by make_samples.py from the structure named, with background and counting noise",
    }  # fmt: skip


def short_range_order(sample: Diffuse, hkl: list) -> tuple[np.ndarray, list]:
    """S on the pixels, and the Warren-Cowley parameters [u, v, w, α] of one of each ±R, |α| from 1e-4, nearest first.

    Orthogonal cells only. The parameters of S = C / (1 + βJ) are its Fourier coefficients on 64 points an axis.
    """
    ndim = 3 if sample.shape[2] > 1 else 2
    points = [np.arange(64) / 64.0] * ndim + [np.zeros(1)] * (3 - ndim)
    zone = np.meshgrid(*points, indexing="ij", sparse=True)
    denominator = lambda at: 1.0 + sum(  # noqa: E731
        2.0 * b * np.cos(2 * np.pi * sum(n * x for n, x in zip(r, at, strict=True))) for r, b in sample.interactions.items()
    )
    correlation = np.fft.ifftn(1.0 / denominator(zone)).real
    alpha = correlation / correlation.flat[0]
    found = []
    for index in np.argwhere(np.abs(alpha) >= 1e-4):
        vector = tuple(int(n) - 64 * (int(n) > 32) for n in index)
        if vector > (0, 0, 0):
            found.append([*vector, round(float(alpha[tuple(index)]), 6)])
    length = lambda row: (round(sum((n * a) ** 2 for n, a in zip(row[:3], sample.cell, strict=False)), 6), row)  # noqa: E731
    return 1.0 / denominator(hkl) / correlation.flat[0], sorted(found, key=length)


def difference_factor(sample: Diffuse, q: list) -> np.ndarray:
    """c (1 - c) |F_A - F_B|² with c = 1/2 at Q = (x, y, z) in Å⁻¹, 2π inside; B is A inverted in the centre of the site."""
    s2 = sum(x**2 for x in q) / (16 * np.pi**2)
    odd = sum(
        scattering_factor(gemmi.Element(e).atomic_number, s2) * np.sin(sum(x * r for x, r in zip(q, xyz, strict=True)))
        for e, *xyz in sample.atoms
    )
    return odd**2 * np.exp(-2 * sample.b_iso * s2)


def not_measured(sample: Diffuse, q: list) -> np.ndarray:
    """Beam stop, the end of the detector, its gaps, and the blind cone (in a plane, a sector of it)."""
    length = np.sqrt(sum(x**2 for x in q))
    blind = np.abs(q[1]) < 0.12 * np.abs(q[0]) - 0.2 if sample.shape[2] == 1 else np.hypot(q[0], q[1]) < 0.25 * np.abs(q[2]) - 0.1
    gaps = sum(np.abs(length - at + 0.08 * q[0]) < 0.03 for at in (2.2, 4.4))
    edge = 1.06 * 2 * np.pi * max(n / a for n, a in zip(sample.limits, sample.cell, strict=False))
    return (length < 0.3) | (length > edge) | (gaps > 0) | blind


def write_diffuse(sample: Diffuse, number: int, folder: Path) -> dict:
    """Write counts (HDF5, layout of Yell 1.0, NaN where not measured) and truth (JSON); returns the manifest's entry."""
    axes = [np.linspace(-top, top, n) for top, n in zip(sample.limits, sample.shape, strict=True)]
    hkl = np.meshgrid(*axes, indexing="ij", sparse=True)
    q = [2 * np.pi * x / a for x, a in zip(hkl, sample.cell, strict=False)]
    order, alpha = short_range_order(sample, hkl)
    ideal = difference_factor(sample, q) * order
    scale = sample.peak_counts / ideal.max()
    uniform = np.random.default_rng([SEED, 1000 + number]).random(ideal.shape)
    data = np.where(not_measured(sample, q), np.nan, poisson.ppf(uniform, scale * ideal)).astype(np.float32)
    with h5py.File(folder / sample.file, "w") as file:
        file.attrs["format"] = "Yell 1.0"
        file["format"] = np.bytes_("Yell 1.0")
        file["data"] = data
        file["lower_limits"] = np.array([axis[0] for axis in axes])
        file["step_sizes"] = np.array([axis[1] - axis[0] if axis.size > 1 else 1.0 for axis in axes])
        file["unit_cell"] = np.array(sample.cell, dtype=float)
        file["is_direct"] = False
        file["radiation"], file["title"] = np.bytes_("xray"), np.bytes_(sample.title)
    truth = {
        "title": sample.title, "cell": list(sample.cell), "laue": sample.laue, "atoms": [list(a) for a in sample.atoms],
        "other_variant": "inverted in the centre of the site", "concentration": 0.5, "b_iso": sample.b_iso,
        "scale": float(f"{scale:.9g}"), "interactions": [[*r, b] for r, b in sample.interactions.items()], "alpha": alpha,
    }  # fmt: skip
    beside = (folder / sample.file).with_suffix(".json")
    beside.write_bytes((json.dumps(truth, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
    return {
        "file": f"diffuse/{sample.file}", "sha256": hashlib.sha256((folder / sample.file).read_bytes()).hexdigest(),
        "title": sample.title, "radiation": "xray", "truth": f"diffuse/{beside.name}", "cell": list(sample.cell),
        "laue": sample.laue, "licence": LICENCE,
        "made": "simulated by make_samples.py: two orientations, short-range order, counting noise, unmeasured regions",
    }  # fmt: skip


def disk_fillings(sample: Strained) -> tuple[np.ndarray, np.ndarray, float]:
    """g (M, 2) in Å⁻¹, intensity maps (columns, M, 16, 16) of their disks, and px a Å⁻¹; by Bloch waves, without absorption."""
    import torch

    from crystaldl.physics.crystals import Crystal
    from crystaldl.stem.simulate.bank import directions, interpolation
    from crystaldl.stem.simulate.bloch import beam_intensities, prepare_zone
    from crystaldl.stem.simulate.electrons import wavelength

    structure = STRUCTURES[sample.structure]
    numbers, positions = cell_content(structure)
    crystal = Crystal(numbers, positions, np.array(structure.cell, dtype=float), structure.space_group)
    tilt = np.array(sample.tilt) / wavelength(sample.voltage)
    zone = prepare_zone(crystal, sample.zone, voltage=sample.voltage, b_iso=sample.b_iso, tilt=tilt)
    length = np.hypot(*zone.g.T)
    allowed = (zone.structure_factor > 1e-6 * zone.u0) & (length > 0)
    scale = sample.spacing / length[allowed].min()
    tilts = torch.as_tensor(tilt + directions() * sample.radius / scale)
    thickness = torch.as_tensor(10.0 * np.linspace(*sample.thickness, sample.scan[1]))
    values = beam_intensities(zone, tilts, thickness, dtype=torch.complex128).permute(1, 2, 0).numpy()
    side = round(interpolation().shape[1] ** 0.5)
    return zone.g, (values @ interpolation()).reshape(*values.shape[:2], side, side), scale


def strained_patterns(sample: Strained, number: int) -> tuple[np.ndarray, dict]:
    """Counts (Rx, Ry, Qx, Qy) and truth: maps (Rx, Ry) of the strain, None over vacuum, and of the beam's position, px.

    Axis 0 of scan and pattern is x. g' = F⁻ᵀ g with F = 1 + e + turn; theta is positive from y towards x.
    """
    import torch

    from crystaldl.stem.simulate.patterns import SceneOptions, draw_disks

    g, maps, scale = disk_fillings(sample)
    angle = np.radians(sample.turn)
    g = scale * g @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    (n_x, n_y), shape = sample.scan, sample.pattern
    e_xx, e_yy, e_xy, theta = sample.strain
    change = np.linalg.inv(np.array([[1 + e_xx, e_xy + theta], [e_xy - theta, 1 + e_yy]]))  # rows g' = g F⁻¹
    options = SceneOptions(shape, sample.radius)
    rows, beams = [], []
    for i in range(n_x):
        at = g @ change if sample.layer[0] <= i < sample.layer[1] else g
        fill = np.zeros_like(maps) if sample.vacuum[0] <= i < sample.vacuum[1] else maps
        if fill is not maps:
            fill[:, 0] = 1.0
        beam = np.array([[sample.descan[0] * (i / (n_x - 1) - 0.5), sample.descan[1] * (j / (n_y - 1) - 0.5)] for j in range(n_y)])
        beam = beam + np.array(shape) // 2
        centres = torch.as_tensor(beam[:, None] + at)
        eye = sample.radius * torch.eye(2, dtype=torch.float64).expand(n_y, 2, 2)
        image = draw_disks(torch.as_tensor(fill), centres, eye, options)[0].numpy()
        grid = np.indices(shape)[:, None] - beam.T[:, :, None, None]
        tail = (1 + (grid**2).sum(0) / 12.0**2) ** -1.5 * (fill is maps)
        share = sample.background * tail / np.maximum(tail.sum((1, 2), keepdims=True), 1e-300)
        rows.append((1 - sample.background) * image / (np.pi * sample.radius**2) + share)
        beams.append(beam)
    uniform = np.random.default_rng([SEED, 2000 + number]).random((n_x, n_y, *shape))
    counted = poisson.ppf(uniform, sample.electrons * np.maximum(rows, 0)).astype(np.uint16)
    line = [None if sample.vacuum[0] <= i < sample.vacuum[1] else float(sample.layer[0] <= i < sample.layer[1]) for i in range(n_x)]
    names = ("e_xx", "e_yy", "e_xy", "theta")
    strain = {n: [None if on is None else on * e for on in line] for n, e in zip(names, sample.strain, strict=True)}
    truth = {
        "title": sample.title, "crystal": STRUCTURES[sample.structure].formula, "zone": list(sample.zone),
        "voltage_kV": sample.voltage, "radius": sample.radius, "thickness_nm": list(sample.thickness), "rows": strain,
        "vacuum": list(sample.vacuum), "layer": list(sample.layer), "electrons": sample.electrons,
        "g": np.round(g, 6).tolist(), "layer_g": np.round(g @ change, 6).tolist(), "beam": np.round(beams, 6).tolist(),
        "share": np.round(maps.mean((2, 3)), 5).tolist(),
    }  # fmt: skip
    return counted, truth


def write_strained(sample: Strained, number: int, folder: Path) -> dict:
    """Write the scan (HDF5, layout of EMD 1.0, which py4DSTEM reads) and truth (JSON); returns the manifest's entry."""
    counted, truth = strained_patterns(sample, number)
    with h5py.File(folder / sample.file, "w") as file:
        file.attrs.update({"emd_group_type": "file", "version_major": 1, "version_minor": 0, "authoring_program": "crystaldl"})
        root = file.create_group("datacube_root")
        root.attrs.update({"emd_group_type": "root", "python_class": "Root"})
        bundle = root.create_group("metadatabundle")
        bundle.attrs["emd_group_type"] = "metadatabundle"
        calibration = bundle.create_group("calibration")
        calibration.attrs.update({"emd_group_type": "metadata", "python_class": "Calibration"})
        for name, unit in (("Q", "pixels"), ("R", "pixels")):
            calibration[f"{name}_pixel_size"], calibration[f"{name}_pixel_units"] = 1, np.bytes_(unit)
            calibration[f"{name}_pixel_size"].attrs["type"] = "number"
            calibration[f"{name}_pixel_units"].attrs["type"] = "string"
        calibration["_root_treepath"] = np.bytes_("")
        calibration["_root_treepath"].attrs["type"] = "string"
        paths = calibration.create_group("_target_paths")
        paths.attrs.update({"type": "list_of_strings", "length": 1})
        paths["0"] = np.bytes_("/datacube")
        cube = root.create_group("datacube")
        cube.attrs.update({"emd_group_type": "array", "python_class": "DataCube"})
        data = cube.create_dataset("data", data=counted, chunks=(1, *counted.shape[1:]), compression="gzip", shuffle=True)
        data.attrs["units"] = "pixel intensity"
        for axis, name in enumerate(("Rx", "Ry", "Qx", "Qy")):
            dim = cube.create_dataset(f"dim{axis}", data=np.array([0, 1]))
            dim.attrs.update({"name": name, "units": "pixels"})
    beside = (folder / sample.file).with_suffix(".json")
    beside.write_bytes((json.dumps(truth, ensure_ascii=False) + "\n").encode("utf-8"))
    return {
        "file": f"stem/{sample.file}", "sha256": hashlib.sha256((folder / sample.file).read_bytes()).hexdigest(),
        "title": sample.title, "radiation": "electron", "truth": f"stem/{beside.name}", "licence": LICENCE,
        "made": "simulated by make_samples.py: Bloch waves, a wedge, a strained layer, descan, counting noise",
    }  # fmt: skip


def write(folder: Path) -> dict:
    """Write all files and the manifest into a folder; returns the manifest."""
    for name in ("powder", "diffuse", "stem"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    samples = {}
    for number, scan in enumerate(SCANS):
        content = text(scan, *counts(scan, number)).encode("utf-8")
        (folder / "powder" / scan.file).write_bytes(content)
        samples["powder/" + scan.file.split(".")[0]] = entry(scan, content)
    for number, sample in enumerate(DIFFUSE):
        samples["diffuse/" + sample.file.split(".")[0]] = write_diffuse(sample, number, folder / "diffuse")
    for number, sample in enumerate(STRAINED):
        samples["stem/" + sample.file.split(".")[0]] = write_strained(sample, number, folder / "stem")
    manifest = {"licence": LICENCE, "seed": SEED, "samples": samples}
    content = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / "MANIFEST.json").write_bytes(content.encode("utf-8"))
    return manifest


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: this one)"
    )
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
