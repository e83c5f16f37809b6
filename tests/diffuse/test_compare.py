"""Structural models: molecules and their form factors against sums by hand, and the right model found among similar ones."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from crystaldl.diffuse.compare import compare_form_factors
from crystaldl.diffuse.molecular import Molecule, difference_form_factor, is_pair
from crystaldl.diffuse.volume import DiffuseVolume
from crystaldl.errors import DataError, FileFormatError
from crystaldl.physics.scattering import electron_form_factor, neutron_scattering_length, xray_form_factor

LATTICE = (7.5, 7.5, 9.0, 90, 90, 90)
ANGLES = np.arange(6) * np.pi / 3
RING = np.array([[1.39 * np.cos(a), 1.39 * np.sin(a), 0] for a in ANGLES] + [[3.1, 0, 0]])
FLIP = np.diag([-1.0, 1.0, -1.0])


def chloro(z=17, shift=0.0, turn=0.0):
    """Chlorobenzene without hydrogens and its half turn; variations are small."""
    xyz = RING + [0, 0, 0]
    xyz[6, 0] += shift
    c, s = np.cos(turn), np.sin(turn)
    a = Molecule([6] * 6 + [z], xyz, b_iso=1.5)
    return a, a.rotated(FLIP @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]))


def plane(n=96, reach=4.0, **options):
    x = np.linspace(-reach, reach, n)
    return DiffuseVolume(np.ones((n, n)), x, x, 0.0, LATTICE, **options)


def crystal(pair, seed=0, counts=1000, b=0.0, background=0.0, n=96):
    """Poisson counts of a disordered crystal with anisotropic order, a third of the pixels not measured."""
    rng = np.random.default_rng(seed)
    v = plane(n)
    hkl = v.hkl()
    s = np.ones(v.shape)
    for r in ((1, 0, 0), (0, 1, 0), (1, 1, 0), (1, -1, 0)):
        s += 0.2 * rng.uniform(-1, 1) * np.cos(2 * np.pi * hkl @ np.array(r))
    d = difference_form_factor(v, *pair) * np.exp(-2 * b * np.square(v.q() / (4 * np.pi)))
    intensity = d * s
    intensity *= counts / intensity.max()
    q2 = np.square(v.q())
    data = rng.poisson(intensity + background * counts * np.exp(-q2 / q2.max())).astype(float)
    hidden = (rng.random(v.shape) < 0.15) | (np.linalg.norm(hkl, axis=-1) < 0.5) | ((hkl[..., 0] > 1) & (np.abs(hkl[..., 1]) < 0.4))
    return v.replace(data=data, mask=~hidden), d, s


# -- molecules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("radiation", "factor"),
    [
        ("xray", xray_form_factor),
        ("electron", electron_form_factor),
        ("neutron", lambda z, s2: neutron_scattering_length(z) + 0 * s2),
    ],
)
def test_form_factor_by_hand(radiation, factor):
    rng = np.random.default_rng(0)
    elements, xyz, b, occupancy = [6, 8, 17, 6], rng.normal(size=(4, 3)), [1.0, 2.0, 0.5, 1.0], [1, 0.5, 1, 1]
    molecule = Molecule(elements, xyz, b, occupancy)
    q = rng.normal(size=(5, 7, 3)) * 3
    s2 = (q**2).sum(-1) / (16 * np.pi**2)
    atoms = zip(elements, xyz, b, occupancy, strict=True)
    expected = sum(o * factor(z, s2) * np.exp(-bi * s2) * np.exp(1j * (q @ r)) for z, r, bi, o in atoms)
    assert np.allclose(molecule.form_factor(q, radiation), expected, rtol=1e-10)


def test_difference_form_factor():
    v = plane(24, radiation="neutron")
    a, b = chloro()
    d = difference_form_factor(v, a, b, concentration=0.3)
    expected = 0.21 * np.abs(a.form_factor(v.q_vectors(), "neutron") - b.form_factor(v.q_vectors(), "neutron")) ** 2
    assert np.allclose(d, expected) and d.shape == v.shape
    assert np.allclose(difference_form_factor(v, a, None), 0.25 * np.abs(a.form_factor(v.q_vectors(), "neutron")) ** 2)
    # c (1 - c) (Δf)² of two atoms on one place, at Q = 0 the difference of the numbers of electrons
    one = DiffuseVolume(np.ones((2, 2)), [0.0, 1e-9], [0.0, 1e-9], 0.0, LATTICE)
    assert difference_form_factor(one, (["Cu"], [[0, 0, 0]]), (["Au"], [[0, 0, 0]])) == pytest.approx(0.25 * 50**2, rel=5e-3)


def test_molecules_move():
    a, _ = chloro()
    q = np.random.default_rng(1).normal(size=(20, 3))
    shift = np.array([0.3, -0.2, 0.5])
    assert np.allclose(a.translated(shift).form_factor(q), a.form_factor(q) * np.exp(1j * q @ shift))
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    assert np.allclose(a.rotated(turn).form_factor(q @ turn.T), a.form_factor(q))
    vacancy = Molecule.vacancy()
    assert a.formula == "C6 Cl" and vacancy.formula == "vacancy" and vacancy.form_factor(q) == pytest.approx(0)


def test_readers_of_molecules(tmp_path):
    path = tmp_path / "co2.xyz"
    path.write_text("3\ncarbon dioxide\nC 1 0 0\nO 2.16 0 0\n8 -0.16 0 0\n")
    molecule = Molecule.from_xyz(path, b_iso=2.0, centre="mean")
    assert molecule.elements == (6, 8, 8) and molecule.xyz == pytest.approx(np.array([[0, 0, 0], [1.16, 0, 0], [-1.16, 0, 0]]))
    assert (molecule.b_iso == 2).all()
    pymatgen = pytest.importorskip("pymatgen.core")
    theirs = pymatgen.Molecule(["C", "O", "O"], [[1, 0, 0], [2.16, 0, 0], [-0.16, 0, 0]])
    assert Molecule.of(theirs).xyz == pytest.approx(theirs.cart_coords) and Molecule.of(theirs).elements == (6, 8, 8)
    atoms = SimpleNamespace(get_atomic_numbers=lambda: [6, 8], get_positions=lambda: [[0, 0, 0], [1.1, 0, 0]])
    assert Molecule.of(atoms).elements == (6, 8)
    (tmp_path / "bad.xyz").write_text("3\n\nC 1 0\n")
    with pytest.raises(FileFormatError, match="no xyz file"):
        Molecule.from_xyz(tmp_path / "bad.xyz")


CIF = """data_x
_cell_length_a 10
_cell_length_b 8
_cell_length_c 6
_cell_angle_alpha 90
_cell_angle_beta 110
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P -1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
_atom_site_U_iso_or_equiv
_atom_site_disorder_group
C1 C 0.1 0.2 0.3 1 0.02 .
Cl1 Cl 0.2 0.2 0.3 0.6 0.03 1
F1 F 0.2 0.25 0.35 0.4 0.03 2
"""


def test_cif_with_disorder(tmp_path):
    path = tmp_path / "x.cif"
    path.write_text(CIF)
    first, second = Molecule.from_cif(path, disorder_group=1), Molecule.from_cif(path, disorder_group=2)
    assert first.elements == (6, 17) and second.elements == (6, 9) and (first.occupancy == 1).all()
    beta = np.radians(110)
    assert first.xyz[0] == pytest.approx([1 + 1.8 * np.cos(beta), 1.6, 1.8 * np.sin(beta)])
    assert first.b_iso == pytest.approx(8 * np.pi**2 * np.array([0.02, 0.03]))
    assert Molecule.from_cif(path).occupancy == pytest.approx([1, 0.6, 0.4])
    assert Molecule.from_cif(path, labels=["F1"], centre="mean").xyz == pytest.approx(np.zeros((1, 3)))
    with pytest.raises(DataError, match="disorder_group is 3"):
        Molecule.from_cif(path, disorder_group=3)
    with pytest.raises(DataError, match="'Br1'"):
        Molecule.from_cif(path, labels=["Br1"])
    with pytest.raises(FileNotFoundError):
        Molecule.from_cif(tmp_path / "none.cif")
    (tmp_path / "broken.cif").write_text("loop_ _a")
    with pytest.raises(FileFormatError):
        Molecule.from_cif(tmp_path / "broken.cif")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["Xx"], [[0, 0, 0]]), "elements holds 'Xx'"),
        (([6, 120], np.zeros((2, 3))), "elements holds 120"),
        ((["C", "O"], [[0, 0, 0]]), "xyz has the shape"),
        ((["C"], [[0, np.nan, 0]]), "not finite"),
        ((["C"], [[0, 0, 0]], -2.0), "b_iso holds -2"),
        ((["C"], [[0, 0, 0]], [1.0, 2.0]), "b_iso has the shape"),
        ((6, [[0, 0, 0]]), "elements is 6"),
    ],
)
def test_bad_molecules(arguments, message):
    with pytest.raises(DataError, match=message):
        Molecule(*arguments)


def test_pairs_are_recognised():
    a, b = chloro()
    assert is_pair((a, b)) and is_pair((a, None)) and not is_pair((1.0, 2.0)) and not is_pair(np.ones((2, 3))) and not is_pair(a)


# -- comparison ----------------------------------------------------------------------------------------------------------


MODELS = {"Br": chloro(35), "Cl": chloro(17), "Cl moved": chloro(17, 0.08), "Cl turned": chloro(17, 0.0, 0.06)}


@pytest.mark.parametrize("right", list(MODELS))
def test_right_model_ranks_first(right):
    """Four similar pairs, each the truth in turn, in intensity at 300 counts with a third hidden and a background."""
    data, _, _ = crystal(MODELS[right], seed=3, counts=300, b=1.0, background=0.05)
    result = compare_form_factors(data, MODELS, shells=2)
    assert result.best == right and result.margin > 10 and result.probability.sum() == pytest.approx(1)
    at = result.names.index(right)
    assert result.b_iso[at] == pytest.approx(1.0, abs=0.25)
    assert result.chi2[at] / result.freedom == pytest.approx(1.0, abs=0.1)
    assert result.r_factor[at] == min(result.r_factor)


def test_by_the_separated_form_factor():
    """A noisy D with the D of the right model under it; its own uncertainty and size set the likelihood."""
    v = plane()
    d = difference_form_factor(v, *MODELS["Cl moved"])
    noise = 0.02 * d.max() * np.random.default_rng(0).normal(size=v.shape)
    data = v.replace(data=3 * d + noise, sigma=np.full(v.shape, 0.02 * d.max()))
    result = compare_form_factors(data, MODELS, criterion="form_factor")
    assert result.best == "Cl moved" and result.scale[result.names.index("Cl moved")] == pytest.approx(0.75, rel=0.02)
    # D is band-limited: far fewer independent values than pixels
    assert result.n_independent < 0.5 * data.mask.sum()
    assert result.correlation.max() == result.correlation[result.names.index("Cl moved")] > 0.97
    fixed = compare_form_factors(data, MODELS, criterion="form_factor", scale=0.75, b_iso=0.0)
    assert fixed.best == "Cl moved" and (fixed.scale == 0.75).all() and (fixed.b_iso == 0).all()
    wrong = compare_form_factors(data, {"Cl moved": MODELS["Cl moved"]}, criterion="form_factor", scale=0.5)
    assert wrong.r_factor[0] > 2 * result.r_factor.min() and wrong.margin == np.inf


def test_separation_and_its_background():
    """With a separation both criteria work; a wrong background of it does not mislead the one by intensity."""
    data, d, s = crystal(MODELS["Cl"], seed=1, counts=300)
    wrong = 20 * np.exp(-np.square(data.q() / data.q().max()))
    parts = SimpleNamespace(
        measured=data, form_factor=data.replace(data=d * 1.02, mask=None, sigma=0.05 * d + 0.01 * d.max()), background=wrong,
        sro=data.replace(data=s, mask=None), scale=1.0, centring="P", lattice=data.lattice, method="physics",
    )  # fmt: skip
    for criterion in ("auto", "form_factor"):
        result = compare_form_factors(parts, MODELS, criterion=criterion, shells=2)
        assert result.best == "Cl" and np.nanmax(result.correlation) == result.correlation[1] > 0.999
    assert compare_form_factors(parts, MODELS).criterion == "intensity"


def test_rotation_is_found():
    turn = np.array([[np.cos(1.1), -np.sin(1.1), 0], [np.sin(1.1), np.cos(1.1), 0], [0, 0, 1]])
    truth = tuple(m.rotated(turn) for m in MODELS["Cl"])
    data, _, _ = crystal(truth, seed=2, counts=1000, n=72)
    models = {"Cl": MODELS["Cl"]}
    stiff = compare_form_factors(data, models, shells=2)
    free = compare_form_factors(data, models, shells=2, rotate=True)
    assert stiff.r_factor[0] > 3 * free.r_factor[0] and free.chi2[0] / free.freedom < 1.5
    assert "rotation" in free.table().columns


def test_given_form_factors():
    data, d, _ = crystal(MODELS["Cl"], counts=300)
    q2 = np.square(data.q())
    models = {"array": d, "volume": data.replace(data=d, mask=None), "function": lambda hkl: np.exp(-0.01 * q2)}
    result = compare_form_factors(data, models)
    assert result.best in ("array", "volume") and result.bic[0] == pytest.approx(result.bic[1])
    damped = d * np.exp(-2 * result.b_iso[0] * q2 / (16 * np.pi**2))
    assert result.form_factor("array").data == pytest.approx(result.scale[0] * damped)
    with pytest.raises(ValueError, match="expected one of array, volume, function"):
        result.form_factor("x")


def test_comparison_goes_out(tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    data, d, _ = crystal(MODELS["Cl"], counts=300, n=64)
    result = compare_form_factors(data, MODELS, shells=2)
    table = result.table()
    assert table["model"][0] == "Cl" and table["delta_bic"][0] == 0 and list(table["bic"]) == sorted(table["bic"])
    content = json.loads(result.save(tmp_path / "c.json").read_text())
    assert content["best"] == "Cl" and content["names"] == list(MODELS)
    assert "by intensity" in repr(result) and "<b>Cl</b>" in result._repr_html_()
    for shown in (result, compare_form_factors(data.replace(data=d, mask=None), MODELS, criterion="form_factor")):
        figure, axes = shown.show()
        assert len(axes) >= 4
        matplotlib.pyplot.close(figure)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({}, {}, "models is no mapping or empty"),
        ([1], {}, "models is no mapping or empty"),
        ({"a": (chloro()[0],)}, {}, r"models\['a'\] has 1 entries"),
        ({"a": (3, 4)}, {}, r"models\['a'\] is a int"),
        ({"a": np.ones((3, 3))}, {}, "form_factor has the shape"),
        ({"a": np.ones((48, 48))}, {"rotate": True}, "rotate is asked for"),
        (MODELS, {"criterion": "r"}, "criterion is 'r'"),
        (MODELS, {"scale": -1}, "scale is -1"),
        (MODELS, {"b_iso": "big"}, "b_iso is 'big'"),
        (MODELS, {"laue": "7"}, "laue is '7'"),
    ],
)
def test_bad_comparisons(models, options, message):
    with pytest.raises(DataError, match=message):
        compare_form_factors(plane(48), models, **options)
    with pytest.raises(DataError, match="parts is a list"):
        compare_form_factors([1], MODELS)
