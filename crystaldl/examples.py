"""Sample data that comes with the package: small simulated scans, diffuse scattering and a 4D-STEM scan of known truth."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError

if TYPE_CHECKING:
    from .diffuse.volume import DiffuseVolume
    from .powder.pattern import PowderPattern
    from .stem.datacube import DataCube

__all__ = ["example_facts", "example_file", "examples", "load_example"]


def _folder() -> Path:
    """Where the samples are: inside the installed package, or in ``data/`` of a source checkout."""
    installed, checkout = Path(__file__).parent / "samples", Path(__file__).parents[1] / "data"
    for folder in (installed, checkout):
        if (folder / "MANIFEST.json").is_file():
            return folder
    raise FileNotFoundError(f"the sample data are missing: neither {installed} nor {checkout} has a MANIFEST.json.")


@lru_cache(maxsize=1)
def _manifest() -> dict[str, dict]:
    return json.loads((_folder() / "MANIFEST.json").read_text(encoding="utf-8"))["samples"]


def examples(technique: str | None = None) -> list[str]:
    """Names of the samples, as `load_example` takes them: ``["powder/halite", …, "stem/strained_scan"]``.

    Parameters
    ----------
    technique : {"powder", "diffuse", "stem"}, optional
        Only its samples.

    Raises
    ------
    DataError
        There is no such technique.
    """
    known = dict.fromkeys(name.partition("/")[0] for name in _manifest())
    if technique is not None and technique not in list(known):
        raise DataError(f"technique is {technique!r}; expected one of {', '.join(known)}, or None for all.")
    return [name for name in _manifest() if technique is None or name.startswith(f"{technique}/")]


def example_facts(name: str) -> dict[str, Any]:
    """What is known about a sample.

    Returns
    -------
    dict
        ``title``, ``file``, ``sha256``, ``radiation``, ``licence`` and ``made``. Powder: ``phases``, for each phase,
        the largest weight fraction first, its ``formula``, ``crystal_system``, ``space_group``, ``symbol``, ``cell``
        (Å, degrees) and the publication its ``structure`` is from. Diffuse scattering: ``cell``, ``laue``, and ``truth``,
        the content of the JSON file beside the data: the ``atoms`` [element, x, y, z] of one variant of the site
        (Cartesian, Å), ``b_iso``, ``scale``, and ``alpha``, rows [u, v, w, α] of one of each ±R. 4D-STEM: ``truth``
        with the strain of each scan row (``rows``; theta in rad; None over vacuum), the ``vacuum`` and ``layer`` ranges of
        rows, and in px the beam's position, ``g`` and ``layer_g``, the disks' vectors from it.

    Raises
    ------
    DataError
        No sample has that name; the message lists the names.
    """
    if not isinstance(name, str) or name not in _manifest():
        raise DataError(f"name is {name!r}, which is no sample; expected one of {', '.join(examples())}.")
    # a copy through JSON: callers may change what they get
    facts = json.loads(json.dumps(_manifest()[name]))
    if "truth" in facts:
        facts["truth"] = json.loads((_folder() / facts["truth"]).read_text(encoding="utf-8"))
    return facts


def example_file(name: str) -> Path:
    """Where the file of a sample is, for the command line or another program.

    Parameters
    ----------
    name : str
        As for `load_example`.

    Returns
    -------
    Path
        A file of the installation: copy it before you change it.

    Raises
    ------
    DataError
        No sample has that name; the message lists the names.
    """
    return _folder() / example_facts(name)["file"]


def load_example(name: str) -> PowderPattern | DiffuseVolume | DataCube:
    """Read a sample scan, plane or volume.

    Parameters
    ----------
    name : str
        Such as ``"powder/quartz"``, ``"diffuse/hk0_poisson"`` or ``"stem/strained_scan"``; see `examples`.

    Returns
    -------
    PowderPattern, DiffuseVolume or DataCube
        A full scan with background and counting noise, counts of diffuse scattering with unmeasured regions, or counts of
        a scanned diffraction experiment.

    Raises
    ------
    DataError
        No sample has that name; the message lists the names.
    """
    path = example_file(name)
    if name.startswith("diffuse/"):
        from .diffuse.volume import DiffuseVolume

        return DiffuseVolume.from_file(path)
    if name.startswith("stem/"):
        from .stem.datacube import DataCube

        return DataCube.from_file(path)
    from .powder.pattern import PowderPattern

    return PowderPattern.from_file(path)
