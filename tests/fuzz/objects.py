"""One small object of every public class, made in seconds and without weights."""

from __future__ import annotations

from functools import cache

import numpy as np

CELL = (6.0, 6.0, 8.0, 90.0, 90.0, 90.0)


# -- powder --------------------------------------------------------------------------------------------------------


@cache
def pattern():
    from crystaldl.powder.pattern import PowderPattern

    rng = np.random.default_rng(3)
    x = np.arange(10, 90, 0.04)
    y = np.full(x.size, 80.0)
    for n in range(1, 14):  # a primitive cubic cell of 6 Å
        centre = 2 * np.degrees(np.arcsin(0.77 * np.sqrt(n) / 6))
        y += 2000 / n * np.exp(-0.5 * ((x - centre) / 0.06) ** 2)
    y = rng.poisson(y).astype(float)
    y[100:110] = np.nan
    facts = {
        "format": "made",
        "anode": None,
        "scans_added": 2,
        "a/b": (1, 2.5, "x"),
        "numbers": [1, 2],
        "curve": np.arange(4.0),
    }
    return PowderPattern(x, y, "CuKa", name="cubic α", sigma=np.sqrt(np.nan_to_num(y, nan=1.0)), metadata=facts)


@cache
def peaks():
    return pattern().peaks()


@cache
def classification():
    from crystaldl.powder.indexing.evidence import Lattice
    from crystaldl.powder.result import Classification

    p = np.random.default_rng(0).dirichlet(np.full(230, 0.1))
    cells = {"cP": [6.0, 6, 6, 90, 90, 90], "hP": [4.0, 4, 9, 90, 90, 120]}
    return Classification(
        pattern(), p, "auto", "powder-test-v1", "0" * 64, True, second_phase_probability=0.12, primitive_volume=216.0, lines=13,
        lattices=tuple(Lattice(key, np.array(cell), 31.5, 0.01) for key, cell in cells.items()),
        arbiter="powder-arbiter-test", arbiter_sha256="1" * 64,
    )  # fmt: skip


# -- diffuse scattering --------------------------------------------------------------------------------------------


def molecules():
    from crystaldl.diffuse.molecular import Molecule

    a = Molecule(["C", "O"], [[0, 0, 0], [1.2, 0.3, 0.2]], b_iso=1.0)
    return a, a.rotated(np.diag([-1.0, 1.0, -1.0]))


@cache
def plane():
    """Counts of short-range order on hk0, with unmeasured pixels."""
    from crystaldl.diffuse.molecular import difference_form_factor
    from crystaldl.diffuse.volume import DiffuseVolume

    x = np.linspace(-3, 3, 61)
    empty = DiffuseVolume(np.ones((61, 61)), x, x, 0.0, CELL, name="order β")
    hkl = empty.hkl()
    alpha = {(1, 0, 0): -0.12, (0, 1, 0): 0.1, (1, 1, 0): 0.05}
    order = 1 + sum(2 * a * np.cos(2 * np.pi * hkl @ np.array(r)) for r, a in alpha.items())
    intensity = difference_form_factor(empty, *molecules()) * order
    scale = intensity.max() / 2000
    counts = np.random.default_rng(0).poisson(intensity / scale)
    data = counts * scale
    data[20:24, 30:37] = np.nan
    return empty.replace(data=data, mask=np.isfinite(data), sigma=np.sqrt(np.maximum(counts, 1)) * scale)


@cache
def volume():
    from crystaldl.diffuse.volume import DiffuseVolume

    x, z = np.linspace(-1.5, 1.5, 13), np.linspace(-1, 1, 9)
    data = np.random.default_rng(1).poisson(50.0, (13, 13, 9)).astype(float)
    return DiffuseVolume(data, x, x, z, CELL, radiation="neutron", name="cube")


@cache
def pixels():
    from crystaldl.diffuse.volume import DiffuseVolume

    return DiffuseVolume.from_pixels(np.random.default_rng(2).random((24, 20)), name="")


@cache
def separation():
    return plane().separate(method="physics", progress=False)


@cache
def sro():
    return separation().refine_sro(shells=3, laue="mmm")


@cache
def interactions():
    from crystaldl.diffuse.sro.models import refine_interactions

    return refine_interactions(sro(), shells=2, on="alpha")


@cache
def comparison():
    from crystaldl.diffuse.compare import compare_form_factors

    a, b = molecules()
    return compare_form_factors(
        separation(), {"turned": (a, b), "same / other": (a, a.rotated(np.diag([1.0, -1.0, -1.0])))}
    )


@cache
def delta_pdf():
    return plane().delta_pdf()


# -- 4D-STEM -------------------------------------------------------------------------------------------------------


def _disks(centres, shape, radius=5.0, counts=400.0):
    rows, columns = np.indices(shape)
    image = np.full(shape, 0.5)
    for c in centres:
        distance = np.hypot(rows - c[0], columns - c[1])
        image += counts / (np.pi * radius**2) * np.clip(radius + 0.5 - distance, 0, 1)
    return image


@cache
def probe_image():
    return _disks([(31.5, 31.5)], (64, 64), counts=40_000.0)


@cache
def probe():
    from crystaldl.stem.probe import Probe

    return Probe.from_array(probe_image())


@cache
def cube():
    """3 × 4 patterns of 64 × 64 px, a lattice that stretches along the scan."""
    from crystaldl.stem.datacube import DataCube

    rng = np.random.default_rng(4)
    data = np.empty((3, 4, 64, 64), dtype=np.uint16)
    for i in range(3):
        for j in range(4):
            a, b = 16.0 * (1 + 0.004 * j), 15.0
            centres = [(31.5 + a * m, 31.5 + b * n) for m in (-1, 0, 1) for n in (-1, 0, 1)]
            data[i, j] = rng.poisson(_disks(centres, (64, 64)))
    out = DataCube(data)
    out.calibration.set_R_pixel_size(2.0)
    out.calibration.set_R_pixel_units("nm")
    return out


@cache
def bragg():
    return cube().find_bragg_disks(method="correlation", probe=probe_image(), progress=False)


@cache
def strain():
    from crystaldl.stem.strain.fit import fit_strain

    return fit_strain(bragg())


#: Everything that `crystaldl.save` keeps.
STORED = {
    "PowderPattern": pattern, "PeakList": peaks, "Classification": classification, "DiffuseVolume": plane, "volume": volume,
    "pixels": pixels, "Separation": separation, "SROFit": sro, "InteractionFit": interactions, "FormFactorComparison": comparison,
    "DeltaPDF": delta_pdf, "DataCube": cube, "BraggVectors": bragg, "StrainMap": strain, "Probe": probe,
}  # fmt: skip
