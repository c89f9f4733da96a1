"""What a recording costs, in CPU time of one core, against the notebook's loop and against the bare libraries."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.measuring import Figure, children, in_turn, quartiles, ratio
from benchmarks.peers import extract_mfcc
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.archive import list_recordings
from emotion_batch.worker.recordings import extract_rows

_BLOCK = 50


def measure(archive: str, n_rounds: int) -> list[Figure]:
    """Return the kernel's figures on blocks of recordings drawn at random."""
    names = [name for name in list_recordings(archive).entries["file"].to_pylist() if not name.startswith("broken/")]
    rng = np.random.default_rng(0)
    size = min(_BLOCK, len(names))
    blocks = [[names[number] for number in rng.choice(len(names), size, replace=False)] for _ in range(n_rounds)]
    kinds = ("notebook", "package", "floor", "stages")
    with children(*((kind, archive) for kind in kinds), ("package", archive, "voices")) as processes:
        # Once to warm up.
        in_turn(processes, [names[:5]])
        notebook, package, floor, stages, sequences = in_turn(processes, blocks)
    theirs = [cpu / size * 1e3 for cpu, _ in notebook]
    ours = [cpu / size * 1e3 for cpu, _ in package]
    parts = [[seconds[which] / size * 1e3 for seconds in floor] for which in range(3)]
    bare = [sum(part) for part in zip(*parts, strict=True)]
    for answer in stages:
        answer["other sums"] = answer["mfcc"] - answer["transform"]
        answer["opening, calls and rows"] = answer["all"] - answer["mfcc"] - answer["resample"] - answer["decode"]
    shares = {
        name: [answer[name] / answer["all"] for answer in stages]
        for name in ("resample", "transform", "other sums", "decode", "opening, calls and rows")
    }
    difference = max(
        float(np.abs(one - two).max()) for one, two in features(archive, names[:: max(1, len(names) // 20)])
    )
    return [
        Figure("largest difference of a feature", "the notebook's loop", difference, "<= 0.001"),
        ratio("a recording's features", "the notebook's loop", ours, theirs, "<= 0.2", "ms CPU"),
        ratio("a recording's features", "decode, resample and FFT alone", ours, bare, "<= 1.25", "ms CPU"),
        ratio(
            "a recording by the recipe voices",
            "a recording's features",
            [cpu / size * 1e3 for cpu, _ in sequences],
            ours,
            "<= 3",
            "ms CPU",
        ),
        *(
            ratio(f"{name} alone", "the notebook's loop", part, theirs, unit="ms CPU")
            for name, part in zip(("decode", "resample", "FFT"), parts, strict=True)
        ),
        *(
            Figure(f"of a recording's features: {name}", "all of it", statistics.median(share), spread=quartiles(share))
            for name, share in shares.items()
        ),
    ]


def features(archive: str, names: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the vectors of recordings, by this package and by the notebook's cell."""
    listing = list_recordings(archive)
    is_wanted = pc.is_in(listing.entries["file"], value_set=pa.array(names))
    entries = listing.entries.filter(is_wanted).combine_chunks().to_batches()[0]
    for row in extract_rows(entries, listing.folder, FeatureSettings(), Segments()).to_pylist():
        yield np.array(row["mfcc"]), extract_mfcc(str(Path(archive, row["file"])))
