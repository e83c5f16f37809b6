"""The few exceptions and the one warning that users of crystaldl meet.

Each exception is also the builtin a caller would expect, so ``except ValueError`` keeps working for code that
knows nothing of crystaldl.
"""


class CrystaldlError(Exception):
    """Base of every error that crystaldl raises on purpose."""


class DataError(CrystaldlError, ValueError):
    """Measured data (or an argument that describes it) cannot be used as given."""


class WavelengthError(CrystaldlError, ValueError):
    """No wavelength was given, or the one given cannot be understood."""


class FileFormatError(CrystaldlError, ValueError):
    """A file is empty, truncated, or not of the format it claims to be."""


class UnknownModelError(CrystaldlError, ValueError):
    """No model of that exact name ships with this version."""


class ModelIntegrityError(CrystaldlError, ValueError):
    """A weights file or a checkpoint is not what its card or its index says."""


class DeviceError(CrystaldlError, ValueError):
    """The requested compute device does not exist here."""


class PlausibilityWarning(UserWarning):
    """The input is accepted but looks like a mistake (a wavelength in nm, say)."""
