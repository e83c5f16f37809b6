import warnings

import numpy as np
import pytest

from crystaldl.errors import PlausibilityWarning, WavelengthError
from crystaldl.physics.wavelengths import LINES, Radiation, known_names, resolve_radiation


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("CuKa", "Cu Kα"),
        ("cu", "Cu Kα"),
        ("Cu Kα", "Cu Kα"),
        ("copper", "Cu Kα"),
        ("CuKalpha", "Cu Kα"),
        ("Cu K\\a", "Cu Kα"),
        ("Cu Ka1,2", "Cu Kα"),
        ("cu-ka1", "Cu Kα1"),
        ("CuKα1", "Cu Kα1"),
        ("Cu Kα₁", "Cu Kα1"),
        ("MOKA", "Mo Kα"),
        ("Mo K-alpha1", "Mo Kα1"),
        ("CoKb", "Co Kβ"),
        ("Fe Kβ", "Fe Kβ"),
    ],
)
def test_names(text, name):
    assert resolve_radiation(text).name == name


def test_every_known_name_resolves():
    for name in known_names():
        radiation = resolve_radiation(name)
        assert radiation.anode == name[:2]
        assert (radiation.alpha2 is not None) == name.endswith("Ka")


def test_published_values():
    """Energies of Bearden and Burr on the Hölzer scale: E = hc/λ within 1 eV of the tables of the X-ray Data Booklet."""
    booklet = {"Cr": 5414.72, "Fe": 6403.84, "Co": 6930.32, "Cu": 8047.78, "Mo": 17479.34, "Ag": 22162.92}
    for anode, energy in booklet.items():
        assert abs(12398.4198 / LINES[anode][0] - energy) < 1.0


def test_doublet():
    radiation = resolve_radiation("CuKa")
    assert radiation.doublet is True
    assert radiation.alpha2_ratio == 0.5
    assert radiation.mean == pytest.approx(1.541871, abs=2e-6)
    single = radiation.as_single()
    assert (single.alpha2, single.alpha2_ratio, single.doublet) == (None, 0.0, False)
    assert single.mean == single.wavelength == radiation.wavelength


@pytest.mark.parametrize("value", [1.5406, 1.54056, 1.5405929, 1.5418, 1.54187, 0.7107, 0.70932, 1.789, 0.5609])
def test_bare_lab_wavelength_leaves_the_doublet_open(value):
    radiation = resolve_radiation(value)
    assert radiation.wavelength == value
    assert radiation.doublet is None
    double = radiation.as_doublet()
    assert double.alpha2 > double.wavelength
    assert double.wavelength == pytest.approx(LINES[double.anode][0], abs=6.1e-4)
    assert radiation.as_single().doublet is False


@pytest.mark.parametrize("value", [0.4137, 1.0, 1.5399, 1.5444, 2.4])
def test_other_wavelengths_are_single(value):
    radiation = resolve_radiation(value)
    assert radiation.doublet is False
    assert radiation.as_doublet() is radiation


def test_text_numbers_and_pairs():
    assert resolve_radiation("1.5406 Å").wavelength == 1.5406
    assert resolve_radiation("1,5406").wavelength == 1.5406
    assert resolve_radiation("0.15406 nm").wavelength == pytest.approx(1.5406)
    assert resolve_radiation(np.float32(0.5)).wavelength == pytest.approx(0.5)
    assert resolve_radiation(np.array(0.5)).wavelength == 0.5
    assert resolve_radiation((1.5444, 1.5406)).alpha2 == 1.5444
    radiation = Radiation("ours", 0.1)
    assert resolve_radiation(radiation) is radiation


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "wavelength is required"),
        (0, "above 0"),
        (-1.5406, "above 0"),
        (float("nan"), "finite"),
        (float("inf"), "finite"),
        ("PbKa", "known are CrKa"),
        ("", "known are"),
        ("CuKa2", "known are"),
        (True, "type bool"),
        ([1.5, 1.6, 1.7], "type list"),
        ((1.5, 1.9), "less than 2 %"),
        ({}, "type dict"),
    ],
)
def test_bad(value, says):
    with pytest.raises(WavelengthError, match=says) as caught:
        resolve_radiation(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "says"),
    [(0.15406, r"nm, did you mean 1.5406 Å \(Cu Kα\)"), (154.06, "pm, did"), (0.02, "outside"), (5.0, "outside")],
)
def test_suspicious(value, says):
    with pytest.warns(PlausibilityWarning, match=says):
        resolve_radiation(value)


def test_usual_values_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in [*known_names(), 0.3, 0.7, 1.5406, 2.99]:
            resolve_radiation(value)
