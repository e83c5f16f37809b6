"""Names of axes and planes, and what a volume says of itself when printed."""

from __future__ import annotations

from html import escape

import numpy as np

from .checks import AXIS_NAMES

__all__ = ["axis_names", "facts", "html_table", "name_of_plane", "one_line", "plane_name"]


def axis_names(volume) -> tuple[str, ...]:
    """A name for each axis: "h", "k", "l"; "hh0" for (1, 1, 0); "row", "column" where the lattice is not known."""
    if volume.lattice is None:
        return ("row", "column")
    return tuple(_vector_name(vector) for vector in volume.basis)


def _vector_name(vector) -> str:
    used = np.flatnonzero(vector)
    letter = AXIS_NAMES[used[0]]
    if used.size == 1 and vector[used[0]] == 1:
        return letter
    if np.isin(vector, (-1, 0, 1)).all():
        return "".join(f"{'-' if v < 0 else ''}{letter}" if v else "0" for v in vector)
    return "[" + " ".join(_term(v, letter) for v in vector) + "]"


def _term(value: float, letter: str) -> str:
    if value == 0:
        return "0"
    size = "" if abs(value) == 1 else f"{abs(value):.3g}"
    return f"{'-' if value < 0 else ''}{size}{letter}"


def plane_name(volume) -> str:
    """Such as "hk0" or "hhl"; "" for a volume, a plane of pixels, or one that has no such name."""
    if volume.ndim != 2 or volume.lattice is None:
        return ""
    return name_of_plane(volume.basis, volume.origin)


def name_of_plane(basis, origin) -> str:
    """Three indices, letters where they vary; "" where that would not say it all."""
    used = np.abs(basis).sum(axis=0)
    if not np.isin(basis, (-1, 0, 1)).all() or (used > 1).any() or (used.astype(bool) & (origin != 0)).any():
        return ""
    letters = [AXIS_NAMES[np.flatnonzero(vector)[0]] for vector in basis]
    out = []
    for i in range(3):
        if not used[i]:
            out.append(f"{origin[i]:.4g}")
            continue
        row = int(np.flatnonzero(basis[:, i])[0])
        out.append(("-" if basis[row, i] < 0 else "") + letters[row])
    return "".join(out)


def facts(volume) -> dict[str, str]:
    """What a `DiffuseVolume` prints of itself."""
    names = axis_names(volume)
    out = {
        "shape": " × ".join(map(str, volume.shape)),
        "axes": ", ".join(f"{n} {a[0]:.4g}…{a[-1]:.4g}" for n, a in zip(names, volume.axes, strict=True)),
        "lattice": "not known" if volume.lattice is None else ", ".join(f"{v:.6g}" for v in volume.lattice),
        "radiation": volume.radiation,
        "measured": f"{volume.mask.mean():.1%}",
        "intensity": f"{np.nanmin(volume.data):.6g}…{np.nanmax(volume.data):.6g}",
        "sigma": "none",
    }
    if volume.sigma is not None and np.isfinite(volume.sigma).any():
        out["sigma"] = f"median {np.nanmedian(volume.sigma):.4g}"
    if plane_name(volume):
        out = {"plane": plane_name(volume), **out}
    if volume.history:
        out["history"] = " → ".join(volume.history)
    return out


def one_line(kind: str, name: str, content: dict[str, str]) -> str:
    """The ``repr`` of an object: its kind, its name and its facts."""
    title = f" {name!r}" if name else ""
    return f"<{kind}{title}: " + ", ".join(f"{k} {v}" for k, v in content.items()) + ">"


def html_table(kind: str, name: str, content: dict[str, str]) -> str:
    """The same for a notebook."""
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in content.items())
    return f"<table><caption>{kind} {escape(name)}</caption>{rows}</table>"
