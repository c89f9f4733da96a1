"""Write the page on which a person listens and answers: one file with players, which needs no server and loads nothing.

Its button saves the sheet that `take_review` reads. The answers given so far stay in the browser.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import secrets
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from emotion_batch.analysis.listening.clips import Clip, Excerpt, cut_clips, to_opus
from emotion_batch.analysis.report import open_templates, read_template
from emotion_batch.analysis.review_sample import DrawnRow
from emotion_batch.errors import StorageError, format_command
from emotion_batch.storage.folder import Folder

# Speech is heard well at this rate, and a clip is small.
_RATE_HZ = 16_000
# Up to so many clips are in the page, of some 30 kB each; more lie beside it.
_MOST_INSIDE = 1_000
# Points of the waveform that is drawn.
_N_POINTS = 240


def write_page(
    table: Folder,
    to: tuple[Folder, str],
    drawn: Sequence[DrawnRow],
    sheet: bytes,
    labels: Sequence[str],
    further: Sequence[str],
) -> None:
    """Write the page of a sheet into a folder under a name; `further` are the answers that are no labels: none, and cannot tell."""
    folder, name = to
    stem = name.rpartition(".")[0]
    heads, *records = csv.reader(io.StringIO(sheet.decode("utf-8-sig"), newline=""))
    excerpts = [Excerpt(one.row.file, one.row.channel, one.row.start_s, one.row.end_s) for one in drawn]
    is_inside = len(drawn) <= _MOST_INSIDE
    beside = folder.folder(f"{stem}-clips")
    if not is_inside:
        beside.make()
    rows = []
    clips = cut_clips(table, sorted({one.row.shard for one in drawn}), excerpts, _RATE_HZ)
    for number, (clip, cells) in enumerate(zip(clips, records, strict=True)):
        row = _describe(clip)
        if clip.reason is None:
            sound = to_opus(clip)
            if is_inside:
                row["audio"] = f"data:audio/ogg;base64,{base64.b64encode(sound).decode()}"
            else:
                row["audio"] = quote(f"{stem}-clips/{number:05d}.ogg")
                beside.publish(f"{number:05d}.ogg", sound)
        rows.append({"cells": cells, **row})
    if all(row["reason"] for row in rows):
        raise StorageError(f"none of the recordings can be heard, e.g. {drawn[0].row.file!r}: {rows[0]['reason']}")
    data = {"heads": heads, "rows": rows, "labels": list(labels), "further": list(further), "sheet": f"{stem}.csv"}
    template = open_templates().get_template("review.html.j2")
    page = template.render(
        data=json.dumps(data).replace("<", "\\u003c"),
        style=read_template("page.css") + read_template("review.css"),
        script=read_template("review.js"),
        nonce=secrets.token_urlsafe(16),
        n_rows=len(rows),
        table=table.url,
        take=format_command("review", table.url, f"{stem}.csv", options=("--take",)),
    )
    folder.publish(name, page.encode())


def _describe(clip: Clip) -> dict[str, Any]:
    """Return why a clip cannot be heard, or how its waveform looks, in whole hundredths of its peak."""
    if clip.reason is not None:
        return {"reason": clip.reason, "wave": []}
    parts = np.array_split(np.abs(clip.samples), min(_N_POINTS, len(clip.samples)))
    heights = np.array([part.max() for part in parts])
    return {"reason": None, "wave": np.rint(100 * heights / max(heights.max(), 1e-9)).astype(int).tolist()}
