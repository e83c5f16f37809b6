"""Disks of a whole scan, block by block in bounded memory: here or on a dask cluster, resumable.

Whatever holds the patterns (array, memory map, HDF5 dataset, dask array) is read in blocks of neighbouring positions that
follow its chunks. Pattern numbers count scan positions: rx · Ry + ry.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .. import __version__
from ..errors import CrystaldlError, PlausibilityWarning, UnknownModelError
from .bragg import COLUMNS, DiskTable
from .disks import METHODS, Disks, find_disks
from .journal import Journal
from .options import DiskOptions
from .probe import Probe

log = logging.getLogger(__name__)

BLOCK_BYTES = 64 * 2**20  # of patterns as float32
PROBE_SAMPLE = 256  # patterns from which a probe is made
_BRIGHT = 200  # counts: below this, many pixels share the highest value by chance


@dataclass(frozen=True)
class Search:
    """How disks are looked for: what every block needs to know."""

    probe: Probe
    method: str = "fcunet"
    model: str | None = None
    device: str = "auto"
    options: DiskOptions | None = None
    sha256: str = ""  # of the model's weights
    factors: str | None = None  # the model that tells |V_g| of the measured disks,
    factors_sha256: str = ""  # and the hash of its weights

    @classmethod
    def checked(cls, probe: Probe, method: str, model, device, options) -> Search:
        """Settings with the model's name and hash looked up, or one sentence on what is wrong, before any work."""
        from ..models.registry import available, card, default
        from .detect import factor_model

        if method not in METHODS:
            raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}.")
        if not isinstance(options, DiskOptions | None):
            raise TypeError(f"options is a {type(options).__name__}; expected DiskOptions.")
        if method != "fcunet":
            if model is not None:
                raise ValueError(f"model is {model!r} but method={method!r} needs no network; expected model=None.")
            return cls(probe, method, None, str(device), options)
        names = available("stem")
        if not names:
            raise UnknownModelError(
                "method is 'fcunet', but no 4D-STEM model ships with this version; expected method='correlation'."
            )
        name = default("stem") if model is None else model
        if card(name).task != "stem":
            raise UnknownModelError(f"model is {name!r}, which finds no disks; expected one of {', '.join(names)}.")
        factors = factor_model(card(name).architecture, options or DiskOptions())
        return cls(probe, method, name, str(device), options, card(name).sha256, factors, card(factors).sha256 if factors else "")

    def __call__(self, patterns) -> Disks:
        return find_disks(
            patterns, self.probe, method=self.method, model=self.model, options=self.options, device=self.device
        )


@dataclass(frozen=True)
class Block:
    """Scan positions x0 ≤ rx < x1, y0 ≤ ry < y1."""

    x0: int
    x1: int
    y0: int
    y1: int

    @property
    def region(self) -> tuple[slice, slice]:
        return slice(self.x0, self.x1), slice(self.y0, self.y1)


@dataclass
class Tally:
    """Patterns that deserve a word at the end."""

    searched: int = 0
    constant: int = 0
    saturated: int = 0
    unmeasured: int = 0
    without: int = 0

    def add(self, other: dict[str, int]) -> None:
        for name, count in other.items():
            setattr(self, name, getattr(self, name) + int(count))

    def warn(self) -> None:
        """One warning for each kind of trouble."""
        of = f"of {self.searched} patterns"
        if self.constant:
            _warn(f"{self.constant} {of} are constant (all pixels equal); no disks were looked for in them.")
        if self.unmeasured:
            _warn(f"{self.unmeasured} {of} hold pixels that are not finite; these count as not measured.")
        if self.saturated:
            _warn(f"{self.saturated} {of} are saturated (many pixels share the highest value); positions may suffer.")
        if self.without > self.constant:
            _warn(f"{self.without - self.constant} {of} show no disks.")


def _warn(text: str) -> None:
    warnings.warn(text, PlausibilityWarning, stacklevel=5)


# -- blocks --------------------------------------------------------------------------------------------------------


def plan_blocks(data, wanted, limit: int = BLOCK_BYTES) -> list[Block]:
    """Blocks that cover the wanted positions and follow the chunks of ``data`` where it has any.

    Parameters
    ----------
    data : (Rx, Ry, Qx, Qy) array-like
    wanted : (Rx, Ry) bool
    limit : int
        Bytes of a block as float32; one pattern, or one chunk, may take more.
    """
    n_x, n_y, q_x, q_y = data.shape
    most = max(1, limit // (4 * q_x * q_y))
    out = []
    for x0, x1 in _tiles(data, 0, max(1, most // n_y)):
        for y0, y1 in _tiles(data, 1, max(1, most // (x1 - x0))):
            x, y = np.nonzero(wanted[x0:x1, y0:y1])
            if x.size:  # no more is read than spans what is wanted
                out.append(Block(x0 + int(x.min()), x0 + int(x.max()) + 1, y0 + int(y.min()), y0 + int(y.max()) + 1))
    return out


def _tiles(data, axis: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges along an axis: several chunks up to ``most`` positions, or one larger chunk."""
    n = data.shape[axis]
    chunks = getattr(data, "chunks", None)
    if not chunks:
        lengths = [1] * n
    elif isinstance(chunks[axis], tuple):  # dask: every chunk's length
        lengths = list(chunks[axis])
    else:  # HDF5: one length for all
        lengths = [min(chunks[axis], n - i) for i in range(0, n, chunks[axis])]
    start = stop = 0
    for length in lengths:
        if stop > start and stop + length - start > most:
            yield start, stop
            start = stop
        stop += length
    yield start, stop


def read_block(data, block: Block) -> np.ndarray:
    """The patterns of a block in memory, (nx, ny, Qx, Qy)."""
    part = data[block.region]
    return np.asarray(part.compute() if hasattr(part, "compute") else part)


def sample_patterns(data, most: int = PROBE_SAMPLE) -> np.ndarray:
    """Patterns from all over the scan, (n, Qx, Qy); of chunked data only from some chunks."""
    n_x, n_y, q_x, q_y = data.shape
    most = min(most, max(64, BLOCK_BYTES // (4 * q_x * q_y)), n_x * n_y)
    if not getattr(data, "chunks", None):
        chosen = np.unique(np.linspace(0, n_x - 1, int(np.ceil(np.sqrt(most * n_x / n_y)))).round().astype(int))
        columns = np.unique(np.linspace(0, n_y - 1, max(1, most // len(chosen))).round().astype(int))
        return np.stack([np.asarray(data[i, j]) for i in chosen for j in columns])
    blocks = plan_blocks(data, np.ones((n_x, n_y), dtype=bool), limit=1)
    # at random, for evenly spaced ones may all lie in a few columns
    chosen = np.random.default_rng(0).permutation(len(blocks))[:16]
    blocks = [blocks[i] for i in np.sort(chosen)]
    each = -(-most // len(blocks))
    parts = []
    for block in blocks:
        patterns = read_block(data, block).reshape(-1, q_x, q_y)
        parts.append(patterns[np.unique(np.linspace(0, len(patterns) - 1, each).round().astype(int))])
    return np.concatenate(parts)


def search_block(patterns, wanted, search: Search) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Disks of the wanted patterns of a block.

    Parameters
    ----------
    patterns : (nx, ny, Qx, Qy)
    wanted : (nx, ny) bool

    Returns
    -------
    (arrays of the disks, with ``pattern`` counting the wanted patterns; counts for a `Tally`)
    """
    patterns = np.asarray(patterns)[np.asarray(wanted)]
    measured = np.isfinite(patterns) if patterns.dtype.kind == "f" else None
    gaps = np.zeros(len(patterns), dtype=bool) if measured is None else ~measured.all((1, 2))
    if measured is None:
        low, high = patterns.min((1, 2)), patterns.max((1, 2))
    else:
        low = np.where(measured, patterns, np.inf).min((1, 2))
        high = np.where(measured, patterns, -np.inf).max((1, 2))
    constant = ~(high > low)
    at_top = (patterns == high[:, None, None]).sum((1, 2))
    saturated = ~constant & (high >= _BRIGHT) & (at_top > max(20, 5e-4 * patterns[0].size))
    live = np.flatnonzero(~constant)
    found = search(patterns[live]) if live.size else None
    arrays = {name: getattr(found, name) if found is not None else _empty(name) for name in COLUMNS}
    arrays["pattern"] = live[found.pattern] if found is not None else np.zeros(0, dtype=np.int64)
    without = len(patterns) - len(np.unique(arrays["pattern"]))
    counts = {
        "searched": len(patterns), "constant": constant.sum(), "saturated": saturated.sum(), "unmeasured": gaps.sum(),
        "without": without,
    }  # fmt: skip
    return arrays, {name: int(count) for name, count in counts.items()}


def _empty(name: str) -> np.ndarray:
    return np.zeros((0, 2) if name in ("positions", "sigma") else 0)


# -- the scan ------------------------------------------------------------------------------------------------------


def find_in_scan(data, search: Search, *, wanted=None, out=None, client=None, progress=True) -> DiskTable:
    """Find the disks of all wanted patterns of a scan.

    Parameters
    ----------
    data : (Rx, Ry, Qx, Qy) array-like: array, memory map, HDF5 dataset or dask array
    search : Search
    wanted : (Rx, Ry) bool, optional
        All positions by default.
    out : Path, optional
        File that the result will have. Finished blocks are kept beside it (`journal_path`); a later call with the same
        settings goes on from there. Writing the result and removing the journal is up to the caller.
    client : distributed.Client, optional
        Blocks run on its workers.
    progress : bool

    Raises
    ------
    CrystaldlError
        A worker died; the sentence says what is kept.
    """
    from tqdm import tqdm

    wanted = np.ones(data.shape[:2], dtype=bool) if wanted is None else wanted
    key = settings_key(data, search, wanted)
    journal = Journal(Path(out), key) if out is not None else None
    todo, parts, tally = wanted.copy(), [], Tally()
    finished = False
    try:
        for record in journal.records if journal else ():
            parts.append(record)
            todo.ravel()[record["number"]] = False
            tally.add(dict(zip(Tally.__dataclass_fields__, record["tally"].tolist(), strict=True)))
        done = int(wanted.sum() - todo.sum())
        if done:
            log.info("%d of %d patterns were done before (%s)", done, int(wanted.sum()), journal.path)
        blocks = plan_blocks(data, todo)
        with tqdm(
            total=int(wanted.sum()), initial=done, desc="Bragg disks", unit="pattern", disable=not progress
        ) as bar:
            for block, (arrays, counts) in _results(data, blocks, todo, search, client, journal):
                number = _numbers(block, todo)
                arrays = {**arrays, "pattern": number[arrays["pattern"]], "number": number}
                parts.append(arrays)
                tally.add(counts)
                if journal:
                    journal.append(**arrays, tally=np.array(list(counts.values())))
                bar.update(len(number))
        finished = True
    finally:
        if journal:
            journal.close()
            if not finished and journal.blocks:
                log.warning("interrupted: finished blocks are kept in %s; the same call goes on", journal.path)
    tally.warn()
    joined = {name: np.concatenate([_empty(name), *(p[name] for p in parts)]) for name in COLUMNS}
    pattern = np.concatenate([np.zeros(0, dtype=np.int64), *(p["pattern"] for p in parts)])
    disks = Disks(pattern=pattern, n_patterns=wanted.size, **joined)
    table = DiskTable.from_disks(
        disks, scan_shape=data.shape[:2], pattern_shape=data.shape[2:], searched=wanted,
        provenance=_provenance(search, key),
    )  # fmt: skip
    _warn_overlap(table, search.probe.radius)
    return table


def _numbers(block: Block, wanted) -> np.ndarray:
    """Pattern numbers of the wanted positions of a block."""
    inside = np.argwhere(wanted[block.region])
    return (inside[:, 0] + block.x0) * wanted.shape[1] + inside[:, 1] + block.y0


def _results(data, blocks, wanted, search: Search, client, journal):
    """(block, result) as they come."""
    if client is not None:
        from .cluster import run_on_client

        try:
            yield from run_on_client(client, data, blocks, wanted, search)
        except CrystaldlError as error:
            kept = "nothing is kept without out=FILE" if not journal else "no block was finished"
            if journal and journal.blocks:
                kept = f"finished blocks are kept in {journal.path}, and the same call goes on"
            raise type(error)(f"{str(error).rstrip('.')}; {kept}.") from error
        return
    for block in blocks:
        yield block, search_block(read_block(data, block), wanted[block.region], search)


def settings_key(data, search: Search, wanted) -> str:
    """Hash of everything that decides the result: settings, probe, version, and a look at the data."""
    digest = hashlib.sha256()
    how = (__version__, search.method, search.model, search.sha256, search.factors_sha256, repr(search.options or DiskOptions()))
    about = (*how, tuple(data.shape), str(data.dtype))
    digest.update(repr(about).encode())
    digest.update(np.ascontiguousarray(search.probe.image).tobytes())
    digest.update(np.packbits(wanted).tobytes())
    last = (data.shape[0] - 1, data.shape[1] - 1)
    for i, j in ((0, 0), (last[0] // 2, last[1] // 2), last):
        digest.update(read_block(data, Block(i, i + 1, j, j + 1)).tobytes())
    return digest.hexdigest()


def _provenance(search: Search, key: str) -> dict:
    probe = search.probe
    about = {"source": probe.source, "radius": probe.radius, "centre": list(probe.centre), "edge": probe.edge}
    return {
        "method": search.method, "model": search.model, "model_sha256": search.sha256,
        "factors": search.factors, "factors_sha256": search.factors_sha256,
        "options": asdict(search.options or DiskOptions()), "probe": about, "key": key, "crystaldl": __version__,
    }  # fmt: skip


def _warn_overlap(table: DiskTable, radius: float) -> None:
    """Say so where disks overlap their neighbours: their positions draw on one another."""
    from scipy.spatial import cKDTree

    nearest = []
    for p in np.unique(np.linspace(0, table.offsets.size - 2, 200).astype(int)):
        where = table.positions[table.offsets[p] : table.offsets[p + 1]]
        if len(where) > 3:
            nearest.append(cKDTree(where).query(where, k=2)[0][:, 1])
    if nearest and np.median(np.concatenate(nearest)) < 1.9 * radius:
        spacing = np.median(np.concatenate(nearest))
        _warn(
            f"disks overlap: their radius is {radius:.3g} px but neighbours are {spacing:.3g} px apart; expected a smaller "
            "semi-angle for strain."
        )
