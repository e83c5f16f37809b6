"""Powder lines: Bragg's law, structure factors of textbook crystals, invariances, and pymatgen."""

from __future__ import annotations

from itertools import product

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystaldl.physics.crystals import find_symmetry
from crystaldl.physics.lattice import inverse_d, two_theta_from_inverse_d
from crystaldl.physics.random_crystals import random_crystal
from crystaldl.physics.reflections import SAME_LINE, lorentz_polarisation, march_dollase, powder_lines, reflections
from crystaldl.physics.scattering import xray_form_factor

CU = 1.54184  # pymatgen's CuKa, Å

# Published cells: symbol, number, (a, b, c, alpha, beta, gamma), {element: sites}
PUBLISHED = {
    "silicon": ("F d -3 m:2", 227, (5.43102,) * 3 + (90,) * 3, {"Si": [(1 / 8, 1 / 8, 1 / 8)]}),
    "diamond": ("F d -3 m:2", 227, (3.5668,) * 3 + (90,) * 3, {"C": [(1 / 8, 1 / 8, 1 / 8)]}),
    "rock salt": ("F m -3 m", 225, (5.6402,) * 3 + (90,) * 3, {"Na": [(0, 0, 0)], "Cl": [(0.5, 0.5, 0.5)]}),
    "CsCl": ("P m -3 m", 221, (4.123,) * 3 + (90,) * 3, {"Cs": [(0, 0, 0)], "Cl": [(0.5, 0.5, 0.5)]}),
    "fluorite": ("F m -3 m", 225, (5.4626,) * 3 + (90,) * 3, {"Ca": [(0, 0, 0)], "F": [(0.25, 0.25, 0.25)]}),
    "sphalerite": ("F -4 3 m", 216, (5.4093,) * 3 + (90,) * 3, {"Zn": [(0, 0, 0)], "S": [(0.25, 0.25, 0.25)]}),
    "pyrite": ("P a -3", 205, (5.4179,) * 3 + (90,) * 3, {"Fe": [(0, 0, 0)], "S": [(0.3851, 0.3851, 0.3851)]}),
    "spinel": ("F d -3 m:2", 227, (8.0832,) * 3 + (90,) * 3,
               {"Mg": [(1 / 8, 1 / 8, 1 / 8)], "Al": [(0.5, 0.5, 0.5)], "O": [(0.2624, 0.2624, 0.2624)]}),
    "pyrope": ("I a -3 d", 230, (11.459,) * 3 + (90,) * 3,
               {"Mg": [(1 / 8, 0, 1 / 4)], "Al": [(0, 0, 0)], "Si": [(3 / 8, 0, 1 / 4)], "O": [(0.0329, 0.0502, 0.6534)]}),
    "rutile": ("P 42/m n m", 136, (4.5937, 4.5937, 2.9587, 90, 90, 90), {"Ti": [(0, 0, 0)], "O": [(0.3053, 0.3053, 0)]}),
    "anatase": ("I 41/a m d:2", 141, (3.7845, 3.7845, 9.5143, 90, 90, 90), {"Ti": [(0, 0.25, 0.375)], "O": [(0, 0.25, 0.1668)]}),
    "zircon": ("I 41/a m d:2", 141, (6.607, 6.607, 5.982, 90, 90, 90),
               {"Zr": [(0, 0.75, 0.125)], "Si": [(0, 0.25, 0.375)], "O": [(0, 0.0661, 0.1953)]}),
    "scheelite": ("I 41/a:2", 88, (5.243, 5.243, 11.376, 90, 90, 90),
                  {"Ca": [(0, 0.25, 0.625)], "W": [(0, 0.25, 0.125)], "O": [(0.1507, 0.0086, 0.2106)]}),
    "quartz": ("P 32 2 1", 154, (4.9134, 4.9134, 5.4052, 90, 90, 120),
               {"Si": [(0.4697, 0, 2 / 3)], "O": [(0.4135, 0.2669, 0.7858)]}),
    "calcite": ("R -3 c:H", 167, (4.9896, 4.9896, 17.061, 90, 90, 120),
                {"Ca": [(0, 0, 0)], "C": [(0, 0, 0.25)], "O": [(0.2568, 0, 0.25)]}),
    "corundum": ("R -3 c:H", 167, (4.7602, 4.7602, 12.9933, 90, 90, 120), {"Al": [(0, 0, 0.35216)], "O": [(0.30624, 0, 0.25)]}),
    "dolomite": ("R -3:H", 148, (4.8069, 4.8069, 16.0034, 90, 90, 120),
                 {"Ca": [(0, 0, 0)], "Mg": [(0, 0, 0.5)], "C": [(0, 0, 0.24282)], "O": [(0.24776, -0.03525, 0.24402)]}),
    "brucite": ("P -3 m 1", 164, (3.142, 3.142, 4.766, 90, 90, 120),
                {"Mg": [(0, 0, 0)], "O": [(1 / 3, 2 / 3, 0.2216)], "H": [(1 / 3, 2 / 3, 0.413)]}),
    "wurtzite": ("P 63 m c", 186, (3.2498, 3.2498, 5.2066, 90, 90, 120),
               {"Zn": [(1 / 3, 2 / 3, 0)], "O": [(1 / 3, 2 / 3, 0.3819)]}),
    "graphite": ("P 63/m m c", 194, (2.461, 2.461, 6.708, 90, 90, 120), {"C": [(0, 0, 0.25), (1 / 3, 2 / 3, 0.25)]}),
    "magnesium": ("P 63/m m c", 194, (3.2094, 3.2094, 5.2108, 90, 90, 120), {"Mg": [(1 / 3, 2 / 3, 0.25)]}),
    "fluorapatite": ("P 63/m", 176, (9.397, 9.397, 6.878, 90, 90, 120),
                     {"Ca": [(1 / 3, 2 / 3, 0.0011), (-0.00712, 0.24227, 0.25)], "P": [(0.36895, 0.3985, 0.25)],
                     "F": [(0, 0, 0.25)],
                      "O": [(0.3273, 0.4849, 0.25), (0.5875, 0.4667, 0.25), (0.3421, 0.2575, 0.0705)]}),
    "forsterite": ("P b n m", 62, (4.7535, 10.1943, 5.9807, 90, 90, 90),
                   {"Mg": [(0, 0, 0), (0.9915, 0.2774, 0.25)], "Si": [(0.4262, 0.0940, 0.25)],
                    "O": [(0.7657, 0.0913, 0.25), (0.2215, 0.4474, 0.25), (0.2777, 0.1628, 0.0331)]}),
    "aragonite": ("P m c n", 62, (4.9614, 7.9671, 5.7404, 90, 90, 90),
                  {"Ca": [(0.25, 0.4150, 0.7597)], "C": [(0.25, 0.7622, -0.0862)],
                   "O": [(0.25, 0.9225, -0.0962), (0.4736, 0.6810, -0.0862)]}),
    "baryte": ("P n m a", 62, (8.8842, 5.4559, 7.1569, 90, 90, 90),
               {"Ba": [(0.18453, 0.25, 0.15844)], "S": [(0.43747, 0.75, 0.19082)],
                "O": [(0.58727, 0.75, 0.10623), (0.31763, 0.75, 0.05151), (0.41937, 0.97034, 0.31190)]}),
    "anhydrite": ("A m m a", 63, (7.006, 6.998, 6.245, 90, 90, 90),
                  {"Ca": [(0.75, 0, 0.3476)], "S": [(0.25, 0, 0.1556)], "O": [(0.25, 0.1699, 0.0162), (0.0819, 0, 0.2975)]}),
    "baddeleyite": ("P 1 21/c 1", 14, (5.1505, 5.2116, 5.3173, 90, 99.23, 90),
                    {"Zr": [(0.2754, 0.0395, 0.2083)], "O": [(0.07, 0.3317, 0.3447), (0.4496, 0.7569, 0.4792)]}),
    "gypsum": ("I 1 2/a 1", 15, (5.679, 15.202, 6.522, 90, 118.43, 90),
               {"Ca": [(0.5, 0.0797, 0.25)], "S": [(0, 0.0773, 0.75)],
                "O": [(0.9632, 0.1319, 0.5505), (0.7582, 0.0223, 0.6671), (0.3796, 0.1821, 0.4588)]}),
    "diopside": ("C 1 2/c 1", 15, (9.746, 8.899, 5.251, 90, 105.63, 90),
                 {"Mg": [(0, 0.9082, 0.25)], "Ca": [(0, 0.3015, 0.25)], "Si": [(0.2862, 0.0933, 0.2293)],
                  "O": [(0.1156, 0.0873, 0.1422), (0.3611, 0.25, 0.3180), (0.3505, 0.0176, 0.9953)]}),
    "kyanite": ("P -1", 2, (7.1262, 7.852, 5.5724, 89.99, 101.11, 106.03),
                {"Al": [(0.3254, 0.7040, 0.4582), (0.2974, 0.6989, 0.9505), (0.0998, 0.3862, 0.6403), (0.1120, 0.9175, 0.1649)],
                 "Si": [(0.2962, 0.0649, 0.7066), (0.2910, 0.3317, 0.1892)],
                 "O": [(0.1095, 0.1468, 0.1288), (0.1230, 0.6856, 0.1812), (0.2747, 0.4545, 0.9547), (0.2831, 0.9354, 0.9353),
                       (0.1084, 0.1520, 0.6669), (0.1219, 0.6307, 0.6389), (0.2822, 0.4453, 0.4288), (0.2915, 0.9467, 0.4659),
                       (0.5008, 0.2749, 0.2440), (0.5015, 0.2312, 0.7553)]}),
    "chalcanthite": ("P -1", 2, (6.116, 10.716, 5.961, 82.35, 107.33, 102.60),
                     {"Cu": [(0, 0, 0), (0.5, 0.5, 0)], "S": [(0.0134, 0.2871, 0.6242)],
                      "O": [(0.9070, 0.1518, 0.6728), (0.2443, 0.3178, 0.7966), (0.8610, 0.3722, 0.6363), (0.0456, 0.3009, 0.3850),
                            (0.8173, 0.0732, 0.1521), (0.2896, 0.1177, 0.1488), (0.4659, 0.4062, 0.2980), (0.7560, 0.4161, 0.0193),
                            (0.4329, 0.1260, 0.6301)]}),
    "albite": ("C -1", 2, (8.142, 12.785, 7.159, 94.19, 116.61, 87.68),
               {"Na": [(0.2683, 0.9888, 0.1461)], "Al": [(0.0089, 0.1685, 0.2081)],
                "Si": [(0.0039, 0.8205, 0.2372), (0.6921, 0.1102, 0.3150), (0.6813, 0.8817, 0.3605)],
                "O": [(0.0049, 0.1311, 0.9669), (0.5923, 0.9972, 0.2803), (0.8123, 0.1098, 0.1904), (0.8201, 0.8513, 0.2587),
                      (0.0135, 0.3025, 0.2702), (0.0240, 0.6938, 0.2292), (0.2077, 0.1089, 0.3890), (0.1840, 0.8682, 0.4361)]}),
}  # fmt: skip


def structure(name):
    """numbers, positions, cell of a published structure, expanded by gemmi's operations of its setting."""
    symbol, _, cell, sites = PUBLISHED[name]
    ops = list(gemmi.find_spacegroup_by_name(symbol).operations())
    numbers, positions = [], []
    for element, points in sites.items():
        for point in points:
            images = np.array([op.apply_to_xyz(list(point)) for op in ops]) % 1.0
            kept = []
            for image in images:
                if not any(np.abs((image - k + 0.5) % 1.0 - 0.5).max() < 1e-4 for k in kept):
                    kept.append(image)
            numbers += [gemmi.Element(element).atomic_number] * len(kept)
            positions += kept
    return np.array(numbers), np.array(positions), np.array(cell, float)


def random_structure(seed, number=2):
    crystal = random_crystal(number, np.random.default_rng(seed), max_atoms=24)
    return crystal.numbers, crystal.positions, crystal.cell


def f2_of(name_or_structure, q_max):
    """|F|² by hkl, both Friedel mates."""
    numbers, positions, cell = structure(name_or_structure) if isinstance(name_or_structure, str) else name_or_structure
    hkl, q, f2 = reflections(numbers, positions, cell, q_max)
    table = {tuple(h): v for h, v in zip(hkl.tolist(), f2, strict=True)}
    return table | {(-a, -b, -c): v for (a, b, c), v in table.items()}


# ------------------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_structures_have_their_space_group(name):
    numbers, positions, cell = structure(name)
    assert find_symmetry(cell, positions, numbers, 0.005).number == PUBLISHED[name][1]


def test_lines_lie_on_braggs_law():
    """Silicon with Cu Kα1: the angles of the NIST SRM 640 certificate."""
    q, intensity = powder_lines(*structure("silicon"), 1.2)
    two_theta = two_theta_from_inverse_d(q[intensity > 1e-6 * intensity.max()], 1.540593)
    certified = [28.441, 47.300, 56.119, 69.126, 76.372, 88.025, 94.947]
    assert two_theta[:7] == pytest.approx(certified, abs=0.006)
    numbers, positions, cell = structure("kyanite")
    hkl, q, _ = reflections(numbers, positions, cell, 0.9)
    assert q == pytest.approx(inverse_d(hkl, cell), rel=1e-12)
    # every reflection of the half sphere once
    n = 12
    everything = np.array(list(product(range(-n, n + 1), repeat=3)))
    everything = everything[(everything != 0).any(1)]
    assert len(q) == np.count_nonzero(inverse_d(everything, cell) <= 0.9) // 2
    assert len({tuple(h) for h in hkl.tolist()} | {tuple(-h) for h in hkl.astype(int)}) == 2 * len(hkl)


def test_lower_limit_and_merging():
    numbers, positions, cell = structure("quartz")
    q, intensity = powder_lines(numbers, positions, cell, 0.9)
    low, part = powder_lines(numbers, positions, cell, 0.9, q_min=0.4)
    assert low == pytest.approx(q[q >= 0.4]) and part == pytest.approx(intensity[q >= 0.4])
    assert (np.diff(q) > 0).all()
    _, _, f2 = reflections(numbers, positions, cell, 0.9)
    assert intensity.sum() == pytest.approx(2 * f2.sum(), rel=1e-12)


@pytest.mark.parametrize("name", ["quartz", "kyanite", "brucite"])
def test_kernel_equals_the_formula(name):
    numbers, positions, cell = structure(name)
    occupancy = np.linspace(0.5, 1.0, len(numbers))
    hkl, q, f2 = reflections(numbers, positions, cell, 0.8, occupancy=occupancy, b_iso=0.7)
    f = np.array([xray_form_factor(int(z), q**2 / 4) for z in numbers]).T
    wave = f * occupancy * np.exp(-0.7 * q**2 / 4)[:, None] * np.exp(2j * np.pi * hkl @ positions.T)
    assert f2 == pytest.approx(np.abs(wave.sum(1)) ** 2, rel=1e-8, abs=1e-8 * f2.max())


def test_nothing_within_the_limits():
    numbers, positions, cell = structure("CsCl")
    hkl, q, f2 = reflections(numbers, positions, cell, 0.1)
    assert hkl.shape == (0, 3) and q.size == f2.size == 0
    assert [a.size for a in powder_lines(numbers, positions, cell, 0.1)] == [0, 0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(1e-4, 4.0), max_size=200), st.integers(1, 40))
def test_sorting(values, copies):
    from crystaldl.physics.reflections import _ascending

    values = np.repeat(np.array(values, float), copies)
    assert np.array_equal(_ascending(values), np.argsort(values, kind="stable"))


def test_displacement_of_one_element():
    numbers, positions, cell = structure("CsCl")
    _, q, still = reflections(numbers[:1], positions[:1], cell, 0.8)
    _, _, moving = reflections(numbers[:1], positions[:1], cell, 0.8, b_iso=np.array([1.3]))
    assert moving == pytest.approx(still * np.exp(-2 * 1.3 * q**2 / 4), rel=1e-12)


def test_rock_salt():
    q_of = {hkl: inverse_d(hkl, structure("rock salt")[2])[0] for hkl in [(1, 1, 1), (2, 0, 0), (2, 2, 0), (3, 1, 1)]}
    table = f2_of("rock salt", 0.8)
    for hkl, q in q_of.items():
        na, cl = xray_form_factor(11, q * q / 4), xray_form_factor(17, q * q / 4)
        sign = 1 if hkl[0] % 2 == 0 else -1
        assert table[hkl] == pytest.approx(16 * (na + sign * cl) ** 2, rel=1e-9)
    mixed = [v for hkl, v in table.items() if len({h % 2 for h in hkl}) > 1]
    assert len(mixed) > 20 and max(mixed) < 1e-18 * max(table.values())


def test_diamond_forbidden_lines():
    table, cell = f2_of("diamond", 1.2), structure("diamond")[2]
    seen = set()
    for hkl, value in table.items():
        f = xray_form_factor(6, inverse_d(hkl, cell)[0] ** 2 / 4)
        if len({h % 2 for h in hkl}) > 1 or sum(hkl) % 4 == 2:
            expected = 0.0  # 200, 222, 420 … are forbidden
        elif sum(hkl) % 4 == 0:
            expected = 64 * f**2
        else:
            expected = 32 * f**2
        seen.add(round(expected / f**2))
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert seen == {0, 32, 64}


def test_hexagonal_close_packing():
    table, cell = f2_of("magnesium", 0.9), structure("magnesium")[2]
    for (h, k, m), value in table.items():
        f = xray_form_factor(12, inverse_d((h, k, m), cell)[0] ** 2 / 4)
        stacked = (h + 2 * k) % 3 == 0
        expected = {(True, 0): 4, (True, 1): 0, (False, 0): 1, (False, 1): 3}[stacked, m % 2] * f**2
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_friedel():
    """The inverted crystal has the same |F|²; so have opposite reflections."""
    numbers, positions, cell = random_structure(3, number=1)
    _, _, f2 = reflections(numbers, positions, cell, 0.7)
    _, _, inverted = reflections(numbers, -positions, cell, 0.7)
    assert inverted == pytest.approx(f2, rel=1e-9, abs=1e-9 * f2.max())


# ------------------------------------------------------------------------------------------------ invariances

NUMBER = st.sampled_from([1, 2, 14, 62, 88, 148, 194, 205])


@settings(deadline=None, max_examples=25)
@given(NUMBER, st.integers(0, 50), st.tuples(*[st.floats(-2, 2)] * 3))
def test_origin_shift(number, seed, shift):
    numbers, positions, cell = random_structure(seed, number)
    q, intensity = powder_lines(numbers, positions, cell, 0.6)
    q2, moved = powder_lines(numbers, positions + np.array(shift), cell, 0.6)
    assert np.array_equal(q, q2) and moved == pytest.approx(intensity, rel=1e-7, abs=1e-9 * intensity.max())


@settings(deadline=None, max_examples=25)
@given(NUMBER, st.integers(0, 50), st.tuples(*[st.integers(1, 2)] * 3))
def test_supercell(number, seed, times):
    numbers, positions, cell = random_structure(seed, number)
    shifts = np.array(list(product(*(range(n) for n in times))), float)
    big = ((positions[None] + shifts[:, None]) / np.array(times)).reshape(-1, 3)
    big_cell = np.concatenate([cell[:3] * times, cell[3:]])
    q, intensity = powder_lines(numbers, positions, cell, 0.5)
    q2, more = powder_lines(np.tile(numbers, len(shifts)), big, big_cell, 0.5)
    real = more > 1e-9 * more.max()
    kept = intensity > 1e-9 * intensity.max()
    # a reflection on the limit may fall on either side of it
    inside, inside2 = kept & (q < 0.4999), real & (q2 < 0.4999)
    # a line of several reflections stands where the first of them is, be it an extinct one of the larger cell
    assert q2[inside2] == pytest.approx(q[inside], rel=SAME_LINE)
    assert np.mean(np.abs(q2[inside2] / q[inside] - 1) < 1e-9) > 0.9
    assert more[inside2] == pytest.approx(intensity[inside] * len(shifts) ** 2, rel=1e-6, abs=1e-8 * more.max())


@settings(deadline=None, max_examples=20)
@given(NUMBER, st.integers(0, 50), st.randoms(use_true_random=False))
def test_order_of_atoms_and_choice_of_cell(number, seed, random):
    numbers, positions, cell = random_structure(seed, number)
    order = list(range(len(numbers)))
    random.shuffle(order)
    q, intensity = powder_lines(numbers, positions, cell, 0.6)
    _, shuffled = powder_lines(numbers[order], positions[order], cell, 0.6)
    assert shuffled == pytest.approx(intensity, rel=1e-7, abs=1e-9 * intensity.max())
    # axes renamed a, b, c -> b, c, a
    q2, renamed = powder_lines(numbers, positions[:, [1, 2, 0]], cell[[1, 2, 0, 4, 5, 3]], 0.6)
    assert q2 == pytest.approx(q, rel=1e-9) and renamed == pytest.approx(intensity, rel=1e-6, abs=1e-8 * intensity.max())


def test_texture_keeps_the_mean_over_all_directions():
    rng = np.random.default_rng(1)
    cell = np.array([5.0, 5.0, 5.0, 90, 90, 90])
    hkl = rng.normal(size=(200_000, 3))
    q = np.linalg.norm(hkl, axis=1) / 5.0
    for r in (0.5, 1.0, 1.8):
        assert march_dollase(hkl, q, cell, (0, 0, 1), r).mean() == pytest.approx(1.0, abs=0.02)
    numbers, positions, cell = structure("calcite")
    plain = powder_lines(numbers, positions, cell, 0.7)[1]
    same = powder_lines(numbers, positions, cell, 0.7, weight=lambda h, q: march_dollase(h, q, cell, (0, 0, 1), 1.0))[1]
    assert same == pytest.approx(plain)
    along = march_dollase(np.array([[0, 0, 6], [1, 1, 0]]), inverse_d([[0, 0, 6], [1, 1, 0]], cell), cell, (0, 0, 1), 0.6)
    assert along == pytest.approx([0.6**-3, 0.6**1.5])


def test_lorentz_polarisation():
    # Cullity & Stock, appendix: (1 + cos² 2θ) / (sin² θ cos θ) at θ = 10, 30, 45°
    assert lorentz_polarisation([20.0, 60.0, 90.0]) == pytest.approx([63.41, 5.774, 2.828], rel=2e-3)
    assert lorentz_polarisation(90.0, 26.6) == pytest.approx(lorentz_polarisation(90.0))
    assert lorentz_polarisation(20.0, 26.6) < lorentz_polarisation(20.0)


# ------------------------------------------------------------------------------------------------ the peer


def _pymatgen_table(z):
    from pymatgen.analysis.diffraction.xrd import ATOMIC_SCATTERING_PARAMS

    a = np.array(ATOMIC_SCATTERING_PARAMS[gemmi.Element(z).name])
    return np.concatenate([a[:, 0], a[:, 1], [0.0]]), float(z)


def _clusters(two_theta, gap=0.003):
    """Index of the cluster of each line: lines closer than ``gap`` degrees are one to either program."""
    order = np.argsort(two_theta, kind="stable")
    index = np.empty(len(order), int)
    index[order] = np.concatenate([[0], np.cumsum(np.diff(two_theta[order]) > gap)])
    return index


def _compare_with_pymatgen(numbers, positions, cell):
    from pymatgen.analysis.diffraction.xrd import XRDCalculator
    from pymatgen.core import Lattice, Structure

    crystal = Structure(Lattice.from_parameters(*cell), [int(z) for z in numbers], positions)
    peer = XRDCalculator(wavelength=CU).get_pattern(crystal, scaled=False, two_theta_range=(5, 90))
    limits = 2 * np.sin(np.radians([2.5, 45.0])) / CU
    q, intensity = powder_lines(numbers, positions, cell, limits[1], q_min=limits[0], table=_pymatgen_table)
    two_theta = two_theta_from_inverse_d(q, CU)
    observed = intensity * lorentz_polarisation(two_theta)
    both = np.concatenate([two_theta, peer.x])
    index = _clusters(both)
    mine = np.bincount(index[: len(q)], observed, index.max() + 1)
    theirs = np.bincount(index[len(q):], peer.y, index.max() + 1)
    # scaled to 100, as pymatgen does; and on its absolute scale
    assert 100 * mine / mine.max() == pytest.approx(100 * theirs / theirs.max(), abs=0.01)
    assert mine.max() == pytest.approx(theirs.max(), rel=1e-5)
    # centres of the clusters that either would print
    strong = theirs > 1e-4 * theirs.max()
    x_mine = np.bincount(index[: len(q)], observed * two_theta, index.max() + 1)[strong] / mine[strong]
    x_theirs = np.bincount(index[len(q):], peer.y * np.array(peer.x), index.max() + 1)[strong] / theirs[strong]
    assert np.abs(x_mine - x_theirs).max() < 1e-3
    return int(strong.sum())


@pytest.mark.parametrize("name", PUBLISHED)
def test_agrees_with_pymatgen(name):
    """Positions within 0.001°, intensities far within 1 % of the strongest line."""
    pytest.importorskip("pymatgen")
    assert _compare_with_pymatgen(*structure(name)) >= 2


@pytest.mark.parametrize("number", [1, 9, 19, 43, 82, 110, 146, 161, 190, 220])
def test_agrees_with_pymatgen_on_random_crystals(number):
    pytest.importorskip("pymatgen")
    assert _compare_with_pymatgen(*random_structure(number, number)) >= 4


def test_published_structures_cover_the_seven_systems():
    from crystaldl.physics.symmetry import CRYSTAL_SYSTEMS, SYSTEM_OF_GROUP

    systems = {CRYSTAL_SYSTEMS[SYSTEM_OF_GROUP[number - 1]] for _, number, _, _ in PUBLISHED.values()}
    assert systems == set(CRYSTAL_SYSTEMS) and len(PUBLISHED) >= 20
