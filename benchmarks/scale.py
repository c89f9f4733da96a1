"""What an archive costs besides its recordings, by their number: ``python -m benchmarks.scale``; a quarter of an hour.

The listing is generated and decoding is left out; all else is a run as it is: a manifest frozen, a driver, a scheduler
and two workers in processes of their own, a row for each recording in a part for each shard, and the commands that look
at the table afterwards. ``--lists`` measures what there is before that: the listing of list files and of a folder;
``--parts`` those commands alone, for a table of so many parts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from distributed import Client

from benchmarks.measuring import ONE_THREAD, describe
from emotion_batch import usage
from emotion_batch.errors import Status
from emotion_batch.progress import Progress, Watcher
from emotion_batch.run.dask_client import DRIVER_KEY, local_configuration
from emotion_batch.run.dask_local import local_cluster
from emotion_batch.run.driver import Run
from emotion_batch.run.run_options import RunOptions
from emotion_batch.run.submit import open_run
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.archive import Listing, list_recordings
from emotion_batch.storage.entries import ENTRY_SCHEMA, compact
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import parts
from emotion_batch.tables.attempts import Attempt
from emotion_batch.tables.lease import read_holders
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.parts import Counts
from emotion_batch.tables.schema import FEATURES, TableInfo
from emotion_batch.tables.table import create_info
from emotion_batch.worker.job import Job, TablePlace
from emotion_batch.worker.task import Publish, Receipt, Task

ROOT = Path(__file__).parent.parent
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
N_WORKERS = 2
# As a listing of a folder has them.
_CHUNK = 65_536
_LOOK_S = 0.1
_ROWS_CPU = "rows_cpu"
_BEGAN_NS = 1_767_225_600_000_000_000


class Idle(Job):
    """A job that decodes nothing: each recording gets a row that is ``ok``, of zeros."""

    def do_shard(self, task: Task, run_id: str, publish: Publish = parts.publish_part) -> Receipt:
        """Do what any job does, and tell apart what publishing its rows costs."""

        def timed(*part: Any) -> Counts:
            with _cpu_of_rows():
                return publish(*part)

        return super().do_shard(task, run_id, timed)

    def extract(self, entries: pa.RecordBatch, attempt: Attempt) -> pa.Table:  # noqa: ARG002 there is no kernel to isolate
        """Return a row for each of `entries`."""
        with _cpu_of_rows():
            return rows_of(entries, self.info)


def rows_of(entries: pa.RecordBatch, info: TableInfo) -> pa.Table:
    """Return a feature row of zeros for each recording."""
    n = entries.num_rows
    kinds = {field.name: field.type for field in info.schema}
    start_s = next(info.segments.starts())
    values: dict[str, Any] = {"start_s": start_s, "end_s": start_s + 3.0, "status": Status.OK.value, "duration_s": 4.0}
    values |= {"sample_rate_hz": 16_000, "channels": 1}
    columns = {name: pa.repeat(pa.scalar(value, kinds[name]), n) for name, value in values.items()}
    flat = pa.array(np.zeros(n * kinds["mfcc"].list_size, np.float32))
    columns["mfcc"] = pa.FixedSizeListArray.from_arrays(flat, type=kinds["mfcc"])
    columns |= {"file": entries["file"], "error": pa.nulls(n, kinds["error"]), "channel": pa.nulls(n, pa.int16())}
    return pa.table([columns[name] for name in info.schema.names], schema=info.schema)


@contextmanager
def _cpu_of_rows() -> Iterator[None]:
    began = time.thread_time()
    try:
        yield
    finally:
        stages = usage.current().stages_s
        stages[_ROWS_CPU] = stages.get(_ROWS_CPU, 0.0) + time.thread_time() - began


def names_of(start: int, stop: int) -> pa.Array:
    """Return the names of recordings by their numbers, in order: a folder for each thousand, 27 bytes each."""
    numbers = pa.array(np.arange(start, stop))

    def padded(values: pa.Array, width: int) -> pa.Array:
        return pc.utf8_lpad(values.cast(pa.string()), width, "0")

    folders = padded(pc.divide(numbers, 1_000), 6)
    return pc.binary_join_element_wise("day-", folders, "/call-", padded(numbers, 8), ".wav", "")


def entries_of(n_recordings: int) -> pa.Table:
    """Return a listing as one of a folder would be: names in order, sizes and modification times all different."""
    generator = np.random.default_rng(0)
    batches = []
    for start in range(0, n_recordings, _CHUNK):
        stop = min(n_recordings, start + _CHUNK)
        sizes = pa.array(generator.integers(40_000, 160_000, stop - start))
        times = _BEGAN_NS + np.arange(start, stop) * 1_000_000_007 + generator.integers(0, 10**9, stop - start)
        versions = pa.array(times).cast(pa.string())
        columns = [names_of(start, stop), pa.nulls(stop - start, pa.binary()), sizes, versions]
        batches.append(compact(pa.RecordBatch.from_arrays(columns, schema=ENTRY_SCHEMA)))
    return pa.Table.from_batches(batches, ENTRY_SCHEMA)


class _Timed(Run):
    """A run that says how long it looked for what is to be done."""

    looked_s = 0.0

    def _look(self, *arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return super()._look(*arguments, **options)
        finally:
            self.looked_s += time.perf_counter() - began


def drive(n_recordings: int, table: str) -> None:
    """Do a run over a generated listing, and print its times as JSON: what a driver process is, from list to end."""
    began = time.perf_counter()
    entries = entries_of(n_recordings)
    times = {"list_s": time.perf_counter() - began}
    place = Folder.of(table)
    info = TableInfo(FEATURES, "generated", FeatureSettings(), Segments())
    # From the cluster's being there to the last receipt: graph, scheduler and shards.
    begun: list[float] = []
    ended = [0.0]

    def end(progress: Progress) -> None:  # noqa: ARG001 when it is called is what counts
        ended[0] = time.perf_counter()

    watcher = Watcher(on_note=lambda text: begun.append(time.perf_counter()), on_progress=end)
    with _Timed(place, info, RunOptions(workers=N_WORKERS, watcher=watcher), began) as run:
        began = time.perf_counter()
        run.freeze(Listing(place, entries), usage.Spent(), prune=False)
        del entries
        times["freeze_s"] = time.perf_counter() - began
        summary = run.finish(Idle(features=TablePlace(place, info), archive=place))
        times["tasks_s"] = run.looked_s
    if begun:
        times["shards_s"] = ended[0] - begun[0]
    times["rows_cpu_s"] = summary.spent.stages_s.get(_ROWS_CPU, 0.0)
    times["n_shards"] = summary.n_shards
    times["n_recordings"] = summary.counts.n_recordings
    print(json.dumps(times))


class Watch:
    """Peak memory and CPU time of a process and of all that it starts, by what they are."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._found: dict[int, tuple[str, int, float]] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(_LOOK_S):
            try:
                there = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for one in there:
                try:
                    kind = self._kind(one)
                    peak = _peak_bytes(one.pid)
                    times = one.cpu_times()
                except (psutil.NoSuchProcess, psutil.ZombieProcess, OSError):
                    continue
                if peak is not None:
                    self._found[one.pid] = (kind, peak, times.user + times.system)

    def _kind(self, one: psutil.Process) -> str:
        if one.pid == self._root.pid:
            return "driver"
        known = self._found.get(one.pid)
        if known is not None and known[0] != "other":
            return known[0]
        words = " ".join(one.cmdline())
        if "dask_local.serve" in words:
            return "scheduler"
        return "worker" if "forkserver" in words else "other"

    def peak_mb(self, kind: str) -> float:
        """Return the largest peak of processes of a kind, in MB of a million bytes."""
        return max((peak for name, peak, _ in self._found.values() if name == kind), default=0) / 1e6

    def cpu_s(self, *kinds: str) -> float:
        """Return the CPU seconds of all processes of some kinds."""
        return sum(cpu for name, _, cpu in self._found.values() if name in kinds)


def _peak_bytes(pid: int) -> int | None:
    """Return the most memory that a process has had resident; None of one that has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _run(*command: str) -> tuple[Watch, str, float]:
    """Run a Python program to its end; return what was seen of it, its output, and the seconds that it took."""
    began = time.perf_counter()
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": os.fspath(ROOT)}
    with (
        subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, env=environment, text=True) as child,
        Watch(child.pid) as watch,
    ):
        assert child.stdout is not None
        out = child.stdout.read()
        child.wait()
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)}: expected exit code 0, got {child.returncode}")
    return watch, out, time.perf_counter() - began


def measure(n_recordings: int, folder: Path, *, is_deep: bool = False, is_again: bool = False) -> dict[str, float]:
    """Return what a run over so many recordings costs, and what looking at its table does.

    Parameters
    ----------
    n_recordings
        How many.
    folder
        Where its table is made, and stays.
    is_deep
        Whether every row is read afterwards.
    is_again
        Whether the same run is done once more, over a table that has everything.

    Returns
    -------
    Seconds (``_s``), MB at most (``_mb``) and microseconds of CPU a recording (``_us``).
    """
    table = os.fspath(folder / f"table-{n_recordings}")
    program = f"from benchmarks.scale import drive; drive({n_recordings}, {table!r})"
    watch, out, _ = _run("-c", program)
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    assert found["n_recordings"] == n_recordings
    found["plan_s"] = found["list_s"] + found["freeze_s"] + found["tasks_s"]
    for kind in ("driver", "scheduler", "worker"):
        found[f"{kind}_mb"] = watch.peak_mb(kind)
        found[f"{kind}_us"] = watch.cpu_s(kind) / n_recordings * 1e6
    found["rows_us"] = found["rows_cpu_s"] / n_recordings * 1e6
    found["worker_us"] -= found["rows_us"]
    found["overhead_us"] = sum(found[f"{kind}_us"] for kind in ("driver", "scheduler", "worker"))
    commands = {"status": ("status",), "verify": ("verify",), "deep": ("verify", "--deep")}
    for name, command in commands.items():
        if is_deep or name != "deep":
            found |= _look(name, command, table, n_recordings)
    if is_again:
        watch, out, elapsed_s = _run("-c", program)
        assert json.loads(out.splitlines()[-1])["n_recordings"] == n_recordings
        found |= {"again_s": elapsed_s, "again_mb": watch.peak_mb("driver")}
    return found


def _look(name: str, command: tuple[str, ...], table: str, n_recordings: int) -> dict[str, float]:
    """Let a command look at a table, and return what that cost."""
    watch, out, elapsed_s = _run("-P", "-m", "emotion_batch", *command, table, "--json")
    assert json.loads(out)["counts"]["n_recordings"] == n_recordings
    return {f"{name}_s": elapsed_s, f"{name}_mb": watch.peak_mb("driver")}


def measure_looks(n_parts: int, folder: Path) -> dict[str, float]:
    """Return what looking at a table of so many parts costs: of recordings so large that each makes a shard."""
    place = Folder.of(folder / "parts")
    info = TableInfo(FEATURES, "generated", FeatureSettings(), Segments.windows(3.0))
    create_info(place, info)
    sizes = pa.array(np.full(n_parts, 2**30))
    manifest = Manifest(place)
    manifest.grow(entries_of(n_parts).set_column(2, ENTRY_SCHEMA.field("size"), sizes), info.segments)
    assert len(manifest.shards) == n_parts
    numbers = list(manifest.shards)
    for number, batch in zip(numbers, manifest.entries(numbers), strict=True):
        parts.publish_part(place, info, number, manifest.shards[number].digest, rows_of(batch, info))
    found: dict[str, float] = {}
    for name in ("status", "verify"):
        found |= _look(name, (name,), place.url, n_parts)
    return found


def submit(n_recordings: int, table: str) -> None:
    """Submit a run over a generated listing to a scheduler with two workers, and print their peaks of memory as JSON."""
    place = Folder.of(table)
    info = TableInfo(FEATURES, "generated", FeatureSettings(), Segments())
    configuration = dask.config.serialize(local_configuration())
    with local_cluster(N_WORKERS, 600.0, configuration) as address, Client(address, set_as_default=False) as client:
        client.wait_for_workers(N_WORKERS, timeout=60)
        processes = client.run(os.getpid)
        options = RunOptions(scheduler=address, leave=True, force=True)
        with open_run(place, info, options, time.perf_counter()) as run:
            run.freeze(Listing(place, entries_of(n_recordings)), usage.Spent(), prune=False)
            run.finish(Idle(features=TablePlace(place, info), archive=place))
        driver = None
        while read_holders(place):
            for worker, keys in client.processing().items():
                if any(str(key).startswith(DRIVER_KEY) for key in keys):
                    driver = worker
            time.sleep(_LOOK_S)
        peaks = {worker: (_peak_bytes(pid) or 0) / 1e6 for worker, pid in processes.items()}
    others = [peak for worker, peak in peaks.items() if worker != driver]
    n_parts = sum(name.endswith(".parquet") for name in place.names())
    print(json.dumps({"n_parts": n_parts, "driver_mb": peaks[driver or ""], "other_mb": max(others)}))


def measure_submitted(n_recordings: int, folder: Path) -> str:
    """Return a sentence on the memory of the worker on which a task drives a submitted run, beside that of another."""
    table = os.fspath(folder / "submitted")
    _, out, elapsed_s = _run("-c", f"from benchmarks.scale import submit; submit({n_recordings}, {table!r})")
    found = json.loads(out.splitlines()[-1])
    return (
        f"{n_recordings:,} recordings in {found['n_parts']:,} parts, submitted: at most {found['driver_mb']:,.0f} MB on the worker "
        f"that drives the run and {found['other_mb']:,.0f} MB on another; {elapsed_s:,.0f} s"
    )


_COLUMNS = {
    "n_shards": ("shards", ",.0f"),
    "list_s": ("generate s", ".2f"),
    "freeze_s": ("freeze s", ".2f"),
    "tasks_s": ("tasks s", ".2f"),
    "driver_mb": ("driver MB", ",.0f"),
    "scheduler_mb": ("scheduler MB", ",.0f"),
    "worker_mb": ("worker MB", ",.0f"),
    "shards_s": ("shards done s", ".1f"),
    "rate": ("shards/s", ".0f"),
    "driver_us": ("driver µs", ".2f"),
    "scheduler_us": ("scheduler µs", ".2f"),
    "worker_us": ("workers µs", ".2f"),
    "overhead_us": ("overhead µs", ".2f"),
    "marginal_us": ("each further µs", ".2f"),
    "rows_us": ("rows µs", ".2f"),
    "status_s": ("status s", ".2f"),
    "status_mb": ("MB", ",.0f"),
    "verify_s": ("verify s", ".2f"),
    "verify_mb": ("MB", ",.0f"),
    "deep_s": ("verify --deep s", ".1f"),
    "deep_mb": ("MB", ",.0f"),
    "again_s": ("once more s", ".1f"),
    "again_mb": ("MB", ",.0f"),
}


def render(reports: dict[int, dict[str, float]]) -> str:
    """Return the figures as a Markdown table, a column a size."""
    sizes = sorted(reports)
    for size, before in zip(sizes, [None, *sizes], strict=False):
        found = reports[size]
        found["rate"] = found["n_shards"] / found["shards_s"]
        if before is not None:
            grown = found["overhead_us"] * size - reports[before]["overhead_us"] * before
            found["marginal_us"] = grown / (size - before)
    lines = [f"| recordings | {' | '.join(f'{size:,}' for size in sizes)} |", f"| --- |{' ---: |' * len(sizes)}"]
    for name, (title, form) in _COLUMNS.items():
        cells = [format(reports[size][name], form) if name in reports[size] else "" for size in sizes]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    about = describe()
    return "\n".join([*lines, "", f"{about['machine']}; Python {about['python']}."])


def write_list(path: Path, n_recordings: int, prefix: str) -> None:
    """Write a list of recordings as text, CSV or Parquet, by its suffix; the names are out of order as in a real one."""
    order = np.random.default_rng(0).permutation(-(-n_recordings // _CHUNK)).tolist()
    schema = pa.schema([("file", pa.string())])
    pieces = (
        pc.binary_join_element_wise(prefix, names_of(k * _CHUNK, min(n_recordings, (k + 1) * _CHUNK)), "")
        for k in order
    )
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, schema) as writer:
            for piece in pieces:
                writer.write_table(pa.table([piece], schema=schema))
        return
    with path.open("wb") as stream:
        if path.suffix == ".csv":
            stream.write(b"file\n")
        for piece in pieces:
            stream.write("\n".join([*piece.to_pylist(), ""]).encode())


def write_segments(path: Path, n_recordings: int, prefix: str) -> None:
    """Write a segment for each recording of such a list as Parquet, in another order."""
    schema = pa.schema([("file", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64())])
    with pq.ParquetWriter(path, schema) as writer:
        for k in np.random.default_rng(1).permutation(-(-n_recordings // _CHUNK)).tolist():
            names = names_of(k * _CHUNK, min(n_recordings, (k + 1) * _CHUNK))
            columns = [pc.binary_join_element_wise(prefix, names, ""), *(np.full(len(names), s) for s in (0.5, 3.5))]
            writer.write_table(pa.table(columns, schema=schema))


def show_listing(archive: str, segments: str | None = None) -> None:
    """List an archive, with the segments of a list if there is one, and print what it took."""
    began = time.perf_counter()
    chosen = Segments.choose(segments, None, None)
    n_recordings = list_recordings(archive, segments=chosen).entries.num_rows
    print(json.dumps({"n_recordings": n_recordings, "seconds": time.perf_counter() - began}))


def measure_listing(*places: str) -> tuple[int, float, float]:
    """Return how many recordings were listed, in how many seconds, and the MB that it took at most."""
    watch, out, _ = _run("-c", f"from benchmarks.scale import show_listing; show_listing(*{places!r})")
    found = json.loads(out.splitlines()[-1])
    return found["n_recordings"], found["seconds"], watch.peak_mb("driver")


def measure_lists(n_recordings: int, n_files: int, folder: Path) -> str:
    """Return a table of what listing costs: list files of URLs, also with segments, of local names, and a folder of links."""
    lines = ["| listing | recordings | s | MB at most |", "| --- | ---: | ---: | ---: |"]
    for prefix, kind in (("https://calls.example/", "URLs"), ("", "local names, none there")):
        for suffix in (".txt", ".csv", ".parquet"):
            path = folder / f"list{suffix}"
            write_list(path, n_recordings, prefix)
            found, seconds, mb = measure_listing(os.fspath(path))
            assert found == n_recordings
            lines.append(f"| list{suffix} of {kind} | {found:,} | {seconds:.1f} | {mb:,.0f} |")
            if suffix == ".parquet" and prefix:
                segments = folder / f"segments{suffix}"
                write_segments(segments, n_recordings, prefix)
                found, seconds, mb = measure_listing(os.fspath(path), os.fspath(segments))
                assert found == n_recordings
                lines.append(f"| the same with a list of a segment each | {found:,} | {seconds:.1f} | {mb:,.0f} |")
                segments.unlink()
            path.unlink()
    archive = folder / "links"
    first = folder / "first"
    first.write_bytes(b"RIFF")
    for name in names_of(0, n_files).to_pylist():
        path = os.path.join(archive, name)
        if name.endswith("000.wav"):
            os.makedirs(os.path.dirname(path))
            # A file has 65,000 links at most.
            first = Path(path)
            first.write_bytes(b"RIFF")
        else:
            os.link(first, path)
    found, seconds, mb = measure_listing(os.fspath(archive))
    assert found == n_files
    lines.append(f"| folder of hard links | {found:,} | {seconds:.1f} | {mb:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Print what a run costs for each size, or what listing does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--recordings", type=int, nargs="+", default=list(SIZES), metavar="N", help="sizes to measure")
    parser.add_argument("--lists", action="store_true", help="measure the listing of the largest size instead")
    parser.add_argument("--files", type=int, default=1_000_000, help="files of the folder that --lists lists (1000000)")
    parser.add_argument(
        "--parts", type=int, metavar="N", help="measure status and verify of a table of N parts instead"
    )
    parser.add_argument(
        "--submitted", action="store_true", help="measure the driver's memory of the largest size, submitted, instead"
    )
    parser.add_argument("--folder", help="where to work; by default the system's folder for temporary files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.lists:
            print(measure_lists(max(options.recordings), options.files, Path(folder)))
            return
        if options.submitted:
            print(measure_submitted(max(options.recordings), Path(folder)))
            return
        if options.parts:
            found = measure_looks(options.parts, Path(folder))
            lines = [f"| {options.parts:,} parts | s | MB at most |", "| --- | ---: | ---: |"]
            lines += [
                f"| {name} | {found[f'{name}_s']:.2f} | {found[f'{name}_mb']:,.0f} |" for name in ("status", "verify")
            ]
            print("\n".join(lines))
            return
        reports = {}
        for n_recordings in sorted(options.recordings):
            reports[n_recordings] = measure(n_recordings, Path(folder), is_deep=True, is_again=True)
            print(f"{n_recordings:>12,}: {reports[n_recordings]}", file=sys.stderr, flush=True)
        print(render(reports))


if __name__ == "__main__":
    main()
