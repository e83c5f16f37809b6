"""Files of a `Separation`: one EMD 1.0 file with its four volumes, and everything else as metadata of the root.

Plain emdfile and h5py open it; each volume can be read on its own with
``DiffuseVolume.from_file(path, dataset="separation/sro")``.
"""
from __future__ import annotations

import os
import tempfile
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CrystaldlError, DataError
from .readers import from_emd, text_of, unusable
from .separation import Separation
from .volume import DiffuseVolume
from .writers import to_emd

__all__ = ["read_separation", "write_separation"]

ROOT, FACTS = "separation", "separation"
FORMAT = "crystaldl separation 1"
ENDINGS = (".h5", ".hdf5", ".emd")
_EXPECTED = "a file written by Separation.save"


# -- writing -------------------------------------------------------------------------------------------------------


def write_separation(parts: Separation, path) -> Path:
    """Write a separation as EMD 1.0; beside its place first, then renamed, so that an old file stays whole.

    Parameters
    ----------
    parts : Separation
    path : str or Path
        Ends in .h5, .hdf5 or .emd.

    Returns
    -------
    Path

    Raises
    ------
    DataError
        Another ending, or a parameter that EMD cannot hold.
    FileNotFoundError
        The folder does not exist.
    """
    if not isinstance(parts, Separation):
        raise TypeError(f"parts is a {type(parts).__name__}; expected a Separation.")
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"path ends in {path.suffix!r}; expected one of {', '.join(ENDINGS)}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; expected a folder to write {path.name} in.")
    root = _tree(parts)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        import emdfile

        emdfile.save(temporary, root, mode="o")
        os.chmod(temporary, _mode(path))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _mode(path: Path) -> int:
    """Permissions of the file that is replaced, or what a new file gets here."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _tree(parts: Separation):
    import emdfile

    root = emdfile.Root(name=ROOT)
    facts: dict[str, Any] = {"format": FORMAT}
    for field in fields(parts):
        value = getattr(parts, field.name)
        if isinstance(value, DiffuseVolume):
            to_emd(value, name=field.name, parent=root)
        else:
            facts[field.name] = _plain(value, field.name)
    root.metadata = emdfile.Metadata(FACTS, facts)
    return root


def _plain(value, name: str):
    """What EMD metadata hold exactly, or one sentence."""
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return np.array(value)
    if isinstance(value, dict) and all(isinstance(key, str) and key for key in value):
        return {key: _plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_plain(item, name) for item in value]
        kinds = {type(item) for item in items}
        if kinds <= {int, float} or kinds == {str} or kinds == {bool}:
            return type(value)(items)
    raise DataError(f"{name} is a {type(value).__name__} that EMD does not hold; expected numbers, text, arrays or lists of these.")


# -- reading -------------------------------------------------------------------------------------------------------


def read_separation(path) -> Separation:
    """Read what `write_separation` wrote, exactly as it was.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    Separation

    Raises
    ------
    FileNotFoundError
    FileFormatError
        Not HDF5, damaged, or without a separation.
    """
    import emdfile
    import h5py

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected {_EXPECTED}.")
    if path.is_dir() or not h5py.is_hdf5(path):
        found = "this is a folder" if path.is_dir() else "this is not an HDF5 file, or its start is damaged"
        raise unusable(path.name, found, _EXPECTED)
    try:
        with h5py.File(path, "r") as file:
            facts = file.get(f"{ROOT}/metadatabundle/{FACTS}")
            if facts is None:
                content = ", ".join(list(file)[:8]) or "nothing"
                raise unusable(path.name, f"this HDF5 file holds no separation but {content}", _EXPECTED)
            if text_of(facts["format"]) != FORMAT:
                raise unusable(path.name, f"its format is {text_of(facts['format'])!r}", repr(FORMAT))
        root = emdfile.read(path, emdpath=ROOT)
        return _from_tree(root, path.name)
    except CrystaldlError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, AssertionError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise unusable(path.name, f"this HDF5 file is truncated, damaged or incomplete ({text})", "a whole file") from None


def _from_tree(root, file_name: str) -> Separation:
    facts, nodes = root.metadata[FACTS], set(root._branch.keys())
    given: dict[str, Any] = {}
    for field in fields(Separation):
        if field.name in facts.keys:                  # an attribute of emdfile.Metadata, not a method
            given[field.name] = _own(facts[field.name])
        elif field.name in nodes:
            given[field.name] = from_emd(root.tree(field.name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise unusable(file_name, f"the separation has no {field.name}", _EXPECTED)
    return Separation(**given)


def _own(value):
    """Python numbers in sequences, as they were; arrays that nobody changes."""
    if isinstance(value, np.ndarray):
        value.setflags(write=False)
    if isinstance(value, (tuple, list)):
        return type(value)(item.item() if isinstance(item, np.generic) else item for item in value)
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    return value
