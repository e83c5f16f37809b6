"""Objects as trees of EMD 1.0, and back.

A record is an object that is the sum of its fields. In the file it is a node of its class's name: arrays are EMD arrays with
their units, fields that are records are nodes below, all else is metadata. emdfile, py4DSTEM and plain h5py open it.
Reading makes objects of the classes that a `Records` lists and of no others; nothing in a file names code to run.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from crystaldl import __version__

from ..errors import DataError, FileFormatError
from .atomic import replacing
from .hdf5 import open_hdf5

__all__ = ["ENDINGS", "Form", "Record", "Records", "check_ending", "class_of", "fill_emd", "write_emd"]

ENDINGS = (".h5", ".hdf5", ".emd")
FORMAT = 1  # goes up when what is written can no longer be read by what reads now
FACTS = "record"
_NUMERIC = "biuf"


def write_emd(path: str | os.PathLike, node: Any, kind: str, conventions: str = "") -> Path:
    """Write an emdfile node and its tree; an interrupted write leaves an old file whole.

    Class, format, version and conventions go to the attributes of the file.

    Parameters
    ----------
    path : str or path-like
    node : emdfile.Node
    kind : str, class of the object
    conventions : str, axes, units and signs in a sentence

    Raises
    ------
    TypeError, FileNotFoundError, OSError
        See `crystaldl.storage.atomic.replacing`.
    """
    with replacing(path) as beside:
        fill_emd(beside, node, kind, conventions)
    return Path(path)


def fill_emd(path: Path, node: Any, kind: str, conventions: str = "") -> None:
    """As `write_emd`, straight into ``path``: for use inside `replacing`."""
    import emdfile
    import h5py

    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        emdfile.save(str(path), node, mode="o")
    with h5py.File(path, "r+") as file:
        file.attrs["crystaldl_class"] = kind
        file.attrs["crystaldl_format"] = FORMAT
        file.attrs["crystaldl_version"] = __version__
        file.attrs["crystaldl_conventions"] = conventions


def check_ending(path: str | os.PathLike) -> None:
    """Refuse names that programs would not take for HDF5: DataError."""
    if isinstance(path, (str, os.PathLike)) and Path(path).suffix.lower() not in ENDINGS:
        raise DataError(f"path ends in {Path(path).suffix!r}; expected one of {', '.join(ENDINGS)}.")


def class_of(file: Any) -> str:
    """The class of the object in an open HDF5 file, as `write_emd` noted it; empty where it did not.

    Raises
    ------
    FileFormatError
        The file was written by a later version in a format that this one does not know.
    """
    kind, version = file.attrs.get("crystaldl_class", ""), file.attrs.get("crystaldl_format", FORMAT)
    if not isinstance(version, (int, np.integer)) or version > FORMAT:
        raise FileFormatError(f"its format is {version!r}; expected at most {FORMAT}: a later crystaldl reads it.")
    return kind if isinstance(kind, str) else ""


@dataclass(frozen=True)
class Record:
    """How the objects of a class become fields and are made of them again.

    Attributes
    ----------
    cls : type
    units : mapping, unit of each field that has one
    conventions : str, axes, units and signs in a sentence
    pack : function (object) -> dict of fields; by default the fields of the dataclass
    unpack : function (**fields) -> object; by default the class
    node, load : function (object, name, parent node), function (HDF5 group) -> object
        For a class that has an EMD form of its own: what hangs it into a tree, and what reads it.
    """

    cls: type
    units: Mapping[str, str] = field(default_factory=dict)
    conventions: str = ""
    pack: Callable[[Any], dict[str, Any]] | None = None
    unpack: Callable[..., Any] | None = None
    node: Callable[[Any, str, Any], Any] | None = None
    load: Callable[[Any], Any] | None = None

    def fields_of(self, value: Any) -> dict[str, Any]:
        if self.pack is not None:
            return self.pack(value)
        return {f.name: getattr(value, f.name) for f in fields(self.cls) if f.init}

    def make(self, given: dict[str, Any]) -> Any:
        """The object. Fields that the file lacks have their defaults; fields that this version lacks are left out."""
        if self.unpack is not None:
            return self.unpack(**given)
        known = {f.name: f for f in fields(self.cls) if f.init}
        missing = [
            n for n, f in known.items() if n not in given and f.default is MISSING and f.default_factory is MISSING
        ]
        if missing:
            raise FileFormatError(f"the {self.cls.__name__} in it lacks {', '.join(missing)}; expected a whole one.")
        return self.cls(**{name: value for name, value in given.items() if name in known})


@dataclass(frozen=True)
class Form:
    """How the objects of a class are kept whose files have a form of their own.

    Attributes
    ----------
    write : function (path, object) -> Path
    read : function (path) -> object
    """

    write: Callable[[Any, Any], Path]
    read: Callable[[Any], Any]


class Records:
    """The classes that a wing keeps in files.

    Parameters
    ----------
    records : mapping of class name to function () -> Record
        Called when an object of that class is met, so that nothing is imported for the others.
    marks : mapping of metadata name to class name
        How the nodes of a class are known that has an EMD form of its own.
    forms : mapping of class name to `Form`
        Classes whose files are not written as records. ``"*"`` is for any other class.
    expected : str, what messages of `open` say was expected
    """

    def __init__(
        self,
        records: Mapping[str, Callable[[], Record]],
        marks: Mapping[str, str] | None = None,
        forms: Mapping[str, Form] | None = None,
        expected: str = "a file of crystaldl",
    ):
        self._makers, self._marks, self._forms = dict(records), dict(marks or {}), dict(forms or {})
        self._known: dict[str, Record] = {}
        self._expected = expected

    def _of(self, kind: str) -> Record | None:
        """The record of a class, or None if it is not kept."""
        if kind not in self._known and kind in self._makers:
            record = self._makers[kind]()
            if record.pack is None and record.node is None and not is_dataclass(record.cls):
                raise TypeError(f"{record.cls.__name__} is no dataclass; expected pack and unpack, or node and load.")
            self._known[kind] = record
        return self._known.get(kind)

    def _record(self, value: object) -> Record | None:
        record = self._of(type(value).__name__)
        return record if record is not None and isinstance(value, record.cls) else None

    def __contains__(self, value: object) -> bool:
        return self._record(value) is not None

    # -- files of every form ---------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike, value: Any) -> Path:
        """Write one object in the form of its class.

        Raises
        ------
        TypeError, DataError, FileNotFoundError, OSError
            As `write`, and what a form of its own raises.
        """
        check_ending(path)
        own = self._forms.get(type(value).__name__)
        if own is None and value not in self:
            own = self._forms.get("*")
        return self.write(path, value) if own is None else own.write(path, value)

    def open(self, path: str | os.PathLike, kind: str = "") -> Any:
        """Read what `save` wrote, given the class of the object where it has a form of its own.

        Raises
        ------
        TypeError, FileNotFoundError
        FileFormatError
            Not HDF5, damaged, or without an object of these classes.
        """
        own = self._forms.get(kind)
        if own is None and kind not in self._makers:
            own = self._forms.get("*")
        return self.read(path, self._expected) if own is None else own.read(path)

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, path: str | os.PathLike, value: Any) -> Path:
        """Write one object.

        Raises
        ------
        TypeError
            Not an object of these classes.
        DataError
            It holds something that EMD does not, or the path does not end in .h5, .hdf5 or .emd.
        """
        import emdfile

        check_ending(path)

        record, kind = self._record(value), type(value).__name__
        if record is None:
            raise TypeError(f"obj is a {kind}; expected one of {', '.join(self._makers)}.")
        root = emdfile.Root(name="crystaldl")
        with contextlib.redirect_stdout(io.StringIO()):
            self._grow(root, kind, value)
        return write_emd(path, root, kind, record.conventions)

    def _grow(self, parent: Any, name: str, value: Any, where: str = "") -> None:
        """Hang a record, a sequence or a dict below a node."""
        import emdfile

        where = where or name
        record = self._record(value)
        if record is not None and record.node is not None:
            record.node(value, name, parent)
            return
        node = emdfile.Node(name=name)
        parent.tree(node)
        units: Mapping[str, str] = {}
        if record is not None:
            kind, items, units = type(value).__name__, record.fields_of(value), record.units
        elif isinstance(value, dict):
            kind, items = "dict", {_quote(key, where): item for key, item in value.items()}
        else:
            kind, items = type(value).__name__, {str(i): item for i, item in enumerate(value)}
        facts: dict[str, Any] = {"class": kind, "length": len(items)}
        for key, item in items.items():
            if isinstance(item, np.ndarray) and item.dtype.kind in _NUMERIC and item.size and item.ndim:
                node.tree(emdfile.Array(np.ascontiguousarray(item), name=key, units=units.get(key, "")))
            elif item in self or isinstance(item, dict) or (isinstance(item, (tuple, list)) and not _flat(item)):
                self._grow(node, key, item, f"{where}.{key}")
            else:
                facts[f"{key}_"] = _plain(item, f"{where}.{key}")  # no field is named so: never "class" or "length"
        if units:
            facts["units"] = dict(units)
        node.metadata = emdfile.Metadata(FACTS, facts)

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, path: str | os.PathLike, expected: str) -> Any:
        """Read what `write` wrote.

        Raises
        ------
        TypeError, FileNotFoundError
        FileFormatError
            Not HDF5, damaged, or without an object of these classes.
        """
        with open_hdf5(path, expected, links=False) as file:
            try:
                return self.read_open(file)
            except FileFormatError as error:
                raise FileFormatError(f"{Path(path).name}: {error}") from None

    def read_open(self, file: Any) -> Any:
        """As `read`, of an open HDF5 file."""
        kind = class_of(file)
        if kind not in self._makers or f"crystaldl/{kind}" not in file:
            content = kind or ", ".join(list(file)[:8]) or "nothing"
            raise FileFormatError(f"this HDF5 file holds {content}; expected one of {', '.join(self._makers)}.")
        return self._make(file[f"crystaldl/{kind}"])

    def _make(self, group: Any) -> Any:
        import emdfile
        import h5py

        facts = emdfile.Metadata.from_h5(group[f"metadatabundle/{FACTS}"])._params
        kind, length = facts.pop("class"), facts.pop("length")
        given = {key[:-1]: _own(item) for key, item in facts.items() if key.endswith("_")}
        for key, child in group.items():
            if key == "metadatabundle" or not isinstance(child, h5py.Group):
                continue
            given[key] = self._child(child)
        if record := self._of(kind):
            return record.make(given)
        if len(given) != length:
            raise FileFormatError(f"{group.name} holds {len(given)} of {length} items; expected all.")
        if kind == "dict":
            return {_unquote(key): item for key, item in given.items()}
        if kind in ("tuple", "list"):
            items = [given[str(i)] for i in range(length)]
            return tuple(items) if kind == "tuple" else items
        raise FileFormatError(f"{group.name} is a {kind!r}; expected one of {', '.join(self._makers)}.")

    def _child(self, group: Any) -> Any:
        bundle = group.get("metadatabundle", {})
        if FACTS in bundle:
            return self._make(group)
        for mark, kind in self._marks.items():
            record = self._of(kind) if mark in bundle else None
            if record is not None and record.load is not None:
                return record.load(group)
        return _array(group)


def _array(group: Any) -> np.ndarray:
    value = group["data"][()]
    if not isinstance(value, np.ndarray) or value.dtype.kind not in _NUMERIC:
        raise FileFormatError(f"{group.name} holds no numbers; expected an array.")
    value = value.astype(value.dtype.newbyteorder("="), copy=False)
    value.setflags(write=False)
    return value


def _flat(items: tuple | list) -> bool:
    """Whether EMD metadata keep the items exactly: all numbers of one kind, or all text."""
    kinds = {type(item.item() if isinstance(item, np.generic) else item) for item in items}
    return not kinds or kinds in ({int}, {float}, {bool}, {str})


def _plain(value: Any, where: str) -> Any:
    """What EMD metadata hold exactly, or one sentence."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) and ("\0" in value or not _encodable(value)):
        raise DataError(f"{where} is text with a character that HDF5 does not hold (NUL or half of a pair).")
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        raise DataError(f"{where} is {value}, which takes more than the 64 bits of a number in HDF5.")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in _NUMERIC:
        return np.array(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(item, where) for item in value)
    raise DataError(f"{where} is a {type(value).__name__}, which EMD does not hold; expected numbers, text or arrays.")


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _own(value: Any) -> Any:
    """Metadata as they were: Python numbers in sequences, arrays that nobody changes."""
    if isinstance(value, np.ndarray):
        value.setflags(write=False)
    if isinstance(value, (tuple, list)):
        return type(value)(item.item() if isinstance(item, np.generic) else item for item in value)
    return value


def _quote(key: Any, where: str) -> str:
    """A key as a name in HDF5; `_unquote` undoes it."""
    if not isinstance(key, str) or not key:
        raise DataError(f"{where} has the key {key!r}; expected keys of text.")
    return re.sub(r"[%/\0]|^\.|^metadatabundle$", lambda m: "".join(f"%{c:02X}" for c in m.group().encode()), key)


def _unquote(name: str) -> str:
    return unquote(name, errors="strict")
