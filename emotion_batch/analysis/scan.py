"""Read a table once: count rows by label, confidence, folder and time, and draw some of them at random.

Only complete parts of the newest manifest entries count. DuckDB adds them up, some parts at a time, so that memory is bounded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from emotion_batch.storage.folder import Folder, explained
from emotion_batch.tables import parts, schema
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.shard_entries import ShardEntry

# Of confidence, from 0 to 1, open below and closed above as those of `metrics.reliability`.
N_BINS = 20
_CHUNK_ROWS = 2**18
_N_FAILURES = 5
# Deeper folders are counted with those above them.
_DEEPEST = 8
# More folders of one level than this are not told apart; the largest are.
_MOST_FOLDERS = 20_000
_COLUMNS = ("file", "start_s", "end_s", "status", "error")
# A table of features has none of these; they are null there.
_JUDGED = pa.schema(
    {
        "emotion": pa.string(),
        "confidence": pa.float32(),
        "is_confident": pa.bool_(),
        "is_in_domain": pa.bool_(),
        "is_speech": pa.bool_(),
    }
)
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
# Rows by lot of each label and stratum, or of each status but ``ok``.
_DRAWN = """
WITH lots AS (
    SELECT *, hash(file, start_s, $seed) AS lot,
           CASE WHEN status <> 'ok' THEN status WHEN NOT is_in_domain THEN 'outside'
                WHEN is_confident THEN 'confident' ELSE 'unsure' END AS stratum
    FROM chunk WHERE status <> 'ok' OR emotion IS NOT NULL)
SELECT emotion, stratum, unnest(arg_min(struct_pack(
    lot := lot, file := file, start_s := start_s, end_s := end_s, confidence := confidence, error := error), lot, $n_lots),
    recursive := true)
FROM lots GROUP BY emotion, stratum"""
# What was added up of each chunk, added up.
_ALL_CELLS = """
SELECT status, emotion, bin, is_confident, is_in_domain, is_speech, sum(n)::BIGINT, sum(total)
FROM cells GROUP BY ALL ORDER BY ALL"""
_ALL_TIMES = "SELECT window_number, emotion, sum(n)::BIGINT FROM times GROUP BY ALL ORDER BY ALL"
_ALL_DRAWN = """
FROM drawn WHERE (emotion IS NOT NULL) = $has_label
QUALIFY row_number() OVER (PARTITION BY emotion, stratum ORDER BY lot, file, start_s) <= $n ORDER BY emotion, stratum, lot"""
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
SELECT emotion, (SELECT count(*) FROM totals) AS n_folders, sum(counted.n * counted.n) AS of_label,
       sum(counted.n * totals.n) AS of_both, (SELECT sum(n * n) FROM totals) AS of_all
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

    hop_s = info.segments.hop_s if info.kind == schema.LABELS else None
    sums = {"cells": _CELLS, "folders": _FOLDERS, "drawn": _DRAWN, **({} if hop_s is None else {"times": _TIMES})}
    known = {"seed": seed, "n_lots": max(n_drawn, _N_FAILURES), "n_bins": N_BINS, "hop_s": hop_s}
    complete: set[int] = set()
    n_labelled = 0
    with tempfile.TemporaryDirectory() as spilled, duckdb.connect() as connection, explained(f"table {table.url}"):
        connection.execute("SET temp_directory = ?", [spilled])

        def rows(query: str, **values: Any) -> list[tuple[Any, ...]]:
            return connection.execute(query, values).fetchall()

        def draw(n: int, *, has_label: bool) -> tuple[Drawn, ...]:
            found = rows(_ALL_DRAWN, n=n, has_label=has_label)
            return tuple(Drawn(lot, emotion, stratum, *row) for emotion, stratum, lot, *row in found)

        for number, (shards_read, chunk) in enumerate(_chunks(table, info, shards)):
            complete |= shards_read
            connection.register("chunk", chunk)
            ((n,),) = rows("SELECT count(DISTINCT file) FROM chunk WHERE status = 'ok'")
            n_labelled += n
            for name, query in sums.items():
                begin = f"INSERT INTO {name}" if number else f"CREATE TABLE {name} AS"
                rows(f"{begin} {query}", **{key: value for key, value in known.items() if f"${key}" in query})
            connection.unregister("chunk")
        level, n_folders = _choose_level(rows(_LEVELS, deepest=_DEEPEST), n_shown)
        return Survey(
            complete=frozenset(complete),
            n_recordings=sum(shards[shard].n_recordings for shard in complete),
            n_labelled=n_labelled,
            cells=tuple(Cell(*row) for row in rows(_ALL_CELLS)),
            folders=tuple(FolderCount(*row) for row in rows(_AT_LEVEL, level=level, most=_MOST_FOLDERS)),
            n_folders=n_folders,
            clusters={emotion: FolderCluster(*spread) for emotion, *spread in rows(_CLUSTERS) if emotion is not None},
            times=() if hop_s is None else tuple(rows(_ALL_TIMES)),
            drawn=draw(n_drawn, has_label=True),
            failed=draw(_N_FAILURES, has_label=False),
        )


def _chunks(table: Folder, info: TableInfo, shards: Mapping[int, ShardEntry]) -> Iterator[tuple[set[int], pa.Table]]:
    """Yield the rows of complete parts, some parts at a time with their shards, and once even if there are none."""
    nothing = pa.schema([*(info.schema.field(name) for name in _COLUMNS), *_JUDGED]).empty_table()
    chunk, done = [nothing], set()
    columns = [*_COLUMNS, *(_JUDGED.names if info.kind == schema.LABELS else ())]
    for shard, rows in parts.read_complete(table, info, dict(sorted(shards.items())), columns):
        if rows is None:
            continue
        chunk.append(rows)
        done.add(shard)
        if sum(one.num_rows for one in chunk) >= _CHUNK_ROWS:
            yield done, pa.concat_tables(chunk, promote_options="default")
            chunk, done = [nothing], set()
    yield done, pa.concat_tables(chunk, promote_options="default")


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
