"""What a child does: one kind of work, a block at a time, each with what it cost. Started by `measuring.Child`."""

from __future__ import annotations

import atexit
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

Work = Callable[[Any], Any]


def notebook(archive: str) -> Work:
    """Do the notebook's cell; a block is names of recordings, an answer CPU seconds."""
    import librosa

    def extract_mfcc(path: Path) -> np.ndarray:
        samples, rate = librosa.load(path, duration=3, offset=0.5)
        return np.mean(librosa.feature.mfcc(y=samples, sr=rate, n_mfcc=40).T, axis=0)

    return timed(lambda names: [extract_mfcc(Path(archive, name)) for name in names])


def package(archive: str, recipe: str = "seed") -> Work:
    """Do what a shard does with recordings: names to rows."""
    from emotion_batch.settings import FeatureSettings, VoicesSettings
    from emotion_batch.storage.archive import list_recordings
    from emotion_batch.worker import process
    from emotion_batch.worker.recordings import extract_rows

    process.settle()
    settings = VoicesSettings() if recipe == "voices" else FeatureSettings()
    listing = list_recordings(archive)
    numbers = {name: number for number, name in enumerate(listing.entries["file"].to_pylist())}

    def work(names: list[str]) -> None:
        entries = listing.entries.take([numbers[name] for name in names]).combine_chunks().to_batches()[0]
        extract_rows(entries, listing.folder, settings, settings.segments)

    return timed(work)


def windows(archive: str, window_s: str, hop_s: str) -> Work:
    """Do what a shard does to extract windows by the default recipe: names to rows."""
    from emotion_batch.settings import Segments, VoicesSettings
    from emotion_batch.storage.archive import list_recordings
    from emotion_batch.worker import process
    from emotion_batch.worker.recordings import extract_rows

    process.settle()
    segments = Segments.windows(float(window_s), float(hop_s))
    listing = list_recordings(archive)
    numbers = {name: number for number, name in enumerate(listing.entries["file"].to_pylist())}

    def work(names: list[str]) -> None:
        entries = listing.entries.take([numbers[name] for name in names]).combine_chunks().to_batches()[0]
        extract_rows(entries, listing.folder, VoicesSettings(), segments)

    return timed(work)


def labels(archive: str) -> Work:
    """Do what a shard does to label recordings by the model that ships: names to rows."""
    from emotion_batch.inference.bundle import find_model, open_bundle
    from emotion_batch.inference.predict import Predictor, label_rows
    from emotion_batch.storage.archive import list_recordings
    from emotion_batch.worker import process
    from emotion_batch.worker.recordings import extract_rows

    process.settle()
    bundle = open_bundle(find_model(None))
    predictor, card = Predictor(bundle), bundle.card
    listing = list_recordings(archive)
    numbers = {name: number for number, name in enumerate(listing.entries["file"].to_pylist())}

    def work(names: list[str]) -> None:
        entries = listing.entries.take([numbers[name] for name in names]).combine_chunks().to_batches()[0]
        label_rows(extract_rows(entries, listing.folder, card.feature_settings, card.segments), predictor)

    return timed(work)


def stages(archive: str) -> Work:
    """Do what `package` does; an answer is the CPU seconds in each stage of it, and in all."""
    import scipy.fft

    from emotion_batch.features import audio, mfcc, wav

    seconds: dict[str, float] = {}

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            started = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.process_time() - started

        return call

    audio.resample = clocked("resample", audio.resample)
    scipy.fft.rfft = clocked("transform", scipy.fft.rfft)
    for decoder in (wav.Wave, audio._Libsndfile):
        decoder.decode = clocked("decode", decoder.decode)
    mfcc.mean_mfcc = clocked("mfcc", mfcc.mean_mfcc)
    work = package(archive)

    def stage(names: list[str]) -> dict[str, float]:
        seconds.clear()
        cpu, _ = work(names)
        return {**seconds, "all": cpu}

    return stage


def floor(archive: str) -> Work:
    """Decode, resample and transform, alone, by the same libraries; an answer is the CPU seconds of the three."""
    import scipy.fft
    import soundfile
    import soxr

    from emotion_batch.worker import process

    process.settle()
    streams: dict[int, soxr.ResampleStream] = {}
    frames = np.random.default_rng(0).standard_normal((512, 2_048)).astype(np.float32)

    def decode(name: str) -> tuple[np.ndarray, int]:
        with soundfile.SoundFile(Path(archive, name)) as sound:
            sound.seek(int(0.5 * sound.samplerate))
            samples = sound.read(3 * sound.samplerate, dtype="float32", always_2d=True)
            return samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0], sound.samplerate

    def resample(samples: np.ndarray, rate: int) -> np.ndarray:
        if rate == 22_050:
            return samples
        if rate not in streams:
            streams[rate] = soxr.ResampleStream(rate, 22_050, 1, dtype="float32", quality="soxr_hq")
        streams[rate].clear()
        return streams[rate].resample_chunk(samples, last=True)

    def work(names: list[str]) -> list[float]:
        seconds = [0.0, 0.0, 0.0]
        for name in names:
            times = [time.process_time()]
            samples, rate = decode(name)
            times.append(time.process_time())
            resampled = resample(samples, rate)
            times.append(time.process_time())
            scipy.fft.rfft(frames[: 1 + len(resampled) // 512], axis=1)
            times.append(time.process_time())
            for which in range(3):
                seconds[which] += times[which + 1] - times[which]
        return seconds

    return work


def shards(archive: str, bundle: str = "") -> Work:
    """Do whole shards with no Dask, as a worker does: manifest, rows, part. A block is (job, shard numbers)."""
    from benchmarks.jobs import make_jobs
    from emotion_batch.worker.task import Task

    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    jobs = make_jobs(Path(folder.name), archive, bundle or None)

    def work(block: tuple[str, list[int]]) -> None:
        name, numbers = block
        job, entries = jobs[name]
        for number in numbers:
            job.do_shard(Task(number, entries[number]), "benchmark")

    return timed(work)


def unguarded(archive: str) -> Work:
    """Do what `shards` does of an extraction without notes, watchdog and meter. A block is (anything, shard numbers)."""
    from contextlib import nullcontext

    from benchmarks.jobs import make_jobs
    from emotion_batch.tables import parts
    from emotion_batch.tables.shard_entries import read_entries
    from emotion_batch.worker import process, recordings

    process.settle()
    recordings.stage = parts.stage = nullcontext
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    job, entries = make_jobs(Path(folder.name), archive, None)["extract"]

    def work(block: tuple[str, list[int]]) -> None:
        for number in block[1]:
            listed = read_entries(job.table, entries[number])
            found = recordings.extract_rows(listed, job.archive, job.info.feature_settings, job.info.segments)
            parts.publish_part(job.table, job.info, number, entries[number].digest, found)

    return timed(work)


def keras(bundle: str, batch_size: str) -> Work:
    """Predict with the bundle's Keras network; a block is a number of rows."""
    from emotion_batch.training import networks

    _, keras_module = networks.load_keras()
    network = keras_module.saving.load_model(Path(bundle, "model.keras"))
    size = int(batch_size)
    return timed(lambda n_rows: network.predict(vectors(n_rows)[..., np.newaxis], batch_size=size, verbose=0))


def executable(bundle: str) -> Work:
    """Predict as a worker does; a block is a number of rows."""
    from emotion_batch.inference.bundle import open_bundle
    from emotion_batch.inference.predict import Predictor
    from emotion_batch.storage.folder import Folder

    predictor = Predictor(open_bundle(Folder.of(bundle)))
    return timed(lambda n_rows: predictor.predict(vectors(n_rows)))


@lru_cache(maxsize=2)
def vectors(n_rows: int) -> np.ndarray:
    """Return feature vectors of the usual size, shape (n_rows, 40)."""
    return np.random.default_rng(0).normal(0, 20, (n_rows, 40)).astype(np.float32)


def timed(function: Work) -> Work:
    """Return the work, answering with its CPU and wall seconds."""

    def work(block: Any) -> tuple[float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        function(block)
        return time.process_time() - cpu, time.perf_counter() - wall

    return work


def main() -> None:
    """Do the blocks that come in, a line each."""
    kind, *arguments = sys.argv[1:]
    kinds = {
        work.__name__: work
        for work in (notebook, package, windows, labels, stages, floor, shards, unguarded, keras, executable)
    }
    do = kinds[kind](*arguments)
    for line in sys.stdin:
        print(json.dumps(do(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
