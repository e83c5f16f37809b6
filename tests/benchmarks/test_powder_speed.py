"""Speed of powder patterns, side by side with pymatgen in the same process on one thread.

``make bench``, or ``OMP_NUM_THREADS=1 pytest tests/benchmarks/test_powder_speed.py``. CPU time of the process is
counted, so that other work on the machine disturbs little.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import torch

from crystaldl.physics.crystals import aflow_prototypes, read_library
from crystaldl.physics.lattice import two_theta_from_inverse_d
from crystaldl.physics.random_crystals import random_crystal
from crystaldl.physics.reflections import lorentz_polarisation, powder_lines
from crystaldl.powder.frequencies import group_shares
from crystaldl.powder.prepare import has_doublet, npcnn_input, prepare, subtract_background
from crystaldl.powder.recipe.stream import CrystalSource, build_lines
from crystaldl.powder.simulate import Conditions, simulate

WAVELENGTH = 1.54184
LIMITS = 2 * np.sin(np.radians([2.5, 45.0])) / WAVELENGTH  # 2θ from 5 to 90°


@pytest.fixture
def say(capsys):
    def write(text):
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return write


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seconds(function, repeats):
    """Shortest CPU time of a call."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def library(request):
    try:
        return read_library(request.getfixturevalue("shared_data") / "powder" / "structures.json.gz")
    except (pytest.skip.Exception, FileNotFoundError):
        return aflow_prototypes()


def stick_pattern(crystal):
    """2θ and intensity of Cu Kα, as pymatgen's calculator gives them."""
    q, intensity = powder_lines(crystal.numbers, crystal.positions, crystal.cell, LIMITS[1], q_min=LIMITS[0])
    two_theta = two_theta_from_inverse_d(q, WAVELENGTH)
    return two_theta, intensity * lorentz_polarisation(two_theta)


@pytest.mark.parametrize("which", ["about 15 atoms", "mixed library", "random crystals"])
def test_stick_patterns_against_pymatgen(which, request, say):
    """At least a hundred times as many stick patterns a second, on the same structures."""
    pytest.importorskip("pymatgen")
    from pymatgen.analysis.diffraction.xrd import XRDCalculator
    from pymatgen.core import Lattice, Structure

    rng = np.random.default_rng(0)
    if which == "random crystals":
        crystals = [random_crystal(int(n), rng, max_atoms=60) for n in rng.choice(230, 40, replace=False) + 1]
    else:
        crystals = [c for c in library(request) if which == "mixed library" or 10 <= len(c.numbers) <= 20]
        crystals = [crystals[i] for i in rng.choice(len(crystals), 40, replace=False)]
    structures = [Structure(Lattice.from_parameters(*c.cell), [int(z) for z in c.numbers], c.positions) for c in crystals]
    calculator = XRDCalculator(wavelength=WAVELENGTH)

    def ours():
        for crystal in crystals:
            stick_pattern(crystal)

    def theirs():
        for structure in structures:
            calculator.get_pattern(structure, two_theta_range=(5, 90))

    ours()  # compiled
    calculator.get_pattern(structures[0], two_theta_range=(5, 90))
    mine, peer = seconds(ours, 15), seconds(theirs, 2)
    atoms = np.mean([len(c.numbers) for c in crystals])
    say(f"stick patterns, {which} ({atoms:.1f} atoms a cell): crystaldl {40 / mine:.0f}/s, pymatgen {40 / peer:.1f}/s, "
        f"ratio {peer / mine:.0f}")  # fmt: skip
    assert peer / mine >= 100


@pytest.fixture(scope="module")
def lines():
    return build_lines(CrystalSource([], group_shares()), 300, seed=5)


@pytest.fixture(scope="module")
def patterns(lines):
    pick = np.arange(256)
    q, intensity = torch.as_tensor(lines.q[pick]), torch.as_tensor(lines.intensity[pick])
    return q, intensity, simulate(q, intensity, torch.Generator().manual_seed(0))


def test_crystals(say):
    source = CrystalSource([], group_shares())
    build_lines(source, 2, seed=1)
    say(f"random crystals with their lines: {60 / seconds(lambda: build_lines(source, 60, seed=3), 2):.0f}/s")


def test_simulate_and_prepare(patterns, say):
    q, intensity, p = patterns
    generator = torch.Generator().manual_seed(1)
    rates = {
        "simulate": seconds(lambda: simulate(q, intensity, generator, second=(q.flip(0), intensity.flip(0))), 3),
        "prepare": seconds(lambda: prepare(p.y, p.mask, p.doublet_ratio), 3),
        "npcnn_input": seconds(lambda: npcnn_input(p.y, p.mask), 3),
        "subtract_background": seconds(lambda: subtract_background(p.y, p.mask), 3),
        "has_doublet": seconds(lambda: has_doublet(p.y, p.mask), 3),
    }
    say("patterns a second, one thread: " + ", ".join(f"{name} {256 / t:.0f}" for name, t in rates.items()))
    assert 256 / rates["prepare"] > 250 and 256 / rates["simulate"] > 100


def test_how_often_the_doublet_is_recognised(lines, say):
    q, intensity = torch.as_tensor(lines.q), torch.as_tensor(lines.intensity)
    right = []
    for single in (0.0, 1.0):
        p = simulate(q, intensity, torch.Generator().manual_seed(int(single)), Conditions(cu_share=1.0, single_share=single))
        right.append(float((has_doublet(p.y, p.mask) == (single == 0.0)).float().mean()))
    say(f"has_doublet, default conditions: right for {right[0]:.1%} of doublets and {right[1]:.1%} of single lines")
    assert right[0] > 0.9
