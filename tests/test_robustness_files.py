"""`crystaldl.save` and `crystaldl.read`: every object comes back as it was, and other programs open the files."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import h5py
import numpy as np
import pytest
from fuzz import objects
from fuzz.objects import STORED

from crystaldl import __version__
from crystaldl.diffuse.volume import DiffuseVolume
from crystaldl.errors import DataError, FileFormatError
from crystaldl.files import read, save
from crystaldl.powder.pattern import PowderPattern
from crystaldl.storage.records import Record, Records


def assert_same(a, b, where="object"):
    """Equal to the last bit, in values and in types."""
    if hasattr(a, "__slots__") and type(a).__name__ in ("PowderPattern", "DiffuseVolume"):
        assert type(a) is type(b), where
        for slot in a.__slots__:
            assert_same(getattr(a, slot), getattr(b, slot), f"{where}.{slot}")
    elif is_dataclass(a):
        assert type(a) is type(b), where
        for field in fields(a):
            x, y = getattr(a, field.name), getattr(b, field.name)
            if field.name == "provenance":  # kept as JSON, which knows no tuples
                x, y = (json.loads(json.dumps(dict(v), default=str)) for v in (x, y))
            assert_same(x, y, f"{where}.{field.name}")
    elif isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray), where
        assert a.shape == b.shape, where
        assert a.dtype == b.dtype, f"{where}: {a.dtype} {b.dtype}"
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), where
    elif isinstance(a, Mapping):
        assert set(a) == set(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (tuple, list)):
        assert type(a) is type(b), where
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, float) and np.isnan(a):
        assert isinstance(b, float), where
        assert np.isnan(b), where
    else:
        assert a == b, f"{where}: {a!r} {b!r}"


def same_node(a, b):
    """Nodes of py4DSTEM."""
    from crystaldl.stem.bragg import table_of

    assert type(a) is type(b)
    if hasattr(a, "_v_uncal"):
        assert_same(table_of(a), table_of(b))
    else:
        assert np.array_equal(np.asarray(a.data), np.asarray(b.data), equal_nan=True)
    if hasattr(a, "details"):
        assert_same(a.details, b.details)
    if hasattr(a, "calibration"):
        assert a.calibration.get_R_pixel_size() == b.calibration.get_R_pixel_size()
        assert a.calibration.get_R_pixel_units() == b.calibration.get_R_pixel_units()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A function name -> path of the saved object."""
    folder, done = tmp_path_factory.mktemp("stored"), {}

    def path(name):
        if name not in done:
            done[name] = save(folder / f"{name}.h5", STORED[name]())
        return done[name]

    return path


@pytest.mark.parametrize("name", STORED)
def test_round_trip(name, stored):
    original, again = STORED[name](), read(stored(name))
    if hasattr(original, "_branch"):
        same_node(original, again)
    else:
        assert_same(original, again)


@pytest.mark.parametrize("name", STORED)
def test_other_programs_open_them(name, stored):
    import emdfile
    import py4DSTEM

    with h5py.File(stored(name), "r") as file:
        assert file.attrs["crystaldl_class"] == type(STORED[name]()).__name__
        assert file.attrs["crystaldl_format"] == 1
        assert file.attrs["crystaldl_version"] == __version__
        assert len(file.attrs["crystaldl_conventions"]) > 30
        assert (file.attrs["version_major"], file.attrs["version_minor"]) == (1, 0)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert emdfile.read(stored(name)) is not None
        assert py4DSTEM.read(str(stored(name))) is not None


def test_units_and_arrays_for_h5py(stored):
    with h5py.File(stored("PowderPattern"), "r") as file:
        node = file["crystaldl/PowderPattern"]
        assert np.array_equal(node["intensity/data"][()], objects.pattern().intensity, equal_nan=True)
        assert node["two_theta/data"].attrs["units"] == "degrees"
        assert node["metadatabundle/record/units/two_theta"][()] == b"degrees"
    with h5py.File(stored("SROFit"), "r") as file:
        assert file["crystaldl/SROFit/distance/data"].attrs["units"] == "Å"
        assert file["crystaldl/SROFit/alpha/data"].shape == objects.sro().alpha.shape
    volume = DiffuseVolume.from_file(stored("SROFit"))  # the data inside a result, on their own
    assert_same(volume, objects.sro().data)


def test_arrays_that_are_read_cannot_be_changed(stored):
    for name in ("SROFit", "Classification", "Probe"):
        for value in vars(read(stored(name))).values():
            if isinstance(value, np.ndarray):
                assert not value.flags.writeable


def test_own_save_methods_and_readers(tmp_path):
    pattern, result, fit = objects.pattern(), objects.classification(), objects.sro()
    assert_same(PowderPattern.from_file(pattern.save(tmp_path / "p.h5")), pattern)
    assert_same(read(result.save(tmp_path / "c.h5")), result)
    assert_same(PowderPattern.from_file(tmp_path / "c.h5"), pattern)  # the pattern of a classification
    assert PowderPattern.from_file(tmp_path / "c.h5", "MoKa").wavelength < 0.72
    assert_same(read(fit.save(str(tmp_path / "f.emd"))), fit)
    assert json.loads(fit.save(tmp_path / "f.json").read_text())["alpha"] == fit.alpha.tolist()
    assert json.loads(result.save(tmp_path / "c.json").read_text())["space_group"] == result.space_group
    for name, made in (("i", objects.interactions()), ("m", objects.comparison())):
        assert_same(read(made.save(tmp_path / f"{name}.h5")), made)
        assert json.loads(made.save(tmp_path / f"{name}.json").read_text())


def test_derived_patterns(tmp_path):
    """What a user may not construct but the library makes: few points, small negative intensities, a background."""
    for pattern in (
        objects.pattern().subtract_background(),
        objects.pattern().crop(20, 21),
        objects.pattern().strip_kalpha2(),
    ):
        assert_same(read(save(tmp_path / "p.h5", pattern)), pattern)


def test_classification_without_search(tmp_path):
    from dataclasses import replace

    plain = replace(objects.classification(), lattices=(), arbiter="", lines=-1, primitive_volume=float("nan"))
    assert_same(read(save(tmp_path / "c.h5", plain)), plain)


def test_file_of_py4dstem(tmp_path):
    import py4DSTEM

    data = np.arange(2 * 3 * 16 * 16, dtype=np.float32).reshape(2, 3, 16, 16)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        py4DSTEM.save(str(tmp_path / "cube.h5"), py4DSTEM.DataCube(data=data), mode="o")
        py4DSTEM.save(str(tmp_path / "probe.h5"), py4DSTEM.Probe(data[0, 0]), mode="o")
    cube = read(tmp_path / "cube.h5")
    assert type(cube).__module__ == "crystaldl.stem.datacube"
    assert np.array_equal(cube.data, data)
    probe = read(tmp_path / "probe.h5")
    assert isinstance(probe, py4DSTEM.Probe)
    assert np.array_equal(read(save(tmp_path / "again.h5", probe)).probe, data[0, 0])


@pytest.mark.parametrize("name", ["DiffuseVolume", "Separation", "StrainMap", "DataCube", "BraggVectors"])
def test_files_from_before_the_class_was_noted(name, stored, tmp_path):
    path = tmp_path / "old.h5"
    path.write_bytes(stored(name).read_bytes())
    with h5py.File(path, "r+") as file:
        for key in [k for k in file.attrs if k.startswith("crystaldl")]:
            del file.attrs[key]
    assert type(read(path)) is type(STORED[name]())


# -- what is refused -----------------------------------------------------------------------------------------------


def altered(stored, tmp_path, name, change):
    path = tmp_path / f"{name}.h5"
    path.write_bytes(stored(name).read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def test_later_format(stored, tmp_path):
    path = altered(stored, tmp_path, "SROFit", lambda f: f.attrs.__setitem__("crystaldl_format", 2))
    with pytest.raises(FileFormatError, match="expected at most 1: a later crystaldl reads it"):
        read(path)


def test_field_of_a_later_version_and_missing_ones(stored, tmp_path):
    def more(file):
        file["crystaldl/SROFit/metadatabundle/record/novelty_"] = 3
        file["crystaldl/SROFit/metadatabundle/record/novelty_"].attrs["type"] = b"number"
        del file["crystaldl/SROFit/metadatabundle/record/serial_"]

    again = read(altered(stored, tmp_path, "SROFit", more))
    assert again.serial == 1.0  # the default
    path = altered(stored, tmp_path, "SROFit", lambda f: f.__delitem__("crystaldl/SROFit/alpha"))
    with pytest.raises(FileFormatError, match=r"SROFit.h5: the SROFit in it lacks alpha"):
        read(path)


@pytest.mark.parametrize("kind", ["system", "os.system", "Popen", "", "DataCube"])
def test_a_file_names_no_code(kind, stored, tmp_path):
    """The class in a file is looked up among those listed and nowhere else."""

    def change(file):
        file["crystaldl/SROFit/groups/metadatabundle/record/class"][...] = kind.encode()

    with pytest.raises(FileFormatError):
        read(altered(stored, tmp_path, "SROFit", change))
    with pytest.raises(FileFormatError):
        read(altered(stored, tmp_path, "SROFit", lambda f: f.attrs.__setitem__("crystaldl_class", kind or "eval")))


@pytest.mark.parametrize("key", ["two_theta", "intensity", "sigma", "radiation", "metadata"])
def test_damaged_pattern(key, stored, tmp_path):
    def change(file):
        node = file["crystaldl/PowderPattern"]
        if "data" in node[key]:
            node[key]["data"][5:] = np.inf
        else:
            del node[key]
            node.create_group(key)

    with pytest.raises(FileFormatError):
        read(altered(stored, tmp_path, "PowderPattern", change))


def test_bad_arguments(tmp_path):
    pattern = objects.pattern()
    for path in ("a.json", "a", "a.xy"):
        with pytest.raises(DataError, match=r"expected one of \.h5, \.hdf5, \.emd"):
            save(tmp_path / path, pattern)
    with pytest.raises(TypeError, match="path is a PowderPattern; .*the path comes first"):
        save(pattern, tmp_path / "a.h5")
    for thing in (3, None, [pattern], np.zeros(3), {"a": pattern}, PowderPattern):
        with pytest.raises(TypeError, match="obj is a .*; expected one of PowderPattern"):
            save(tmp_path / "a.h5", thing)
    with pytest.raises(FileNotFoundError, match="folder .* does not exist"):
        save(tmp_path / "no" / "a.h5", pattern)
    with pytest.raises(IsADirectoryError, match="which is a folder"):
        (tmp_path / "f.h5").mkdir()
        save(tmp_path / "f.h5", pattern)
    for thing in (3, None, pattern):
        with pytest.raises(TypeError, match="path is a"):
            read(thing)
    with pytest.raises(FileNotFoundError, match=r"none\.h5 does not exist"):
        read(tmp_path / "none.h5")
    with pytest.raises(FileFormatError, match="this is a folder"):
        read(tmp_path)
    (tmp_path / "scan.xy").write_text(pattern.save(tmp_path / "q.xy").read_text())
    with pytest.raises(FileFormatError, match="not an HDF5 file"):
        read(tmp_path / "scan.xy")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a"] = 1
    with pytest.raises(FileFormatError, match=r"this HDF5 file holds a; .*DiffuseVolume\.from_file"):
        read(tmp_path / "other.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.h5", "other.h5", "q.xy", "scan.xy"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), r"metadata\.key is a object, which EMD does not hold"),
        ("a\0b", "a character that HDF5 does not hold"),
        ("\ud800", "a character that HDF5 does not hold"),
        (2**70, "more than the 64 bits"),
        (1j, "is a complex"),
        (np.array(["x"]), "is a ndarray"),
        ({3: 4}, "has the key 3; expected keys of text"),
        ([1, object()], r"metadata\.key\.1 is a object"),
    ],
)
def test_what_emd_does_not_hold(value, message, tmp_path):
    p = objects.pattern()
    bad = PowderPattern(p.two_theta, p.intensity, "CuKa", metadata={"key": value})
    path = save(tmp_path / "p.h5", p)
    old = path.read_bytes()
    with pytest.raises(DataError, match=message):
        save(path, bad)
    assert path.read_bytes() == old
    assert [q.name for q in tmp_path.iterdir()] == ["p.h5"]


def test_metadata_of_all_kinds(tmp_path):
    facts = {
        "none": None, "true": True, "n": 3, "x": 1.5, "nan": float("nan"), "inf": float("-inf"), "text": "α\nβ", "empty": "",
        "a/b": 1, "%2F": 2, ".": 3, "..": 4, "metadatabundle": 5, "class": 6, "length": 7, "tuple": (1, 2), "list": ["a", "b"],
        "mixed": [1, "a", None, (2.5,), {"deep": [[], (), {}]}], "arrays": [np.arange(3), np.zeros((2, 0)), np.array(4.0)],
        "bools": (True, False), "flags": np.array([True, False]), "small": np.arange(3, dtype=np.int8), "no": [], "nothing": (),
        "numpy": np.float32(0.5), "dict": {"a": {"b": 1}}, "big": 2**62,
    }  # fmt: skip
    p = objects.pattern()
    again = read(save(tmp_path / "p.h5", PowderPattern(p.two_theta, p.intensity, "CuKa", metadata=facts)))
    assert_same({**facts, "numpy": 0.5}, again.metadata)


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    import emdfile

    path = save(tmp_path / "a.h5", objects.pattern())
    old, write = path.read_bytes(), emdfile.save

    def interrupted(*args, **kwargs):
        write(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(emdfile, "save", interrupted)
    for thing in (objects.classification(), objects.plane(), objects.cube(), objects.bragg(), objects.separation()):
        with pytest.raises(KeyboardInterrupt):
            save(path, thing)
        assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_records_are_what_they_are_made_of():
    with pytest.raises(TypeError, match="int is no dataclass"):
        assert 3 in Records({"int": lambda: Record(int)})
    assert 3 not in Records({"float": lambda: Record(float)})
