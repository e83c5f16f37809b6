"""Text files: columns in any common dialect (xy, xye, csv, RRUFF), Rigaku RAS, GSAS."""

from __future__ import annotations

import re

import numpy as np

from ...errors import WavelengthError
from ...physics.wavelengths import resolve_radiation
from ..checks import MIN_POINTS
from .scan import Scan, lab_radiation, merge_scans, split_runs, uniform_axis, unusable

__all__ = ["GSAS_BANK", "decode", "read_columns", "read_gsas", "read_ras"]

_COMMENT = ("#", ";", "!", "'", "/", "*", "%", '"', "[", "@")
# Column separator and decimal sign, most specific first; the first that reads most lines wins.
_DIALECTS = (("\t", "."), ("\t", ","), (";", "."), (";", ","), (",", "."), (None, "."), (None, ","))
_TABLE = "two columns of numbers, 2θ in degrees and intensity"


def decode(content: bytes, name: str, expected: str = _TABLE) -> str:
    """Text of the usual encodings; binary content is refused."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in content[:100_000]:
        raise unusable(name, "this is a binary file of an unknown kind", expected)
    else:
        encoding = "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        if encoding == "utf-16":
            raise unusable(name, "this is not valid text", expected) from None
    head = content[:20_000]
    if sum(c < 32 and c not in b"\t\r\n\f\x1a" for c in head) > 0.01 * len(head):
        raise unusable(name, "this is a binary file of an unknown kind", expected)
    return content.decode("latin-1")


# -- columns -------------------------------------------------------------------------------------------------------


def read_columns(content: bytes, name: str) -> Scan:
    """Columns of numbers under an optional header, in any dialect.

    Separators are tab, semicolon, comma or blanks; the decimal sign is a point or a comma; lines that begin with
    ``# ; ! ' / * %`` are comments, and the header and comments are searched for a wavelength or an anode.  The first
    two columns are 2θ and intensity.  A third is the standard uncertainty in ``.xye`` files or where its title or its
    values say so (about √intensity); a smooth third column is a calculated background, kept in the metadata.
    """
    lines = decode(content, name).splitlines()
    dialect = _dialect(lines)
    if dialect is None:
        raise unusable(name, "a text without a table of numbers", _TABLE)
    rows, header, foreign = _rows(lines, *dialect)
    if len(rows) < MIN_POINTS:
        raise unusable(name, f"a text with {len(rows)} rows of numbers", f"{_TABLE}, at least {MIN_POINTS} rows")
    if foreign > 5 + 0.02 * len(rows):
        raise unusable(name, f"{foreign} of its lines between the numbers are other text", _TABLE)
    lengths = [len(r) for r in rows]
    width = max(set(lengths), key=lengths.count)
    complete = [r for r in rows if len(r) == width]
    if len(complete) < len(rows) - 2:
        raise unusable(name, "its rows have different numbers of columns", _TABLE)
    table = np.array(complete)
    titles = _titles(header, dialect[0], width)
    x, y = table[:, 0], table[:, 1]
    meta = {"format": "RRUFF" if any(h.startswith("##") for h in header) else "columns"}
    sigma = None
    if width > 2:
        sigma = _third_column(table[:, 2], y, titles, name, meta)
    facts = _facts(header)
    title = facts.get("name") or facts.get("names") or ""
    subtracted = facts.get("background_subtracted", "").lower() in ("true", "yes", "1")
    scan = Scan(x, y, sigma, _header_radiation(header, facts), title, meta, subtracted)
    return merge_scans(split_runs(scan), name)


def _split(line: str, separator: str | None, decimal: str) -> list[float] | None:
    if decimal == "," and separator != ",":
        line = line.replace(",", ".")
    parts = line.split(separator) if separator else line.split()
    try:
        row = [float(p) for p in parts if p.strip()]
    except ValueError:
        return None
    return row if len(row) >= 2 else None


def _dialect(lines: list[str]) -> tuple[str | None, str] | None:
    body = [line for line in lines if line.strip() and not line.lstrip().startswith(_COMMENT)]
    middle = body[len(body) // 2 :][:40] or body
    best, most = None, 0
    for dialect in _DIALECTS:
        count = sum(_split(line, *dialect) is not None for line in middle)
        if count > most:
            best, most = dialect, count
    return best


def _rows(lines, separator, decimal):
    """Rows of numbers, header lines (comments and titles), and how many lines between the rows are neither."""
    rows, header, foreign, pending = [], [], 0, 0
    for raw in lines:
        line = raw.strip()
        if not line:
            continue
        if line.startswith(_COMMENT):
            header.append(line)
            continue
        row = _split(line, separator, decimal)
        if row is not None:
            rows.append(row)
            foreign, pending = foreign + pending, 0
        elif rows:
            pending += 1  # counted only when numbers follow: a footer does no harm
        else:
            header.append(line)
    return rows, header, foreign


def _titles(header, separator, width) -> list[str]:
    if not header:
        return []
    parts = [p.strip().strip('"#').lower() for p in re.split(separator or r"\s+", header[-1].lstrip("# "))]
    return parts if len(parts) == width else []


def _third_column(third, y, titles, name, meta) -> np.ndarray | None:
    """Standard uncertainties, or None with a note about what the third column is."""
    title = titles[2] if len(titles) > 2 else ""
    usable = np.all(third[np.isfinite(third)] >= 0) and np.any(third > 0)
    extension = name.rsplit(".", 1)[-1].lower()
    if usable and (extension in ("xye", "fxye") or re.search(r"sig|err|esd|e\.s\.d|uncert|std", title)):
        return third
    good = np.isfinite(y) & np.isfinite(third)
    rough = np.median(np.abs(np.diff(third[good], 2)))
    smooth = rough < 0.2 * np.median(np.abs(np.diff(y[good], 2)))
    level = np.median(third[good]) / max(np.median(y[good]), 1e-12)
    if re.search(r"back|bkg|bg", title) or (smooth and 0.2 < level < 1.5):
        meta["background"] = third
        return None
    root = np.sqrt(np.maximum(y[good], 1))
    ratio = third[good] / root
    if usable and np.std(ratio) < 0.3 * np.mean(ratio):
        return third
    meta["third_column"] = third
    return None


def _facts(header: list[str]) -> dict[str, str]:
    """``key = value`` pairs of comments and RRUFF's ``##KEY=value``; keys in lower case."""
    facts = {}
    for line in header:
        match = re.match(r"[#;!'/*%\s]*([A-Za-z][\w .()-]*?)\s*[=:]\s*(.+)$", line)
        if match:
            facts.setdefault(match.group(1).strip().lower(), match.group(2).strip().strip('"'))
    return facts


def _header_radiation(header: list[str], facts: dict[str, str]):
    if "radiation" in facts and "wavelength" in facts:  # written by crystaldl: keeps the doublet apart from its absence
        second = facts.get("wavelength_alpha2")
        try:
            if second:
                return resolve_radiation((float(facts["wavelength"]), float(second)))
            radiation = resolve_radiation(float(facts["wavelength"]))
            return radiation if facts.get("doublet") == "unknown" else radiation.as_single()
        except (ValueError, WavelengthError):
            pass  # not ours after all; the general search below decides
    text = "\n".join(header)
    number = r"[^0-9\n]{0,30}?([0-9]+[.,][0-9]+)"
    for key in (r"k[-_ ]?alpha[-_ ]?1", r"alpha1", r"wave[-_ ]?length", r"lambda", "λ"):
        match = re.search(key + number, text, re.IGNORECASE)
        if match:
            return lab_radiation(match.group(1).replace(",", "."))
    match = re.search(r"\b(?:anode|target|tube|radiation|source)\W{1,6}([A-Z][a-z])\b", text, re.IGNORECASE)
    match = match or re.search(r"\b(Cr|Mn|Fe|Co|Ni|Cu|Mo|Ag)[ -]?K(?:a|α|alpha|\\a)", text)
    return lab_radiation(anode=match.group(1)) if match else None


# -- Rigaku RAS ----------------------------------------------------------------------------------------------------


def read_ras(content: bytes, name: str) -> Scan:
    """Rigaku RAS: ``*KEY "value"`` headers, then 2θ, intensity and attenuation between ``*RAS_INT_START`` and ``_END``."""
    text = decode(content, name)
    scans = []
    for part in re.split(r"^\*RAS_HEADER_START\s*$", text, flags=re.MULTILINE)[1:]:
        keys = dict(re.findall(r'^\*(\S+)\s+"(.*?)"', part, re.MULTILINE))
        match = re.search(r"^\*RAS_INT_START\s*$(.*?)^\*RAS_INT_END", part, re.MULTILINE | re.DOTALL)
        if match is None:
            raise unusable(name, "a RAS file without its *RAS_INT_START … *RAS_INT_END part", "a complete RAS file")
        rows = [_split(line, None, ".") for line in match.group(1).splitlines() if line.strip()]
        if not rows or None in rows or len({len(r) for r in rows}) != 1:
            raise unusable(name, "a RAS file whose intensities are not a table", "2θ, intensity and attenuation")
        table = np.array(rows)
        y = table[:, 1] * table[:, 2] if table.shape[1] > 2 else table[:, 1]
        radiation = lab_radiation(
            keys.get("HW_XG_WAVE_LENGTH_ALPHA1"),
            keys.get("HW_XG_WAVE_LENGTH_ALPHA2"),
            anode=keys.get("HW_XG_TARGET_NAME"),
        )
        meta = {
            "format": "Rigaku RAS",
            "anode": keys.get("HW_XG_TARGET_NAME"),
            "date": keys.get("MEAS_SCAN_START_TIME"),
        }
        scans.append(Scan(table[:, 0], y, None, radiation, keys.get("FILE_SAMPLE", ""), meta))
    return merge_scans(scans, name)


# -- GSAS ----------------------------------------------------------------------------------------------------------

GSAS_BANK = re.compile(
    r"^BANK\s+\d+\s+(\d+)\s+(\d+)\s+(\S+)\s+([-\d.eE+]+)\s+([-\d.eE+]+)(?:\s+[-\d.eE+]+){0,2}\s*(STD|ESD|FXYE|FXY)?\s*$",
    re.MULTILINE,
)


def read_gsas(content: bytes, name: str) -> Scan:
    """GSAS powder data, first bank: constant step (CONS) STD and ESD, and FXYE; angles in hundredths of a degree."""
    text = decode(content, name)
    match = GSAS_BANK.search(text)
    n, binning, kind = int(match.group(1)), match.group(3).upper(), (match.group(6) or "STD").upper()
    if binning != "CONS" and not kind.startswith("FXY"):
        raise unusable(name, f"a GSAS file with {binning} binning", "CONS (constant step) or FXYE data")
    end = GSAS_BANK.search(text, match.end())
    body = [line for line in text[match.end() : end.start() if end else None].splitlines() if line.strip()]
    try:
        if kind.startswith("FXY"):
            table = np.array([line.split()[: 3 if kind == "FXYE" else 2] for line in body[:n]], dtype=np.float64)
            x, y = table[:, 0] / 100, table[:, 1]
            sigma = table[:, 2] if kind == "FXYE" else None
        else:
            x = uniform_axis(float(match.group(4)) / 100, float(match.group(5)) / 100, n, name)
            y, sigma = _gsas_fixed(body, n, kind)
    except (ValueError, IndexError):
        raise unusable(name, f"a GSAS {kind} file with a line that cannot be read", "numbers in its columns") from None
    if y.size < n:
        raise unusable(name, f"a GSAS file that ends after {y.size} of {n} points", "all of them")
    header = text[: match.start()].splitlines()
    meta = {"format": f"GSAS {kind}", "title": header[0].strip() if header else ""}
    return Scan(x, y, sigma, _header_radiation(header, {}), meta["title"], meta)


def _gsas_fixed(body: list[str], n: int, kind: str):
    """STD: ten (I2, F6) pairs a line, detectors and counts; ESD: five (F8, F8) pairs, intensity and uncertainty."""
    cells = [line.ljust(80)[i : i + 8] for line in body for i in range(0, 80, 8)]
    if kind == "ESD":
        values = np.array([float(c) for c in cells if c.strip()])
        return values[0 : 2 * n : 2], values[1 : 2 * n : 2]
    cells = [c for c in cells if c.strip()][:n]
    y = np.array([float(c[2:]) for c in cells])
    detectors = np.array([max(int(c[:2]), 1) if c[:2].strip() else 1 for c in cells])
    return y, np.sqrt(np.maximum(y, 1) / detectors)
