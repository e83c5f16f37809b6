"""`DataCube`: a ``py4DSTEM.DataCube`` that finds Bragg disks under multiple scattering.

The only module here that needs py4DSTEM at import. The class must be called ``DataCube`` (emdfile finds classes by their
bare names) and the module must not set ``_emd_hook`` (it would hijack py4DSTEM's own files): what is saved is py4DSTEM's
``DataCube``, and what is read is upgraded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import py4DSTEM

from ..errors import DataError
from ..physics.device import resolve_device
from .bragg import points_of, read_bragg, save_bragg, save_emd, table_of, to_bragg_vectors
from .checks import check_data, check_selection
from .disks import check_probe
from .journal import journal_path
from .probe import Probe
from .readers import Scan, read_scan
from .scan import Search, find_in_scan, sample_patterns, settings_key
from .vacuum import probe_from_scan

__all__ = ["DataCube"]


class DataCube(py4DSTEM.DataCube):
    """Diffraction patterns of a scan: every method of ``py4DSTEM.DataCube``, and `find_bragg_disks`.

    Axes are (Rx, Ry, Qx, Qy): scan rows and columns, pattern rows and columns.

    Parameters
    ----------
    data : (Rx, Ry, Qx, Qy) array-like
        Array, memory map, HDF5 dataset or dask array; a line (R, Qx, Qy) or a single pattern (Qx, Qy) gets scan axes.
        NaN where not measured.
    name, slicelabels, calibration
        As in py4DSTEM.

    Raises
    ------
    DataError
        The data are not numeric, empty, or not patterns of at least 16 × 16 px.
    """

    def __init__(self, data, name="datacube", slicelabels=None, calibration=None):
        data = check_data(data)
        if not isinstance(name, str):
            raise TypeError(f"name is a {type(name).__name__}; expected text.")
        try:
            super().__init__(data, name=name, slicelabels=slicelabels, calibration=calibration)
        except Exception as error:  # py4DSTEM and emdfile raise Exception itself
            found = " ".join(str(error).split())[:120]
            raise DataError(f"slicelabels or calibration cannot be used ({found}); expected those of py4DSTEM.") from None

    @classmethod
    def from_file(cls, path, mem: str = "RAM", *, dataset=None, raw=None, **options) -> DataCube:
        """Read a scan: whatever py4DSTEM or RosettaSciIO reads, and plain arrays (npy, npz, h5).

        Parameters
        ----------
        path : str or Path
        mem : {"RAM", "MEMMAP"}
            ``"MEMMAP"`` leaves the patterns in the file and reads them block by block.
        dataset : str, optional
            Name of the array in an HDF5 or npz file that holds several.
        raw : dict, optional
            ``shape``, ``dtype`` and ``offset`` (bytes of header) of a file of bare numbers.
        **options
            Passed to ``py4DSTEM.import_file``.

        Raises
        ------
        FileNotFoundError
            No such file.
        FileFormatError, DataError
            Not a scan, or several.
        ImportError
            The format needs RosettaSciIO, which is not installed.
        """
        found = read_scan(path, mem, dataset=dataset, raw=raw, **options)
        if not isinstance(found, Scan):
            check_data(found.data, str(Path(path).name))
            return cls.upgrade(found)
        cube = cls(check_data(found.data, str(Path(path).name)))
        if found.r_pixel:
            cube.calibration.set_R_pixel_size(found.r_pixel[0])
            cube.calibration.set_R_pixel_units(found.r_pixel[1])
        if found.q_pixel:
            cube.calibration.set_Q_pixel_size(found.q_pixel[0])
            cube.calibration.set_Q_pixel_units(found.q_pixel[1])
        return cube

    @classmethod
    def upgrade(cls, cube) -> DataCube:
        """Turn a plain ``py4DSTEM.DataCube`` into this class in place: data, tree and calibration stay as they are.

        Raises
        ------
        TypeError
            Not a ``py4DSTEM.DataCube``.
        """
        if not isinstance(cube, py4DSTEM.DataCube):
            raise TypeError(f"cube is a {type(cube).__name__}; expected a py4DSTEM.DataCube.")
        cube.__class__ = cls
        return cube

    def copy(self) -> DataCube:
        """A copy of the same class."""
        return type(self).upgrade(super().copy())

    def save(self, path) -> Path:
        """Write the scan and everything in its tree to an EMD file, which plain ``py4DSTEM.read`` opens."""
        return save_emd(path, self)

    def vacuum_probe(self) -> Probe:
        """The probe that ``probe="auto"`` takes: from vacuum patterns of the scan, else from the central disk.

        ``.source`` says which.
        """
        return probe_from_scan(sample_patterns(self.data))

    def find_bragg_disks(
        self, method="fcunet", *, probe="auto", data=None, model=None, device="auto", options=None, progress=True,
        out=None, client=None,
    ):  # fmt: skip
        """Find the Bragg disks of the patterns and measure their positions.

        Parameters
        ----------
        method : {"fcunet", "correlation"}
            A network that undoes multiple scattering, or correlation with the probe; both measure what they find by
            variable projection.
        probe : "auto", py4DSTEM.Probe, (Qx, Qy) array or Probe
            The probe over vacuum. ``"auto"`` takes vacuum patterns of the scan, else its central disk (`vacuum_probe`).
        data : None, (rx, ry), (list of rx, list of ry), or (Rx, Ry) bool array
            Which patterns; None means all.
        model : str, optional
            Exact name of a model (``"fcunet"``).
        device : str
        options : DiskOptions, optional
        progress : bool
        out : path, optional
            File for the result of the whole scan. An interrupted run keeps what is done beside it, and the same call
            goes on from there.
        client : distributed.Client, optional
            A dask cluster on whose workers blocks of the scan run.

        Returns
        -------
        py4DSTEM.BraggVectors
            For the whole scan, with a copy of the cube's calibration; `table_of` gives uncertainties and confidences.
            One position gives a ``py4DSTEM`` ``QPoints`` with ``.sigma`` and ``.confidence`` beside ``.qx``, ``.qy``
            and ``.I``; several give a list of them.

        Raises
        ------
        DataError, ValueError, TypeError, UnknownModelError, DeviceError
            One sentence, before any work.
        """
        kind, positions = check_selection(data, self.Rshape)
        check_data(self.data)
        if out is not None and kind != "scan":
            raise DataError("out names a file but data selects some patterns; expected out for the whole scan only.")
        if not isinstance(progress, (bool, np.bool_)):
            raise TypeError(f"progress is a {type(progress).__name__}; expected True or False.")
        # what needs no look at the data first
        Search.checked(None, method, model, device, options)
        if client is None:
            resolve_device(device)
        search = Search.checked(self._probe(probe), method, model, device, options)
        if kind == "scan":
            return self._search_all(search, out, client, progress)
        wanted = np.zeros(self.Rshape, dtype=bool)
        wanted[tuple(positions.T)] = True
        table = find_in_scan(self.data, search, wanted=wanted, client=client, progress=progress and len(positions) > 1)
        points = [points_of(table, int(rx), int(ry)) for rx, ry in positions]
        return points[0] if kind == "one" else points

    def show_disks(self, rx: int, ry: int, disks=None, *, ax=None, **search):
        """Draw one pattern with a circle of the probe's radius around each disk, for tuning by eye.

        Parameters
        ----------
        rx, ry : int
        disks : BraggVectors or QPoints, optional
            What was found; otherwise ``search`` (as in `find_bragg_disks`) says how to look.
        ax : matplotlib Axes, optional

        Returns
        -------
        (Figure, Axes)
        """
        from .plot import plot_disks

        if check_selection((rx, ry), self.Rshape)[0] != "one":
            raise DataError(f"rx and ry are {rx!r} and {ry!r}; expected the two numbers of one position.")
        probe = self._probe(search.pop("probe", "auto"))
        if disks is None:
            disks = self.find_bragg_disks(data=(rx, ry), probe=probe, progress=False, **search)
        elif hasattr(disks, "_v_uncal"):
            disks = points_of(table_of(disks), rx, ry)
        elif not {"qx", "qy"} <= set(getattr(getattr(getattr(disks, "data", None), "dtype", None), "names", None) or ()):
            raise TypeError(f"disks is a {type(disks).__name__}; expected BraggVectors or QPoints.")
        positions = np.stack([disks.data["qx"], disks.data["qy"]], axis=1)
        return plot_disks(
            np.asarray(self.data[rx, ry]), positions, probe.radius, ax, sigma=getattr(disks, "sigma", None),
            confidence=getattr(disks, "confidence", None), title=f"({rx}, {ry}): {len(positions)} disks",
        )  # fmt: skip

    def _probe(self, probe) -> Probe:
        if isinstance(probe, str):
            if probe != "auto":
                raise DataError(f"probe is {probe!r}; expected 'auto', an array, or a py4DSTEM Probe.")
            probe = probe_from_scan(sample_patterns(self.data))
        probe = Probe.coerce(probe)
        check_probe(probe, self.Qshape)
        return probe

    def _search_all(self, search: Search, out, client, progress: bool):
        """The whole scan, and its file."""
        if out is None:
            table = find_in_scan(self.data, search, client=client, progress=progress)
            return to_bragg_vectors(table, self.calibration)
        out = Path(out)
        if not out.parent.is_dir():
            raise FileNotFoundError(f"out is {out}, but the folder {out.parent} does not exist.")
        if out.suffix.lower() not in (".h5", ".hdf5", ".emd"):
            raise DataError(f"out is {out.name!r}; expected a name ending in .h5, .hdf5 or .emd.")
        if out.exists():
            key = settings_key(self.data, search, np.ones(self.Rshape, dtype=bool))
            bragg = read_bragg(out)
            if table_of(bragg).provenance.get("key") == key:
                return bragg
            raise DataError(f"out names {out}, which holds another result; expected another name, or that file removed.")
        table = find_in_scan(self.data, search, out=out, client=client, progress=progress)
        bragg = to_bragg_vectors(table, self.calibration)
        save_bragg(out, bragg)
        journal_path(out).unlink(missing_ok=True)
        return bragg
