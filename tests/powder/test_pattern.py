import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystaldl.errors import DataError, WavelengthError
from crystaldl.powder.axes import d_to_two_theta
from crystaldl.powder.pattern import PowderPattern

X = np.linspace(10, 80, 1401)
Y = 100 + 900 * np.exp(-(((X - 30) / 0.2) ** 2))


def make(**changes):
    return PowderPattern(**{"two_theta": X, "intensity": Y, "wavelength": "CuKa", **changes})


def test_arrays_are_private_read_only_copies():
    x, y = X.copy(), Y.copy()
    pattern = PowderPattern(x, y, 1.5406)
    y[:] = 0
    assert pattern.intensity.max() > 900
    with pytest.raises(ValueError, match="read-only"):
        pattern.intensity[0] = 1
    with pytest.raises(AttributeError, match="cannot be changed"):
        pattern.name = "other"
    with pytest.raises(AttributeError):
        pattern.intensity = Y


def test_units():
    pattern = make()
    assert np.allclose(2 * pattern.d * np.sin(np.radians(X / 2)), pattern.wavelength)
    assert np.allclose(pattern.q, 4 * np.pi * np.sin(np.radians(X / 2)) / pattern.wavelength)
    assert np.allclose(pattern.inverse_d * pattern.d, 1)
    assert pattern.step == pytest.approx(0.05)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.3, 2.5), st.integers(50, 300), st.booleans())
def test_round_trip_of_axes(wavelength, n, backwards):
    x = np.linspace(3, 150, n)
    y = np.arange(n) + 1.0
    pattern = PowderPattern(x, y, wavelength)
    order = slice(None, None, -1) if backwards else slice(None)
    for again in (
        PowderPattern.from_d(pattern.d[order], y[order], wavelength),
        PowderPattern.from_q(pattern.q[order], y[order], wavelength),
    ):
        assert np.allclose(again.two_theta, x)
        assert np.array_equal(again.intensity, y)


def test_decreasing_axis_is_reversed_with_its_data():
    pattern = PowderPattern(X[::-1], Y[::-1], "CuKa", sigma=np.sqrt(Y)[::-1])
    assert np.array_equal(pattern.two_theta, X)
    assert np.array_equal(pattern.intensity, Y)
    assert np.array_equal(pattern.sigma, np.sqrt(Y))


def test_not_measured_stays_so():
    y = Y.copy()
    y[100:120] = np.nan
    for pattern in (make(intensity=y), make(intensity=np.ma.masked_invalid(y))):
        assert pattern.mask.sum() == 20
        assert "20 points" in repr(pattern)
        assert pattern.subtract_background().mask.sum() == 20
        assert pattern.strip_kalpha2().mask.sum() == 20
        assert pattern.to_wavelength("MoKa").mask.sum() == 20
        assert np.isnan(pattern.rebin(0.1).intensity).sum() >= 8
        assert 29.5 < pattern.peaks().position[0] < 30.5


def _set(index, value, base):
    changed = base.astype(object) if isinstance(value, str) else base.copy()
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"intensity": Y[:-1]}, "two_theta has 1401 points but intensity has 1400; both must have the same length."),
        ({"sigma": Y[:-1]}, "sigma has 1400"),
        ({"sigma": -Y}, "sigma holds negative"),
        ({"two_theta": _set(5, X[4], X)}, "two_theta repeats a value at index 5"),
        ({"two_theta": _set(5, 70.0, X)}, "two_theta is not sorted at index 6"),
        ({"two_theta": np.random.default_rng(0).permutation(X)}, "not sorted"),
        ({"two_theta": X - 20}, "between 0 and 180"),
        ({"two_theta": X + 120}, "between 0 and 180"),
        ({"two_theta": _set(3, np.nan, X)}, "not finite"),
        ({"two_theta": X[:49], "intensity": Y[:49]}, "at least 50"),
        ({"two_theta": X * 1j}, "two_theta is complex"),
        ({"two_theta": None}, "two_theta is None"),
        ({"intensity": None}, "intensity is None"),
        ({"intensity": Y.astype(str)}, "expected numbers"),
        ({"intensity": _set(3, "n/a", Y)}, "not numeric"),
        ({"intensity": Y[:, None]}, "2 dimensions"),
        ({"intensity": 7.0}, "0 dimensions"),
        ({"intensity": [[1, 2], [3]]}, "cannot be turned"),
        ({"intensity": np.full(1401, 5.0)}, "constant"),
        ({"intensity": np.full(1401, np.nan)}, "0 measured points"),
        ({"intensity": _set(7, -3.0, Y)}, "negative values"),
        ({"intensity": _set(7, np.inf, Y)}, "infinite"),
        ({"intensity": Y > 500}, "type bool"),
    ],
)
def test_bad_data(changes, says):
    with pytest.raises(DataError) as caught:
        make(**changes)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert message.endswith(".")


def test_wavelength_is_required():
    with pytest.raises(WavelengthError, match="wavelength is required"):
        PowderPattern(X, Y)


def test_negative_intensities_of_subtracted_data():
    assert make(intensity=Y - 110, background_subtracted=True).intensity.min() == pytest.approx(-10)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda p: p.crop(50, 20), "low must be the smaller"),
        (lambda p: p.crop(85, 90), "spans 10 to 80"),
        (lambda p: p.crop("a"), "low is 'a'"),
        (lambda p: p.rebin(0.001), "own step"),
        (lambda p: p.rebin(-1), "own step"),
        (lambda p: p.rebin(np.nan), "finite"),
        (lambda p: p.rebin(0.1, "median"), "'mean' or 'sum'"),
        (lambda p: p.subtract_background("magic"), "arpls"),
        (lambda p: p.subtract_background(width=-2), "width is -2"),
        (lambda p: p.peaks(0), "min_significance"),
        (lambda p: p.peaks(max_peaks=0), "max_peaks"),
        (lambda p: p.show(axis="energy"), "two_theta, q, d"),
        (lambda p: p.show(scale="cubic"), "sqrt"),
        (lambda p: p.save("x.docx"), ".xye"),
        (lambda p: p.save("x.xye"), "no sigma"),
        (lambda p: PowderPattern.from_d([0.5] * 60, Y[:60], 1.5), "above λ/2"),
        (lambda p: PowderPattern.from_q(np.arange(1, 61), Y[:60], 1.5), "4π/λ"),
        (lambda p: PowderPattern.from_q(-X, Y, 1.5), "above 0"),
    ],
)
def test_bad_arguments(call, says):
    with pytest.raises(DataError) as caught:
        call(make())
    assert says in str(caught.value)


def test_crop_and_background_keep_rows_together():
    pattern = make(sigma=np.sqrt(Y)).subtract_background().crop(20, 40)
    assert (pattern.two_theta[0], pattern.two_theta[-1]) == (20, 40)
    assert len(pattern) == pattern.sigma.size == pattern.background.size
    assert pattern.background_subtracted


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 2.0), st.integers(0, 5))
def test_rebin(step, seed):
    rng = np.random.default_rng(seed)
    y = rng.poisson(Y).astype(float)
    pattern = make(intensity=y, sigma=np.sqrt(y + 1))
    total = pattern.rebin(step, "sum")
    assert np.nansum(total.intensity) == pytest.approx(y.sum(), rel=1e-9)
    assert np.allclose(total.two_theta / step, np.round(total.two_theta / step))
    mean = pattern.rebin(step)
    assert y.min() - 1e-9 <= np.nanmin(mean.intensity)
    assert np.nanmax(mean.intensity) <= y.max() + 1e-9
    assert np.nanmedian(mean.sigma) <= np.median(pattern.sigma) * 1.05


def test_rebin_propagates_counting_statistics():
    rng = np.random.default_rng(3)
    y = rng.poisson(400, (200, 1401)).astype(float)
    rebinned = [make(intensity=row, sigma=np.full(1401, 20.0)).rebin(0.25) for row in y]
    scatter = np.std([r.intensity for r in rebinned], axis=0)[3:-3]
    assert np.mean(scatter / rebinned[0].sigma[3:-3]) == pytest.approx(1, abs=0.05)


def test_to_wavelength_keeps_d():
    pattern = make()
    moved = pattern.to_wavelength("MoKa")
    assert np.allclose(moved.d, pattern.d)
    assert moved.radiation.alpha2 / moved.wavelength == pytest.approx(pattern.radiation.alpha2 / pattern.wavelength)
    assert np.allclose(moved.to_wavelength("CuKa").two_theta, X)
    shorter = pattern.to_wavelength(2.9)  # d below 1.45 Å is out of reach
    assert len(shorter) < len(pattern)
    assert shorter.two_theta[-1] < 180
    with pytest.raises(DataError, match="none of the d spacings"), pytest.warns(UserWarning):
        pattern.to_wavelength(25.0)


def test_strip_kalpha2():
    """The doublet of a noiseless line becomes the Kα1 line, at any angle."""
    from crystaldl.physics.wavelengths import resolve_radiation
    from crystaldl.powder.linefit import profile

    x = np.arange(15, 140, 0.01)
    position = np.array([20.0, 60.0, 100.0, 130.0])
    double, single = (
        5 + sum(profile(x, np.array([p]), 0.12, 0.4, resolve_radiation(r))[0] for p in position)
        for r in ("CuKa", "CuKa1")
    )
    pattern = PowderPattern(x, double, "CuKa", sigma=np.sqrt(double))
    stripped = pattern.strip_kalpha2()
    away = np.min(np.abs(x[:, None] - position), axis=1) < 3
    assert np.abs((stripped.intensity - 5 / 1.5) - (single - 5))[away].max() < 0.02 * (single - 5).max()
    assert stripped.radiation.name == "Cu Kα1"
    assert np.all(stripped.sigma >= 0.6 * pattern.sigma)
    assert PowderPattern(x, double, 1.5406).strip_kalpha2().radiation.doublet is False
    with pytest.raises(WavelengthError, match="single line"):
        stripped.strip_kalpha2()


def test_save_and_read(tmp_path):
    y = Y.copy()
    y[5] = np.nan
    for wavelength in ("CuKa", "CuKa1", 1.5406, 0.41):
        pattern = make(intensity=y, wavelength=wavelength, name="a sample", sigma=np.sqrt(Y))
        for ending in ("xy", "xye", "csv"):
            again = PowderPattern.from_file(pattern.save(tmp_path / f"p.{ending}"))
            assert again.radiation.doublet == pattern.radiation.doublet
            assert again.wavelength == pytest.approx(pattern.wavelength)
            assert again.name == "a sample"
            assert np.allclose(again.intensity, pattern.intensity, equal_nan=True)
            assert (again.sigma is None) == (ending == "xy")
    subtracted = make().subtract_background()
    assert PowderPattern.from_file(subtracted.to_xy(tmp_path / "s.xy")).background_subtracted
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv", "p.xy", "p.xye", "s.xy"]


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = make().save(tmp_path / "p.xy")
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        make(intensity=Y + 1).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.xy"]


def test_prints_and_pickles():
    pattern = make(name="<quartz>", metadata={"a": 1})
    assert "1401 points" in repr(pattern)
    assert "Cu Kα" in repr(pattern)
    assert "&lt;quartz&gt;" in pattern._repr_html_()
    again = pickle.loads(pickle.dumps(pattern.subtract_background()))
    assert again.background is not None
    assert again.metadata == {"a": 1}
    assert len(pattern) == 1401


def test_show():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pattern = make(name="quartz")
    for axis in ("two_theta", "q", "d"):
        for scale in ("sqrt", "linear", "log"):
            figure, ax = pattern.show(axis=axis, scale=scale, peaks=True)
            figure.canvas.draw()
            assert ax.figure is figure
            plt.close(figure)
    figure, ax = plt.subplots()
    assert pattern.subtract_background().show(ax)[1] is ax
    assert ax.get_xlabel() == "2θ (°), Cu Kα"
    plt.close(figure)


def test_import_is_light():
    heavy = ("torch", "matplotlib", "pandas", "pybaselines")
    code = f"import sys, crystaldl.powder.pattern; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bragg():
    """Cu Kα1 and the first lines of silicon (NIST SRM 640: a = 5.4312 Å), against the certificate's 2θ."""
    a = 5.43119
    hkl = np.array([(1, 1, 1), (2, 2, 0), (3, 1, 1), (4, 0, 0), (3, 3, 1)])
    d = a / np.sqrt((hkl**2).sum(axis=1))
    assert np.allclose(d_to_two_theta(d[::-1], 1.5405929)[::-1], [28.441, 47.300, 56.119, 69.126, 76.372], atol=0.003)
