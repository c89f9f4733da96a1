"""Read a table once: count rows by label, confidence, folder and time, and draw some of them at random.

Only complete parts that were made from the newest manifest entries count. DuckDB adds their rows up, some parts at a time, so that
memory is bounded. `statistics` queries it for the report, and `review_sample` draws the rows that a person checks.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib import resources
from typing import Any

import duckdb
import pyarrow as pa

from emotion_batch.storage.folder import Folder, explained
from emotion_batch.tables import parts, schema
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.shard_entries import ShardEntry

# Bins of confidence from 0 to 1, open below and closed above, like those of `metrics.reliability`.
N_BINS = 20
_CHUNK_ROWS = 2**18
# Number of rows to draw for each label and stratum, and for each status other than ``ok``.
N_LOTS = 5
# Number of recordings with the most of one label.
N_CALLS = 12
_COLUMNS = (
    *("file", "channel", "start_s", "end_s", "status", "error"),
    *("emotion", "confidence", "is_confident", "is_in_domain", "is_speech"),
)


def read_sql(name: str) -> str:
    """Return the text of a file of `queries/`."""
    return resources.files(__package__).joinpath("queries", f"{name}.sql").read_text(encoding="utf-8").rstrip()


def read_queries(name: str) -> dict[str, str]:
    """Return the queries of a file of `queries/` that has several, each below a line with its name."""
    pieces = read_sql(name).split("-- name: ")[1:]
    return {key: query for key, _, query in (piece.partition("\n") for piece in pieces)}


@dataclass(frozen=True)
class Drawn:
    """A row drawn at random; `stratum` is ``confident``, ``unsure`` or ``outside``, or the status of a failed row."""

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
    """A database with sums over the rows of a table's complete parts, the numbers of their shards, and those of recordings.

    `connection` has the tables `found`, the shards of these parts; `cells`, the number of rows by status, label and flags; `folders`,
    by folder; `times`, of ``ok`` rows by window number, if there are windows; `hours`, the seconds heard by channel and label; `calls`,
    the segments of the recordings with the most of one label, if it was named; and `drawn`, rows drawn at random. `n_recordings` have
    rows, and `n_labelled` an ``ok`` row.
    """

    connection: duckdb.DuckDBPyConnection
    complete: Set[int]
    n_recordings: int
    n_labelled: int

    def ask(self, query: str, **values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query; ``$NAME`` in it stands for the value of that name."""
        return self.connection.execute(query, values).fetchall()


@contextlib.contextmanager
def survey(
    table: Folder, info: TableInfo, shards: Mapping[int, ShardEntry], *, seed: int = 0, about: str | None = None
) -> Iterator[Survey]:
    """Give the survey of a table, and of the recordings with the most of the label `about`.

    Parts count if they match `shards`, the manifest's newest entries.
    """
    hop_s = info.segments.hop_s if info.kind == schema.LABELS else None
    is_left_out = {"times": hop_s is None, "calls": about is None}
    heard, probability = read_sql("heard").replace("FROM labels", "FROM chunk"), f"p_{about}"
    quoted = '"' + probability.replace('"', '""') + '"'
    sums = {
        name: sql.replace("{heard}", heard).replace("{probability}", quoted)
        for name, sql in read_queries("survey").items()
        if not is_left_out.get(name)
    }
    chunks = read_chunks(table, info, shards, _COLUMNS if about is None else (*_COLUMNS, probability))
    limits = {"n_lots": N_LOTS, "n_bins": N_BINS, "n_calls": N_CALLS}
    with add_up(chunks, sums, seed=seed, hop_s=hop_s, about=about, **limits) as connection:
        found = dict(connection.sql("SELECT shard, n_labelled FROM found").fetchall())
        n_recordings = sum(shards[shard].n_recordings for shard in found)
        yield Survey(connection, found.keys(), n_recordings, sum(found.values()))


@contextlib.contextmanager
def add_up(
    chunks: Iterable[pa.Table], queries: Mapping[str, str], **values: object
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Give a database with a table for each query, which holds its results on every `chunk`; ``$NAME`` stands for one of `values`."""
    with tempfile.TemporaryDirectory() as spilled, duckdb.connect() as connection:
        connection.execute("SET temp_directory = ?", [spilled])
        hide_progress(connection)
        for number, chunk in enumerate(chunks):
            connection.register("chunk", chunk)
            for name, query in queries.items():
                begin = f"INSERT INTO {name}" if number else f"CREATE TABLE {name} AS"
                known = {key: value for key, value in values.items() if f"${key}" in query}
                connection.execute(f"{begin} {query}", known)
            connection.unregister("chunk")
        yield connection


def hide_progress(connection: duckdb.DuckDBPyConnection) -> None:
    """Keep DuckDB's progress bar off stdout; in a notebook without ipywidgets there is none, and DuckDB refuses to set it."""
    if connection.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(True,)]:
        connection.execute("SET enable_progress_bar = false")


def read_chunks(
    table: Folder,
    info: TableInfo,
    shards: Mapping[int, ShardEntry],
    names: Sequence[str],
    on_part: Callable[[int, int], None] = lambda n_done, n_parts: None,
) -> Iterator[pa.Table]:
    """Yield the rows of complete parts with their shard, some parts at a time; if there are no parts, yield one empty table.

    `names` are columns of a label table; a feature table has null in those that it lacks. `on_part` gets the number of parts read and
    of all parts.
    """
    fields = [schema.label_schema(info.labels).field(name) for name in names]
    nothing = pa.schema([*fields, pa.field("shard", pa.int64())]).empty_table()
    columns = [name for name in names if name in info.schema.names]
    chunk = [nothing]
    with explained(f"table {table.url}"):
        found = parts.read_complete(table, info, dict(sorted(shards.items())), columns)
        for n_done, (shard, rows) in enumerate(found, 1):
            on_part(n_done, len(shards))
            if rows is None:
                continue
            chunk.append(rows.append_column("shard", pa.repeat(pa.scalar(shard, pa.int64()), rows.num_rows)))
            if sum(one.num_rows for one in chunk) >= _CHUNK_ROWS:
                yield pa.concat_tables(chunk, promote_options="default")
                chunk = [nothing]
    yield pa.concat_tables(chunk, promote_options="default")
