"""Reading measured patterns from files: detection by content first, by extension second.

Each format has a function ``(bytes, file name) -> Scan`` in ``text``, ``bruker``, ``zipped`` or ``cif``; this module
chooses among them and settles the wavelength.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from ...errors import DataError, FileFormatError, PlausibilityWarning, WavelengthError
from ...physics.wavelengths import known_names, resolve_radiation
from ..pattern import PowderPattern
from .scan import Scan, unusable

__all__ = ["read_pattern", "read_scan"]

_MAX_BYTES = 500_000_000
_EXPECTED = (
    "a powder pattern (xy, xye, csv, RRUFF, GSAS, xrdml, Bruker RAW or BRML, Rigaku RASX or RAS, STOE RAW, pdCIF)"
)
# Leading bytes of files that people pass by mistake.
_FOREIGN = {
    b"\x89PNG": "a PNG image",
    b"\x89HDF": "an HDF5 file",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array",
    b"\x80\x04\x95": "a Python pickle",
    b"\xd0\xcf\x11\xe0": "an old Microsoft Office document",
    b"II*\x00": "a TIFF image",
    b"MM\x00*": "a TIFF image",
}


def read_pattern(path, wavelength=None) -> PowderPattern:
    """Read one pattern; see `PowderPattern.from_file`.

    Parameters
    ----------
    path : str or Path
    wavelength : optional
        As in `resolve_radiation`; wins over the file's, with a PlausibilityWarning when they differ by over 0.1 %.

    Raises
    ------
    FileNotFoundError
        No such file.
    FileFormatError
        A folder, an empty or truncated file, or one that holds no powder pattern.
    WavelengthError
        Neither the file nor the argument gives a wavelength.
    """
    given = None if wavelength is None else resolve_radiation(wavelength)
    path = Path(path)
    if path.is_file() and _starts_as_hdf5(path):
        return _read_emd(path, given)
    scan = read_scan(path)
    if given is None and scan.radiation is None:
        raise WavelengthError(
            f"{path.name} does not say its wavelength; pass wavelength, a number in Å or one of "
            f"{', '.join(n for n in known_names() if n.endswith('a'))}."
        )
    if given is not None and scan.radiation is not None:
        ours, theirs = given.wavelength, scan.radiation.wavelength
        # A mean wavelength against its own Kα1 is no contradiction: 1.5418 and 1.5406 differ by 0.08 %.
        if abs(ours - theirs) > 1e-3 * theirs:
            warnings.warn(
                f"{path.name} says λ = {theirs:.6g} Å but wavelength is {ours:.6g} Å; the argument is used.",
                PlausibilityWarning,
                stacklevel=3,
            )
    try:
        return PowderPattern(
            scan.two_theta,
            scan.intensity,
            given or scan.radiation,
            name=scan.name or path.stem,
            sigma=scan.sigma,
            metadata={**scan.metadata, "file": str(path)},
            background_subtracted=scan.background_subtracted,
        )
    except DataError as error:
        raise FileFormatError(f"{path.name}: {error}") from None


def _starts_as_hdf5(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return False  # read_scan says what is wrong


def _read_emd(path: Path, given) -> PowderPattern:
    """The pattern of a file that crystaldl wrote, that of a classification too."""
    from ..files import RECORDS

    found = RECORDS.open(path)
    pattern = getattr(found, "pattern", found)
    if not isinstance(pattern, PowderPattern):
        raise unusable(path.name, f"this file holds a {type(found).__name__}", "a PowderPattern or a Classification")
    return pattern if given is None else pattern._derive(radiation=given)


def read_scan(path) -> Scan:
    """The scan as it stands in the file, before a wavelength is required."""
    path = Path(path)
    name = path.name or str(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected {_EXPECTED}.")
    if path.is_dir():
        raise unusable(name, "this is a folder", "one file with " + _EXPECTED)
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise unusable(name, f"it has {size / 1e6:.0f} MB", "a powder pattern of at most 500 MB")
        content = path.read_bytes()
    except OSError as error:
        raise unusable(name, f"it cannot be read ({error.strerror or error})", "a readable file") from None
    if not content.strip(b"\x00 \t\r\n"):
        raise unusable(name, "the file is empty", _EXPECTED)
    return _reader(content, name)(content, name)


def _reader(content: bytes, name: str):
    from . import bruker as readers_bruker
    from . import cif as readers_cif
    from . import text as readers_text
    from . import zipped as readers_zip

    head = content[:4096]
    for magic, function in readers_bruker.MAGIC.items():
        if head.startswith(magic):
            return function
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return readers_zip.read_zip
    for magic, kind in _FOREIGN.items():
        if head.startswith(magic):
            raise unusable(name, f"this looks like {kind}", _EXPECTED)
    text = readers_text.decode(content, name, _EXPECTED)
    start = text.lstrip("\ufeff \t\r\n")[:4000]
    if start.startswith("<"):
        return readers_zip.read_xrdml
    if readers_cif.looks_like_cif(text):
        return readers_cif.read_cif
    if start.startswith("*RAS_"):
        return readers_text.read_ras
    if readers_text.GSAS_BANK.search(text[:20_000]):
        return readers_text.read_gsas
    return readers_text.read_columns
