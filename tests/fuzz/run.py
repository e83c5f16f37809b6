"""Read damaged files and make hostile calls; report what escapes.

    python tests/fuzz/run.py readers --count 2000
    python tests/fuzz/run.py calls --count 500 --only PowderPattern
    python tests/fuzz/run.py readers --only "Bruker RAW 4" --start 137 --count 1     # one case again

Each reader or method runs in a process of its own with limited memory; every case is decided by its number. Prints one JSON
object a line; exit status 1 if anything but a documented exception left the library, took over ten seconds or killed the process.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMIT_S, MEMORY = 10, 12 << 30


class Hang(BaseException):
    """A case took too long."""


def say(entry: dict) -> None:
    """One line that the supervising process, or a person, reads."""
    sys.stdout.write(json.dumps(entry) + "\n")
    sys.stdout.flush()


def _alarm(*_) -> None:
    raise Hang


def attempt(run, allowed: tuple, counts: collections.Counter, seed: int = 0) -> str | None:
    """Run one case; what went wrong, or None."""
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)  # of the processor's time, so that a busy machine is not our subject,
    signal.alarm(12 * LIMIT_S)  # and of the clock's, for what waits
    signal.setitimer(
        signal.ITIMER_VIRTUAL, 3 * LIMIT_S
    )  # ends the process: a library of C in a loop hears nothing else
    try:
        run()
        counts["read"] += 1
    except allowed as error:
        counts[type(error).__name__] += 1
    except Hang:
        return f"Hang: over {LIMIT_S} s"
    except BaseException as error:  # noqa: BLE001
        where = traceback.extract_tb(error.__traceback__)
        place = next((f for f in reversed(where) if "crystaldl" in f.filename), where[-1])
        return f"{type(error).__name__}: {str(error)[:150]} ({Path(place.filename).name}:{place.lineno})"
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        taken = int(1e3 * (time.process_time() - began))
        if taken > counts["slowest_ms"]:
            counts["slowest_ms"], counts["slowest_at"] = taken, seed
    return None


def read_files(name: str, start: int, count: int) -> dict:
    """Damaged files of one format."""
    from crystaldl.errors import CrystaldlError
    from fuzz.damage import damaged
    from fuzz.samples import READERS, content

    sample, whole = READERS[name], content(name)
    counts: collections.Counter = collections.Counter()
    ways: collections.Counter = collections.Counter()
    bad: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"sample{sample.suffix}"
        path.write_bytes(whole)
        sample.read(path)
        for seed in range(start, start + count):
            say({"at": seed, "counts": counts, "bad": bad})
            way, data = damaged(whole, sample.suffix, seed)
            ways[way] += 1
            path.unlink()  # HDF5 knows files that are still open by their inodes
            path.write_bytes(data)
            problem = attempt(lambda: sample.read(path), (CrystaldlError, FileNotFoundError), counts, seed)
            if problem:
                bad.setdefault(problem, seed)
                counts["escaped"] += 1
    return {"name": name, "cases": count, "counts": dict(counts), "ways": dict(ways), "bad": bad}


def make_calls(name: str, start: int, count: int) -> dict:
    """Hostile calls of one method or function."""
    from fuzz.calls import ALLOWED, CALLS, hostile

    counts: collections.Counter = collections.Counter()
    bad: dict[str, int] = {}
    call = CALLS[name]
    try:
        call.once()
    except Exception as error:  # noqa: BLE001
        return {"name": name, "cases": 0, "counts": {}, "bad": {f"does not work as it is: {error!r}"[:300]: start}}
    for seed in range(start, start + count):
        say({"at": seed, "counts": counts, "bad": bad})
        problem = attempt(hostile(call, seed), (*ALLOWED, *call.also), counts, seed)
        if problem:
            bad.setdefault(problem, seed)
            counts["escaped"] += 1
    return {"name": name, "cases": count, "counts": dict(counts), "bad": bad}


def names(kind: str) -> list[str]:
    if kind == "readers":
        from fuzz.samples import READERS

        return list(READERS)
    from fuzz.calls import CALLS

    return list(CALLS)


_watched: list[str] = []


class Escape(BaseException):
    """A case wrote outside the folder that is its own."""


def confine(folder: str) -> None:
    """Work in a folder of its own and let nothing be written elsewhere: some of the hostile values are names of files."""
    os.chdir(folder)
    tempfile.tempdir = folder
    inside = (os.path.realpath(folder) + os.sep, "/dev/null")
    caches = {"__pycache__", ".cache", ".config", ".matplotlib"}
    _watched.append(folder)

    def watch(event: str, args: tuple) -> None:
        if not _watched:
            paths = []
        elif event == "open":
            flags = args[2] if isinstance(args[2], int) else 0
            paths = [args[0]] if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) else []
        elif event in ("os.rename", "os.link", "os.symlink"):
            paths = list(args[:2])
        elif event in ("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown", "shutil.rmtree"):
            paths = [args[0]]
        else:
            return
        for path in paths:
            if isinstance(path, (str, bytes, os.PathLike)):
                real = os.path.realpath(os.fsdecode(path))
                if not (real + os.sep).startswith(inside) and not caches & set(Path(real).parts):
                    raise Escape(real)

    sys.addaudithook(watch)


def work(kind: str, chosen: list[str], start: int, count: int) -> None:
    """In a process of its own, in a folder of its own: one result a line."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        confine(folder)
        try:
            _work(kind, chosen, start, count)
        finally:
            _watched.clear()  # an audit hook cannot be taken back
            os.chdir("/")


def _work(kind: str, chosen: list[str], start: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind_of_clock in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(kind_of_clock, _alarm)
    warnings.simplefilter("ignore")
    import logging

    logging.disable(logging.CRITICAL)
    for name in chosen:
        say({"name": name})
        result = (read_files if kind == "readers" else make_calls)(name, start, count)
        say(result)


def supervise(kind: str, chosen: list[str], start: int, count: int):
    """Results of all, whatever happens to the processes: after a case that killed one, the next goes on behind it."""
    for name in chosen:
        first, left, killed, results = start, count, {}, []
        while left > 0:
            command = [sys.executable, str(HERE / "run.py"), kind, "--worker", "--only", name]
            command += ["--start", str(first), "--count", str(left)]
            at, done, so_far = first - 1, None, {"counts": {}, "bad": {}}
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                for line in process.stdout:
                    entry = json.loads(line) if line.startswith("{") else {}
                    if "at" in entry:
                        at, so_far = entry["at"], entry
                    done = entry if "cases" in entry else done
                error = process.stderr.read()
                code = process.wait()
            if done is not None:
                results.append(done)
                break
            if at < first:
                killed[f"does not start: {error.strip().splitlines()[-1:]}"] = first
                break
            killed[f"killed the process (status {code})"] = at
            results.append(so_far)
            left -= at + 1 - first
            first = at + 1
        yield _merged(name, count, results, killed)


def _merged(name: str, count: int, results: list[dict], killed: dict) -> dict:
    total: collections.Counter = collections.Counter()
    bad = dict(killed)
    for result in results:
        slowest = {key: result["counts"].pop(f"slowest_{key}", 0) for key in ("ms", "at")}
        total.update(result["counts"])
        if slowest["ms"] > total["slowest_ms"]:
            total["slowest_ms"], total["slowest_at"] = slowest["ms"], slowest["at"]
        bad.update(result["bad"])
    return {"name": name, "cases": count, "counts": dict(total), "bad": bad}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("readers", "calls"))
    parser.add_argument("--count", type=int, help="cases each (default: 2000 files, 500 calls)")
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", action="append", help="only this reader or method; again for more")
    parser.add_argument("--shared", action="store_true", help="all in one process: faster, but one crash ends it")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    count = args.count or (2000 if args.kind == "readers" else 500)
    chosen = args.only or names(args.kind)
    if args.worker or args.shared:
        work(args.kind, chosen, args.start, count)
        return 0
    failed = False
    for result in supervise(args.kind, chosen, args.start, count):
        say(result)
        failed |= bool(result["bad"])
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
