"""Files of a `Separation`: one EMD 1.0 file with its four volumes, and everything else as metadata of the root.

Plain emdfile and h5py open it; each volume can be read on its own with
``DiffuseVolume.from_file(path, dataset="separation/sro")``.
"""
from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..storage.hdf5 import open_hdf5
from ..storage.records import check_ending, write_emd
from .files import volume_of_group
from .readers.read import text_of, unusable
from .separation import Separation
from .volume import DiffuseVolume
from .writers import CONVENTIONS, to_emd

__all__ = ["read_separation", "write_separation"]

ROOT, FACTS = "separation", "separation"
FORMAT = "crystaldl separation 1"
_EXPECTED = "a file written by Separation.save"


# -- writing -------------------------------------------------------------------------------------------------------


def write_separation(parts: Separation, path) -> Path:
    """Write a separation as EMD 1.0; an interrupted write leaves an old file whole.

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
    check_ending(path)
    return write_emd(path, _tree(parts), "Separation", CONVENTIONS)


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
    with open_hdf5(path, _EXPECTED, links=False) as file:
        return separation_of(file, Path(path).name)


def separation_of(file, name: str) -> Separation:
    """The separation in an open HDF5 file whose name is ``name``."""
    facts = file.get(f"{ROOT}/metadatabundle/{FACTS}")
    if facts is None:
        content = ", ".join(list(file)[:8]) or "nothing"
        raise unusable(name, f"this HDF5 file holds no separation but {content}", _EXPECTED)
    if text_of(facts["format"]) != FORMAT:
        raise unusable(name, f"its format is {text_of(facts['format'])!r}", repr(FORMAT))
    return _from_group(file[ROOT], name)


def _from_group(group, file_name: str) -> Separation:
    import emdfile

    facts = emdfile.Metadata.from_h5(group[f"metadatabundle/{FACTS}"])._params
    given: dict[str, Any] = {}
    for field in fields(Separation):
        if field.name in facts:
            given[field.name] = _own(facts[field.name])
        elif field.name in group:
            given[field.name] = volume_of_group(group[field.name])
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
