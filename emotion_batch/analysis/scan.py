"""Read a table once: count rows by label, confidence, folder and time, and draw some of them at random.

Only parts of the manifest's newest entries count. DuckDB adds them up, some parts at a time.
"""

from __future__ import annotations

import heapq
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from emotion_batch.storage.folder import Folder, explained
from emotion_batch.tables import parts, schema
from emotion_batch.tables.parts import Footer, PartError
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.shard_entries import ShardEntry

if TYPE_CHECKING:
    import duckdb

# Of confidence, from 0 to 1, open below and closed above as those of `metrics.reliability`.
N_BINS = 20
# Parts on a disk are parsed more than waited for; of a bucket it is the other way round.
_LOCAL_READERS, _REMOTE_READERS = 4, 32
_CHUNK_ROWS = 2**18
_N_FAILURES = 5
# Deeper folders are counted with those above them.
_DEEPEST = 8
# More folders of one level than this are not told apart; the largest are.
_MOST_FOLDERS = 20_000
_COLUMNS = ("file", "start_s", "end_s", "status", "error")
_JUDGED = {
    "emotion": pa.string(),
    "confidence": pa.float32(),
    "is_confident": pa.bool_(),
    "is_in_domain": pa.bool_(),
    "is_speech": pa.bool_(),
}
_CELLS = """
SELECT status, emotion, greatest(0, least($n_bins - 1, ceil(confidence * $n_bins)::INTEGER - 1)) AS bin,
       is_confident, is_in_domain, is_speech, count(*) AS n, sum(confidence) AS total
FROM chunk GROUP BY ALL"""
_FOLDERS = """
SELECT parse_dirpath(file, 'forward_slash') AS folder, status = 'ok' AS is_ok, emotion, count(*) AS n,
       count(*) FILTER (NOT is_in_domain) AS n_outside
FROM chunk GROUP BY ALL"""
_TIMES = """
SELECT round(start_s / $hop_s)::BIGINT AS window_number, emotion, count(*) AS n
FROM chunk WHERE status = 'ok' GROUP BY ALL"""
_RECORDINGS = """
SELECT count(DISTINCT file) AS n, count(DISTINCT file) FILTER (status = 'ok') AS n_ok FROM chunk"""
_DRAWN = """
WITH lots AS (SELECT *, hash(file, start_s, $seed) AS lot FROM chunk WHERE status = 'ok')
SELECT emotion, CASE WHEN NOT is_in_domain THEN 'outside' WHEN is_confident THEN 'confident' ELSE 'unsure' END AS stratum,
       arg_min(struct_pack(
    lot := lot, file := file, start_s := start_s, end_s := end_s, confidence := confidence), lot, $n_drawn) AS found
FROM lots GROUP BY ALL"""
_FAILED = """
WITH lots AS (SELECT *, hash(file, start_s, $seed) AS lot FROM chunk WHERE status <> 'ok')
SELECT status, arg_min(struct_pack(
    lot := lot, file := file, start_s := start_s, error := error), lot, $n_failures) AS found
FROM lots GROUP BY ALL"""
# Of the folders at each level, how many there are.
_LEVELS = """
SELECT level, count(DISTINCT list_slice(string_split(folder, '/'), 1, level)) AS n
FROM (SELECT DISTINCT folder FROM folders), range(1, $deepest + 1) AS levels(level) GROUP BY level ORDER BY level"""
_AT_LEVEL = """
WITH named AS (
    SELECT array_to_string(list_slice(string_split(folder, '/'), 1, $level), '/') AS name, is_ok, emotion,
           sum(n)::BIGINT AS n, sum(n_outside)::BIGINT AS n_outside
    FROM folders GROUP BY ALL),
largest AS (SELECT name FROM named GROUP BY name ORDER BY sum(n) DESC, name LIMIT $most)
SELECT * FROM named SEMI JOIN largest USING (name) ORDER BY name, is_ok DESC, emotion"""
_CLUSTERS = """
WITH counted AS (SELECT folder, emotion, sum(n)::DOUBLE AS n FROM folders WHERE is_ok GROUP BY ALL),
     totals AS (SELECT folder, sum(n) AS n FROM counted GROUP BY ALL)
SELECT emotion, sum(counted.n * counted.n) AS of_label, sum(counted.n * totals.n) AS of_both,
       (SELECT count(*) FROM totals) AS n_folders, (SELECT sum(n * n) FROM totals) AS of_all
FROM counted JOIN totals USING (folder) GROUP BY ALL"""


@dataclass(frozen=True)
class Cell:
    """Rows that are alike: `n` of them, the sum of whose confidence is `total`; `bin_number` is their confidence's."""

    status: str
    emotion: str | None
    bin_number: int | None
    is_confident: bool | None
    is_in_domain: bool | None
    is_speech: bool | None
    n: int
    total: float | None


@dataclass(frozen=True)
class FolderCount:
    """Rows of a folder that have a label, or none: `n` of them, `n_outside` not in domain."""

    name: str
    is_ok: bool
    emotion: str | None
    n: int
    n_outside: int


@dataclass(frozen=True)
class FolderCluster:
    """How a label is spread over all folders: sums over them, for the variance of its share.

    Attributes
    ----------
    n_folders
        Folders that have rows with a label.
    of_label, of_both, of_all
        Sums of squares of the label's rows in a folder, of their products with all labelled rows of it, and of squares of
        the latter.
    """

    n_folders: int
    of_label: float
    of_both: float
    of_all: float


@dataclass(frozen=True)
class Drawn:
    """A row drawn by lot; `stratum` is ``confident``, ``unsure`` or ``outside``, and that of a failed row its status."""

    lot: int
    emotion: str | None
    stratum: str
    file: str
    start_s: float | None
    end_s: float | None
    confidence: float | None
    error: str | None


@dataclass(frozen=True)
class Survey:
    """What the rows of a table's complete parts say.

    Attributes
    ----------
    complete
        Shards whose parts these are.
    n_recordings, n_labelled
        Recordings that have rows; those with one that is ``ok``.
    cells
        All rows, by what is said of them.
    folders, n_folders
        Rows by folder, of the deepest level that a page can show; how many folders that level has.
    clusters
        Spread of each label over all folders.
    times
        ``ok`` rows by number of their window and label; empty without windows.
    drawn, failed
        Rows drawn by lot: of each label and stratum, and of each status but ``ok``.
    """

    complete: frozenset[int]
    n_recordings: int
    n_labelled: int
    cells: tuple[Cell, ...]
    folders: tuple[FolderCount, ...]
    n_folders: int
    clusters: Mapping[str, FolderCluster]
    times: tuple[tuple[int, str | None, int], ...]
    drawn: tuple[Drawn, ...]
    failed: tuple[Drawn, ...]


def survey(
    table: Folder,
    info: TableInfo,
    shards: Mapping[int, ShardEntry],
    *,
    seed: int = 0,
    n_drawn: int = 4,
    n_shown: int = 24,
) -> Survey:
    """Return what the rows of a table say.

    Parameters
    ----------
    table, info
        The table, and what it is.
    shards
        Its manifest's newest entries; parts of others do not count.
    seed, n_drawn
        Of the lots, and how many rows are drawn of each label and stratum.
    n_shown
        How many folders one level may have to be shown whole.

    Raises
    ------
    StorageError
        If the table cannot be read.
    """
    import duckdb

    complete: set[int] = set()
    hop_s = info.segments.hop_s
    values = {"seed": seed, "n_drawn": n_drawn, "n_failures": _N_FAILURES, "n_bins": N_BINS, "hop_s": hop_s}
    sums = {"cells": _CELLS, "folders": _FOLDERS, "recordings": _RECORDINGS, "failed": _FAILED}
    if info.kind == schema.LABELS:
        sums["drawn"] = _DRAWN
    if hop_s is not None and info.kind == schema.LABELS:
        sums["times"] = _TIMES
    with tempfile.TemporaryDirectory() as spilled, duckdb.connect() as connection, explained(f"table {table.url}"):
        connection.execute("SET temp_directory = ?", [spilled])
        for number, chunk in enumerate(_chunks(table, info, shards, complete)):
            connection.register("chunk", chunk)
            for name, query in sums.items():
                begin = f"INSERT INTO {name}" if number else f"CREATE TABLE {name} AS"
                used = {key: value for key, value in values.items() if f"${key}" in query}
                connection.execute(f"{begin} {query}", used)
            connection.unregister("chunk")
        return _add_up(connection, set(sums), frozenset(complete), n_drawn, n_shown)


def _chunks(table: Folder, info: TableInfo, shards: Mapping[int, ShardEntry], complete: set[int]) -> Iterator[pa.Table]:
    """Yield the rows of complete parts, some parts at a time and once even if there are none; take down which they are."""
    there = set(table.names())
    wanted = [shard for shard in sorted(shards) if parts.part_name(shard) in there]
    judged = [name for name in _JUDGED if info.kind == schema.LABELS]
    chunk = [
        pa.schema([*(info.schema.field(name) for name in _COLUMNS), *map(info.schema.field, judged)]).empty_table()
    ]
    n_rows = 0
    n_readers = _LOCAL_READERS if table.is_local else _REMOTE_READERS
    with ThreadPoolExecutor(n_readers) as pool:
        for shard, rows in _ahead(pool, 2 * n_readers, table, info, shards, wanted):
            if rows is None:
                continue
            complete.add(shard)
            chunk.append(rows)
            n_rows += rows.num_rows
            if n_rows >= _CHUNK_ROWS:
                yield _filled(pa.concat_tables(chunk))
                chunk, n_rows = chunk[:1], 0
    yield _filled(pa.concat_tables(chunk))


def _ahead(
    pool: ThreadPoolExecutor,
    n_ahead: int,
    table: Folder,
    info: TableInfo,
    shards: Mapping[int, ShardEntry],
    wanted: Iterable[int],
) -> Iterator[tuple[int, pa.Table | None]]:
    """Yield parts in order, read by a pool a few ahead: not all, which would fill the memory."""
    jobs: deque[tuple[int, Future[pa.Table | None]]] = deque()
    for shard in wanted:
        jobs.append((shard, pool.submit(_read_part, table, info, shard, shards[shard])))
        if len(jobs) > n_ahead:
            first, job = jobs.popleft()
            yield first, job.result()
    for shard, job in jobs:
        yield shard, job.result()


def _read_part(table: Folder, info: TableInfo, shard: int, entry: ShardEntry) -> pa.Table | None:
    """Return the rows of a part, or None if it is not the complete one of the newest entries."""
    columns = [*_COLUMNS, *(_JUDGED if info.kind == schema.LABELS else ())]
    try:
        rows = parts.read_part(table, shard, columns)
        footer = Footer.of(rows.schema.metadata, info)
        footer.require(shard, entry)
    except PartError:
        return None
    is_as_said = rows.num_rows == footer.counts.n_rows and rows.schema.equals(
        pa.schema(map(info.schema.field, columns))
    )
    return rows.replace_schema_metadata() if is_as_said else None


def _filled(rows: pa.Table) -> pa.Table:
    """Return rows with the columns of labels, null where they are features."""
    for name, kind in _JUDGED.items():
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, kind))
    return rows


def _add_up(
    connection: duckdb.DuckDBPyConnection, there: set[str], complete: frozenset[int], n_drawn: int, n_shown: int
) -> Survey:
    """Return the sums of what was counted chunk by chunk."""

    def rows(query: str, values: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        return connection.execute(query, values).fetchall()

    cells = rows(
        "SELECT status, emotion, bin, is_confident, is_in_domain, is_speech, sum(n)::BIGINT, sum(total) "
        "FROM cells GROUP BY ALL ORDER BY ALL"
    )
    levels = rows(_LEVELS, {"deepest": _DEEPEST})
    level, n_folders = _choose_level(levels, n_shown)
    at_level = rows(_AT_LEVEL, {"level": level, "most": _MOST_FOLDERS})
    ((n_recordings, n_labelled),) = rows("SELECT sum(n)::BIGINT, sum(n_ok)::BIGINT FROM recordings")
    times = "SELECT window_number, emotion, sum(n)::BIGINT FROM times GROUP BY ALL ORDER BY ALL"
    drawn = [
        Drawn(**one, emotion=emotion, stratum=stratum, error=None)
        for emotion, stratum, one in (
            rows("SELECT emotion, stratum, unnest(found) FROM drawn") if "drawn" in there else ()
        )
    ]
    failed = [
        Drawn(**one, emotion=None, stratum=status, end_s=None, confidence=None)
        for status, one in rows("SELECT status, unnest(found) FROM failed")
    ]
    return Survey(
        complete=complete,
        n_recordings=n_recordings or 0,
        n_labelled=n_labelled or 0,
        cells=tuple(Cell(*row) for row in cells),
        folders=tuple(FolderCount(*row) for row in at_level),
        n_folders=n_folders,
        clusters={
            emotion: FolderCluster(n, of_label, of_both, of_all)
            for emotion, of_label, of_both, n, of_all in rows(_CLUSTERS)
            if emotion is not None
        },
        times=tuple(rows(times)) if "times" in there else (),
        drawn=_first(drawn, n_drawn),
        failed=_first(failed, _N_FAILURES),
    )


def _choose_level(levels: list[tuple[int, int]], n_shown: int) -> tuple[int, int]:
    """Return the deepest level whose folders can all be shown, or else the first that has several; and how many it has."""
    fitting = [(level, n) for level, n in levels if n <= n_shown]
    if not fitting:
        return levels[0] if levels else (1, 0)
    # Below a single folder that all share, rather that one alone.
    deeper = next(((level, n) for level, n in levels if n > 1), fitting[-1])
    if fitting[-1][1] == 1:
        return deeper
    # Of levels with equally many the first: what is below it adds nothing.
    return next(one for one in levels if one[1] == fitting[-1][1])


def _first(found: list[Drawn], n: int) -> tuple[Drawn, ...]:
    """Return of each label and stratum the rows with the lowest lots."""
    strata: dict[tuple[str, str], list[Drawn]] = {}
    for one in found:
        strata.setdefault((one.emotion or "", one.stratum), []).append(one)
    return tuple(
        one
        for _, some in sorted(strata.items())
        for one in heapq.nsmallest(n, some, key=lambda one: (one.lot, one.file, one.start_s or 0.0))
    )
