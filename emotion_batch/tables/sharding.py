"""Cut a listing into shards of about equal cost: estimate the cost of each recording and the number of shards."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from emotion_batch.settings import Segments

MAX_SHARDS = 20_000
# A task costs Dask about 10 ms, and a lost task costs its shard. So both the size and the number of shards grow with the square
# root of the number of recordings, until a shard is so large that its part is worth a query's request.
_SHARDS_PER_ROOT = 0.28
_MOST_RECORDINGS, _MOST_BYTES = 1_024, 2**30
_COST_BATCH = 65_536
# Costs in bytes of PCM: to open a recording, of a usual recording, and of a second of audio at most (48 kHz, stereo, 32 bit).
_OPENING_BYTES, _USUAL_BYTES, _SECOND_BYTES = 16_384, 100_000, 384_000
# A segment of a list is about twenty letters of an entry.
_LETTER_BYTES = 1_000
# Encoded audio is about this many times smaller than PCM.
_COMPRESSION = {".mp3": 10, ".ogg": 10, ".opus": 12, ".flac": 2}


def cut(entries: pa.Table, segments: Segments) -> list[pa.Table]:
    """Cut a listing of at least one recording into shards of neighbours that cost about the same.

    There are at most `MAX_SHARDS`, and none is empty. They depend on the listing and the segments alone, and share the
    memory of the listing.
    """
    # The listing is handled in pieces, because the arrays in between take several times its memory. The costs are whole numbers,
    # so that the pieces do not change the result.
    batches = entries.to_batches(max_chunksize=_COST_BATCH)
    totals = np.cumsum([_whole_costs(batch, segments).sum() for batch in batches])
    total = int(totals[-1])
    n_shards = count_shards(entries.num_rows, total)
    wanted = total * np.arange(1, n_shards) / n_shards
    bounds = [0]
    start = before = 0
    for batch, after in zip(batches, totals.tolist(), strict=True):
        cost = before + np.cumsum(_whole_costs(batch, segments))
        here = wanted[(wanted > before) & (wanted <= after)]
        bounds += (start + np.searchsorted(cost, here, side="left") + 1).tolist()
        start += batch.num_rows
        before = after
    bounds = sorted({*bounds, entries.num_rows})
    return [entries.slice(start, end - start) for start, end in pairwise(bounds)]


def _whole_costs(batch: pa.RecordBatch, segments: Segments) -> npt.NDArray[np.int64]:
    return np.rint(estimate_costs(batch, segments)).astype(np.int64)


def estimate_costs(entries: pa.Table | pa.RecordBatch, segments: Segments) -> npt.NDArray[np.float64]:
    """Return what each recording will cost, in bytes of PCM that are read and processed, shape (n_recordings,).

    One segment costs its own length. Windows cost the whole recording, several times if they overlap; other segments cost the whole
    recording, and those of a list also some by themselves.
    """
    sizes: npt.NDArray[np.float64] = entries["size"].fill_null(_USUAL_BYTES).to_numpy().astype(np.float64)
    if segments.is_one_stretch:
        return _OPENING_BYTES + np.minimum(sizes, segments.duration_s * _SECOND_BYTES)
    for suffix, factor in _COMPRESSION.items():
        sizes[pc.ends_with(entries["file"], suffix, ignore_case=True).to_numpy(zero_copy_only=False)] *= factor
    if segments.is_listed and "segments" in entries.schema.names:
        sizes += _LETTER_BYTES * pc.binary_length(entries["segments"]).fill_null(0).to_numpy()
    return _OPENING_BYTES + sizes * max(1.0, segments.duration_s / (segments.hop_s or segments.duration_s))


def count_shards(n_recordings: int, cost: int) -> int:
    """Return how many shards `n_recordings` of total cost `cost` make, at most `MAX_SHARDS`."""
    n_usual = max(n_recordings, cost / (_OPENING_BYTES + _USUAL_BYTES))
    small = math.ceil(_SHARDS_PER_ROOT * math.sqrt(n_usual))
    large = max(math.ceil(n_recordings / _MOST_RECORDINGS), math.ceil(cost / _MOST_BYTES))
    return min(max(small, large), n_recordings, MAX_SHARDS)
