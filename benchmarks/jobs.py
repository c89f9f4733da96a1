"""Shards of real tables, for what is measured of whole tasks."""

from __future__ import annotations

from pathlib import Path

from emotion_batch.inference.bundle import open_bundle
from emotion_batch.settings import FeatureSettings, Segments
from emotion_batch.storage.archive import list_recordings
from emotion_batch.storage.folder import Folder
from emotion_batch.tables import schema
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.shard_entries import ShardEntry
from emotion_batch.tables.table import create_info
from emotion_batch.worker.job import Job, TablePlace


def make_jobs(folder: Path, archive: str, bundle: str | None) -> dict[str, tuple[Job, dict[int, ShardEntry]]]:
    """Freeze an archive in new tables below `folder`; return the job and shards of extracting and of labelling it."""
    listing = list_recordings(archive)
    infos = {"extract": TableInfo(schema.FEATURES, listing.folder.url, FeatureSettings(), Segments())}
    if bundle is not None:
        opened = open_bundle(Folder.of(bundle))
        card = opened.card
        infos["label"] = TableInfo(
            schema.LABELS, listing.folder.url, card.feature_settings, card.segments, card.model_id, card.labels
        )
    jobs: dict[str, tuple[Job, dict[int, ShardEntry]]] = {}
    for name, info in infos.items():
        table = Folder.of(folder / name)
        create_info(table, info)
        manifest = Manifest(table)
        manifest.grow(listing.entries, info.segments)
        here = TablePlace(table, info)
        job = (
            Job(features=here, archive=listing.folder)
            if name == "extract"
            else Job(labels=here, archive=listing.folder, bundle=opened)
        )
        jobs[name] = (job, manifest.shards)
    return jobs
