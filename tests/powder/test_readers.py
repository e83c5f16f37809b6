"""Readers on real sample files, on minimal files written to the published formats, and on everything that is neither."""

import io
import struct
import warnings
import zipfile

import numpy as np
import pytest

from crystaldl.errors import CrystaldlError, FileFormatError, PlausibilityWarning, WavelengthError
from crystaldl.powder.pattern import PowderPattern

X = np.round(np.arange(60) * 0.05 + 20, 6)
Y = np.round(50 + 1000 * np.exp(-(((X - 21) / 0.2) ** 2)))
read = PowderPattern.from_file


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(separator=" ", decimal=".", columns=(X, Y), head="", tail=""):
    rows = [separator.join(f"{v:.6g}".replace(".", decimal) for v in row) for row in zip(*columns, strict=True)]
    return head + "\n".join(rows) + "\n" + tail


def assert_is_ours(pattern):
    assert np.allclose(pattern.two_theta, X, atol=1e-5)
    assert np.allclose(pattern.intensity, Y)


# -- real samples --------------------------------------------------------------------------------------------------

SAMPLES = {  # name: (wavelength needed, points, start, end, wavelength in the file)
    "autoXRD_Li2MnO3+MnO+TiO2.xy": ("CuKa", 9001, 10, 100, None),
    "autoXRD_LiMnO2.xy": ("CuKa", 9001, 10, 100, None),
    "autoXRD_Mn2O3.xy": ("CuKa", 9001, 10, 100, None),
    "powdR_D5000_1.xy": ("CoKa", 3651, 2, 75, None),
    "powdR_D5000_1.RAW": (None, 3651, 2, 75, 1.78897),
    "rruff_Arsenopyrite_R050071.csv": ("CuKa", 8501, 5, 90, None),
    "xrdpattern_bruker.raw": (None, 4059, 37.0001, 120.005, 1.5406),
    "xrdpattern_stoe.raw": (None, 5404, 10, 91.045, 1.20793),
    "xrdpattern_pdcif.cif": (None, 3728, 8, 89.994, 1.540598),
    "iucr_sh0123Xraysup5.rtv.combined.cif": (None, 2001, 10, 110, 1.540562),
    "iucr_sq1033Isup2.rtv.combined.cif": (None, 6501, 10, 140, 1.5418),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples(name, format_samples):
    needed, n, start, end, wavelength = SAMPLES[name]
    if needed:
        with pytest.raises(WavelengthError, match="does not say its wavelength"):
            read(format_samples / name)
    pattern = read(format_samples / name, needed)
    assert len(pattern) == n
    assert pattern.two_theta[[0, -1]] == pytest.approx([start, end], abs=2e-3)
    if wavelength:
        assert pattern.wavelength == pytest.approx(wavelength, rel=1e-5)
    assert len(pattern.peaks()) >= 4


def test_sample_pairs(format_samples):
    """The same scan as RAW and as text; three overlapping ranges in one csv; what else the files say."""
    raw, text = read(format_samples / "powdR_D5000_1.RAW"), read(format_samples / "powdR_D5000_1.xy", "CoKa")
    assert np.allclose(raw.two_theta, text.two_theta)
    assert np.array_equal(raw.intensity, text.intensity)
    with pytest.warns(UserWarning, match="3 ranges that overlap"):
        joined = read(format_samples / "xrdpattern_single.csv", "CuKa")
    assert (len(joined), joined.metadata["scans_joined"]) == (3017, 3)
    third = read(format_samples / "autoXRD_MnO2.xy", "CuKa")
    assert third.sigma is None
    assert third.metadata["background"][0] == 2085
    cif = read(format_samples / "xrdpattern_pdcif.cif")
    assert cif.radiation.alpha2 == pytest.approx(1.54439)
    assert cif.radiation.alpha2_ratio == pytest.approx(0.38)
    assert read(format_samples / "iucr_sq1033Isup2.rtv.combined.cif").background_subtracted
    assert read(format_samples / "xrdpattern_bruker.raw").name == "Cu-12%Ag_500C1700h_P5n5rpm1_RT"


@pytest.mark.parametrize(
    "name", ["powdR_D5000_1.RAW", "xrdpattern_bruker.raw", "xrdpattern_stoe.raw", "xrdpattern_pdcif.cif"]
)
def test_truncated_samples(name, format_samples, tmp_path):
    """Cut anywhere, a file is an error of ours, or (a text that merely got shorter) a pattern."""
    content = (format_samples / name).read_bytes()
    for size in (3, 9, 40, 200, 500, 700, 1000, 1600, 3000, len(content) // 2, len(content) - 2):
        path = write(tmp_path, name, content[:size])
        if name.endswith(".cif") and size > 1600:
            continue
        with pytest.raises(FileFormatError) as caught:
            read(path, "CuKa")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["powdR_D5000_1.RAW", "xrdpattern_bruker.raw", "xrdpattern_stoe.raw"])
def test_damaged_headers(name, format_samples, tmp_path):
    """Random bytes in the header never let a library's exception through."""
    content = (format_samples / name).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for at in rng.integers(8, 1500, 30):
            damaged[at] = rng.integers(0, 256)
        path = write(tmp_path, name, bytes(damaged))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read(path, "CuKa")
            except CrystaldlError as error:
                assert "\n" not in str(error)


# -- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.xy", table()),
        ("a.txt", table("\t", head="# a comment\n; another\n! and\n' one\n\n")),
        ("a.csv", table(",", head="Angle,Intensity\n")),
        ("a.csv", table(";", ",", head="2Theta;Intensität\n")),
        ("a.csv", table(";")),
        ("a.dat", table("   ", ",")),
        ("a.dat", table("\t", ",")),
        ("a.csv", table(", ", tail="\nend of scan\n")),
        ("a.xy", table().replace("\n", "\r\n")),
        ("a.xy", b"\xef\xbb\xbf" + table().encode()),
        ("a.xy", table(head="Größe\n").encode("latin-1")),
        ("a.xy", table(head="# scan\n").encode("utf-16")),
        ("noextension", table()),
        ("backwards.xy", table(columns=(X[::-1], Y[::-1]))),
    ],
)
def test_dialects(name, content, tmp_path):
    pattern = read(write(tmp_path, name, content), "CuKa")
    assert_is_ours(pattern)
    assert pattern.sigma is None
    assert pattern.name == name.split(".")[0]


@pytest.mark.parametrize(
    ("head", "wavelength", "doublet"),
    [
        ("##NAMES=Quartz\n##RRUFFID=R040031\n##X-RAY WAVELENGTH=1.541838\n", 1.541838, None),
        ("# Wavelength: 0.4137 A\n", 0.4137, False),
        ("# lambda = 0,7093\n", 0.7093, None),
        ("K-Alpha1 wavelength,1.540598\nK-Alpha2 wavelength,1.544426\nRatio,0.5\nAngle,Intensity\n", 1.540598, None),
        ('\'Id: "x" Comment: "" Operator: "" Anode: "Co" Scantype: "Coupled"\n', 1.788996, None),
        ("# radiation Mo Kalpha\n", 0.70931715, None),
    ],
)
def test_wavelength_in_the_header(head, wavelength, doublet, tmp_path):
    separator = "," if "," in head and "lambda" not in head else " "
    pattern = read(write(tmp_path, "a.txt", table(separator if "Angle" in head else " ", head=head)))
    assert pattern.wavelength == pytest.approx(wavelength)
    assert pattern.radiation.doublet is doublet
    assert_is_ours(pattern)


def test_rruff(tmp_path):
    head = "##NAMES=Abelsonite\n##LOCALITY=Utah, USA\n##X-RAY WAVELENGTH=1.541838\n##   \n"
    pattern = read(write(tmp_path, "R070007.txt", table(", ", head=head, tail="##END=\n")))
    assert (pattern.name, pattern.metadata["format"]) == ("Abelsonite", "RRUFF")
    assert_is_ours(pattern)


def test_third_column(tmp_path):
    rng = np.random.default_rng(0)
    noisy = rng.poisson(Y).astype(float)
    root, flat = np.sqrt(noisy + 1), 40 + X
    assert np.allclose(read(write(tmp_path, "a.xye", table(columns=(X, noisy, flat))), 1.0).sigma, flat, rtol=1e-4)
    assert np.allclose(read(write(tmp_path, "a.xy", table(columns=(X, noisy, root))), 1.0).sigma, root, rtol=1e-4)
    titled = table(",", columns=(X, noisy, flat), head="tth,I,esd\n")
    assert read(write(tmp_path, "a.csv", titled), 1.0).sigma is not None
    smooth = read(write(tmp_path, "b.xy", table(columns=(X, noisy, flat))), 1.0)
    assert smooth.sigma is None
    assert np.allclose(smooth.metadata["background"], flat, rtol=1e-4)
    other = read(write(tmp_path, "c.xy", table(columns=(X, noisy, rng.normal(size=60)))), 1.0)
    assert other.sigma is None
    assert "third_column" in other.metadata


def test_not_a_number_is_not_measured(tmp_path):
    pattern = read(write(tmp_path, "a.xy", table().replace("20.5 51", "20.5 nan")), 1.0)
    assert pattern.mask.sum() == np.isnan(pattern.intensity).sum() <= 1


def test_argument_against_header(tmp_path):
    path = write(tmp_path, "a.xy", table(head="# wavelength 1.5406\n"))
    with pytest.warns(PlausibilityWarning, match="the argument is used"):
        assert read(path, "MoKa").radiation.name == "Mo Kα"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(path, "CuKa").radiation.doublet is True
        assert read(path, 1.5418).wavelength == 1.5418


# -- vendors -------------------------------------------------------------------------------------------------------


def raw1():
    head = bytearray(156)
    head[:4] = b"RAW "
    struct.pack_into("<Iff", head, 4, 60, 1.0, 0.05)
    struct.pack_into("<f", head, 24, 20.0)
    head[40:46] = b"quartz"
    struct.pack_into("<ff", head, 72, 1.54056, 1.54439)
    return bytes(head) + Y.astype("<f4").tobytes()


def raw2():
    head = bytearray(256)
    head[:4] = b"RAW2"
    struct.pack_into("<H", head, 4, 1)
    head[188:190] = b"Cu"
    struct.pack_into("<ff", head, 190, 1.54056, 1.54439)
    block = bytearray(48)
    struct.pack_into("<HH", block, 0, 48, 60)
    struct.pack_into("<ff", block, 12, 0.05, 20.0)
    return bytes(head + block) + Y.astype("<f4").tobytes()


def xrdml(data=None, head="", position=None):
    data = data or f"<intensities unit='counts'>{' '.join(map(str, Y))}</intensities>"
    position = position or "<startPosition>20.0</startPosition><endPosition>22.95</endPosition>"
    return f"""<?xml version="1.0" encoding="UTF-8"?>{head}
<xrdMeasurements xmlns="http://www.xrdml.com/XRDMeasurement/1.5" status="Completed">
 <sample type="To be analyzed"><id>quartz</id></sample>
 <xrdMeasurement measurementType="Scan" status="Completed">
  <usedWavelength intended="K-Alpha 1"><kAlpha1 unit="Angstrom">1.5405980</kAlpha1>
   <kAlpha2 unit="Angstrom">1.5444260</kAlpha2><ratioKAlpha2KAlpha1>0.5</ratioKAlpha2KAlpha1></usedWavelength>
  <incidentBeamPath><xRayTube><anodeMaterial>Cu</anodeMaterial></xRayTube></incidentBeamPath>
  <scan appendNumber="0" mode="Continuous" scanAxis="Gonio" status="Completed"><dataPoints>
   <positions axis="2Theta" unit="deg">{position}</positions>
   <positions axis="Omega" unit="deg"><startPosition>10</startPosition><endPosition>11.475</endPosition></positions>
   <commonCountingTime unit="seconds">10</commonCountingTime>{data}</dataPoints></scan>
 </xrdMeasurement></xrdMeasurements>"""


def archive(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            out.writestr(name.replace("__", "/").replace("_xml", ".xml").replace("_txt", ".txt"), content)
    return stream.getvalue()


def rasx():
    conditions = """<?xml version="1.0" encoding="utf-8"?><Measurement><HWConfigurations><XrayGenerator>
      <TargetName>Cu</TargetName><WavelengthKalpha1>1.540593</WavelengthKalpha1>
      <WavelengthKalpha2>1.544414</WavelengthKalpha2></XrayGenerator></HWConfigurations>
      <ScanInformation><AxisName>TwoThetaTheta</AxisName></ScanInformation></Measurement>"""
    profile = "\ufeff" + table("\t", columns=(X, Y / 2, np.full(60, 2.0)))
    return archive(Data0__Profile0_txt=profile, Data0__MesurementConditions0_xml=conditions, root_xml="<root/>")


def brml(axis="TwoTheta"):
    rows = "".join(f"<Datum>1,1,{x},{x / 2},{y}</Datum>" for x, y in zip(X, Y, strict=True))
    raw = f"""<?xml version="1.0" encoding="utf-8"?>
<RawData xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><FixedInformation><Instrument><PrimaryTracks><TrackInfoData>
 <MountedOptics><InfoData xsi:type="TubeMountInfoData"><Tube><TubeMaterial>Cu</TubeMaterial>
  <WaveLengthAlpha1 Unit="Å" Value="1.5406"/><WaveLengthAlpha2 Unit="Å" Value="1.54439"/></Tube></InfoData></MountedOptics>
 </TrackInfoData></PrimaryTracks></Instrument></FixedInformation><DataRoutes><DataRoute RouteFlag="Final">
 <ScanInformation ScanName="Locked Coupled"><MeasurementPoints>60</MeasurementPoints><ScanAxes>
  <ScanAxisInfo AxisId="{axis}" AxisName="{axis}"><Reference>0</Reference><Start>20</Start><Stop>22.95</Stop>
   <Increment>0.05</Increment></ScanAxisInfo></ScanAxes></ScanInformation>
 <DataViews><RawDataView Start="0" Length="2" xsi:type="FixedRawDataView" LogicName="Time"/>
  <RawDataView Start="4" Length="1" xsi:type="RecordedRawDataView"><Recording LogicName="Counter0D"/></RawDataView></DataViews>
 {rows}</DataRoute></DataRoutes></RawData>"""
    return archive(Experiment0__RawData0_xml=raw, Experiment0__DataContainer_xml="<DataContainer/>")


def ras():
    head = (
        '*RAS_DATA_START\n*RAS_HEADER_START\n*FILE_SAMPLE "quartz"\n*HW_XG_TARGET_NAME "Cu"\n'
        '*HW_XG_WAVE_LENGTH_ALPHA1 "1.540593"\n*HW_XG_WAVE_LENGTH_ALPHA2 "1.544414"\n*RAS_HEADER_END\n*RAS_INT_START\n'
    )
    return head + table(columns=(X, Y, np.ones(60))) + "*RAS_INT_END\n*RAS_DATA_END\n"


def pdcif(sigma=False, block="_diffrn_radiation_wavelength 0.6889\n"):
    values = "\n".join(f"{y:.0f}(7)" if sigma else f"{y:.0f}" for y in Y)
    return (
        f"data_quartz\n{block}_pd_meas_2theta_range_min 20\n_pd_meas_2theta_range_max 22.95\n"
        f"_pd_meas_2theta_range_inc 0.05\nloop_\n_pd_meas_counts_total\n{values}\n"
    )


def fxye():
    rows = "\n".join(f"{x * 100:12.3f} {y:10.3f} {np.sqrt(y):10.4f}" for x, y in zip(X, Y, strict=True))
    return f"{'quartz':80}\nBANK 1 60 60 CONS 2000.0 5.0 0 0 FXYE\n{rows}\n"


def gsas_std():
    cells = "".join(f"{1:2d}{y:6.0f}" for y in Y)
    rows = "\n".join(cells[i : i + 80] for i in range(0, len(cells), 80))
    return f"{'quartz':80}\nBANK 1 60 6 CONS 2000.0 5.0 0 0 STD\n{rows}\n"


def gsas_esd():
    cells = "".join(f"{y:8.1f}{np.sqrt(y):8.3f}" for y in Y)
    rows = "\n".join(cells[i : i + 80] for i in range(0, len(cells), 80))
    return f"{'quartz':80}\nBANK 1 60 12 CONS 2000.0 5.0 0 0 ESD\n{rows}\n"


VENDORS = {
    "a.raw": (raw1, 1.54056),
    "b.raw": (raw2, 1.54056),
    "a.xrdml": (xrdml, 1.540598),
    "a.rasx": (rasx, 1.540593),
    "a.brml": (brml, 1.5406),
    "a.ras": (ras, 1.540593),
    "a.cif": (pdcif, 0.6889),
    "a.fxye": (fxye, None),
    "a.gsa": (gsas_std, None),
    "a.gda": (gsas_esd, None),
}


@pytest.mark.parametrize("name", VENDORS)
def test_vendors(name, tmp_path):
    content, wavelength = VENDORS[name]
    path = write(tmp_path, name.split(".")[0] + ".unknown", content())  # the content tells, not the extension
    if wavelength is None:
        with pytest.raises(WavelengthError):
            read(path)
    pattern = read(path, None if wavelength else "CuKa")
    assert_is_ours(pattern)
    if wavelength:
        assert pattern.wavelength == pytest.approx(wavelength)
        assert pattern.radiation.doublet is (None if wavelength > 1 else False)
    if name in ("a.fxye", "a.gsa", "a.gda"):
        assert np.allclose(pattern.sigma, np.sqrt(Y), rtol=1e-3)


def test_xrdml_variants(tmp_path):
    counts = f"<beamAttenuationFactors>{'2 ' * 60}</beamAttenuationFactors><counts>{' '.join(map(str, Y / 2))}</counts>"
    assert_is_ours(read(write(tmp_path, "a.xrdml", xrdml(counts))))
    listed = f"<listPositions>{' '.join(map(str, X))}</listPositions>"
    assert_is_ours(read(write(tmp_path, "a.xrdml", xrdml(position=listed))))
    twice = xrdml().replace(
        "</scan>", "</scan>" + xrdml().split("</incidentBeamPath>")[1].split("</xrdMeasurement>")[0], 1
    )
    added = read(write(tmp_path, "a.xrdml", twice))
    assert np.allclose(added.intensity, 2 * Y)


def test_pdcif_variants(tmp_path):
    assert np.allclose(read(write(tmp_path, "a.cif", pdcif(sigma=True))).sigma, 7)
    with pytest.raises(WavelengthError):
        read(write(tmp_path, "a.cif", pdcif(block="")))
    other = "data_other\n_diffrn_radiation_wavelength 0.5\n" + pdcif(block="")
    assert read(write(tmp_path, "a.cif", other)).wavelength == 0.5
    assert read(write(tmp_path, "a.cif", pdcif(block="_diffrn_radiation_type 'Cu K\\a'\n"))).radiation.anode == "Cu"
    with pytest.raises(FileFormatError, match="to agree"):
        read(write(tmp_path, "a.cif", pdcif().replace("range_max 22.95", "range_max 80")))


# -- what is no pattern --------------------------------------------------------------------------------------------

BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
README = "# A project\n\nThis is a README with 3 lines and 2 numbers.\n\n## Install\n\npip install x==1.0\n"
BAD = {
    "empty.xy": (b"", "empty"),
    "blank.xy": (b"\n \n\n", "empty"),
    "zeros.raw": (bytes(5000), "empty"),
    "README.md": (README * 30, "expected two columns"),
    "code.py": ("import os\nprint(1, 2)\n" * 100, "without a table of numbers"),
    "image.xy": (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG image"),
    "paper.pdf": (b"%PDF-1.7 ...", "PDF"),
    "data.h5": (b"\x89HDF\r\n\x1a\n....", "HDF5"),
    "random.raw": (np.random.default_rng(0).bytes(4000), "binary file of an unknown kind"),
    "short.xy": ("10 1\n11 2\n12 3\n", "3 rows of numbers"),
    "one.csv": ("\n".join(str(v) for v in range(200)), "without a table"),
    "ragged.csv": ("\n".join("1,2,3" if i % 2 else "1,2" for i in range(200)), "different numbers of columns"),
    "mixed.txt": ("\n".join(f"{i} 1\nsome words" for i in range(1, 100)), "other text"),
    "unsorted.xy": (table(columns=(np.random.default_rng(0).permutation(X), Y)), "not sorted"),
    "constant.xy": (table(columns=(X, np.full(60, 5))), "constant"),
    "negative.xy": (table(columns=(X, Y - 100)), "negative values"),
    "wide.xy": (table(columns=(X * 10, Y)), "between 0 and 180"),
    "other.zip": (archive(readme_txt="hello"), "readme.txt"),
    "half.brml": (brml()[: len(brml()) // 2], "truncated zip"),
    "omega.brml": (brml("Omega"), "without a 2θ scan"),
    "half.xrdml": (xrdml()[:900], "cannot be parsed"),
    "bomb.xrdml": (xrdml(head=BOMB), "document type declaration"),
    "bomb16.xrdml": (xrdml(head=BOMB).replace("UTF-8", "UTF-16").encode("utf-16"), "document type declaration"),
    "web.html": ("<html><body>404</body></html>", "root element <html>"),
    "words.xrdml": (xrdml("<intensities>a b</intensities>"), "not a number"),
    "lengths.xrdml": (xrdml(position="<listPositions>1 2 3</listPositions>"), "3 positions but 60"),
    "noscan.xrdml": ('<xrdMeasurements xmlns="x"/>', "without a 2θ scan"),
    "structure.cif": ("data_x\n_cell_length_a 5\nloop_\n_atom_site_label\nSi\nO\n", "without a measured powder"),
    "broken.cif": (pdcif() + "loop_\n_a\n_b\n1\n", "cannot be parsed"),
    "half.ras": (ras()[:500], "without its *RAS_INT_START"),
    "half.fxye": (fxye()[:1000], "GSAS"),
    "cut.raw": (raw2()[:400], "truncated"),
    "ratio.rasx": (archive(Data0__Profile0_txt="0" * 20_000_000), "unpacks to 20 MB"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name, tmp_path):
    content, says = BAD[name]
    path = write(tmp_path, name, content)
    with pytest.raises(FileFormatError) as caught:
        read(path, "CuKa")
    message = str(caught.value)
    assert says in message
    assert message.startswith(name)
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_folder_and_missing(tmp_path):
    with pytest.raises(FileFormatError, match="folder"):
        read(tmp_path, "CuKa")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read(tmp_path / "no.xy", "CuKa")
    with pytest.raises(WavelengthError):  # said before the file is opened
        read(tmp_path / "no.xy", "unknown")
