"""Writing a pattern: text that any program can read, or EMD 1.0 that keeps everything. `PowderPattern.from_file` reads both."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DataError
from ..storage.atomic import write_text
from ..storage.records import ENDINGS

__all__ = ["write_pattern"]

_SEPARATOR = {".xy": " ", ".xye": " ", ".csv": ","}


def write_pattern(pattern, path) -> Path:
    """Write 2θ, intensity (and sigma, for ``.xye`` and ``.csv`` where known) under a commented header, or EMD 1.0.

    An interrupted write leaves an old file whole.
    """
    path = Path(path)
    if path.suffix.lower() in ENDINGS:
        from .files import RECORDS

        return RECORDS.save(path, pattern)
    separator = _SEPARATOR.get(path.suffix.lower())
    if separator is None:
        raise DataError(f"path ends in {path.suffix!r}; expected one of {', '.join((*_SEPARATOR, *ENDINGS))}.")
    if path.suffix.lower() == ".xye" and pattern.sigma is None:
        raise DataError("the pattern has no sigma; an .xye file needs one, write .xy instead.")
    columns = [pattern.two_theta, pattern.intensity]
    titles = ["two_theta", "intensity"]
    if pattern.sigma is not None and path.suffix.lower() != ".xy":
        columns.append(pattern.sigma)
        titles.append("sigma")
    rows = "\n".join(separator.join(f"{v:.10g}" for v in row) for row in np.column_stack(columns).tolist())
    text = "\n".join(_header(pattern)) + f"\n# {separator.join(titles)}\n{rows}\n"
    return write_text(path, text)


def _header(pattern) -> list[str]:
    radiation = pattern.radiation
    lines = ["# crystaldl powder pattern: 2theta in degrees, wavelength in angstrom"]
    if pattern.name:
        lines.append("# name = " + " ".join(pattern.name.split()))
    lines += [f"# radiation = {radiation}", f"# wavelength = {radiation.wavelength:.10g}"]
    if radiation.alpha2 is not None:
        lines.append(f"# wavelength_alpha2 = {radiation.alpha2:.10g}")
    elif radiation.doublet is None:
        lines.append("# doublet = unknown")
    if pattern.background_subtracted:
        lines.append("# background_subtracted = true")
    return lines
