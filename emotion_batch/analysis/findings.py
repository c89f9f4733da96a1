"""Find what stands out in the statistics of a table, one sentence each, the worst first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from emotion_batch.analysis.statistics import Figures, show_label, show_roughly
from emotion_batch.errors import MENDABLE, counted

# A share from this size on is worth a remark. These numbers say nothing about quality.
_FAILED, _OUTSIDE, _SILENT, _ONE_LABEL, _FEW_CONFIDENT = 0.01, 0.1, 0.1, 0.6, 0.2
_LEAST_FOLDER, _FOLDER_FAILED = 20, 0.5


@dataclass(frozen=True)
class Remark:
    """A sentence and its topic; `kind` is ``stop`` if the figures do not cover all recordings, ``look``, or ``fine``."""

    topic: str
    text: str
    kind: str = "look"


def remark(figures: Figures) -> list[Remark]:
    """Return what stands out; if nothing does, one remark says so."""
    found = [*_unfinished(figures), *_failed(figures), *_judged(figures), *_ran(figures)]
    return found or [Remark("All well", "Nothing stands out: every recording is done, and few failed.", "fine")]


def headline(figures: Figures) -> str:
    """Return one sentence about the whole table."""
    coverage = figures.coverage
    made = "labelled" if figures.info.labels else "turned into features"
    so_far = "" if coverage.is_complete else "so far, "
    sentence = f"{so_far}{coverage.n_labelled:,} of {counted(coverage.n_listed, 'recording')} {made}"
    if figures.info.labels and coverage.n_ok:
        sentence += f"; {show_roughly(figures.n_confident, coverage.n_ok)} of the labels are confident"
    return sentence[:1].upper() + sentence[1:]


def summarise_table(figures: Figures) -> str:
    """Return the sentences after the headline: the most frequent labels, and how many recordings failed."""
    coverage, failures = figures.coverage, figures.failures
    found = []
    if figures.labels and coverage.n_ok:
        ordered = sorted(figures.labels, key=lambda one: -one.n_rows)
        words = [
            f"{show_label(one.label)} {show_roughly(one.n_rows, coverage.n_ok)}" for one in ordered[:3] if one.n_rows
        ]
        found.append(f"Most frequent: {', '.join(words)}.")
    if failures and coverage.n_failed:
        found.append(f"{coverage.n_failed:,} failed, most often {failures[0].status}.")
    elif coverage.n_surveyed:
        found.append("None failed.")
    return " ".join(found)


def _unfinished(figures: Figures) -> Iterator[Remark]:
    coverage = figures.coverage
    if not coverage.n_listed:
        yield Remark("Incomplete", "No recordings are listed yet: a run ended before it saved its list.", "stop")
    elif not coverage.is_complete:
        parts = f"{coverage.n_shards - coverage.n_complete:,} of {counted(coverage.n_shards, 'part')}"
        text = (
            f"Missing, out of date or damaged: {parts}, with {counted(coverage.n_listed - coverage.n_surveyed, 'recording')}. "
            "The report covers only the other parts. Run the command that made the table again to do the rest."
        )
        yield Remark("Incomplete", text, "stop")
    if figures.n_at_work:
        yield Remark("At work", "A run is working on this table now. Make the report again later to see more.")


def _failed(figures: Figures) -> Iterator[Remark]:
    coverage = figures.coverage
    if figures.failures and coverage.n_failed >= _FAILED * max(1, coverage.n_surveyed):
        words = ", ".join(f"{one.status} {one.n_rows:,}" for one in figures.failures[:3])
        words += f" and {len(figures.failures) - 3} more" if len(figures.failures) > 3 else ""
        words = words if figures.info.segments.is_one_row else f"by rows: {words}"
        text = f"{show_roughly(coverage.n_failed, coverage.n_surveyed)} of the recordings failed ({words})"
        if any(one.status in MENDABLE for one in figures.failures):
            text += "; `emotion-batch retry` tries those again that may succeed now"
        yield Remark("Failed", f"{text}.")
    folders = [one for one in figures.columns or figures.folders if one.n_rows >= _LEAST_FOLDER]
    if broken := [one for one in folders if one.n_failed >= _FOLDER_FAILED * one.n_rows]:
        worst = max(broken, key=lambda one: (one.n_failed, one.name))
        name = worst.name or "at the top"
        others = f", and half or more of them in {counted(len(broken) - 1, 'other folder')}" if len(broken) > 1 else ""
        text = f"Folder “{name}”: {show_roughly(worst.n_failed, worst.n_rows)} of its rows failed{others}."
        yield Remark("Folder", text)


def _judged(figures: Figures) -> Iterator[Remark]:
    n_ok = figures.coverage.n_ok
    if not figures.info.labels or not n_ok:
        return
    if figures.n_outside is not None and figures.n_outside >= _OUTSIDE * n_ok:
        text = (
            f"{show_roughly(figures.n_outside, n_ok)} of the labels are out of domain: the sound is unlike the model's training data, "
            "e.g. another voice, room or language. Trust these labels least."
        )
        yield Remark("Domain", text)
    if figures.n_silent is not None and figures.n_silent >= _SILENT * n_ok:
        yield Remark(
            "Speech", f"{show_roughly(figures.n_silent, n_ok)} of the labels are for sound that is not speech."
        )
    most = max(figures.labels, key=lambda one: one.n_rows)
    if most.n_rows >= _ONE_LABEL * n_ok:
        yield Remark("One label", f"{show_roughly(most.n_rows, n_ok)} of the labels are “{show_label(most.label)}”.")
    if figures.portrait is None:
        text = "The model's card is not in the table, so it is unknown how often its labels are right."
        yield Remark("Trust", text)
        return
    promise = figures.portrait.promise
    if promise is None or promise.threshold is None:
        text = "No label counts as confident, because the model's card has no threshold for it."
        yield Remark("Trust", text)
        return
    if figures.n_confident < _FEW_CONFIDENT * n_ok:
        yield Remark("Confidence", f"Few labels are confident: only {show_roughly(figures.n_confident, n_ok)}.")
    if not promise.is_guaranteed or (promise.got is not None and promise.got < promise.promised):
        got = "no label was confident" if promise.got is None else f"{show_roughly(promise.got)} were right"
        speakers = counted(promise.n_speakers, "speaker") if promise.n_speakers else "an unknown number of speakers"
        text = f"Of the “confident” labels, {show_roughly(promise.promised)} should be right. In a test on {speakers} that the model "
        text += f"had not heard, {got}. Nothing is guaranteed for other voices, so listen to some recordings."
        yield Remark("Trust", text)


def _ran(figures: Figures) -> Iterator[Remark]:
    runs = figures.throughput.runs
    if figures.n_lost:
        yield Remark("Runs", f"{counted(figures.n_lost, 'run')} died without a message since the last run that ended.")
    if runs and runs[0].outcome not in ("complete", ""):
        why = f": {runs[0].error}" if runs[0].error else ""
        yield Remark("Runs", f"The last run did not complete ({runs[0].outcome}){why}.")
    if (lost_s := sum(run.lost_s for run in runs)) >= 60:
        text = f"Work lost because a recording crashed its worker: {counted(round(lost_s / 60), 'minute')}."
        yield Remark("Runs", text)
