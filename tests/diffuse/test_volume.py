"""The volume: geometry against gemmi, masks, immutability, and everything that cannot become one."""

from __future__ import annotations

import pickle

import gemmi
import numpy as np
import pytest

from crystaldl.diffuse.volume import DiffuseVolume
from crystaldl.errors import CrystaldlError, DataError

TRICLINIC = (5.1, 6.3, 7.7, 78.0, 95.0, 112.0)
H, K, L = np.linspace(-2, 2, 9), np.linspace(-1, 3, 7), np.linspace(0, 1, 4)


def volume(**kwargs):
    data = np.random.default_rng(1).normal(size=(9, 7, 4))
    return DiffuseVolume(data, H, K, L, TRICLINIC, **kwargs)


# -- geometry ------------------------------------------------------------------------------------------------------


def test_q_is_that_of_gemmi():
    v = volume()
    cell = gemmi.UnitCell(*TRICLINIC)
    for index in [(0, 0, 0), (3, 5, 1), (8, 6, 3)]:
        h = (H[index[0]], K[index[1]], L[index[2]])
        assert v.hkl()[index] == pytest.approx(h)
        expected = 2 * np.pi * np.linalg.norm(np.array(cell.frac.mat.tolist()).T @ h)
        assert v.q()[index] == pytest.approx(expected, rel=1e-10)
        assert np.linalg.norm(v.q_vectors()[index]) == pytest.approx(expected, rel=1e-10)
    whole = DiffuseVolume(np.ones((3, 3, 3)), [1, 2, 3], [0, 1, 2], [-1, 0, 1], TRICLINIC)
    assert whole.q()[1, 1, 0] == pytest.approx(2 * np.pi / cell.calculate_d([2, 1, -1]), rel=1e-10)


def test_q_vectors_turn_with_the_direct_lattice():
    """Q·a = 2πh and so on, with a along x and b in the xy plane."""
    from crystaldl.physics.lattice import cell_matrix

    v = volume()
    assert v.q_vectors() @ cell_matrix(TRICLINIC).T == pytest.approx(2 * np.pi * v.hkl(), abs=1e-9)


def test_q_metric_measures_steps():
    v = DiffuseVolume.from_basis(
        np.zeros((4, 5)), [np.arange(4.0), np.arange(5.0)], [(1, 1, 0), (0.5, -1, 2)], (0, 0, 0.3), TRICLINIC
    )
    q = v.q_vectors()
    for i, j in [(1, 0), (0, 1), (3, 2)]:
        dx = np.array([i, j])
        assert dx @ v.q_metric() @ dx == pytest.approx(np.sum((q[i, j] - q[0, 0]) ** 2))
    assert v.hkl()[2, 3] == pytest.approx([2 + 1.5, 2 - 3, 6 + 0.3])
    assert v.q() == pytest.approx(np.linalg.norm(q, axis=-1), abs=1e-9)


@pytest.mark.parametrize(
    ("h", "k", "l", "free"), [(H[:9], K, 0.5, (0, 1)), (H, -1, K, (0, 2)), (np.float32(2), H, K, (1, 2))]
)
def test_planes(h, k, l, free):
    v = DiffuseVolume(np.zeros((9, 7)), h, k, l, (5, 5, 8, 90, 90, 120))
    assert v.ndim == 2
    assert np.array_equal(v.basis, np.eye(3)[list(free)])
    fixed = ({0, 1, 2} - set(free)).pop()
    assert v.origin[fixed] == (h, k, l)[fixed]
    assert np.all(v.hkl()[..., fixed] == (h, k, l)[fixed])
    assert np.array_equal(v.hkl()[:, 0, free[0]], H)


def test_pixels():
    v = DiffuseVolume.from_pixels(np.zeros((4, 5)))
    assert v.lattice is None
    assert v.axes[0].tolist() == [-1.5, -0.5, 0.5, 1.5]
    assert v.axes[1].tolist() == [-2, -1, 0, 1, 2]
    off = DiffuseVolume.from_pixels(np.zeros((4, 5)), centre=(1, 3))
    assert off.hkl()[1, 3].tolist() == [0, 0, 0]
    for question in (off.q, off.q_vectors, off.q_metric):
        with pytest.raises(DataError, match="lattice of this plane is not known"):
            question()


def test_axes_become_exactly_uniform():
    """Axes computed by float32 programs are accepted and cleaned."""
    h = (np.arange(101, dtype=np.float32) * np.float32(0.08) - 4).astype(float)
    v = DiffuseVolume(np.zeros((101, 2)), h, [0, 1], 0, (5, 5, 5, 90, 90, 90))
    assert np.ptp(np.diff(v.axes[0])) < 1e-14


# -- masks and uncertainties ---------------------------------------------------------------------------------------


def test_masked_is_nan_and_nan_is_masked():
    data, mask = np.arange(12.0).reshape(3, 4) - 6, np.ones((3, 4), dtype=int)
    data[0, 0], mask[1, 1] = np.nan, 0
    sigma = np.full((3, 4), 2.0)
    sigma[2, 2] = 0
    v = DiffuseVolume(data, [0, 1, 2], [0, 1, 2, 3], 0, TRICLINIC, mask=mask, sigma=sigma)
    assert not v.mask[0, 0]
    assert not v.mask[1, 1]
    assert v.mask.sum() == 10
    assert np.array_equal(np.isnan(v.data), ~v.mask)
    assert np.isnan(v.sigma[~v.mask]).all()
    assert np.isnan(v.sigma[2, 2]), "0 means unknown"
    assert v.data[0, 1] == -5, "negative intensities stay"
    same = DiffuseVolume(np.ma.masked_equal(data, 5), [0, 1, 2], [0, 1, 2, 3], 0, TRICLINIC)
    assert not same.mask[2, 3]


def test_immutable_and_independent():
    data = np.zeros((9, 7, 4))
    v = DiffuseVolume(data, H, K, L, TRICLINIC)
    data[:] = 1
    assert v.data.max() == 0
    for array in (v.data, v.mask, v.basis, v.origin, *v.axes):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(AttributeError, match="cannot be changed"):
        v.name = "x"
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del v._data


def test_replace():
    v = volume(sigma=np.ones((9, 7, 4)), name="a")
    mask = np.ones(v.shape, dtype=bool)
    mask[0] = False
    cut = v.replace(mask=mask, history="cut")
    assert cut.history == ("cut",)
    assert np.isnan(cut.data[0]).all()
    assert v.mask.all(), "the first one is as it was"
    kept = cut.replace(data=np.ones(v.shape))
    assert not kept.mask[0].any(), "new data do not unmask"
    assert kept.history == ("cut", "replace(data)")
    filled = cut.replace(data=np.ones(v.shape), mask=None, sigma=None, name="b")
    assert filled.mask.all()
    assert filled.sigma is None
    assert filled.name == "b"
    assert filled.axes is v.axes
    with pytest.raises(DataError, match="expected \\(9, 7, 4\\)"):
        v.replace(data=np.ones((9, 7)))


def test_pickle_and_printing():
    v = volume(name="a <b>", sigma=np.ones((9, 7, 4)), radiation="neutron").replace(name="a <b>")
    again = pickle.loads(pickle.dumps(v))
    assert np.array_equal(again.data, v.data)
    assert again.lattice == v.lattice
    assert again.history == v.history
    assert not again.data.flags.writeable
    assert "9 × 7 × 4" in repr(v)
    assert "neutron" in repr(v)
    assert "a &lt;b&gt;" in v._repr_html_()
    assert "not known" in repr(DiffuseVolume.from_pixels(np.zeros((3, 3))))


def test_lattice_from_gemmi():
    v = DiffuseVolume(np.zeros((9, 7, 4)), H, K, L, gemmi.UnitCell(*TRICLINIC))
    assert v.lattice == pytest.approx(TRICLINIC)


# -- bad input -----------------------------------------------------------------------------------------------------

GOOD = {"data": np.zeros((9, 7, 4)), "h": H, "k": K, "l": L, "lattice": TRICLINIC}
BENT = H + np.where(np.arange(9) == 4, 0.01, 0)
BAD = {
    "no lattice": ({"lattice": None}, "lattice is None.*from_pixels"),
    "short lattice": ({"lattice": (5, 5, 5)}, r"lattice has the shape \(3,\)"),
    "lattice text": ({"lattice": "cubic"}, "lattice is 'cubic'"),
    "negative lattice": ({"lattice": (-5, 5, 5, 90, 90, 90)}, "positive lengths"),
    "impossible angles": ({"lattice": (5, 5, 5, 30, 30, 150)}, "close no cell"),
    "flat angles": ({"lattice": (5, 5, 5, 90, 90, 180)}, "between 0 and 180"),
    "1-D": ({"data": np.zeros(9)}, r"data has the shape \(9,\).*plane \(2-D\) or a volume"),
    "4-D": ({"data": np.zeros((2, 2, 2, 2))}, "plane"),
    "one layer": ({"data": np.zeros((9, 7, 1))}, "at least 2 points"),
    "transposed": ({"data": np.zeros((4, 7, 9))}, r"h, k, l have 9, 7, 4 points; expected data of the shape \(9, 7, 4\)"),
    "complex": ({"data": np.zeros((9, 7, 4), dtype=complex)}, "data is complex"),
    "text": ({"data": np.full((9, 7, 4), "a")}, "data is of type"),
    "ragged": ({"data": [[1, 2], [3]]}, "data cannot be turned into an array"),
    "none": ({"data": None}, "data is None"),
    "infinite": ({"data": np.full((9, 7, 4), np.inf)}, "infinite"),
    "all NaN": ({"data": np.full((9, 7, 4), np.nan)}, "NaN everywhere"),
    "all masked": ({"mask": np.zeros((9, 7, 4), bool)}, "mask is False everywhere"),
    "mask shape": ({"mask": np.ones((9, 7))}, "mask has the shape"),
    "mask values": ({"mask": np.full((9, 7, 4), 2)}, "other than 0 and 1"),
    "sigma shape": ({"sigma": np.ones(3)}, "sigma has the shape"),
    "sigma negative": ({"sigma": -np.ones((9, 7, 4))}, "negative or infinite"),
    "falling axis": ({"h": H[::-1]}, "h is not increasing at index 1"),
    "repeated axis": ({"k": np.zeros(7)}, "k is not increasing"),
    "uneven axis": ({"h": BENT}, "h is not uniform"),
    "NaN axis": ({"l": [0, 1, np.nan, 3]}, "l holds values that are not finite"),
    "2-D axis": ({"l": np.zeros((2, 2))}, "l has the shape"),
    "one index": ({"l": 0}, "l is a single number but data is 3-D"),
    "plane, three axes": ({"data": np.zeros((9, 7))}, "none of h, k, l is a number"),
    "plane, two numbers": ({"data": np.zeros((9, 7)), "k": 0, "l": 1}, "k and l are numbers"),
    "plane, bad index": ({"data": np.zeros((9, 7)), "l": np.nan}, "l is nan; expected a number"),
    "radiation": ({"radiation": "light"}, "radiation is 'light'; expected one of xray, neutron, electron"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    changes, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        DiffuseVolume(**{**GOOD, **changes})
    assert isinstance(caught.value, (CrystaldlError, ValueError))
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")


FLAT = {"data": np.zeros((3, 4)), "axes": [np.arange(3), np.arange(4)], "basis": np.eye(3)[:2], "origin": np.zeros(3)}
BAD_BASIS = {
    "parallel": ({"basis": [(1, 1, 0), (2, 2, 0)]}, "linearly dependent"),
    "zero": ({"basis": [(0, 0, 0), (0, 1, 0)]}, "zero or linearly dependent"),
    "short": ({"basis": [(1, 0), (0, 1)]}, r"basis has the shape \(2, 2\)"),
    "origin": ({"origin": [0, 0]}, "origin has the shape"),
    "NaN": ({"origin": [0, 0, np.nan]}, "must be finite"),
    "axes": ({"axes": [np.arange(3)]}, "axes has 1 entries; expected 2"),
    "no axes": ({"axes": None}, "axes has no sequence"),
    "length": ({"axes": [np.arange(3), np.arange(3)]}, "expected data of the shape"),
    "lattice": ({"lattice": None}, "lattice is None"),
}


@pytest.mark.parametrize("case", BAD_BASIS)
def test_bad_basis(case):
    changes, message = BAD_BASIS[case]
    with pytest.raises(DataError, match=message):
        DiffuseVolume.from_basis(**{**FLAT, "lattice": TRICLINIC, **changes})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"data": np.zeros((3, 3, 3))}, "from_pixels expects a plane"),
        ({"centre": (1, "x")}, "centre is 'x'"),
        ({"centre": 3}, "centre has no sequence"),
    ],
)
def test_bad_pixels(kwargs, message):
    with pytest.raises(DataError, match=message):
        DiffuseVolume.from_pixels(**{"data": np.zeros((3, 3)), **kwargs})
