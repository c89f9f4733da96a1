"""Run the demo: make an archive, run the three jobs on it, and query the labels."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from emotion_batch import api
from emotion_batch.analysis.query import describe_example, query
from emotion_batch.errors import UsageError, format_command, quote_argument
from emotion_batch.example import synthesis
from emotion_batch.libraries import require_training
from emotion_batch.progress import Watcher
from emotion_batch.storage.folder import explained
from emotion_batch.training.fit import TrainingSettings
from emotion_batch.training.train import train

# The demo makes these, so it may remove them when it is run again.
_MARKER = ".emotion-batch-demo"
_MADE = ("recordings", "features", "bundle", "labels")
# These are some of the examples that `query` has.
_QUERIES = ("mix", "failed", "unsure")


def demo(
    folder: str | os.PathLike[str] = "demo",
    *,
    n_words: int = 40,
    workers: int | None = None,
    watcher: Watcher | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Synthesise an archive, extract its features, train a model, label the archive and query the labels.

    Parameters
    ----------
    folder
        A new or empty folder, or the folder of an earlier demo, which is replaced.
    n_words
        Number of words for each of two voices and seven emotions.
    workers
        Number of worker processes; by default one for each core.
    watcher
        Hears notes and progress.
    say
        Takes the text for a person to read.

    Raises
    ------
    UsageError
        If the folder has other content, or `n_words` is below 3.
    """
    require_training()
    if n_words < 3:
        raise UsageError(f"words must be at least 3, because a training needs 5 recordings of each label: {n_words}")
    root = Path(folder)
    with explained(f"demo folder {root}"):
        if root.exists() and (not root.is_dir() or (any(root.iterdir()) and not (root / _MARKER).exists())):
            raise UsageError(f"demo folder {root} is a file or not empty: name a new or empty folder")
        root.mkdir(parents=True, exist_ok=True)
        (root / _MARKER).touch()
        # Only what an earlier demo made is removed.
        for name in _MADE:
            shutil.rmtree(root / name, ignore_errors=True)
    recordings, features, bundle, labels = (root / name for name in _MADE)
    try:
        n_files = synthesis.write_archive(recordings, n_words=n_words)
    except ValueError as error:
        raise UsageError(str(error)) from error
    say(f"1. {n_files} synthesised recordings, named as in the TESS corpus, five of them broken: {recordings}\n")

    places = [os.fspath(root / name) for name in _MADE]
    say(f"2. {format_command('extract', *places[:2])}")
    extracted = api.extract(recordings, features, workers=workers, watcher=watcher)
    say(f"   {extracted.counts.n_ok} feature rows, {extracted.counts.n_failed} rows with the reason why not\n")

    # The notebook's batch of 512 would make one step an epoch of so few rows.
    options = ("--epochs", "40", "--batch-size", "32", "--max-folds", "0")
    say(f"3. {format_command('train', *places[1:3], options=options)}")
    card = train(features, bundle, settings=TrainingSettings(epochs=40, batch_size=32, max_folds=0))
    judged = card.metrics["stratified"]
    say(f"   right on {judged['accuracy']:.1%} of {judged['n_rows']} recordings that it did not learn from\n")

    with_model = ("--model", quote_argument(places[2]))
    say(f"4. {format_command('label', places[0], places[3], options=with_model)}")
    labelled = api.label(recordings, labels, model=bundle, workers=workers, watcher=watcher)
    say(f"   {labelled.counts.n_ok} labels, {labelled.counts.n_failed} rows with the reason why not\n")

    say("5. Any tool that reads Parquet queries the labels; here DuckDB:")
    for name in _QUERIES:
        command = format_command("query", places[3], options=("--example", name))
        say(
            f"\n-- {describe_example(name)}\n{command}\n\n{query(labels, example=name).to_pandas().to_string(index=False)}"
        )
    example = os.fspath(recordings / "V1_angry" / "V1_back_angry.wav")
    closing = resources.files(__package__).joinpath("closing.txt").read_text(encoding="utf-8").removesuffix("\n")
    say(closing.format(one=format_command("label", example, options=with_model)))
