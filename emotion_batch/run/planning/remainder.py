"""Find the recordings of an archive or a table that a run would still do, without writing anything."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from emotion_batch.errors import UsageError
from emotion_batch.inference.bundle import Bundle, check_features, find_model, open_copy, require_safe
from emotion_batch.inference.predict import load_predictor
from emotion_batch.progress import Watcher
from emotion_batch.settings import AnySettings, FeatureSettings, Segments
from emotion_batch.storage.archive import find_base, list_recordings
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.tables import inventory, parts, schema
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.shard_entries import ShardEntry
from emotion_batch.tables.sharding import cut
from emotion_batch.tables.table import check_info, find_features, read_info
from emotion_batch.worker.job import TablePlace


@dataclass(frozen=True)
class Remainder:
    """What a run would do.

    Attributes
    ----------
    info
        What the table is, or would be.
    source
        The feature table that is labelled, or what the recordings' names are relative to.
    bundle
        The model of a labelling.
    table
        The table that it would go on with, if one was named.
    shards
        Entries that are left to do, by the number of their shard; none is empty.
    n_recordings, n_parts
        Of all of the table.
    n_unfrozen
        Recordings of a listing that the run would freeze.
    features
        Of a feature table, its manifest's entries of the shards that are left.
    notes
        What is remarkable about it.
    """

    info: TableInfo
    source: TablePlace | Folder
    bundle: Bundle | None
    table: Folder | None
    shards: Mapping[int, pa.Table]
    n_recordings: int
    n_parts: int
    n_unfrozen: int = 0
    features: Mapping[int, ShardEntry] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_remainder(
    place: Folder,
    table: str | os.PathLike[str] | None,
    model: str | os.PathLike[str] | None,
    settings: AnySettings | None,
    segments: Segments | None,
    suffixes: Iterable[str],
    watcher: Watcher,
) -> Remainder:
    """Return what is left to do.

    Parameters
    ----------
    place
        The archive, a feature table, or the table that is to go on.
    table, model, settings, segments, suffixes, watcher
        As in `plan.plan`.

    Raises
    ------
    UsageError, StorageError
        If the run could not begin.
    """
    options = place.options
    with explained(f"archive {place.url}"):
        there = read_info(place)
    is_features = there is not None and there.kind == schema.FEATURES
    if there is not None and not (is_features and model is not None):
        for name, value in (("table", table), ("model", model), ("settings", settings), ("segments", segments)):
            if value is not None:
                raise UsageError(
                    f"{name}: expected an archive with it, got the table {place.url}, which says that itself"
                )
        return _go_on(place, there)
    goes_on = None if table is None else Folder.of(table, options)
    bundle = None
    if model is None and goes_on is not None:
        with explained(f"table {goes_on.url}"):
            begun = read_info(goes_on)
        if begun is not None and begun.kind == schema.LABELS:
            bundle = open_copy(goes_on)
    elif model is not None:
        bundle = require_safe(find_model(model, options))
    if bundle is not None:
        load_predictor(bundle)
        if settings is not None:
            raise UsageError("settings: expected none beside a model, which has its own, got some")
    if there is not None and bundle is not None:
        if segments is not None:
            raise UsageError(f"segments: expected an archive with them, got the feature table {place.url}")
        check_features(there, place, bundle)
        info = _label_info(place, there.segments, bundle)
        return _of_features(place, there, info, bundle, goes_on)
    listing = list_recordings(place.url, options=options, suffixes=suffixes, on_listed=watcher.on_listed)
    if bundle is None:
        settings = settings or FeatureSettings()
        info = TableInfo(schema.FEATURES, place.url, settings, segments or settings.segments)
    else:
        info = _label_info(place, segments or bundle.card.segments, bundle)
    notes = []
    if listing.left_out:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(listing.left_out.items()))
        notes.append(f"{sum(listing.left_out.values()):,} files are no recordings by their suffix ({kinds})")
    return _of_listing(listing.folder, listing.entries, info, bundle, goes_on, tuple(notes))


def _label_info(place: Folder, segments: Segments, bundle: Bundle) -> TableInfo:
    card = bundle.card
    return TableInfo(schema.LABELS, place.url, card.feature_settings, segments, card.model_id, card.labels)


def _go_on(place: Folder, info: TableInfo) -> Remainder:
    """Return what is left of a table."""
    origin = Folder.of(info.source, place.options)
    bundle = None if info.kind == schema.FEATURES else open_copy(place)
    features = None if bundle is None else find_features(origin)
    if features is not None:
        assert bundle is not None  # noqa: S101 only labels have features
        return _of_features(origin, features, info, bundle, place)
    with explained(f"table {place.url}"):
        manifest = inventory.read_manifest(place, info)
        done = parts.complete_shards(place, info, manifest.shards)
        left = [shard for shard in manifest.shards if shard not in done]
        entries = {shard: pa.Table.from_batches([one]) for shard, one in zip(left, manifest.entries(left), strict=True)}
    archive = find_base(info.source, place.options)
    return Remainder(info, archive, bundle, place, entries, manifest.n_recordings, len(manifest.shards))


def _of_features(
    origin: Folder, features: TableInfo, info: TableInfo, bundle: Bundle, table: Folder | None
) -> Remainder:
    """Return what is left of a labelling of a feature table."""
    manifest = inventory.read_manifest(origin, features)
    parts.require_complete(origin, features, manifest.shards)
    done: Mapping[int, object] = {}
    if table is not None and check_info(table, info) is not None:
        with explained(f"table {table.url}"):
            done = parts.complete_shards(table, info, manifest.shards)
    left = [shard for shard in manifest.shards if shard not in done]
    with explained(f"table {origin.url}"):
        batches = {shard: pa.Table.from_batches([one]) for shard, one in zip(left, manifest.entries(left), strict=True)}
    return Remainder(
        info,
        TablePlace(origin, features),
        bundle,
        table,
        batches,
        manifest.n_recordings,
        len(manifest.shards),
        features={shard: manifest.shards[shard] for shard in left},
    )


def _of_listing(
    archive: Folder,
    entries: pa.Table,
    info: TableInfo,
    bundle: Bundle | None,
    table: Folder | None,
    notes: tuple[str, ...],
) -> Remainder:
    """Return what is left of an archive, given the table that there may be."""
    n_all = entries.num_rows
    if table is None or check_info(table, info) is None:
        shards = dict(enumerate(cut(entries, info.segments)))
        return Remainder(info, archive, bundle, table, shards, n_all, len(shards), n_all, notes=notes)
    with explained(f"table {table.url}"):
        manifest = inventory.read_manifest(table, info)
        updated = manifest.preview(entries, info.segments)
        done = parts.complete_shards(table, info, manifest.shards)
        left = [shard for shard in manifest.shards if shard not in done and shard not in updated]
        shards = {shard: pa.Table.from_batches([one]) for shard, one in zip(left, manifest.entries(left), strict=True)}
        known = [shard for shard in updated if shard in done]
        before = dict(zip(known, manifest.entries(known), strict=True))
    n_recordings = manifest.n_recordings
    for shard, newest in updated.items():
        n_recordings += newest.num_rows - (manifest.shards[shard].n_recordings if shard in manifest.shards else 0)
        # Of a part that is there, what did not change is kept.
        shards[shard] = _changed(newest, before[shard]) if shard in before else newest
    shards = {shard: one for shard, one in shards.items() if one.num_rows}
    n_parts = len({*manifest.shards, *updated})
    n_unfrozen = sum(newest.num_rows for newest in updated.values())
    return Remainder(info, archive, bundle, table, shards, n_recordings, n_parts, n_unfrozen, notes=notes)


def _changed(newest: pa.Table, before: pa.RecordBatch) -> pa.Table:
    """Return the entries that are not as they were."""
    known = set(map(tuple, (row.values() for row in before.to_pylist())))
    return newest.filter(pa.array([tuple(row.values()) not in known for row in newest.to_pylist()]))
