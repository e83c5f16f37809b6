"""Hostile calls: every public function and method with arguments that no one should pass, each decided by a seed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from crystaldl.errors import CrystaldlError

from . import objects

#: What the documentation lets through. OSError: paths that cannot be written; MemoryError: arrays of terabytes.
ALLOWED = (CrystaldlError, TypeError, ValueError, OSError, MemoryError)


@dataclass(frozen=True)
class Call:
    """A call that works, and which of its arguments are to be spoilt."""

    run: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    also: tuple[type[BaseException], ...] = ()

    def once(self) -> Any:
        return self.run(**self.arguments())


# -- hostile values ------------------------------------------------------------------------------------------------

_TEXTS = (
    "",
    "x",
    "auto",
    "\0",
    "\ud800",
    "no/such/folder",
    "nan",
    "1e400",
    "a" * 10_000,
    "-",
    "{}",
    "h0k",
    "4/m m m",
    "é",
)
_NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    7,
    2**31,
    2**63,
    -(2**70),
    10**400,
    0.0,
    -0.0,
    0.5,
    1e-320,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    1j,
    True,
    False,
    np.int8(-1),
    np.float32(np.nan),
    np.uint64(2**64 - 1),
    np.bool_(True),
)


_SHAPES = (
    (),
    (0,),
    (1,),
    (3,),
    (6,),
    (60,),
    (0, 5),
    (5, 0),
    (3, 3),
    (8, 9),
    (20, 20),
    (4, 5, 6),
    (2, 2, 16, 16),
    (1,) * 6,
)
_TYPES = ("<f4", ">f4", ">f8", "f2", "i1", ">i2", "u1", ">u4", "i8", "?", "c8", "O", "U5", "S3", "M8[s]")


class Strange:
    """An object that answers little."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no array")

    def __repr__(self):
        return "<Strange>"


@cache
def _mapped() -> np.ndarray:
    path = Path(tempfile.mkdtemp()) / "values.npy"
    np.save(path, np.linspace(1, 2, 60))
    return np.load(path, mmap_mode="r")


def anything(rng: np.random.Generator) -> Any:
    """A value of any type."""
    kind = int(rng.integers(9))
    if kind <= 1:
        return _NUMBERS[rng.integers(len(_NUMBERS))]
    if kind == 2:
        return _TEXTS[rng.integers(len(_TEXTS))]
    if kind == 3:
        return (
            None,
            (),
            [],
            {},
            set(),
            b"bytes",
            object(),
            Strange(),
            len,
            int,
            range(3),
            slice(None),
            Ellipsis,
            iter([1, 2]),
            Path("nowhere"),
            [[1], [1, 2]],
            [None],
            ["a", 1],
            {"a": 1},
            (1, 2),
            [1.0, 2.0, 3.0],
            [[0.0, 1.0], [1.0, 0.0]],
        )[rng.integers(22)]
    if kind == 4:  # enormous, and takes no memory
        return np.broadcast_to(
            np.float32(1), ((2**36,), (2**20, 2**20), (2**14, 2**14, 2**14), (2**12,) * 4)[rng.integers(4)]
        )
    return spoilt(np.asarray(rng.normal(size=_SHAPES[rng.integers(len(_SHAPES))])), rng)


def spoilt(array: np.ndarray, rng: np.random.Generator) -> Any:
    """An array of another type, order, shape or content, or nearly an array."""
    kind = int(rng.integers(18))
    out = np.array(array)
    if kind == 0:
        with np.errstate(all="ignore"):
            return out.astype(_TYPES[rng.integers(len(_TYPES))])
    if kind == 1:
        return (
            np.asfortranarray(out) if rng.random() < 0.5 else np.repeat(out, 2, axis=-1)[..., ::2] if out.ndim else out
        )
    if kind == 2:
        out.setflags(write=False)
        return out
    if kind == 3:
        return _mapped()
    if kind == 4:
        return np.ma.masked_array(out, mask=rng.random(out.shape) < 0.5)
    if kind == 5:
        return out[..., None] if rng.random() < 0.5 else out[None]
    if kind == 6:
        return out[:-1] if out.ndim else out
    if kind == 7:
        return out.T[::-1] if out.ndim else out
    if kind == 8:
        return out.ravel()[:0]
    if kind == 9:
        return out.tolist()
    if kind == 10:
        import torch

        return torch.as_tensor(np.nan_to_num(np.asarray(out, dtype=float)))
    if kind == 11:
        return np.array([(1.0, 2)] * 4, dtype=[("a", "f8"), ("b", "i4")])
    if out.dtype.kind not in "iuf":
        return out
    out = out.astype(float)
    if kind == 12:
        out[rng.random(out.shape) < rng.choice([0.01, 0.5, 1.0])] = rng.choice(
            [np.nan, np.inf, -np.inf, 1e308, -1e308, 1e-320]
        )
        return out
    values = {13: np.nan, 14: 0.0, 15: -1.0, 16: 1e300}
    return np.full(out.shape, values[kind]) if kind in values else -out


def near(value: Any, rng: np.random.Generator) -> Any:
    """Something that is almost what a working call has."""
    if isinstance(value, np.ndarray):
        return spoilt(value, rng)
    if isinstance(value, bool) or value is None:
        return anything(rng)
    if isinstance(value, (int, float)):
        scaled = (
            -value,
            value * 1e6,
            value * 1e-6,
            value + 0.5,
            str(value),
            [value],
            np.array(value),
            np.array([value]),
            complex(value),
        )
        return scaled[rng.integers(len(scaled))]
    if isinstance(value, str):
        changed = (
            value.upper(),
            value[:-1],
            value + "x",
            value.encode(),
            [value],
            value * 1000,
            f" {value}\n",
            np.str_(value),
        )
        return changed[rng.integers(len(changed))]
    if isinstance(value, (tuple, list)) and value:
        i = int(rng.integers(len(value)))
        changed = (
            list(value)[:-1],
            [*value, value[0]],
            [*value[:i], anything(rng), *value[i + 1 :]],
            np.array(value, dtype=object),
            tuple(reversed(value)),
        )
        return changed[rng.integers(len(changed))]
    if isinstance(value, dict) and value:
        key = list(value)[rng.integers(len(value))]
        return {**value, key: anything(rng)} if rng.random() < 0.7 else {**value, 3: value[key]}
    return anything(rng)


def hostile(call: Call, seed: int) -> Callable[[], Any]:
    """A call with one to three of its arguments spoilt."""
    rng = np.random.default_rng(seed)
    given = call.arguments()
    for name in rng.choice(list(given), min(len(given), int(rng.choice([1, 1, 1, 2, 3]))), replace=False):
        given[name] = near(given[name], rng) if rng.random() < 0.5 else anything(rng)
    if rng.random() < 0.02:
        given["no_such_argument"] = 1
    return lambda: call.run(**given)


# -- calls ---------------------------------------------------------------------------------------------------------


def _x() -> np.ndarray:
    return np.arange(10, 50, 0.05)


def _y() -> np.ndarray:
    return np.random.default_rng(0).poisson(100 + 900 * np.exp(-(((_x() - 30) / 0.1) ** 2))).astype(float)


@cache
def _out() -> Path:
    return Path(tempfile.mkdtemp())


def _shown(method):
    """A method that draws, with its figure closed."""

    def run(**kwargs):
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt

        try:
            return method(**kwargs)
        finally:
            plt.close("all")

    return run


def _public(name: str) -> Callable[..., Any]:
    def run(**kwargs):
        import crystaldl

        return getattr(crystaldl, name)(**kwargs)

    return run


def _powder() -> dict[str, Call]:
    pattern, result = objects.pattern, objects.classification

    def cls():
        from crystaldl.powder.pattern import PowderPattern

        return PowderPattern

    return {
        "PowderPattern": Call(
            _public("PowderPattern"),
            lambda: {
                "two_theta": _x(),
                "intensity": _y(),
                "wavelength": 1.5406,
                "name": "a",
                "sigma": np.sqrt(_y()),
                "metadata": {"a": 1},
                "background_subtracted": False,
            },
        ),
        "PowderPattern.from_d": Call(
            lambda **k: cls().from_d(**k), lambda: {"d": 40 / _x(), "intensity": _y(), "wavelength": "CuKa"}
        ),
        "PowderPattern.from_q": Call(
            lambda **k: cls().from_q(**k), lambda: {"q": _x() / 10, "intensity": _y(), "wavelength": 1.5406}
        ),
        "PowderPattern.from_file": Call(
            lambda **k: cls().from_file(**k), lambda: {"path": _saved("xy"), "wavelength": "CuKa"}
        ),
        "PowderPattern.crop": Call(lambda **k: pattern().crop(**k), lambda: {"low": 20.0, "high": 60.0}),
        "PowderPattern.rebin": Call(lambda **k: pattern().rebin(**k), lambda: {"step": 0.1, "how": "mean"}),
        "PowderPattern.to_wavelength": Call(lambda **k: pattern().to_wavelength(**k), lambda: {"wavelength": "MoKa"}),
        "PowderPattern.subtract_background": Call(
            lambda **k: pattern().crop(20, 40).subtract_background(**k), lambda: {"method": "snip", "width": 1.0}
        ),
        "PowderPattern.peaks": Call(
            lambda **k: pattern().crop(20, 40).peaks(**k), lambda: {"min_significance": 5.0, "max_peaks": 10}
        ),
        "PowderPattern.classify": Call(
            lambda **k: pattern().crop(15, 60).classify(**k),
            lambda: {"method": "indexing", "device": "cpu", "model": None, "recognise": True},
        ),
        "PowderPattern.show": Call(
            _shown(lambda **k: pattern().show(**k)), lambda: {"ax": None, "axis": "q", "scale": "log", "peaks": None}
        ),
        "PowderPattern.save": Call(lambda **k: pattern().save(**k), lambda: {"path": _out() / "a.xy"}),
        "classify_patterns": Call(
            _public("classify_patterns"),
            lambda: {
                "patterns": [pattern().crop(15, 60)],
                "method": "indexing",
                "device": "cpu",
                "batch_size": 4,
                "recognise": True,
                "progress": False,
            },
        ),
        "Classification.top": Call(lambda **k: result().top(**k), lambda: {"n": 5}),
        "Classification.show": Call(_shown(lambda **k: result().show(**k)), lambda: {"n": 5}),
        "Classification.save": Call(lambda **k: result().save(**k), lambda: {"path": _out() / "a.json"}),
    }


@cache
def _saved(kind: str) -> Path:
    if kind == "xy":
        return objects.pattern().save(_out() / "given.xy")
    if kind == "volume":
        return objects.volume().save(_out() / "given.h5")
    return objects.cube().save(_out() / "given_cube.h5")


@cache
def _little() -> Any:
    """A plane so small that a separation takes no time."""
    from crystaldl.diffuse.volume import DiffuseVolume

    plane = objects.plane()
    keep = slice(15, 46)
    x = plane.axes[0][keep]
    return DiffuseVolume(plane.data[keep, keep], x, x, 0.0, objects.CELL, sigma=plane.sigma[keep, keep])


def _diffuse() -> dict[str, Call]:
    volume, little, parts = objects.volume, _little, objects.separation

    def cls():
        from crystaldl.diffuse.volume import DiffuseVolume

        return DiffuseVolume

    axis = np.linspace(-1, 1, 9)
    data = np.random.default_rng(0).random((9, 9))
    a, b = objects.molecules()
    return {
        "DiffuseVolume": Call(
            _public("DiffuseVolume"),
            lambda: {
                "data": data,
                "h": axis,
                "k": axis,
                "l": 0.5,
                "lattice": objects.CELL,
                "mask": data > 0.1,
                "sigma": data + 1,
                "radiation": "xray",
                "name": "a",
            },
        ),
        "DiffuseVolume.from_basis": Call(
            lambda **k: cls().from_basis(**k),
            lambda: {
                "data": data,
                "axes": (axis, axis),
                "basis": np.eye(3)[:2],
                "origin": np.zeros(3),
                "lattice": objects.CELL,
            },
        ),
        "DiffuseVolume.from_pixels": Call(
            lambda **k: cls().from_pixels(**k),
            lambda: {"data": data, "mask": data > 0.1, "sigma": data, "centre": (4, 4)},
        ),
        "DiffuseVolume.from_file": Call(
            lambda **k: cls().from_file(**k),
            lambda: {
                "path": _saved("volume"),
                "lattice": objects.CELL,
                "radiation": "xray",
                "missing": 0.0,
                "dataset": None,
                "axes": None,
            },
        ),
        "DiffuseVolume.replace": Call(
            lambda **k: little().replace(**k),
            lambda: {"data": np.ones((31, 31)), "mask": np.ones((31, 31), bool), "name": "b"},
        ),
        "DiffuseVolume.symmetrize": Call(
            lambda **k: volume().symmetrize(**k), lambda: {"laue": "4/mmm", "outlier_sigma": 4.0}
        ),
        "DiffuseVolume.punch_bragg": Call(
            lambda **k: volume().punch_bragg(**k),
            lambda: {"radius": 0.1, "centring": "P", "units": "rlu", "extra": [[0.5, 0, 0]]},
        ),
        "DiffuseVolume.subtract_background": Call(
            lambda **k: volume().subtract_background(**k), lambda: {"background": np.ones((13, 13, 9)), "scale": 1.0}
        ),
        "DiffuseVolume.rebin": Call(lambda **k: volume().rebin(**k), lambda: {"factors": (2, 2, 1)}),
        "DiffuseVolume.plane": Call(lambda **k: volume().plane(**k), lambda: {"name": "hk0.5"}),
        "DiffuseVolume.plane by normal": Call(
            lambda **k: volume().plane(**k), lambda: {"normal": (1, 1, 0), "offset": 0.2, "thickness": 0.1}
        ),
        "DiffuseVolume.delta_pdf": Call(lambda **k: little().delta_pdf(**k), lambda: {"window": "gaussian"}),
        "DiffuseVolume.separate": Call(
            lambda **k: little().separate(**k),
            lambda: {"method": "physics", "model": None, "device": "cpu", "progress": False},
        ),
        "DiffuseVolume.show": Call(_shown(lambda **k: little().show(**k)), lambda: {"ax": None}),
        "DiffuseVolume.save": Call(lambda **k: little().save(**k), lambda: {"path": _out() / "a.h5", "format": "yell"}),
        "refine_sro": Call(
            _public("refine_sro"),
            lambda: {
                "data": little(),
                "shells": 2,
                "laue": "-1",
                "form_factor": np.ones((31, 31)),
                "background": "auto",
                "centring": "P",
                "robust": True,
                "size_effect": False,
            },
        ),
        "refine_sro of vectors": Call(
            _public("refine_sro"), lambda: {"data": parts(), "vectors": [[1, 0, 0], [1, 1, 0]], "laue": None}
        ),
        "refine_interactions": Call(
            _public("refine_interactions"), lambda: {"data": objects.sro(), "shells": 2, "vectors": None, "on": "alpha"}
        ),
        "compare_form_factors": Call(
            _public("compare_form_factors"),
            lambda: {
                "parts": parts(),
                "models": {"a": (a, b)},
                "scale": "free",
                "b_iso": "free",
                "criterion": "auto",
                "shells": 2,
            },
        ),
        "Separation.show": Call(_shown(lambda **k: parts().show(**k)), lambda: {"figsize": (6, 4)}),
        "Separation.save": Call(lambda **k: parts().save(**k), lambda: {"path": _out() / "s.h5"}),
        "SROFit.save": Call(lambda **k: objects.sro().save(**k), lambda: {"path": _out() / "f.json"}),
        "SROFit.to_csv": Call(lambda **k: objects.sro().to_csv(**k), lambda: {"path": _out() / "f.csv"}),
        "FormFactorComparison.form_factor": Call(
            lambda **k: objects.comparison().form_factor(**k), lambda: {"name": "turned"}
        ),
        "Molecule": Call(
            _public("Molecule"),
            lambda: {"elements": ["C", "O"], "xyz": np.array([[0, 0, 0], [1.2, 0, 0]]), "b_iso": 1.0},
        ),
        "Molecule.rotated": Call(lambda **k: a.rotated(**k), lambda: {"matrix": np.eye(3)}),
        "Molecule.translated": Call(lambda **k: a.translated(**k), lambda: {"shift": (0.1, 0.2, 0.3)}),
        "Molecule.form_factor": Call(
            lambda **k: a.form_factor(**k), lambda: {"q": np.ones((5, 3)), "radiation": "xray"}
        ),
        "Site": Call(
            _public("Site"), lambda: {"position": (0, 0, 0), "molecule_a": a, "molecule_b": b, "concentration": 0.5}
        ),
    }


def _stem() -> dict[str, Call]:
    cube = objects.cube

    def cls():
        from crystaldl.stem.datacube import DataCube

        return DataCube

    def options(**kwargs):
        from crystaldl.stem.options import DiskOptions

        return DiskOptions(**kwargs)

    def probe(**kwargs):
        from crystaldl.stem.probe import Probe

        return Probe.from_array(**kwargs)

    return {
        "DataCube": Call(
            _public("DataCube"), lambda: {"data": np.ones((2, 2, 16, 16), np.uint16), "name": "a", "slicelabels": None}
        ),
        "DataCube.from_file": Call(
            lambda **k: cls().from_file(**k),
            lambda: {"path": _saved("cube"), "mem": "RAM", "dataset": None, "raw": None},
            also=(ImportError,),  # a format whose reader is not installed
        ),
        "DataCube.upgrade": Call(lambda **k: cls().upgrade(**k), lambda: {"cube": cube()}),
        "DataCube.save": Call(lambda **k: cube().save(**k), lambda: {"path": _out() / "c.h5"}),
        "DataCube.find_bragg_disks": Call(
            lambda **k: cube().find_bragg_disks(**k),
            lambda: {
                "method": "correlation",
                "probe": objects.probe_image(),
                "data": (0, 1),
                "model": None,
                "device": "cpu",
                "options": options(max_disks=20),
                "progress": False,
                "out": None,
                "client": None,
            },
        ),
        "DataCube.show_disks": Call(
            _shown(lambda **k: cube().show_disks(**k)),
            lambda: {"rx": 1, "ry": 1, "probe": objects.probe_image(), "method": "correlation"},
        ),
        "DiskOptions": Call(
            options,
            lambda: {
                "min_spacing": 8.0,
                "max_disks": 10,
                "edge_boundary": 2.0,
                "min_relative_intensity": 0.1,
                "correlation_power": 1.0,
                "trench": (0.0, 2.0),
                "subpixel": "none",
                "upsample": 4,
                "degree": 1,
                "min_significance": 3.0,
                "min_confidence": 0.5,
            },
        ),
        "StrainOptions": Call(
            _public("StrainOptions"),
            lambda: {
                "origin": "lattice",
                "measure": "polar",
                "coordinate_rotation": 10.0,
                "min_disks": 5,
                "min_share": 0.4,
                "min_confidence": 0.1,
                "tolerance": 0.2,
                "max_change": 0.2,
                "max_order": 3,
            },
        ),
        "fit_strain": Call(
            _public("fit_strain"),
            lambda: {
                "bragg": objects.bragg(),
                "reference": "median",
                "basis": ((16.0, 0.0), (0.0, 15.0)),
                "robust": True,
                "mask": np.ones((3, 4), bool),
                "options": None,
            },
        ),
        "table_of": Call(_public("table_of"), lambda: {"bragg": objects.bragg()}),
        "Probe.from_array": Call(probe, lambda: {"image": objects.probe_image(), "source": "array"}),
    }


def _common() -> dict[str, Call]:
    from crystaldl import examples, files
    from crystaldl.models import registry

    return {
        "save": Call(files.save, lambda: {"path": _out() / "o.h5", "obj": objects.pattern()}),
        "read": Call(files.read, lambda: {"path": _saved("volume")}),
        "load_example": Call(_public("load_example"), lambda: {"name": "powder/quartz"}),
        "example_facts": Call(examples.example_facts, lambda: {"name": "powder/quartz"}),
        "models.card": Call(registry.card, lambda: {"name": registry.available()[0]}),
        "models.load_weights": Call(registry.load_weights, lambda: {"name": registry.available()[-1]}),
        "models.available": Call(registry.available, lambda: {"task": "powder"}),
    }


CALLS: dict[str, Call] = {**_powder(), **_diffuse(), **_stem(), **_common()}
