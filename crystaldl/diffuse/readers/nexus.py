"""The NeXus family of layouts: "Disorder scattering 1.0", NXdata, nxrefine, Mantid MDHisto."""

from __future__ import annotations

import re

import numpy as np

from ...physics.lattice import cell_from_metric
from ...storage.hdf5 import load
from .read import Grid, real_array, text_of, unusable

__all__ = ["find_nxdata", "read_mdhisto", "read_nxdata"]

_RADIATION = {"x": "xray", "n": "neutron", "e": "electron"}
_CELL = ("a", "b", "c", "alpha", "beta", "gamma")


# -- NXdata --------------------------------------------------------------------------------------------------------


def find_nxdata(file):
    """The NXdata group to read: by the chain of ``default``, else nxrefine's transform, else the first with a signal."""
    import h5py

    node = file
    for _ in range(4):
        default = text_of(node.attrs.get("default"))
        if not default or not isinstance(node.get(default), h5py.Group):
            break
        node = node[default]
        if _is_nxdata(node):
            return node
    for key in ("entry/transform", "entry/symm_transform", "entry/masked_transform", "scattering/data"):
        if isinstance(file.get(key), h5py.Group) and _is_nxdata(file[key]):
            return file[key]
    found = []

    def visit(key, node):
        if isinstance(node, h5py.Group) and _is_nxdata(node):
            found.append(node)
            return node
        return None

    file.visititems(visit)
    return found[0] if found else None


def _is_nxdata(node) -> bool:
    return text_of(node.attrs.get("NX_class")) == "NXdata" and "signal" in node.attrs


def read_nxdata(file, group, path) -> Grid:
    """An NXdata group with axes that are named after h, k and l, in any order."""
    import h5py

    if not isinstance(group, h5py.Group) or "signal" not in group.attrs:
        raise unusable(path.name, f"{group.name} is no NXdata group with a signal")
    if text_of(group.attrs.get("space")) == "direct":
        raise unusable(path.name, f"{group.name} is in direct space (a ΔPDF)", "reciprocal space")
    signal = text_of(group.attrs["signal"])
    data = _dataset(group, signal, path)
    names = _axis_names(group, data.shape, path)

    def first(*keys):
        return next((v for v in (_like(group, key, data.shape) for key in keys) if v is not None), None)

    sigma, weights = first("errors", f"{signal}_errors", f"{signal}_error"), first(f"{signal}_weights")
    hidden = first(f"{signal}_mask", "mask", "pixel_mask")
    if weights is not None:
        # sums and how much each voxel was met: the intensity is their ratio
        data, sigma = _ratio(data, weights), None if sigma is None else _ratio(sigma, weights)
    axes = [_centres(_dataset(group, key, path), n, key, path) for key, n in zip(names, data.shape, strict=True)]
    basis, origin, order = _directions(group, names, path)
    return Grid(
        data.transpose(order), [axes[i] for i in order], basis, origin, _find_cell(file, group),
        None if hidden is None else (hidden == 0).transpose(order), None if sigma is None else sigma.transpose(order),
        _find_radiation(file, group), _title(file, group), _history(group),
    )  # fmt: skip


def _dataset(group, key: str, path) -> np.ndarray:
    import h5py

    link = group.get(key, getlink=True)
    if link is None:
        raise unusable(path.name, f"{group.name} has no {key!r}", "a complete NXdata group")
    node = group.get(key)
    if node is None:
        where = getattr(link, "filename", None) or getattr(link, "path", "")
        raise unusable(
            path.name, f"its {key!r} is a link to {where!r}, which is not there", f"{where} in its place beside {path.name}"
        )
    if not isinstance(node, h5py.Dataset):
        raise unusable(path.name, f"{node.name} is no array", "a complete NXdata group")
    return real_array(node, path.name)


def _like(group, key: str, shape):
    """A data set of the shape of the signal, or None."""
    import h5py

    node = group.get(key)
    same = isinstance(node, h5py.Dataset) and node.shape == shape and node.dtype.kind in "biuf"
    return np.asarray(load(node), dtype=np.float64) if same else None


def _history(group) -> tuple[str, ...]:
    return tuple(line for line in text_of(group["history"]).split("\n") if line) if "history" in group else ()


def _ratio(values, weights):
    out = np.full(values.shape, np.nan)
    np.divide(values, weights, out=out, where=weights > 0)
    return out


def _axis_names(group, shape, path) -> list[str]:
    """The names of the axes in the order of the dimensions."""
    ndim = len(shape)
    axes = group.attrs.get("axes")
    axes = [] if axes is None else [text_of(a) for a in np.atleast_1d(axes)]
    if len(axes) == 1 and ndim > 1:
        axes = re.split(r"[:,\s]+", axes[0].strip("[]"))
    if len(axes) != ndim:
        raise unusable(path.name, f"{group.name} names {len(axes)} axes for {ndim} dimensions", "one axis per dimension")
    # "h_indices = 2" says which dimension an axis belongs to, whatever the order of the list
    places = [group.attrs.get(f"{axis}_indices") for axis in axes]
    places = [int(np.ravel(p)[0]) if p is not None and np.size(p) == 1 else -1 for p in places]
    if sorted(places) == list(range(ndim)):
        return [axes[places.index(i)] for i in range(ndim)]
    sizes = [group[axis].size if axis in group else -1 for axis in axes]
    return axes[::-1] if tuple(sizes) != shape and tuple(sizes[::-1]) == shape else axes


def _centres(axis: np.ndarray, n: int, name: str, path) -> np.ndarray:
    """Axis of n points from centres or from the n + 1 edges of bins."""
    axis = np.ravel(axis)
    if axis.size == n + 1:
        return 0.5 * (axis[1:] + axis[:-1])
    if axis.size != n:
        raise unusable(path.name, f"axis {name!r} has {axis.size} points for {n} pixels", f"{n} centres or {n + 1} edges")
    return axis


def _directions(group, names, path):
    """(basis, origin, order): hkl vectors of the axes sorted as h, k, l; or those that crystaldl wrote beside them."""
    if "basis" in group and "origin" in group:
        return *(np.asarray(load(group[key]), dtype=np.float64) for key in ("basis", "origin")), list(range(len(names)))
    letters = [_letter(name) or _letter(text_of(group[name].attrs.get("long_name"))) for name in names]
    if None in letters or len(set(letters)) != len(letters):
        found = f"the axes {', '.join(names)} of {group.name} do not say which is h, k and l"
        raise unusable(path.name, found, "axes named h, k, l")
    order = sorted(range(len(names)), key=lambda i: letters[i])
    origin = np.zeros(3)
    for i, letter in enumerate("hkl"):
        if letter not in letters and letter in group and group[letter].size == 1:
            origin[i] = float(np.ravel(load(group[letter]))[0])
    return np.eye(3)[[("hkl").index(letters[i]) for i in order]], origin, order


def _letter(name: str) -> str | None:
    """h, k or l out of "h", "H", "Qh", "[H,0,0]", "h_axis"."""
    text = name.strip().lower()
    match = re.fullmatch(r"q?_?([hkl])(?:_?(?:axis|indices|rlu))?", text)
    if match:
        return match[1]
    compact = re.sub(r"[\[\](),\s0]", "", text)
    return compact if compact in ("h", "k", "l") else None


def _entry(file, group):
    """The top-level group above an NXdata group."""
    return file[group.name.strip("/").split("/")[0]]


def _find_cell(file, group):
    """The unit cell beside the data, in the entry's sample, or anywhere in the entry."""
    import h5py

    if "unit_cell" in group:
        return _six(load(group["unit_cell"]))
    entry = _entry(file, group)
    samples = [entry] + [node for node in (entry.get(k) for k in entry) if isinstance(node, h5py.Group)]
    samples.sort(key=lambda node: text_of(node.attrs.get("NX_class")) not in ("NXsample", "NXcrystal"))
    for node in samples:
        for prefix in ("unitcell_", "unit_cell_", "lattice_", ""):
            keys = [prefix + c for c in _CELL]
            if all(isinstance(node.get(k), h5py.Dataset) and node[k].size == 1 for k in keys):
                return np.array([float(np.ravel(load(node[k]))[0]) for k in keys])
        if "unit_cell_abc" in node and "unit_cell_alphabetagamma" in node:
            parts = (node["unit_cell_abc"], node["unit_cell_alphabetagamma"])
            return np.concatenate([np.ravel(load(part))[:3] for part in parts])
        for key in ("unit_cell", "unitcell"):
            if isinstance(node.get(key), h5py.Dataset) and node[key].size >= 6:
                return _six(load(node[key]))
    return None


def _six(values) -> np.ndarray | None:
    values = np.ravel(values).astype(np.float64)
    return values[:6] if values.size >= 6 else None


def _find_radiation(file, group) -> str | None:
    import h5py

    text = text_of(group.attrs.get("radiation"))
    entry = _entry(file, group)
    for key in ("instrument/source/probe", "source/probe", "probe", "radiation"):
        if not text and isinstance(entry.get(key), h5py.Dataset):
            text = text_of(entry[key])
    return _RADIATION.get(text.strip().lower()[:1])


def _title(file, group) -> str:
    import h5py

    for node in (group, _entry(file, group)):
        if isinstance(node.get("title"), h5py.Dataset):
            return text_of(node["title"])
    return ""


# -- Mantid --------------------------------------------------------------------------------------------------------


def read_mdhisto(file, path) -> Grid:
    """Mantid's MDHistoWorkspace: axes are bin edges, stored last dimension first."""
    group = file["MDHistoWorkspace/data"]
    signal = _dataset(group, "signal", path)
    names = text_of(group["signal"].attrs.get("axes"))
    names = re.split(r"[:,]", names) if names else [f"D{i}" for i in reversed(range(signal.ndim))]
    if len(names) != signal.ndim:
        raise unusable(path.name, f"the signal names {len(names)} axes for {signal.ndim} dimensions", "a Mantid MDHisto file")
    lattice_group = _oriented_lattice(file)
    axes, kept, vectors = [], [], []
    for i, name in enumerate(names):
        axis = _centres(_dataset(group, name, path), signal.shape[i], name, path)
        vector = _projection(group[name], name, lattice_group)
        if vector is None and axis.size > 1:
            label = text_of(group[name].attrs.get("long_name")) or name
            raise unusable(path.name, f"its dimension {label!r} is no direction in h, k and l", "a workspace with HKL dimensions")
        if vector is not None:
            axes.append(axis)
            kept.append(i)
            vectors.append(vector)
    shape = tuple(signal.shape[i] for i in kept)
    vectors = _exact_projections(file, np.array(vectors))
    # last dimension first: turn it round, then put h before k before l where they are that
    order = sorted(range(len(kept)), key=lambda i: (int(np.flatnonzero(vectors[i])[0]), -i))

    def arrange(key):
        values = load(group[key]) if key in group else None
        return None if values is None or values.size != signal.size else np.reshape(values, shape).transpose(order)

    errors, hidden = arrange("errors_squared"), arrange("mask")
    with np.errstate(invalid="ignore"):
        sigma = None if errors is None else np.sqrt(np.asarray(errors, dtype=np.float64))
    return Grid(
        signal.reshape(shape).transpose(order), [axes[i] for i in order], vectors[order], np.zeros(3),
        _mantid_cell(lattice_group), None if hidden is None else hidden == 0, sigma, "neutron",
        text_of(file["MDHistoWorkspace/title"]) if "MDHistoWorkspace/title" in file else "",
    )  # fmt: skip


def _oriented_lattice(file):
    import h5py

    for key in file["MDHistoWorkspace"]:
        found = file.get(f"MDHistoWorkspace/{key}/sample/oriented_lattice")
        if isinstance(found, h5py.Group):
            return found
    return None


def _mantid_cell(group):
    if group is None:
        return None
    keys = [f"unit_cell_{c}" for c in _CELL]
    if all(key in group for key in keys):
        return np.array([float(np.ravel(load(group[key]))[0]) for key in keys])
    if "orientation_matrix" in group:
        ub = np.asarray(load(group["orientation_matrix"]), dtype=np.float64)
        return cell_from_metric(np.linalg.inv(ub.T @ ub))
    return None


def _projection(dataset, name: str, lattice_group) -> np.ndarray | None:
    """hkl vector of a dimension, from its label ("[H,-H,0]", "Q1") or its frame; None for energy and the like."""
    label = text_of(dataset.attrs.get("long_name")) or name
    frame = text_of(dataset.attrs.get("frame"))
    match = re.fullmatch(r"\[([^\],]+),([^\],]+),([^\],]+)\]", label.replace(" ", ""))
    if match:
        return _vector(match.groups())
    number = re.fullmatch(r"(?:Q|D)_?(?:sample_|lab_)?([xyz0-3])", label, flags=re.IGNORECASE)
    if number and frame == "QSample" and lattice_group is not None and "orientation_matrix" in lattice_group:
        # Cartesian Q = 2π UB hkl in the sample's frame
        ub = 2 * np.pi * np.asarray(load(lattice_group["orientation_matrix"]), dtype=np.float64)
        return np.linalg.inv(ub)[:, "xyz".find(number[1].lower()) % 3]
    if number and frame not in ("QSample", "QLab"):
        index = number[1].lower()
        place = "xyz".find(index) if index in "xyz" else int(index) - (1 if label[0] in "qQ" else 0)
        return np.eye(3)[place] if 0 <= place < 3 else None
    letter = _letter(label) or _letter(name)
    return None if letter is None else np.eye(3)["hkl".index(letter)]


def _vector(parts) -> np.ndarray | None:
    out = []
    for part in parts:
        match = re.fullmatch(r"([+-]?\d*\.?\d*)\*?[a-zA-Z]?", part)
        if not match:
            return None
        text, letter = match[1], part[-1].isalpha()
        if text in ("", "+", "-", "."):
            out.append({"-": -1.0}.get(text, 1.0) if letter else 0.0)
        else:
            out.append(float(text))
    vector = np.array(out)
    return vector if vector.any() else None


def _exact_projections(file, vectors: np.ndarray) -> np.ndarray:
    """Labels keep three digits; the log W_MATRIX, whose columns are the projections, keeps them all."""
    for key in file["MDHistoWorkspace"]:
        log = file.get(f"MDHistoWorkspace/{key}/logs/W_MATRIX/value")
        if log is None or log.size != 9:
            continue
        columns = np.reshape(load(log), (3, 3)).T
        for i, vector in enumerate(vectors):
            near = np.abs(columns - vector).max(axis=1)
            if near.min() < 2e-3:
                vectors[i] = columns[near.argmin()]
        break
    return vectors
