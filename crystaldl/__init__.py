"""crystaldl: measured diffraction in, quantitative structure out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystaldl.examples import load_example
    from crystaldl.powder.classify import Classification, classify_patterns
    from crystaldl.powder.pattern import PowderPattern

__version__ = "0.1.0"

# Public name -> the module that holds it. Loaded on first use, so that `import crystaldl` costs nothing and a
# training node needs none of the packages that only the user's side needs.
_PUBLIC = {
    "Classification": "crystaldl.powder.classify",
    "PowderPattern": "crystaldl.powder.pattern",
    "classify_patterns": "crystaldl.powder.classify",
    "load_example": "crystaldl.examples",
}

__all__ = ["Classification", "PowderPattern", "__version__", "classify_patterns", "load_example"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'crystaldl' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
