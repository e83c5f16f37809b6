"""XML files and zip archives of XML: PANalytical xrdml, Bruker BRML, Rigaku RASX.

XML is parsed only without a document type declaration, since entity expansion starts there; archive members are read
only up to a size that no powder pattern reaches.
"""

from __future__ import annotations

import io
import lzma
import re
import struct
import xml.etree.ElementTree as ET
import zipfile
import zlib

import numpy as np

from ...errors import FileFormatError
from .scan import Scan, floats, lab_radiation, merge_scans, unusable

__all__ = ["read_brml", "read_rasx", "read_xrdml", "read_zip"]

_MAX_MEMBER = 200_000_000
# what zipfile raises over damaged archives; NotImplementedError is a RuntimeError, decoding errors are ValueErrors
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, OSError, ValueError, KeyError)
_MAX_RATIO = 400  # numbers as text shrink to a tenth or so; a bomb to a thousandth


def _parse(content: bytes, name: str) -> ET.Element:
    """The root, its tags stripped of namespaces."""
    head = content[:200_000].replace(b"\0", b"")  # a declaration hidden in UTF-16
    if re.search(rb"<!\s*(DOCTYPE|ENTITY)", head, re.IGNORECASE):
        raise unusable(name, "XML with a document type declaration", "plain XML, since such declarations are not safe")
    try:
        root = ET.fromstring(content)
    except (ET.ParseError, LookupError, ValueError) as error:  # LookupError: an encoding that does not exist
        raise unusable(name, f"XML that cannot be parsed ({error})", "a complete XML file") from None
    for element in root.iter():
        element.tag = element.tag.rsplit("}", 1)[-1]
    return root


def _text(element, path: str) -> str | None:
    found = element.find(path)
    return found.text if found is not None else None


def read_xrdml(content: bytes, name: str) -> Scan:
    """PANalytical xrdml 1.x and 2.x: ``scan/dataPoints`` with positions and intensities (or counts × attenuation)."""
    root = _parse(content, name)
    if root.tag != "xrdMeasurements":
        raise unusable(name, f"XML with the root element <{root.tag}>", "<xrdMeasurements> of a PANalytical xrdml file")
    scans = []
    for measurement in root.iter("xrdMeasurement"):
        used = measurement.find("usedWavelength")
        radiation = None
        if used is not None:
            radiation = _xrdml_radiation(used, _text(measurement, ".//anodeMaterial"))
        for scan in measurement.iter("scan"):
            if scan.get("status", "Completed") == "Aborted" and scan.find("dataPoints") is None:
                continue
            one = _xrdml_scan(scan, name)
            if one is not None:
                one.radiation = radiation
                one.name = (_text(root, "sample/id") or "").strip()
                one.metadata["anode"] = _text(measurement, ".//anodeMaterial")
                scans.append(one)
    if not scans:
        raise unusable(name, "an xrdml file without a 2θ scan", "positions of the axis 2Theta and intensities")
    return merge_scans(scans, name)


def _xrdml_radiation(used, anode):
    # "K-Alpha 1" is what PANalytical writes for doublets too, so only Kβ is believed.
    intended = (used.get("intended") or "").lower()
    if "beta" in intended or "kβ" in intended:
        return lab_radiation(_text(used, "kBeta"))
    return lab_radiation(_text(used, "kAlpha1"), _text(used, "kAlpha2"), _text(used, "ratioKAlpha2KAlpha1"), anode)


def _xrdml_scan(scan, name: str) -> Scan | None:
    points = scan.find("dataPoints")
    if points is None:
        return None
    axis = next((p for p in points.findall("positions") if p.get("axis") == "2Theta"), None)
    if axis is None:
        return None
    values = points.find("intensities")
    y = floats(_text(points, "counts") if values is None else values.text, name, "the intensities")
    factors = floats(_text(points, "beamAttenuationFactors"), name, "the attenuation factors")
    # <intensities> are already corrected for the attenuator, <counts> are not.
    if values is None and factors.size == y.size:
        y = y * factors
    listed = axis.find("listPositions")
    if listed is not None:
        x = floats(listed.text, name, "the positions")
    else:
        ends = [floats(_text(axis, key), name, "the positions") for key in ("startPosition", "endPosition")]
        if any(e.size != 1 for e in ends):
            return None
        x = np.linspace(ends[0][0], ends[1][0], y.size)
    if x.size != y.size:
        raise unusable(name, f"{x.size} positions but {y.size} intensities", "as many of one as of the other")
    return Scan(x, y, metadata={"format": "PANalytical xrdml", "scan_axis": scan.get("scanAxis", "")})


# -- archives ------------------------------------------------------------------------------------------------------


def read_zip(content: bytes, name: str) -> Scan:
    """A zip archive: Rigaku RASX or Bruker BRML by its members."""
    try:
        return _read_zip(content, name)
    except FileFormatError:
        raise
    except (*_DAMAGE, IndexError):  # numbers that are none, too
        raise unusable(name, "a damaged or truncated zip archive", "a complete BRML or RASX file") from None


def _read_zip(content: bytes, name: str) -> Scan:
    archive = zipfile.ZipFile(io.BytesIO(content))
    members = archive.namelist()
    with archive:
        if any(re.search(r"(^|/)Profile\d+\.txt$", m) for m in members):
            return read_rasx(archive, name)
        if any(re.search(r"(^|/)RawData\d*\.xml$", m) for m in members):
            return read_brml(archive, name)
    shown = ", ".join(members[:3]) or "nothing"
    raise unusable(name, f"a zip archive that holds {shown}", "the members of a Bruker BRML or Rigaku RASX file")


def _member(archive: zipfile.ZipFile, member: str, name: str) -> bytes:
    info = archive.getinfo(member)
    if info.file_size > _MAX_MEMBER or info.file_size > _MAX_RATIO * max(info.compress_size, 1) + 1_000_000:
        raise unusable(name, f"{member} unpacks to {info.file_size / 1e6:.0f} MB", "members of a powder pattern's size")
    try:
        with archive.open(info) as stream:
            content = stream.read(_MAX_MEMBER + 1)  # the size in the directory may lie
    except _DAMAGE:
        raise unusable(name, f"{member} in it is damaged or encrypted", "a complete archive") from None
    if len(content) > _MAX_MEMBER:
        raise unusable(name, f"{member} unpacks to more than {_MAX_MEMBER / 1e6:.0f} MB", "a powder pattern's size")
    return content


def _number_in(member: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", member)]


def read_rasx(archive: zipfile.ZipFile, name: str) -> Scan:
    """Rigaku SmartLab Studio RASX: ``Data*/Profile*.txt`` (2θ, intensity, attenuation) beside an XML of conditions."""
    profiles = [m for m in archive.namelist() if re.search(r"(^|/)Profile\d+\.txt$", m)]
    scans = []
    for member in sorted(profiles, key=_number_in):
        lines = _member(archive, member, name).decode("utf-8-sig", "replace").split("\n")
        rows = [floats(line, name, member) for line in lines if line.strip()]
        if not rows or len({r.size for r in rows}) != 1 or rows[0].size < 2:
            raise unusable(name, f"{member} in it is not a table", "two or three columns of numbers")
        table = np.array(rows)
        y = table[:, 1] * table[:, 2] if table.shape[1] > 2 else table[:, 1]
        conditions = member.replace("Profile", "MesurementConditions")[:-4] + ".xml"
        radiation, meta = None, {"format": "Rigaku RASX"}
        if conditions in archive.namelist():
            root = _parse(_member(archive, conditions, name), f"{name}/{conditions}")
            get = {e.tag: (e.text or "").strip() for e in root.iter() if e.text}.get
            radiation = lab_radiation(get("WavelengthKalpha1"), get("WavelengthKalpha2"), anode=get("TargetName"))
            meta |= {"anode": get("TargetName"), "scan_axis": get("AxisName")}
        scans.append(Scan(table[:, 0], y, None, radiation, "", meta))
    return merge_scans(scans, name)


def read_brml(archive: zipfile.ZipFile, name: str) -> Scan:
    """Bruker BRML: ``Experiment*/RawData*.xml`` with one comma-separated ``Datum`` a point."""
    members = sorted((m for m in archive.namelist() if re.search(r"(^|/)RawData\d*\.xml$", m)), key=_number_in)
    scans = []
    for member in members:
        root = _parse(_member(archive, member, name), f"{name}/{member}")
        radiation = _brml_radiation(root)
        routes = [r for r in root.iter("DataRoute") if r.find("Datum") is not None]
        # Where raw and processed routes exist, the final one is what the instrument shows.
        final = [r for r in routes if r.get("RouteFlag") == "Final"] or routes
        for route in final:
            one = _brml_route(route, f"{name}/{member}")
            if one is not None:
                one.radiation = radiation
                scans.append(one)
    if not scans:
        raise unusable(name, "a BRML file without a 2θ scan", "a scan of the axis TwoTheta with its counts")
    return merge_scans(scans, name)


def _brml_radiation(root):
    def value(tag):
        found = next(root.iter(tag), None)
        return None if found is None else found.get("Value", found.text)

    return lab_radiation(
        value("WaveLengthAlpha1"), value("WaveLengthAlpha2"), value("WaveLengthRatio"), value("TubeMaterial")
    )


def _brml_route(route, where: str) -> Scan | None:
    data = [floats(d.text, where, "a Datum") for d in route.findall("Datum")]
    if len({d.size for d in data}) != 1:
        raise unusable(where, "Datum rows of different lengths", "one row of numbers a point")
    table = np.array(data)
    info = route.find("ScanInformation")
    axes = [] if info is None else list(info.iter("ScanAxisInfo"))
    names = [a.get("AxisName") or a.get("AxisId") or "" for a in axes]
    if "TwoTheta" not in names:
        return None
    axis = axes[names.index("TwoTheta")]
    start, stop, origin = (float(_text(axis, k) or "nan") for k in ("Start", "Stop", "Reference"))
    origin = 0.0 if np.isnan(origin) else origin
    counts = _brml_counts(route, table)
    if counts is None:
        return None
    if len(table) > 1:
        x, y = np.linspace(start + origin, stop + origin, len(table)), counts[:, 0]
    else:  # a fixed one-dimensional detector: one row holds the whole pattern
        y = counts[0]
        x = np.linspace(start + origin, stop + origin, y.size)
    if not np.all(np.isfinite(x)):
        raise unusable(where, "an axis TwoTheta without start and stop", "both in degrees")
    meta = {"format": "Bruker BRML", "scan": "" if info is None else info.get("ScanName", "")}
    return Scan(x, y, metadata=meta)


def _brml_counts(route, table) -> np.ndarray | None:
    """The columns of the detector, as the data views say; without views, the last column."""
    for view in route.iter("RawDataView"):
        recording = view.find("Recording")
        label = (recording if recording is not None else view).get("LogicName", "")
        kind = " ".join(v for k, v in view.attrib.items() if k.endswith("type"))
        if "Recorded" in kind or "counter" in label.lower():
            start, length = int(view.get("Start", -1)), int(view.get("Length", 0))
            if 0 <= start < start + length <= table.shape[1]:
                return table[:, start : start + length]
    return table[:, -1:] if len(table) > 1 else None
