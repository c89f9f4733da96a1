"""The public functions that run over an archive or a table: extract, label, resume, retry, submit and verify.

Each has the name and the words of its command. A function here puts the rooms together: it checks the call, lists the archive,
freezes the manifest, and hands shards to `run.driver`. The other public functions need one room alone and live there.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

from emotion_batch import usage
from emotion_batch.errors import MENDABLE, UNLISTED, Status, UsageError, format_command
from emotion_batch.inference.bundle import Bundle, check_features, find_copy_damage, find_model, open_copy, require_safe
from emotion_batch.inference.predict import load_predictor
from emotion_batch.progress import Watcher
from emotion_batch.run.canary import find_unheard
from emotion_batch.run.driver import Run
from emotion_batch.run.record import Summary
from emotion_batch.run.run_options import RunKeywords, RunOptions
from emotion_batch.run.submit import open_run
from emotion_batch.settings import AnySettings, FeatureSettings, Segments
from emotion_batch.storage.archive import SUFFIXES, Listing, find_base, list_recordings, name_suffixes
from emotion_batch.storage.folder import Folder, explained
from emotion_batch.tables import parts, schema
from emotion_batch.tables.inventory import read_manifest
from emotion_batch.tables.lease import check_table
from emotion_batch.tables.manifest import find_generation
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.table import find_features, find_info, read_info, require_table
from emotion_batch.tables.verify import Verification, verify_table
from emotion_batch.usage import Spent
from emotion_batch.worker.job import Job, TablePlace


def extract(
    archive: str | os.PathLike[str],
    table: str | os.PathLike[str],
    *,
    settings: AnySettings | None = None,
    segments: Segments | str | os.PathLike[str] | None = None,
    window: float | None = None,
    hop: float | None = None,
    channels: str | Sequence[int] | None = None,
    suffixes: Iterable[str] = SUFFIXES,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    limit: int | None = None,
    prune: bool = False,
    options: RunOptions | None = None,
    **keywords: Unpack[RunKeywords],
) -> Summary:
    """Extract the features of an archive's recordings into a feature table; what is there already is kept.

    Parameters
    ----------
    archive
        Folder or bucket prefix, glob, list file or one recording.
    table
        Folder or prefix of the feature table: a new one, or one that is to go on.
    settings
        How samples become features; by default as in the notebook.
    segments
        Which stretches of each recording; by default the recipe's. ``"speech"`` for stretches of speech, ``"speech:silero"`` for those that
        Silero's detector finds, or a list of segments: CSV or Parquet with ``file,start_s,end_s[,channel][,speaker]``, RTTM or a table of audformat.
    window, hop
        Instead of `segments`: windows of so many seconds, one every `hop` seconds; without `hop`, each starts where the last one ends.
    channels
        ``"mix"`` for the mean of a recording's channels, ``"each"`` for rows of each channel, or the numbers of channels from 0; by
        default as in `segments`.
    suffixes
        Endings by which files of a folder are recordings.
    include, exclude
        Take only recordings whose names match one of these patterns, and none that matches one of those, such as
        ``2024/**`` or ``*_test.wav``: see `archive.list_recordings`. A table keeps them.
    limit
        Take only the first so many recordings, for a trial. The same call without it goes on to all.
    prune
        Take recordings that are gone from the archive out of the table.
    options, **keywords
        What all runs share: see `RunOptions`. Keywords are its attributes by name, such as ``workers=4``.

    Raises
    ------
    UsageError, StorageError, ClusterError
        Before any work, if it cannot begin.
    CanaryError, IncompleteError
        If it was stopped, or shards were left over; the same call goes on.
    """
    started = time.perf_counter()
    options = RunOptions.of(options, **keywords)
    place, source = options.folder(table), options.folder(archive)
    settings = settings or FeatureSettings()
    include, exclude = tuple(include), tuple(exclude)
    stretches = settings.segments.replaced_by(Segments.choose(segments, window, hop), channels)
    named = name_suffixes(suffixes)
    info = TableInfo(schema.FEATURES, source.url, settings, stretches, include=include, exclude=exclude, suffixes=named)
    check_table(place, info)
    relist = partial(_list, source, place, info, options, prune=prune, limit=limit)
    listed = relist()
    with open_run(place, info, options, started) as run:
        while not run.freeze(*listed, prune=prune, limit=limit):
            listed = relist()
        base = listed[0].folder
        # Its ten million names are in the manifest now.
        del listed
        return _decode(run, base, features=TablePlace(place, info))


def label(
    source: str | os.PathLike[str],
    table: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    segments: Segments | str | os.PathLike[str] | None = None,
    window: float | None = None,
    hop: float | None = None,
    channels: str | Sequence[int] | None = None,
    keep_features: str | os.PathLike[str] | None = None,
    suffixes: Iterable[str] = SUFFIXES,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    limit: int | None = None,
    prune: bool = False,
    options: RunOptions | None = None,
    **keywords: Unpack[RunKeywords],
) -> Summary:
    """Label the recordings of an archive, or the rows of a feature table, into a label table.

    Parameters
    ----------
    source
        Folder or bucket prefix, glob, list file or one recording; or a feature table.
    table
        Folder or prefix of the label table: a new one, or one that is to go on.
    model
        The bundle, or the name of one that ships; by default the one that is meant for voices that it has not heard. Its
        feature settings are those that an archive is read with.
    segments
        Which stretches of an archive's recordings, as in `extract`; by default those that the model was trained on.
    window, hop
        Instead of `segments`: windows of so many seconds, one every `hop` seconds; without `hop`, each starts where the last one ends.
    channels
        ``"mix"`` for the mean of a recording's channels, ``"each"`` for rows of each channel, or the numbers of channels from 0; by
        default as in `segments`.
    keep_features
        Feature table into which the features of an archive go as well.
    suffixes
        Endings by which files of a folder are recordings.
    include, exclude
        Take only recordings whose names match one of these patterns, and none that matches one of those. A table keeps them.
    limit
        Take only the first so many recordings, for a trial. The same call without it goes on to all.
    prune
        Take recordings that are gone from the archive out of the table.
    options, **keywords
        What all runs share: see `RunOptions`. Keywords are its attributes by name, such as ``workers=4``.

    Raises
    ------
    UsageError, StorageError, ClusterError
        Before any work, if it cannot begin.
    CanaryError, IncompleteError
        If it was stopped, or shards were left over; the same call goes on.
    """
    started = time.perf_counter()
    options = RunOptions.of(options, **keywords)
    include, exclude = tuple(include), tuple(exclude)
    place, origin, asked = options.folder(table), options.folder(source), Segments.choose(segments, window, hop)
    # First of all, so that a confusion of the two is not told as a fault of either.
    begun = find_info(place)
    bundle = require_safe(find_model(model, options.storage_options))
    card = bundle.card
    # As workers will, for what they cannot load costs a night.
    load_predictor(bundle)
    features = find_features(origin)
    if features is not None:
        check_features(features, origin, bundle)
        stated: dict[str, object] = {"keep_features": keep_features, "segments or windows": asked, "channels": channels}
        stated |= {"prune": prune or None, "include": include or None, "exclude": exclude or None, "limit": limit}
        for name, value in stated.items():
            if value is not None:
                raise UsageError(f"{name} cannot be combined with the feature table {origin.url}, only with an archive")
    stretches = card.segments.replaced_by(asked, channels) if features is None else features.segments
    if stretches.duration_s != card.segments.duration_s:
        (options.watcher or Watcher()).on_note(
            f"segments last {stretches.duration_s:g} s, and those that the model was trained on last {card.segments.duration_s:g} s; "
            "expect its labels to be right less often"
        )
    kept_at = None if keep_features is None else options.folder(keep_features).url
    named = () if features is not None else name_suffixes(suffixes)
    about = (card.feature_settings, stretches, card.model_id, card.labels, kept_at, include, exclude, named)
    info = TableInfo(schema.LABELS, origin.url, *about)
    check_table(place, info)
    run = open_run(place, info, options, started)
    if features is not None:
        return _label_features(run, bundle, origin, features)
    kept = _kept_features(place, info)
    if kept is not None:
        check_table(*kept)
    relist = partial(_list, origin, place, info, options, prune=prune, limit=limit)
    listed = relist()
    with run:
        while not run.freeze(*listed, prune=prune, limit=limit):
            listed = relist()
        base = listed[0].folder
        if begun is None and (said := find_unheard(listed[0], bundle, stretches)):
            run.watcher.on_note(said)
        # Its ten million names are in the manifest now.
        del listed
        if kept is not None:
            run.keep_features(*kept)
        return _decode(run, base, features=kept, labels=TablePlace(place, info), bundle=run.keep_model(bundle))


def retry(
    table: str | os.PathLike[str],
    *,
    status: Iterable[str] = (),
    options: RunOptions | None = None,
    **keywords: Unpack[RunKeywords],
) -> Summary:
    """Do again the recordings of a table that failed and that another try could mend, and no others.

    Parameters
    ----------
    table
        A feature or label table.
    status
        Which failures, by status; by default ``truncated``, ``unreadable``, ``vanished``, ``crashed``, ``timeout`` and
        ``memory``. A recording that is ``changed`` is listed and read anew by the command that made the table.
    options, **keywords
        What all runs share: see `RunOptions`. Keywords are its attributes by name, such as ``workers=4``.

    Raises
    ------
    UsageError, StorageError, ClusterError
        Before any work, if it cannot begin.
    IncompleteError
        If the table has parts missing, which the command that made it does.
    """
    started = time.perf_counter()
    # The first recordings failed before, so that they fail alike tells nothing.
    options = replace(RunOptions.of(options, **keywords), force=True)
    again = _failures(status)
    place = options.folder(table)
    info = require_table(place)
    origin = options.folder(info.source)
    bundle = None if info.kind == schema.FEATURES else open_copy(place)
    run = open_run(place, info, options, started)
    if bundle is not None and find_features(origin) is not None:
        raise UsageError(
            f"table {place.url} has the labels of the feature table {origin.url}, where the recordings are decoded; run "
            f"`{format_command('retry', origin.url)}`, and then `{format_command('resume', place.url)}`"
        )
    archive = find_base(info.source, options.storage_options)
    with run:
        here = TablePlace(place, info)
        kept = here if bundle is None else _kept_features(place, info)
        if kept is not None:
            with explained(f"feature table {kept.table.url}"):
                if read_info(kept.table) is None:
                    # It was deleted on purpose.
                    kept = None
        labels = None if bundle is None else here
        return _decode(run, archive, again, features=kept, labels=labels, bundle=bundle, is_retry=True)


def resume(
    table: str | os.PathLike[str],
    *,
    limit: int | None = None,
    prune: bool = False,
    options: RunOptions | None = None,
    **keywords: Unpack[RunKeywords],
) -> Summary:
    """Continue the run that made a table: `extract` or `label` again, with the archive, settings and model that the table names.

    Parameters
    ----------
    table
        A feature or label table that a run has begun.
    limit
        Take only the first so many recordings, for a trial. The same call without it goes on to all.
    prune
        Take recordings that are gone from the archive out of the table.
    options, **keywords
        What all runs share: see `RunOptions`. Keywords are its attributes by name, such as ``workers=4``. A table keeps no credentials, so `storage_options` are those of this call.

    Raises
    ------
    UsageError, StorageError, ClusterError
        Before any work, if it cannot begin; among others if the table lost its copy of the model.
    CanaryError, IncompleteError
        If it was stopped, or shards were left over; the same call resumes it.
    """
    options = RunOptions.of(options, **keywords)
    place = options.folder(table)
    info = require_table(place)
    choice: dict[str, Any] = {"limit": limit, "prune": prune, "options": options}
    if find_features(options.folder(info.source)) is None:
        choice |= {"segments": info.segments, "include": info.include, "exclude": info.exclude}
        choice["suffixes"] = info.suffixes or SUFFIXES
    if info.kind == schema.FEATURES:
        return extract(info.source, table, settings=info.feature_settings, **choice)
    return label(info.source, table, model=open_copy(place).folder.url, keep_features=info.features, **choice)


def submit(command: str, *arguments: Any, **keywords: Any) -> Summary:
    """Hand a run to a running Dask cluster and come back: neither this process nor this machine is needed any more.

    The archive is listed, the manifest frozen, every worker tried and the first shards are done before it comes back. Then
    `status` says from anywhere how far it is, `cancel` stops it, and if the scheduler is lost the same call goes on.

    Parameters
    ----------
    command
        ``"extract"``, ``"label"``, ``"resume"`` or ``"retry"``.
    *arguments, **keywords
        What that function takes, `scheduler` among it.

    Raises
    ------
    UsageError
        If the command is none of these, or no scheduler is named.
    """
    commands: dict[str, Callable[..., Summary]] = {one.__name__: one for one in (extract, label, resume, retry)}
    if command not in commands:
        raise UsageError(f"submit takes {', '.join(commands)}: {command!r}")
    return commands[command](*arguments, **keywords, leave=True)


def _decode(run: Run, archive: Folder, again: frozenset[Status] = UNLISTED, **job: Any) -> Summary:
    """Do what is left of an archive; `again` are the statuses that are done anew, and `job` says what else the job has."""
    witnesses = run.find_witnesses(archive)
    return run.finish(Job(archive=archive, limits=run.options.limits, again=again, witnesses=witnesses, **job))


def _kept_features(table: Folder, info: TableInfo) -> TablePlace | None:
    """Return the feature table that keeps the features of a label table; None if none does."""
    return None if info.features is None else TablePlace(Folder(info.features, table.options), info.kept_features())


def _label_features(run: Run, bundle: Bundle, origin: Folder, features: TableInfo) -> Summary:
    manifest = read_manifest(origin, features)
    footers = parts.require_complete(origin, features, manifest.shards)
    with run:
        run.follow(manifest)
        copy = run.keep_model(bundle)
        job = Job(labels=TablePlace(run.table, run.info), source=TablePlace(origin, features), bundle=copy)
        return run.finish(job, footers)


def _list(
    source: Folder, table: Folder, info: TableInfo, options: RunOptions, *, prune: bool, limit: int | None
) -> tuple[Listing, Spent, int]:
    """Return the recordings of an archive, what it took to list them, and the table's newest generation before."""
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be a number of recordings of at least 1: {limit}")
    # A bucket's table that cannot be written is refused before an archive is listed for an hour.
    with explained(f"table {table.url}"):
        table.try_to_write(f"{schema.LEDGER}/try-{secrets.token_hex(8)}")
    generation = find_generation(table)
    with usage.metered() as spent, usage.stage("list"):
        listing = list_recordings(
            source.url,
            options=source.options,
            suffixes=info.suffixes or SUFFIXES,
            include=info.include,
            exclude=info.exclude,
            segments=info.segments,
            may_be_empty=prune and options.force,
            on_listed=(options.watcher or Watcher()).on_listed,
        )
    return listing, spent, generation


def _failures(words: Iterable[str]) -> frozenset[Status]:
    """Return the statuses that `words` name; for none, those that another try could mend."""
    failures = frozenset(Status) - {Status.OK}
    named = list(words)
    unknown = [word for word in named if word not in failures]
    if unknown:
        raise UsageError(f"status must be {' or '.join(sorted(failures))}: {unknown[0]!r}")
    return frozenset(Status(word) for word in named) or MENDABLE


def verify(
    table: str | os.PathLike[str],
    *,
    deep: bool = False,
    repair: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Verification:
    """Look whether each recording of a table's manifest has its rows exactly once, and nothing else is there.

    Parameters
    ----------
    table
        A feature or label table.
    deep
        Read every row, rather than what each part says of itself.
    repair
        Read every row, and remove the parts that are damaged: the command that made the table then makes them anew. Without
        it nothing is written.
    storage_options
        What fsspec's filesystem takes.

    Raises
    ------
    UsageError
        If there is no table.
    """
    return verify_table(Folder.of(table, storage_options), deep=deep, repair=repair, find_copy_damage=find_copy_damage)
