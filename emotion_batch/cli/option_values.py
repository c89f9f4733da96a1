"""Turn options of the command line into the values that the API takes."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from emotion_batch.errors import UsageError

if TYPE_CHECKING:
    from emotion_batch.run.scheduler import Scheduler
    from emotion_batch.settings import AnySettings, Segments

_SEED_OPTIONS = ("sample_rate", "n_mfcc", "n_fft", "hop_length", "n_mels")


def read_scheduler(options: argparse.Namespace) -> Scheduler | None:
    """Return the scheduler that was named, or None."""
    from emotion_batch.run.scheduler import Scheduler

    files = (options.tls_ca, options.tls_cert, options.tls_key)
    if options.scheduler is not None:
        return Scheduler(options.scheduler, *files)
    if any(files):
        raise UsageError("--tls-ca, --tls-cert, --tls-key: expected --scheduler with them, got none")
    return None


def read_feature_settings(options: argparse.Namespace) -> AnySettings | None:
    """Return the feature settings that were asked for; None where nothing was said of them."""
    stated = {name: value for name in _SEED_OPTIONS if (value := getattr(options, name)) is not None}
    if options.recipe not in (None, "seed") and stated:
        raise UsageError(
            f"--{next(iter(stated)).replace('_', '-')}: expected the recipe seed with it, got {options.recipe}"
        )
    if options.recipe is None and not stated:
        return None
    from emotion_batch.features.recipes import find_option

    settings: AnySettings = find_option(options.recipe or "seed").settings(**stated)
    return settings


def read_segments(options: argparse.Namespace) -> Segments | None:
    """Return the segments that were asked for; None where nothing was said of them."""
    from emotion_batch.settings import Segments

    stretch = {"offset_s": options.offset, "duration_s": options.duration}
    said = {name: value for name, value in stretch.items() if value is not None}
    if options.window is None:
        if options.hop is not None:
            raise UsageError("--hop: expected --window with it, got none")
        return Segments(**said) if said else None
    if said:
        raise UsageError("--window: expected neither --offset nor --duration beside it, got one; windows start at 0")
    return Segments.windows(options.window, options.hop)


def read_storage_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what fsspec's filesystem takes, of a JSON object or a file with one."""
    text = options.storage_options
    if not text:
        return {}
    try:
        if text.startswith("@"):
            with open(text[1:], encoding="utf-8") as stream:
                text = stream.read()
        value = json.loads(text)
    except (OSError, ValueError):
        # Not the text itself: it may hold a key. Nor the cause, whose traceback would.
        raise UsageError("--storage-options: expected a JSON object or @FILE with one, got something else") from None
    if not isinstance(value, dict):
        raise UsageError("--storage-options: expected a JSON object, got another JSON value")
    return value
