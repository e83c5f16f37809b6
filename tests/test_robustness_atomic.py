"""Writing files: the old one stays whole until the new one is, whatever happens and whoever else writes."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from crystaldl.storage import atomic

ROOT = Path(__file__).parents[1]


def test_new_file_and_replaced_file(tmp_path):
    path = tmp_path / "a.txt"
    assert atomic.write_text(path, "α = 0.1\n") == path
    assert path.read_bytes() == "α = 0.1\n".encode()
    atomic.write_bytes(str(path), b"\r\n\0")
    assert path.read_bytes() == b"\r\n\0"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_is_strict(tmp_path):
    path = atomic.write_json(
        tmp_path / "a.json", {"x": np.array([1.0, np.nan]), 2: (np.int64(3), float("inf")), "é": None}
    )
    assert json.loads(path.read_text(encoding="utf-8")) == {"x": [1.0, None], "2": [3, None], "é": None}
    with pytest.raises(TypeError):
        atomic.write_json(path, {"x": object()})
    assert json.loads(path.read_text(encoding="utf-8"))["é"] is None  # the old file


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_interrupted_body_leaves_the_old_file(tmp_path, error):
    path = atomic.write_text(tmp_path / "a.h5", "old")
    with pytest.raises(error), atomic.replacing(path) as beside:
        beside.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = atomic.write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(
        atomic.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_body_may_replace_the_file_beside(tmp_path):
    """As emdfile does: it removes what is there and makes a new file of that name."""
    with atomic.replacing(tmp_path / "a.h5") as beside:
        assert beside.parent == tmp_path
        assert beside.suffix == ".h5"
        assert beside.read_bytes() == b""
        beside.unlink()
        beside.write_text("new")
    assert (tmp_path / "a.h5").read_text() == "new"


def test_body_that_writes_nothing(tmp_path):
    path = atomic.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(FileNotFoundError), atomic.replacing(path) as beside:
        beside.unlink()
    assert path.read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="permissions and links of POSIX")
def test_permissions_and_links(tmp_path):
    path = atomic.write_text(tmp_path / "a.txt", "old")
    plain = tmp_path / "plain.txt"
    plain.write_text("made by open()")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    path.chmod(0o640)
    link = tmp_path / "link.txt"
    link.symlink_to(path)
    atomic.write_text(link, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_long_names(tmp_path):
    for name in ("x" * 250 + ".h5", "é" * 120 + ".json", "a." + "b" * 240, ".hidden"):
        assert atomic.write_text(tmp_path / name, "x").read_text() == "x"


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (3, TypeError, "path is a int; expected text or a pathlib.Path"),
        (None, TypeError, "path is a NoneType"),
        ("missing/a.txt", FileNotFoundError, "the folder missing does not exist"),
        (".", IsADirectoryError, "which is a folder"),
        ("a\0b", ValueError, "null"),
    ],
)
def test_bad_paths(path, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        atomic.write_text(path, "x")
    assert not list(tmp_path.iterdir())


WRITER = """
import signal, sys
from crystaldl.storage import atomic
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests with it ignored
path, letter, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for i in range(count):
    atomic.write_text(path, letter * (20_000 + 1000 * (i % 7)))
"""


def start(*arguments) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, *map(str, arguments)], cwd=ROOT)


def test_processes_that_write_one_file(tmp_path):
    """Three writers, a reader: at every moment the file is whole and one writer's."""
    path = atomic.write_text(tmp_path / "a.txt", "A" * 20_000)
    writers = [start(path, letter, 60) for letter in "ABC"]
    seen = set()
    while any(w.poll() is None for w in writers):
        text = path.read_text()
        assert len(text) in {20_000 + 1000 * i for i in range(7)}
        assert len(set(text)) == 1
        seen.add(text[0])
    assert [w.wait() for w in writers] == [0, 0, 0]
    assert seen <= set("ABC")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_killed_writer(tmp_path, kind):
    """Killed at random moments, the file is whole; what an interrupted writer left beside it does not hinder the next."""
    path = atomic.write_text(tmp_path / "a.txt", "A" * 20_000)
    rng = np.random.default_rng(0)
    for _ in range(4):
        writer = start(path, "B", 100_000)
        before = path.stat().st_mtime_ns
        while path.stat().st_mtime_ns == before:  # it is at work
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.03))
        writer.send_signal(kind)
        writer.wait()
        text = path.read_text()
        assert len(text) >= 20_000
        assert len(set(text)) == 1
    if kind == signal.SIGINT:
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert atomic.write_text(path, "C").read_text() == "C"


def test_one_home_for_writing():
    """Nothing else in the package renames files into place: the one exception is a folder (a training checkpoint)."""
    pattern = re.compile(r"os\.replace\(|os\.rename\(|mkstemp|NamedTemporaryFile|\.replace\(path\)|\.rename\(")
    files = (ROOT / "crystaldl").rglob("*.py")
    found = {str(path.relative_to(ROOT)) for path in files if pattern.search(path.read_text(encoding="utf-8"))}
    assert found <= {"crystaldl/storage/atomic.py", "crystaldl/training/checkpoint.py"}, found


def test_figures(tmp_path):
    """The same picture is the same file; what cannot be drawn leaves the old one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    first = atomic.write_figure(tmp_path / "a.png", figure, dpi=50).read_bytes()
    assert (
        first.startswith(b"\x89PNG") and atomic.write_figure(tmp_path / "b.png", figure, dpi=50).read_bytes() == first
    )
    with pytest.raises(ValueError, match="dpi|size|argument"):
        atomic.write_figure(tmp_path / "a.png", figure, dpi=-1)
    assert (tmp_path / "a.png").read_bytes() == first and len(list(tmp_path.iterdir())) == 2
    assert atomic.write_figure(tmp_path / "a.svg", figure).read_text(encoding="utf-8").startswith("<?xml")


SAVER = """
import sys
import numpy as np
from crystaldl.diffuse.volume import DiffuseVolume
from crystaldl.files import save
path, value, count = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
axis = np.linspace(-1, 1, 9 + 4 * int(value))
volume = DiffuseVolume(np.full((axis.size, axis.size), value), axis, axis, 0.0, (5, 5, 5, 90, 90, 90))
for _ in range(count):
    save(path, volume)
"""


def test_processes_that_save_one_object(tmp_path):
    """Two processes save objects of different sizes under one name: whoever reads gets one of them, whole."""
    from crystaldl.files import read

    path = tmp_path / "a.h5"
    command = [sys.executable, "-c", SAVER, str(path)]
    savers = [subprocess.Popen([*command, value, "25"], cwd=ROOT) for value in "12"]
    seen = []
    while any(s.poll() is None for s in savers):
        if path.exists():
            volume = read(path)
            (value,) = np.unique(volume.data)
            assert volume.shape == (9 + 4 * int(value),) * 2
            seen.append(value)
    assert [s.wait() for s in savers] == [0, 0]
    assert seen and set(seen) <= {1.0, 2.0}
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
