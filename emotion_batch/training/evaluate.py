"""Evaluate a bundle on a labelled feature table: how right, how sure, and how robust it is."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from threadpoolctl import threadpool_limits

from emotion_batch.errors import RecordingError, StorageError, UsageError, counted
from emotion_batch.features import audio, ffmpeg, recipes
from emotion_batch.inference.bundle import check_features, find_model, require_safe
from emotion_batch.inference.card import Card
from emotion_batch.inference.predict import Labels, Predictor, load_predictor, predict_labels
from emotion_batch.settings import MIX, AnySettings
from emotion_batch.storage.archive import find_base
from emotion_batch.storage.folder import Folder
from emotion_batch.storage.prefetch import reading
from emotion_batch.tables import inventory
from emotion_batch.tables.manifest import Manifest
from emotion_batch.tables.parts import require_complete
from emotion_batch.tables.schema import TableInfo
from emotion_batch.tables.table import require_features
from emotion_batch.training import metrics, splits
from emotion_batch.training.calibrate import MIN_SPEAKERS
from emotion_batch.training.data import Dataset, Source, read_dataset
from emotion_batch.training.labels import read_label_map
from emotion_batch.worker.recordings import opened_recording

# The changes to recordings, which should change few labels: 12 dB is a step back from a microphone, or a call's other side.
_LEVEL_DB, _SILENCE_S = 12.0, 2.0
# The band of a telephone line, with Butterworth filters of these orders; its rate, and the curve of its code (ITU-T G.711).
_TELEPHONE_HZ, _ORDERS, _LINE_HZ, _MU = (300.0, 3_400.0), (4, 10), 8_000, 255.0
# The codecs of lossy archives and of mobile calls, by FFmpeg's names, with their rates.
_MP3 = {"codec": "libmp3lame", "container": "mp3", "bits_per_s": 32_000}
_AMR = {"codec": "libopencore_amrnb", "container": "amr", "bits_per_s": 12_200}
_MP3_HZ = 16_000
# The time until an echo has fallen by 60 dB; its power equals that of the direct sound, as in a large room.
_REVERBERATION_S, _SPEED = 0.5, 1.1
CONDITIONS = (
    *("as_is", "plus_12_db", "minus_12_db", "padded", "telephone", "8_khz", "mu_law", "amr", "mp3"),
    *("noise_20_db", "noise_10_db", "reverberation", "faster", "slower"),
)
# The figures of shortcuts and of recordings that were changed.
_SHORT = ("n_rows", "n_speakers", "accuracy", "uar")


def evaluate(
    bundle: str | os.PathLike[str],
    table: str | os.PathLike[str],
    *,
    labels: str = "tess",
    label_map: str | os.PathLike[str] | None = None,
    allow_numeric_labels: bool = False,
    priors: Mapping[str, float] | None = None,
    robustness: int = 200,
    storage_options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Judge a bundle on a labelled feature table; the figures are honest if it has not learnt from these recordings.

    Parameters
    ----------
    bundle
        The bundle to judge, or the name of one that ships.
    table
        A feature table with the bundle's features.
    labels
        Where the reference labels are from: see `labels.read_labels`.
    label_map
        File that maps these labels to the model's: see `labels.read_label_map`. Labels without a counterpart are left out
        and counted.
    allow_numeric_labels
        Take labels that look like numbers or dates, which are an error otherwise unless the model or the map has them.
    priors
        How common each label is in another archive, for the precision in that archive.
    robustness
        Recordings that are decoded again and changed in the ways of `CONDITIONS`; 0 for none.
    storage_options
        What fsspec's filesystem takes.

    Raises
    ------
    UsageError
        If it is no bundle or not safe, or the table's features or labels are not those of the model.
    IncompleteError
        If the table has parts missing.
    """
    if robustness < 0:
        raise UsageError(f"robustness must be a number of recordings, or 0: {robustness}")
    place = Folder.of(table, storage_options)
    judged = require_safe(find_model(bundle, storage_options))
    info = require_features(place)
    check_features(info, place, judged)
    words = None if label_map is None else read_label_map(os.fspath(label_map))
    manifest = inventory.read_manifest(place, info)
    require_complete(place, info, manifest.shards)
    card = judged.card
    if priors is not None:
        # Wrong priors are refused before any work; with these counts every label has rows.
        metrics.precision_at_priors(np.eye(len(card.labels), dtype=np.int64).tolist(), card.labels, priors)
    predictor = load_predictor(judged)
    given: list[Labels] = []
    stretches: list[pa.Table] = []

    def predict(rows: pa.Table) -> None:
        given.append(predict_labels(rows, predictor))
        stretches.append(rows.select(["start_s", "end_s", "channel"]))

    # Each part is predicted when it is read, and only numbers of its rows are kept.
    source = Source(place, info, sorted(manifest.shards))
    data = read_dataset(
        *(*source, labels, None),
        known_labels=card.labels,
        label_map=words,
        allow_numeric_labels=allow_numeric_labels,
        on_rows=predict,
    )
    # A column that the bundle cannot give is None in every part.
    columns: list[Any] = [None if parts[0] is None else np.concatenate(parts) for parts in zip(*given, strict=True)]
    found = Labels(*columns)
    figures = data.judge(np.arange(len(data.targets)), found.raw, found.best)
    at_priors = changed = None
    if priors is not None:
        precision = metrics.precision_at_priors(figures["confusion"], card.labels, priors)
        at_priors = {"priors": dict(priors), "precision": precision}
    if robustness:
        chosen = _choose(data, robustness)
        of_chosen = pa.concat_tables(stretches).take(pa.array(chosen)).to_pylist()
        changed = _judge_robustness(source, manifest, predictor, data, chosen, of_chosen)
    return Evaluation(
        model=judged.folder.url,
        model_id=card.model_id,
        table=place.url,
        labels=card.labels,
        n_failed=data.n_failed,
        left_out=data.left_out,
        figures={**figures, "intervals": metrics.intervals(data.targets, found.best, data.speakers)},
        calibration={
            "temperature": card.temperature,
            "raw": metrics.pick(figures, "nll", "ece"),
            "calibrated": metrics.measure_confidence(data.targets, found.probabilities),
        },
        by_speaker=_judge_speakers(data, found),
        by_voice=data.judge_voices(np.arange(len(data.targets)), found.raw, found.best),
        trust=_judge_trust(card, data, found),
        at_priors=at_priors,
        shortcuts=_judge_shortcuts(data),
        robustness=changed,
        warnings=_warn(card, info, data),
    )


@dataclass(frozen=True)
class Evaluation:
    """The figures of a bundle on a table.

    Attributes
    ----------
    model, model_id, table
        The bundle that was judged, and the table.
    labels
        The model's labels, in order.
    n_failed, left_out
        Number of rows that are not judged: those without features; and by label, those whose label the model lacks, with
        "" for rows without a label.
    figures
        Result of `metrics.compute_metrics` on the network's own probabilities, and ``intervals`` from `metrics.intervals`.
    calibration
        ``temperature``, and ``raw`` and ``calibrated`` with ``nll`` (nats) and ``ece``.
    by_speaker
        ``speaker``, ``n_rows``, ``accuracy`` and ``uar`` of each known one, the worst first.
    by_voice
        ``n_rows``, ``n_speakers``, ``accuracy`` and ``uar`` of each language and sex, if the corpus's names say them.
    trust
        ``threshold``, ``promised``, ``n_confident``, ``n_right`` of these, ``precision`` and ``coverage`` of
        ``is_confident``, ``n_speakers``, and the shares ``in_domain`` and ``speech``; None if unknown.
    at_priors
        ``priors`` as stated and ``precision`` by label at these; None without priors.
    shortcuts
        ``duration`` and ``level``, each with ``n_rows``, ``n_speakers``, ``accuracy`` and ``uar`` of a linear model on it
        alone, learnt on this table's other speakers; or ``reason``, a sentence.
    robustness
        ``n_recordings``, ``n_failed``, and for each of `CONDITIONS` ``n_rows``, ``n_speakers``, ``accuracy``, ``uar`` and
        ``kept``, the share of labels that are those of ``as_is``; or ``reason``, a sentence; None if it was not wanted.
    warnings
        Sentences that belong to the figures.
    """

    model: str
    model_id: str
    table: str
    labels: tuple[str, ...]
    n_failed: int
    left_out: Mapping[str, int]
    figures: Mapping[str, Any]
    calibration: Mapping[str, Any]
    by_speaker: Sequence[Mapping[str, Any]]
    by_voice: Mapping[str, Mapping[str, Any]]
    trust: Mapping[str, Any]
    at_priors: Mapping[str, Any] | None
    shortcuts: Mapping[str, Any]
    robustness: Mapping[str, Any] | None
    warnings: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return asdict(self)


def _judge_speakers(data: Dataset, found: Labels) -> list[dict[str, Any]]:
    judged = []
    numbers, words = splits.number_words(data.speakers)
    order = np.argsort(numbers, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    for word, rows in zip(words, groups, strict=True):
        if word:
            figures = data.judge(rows, found.raw[rows], found.best[rows])
            judged.append({"speaker": word, **metrics.pick(figures, "n_rows", "accuracy", "uar")})
    return sorted(judged, key=lambda one: (one["uar"], one["speaker"]))


def _judge_trust(card: Card, data: Dataset, found: Labels) -> dict[str, Any]:
    n_confident = int(found.is_confident.sum())
    n_right = int((found.is_confident & (found.best == data.targets)).sum())
    return {
        "threshold": card.confidence.get("threshold"),
        "promised": card.confidence.get("promised"),
        "n_confident": n_confident,
        "n_right": n_right,
        "precision": n_right / n_confident if n_confident else None,
        "coverage": n_confident / len(data.targets),
        "n_speakers": data.n_speakers,
        "in_domain": None if found.is_in_domain is None else float(found.is_in_domain.mean()),
        "speech": None if found.is_speech is None else float(found.is_speech.mean()),
    }


def _judge_shortcuts(data: Dataset) -> dict[str, Any]:
    """Return the figures of duration alone, and of level alone, on speakers that were held out."""
    try:
        folds = splits.speaker_folds(data.targets, data.speakers)
    except UsageError as error:
        return {"reason": str(error)}
    if not folds.names:
        reason = f"shortcuts: at least two speakers are needed, known speakers: {folds.n_speakers}"
        return {"reason": f"{reason}; duration and level are learnt on some of them and judged on others"}
    return {name: metrics.pick(figures, *_SHORT) for name, figures in data.judge_shortcuts(folds).items()}


def _judge_robustness(
    source: Source,
    manifest: Manifest,
    predictor: Predictor,
    data: Dataset,
    chosen: Sequence[int],
    of_chosen: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the figures of some rows' recordings under each of `CONDITIONS`; or why there are none."""
    info, settings = source.info, source.info.feature_settings
    files = data.files.take(pa.array(chosen)).to_pylist()
    rows: list[int] = []
    probabilities: list[npt.NDArray[np.float32]] = []
    reason = ""
    try:
        base = find_base(info.source, source.table.options)
        entries = manifest.find(files)
        # It decodes as a worker does, so that it gives the table's own features.
        with threadpool_limits(1), reading(base, info.segments) as reader:
            for row, one, (entry, fetched) in zip(chosen, of_chosen, reader.ahead(entries), strict=True):
                start_s, channel = one["start_s"], one["channel"]
                try:
                    with opened_recording(entry, base, fetched, MIX if channel is None else [channel]) as recording:
                        # Stretches of speech, and those of a list, have lengths of their own.
                        is_timed = info.segments.source is None
                        duration_s = info.segments.duration_s if is_timed else one["end_s"] - start_s
                        stretches = _vary(recording, start_s, round(duration_s, 9), settings)
                except RecordingError as error:
                    reason = reason or f"{entry.file}: {error.reason}"
                    continue
                values = [recipes.compute(samples, rate_hz, settings) for samples, rate_hz in stretches]
                if not all(np.isfinite(value).all() for one in values for value in one):
                    reason = reason or f"{entry.file}: its features are not finite after a change"
                    continue
                rows.append(row)
                probabilities.append(predictor.predict(recipes.prepare(recipes.to_table(values, settings), settings)))
    except (StorageError, UsageError) as error:
        return {"reason": f"robustness: the archive's recordings cannot be read again ({error})"}
    if not rows:
        return {"reason": f"robustness: none of {len(files)} recordings can be read again ({reason})"}
    given = np.stack(probabilities)
    found: dict[str, Any] = {"n_recordings": len(rows), "n_failed": len(files) - len(rows)}
    is_kept = given.argmax(axis=2) == given[:, :1].argmax(axis=2)
    for at, name in enumerate(CONDITIONS):
        figures = metrics.pick(data.judge(np.array(rows), given[:, at]), *_SHORT)
        found[name] = {**figures, "kept": float(is_kept[:, at].mean())}
    return found


def _choose(data: Dataset, n_recordings: int) -> list[int]:
    """Return the number of one row each of some recordings, in which labels are as common as in all."""
    random = np.random.default_rng(0)
    # It starts from the order by name, so that the choice does not depend on the table's parts.
    shuffled = random.permutation(data.order)
    recordings, _ = splits.number_words(data.files)
    _, first = np.unique(recordings[shuffled], return_index=True)
    rows = random.permutation(shuffled[first])
    targets = data.targets[rows]
    place = np.empty(len(rows), np.float64)
    for target in np.unique(targets):
        is_own = targets == target
        # The k-th of a label's n comes when a share of k / n of all others has come.
        place[is_own] = (np.arange(is_own.sum()) + 0.5) / is_own.sum()
    chosen: list[int] = rows[np.argsort(place, kind="stable")[:n_recordings]].tolist()
    return chosen


def _vary(
    recording: audio.Recording, start_s: float, duration_s: float, settings: AnySettings
) -> list[tuple[npt.NDArray[np.float32], int]]:
    """Return a segment's samples and their rate under each of `CONDITIONS`; louder ones may exceed 1, and are not clipped."""
    # This is read first, because it begins earlier.
    padded = _read_padded(recording, start_s, duration_s, settings.sample_rate)
    plain = recording.read(start_s, duration_s, sample_rate=settings.sample_rate).samples
    rate_hz = settings.sample_rate or recording.header.sample_rate_hz
    gain = np.float32(10 ** (_LEVEL_DB / 20))
    random = np.random.default_rng(0)
    noise = random.normal(0, math.sqrt(float(np.mean(np.square(plain)))), len(plain)).astype(np.float32)
    hertz = np.maximum(np.fft.rfftfreq(len(plain), 1 / rate_hz), 1e-3)
    sides = (_TELEPHONE_HZ[0] / hertz) ** (2 * _ORDERS[0]), (hertz / _TELEPHONE_HZ[1]) ** (2 * _ORDERS[1])
    band = np.fft.rfft(plain) / np.sqrt((1 + sides[0]) * (1 + sides[1]))
    line = audio.resample(plain, rate_hz, _LINE_HZ)
    # The samples of a telephone line and of MP3 keep their rate, unless the features have one rate.
    line_hz, mp3_hz = (wanted if settings.sample_rate is None else rate_hz for wanted in (_LINE_HZ, _MP3_HZ))
    mobile = _send(line, _LINE_HZ, _AMR)
    mp3 = _send(audio.resample(plain, rate_hz, _MP3_HZ), _MP3_HZ, _MP3)
    # The amplitude falls to a thousandth.
    at_s = np.arange(int(_REVERBERATION_S * rate_hz)) / rate_hz
    echo = random.normal(size=len(at_s)) * np.exp(-math.log(1_000) / _REVERBERATION_S * at_s)
    echo[0] = math.sqrt(float(np.sum(np.square(echo[1:]))))
    size = len(plain) + len(echo)
    room = np.fft.irfft(np.fft.rfft(plain, size) * np.fft.rfft(echo, size), size)[: len(plain)]
    faster, slower = (audio.resample(plain, round(rate_hz * speed), rate_hz) for speed in (_SPEED, 1 / _SPEED))
    varied = (
        *(plain, plain * gain, plain / gain, padded, np.fft.irfft(band, len(plain))),
        *(audio.resample(one, _LINE_HZ, line_hz) for one in (line, _code(line), mobile)),
        audio.resample(mp3, _MP3_HZ, mp3_hz),
        *(plain + noise * np.float32(10 ** (-snr_db / 20)) for snr_db in (20, 10)),
        *(room / echo[0], faster, slower),
    )
    its_own = {"8_khz": line_hz, "mu_law": line_hz, "amr": line_hz, "mp3": mp3_hz}
    rates_hz = [its_own.get(name, rate_hz) for name in CONDITIONS]
    return [(np.asarray(one, np.float32), its_hz) for one, its_hz in zip(varied, rates_hz, strict=True)]


def _send(samples: npt.NDArray[np.float32], rate_hz: int, form: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """Return samples after a codec, with the loudest at full scale for it, because codecs work with whole numbers."""
    peak = np.float32(max(float(np.abs(samples).max()), 1e-9))
    data = ffmpeg.encode(samples / peak, rate_hz, **form)
    with audio.opened(data, len(data)) as recording:
        heard = recording.read(0.0, len(samples) / rate_hz, sample_rate=rate_hz).samples
    return np.asarray(heard * peak, np.float32)


def _code(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return samples after coding in 8 bits of mu-law, with the loudest at full scale."""
    peak = max(float(np.abs(samples).max()), 1e-9)
    curved = np.sign(samples) * np.log1p(_MU * np.abs(samples) / peak) / math.log1p(_MU)
    steps = np.rint(curved * 127) / 127
    return np.asarray(np.sign(steps) * np.expm1(np.abs(steps) * math.log1p(_MU)) / _MU * peak, np.float32)


def _read_padded(
    recording: audio.Recording, start_s: float, duration_s: float, sample_rate: int | None
) -> npt.NDArray[np.float32]:
    """Return the segment of the recording with digital silence before and after, as if the file had them."""
    rate = recording.header.sample_rate_hz
    start, n_frames = int(start_s * rate), int(duration_s * rate)
    silence = np.zeros(int(_SILENCE_S * rate), np.float32)
    n_before = min(n_frames, max(0, len(silence) - start))
    heard = silence[:0]
    if n_before < n_frames:
        first = max(0, start - len(silence))
        # It adds half a frame, because `read` rounds down to whole frames.
        stretch = ((first + 0.5) / rate, (n_frames - n_before + 0.5) / rate)
        heard = recording.read(*stretch, sample_rate=rate).samples
    padded = np.concatenate([silence[:n_before], heard, silence])[:n_frames]
    return padded if sample_rate is None else audio.resample(padded, rate, sample_rate)


def _warn(card: Card, info: TableInfo, data: Dataset) -> list[str]:
    warnings = []
    if not data.n_speakers:
        warnings.append("who speaks is unknown here, so these figures may depend on few voices")
    elif data.n_speakers < MIN_SPEAKERS:
        warnings.append(
            f"these are figures of {counted(data.n_speakers, 'speaker')}; at least {MIN_SPEAKERS} are needed to say anything about other voices"
        )
    learnt = card.training.get("n_learnt")
    source = (
        "the bundle does not say what it learnt from"
        if learnt is None
        else f"the bundle learnt from {counted(learnt, 'segment')} of {card.training.get('n_speakers') or 'unknown'} speakers with "
        f"labels from {card.training.get('labels')!r}, and does not name the recordings"
    )
    warnings.append(
        f"figures are honest only on recordings that the model has not learnt from; {source}, so check that these are others"
    )
    if info.segments.duration_s != card.segments.duration_s:
        warnings.append(
            f"segments last {info.segments.duration_s:g} s, and those that the model was trained on last {card.segments.duration_s:g} s"
        )
    return [*warnings, *data.notes]
