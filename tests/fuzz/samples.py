"""A small whole file of every format that is read, and the function that reads it."""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import h5py
import numpy as np

from . import objects

X = np.round(np.arange(60) * 0.05 + 20, 6)
Y = np.round(50 + 1000 * np.exp(-(((X - 21) / 0.2) ** 2)))
CELL = (5.0, 6.0, 7.0, 80.0, 95.0, 110.0)
H, K, L = np.linspace(-2, 2, 5), np.linspace(-1.5, 1.5, 7), np.linspace(0, 3, 4)
DATA = np.random.default_rng(0).normal(5, 2, (5, 7, 4)).astype(np.float32)
SHARED = Path(os.environ.get("CRYSTALDL_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


@dataclass(frozen=True)
class Sample:
    """A format: ending of its files, content of a whole one, and what reads it."""

    suffix: str
    make: Callable[[], bytes]
    read: Callable[[Path], object]


def _table(separator=" ", decimal=".", columns=(X, Y), head="", tail="") -> bytes:
    rows = [separator.join(f"{v:.6g}".replace(".", decimal) for v in row) for row in zip(*columns, strict=True)]
    return (head + "\n".join(rows) + "\n" + tail).encode()


def _floats(values) -> bytes:
    return np.asarray(values, "<f4").tobytes()


# -- powder --------------------------------------------------------------------------------------------------------


def _ras() -> bytes:
    head = (
        '*RAS_DATA_START\n*RAS_HEADER_START\n*FILE_SAMPLE "quartz"\n*HW_XG_TARGET_NAME "Cu"\n'
        '*HW_XG_WAVE_LENGTH_ALPHA1 "1.540593"\n*HW_XG_WAVE_LENGTH_ALPHA2 "1.544414"\n*RAS_HEADER_END\n*RAS_INT_START\n'
    )
    return _table(columns=(X, Y, np.ones(60)), head=head, tail="*RAS_INT_END\n*RAS_DATA_END\n")


def _gsas(kind: str) -> bytes:
    if kind == "FXYE":
        rows = [f"{x * 100:12.3f} {y:10.3f} {np.sqrt(y):10.4f}" for x, y in zip(X, Y, strict=True)]
    else:
        cells = "".join(f"{1:2d}{y:6.0f}" if kind == "STD" else f"{y:8.1f}{np.sqrt(y):8.3f}" for y in Y)
        rows = [cells[i : i + 80] for i in range(0, len(cells), 80)]
    body = "\n".join(rows)
    return f"{'quartz':80}\nBANK 1 60 {len(rows)} CONS 2000.0 5.0 0 0 {kind}\n{body}\n".encode()


def _xrdml() -> bytes:
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<xrdMeasurements xmlns="http://www.xrdml.com/XRDMeasurement/1.5" status="Completed">
 <sample type="To be analyzed"><id>quartz</id></sample><xrdMeasurement measurementType="Scan" status="Completed">
  <usedWavelength intended="K-Alpha 1"><kAlpha1 unit="Angstrom">1.5405980</kAlpha1>
   <kAlpha2 unit="Angstrom">1.5444260</kAlpha2><ratioKAlpha2KAlpha1>0.5</ratioKAlpha2KAlpha1></usedWavelength>
  <scan appendNumber="0" scanAxis="Gonio" status="Completed"><dataPoints><positions axis="2Theta" unit="deg">
   <startPosition>20.0</startPosition><endPosition>22.95</endPosition></positions>
   <beamAttenuationFactors>{"2 " * 60}</beamAttenuationFactors><counts>{" ".join(map(str, Y))}</counts></dataPoints></scan>
 </xrdMeasurement></xrdMeasurements>""".encode()


def _archive(members: dict[str, str | bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return stream.getvalue()


def _rasx() -> bytes:
    conditions = """<?xml version="1.0" encoding="utf-8"?><Measurement><HWConfigurations><XrayGenerator>
      <TargetName>Cu</TargetName><WavelengthKalpha1>1.540593</WavelengthKalpha1></XrayGenerator></HWConfigurations>
      <ScanInformation><AxisName>TwoThetaTheta</AxisName></ScanInformation></Measurement>"""
    profile = _table("\t", columns=(X, Y / 2, np.full(60, 2.0)), head="\ufeff")
    return _archive(
        {"Data0/Profile0.txt": profile, "Data0/MesurementConditions0.xml": conditions, "root.xml": "<root/>"}
    )


def _brml() -> bytes:
    rows = "".join(f"<Datum>1,1,{x},{x / 2},{y}</Datum>" for x, y in zip(X, Y, strict=True))
    raw = f"""<?xml version="1.0" encoding="utf-8"?>
<RawData xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><FixedInformation><Tube><TubeMaterial>Cu</TubeMaterial>
  <WaveLengthAlpha1 Unit="A" Value="1.5406"/></Tube></FixedInformation><DataRoutes><DataRoute RouteFlag="Final">
 <ScanInformation ScanName="Locked Coupled"><ScanAxes><ScanAxisInfo AxisId="TwoTheta" AxisName="TwoTheta">
  <Reference>0</Reference><Start>20</Start><Stop>22.95</Stop><Increment>0.05</Increment></ScanAxisInfo></ScanAxes></ScanInformation>
 <DataViews><RawDataView Start="4" Length="1" xsi:type="RecordedRawDataView"><Recording LogicName="Counter0D"/></RawDataView>
 </DataViews>{rows}</DataRoute></DataRoutes></RawData>"""
    return _archive({"Experiment0/RawData0.xml": raw, "Experiment0/DataContainer.xml": "<DataContainer/>"})


def _raw(version: int) -> bytes:
    if version == 1:
        head = bytearray(156)
        head[:4], head[40:46] = b"RAW ", b"quartz"
        struct.pack_into("<Iff", head, 4, 60, 1.0, 0.05)
        struct.pack_into("<f", head, 24, 20.0)
        struct.pack_into("<ff", head, 72, 1.54056, 1.54439)
        return bytes(head) + _floats(Y)
    if version == 2:
        head, block = bytearray(256), bytearray(48)
        head[:4], head[188:190] = b"RAW2", b"Cu"
        struct.pack_into("<H", head, 4, 1)
        struct.pack_into("<ff", head, 190, 1.54056, 1.54439)
        struct.pack_into("<HH", block, 0, 48, 60)
        struct.pack_into("<ff", block, 12, 0.05, 20.0)
        return bytes(head + block) + _floats(Y)
    if version == 3:
        head, block = bytearray(712), bytearray(304)
        head[:8], head[608:610] = b"RAW1.01\0", b"Cu"
        struct.pack_into("<I", head, 12, 1)
        struct.pack_into("<ddd", head, 616, 1.5418, 1.54056, 1.54439)
        struct.pack_into("<d", head, 648, 0.5)
        struct.pack_into("<II", block, 0, 304, 60)
        struct.pack_into("<d", block, 16, 20.0)
        struct.pack_into("<d", block, 176, 0.05)
        return bytes(head + block) + _floats(Y)
    head, sample, tube, block = bytearray(61), bytearray(64), bytearray(128), bytearray(160)
    head[:8] = b"RAW4.00\0"
    struct.pack_into("<II", sample, 0, 10, 64)
    sample[12:20], sample[36:42] = b"SAMPLEID", b"quartz"
    struct.pack_into("<II", tube, 0, 30, 128)
    struct.pack_into("<ddd", tube, 72, 1.5418, 1.54056, 1.54439)
    struct.pack_into("<d", tube, 104, 0.5)
    tube[116:118] = b"Cu"
    struct.pack_into("<II", block, 0, 0, 60)
    struct.pack_into("<dd", block, 72, 20.0, 0.05)
    struct.pack_into("<II", block, 136, 4, 0)
    return bytes(head + sample + tube + block) + _floats(Y)


def _stoe() -> bytes:
    head = bytearray(1024)
    head[:14] = b"RAW_1.06Powdat"
    struct.pack_into("<HH", head, 0x1DA, 0, 2)
    struct.pack_into("<ff", head, 0x142, 1.54056, 1.54439)
    struct.pack_into("<H", head, 1024 - 0x1DE, 60)
    for place, value in ((0x1D4, 20.0), (0x1CC, 22.95), (0x1C4, 0.05)):
        struct.pack_into("<f", head, 1024 - place, value)
    return bytes(head) + Y.astype("<u4").tobytes()


def _cif() -> bytes:
    values = "\n".join(f"{y:.0f}(7)" for y in Y)
    return (
        "data_quartz\n_diffrn_radiation_wavelength 0.6889\n_pd_meas_2theta_range_min 20\n_pd_meas_2theta_range_max 22.95\n"
        f"_pd_meas_2theta_range_inc 0.05\nloop_\n_pd_meas_counts_total\n{values}\n"
    ).encode()


def _pattern(path: Path):
    from crystaldl.powder.pattern import PowderPattern

    return PowderPattern.from_file(path, "CuKa")


# -- HDF5 ----------------------------------------------------------------------------------------------------------


def _hdf5(fill: Callable[[h5py.File], None]) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        fill(file)
    return stream.getvalue()


def _yell(file) -> None:
    file.attrs["format"] = "Yell 1.0"
    file["data"], file["lower_limits"], file["unit_cell"] = DATA, [H[0], K[0], L[0]], CELL
    file["step_sizes"], file["is_direct"] = [1.0, 0.5, 1.0], False
    file["sigma"] = np.abs(DATA)


def _meerkat(file) -> None:
    counts = np.random.default_rng(1).integers(0, 5, DATA.shape)
    file["rebinned_data"], file["number_of_pixels_rebinned"] = DATA * counts, counts
    file["unit_cell"], file["maxind"], file["number_of_pixels"] = CELL, [2, 1.5, 3.0], DATA.shape


def _nexus(file) -> None:
    file.attrs["default"] = "entry"
    group = file.create_group("entry/data")
    group.parent.attrs.update({"NX_class": "NXentry", "default": "data"})
    group.attrs.update({"NX_class": "NXdata", "signal": "data", "axes": ["Ql", "Qk", "Qh"]})
    group["Qh"], group["Qk"], group["Ql"], group["title"] = H, K, L, "15 K"
    group["data"], group["data_weights"], group["data_errors"] = DATA.T, np.abs(DATA.T), np.abs(DATA.T)
    for key, value in zip(("a", "b", "c", "alpha", "beta", "gamma"), CELL, strict=True):
        file[f"entry/sample/unitcell_{key}"] = value


def _mantid(file) -> None:
    edges = [np.append(a - (a[1] - a[0]) / 2, a[-1] + (a[1] - a[0]) / 2) for a in (H, K, L)]
    group = file.create_group("MDHistoWorkspace/data")
    group["signal"], group["errors_squared"] = DATA.T, np.full(DATA.T.shape, 4.0)
    group["mask"] = np.zeros(DATA.T.shape, np.int8)
    for i, (edge, label) in enumerate(zip(edges, ("[H,0,0]", "[0,K,0]", "[0,0,L]"), strict=True)):
        group[f"D{i}"] = edge
        group[f"D{i}"].attrs.update({"long_name": label, "frame": "HKL"})
    group["signal"].attrs["axes"] = "D2:D1:D0"
    file["MDHistoWorkspace/experiment0/sample/oriented_lattice/orientation_matrix"] = np.diag([0.2, 0.15, 0.14])
    file["MDHistoWorkspace/experiment0/logs/W_MATRIX/value"] = np.eye(3).ravel()


def _discus(file) -> None:
    file["PROGRAM"], file["format"] = np.bytes_("DISCUS60"), np.bytes_("Yell 1.0")
    file["data"], file["lower_limits"], file["unit_cell"] = DATA[:, :, :1], [-1.0, -1.0, 0.5], CELL
    file["step_sizes"] = [0.25, 0.25, 0.0]
    file["step_sizes_abs"], file["step_sizes_ord"], file["step_sizes_top"] = [0.25, 0.25, 0], [0, 0, 0.5], [0.0, 0, 0]


def _scan(file) -> None:
    file["entry/data"] = objects.cube().data[:2, :2, ::2, ::2]
    file["entry/other"] = np.arange(5)


def _volume(path: Path):
    from crystaldl.diffuse.volume import DiffuseVolume

    return DiffuseVolume.from_file(path, lattice=CELL)


def _npy_volume(path: Path):
    from crystaldl.diffuse.volume import DiffuseVolume

    return DiffuseVolume.from_file(path, lattice=CELL, axes=(H, K, L))


def _cube(path: Path):
    from crystaldl.stem.datacube import DataCube

    return DataCube.from_file(path)


def _mapped(path: Path):
    from crystaldl.stem.datacube import DataCube

    return np.asarray(DataCube.from_file(path, mem="MEMMAP").data[0, 0])


def _read(path: Path):
    from crystaldl.files import read

    return read(path)


def _stored(name: str) -> bytes:
    from crystaldl.files import save

    with tempfile.TemporaryDirectory() as folder:
        return save(Path(folder) / "a.h5", objects.STORED[name]()).read_bytes()


def _small(name: str) -> bytes:
    """A stored object of few bytes, so that damage meets its structure and not only its numbers."""
    from crystaldl.files import save

    made = {
        "PowderPattern": lambda: objects.pattern().crop(14, 20), "DiffuseVolume": lambda: objects.volume(),
        "DataCube": lambda: type(objects.cube())(np.array(objects.cube().data[:2, :2, ::2, ::2])),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return save(Path(folder) / "a.h5", made[name]()).read_bytes()


def _numpy(array, **kwargs) -> bytes:
    stream = io.BytesIO()
    if kwargs:
        np.savez_compressed(stream, data=array, **kwargs)
    else:
        np.save(stream, array)
    return stream.getvalue()


# -- other ---------------------------------------------------------------------------------------------------------


def _mib() -> bytes:
    fields = ["MQ1", "000001", "00384", "01", "0256", "0256", "U16", "   1x1", "01", "2020-01-01 00:00:00.0", "0.001"]
    head = (",".join(fields) + ",0,0,0").encode().ljust(384, b"\0")
    return b"".join(head + np.full((256, 256), i, ">u2").tobytes() for i in range(2))


def _merlin(path: Path):
    from crystaldl.stem.datacube import DataCube

    return DataCube.from_file(path, scan=(1, 2))


def _dm3() -> bytes:
    return next((SHARED / "stem").glob("*.dm3")).read_bytes()


def _weights() -> bytes:
    from safetensors.numpy import save

    return save({"a": np.ones((3, 4), np.float32), "b": np.zeros(5, np.float16)})


def _checkpoint(path: Path):
    from crystaldl.training.checkpoint import load_checkpoint_weights

    return load_checkpoint_weights(path)


def _card(path: Path):
    from crystaldl.models.registry import _read_card

    return _read_card(path)


def _card_text() -> bytes:
    fields = {
        "name": "sample", "task": "powder", "title": "t", "architecture": "Net", "arguments": {"width": 4}, "parameters": 12,
        "file": "a.safetensors", "sha256": "0" * 64, "bytes": 3,
        "figures": [{"data": "d", "metric": "m", "value": 0.5, "command": "c"}],
    }  # fmt: skip
    return json.dumps(fields).encode()


def _crystal(path: Path):
    from crystaldl.physics.crystals import read_cif

    return read_cif(path)


_NACL = b"""data_NaCl
_cell_length_a 5.64
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'F m -3 m'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Na1 Na 0 0 0 1
Cl1 Cl 0.5 0.5 0.5 1
"""


def _molecule(path: Path):
    from crystaldl.diffuse.molecular import Molecule

    return Molecule.from_xyz(path) if path.suffix == ".xyz" else Molecule.from_cif(path)


def _library(path: Path):
    from crystaldl.physics.crystals import read_library

    return read_library(path)


def _pairs(path: Path):
    from crystaldl.diffuse.molecules import pairs_from_library

    return pairs_from_library(path)


def _molecule_list() -> bytes:
    rows = [[6, 0.0, 0.0, 0.0], [8, 1.2, 0.1, 0.0]]
    entries = [
        {"name": n, "group": "g", "lattice": [7.0, 8.0, 9.0], "Z_xyz_angstrom": rows} for n in ("a", "a_R", "b", "c")
    ]
    return json.dumps(entries).encode()


def _crystal_list() -> bytes:
    entry = {
        "name": "NaCl",
        "src": "s",
        "sg": 225,
        "abc": [5.6] * 3,
        "ang": [90] * 3,
        "Z": [11, 17],
        "xyz": [[0] * 3, [0.5] * 3],
    }
    return json.dumps([entry]).encode()


READERS: dict[str, Sample] = {
    "columns .xy": Sample(".xy", lambda: _table(head="# name = quartz\n# wavelength = 1.5406\n"), _pattern),
    "columns .xye": Sample(".xye", lambda: _table(columns=(X, Y, np.sqrt(Y))), _pattern),
    "columns .csv": Sample(".csv", lambda: _table(";", ",", head="2Theta;Intensity\n"), _pattern),
    "RRUFF": Sample(
        ".txt", lambda: _table(", ", head="##NAMES=A\n##X-RAY WAVELENGTH=1.541838\n", tail="##END=\n"), _pattern
    ),
    "Rigaku RAS": Sample(".ras", _ras, _pattern),
    "Rigaku RASX": Sample(".rasx", _rasx, _pattern),
    "GSAS STD": Sample(".gsa", lambda: _gsas("STD"), _pattern),
    "GSAS ESD": Sample(".gda", lambda: _gsas("ESD"), _pattern),
    "GSAS FXYE": Sample(".fxye", lambda: _gsas("FXYE"), _pattern),
    "PANalytical xrdml": Sample(".xrdml", _xrdml, _pattern),
    "Bruker BRML": Sample(".brml", _brml, _pattern),
    "Bruker RAW 1": Sample(".raw", lambda: _raw(1), _pattern),
    "Bruker RAW 2": Sample(".raw", lambda: _raw(2), _pattern),
    "Bruker RAW 3": Sample(".raw", lambda: _raw(3), _pattern),
    "Bruker RAW 4": Sample(".raw", lambda: _raw(4), _pattern),
    "STOE RAW": Sample(".raw", _stoe, _pattern),
    "pdCIF": Sample(".cif", _cif, _pattern),
    "EMD PowderPattern": Sample(".h5", lambda: _small("PowderPattern"), _pattern),
    "EMD Classification": Sample(".h5", lambda: _stored("Classification"), _read),
    "Yell 1.0": Sample(".h5", lambda: _hdf5(_yell), _volume),
    "DISCUS": Sample(".h5", lambda: _hdf5(_discus), _volume),
    "Meerkat": Sample(".h5", lambda: _hdf5(_meerkat), _volume),
    "NXdata": Sample(".nxs", lambda: _hdf5(_nexus), _volume),
    "Mantid MDHisto": Sample(".nxs", lambda: _hdf5(_mantid), _volume),
    "numpy volume": Sample(".npy", lambda: _numpy(DATA), _npy_volume),
    "EMD DiffuseVolume": Sample(".h5", lambda: _small("DiffuseVolume"), _volume),
    "EMD Separation": Sample(".h5", lambda: _stored("Separation"), _read),
    "EMD SROFit": Sample(".h5", lambda: _stored("SROFit"), _read),
    "EMD DataCube": Sample(".h5", lambda: _small("DataCube"), _cube),
    "EMD DataCube, mapped": Sample(".h5", lambda: _small("DataCube"), _mapped),
    "HDF5 scan": Sample(".h5", lambda: _hdf5(_scan), _cube),
    "numpy scan": Sample(".npy", lambda: _numpy(np.ones((2, 2, 16, 16), np.float32)), _cube),
    "numpy scan, mapped": Sample(".npy", lambda: _numpy(np.ones((2, 2, 16, 16), np.float32)), _mapped),
    "npz scan": Sample(".npz", lambda: _numpy(np.ones((2, 2, 16, 16), np.uint16), other=np.ones(3)), _cube),
    "EMD BraggVectors": Sample(".h5", lambda: _stored("BraggVectors"), _read),
    "EMD StrainMap": Sample(".h5", lambda: _stored("StrainMap"), _read),
    "EMD Probe": Sample(".h5", lambda: _stored("Probe"), _read),
    "Merlin MIB": Sample(".mib", _mib, _merlin),
    "EMPAD raw": Sample(".raw", lambda: np.ones((4, 130, 128), "<f4").tobytes(), _cube),
    "safetensors": Sample(".safetensors", _weights, _checkpoint),
    "model card": Sample(".json", _card_text, _card),
    "structure CIF": Sample(".cif", lambda: _NACL, _crystal),
    "molecule xyz": Sample(".xyz", lambda: b"3\nwater\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n", _molecule),
    "molecule CIF": Sample(".cif", lambda: _NACL, _molecule),
    "structure library": Sample(".json", _crystal_list, _library),
    "molecule library": Sample(".json", _molecule_list, _pairs),
}
if (SHARED / "stem").is_dir() and list((SHARED / "stem").glob("*.dm3")):
    READERS["Gatan DM3"] = Sample(".dm3", _dm3, _cube)


@cache
def content(name: str) -> bytes:
    """A whole file of a format."""
    return READERS[name].make()
