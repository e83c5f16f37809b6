"""Scan blocks on the workers of a dask cluster, a bounded number at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import islice

import numpy as np

from ..errors import CrystaldlError
from .scan import Block, Search, search_block

RETRIES = 2


def run_on_client(client, data, blocks: list[Block], wanted, search: Search) -> Iterator:
    """Search blocks on workers; yields (block, result) as they finish.

    Where all workers see the file of a memory map or HDF5 dataset they read it themselves; a dask array's chunks are
    made where they are needed; other arrays are sent block by block.

    Raises
    ------
    CrystaldlError
        Workers died while they were busy with a block.
    TypeError
        ``client`` is no dask Client.
    """
    import dask
    from distributed import Client, KilledWorker, as_completed

    if not isinstance(client, Client):
        raise TypeError(f"client is a {type(client).__name__}; expected a distributed.Client.")
    shared = client.scatter(search, broadcast=True)
    source = _file_source(client, data)
    waiting = iter(blocks)
    running = {}

    def submit(block: Block):
        keep = wanted[block.region]
        if source is not None:
            future = client.submit(_search_file, source, block, keep, shared, retries=RETRIES, pure=False)
        elif hasattr(data, "dask"):
            task = dask.delayed(search_block)(data[block.region], keep, dask.delayed(search))
            future = client.compute(task, retries=RETRIES)
        else:
            part = np.ascontiguousarray(data[block.region])
            future = client.submit(search_block, part, keep, shared, retries=RETRIES, pure=False)
        running[future.key] = block
        return future

    window = max(2, 2 * sum(client.nthreads().values()))
    queue = as_completed([submit(block) for block in islice(waiting, window)])
    try:
        for future in queue:
            block = running.pop(future.key)
            yield block, _outcome(future, block, KilledWorker)
            future.release()
            with contextlib.suppress(StopIteration):
                queue.add(submit(next(waiting)))
    finally:
        # what still runs is of no use to anyone when this ends early
        for key in list(running):
            with contextlib.suppress(Exception):
                client.cancel([key])


def _outcome(future, block: Block, killed):
    try:
        return future.result()
    except killed as error:
        raise CrystaldlError(
            f"client lost its workers while they searched positions ({block.x0}:{block.x1}, {block.y0}:{block.y1}), "
            "probably for lack of memory."
        ) from error


def _file_source(client, data) -> tuple | None:
    """How a worker opens the data itself, or None where it cannot."""
    import mmap

    if isinstance(data, np.memmap) and isinstance(data.base, mmap.mmap) and data.flags.c_contiguous:
        path = os.path.abspath(data.filename)
        source = ("memmap", path, data.dtype.str, int(data.offset), data.shape)
    elif type(data).__module__.startswith("h5py") and hasattr(data, "file"):
        path = os.path.abspath(data.file.filename)
        source = ("h5py", path, data.name)
    else:
        return None
    return source if all(client.run(os.path.exists, path).values()) else None


def _search_file(source: tuple, block: Block, wanted, search: Search):
    """On a worker: read one block from the file and search it."""
    if source[0] == "memmap":
        _, path, dtype, offset, shape = source
        data = np.memmap(path, dtype=np.dtype(dtype), mode="r", offset=offset, shape=shape)
        return search_block(np.array(data[block.region]), wanted, search)
    import h5py

    with h5py.File(source[1], "r") as file:
        return search_block(file[source[2]][block.region], wanted, search)
