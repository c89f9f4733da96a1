"""Run SQL over a table: its views, and the example questions of ``query --example``."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa

from emotion_batch.analysis import sandbox
from emotion_batch.analysis.formats import CsvWriter, JsonWriter, ParquetWriter, Writer, to_text
from emotion_batch.analysis.sandbox import Answer
from emotion_batch.errors import UsageError
from emotion_batch.progress import Watcher
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.tables import schema
from emotion_batch.tables.inventory import Inventory, take_inventory
from emotion_batch.tables.schema import nullable
from emotion_batch.tables.table import read_info

_SAYS_FEATURES = re.compile(rf"\b{schema.FEATURES}\b", re.IGNORECASE)
# Of a list, in a table for people.
_MOST_CHARACTERS = 60
# Of a label table; what each asks, and its SQL.
EXAMPLES: Mapping[str, tuple[str, str]] = {
    "mix": (
        "how many rows of each emotion, and how sure",
        """\
SELECT emotion, count(*) AS n, round(count(*) / sum(count(*)) OVER (), 3) AS share,
  round(avg(confidence), 3) AS confidence, count(*) FILTER (WHERE is_confident) AS n_confident
FROM labels WHERE status = 'ok' GROUP BY emotion ORDER BY n DESC, emotion""",
    ),
    "failed": (
        "what failed, and an example of each reason",
        """\
SELECT status, count(*) AS n, min(file) AS example, arg_min(error, file) AS error
FROM labels WHERE status <> 'ok' GROUP BY status ORDER BY n DESC, status""",
    ),
    "unsure": (
        "the labels that are the least sure",
        """\
SELECT file, start_s, emotion, round(confidence, 3) AS confidence, round(margin, 3) AS margin, is_in_domain, is_speech
FROM labels WHERE status = 'ok' ORDER BY labels.confidence, file, start_s LIMIT 20""",
    ),
    "folders": (
        "the folders: their rows, what failed there, the most frequent emotion",
        """\
SELECT folder, sum(n)::BIGINT AS n, sum(failed)::BIGINT AS n_failed,
  max((n, emotion)) FILTER (WHERE emotion IS NOT NULL)[2] AS emotion,
  round(sum(confidence) / nullif(sum(n - failed), 0), 3) AS confidence
FROM (
  SELECT CASE WHEN contains(file, '/') THEN split_part(file, '/', 1) ELSE '' END AS folder, emotion,
    count(*) AS n, count(*) FILTER (WHERE status <> 'ok') AS failed, sum(confidence) AS confidence
  FROM labels GROUP BY folder, emotion
) GROUP BY folder ORDER BY folder""",
    ),
    "minutes": (
        "with --window: the emotions minute by minute within the recordings",
        """\
SELECT (start_s // 60)::INT AS minute, emotion, count(*) AS n,
  round(count(*) / sum(count(*)) OVER (PARTITION BY minute), 3) AS share
FROM labels WHERE status = 'ok' GROUP BY minute, emotion ORDER BY minute, n DESC, emotion""",
    ),
}


def query(
    table: str | os.PathLike[str],
    sql: str | None = None,
    *,
    example: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> pa.Table:
    """Answer a query of a table by DuckDB, which sees that table alone and only reads.

    Parameters
    ----------
    table
        A label table, which is `labels` in the query, with `features` beside it if it was made from a feature table or keeps
        one; or a feature table, which is `features`. Its parts that are whole and up to date count, also while a run is at
        work on it.
    sql
        One SELECT, FROM, PIVOT, DESCRIBE or SUMMARIZE.
    example
        Instead, the name of one of `EXAMPLES`.
    storage_options
        What fsspec's filesystem takes.
    watcher
        Hears what does not count.

    Returns
    -------
    The whole answer, in memory.

    Raises
    ------
    UsageError
        If there is no table, or DuckDB cannot answer that.
    StorageError, IncompleteError
        If the table cannot be read, or the answer does not fit.
    """
    with asked(table, sql, example=example, storage_options=storage_options, watcher=watcher) as answer:
        found = pa.Table.from_batches(answer.batches, answer.schema)
        return found.replace_schema_metadata(nullable(answer.schema).metadata)


@contextlib.contextmanager
def asked(
    table: str | os.PathLike[str],
    sql: str | None = None,
    *,
    example: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> Iterator[Answer]:
    """Answer a query, as `query` does, with rows that come within the block."""
    if (sql is None) == (example is None):
        raise UsageError(f"SQL: expected it, or one of the examples {', '.join(EXAMPLES)}, got both or none")
    if example is not None and example not in EXAMPLES:
        raise UsageError(f"example: expected one of {', '.join(EXAMPLES)}, got {example!r}")
    inventory = take_inventory(Folder.of(table, storage_options))
    kind = inventory.info.kind
    if example is not None and kind != schema.LABELS:
        raise UsageError(
            f"example {example}: expected a label table, got the feature table {inventory.table.url}; "
            "ask it in SQL, as `features`"
        )
    text = EXAMPLES[example][1] if example is not None else str(sql)
    views = {kind: inventory}
    # To look at its parts takes as long as at the table's own.
    if kind == schema.LABELS and _SAYS_FEATURES.search(text):
        features = _find_feature_inventory(inventory)
        views |= {} if features is None else {schema.FEATURES: features}
    for one in views.values():
        for note in one.notes():
            (watcher or Watcher()).on_note(note)
    with sandbox.open_sandbox(views) as opened, opened.ask(text) as answer:
        yield answer


def write(answer: Answer, file_format: str, stream: BinaryIO) -> None:
    """Write an answer as ``csv``, ``json`` or ``parquet``, as it comes."""
    # Programs of a shell read lines that end as theirs.
    writers: Mapping[str, Callable[[BinaryIO, pa.Schema], Writer]] = {
        "csv": partial(CsvWriter, eol="\n"),
        "json": JsonWriter,
        "parquet": ParquetWriter,
    }
    writer = writers[file_format](stream, answer.schema)
    for batch in answer.batches:
        writer.write(batch)
    writer.close()


def first_rows(answer: Answer, n_rows: int) -> tuple[list[list[Any]], bool]:
    """Return the first rows of an answer as a person may see them, and whether there are more; of lists the beginning."""
    rows: list[list[Any]] = []
    for batch in answer.batches:
        first = pa.Table.from_batches([batch.slice(0, n_rows - len(rows))])
        rows += [list(row) for row in zip(*(_shortened(column) for column in first.columns), strict=True)]
        if first.num_rows < batch.num_rows:
            return rows, True
    return rows, False


def _shortened(column: pa.ChunkedArray) -> list[Any]:
    texts: list[Any] = to_text(column).to_pylist()
    if not pa.types.is_nested(column.type):
        return texts
    return [
        text if text is None or len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..." for text in texts
    ]


def _find_feature_inventory(labels: Inventory) -> Inventory | None:
    """Return the feature table that labels are from or that keeps their features; None if there is none."""
    info = labels.info
    place = Folder(info.features or info.source, labels.table.options)
    with explained(f"feature table {place.url}"):
        found = read_info(place)
    if found is None or found.kind != schema.FEATURES:
        return None
    return take_inventory(place)
