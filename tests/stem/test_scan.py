"""Disks of whole scans: block by block, from files, resumed, and on a cluster."""

from __future__ import annotations

import os
import warnings

import dask.array as da
import h5py
import numpy as np
import pytest
from synthetic_lattices import deformation, disk, lattices, patterns

import crystaldl.stem.cluster as cluster
import crystaldl.stem.scan as scan
from crystaldl.errors import CrystaldlError, DataError, FileFormatError, PlausibilityWarning
from crystaldl.stem.bragg import table_of
from crystaldl.stem.datacube import DataCube
from crystaldl.stem.journal import Journal, journal_path
from crystaldl.stem.options import DiskOptions
from crystaldl.stem.probe import Probe
from crystaldl.stem.scan import Block, Search, find_in_scan, plan_blocks, sample_patterns, search_block

BASIS = np.array([[15.0, 1.0], [2.0, 16.0]])
SEARCH = {"method": "correlation", "probe": disk(), "progress": False}
BLOCK = 4 * 4 * 96 * 96  # bytes: four patterns


@pytest.fixture(scope="module")
def counts():
    return patterns(lattices(deformation(), (4, 5), basis=BASIS, descan=1.0, radius=2.0, origin=(47.2, 48.9)))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(scan, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(scan.plan_blocks, "__defaults__", (BLOCK,))


@pytest.fixture(scope="module")
def in_memory(counts):
    return table_of(DataCube(counts).find_bragg_disks(**SEARCH))


def same(a, b, tolerance=0.0):
    assert np.array_equal(a.offsets, b.offsets)
    for name in ("positions", "sigma", "intensity", "confidence", "fitted"):
        x, y = getattr(a, name), getattr(b, name)
        assert np.allclose(x, y, rtol=tolerance, atol=tolerance), name


def stored(kind, counts, folder):
    if kind == "memmap":
        np.save(folder / "a.npy", counts)
        return np.load(folder / "a.npy", mmap_mode="r")
    if kind == "dask":
        return da.from_array(counts, chunks=(3, 2, 96, 96))
    file = h5py.File(folder / "a.h5", "w")
    return file.create_dataset("a", data=counts, chunks=(2, 2, 96, 96) if kind == "chunked" else None)


# -- blocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, (2, 2), (3, 5), (1, 7)])
@pytest.mark.parametrize("limit", [1, 5, 8, 1000])
def test_blocks_cover_every_wanted_position_once(chunks, limit):
    shape = (7, 11, 16, 16)
    data = np.zeros(shape, dtype=np.uint8) if chunks is None else da.zeros(shape, chunks=(*chunks, 16, 16))
    wanted = np.random.default_rng(0).random(shape[:2]) > 0.3
    wanted[3:5] = False
    seen = np.zeros(shape[:2], dtype=int)
    for block in plan_blocks(data, wanted, limit=limit * 16 * 16 * 4):
        size = (block.x1 - block.x0) * (block.y1 - block.y0)
        assert size <= max(limit, 1 if chunks is None else chunks[0] * chunks[1])
        assert wanted[block.region].any()
        seen[block.region] += 1
    assert seen.max() == 1 and (seen[wanted] == 1).all()


@pytest.mark.parametrize("kind", ["memmap", "dask", "chunked", "contiguous"])
def test_wherever_the_patterns_are(kind, counts, in_memory, small_blocks, tmp_path):
    cube = DataCube(stored(kind, counts, tmp_path))
    found = table_of(cube.find_bragg_disks(**SEARCH))
    # refinement stops within 0.002 px; where exactly depends on what shares a batch
    same(in_memory, found, 5e-3)
    assert "radius" in cube.vacuum_probe().__repr__()


def test_blocks_are_bounded(counts, small_blocks, monkeypatch, tmp_path):
    sizes = []
    original = scan.search_block
    monkeypatch.setattr(scan, "search_block", lambda p, *a: sizes.append(np.asarray(p).nbytes * 2) or original(p, *a))
    DataCube(stored("memmap", counts, tmp_path)).find_bragg_disks(**SEARCH)
    assert len(sizes) >= 5 and max(sizes) <= BLOCK


def test_samples_come_from_all_over():
    data = np.zeros((40, 50, 16, 16), dtype=np.int32)
    data[:] = (np.arange(40)[:, None] * 50 + np.arange(50))[..., None, None]
    for stack in (data, da.from_array(data, chunks=(10, 10, 16, 16))):
        number = sample_patterns(stack, most=100)[:, 0, 0]
        assert 60 <= len(number) <= 130
        assert len(np.unique(number // 500)) == 4 and len(np.unique(number % 50 // 10)) == 5
    assert len(sample_patterns(data[:1, :3])) == 3


# -- resuming ------------------------------------------------------------------------------------------------------


def interrupted(cube, out, monkeypatch, after=2, error=KeyboardInterrupt):
    calls = []
    original = scan.search_block

    def stop(*arguments):
        calls.append(1)
        if len(calls) > after:
            raise error
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(scan, "search_block", stop)
        with pytest.raises(error):
            cube.find_bragg_disks(**SEARCH, out=out)
    return len(calls)


def test_resuming_gives_the_same(counts, small_blocks, monkeypatch, tmp_path, caplog):
    cube, out = DataCube(counts), tmp_path / "bragg.h5"
    whole = table_of(cube.find_bragg_disks(**SEARCH))
    interrupted(cube, out, monkeypatch)
    assert not out.exists() and journal_path(out).exists()
    assert "interrupted" in caplog.text and journal_path(out).name in caplog.text
    searched = []
    original = scan.search_block
    monkeypatch.setattr(scan, "search_block", lambda p, w, s: searched.append(w.sum()) or original(p, w, s))
    resumed = cube.find_bragg_disks(**SEARCH, out=out)
    assert 0 < sum(searched) < 20
    same(whole, table_of(resumed))
    assert out.exists() and not journal_path(out).exists()
    # once more: it is there already
    searched.clear()
    same(whole, table_of(cube.find_bragg_disks(**SEARCH, out=out)))
    assert not searched


def test_a_torn_journal_loses_one_block_only(counts, small_blocks, monkeypatch, tmp_path):
    cube, out = DataCube(counts), tmp_path / "bragg.h5"
    whole = table_of(cube.find_bragg_disks(**SEARCH))
    interrupted(cube, out, monkeypatch, after=3)
    content = journal_path(out).read_bytes()
    journal_path(out).write_bytes(content[:-37])  # killed in the middle of a record
    same(whole, table_of(cube.find_bragg_disks(**SEARCH, out=out)))


def test_nothing_stays_of_a_run_that_finished_no_block(counts, monkeypatch, tmp_path, caplog):
    cube, out = DataCube(counts), tmp_path / "bragg.h5"
    interrupted(cube, out, monkeypatch, after=0)
    assert list(tmp_path.iterdir()) == [] and "interrupted" not in caplog.text
    # a probe that the scan itself does not give is an error before any work
    noise = np.random.default_rng(0).poisson(5, (4, 4, 64, 64)).astype(np.float32)
    with pytest.raises(DataError, match="probe"):
        DataCube(noise).find_bragg_disks("correlation", out=out, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["options", "probe", "data"])
def test_other_settings_do_not_resume(change, counts, small_blocks, monkeypatch, tmp_path):
    out = tmp_path / "bragg.h5"
    interrupted(DataCube(counts), out, monkeypatch)
    before = journal_path(out).read_bytes()
    cube = DataCube(counts + 1) if change == "data" else DataCube(counts)
    other = {"options": {"options": DiskOptions(max_disks=7)}, "probe": {"probe": disk(radius=4.2)}, "data": {}}[change]
    with pytest.raises(DataError, match="other settings or data"):
        cube.find_bragg_disks(**(SEARCH | other), out=out)
    assert journal_path(out).read_bytes() == before
    DataCube(counts).find_bragg_disks(**SEARCH, out=out)
    if change != "data":
        with pytest.raises(DataError, match="holds another result"):
            cube.find_bragg_disks(**(SEARCH | other), out=out)


def test_journals(tmp_path):
    journal = Journal(tmp_path / "a.h5", "key")
    journal.append(x=np.arange(3))
    journal.append(x=np.arange(2))
    journal.close()
    again = Journal(tmp_path / "a.h5", "key")
    assert [len(r["x"]) for r in again.records] == [3, 2]
    again.append(x=np.arange(5))
    again.close()
    assert [len(r["x"]) for r in Journal(tmp_path / "a.h5", "key").records] == [3, 2, 5]
    content = journal_path(tmp_path / "a.h5").read_bytes()
    journal_path(tmp_path / "a.h5").write_bytes(content[:20])  # killed within the very first record
    for expected in ([], [4]):
        torn = Journal(tmp_path / "a.h5", "key")
        assert [len(r["x"]) for r in torn.records] == expected
        torn.append(x=np.arange(4))
        torn.close()
    journal_path(tmp_path / "b.h5").write_bytes(b"something else entirely")
    with pytest.raises(FileFormatError, match="no journal"):
        Journal(tmp_path / "b.h5", "key")


# -- odd patterns --------------------------------------------------------------------------------------------------


def test_odd_patterns_are_counted_once(counts):
    data = counts.astype(float)
    data[0, 0] = 0
    data[0, 1] = 7
    data[1, 1, 40:50, 40:50] = np.nan
    data[2, 2] = np.nan
    data[3, 3] = np.minimum(data[3, 3], 250)
    data[3, 4] = np.random.default_rng(0).poisson(50, (96, 96))
    with pytest.warns(PlausibilityWarning) as caught:
        table = table_of(DataCube(data).find_bragg_disks(**SEARCH))
    text = [str(w.message) for w in caught if w.category is PlausibilityWarning]
    assert len(text) == len(set(text))
    for start in ("3 of 20 patterns are constant", "2 of 20 patterns hold pixels", "1 of 20 patterns are saturated"):
        assert any(t.startswith(start) for t in text), text
    assert table.counts[0, 0] == table.counts[0, 1] == table.counts[2, 2] == 0
    assert table.counts[1, 1] > 5 and table.counts[3, 3] > 5
    assert table.searched.all()


def test_an_all_zero_cube_has_no_disks():
    with pytest.warns(PlausibilityWarning, match="4 of 4 patterns are constant") as caught:
        table = table_of(DataCube(np.zeros((2, 2, 96, 96))).find_bragg_disks(**SEARCH))
    assert len(table) == 0 and len([w for w in caught if w.category is PlausibilityWarning]) == 1
    with pytest.raises(DataError, match="probe='auto' found none"):
        DataCube(np.zeros((2, 2, 96, 96))).find_bragg_disks("correlation", progress=False)


def test_patterns_without_disks_warn_once(counts):
    empty = np.random.default_rng(0).poisson(20, (2, 3, 96, 96))
    with pytest.warns(PlausibilityWarning, match="6 of 6 patterns show no disks"):
        table = table_of(DataCube(empty).find_bragg_disks(**SEARCH, options=DiskOptions(min_significance=12)))
    assert len(table) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DataCube(counts).find_bragg_disks(**SEARCH)


def test_overlapping_disks_are_said():
    model = lattices(
        deformation(), (2, 2), basis=np.array([[10.8, 0.0], [0.0, 10.8]]), descan=0.0, radius=2.4, origin=(48, 48)
    )
    cube = DataCube(patterns(model, radius=6.0))
    with pytest.warns(PlausibilityWarning, match="disks overlap: their radius is"):
        cube.find_bragg_disks("correlation", probe=disk(radius=6.0), progress=False)


# -- clusters ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        yield client


@pytest.mark.parametrize("kind", ["memory", "memmap", "dask", "chunked"])
def test_a_cluster_gives_the_same(kind, client, counts, small_blocks, tmp_path):
    data = counts if kind == "memory" else stored(kind, counts, tmp_path)
    if kind == "chunked":
        data.file.flush()
    here = table_of(DataCube(data).find_bragg_disks(**SEARCH))
    there = table_of(DataCube(data).find_bragg_disks(**SEARCH, client=client))
    same(here, there, 1e-12)


def test_errors_on_workers_come_back_as_they_are(client, counts, tmp_path):
    search = Search(Probe.coerce(disk()), "correlation", None, "cuda:7")
    with pytest.raises(ValueError, match="cuda:7"):
        find_in_scan(counts, search, client=client, progress=False)
    with pytest.raises(TypeError, match="expected a distributed.Client"):
        find_in_scan(counts, search, client=object(), progress=False)


def _die(block):
    os._exit(1)
    return block


def test_a_killed_worker_loses_nothing(counts, small_blocks, tmp_path):
    distributed = pytest.importorskip("distributed")
    import dask

    good = da.from_array(counts[:2], chunks=(1, 5, 96, 96))
    bad = da.from_array(counts[2:], chunks=(1, 5, 96, 96)).map_blocks(_die, dtype=counts.dtype, meta=counts[:0])
    data, out = da.concatenate([good, bad]), tmp_path / "bragg.h5"
    search = Search(Probe.coerce(disk()), "correlation")
    whole = find_in_scan(counts, search, progress=False)
    key = scan.settings_key(counts, search, np.ones((4, 5), dtype=bool))
    with pytest.MonkeyPatch.context() as patch, dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        patch.setattr(scan, "settings_key", lambda *_: key)
        patch.setattr(cluster, "RETRIES", 0)
        options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
        with distributed.Client(**options) as client, pytest.raises(CrystaldlError, match="lost its workers") as caught:
            find_in_scan(data, search, out=out, client=client, progress=False)
        assert str(journal_path(out)) in str(caught.value) and "\n" not in str(caught.value)
        done = Journal(out, key)
        done.close()
        assert sum(len(r["number"]) for r in done.records) > 0
        same(whole, find_in_scan(counts, search, out=out, progress=False), 5e-3)


def test_search_block_counts_only_what_is_wanted(counts):
    wanted = np.zeros((2, 5), dtype=bool)
    wanted[0, 1] = wanted[1, 4] = True
    arrays, tally = search_block(counts[:2], wanted, Search(Probe.coerce(disk()), "correlation"))
    assert set(arrays["pattern"]) == {0, 1} and tally["searched"] == 2
    assert np.array_equal(scan._numbers(Block(0, 2, 0, 5), wanted), [1, 9])
