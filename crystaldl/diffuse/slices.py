"""Planes out of volumes: by name (``"hk0"``, ``"h0l"``, ``"hk0.5"``, ``"hhl"``), or by a normal and an offset."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import combinations, product

import numpy as np

from ..errors import DataError
from .checks import AXIS_NAMES, check_number
from .grid import SNAP, interpolate, steps, to_index

__all__ = ["parse_plane", "plane"]

_NUMBER = r"\d+/\d+|\d*\.\d+|\d+\.?"
# one index of a compact name: a letter or a number; between separators a number may multiply a letter
_COMPACT = re.compile(rf"([+-]?)(?:([hkl])|({_NUMBER}))")
_SEPARATE = re.compile(rf"([+-]?)({_NUMBER})?\*?([hkl])?")
_EXPECTED = "three indices of which two letters vary, such as 'hk0', 'h0l', 'hk0.5', 'hhl', '-hhl' or '(h, -2h, l)'"


def parse_plane(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The directions and the origin that the name of a plane means.

    Returns
    -------
    basis : (2, 3) ndarray
        hkl vectors, in the order h, k, l of their letters: ``"hhl"`` gives (1, 1, 0) and (0, 0, 1).
    origin : (3,) ndarray
        The fixed indices.

    Raises
    ------
    DataError
    """
    wrong = DataError(f"name is {name!r}; expected {_EXPECTED}.")
    if not isinstance(name, str):
        raise wrong
    text = name.strip().strip("()[]").lower().replace("−", "-")
    parts = [p for p in re.split(r"[\s,;]+", text) if p]
    if len(parts) == 3:
        tokens = [m.groups() if (m := _SEPARATE.fullmatch(part)) and part.strip("+-") else None for part in parts]
        tokens = [None if t is None else (t[0], t[2], t[1]) for t in tokens]
    else:
        compact = "".join(parts)
        tokens = [m.groups() for m in _COMPACT.finditer(compact)]
        if "".join("".join(t or "" for t in token) for token in tokens) != compact:
            raise wrong
    if len(tokens) != 3 or None in tokens:
        raise wrong
    basis, origin = {}, np.zeros(3)
    for i, (sign, letter, number) in enumerate(tokens):
        value = (-1.0 if sign == "-" else 1.0) * (1.0 if number is None else _fraction(number, wrong))
        if letter is None:
            origin[i] = value
        else:
            basis.setdefault(letter, np.zeros(3))[i] = value
    rows = np.array([basis[letter] for letter in AXIS_NAMES if letter in basis])
    if len(rows) != 2 or not rows.any(axis=1).all():
        raise wrong
    return rows, origin


def _fraction(text: str, wrong: DataError) -> float:
    try:
        return float(Fraction(text.rstrip(".") or "0"))
    except (ValueError, ZeroDivisionError):
        raise wrong from None


def plane(volume, name: str | None = None, *, normal=None, offset: float = 0.0, thickness: float = 0.0):
    """Cut a plane out of a volume.

    Where the pixels of the plane fall on nodes of the grid the values are those of the nodes; elsewhere they are
    interpolated linearly between measured neighbours (those that were not measured pass their weight to the others;
    with less than half of the weight measured a pixel stays unmeasured).

    Parameters
    ----------
    volume : DiffuseVolume
        A 3-D one.
    name : str
        Three indices, letters where they vary: ``"hk0"``, ``"h0l"``, ``"hk0.5"``, ``"hk1/3"``, ``"hhl"``, ``"-hhl"``,
        or set apart, ``"(h, -2h, l)"``.
    normal : (3,) sequence
        Instead of a name: the reciprocal-lattice vector G = (h, k, l) that the plane is perpendicular to, in Å⁻¹ and
        not in indices (in an oblique lattice (0, 0, 1) is not the normal of hk0).
    offset : float
        The plane goes through ``offset * G``.
    thickness : float
        Average over this full width across the plane instead of cutting it, in r.l.u. of the fixed index ("hk0",
        "h0l", …), otherwise in units of the normal scaled to a largest index of 1.  A pixel with less than half of
        its samples measured stays unmeasured.

    Returns
    -------
    DiffuseVolume
        2-D, with the volume's lattice.  Its axes are as fine as the volume's grid along them.

    Raises
    ------
    DataError
        A name that cannot be understood, or a plane that misses the volume.
    """
    if volume.ndim != 3:
        raise DataError(f"this volume has the shape {volume.shape}; plane expects a 3-D one.")
    if (name is None) == (normal is None):
        raise DataError("plane needs a name such as 'hk0', or normal=(h, k, l); exactly one of the two.")
    thickness = check_number(thickness, "thickness", "r.l.u.")
    if thickness < 0:
        raise DataError(f"thickness is {thickness:g}; expected 0 or a positive width.")
    if name is not None:
        if offset:
            raise DataError(f"offset is {offset!r} together with a name; write it as an index, as in 'hk0.5'.")
        basis, origin = parse_plane(name)
        title = name.strip()
    else:
        basis, origin = _from_normal(volume, normal, check_number(offset, "offset"))
        title = f"normal ({', '.join(f'{v:g}' for v in normal)}), offset {offset:g}"
    axes = _axes(volume, basis, origin, title)
    data, sigma = _sample(volume, axes, basis, origin, thickness)
    if not np.isfinite(data).any():
        raise DataError(f"the plane {title} holds no measured pixel of this volume.")
    entry = f"plane {title}" + (f", thickness {thickness:g}" if thickness else "")
    return volume._derive(data, axes, basis=basis, origin=origin, sigma=sigma, history=entry)


def _from_normal(volume, normal, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Two directions perpendicular to G, with small whole indices where the lattice has such."""
    try:
        g = np.array([float(v) for v in normal]) if len(normal) == 3 else np.zeros(0)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        g = np.zeros(0)
    if g.shape != (3,) or not np.isfinite(g).all() or not g.any():
        raise DataError(f"normal is {normal!r}; expected three indices h, k, l, not all zero.")
    reciprocal = volume.reciprocal_basis()
    metric = reciprocal @ reciprocal.T
    candidates = np.array([v for v in product(range(-4, 5), repeat=3) if any(v) and v > (0, 0, 0) and np.gcd.reduce(v) == 1])
    length = np.sqrt(np.einsum("ni,ij,nj->n", candidates, metric, candidates))
    inside = np.abs(candidates @ metric @ g) < 1e-3 * length * np.sqrt(g @ metric @ g)
    candidates, length = candidates[inside], length[inside]
    best, pair = np.inf, None
    for i, j in combinations(np.argsort(length, kind="stable")[:12], 2):
        cosine = abs(candidates[i] @ metric @ candidates[j]) / (length[i] * length[j])
        cost = length[i] * length[j] * (1 + 4 * cosine)
        if cosine < 0.999 and cost < best * (1 - 1e-9):
            best, pair = cost, (i, j)
    if pair is not None:
        return np.array([candidates[i] for i in pair], dtype=float), offset * g
    # no lattice rows in the plane: orthogonal directions as long as a*
    cartesian = g @ reciprocal
    cartesian /= np.linalg.norm(cartesian)
    first = np.eye(3)[np.argmin(np.abs(cartesian))]
    first -= (first @ cartesian) * cartesian
    first /= np.linalg.norm(first)
    rows = np.array([first, np.cross(cartesian, first)]) * np.linalg.norm(reciprocal[0])
    return rows @ np.linalg.inv(reciprocal), offset * g


def _axes(volume, basis, origin, title: str) -> list[np.ndarray]:
    """Axes that cover the part of the plane inside the volume, on the volume's nodes where they can be."""
    directions = (basis @ np.linalg.inv(volume.basis)) / steps(volume)
    start, _ = to_index(volume, origin)
    corners = _section(start, directions, np.array(volume.shape) - 1.0)
    if len(corners) < 3:
        raise DataError(f"the plane {title} does not cut this volume.")
    out = []
    for i, direction in enumerate(directions):
        # one pixel of the volume a step along the axis that this direction crosses fastest
        fastest = int(np.argmax(np.abs(direction)))
        step = 1.0 / abs(direction[fastest])
        phase = -start[fastest] / direction[fastest] % step
        low = int(np.ceil((corners[:, i].min() - phase) / step - SNAP))
        high = int(np.floor((corners[:, i].max() - phase) / step + SNAP))
        if high <= low:
            raise DataError(f"the plane {title} cuts this volume in less than two pixels.")
        out.append(_on_nodes(volume, basis[i], phase + step * np.arange(low, high + 1), step))
    return out


def _on_nodes(volume, vector, axis, step) -> np.ndarray:
    """The volume's own numbers where the axis is one of the volume's, to the last digit."""
    for own, direction in zip(volume.axes, volume.basis, strict=True):
        if own.size == axis.size and np.array_equal(vector, direction) and np.abs(own - axis).max() < SNAP * step:
            return own
    near = np.round(axis / step)
    return near * step if np.abs(near * step - axis).max() < 1e-9 * step * axis.size else axis


def _section(start, directions, high) -> np.ndarray:
    """Corners (n, 2) of the polygon {u: 0 ≤ start + u @ directions ≤ high}, as plane coordinates."""
    normals = np.concatenate([directions.T, -directions.T])
    limits = np.concatenate([high - start, start]) + SNAP
    found = []
    for i, j in combinations(range(6), 2):
        pair = normals[[i, j]]
        if abs(np.linalg.det(pair)) <= 1e-9 * np.abs(pair).max() ** 2:
            continue
        u = np.linalg.solve(pair, limits[[i, j]])
        if (normals @ u <= limits + 1e-6).all():
            found.append(u)
    return np.array(found).reshape(-1, 2)


def _sample(volume, axes, basis, origin, thickness: float):
    """Mean over the samples across the plane, and its standard uncertainty."""
    grid, _ = to_index(volume, np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) @ basis + origin)
    start, _ = to_index(volume, origin)
    across = (_across(volume, basis) @ np.linalg.inv(volume.basis)) / steps(volume)
    shifts = _shifts(start, across, thickness / 2, 4 * sum(volume.shape))
    total, count, spread = (np.zeros(grid.shape[:-1]) for _ in range(3))
    for shift in shifts:
        values, sigma = interpolate(volume, grid + shift * across)
        measured = np.isfinite(values)
        total += np.where(measured, values, 0.0)
        count += measured
        if sigma is not None:
            spread += np.where(measured, np.square(sigma), 0.0)
    norm = np.where(2 * count >= shifts.size, count, np.nan)
    return total / norm, None if volume.sigma is None else np.sqrt(spread) / norm


def _across(volume, basis) -> np.ndarray:
    """The hkl vector that thickness counts: the fixed index of a plane like hk0, else the normal with largest index 1."""
    missing = np.flatnonzero(~basis.any(axis=0))
    if missing.size == 1:
        return np.eye(3)[missing[0]]
    reciprocal = volume.reciprocal_basis()
    normal = np.cross(*(basis @ reciprocal)) @ np.linalg.inv(reciprocal)
    return normal / np.abs(normal).max()


def _shifts(start, across, half: float, most: int) -> np.ndarray:
    """Samples across the plane, at most one pixel of the volume apart: its own layers where the plane is parallel.

    Where a slab is so much thicker than the volume that there would be more than ``most`` of them, they are further apart:
    less than half of them meet the volume, and nothing counts as measured.
    """
    if half <= 0:
        return np.zeros(1)
    moving = np.flatnonzero(np.abs(across) > 1e-9)
    if half * np.abs(across).max() > most:
        return np.linspace(-half, half, most)
    if moving.size == 1:
        i = moving[0]
        ends = np.sort(start[i] + np.array([-half, half]) * across[i])
        layers = np.arange(np.ceil(ends[0] - SNAP), np.floor(ends[1] + SNAP) + 1)
        return (layers - start[i]) / across[i] if layers.size else np.zeros(1)
    n = int(np.ceil(half * np.abs(across).max()))
    return np.linspace(-half, half, 2 * n + 1)
