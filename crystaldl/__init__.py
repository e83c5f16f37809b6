"""crystaldl: measured diffraction in, quantitative structure out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .diffuse.compare import FormFactorComparison, compare_form_factors
    from .diffuse.molecular import Molecule
    from .diffuse.separation import Separation
    from .diffuse.sro.models import refine_interactions
    from .diffuse.sro.refine import refine_sro
    from .diffuse.sro.result import SROFit
    from .diffuse.sro.sites import Site
    from .diffuse.volume import DiffuseVolume
    from .examples import load_example
    from .files import read, save
    from .powder.classify import Classification, classify_patterns
    from .powder.pattern import PowderPattern
    from .stem.bragg import table_of
    from .stem.datacube import DataCube
    from .stem.strain.details import StrainOptions
    from .stem.strain.fit import fit_strain

__version__ = "0.1.0"

# Public name -> the module that holds it. Loaded on first use, so that `import crystaldl` costs nothing and a
# training node needs none of the packages that only the user's side needs.
_PUBLIC = {
    "Classification": "crystaldl.powder.classify",
    "DataCube": "crystaldl.stem.datacube",
    "DiffuseVolume": "crystaldl.diffuse.volume",
    "FormFactorComparison": "crystaldl.diffuse.compare",
    "Molecule": "crystaldl.diffuse.molecular",
    "PowderPattern": "crystaldl.powder.pattern",
    "SROFit": "crystaldl.diffuse.sro.result",
    "Separation": "crystaldl.diffuse.separation",
    "Site": "crystaldl.diffuse.sro.sites",
    "StrainOptions": "crystaldl.stem.strain.details",
    "classify_patterns": "crystaldl.powder.classify",
    "compare_form_factors": "crystaldl.diffuse.compare",
    "fit_strain": "crystaldl.stem.strain.fit",
    "load_example": "crystaldl.examples",
    "read": "crystaldl.files",
    "refine_interactions": "crystaldl.diffuse.sro.models",
    "refine_sro": "crystaldl.diffuse.sro.refine",
    "save": "crystaldl.files",
    "table_of": "crystaldl.stem.bragg",
}

__all__ = [
    "Classification", "DataCube", "DiffuseVolume", "FormFactorComparison", "Molecule", "PowderPattern", "SROFit", "Separation",
    "Site", "StrainOptions", "__version__", "classify_patterns", "compare_form_factors", "fit_strain", "load_example",
    "read", "refine_interactions", "refine_sro", "save", "table_of",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'crystaldl' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
