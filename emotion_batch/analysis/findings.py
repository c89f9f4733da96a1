"""Find what stands out in the statistics of a table, one sentence each, the worst first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from emotion_batch.analysis.statistics import Figures, show_count, show_roughly
from emotion_batch.errors import MENDABLE

# From these shares on it is said. They are no thresholds of quality, only of what one would want to know.
_FAILED, _OUTSIDE, _SILENT, _ONE_LABEL, _FEW_CONFIDENT = 0.01, 0.1, 0.1, 0.6, 0.2
_LEAST_FOLDER, _FOLDER_FAILED = 20, 0.5


@dataclass(frozen=True)
class Remark:
    """A sentence, and what it is about; `kind` is ``stop`` where the figures are not of all, ``look``, or ``fine``."""

    topic: str
    text: str
    kind: str = "look"


def remark(figures: Figures) -> list[Remark]:
    """Return what stands out; if nothing does, one remark says so."""
    found = [*_unfinished(figures), *_failed(figures), *_judged(figures), *_ran(figures)]
    return found or [
        Remark("All well", "Nothing stands out: every recording has its rows, and few of them failed.", "fine")
    ]


def headline(figures: Figures) -> str:
    """Return the one sentence that says how the night was."""
    coverage = figures.coverage
    made = "labelled" if figures.info.labels else "turned into features"
    so_far = "" if coverage.is_complete else "so far, "
    sentence = f"{so_far}{show_count(coverage.n_labelled)} of {show_count(coverage.n_listed)} recordings {made}"
    if figures.info.labels and coverage.n_ok:
        sentence += f"; {show_roughly(figures.n_confident, coverage.n_ok)} of the labels are confident"
    return sentence[:1].upper() + sentence[1:]


def summarise_table(figures: Figures) -> str:
    """Return the sentences after the headline: what the labels mostly are, and what failed."""
    coverage, failures = figures.coverage, figures.failures
    found = []
    if figures.labels and coverage.n_ok:
        ordered = sorted(figures.labels, key=lambda one: -one.n_rows)
        words = [f"{one.label} {show_roughly(one.n_rows, coverage.n_ok)}" for one in ordered[:3] if one.n_rows]
        found.append(f"Most frequent: {', '.join(words)}.")
    if failures and coverage.n_failed:
        found.append(f"{show_count(coverage.n_failed)} failed, most often {failures[0].status}.")
    elif coverage.n_surveyed:
        found.append("None failed.")
    return " ".join(found)


def _unfinished(figures: Figures) -> Iterator[Remark]:
    coverage = figures.coverage
    if not coverage.n_listed:
        yield Remark("Incomplete", "Nothing is listed yet: a run ended before it had frozen its listing.", "stop")
    elif not coverage.is_complete:
        parts = f"{show_count(coverage.n_shards - coverage.n_complete)} of {show_count(coverage.n_shards)} parts"
        text = (
            f"{parts}, with {show_count(coverage.n_listed - coverage.n_surveyed)} recordings, are missing, out of date or damaged. "
            "What follows is of the other parts alone. The command that made the table does what is left."
        )
        yield Remark("Incomplete", text, "stop")
    if figures.n_at_work:
        yield Remark("At work", "A run is at work on this table now: the same report will say more later.")


def _failed(figures: Figures) -> Iterator[Remark]:
    coverage = figures.coverage
    if figures.failures and coverage.n_failed >= _FAILED * max(1, coverage.n_surveyed):
        words = ", ".join(f"{one.status} {show_count(one.n_rows)}" for one in figures.failures[:3])
        words = words if figures.info.segments.hop_s is None else f"in rows {words}"
        text = f"{show_roughly(coverage.n_failed, coverage.n_surveyed)} of the recordings failed ({words})"
        if any(one.status in MENDABLE for one in figures.failures):
            text += "; `emotion-batch retry` tries again what another try could mend"
        yield Remark("Failed", f"{text}.")
    folders = [one for one in figures.columns or figures.folders if one.n_rows >= _LEAST_FOLDER]
    if broken := [one for one in folders if one.n_failed >= _FOLDER_FAILED * one.n_rows]:
        worst = max(broken, key=lambda one: (one.n_failed, one.name))
        name = worst.name or "at the top"
        others = f", and {len(broken) - 1} more folders like it" if len(broken) > 1 else ""
        text = f"Folder “{name}”: {show_roughly(worst.n_failed, worst.n_rows)} of its rows failed{others}."
        yield Remark("Folder", text)


def _judged(figures: Figures) -> Iterator[Remark]:
    n_ok = figures.coverage.n_ok
    if not figures.info.labels or not n_ok:
        return
    if figures.n_outside is not None and figures.n_outside >= _OUTSIDE * n_ok:
        text = (
            f"{show_roughly(figures.n_outside, n_ok)} of the labels are of sound unlike what the model was trained on: other voices, "
            "rooms or languages. Believe these least."
        )
        yield Remark("Domain", text)
    if figures.n_silent is not None and figures.n_silent >= _SILENT * n_ok:
        yield Remark(
            "Speech", f"{show_roughly(figures.n_silent, n_ok)} of the labels are of something that is not speech."
        )
    most = max(figures.labels, key=lambda one: one.n_rows)
    if most.n_rows >= _ONE_LABEL * n_ok:
        yield Remark("One label", f"{show_roughly(most.n_rows, n_ok)} of the labels are “{most.label}”.")
    if figures.portrait is None:
        text = "The model's card is not in the table: nothing is known of how right its labels are, nor how sure."
        yield Remark("Trust", text)
        return
    promise = figures.portrait.promise
    if promise is None or promise.threshold is None:
        text = "No label counts as confident: the model's card has no threshold to be confident from."
        yield Remark("Trust", text)
        return
    if figures.n_confident < _FEW_CONFIDENT * n_ok:
        yield Remark("Confidence", f"Few labels are confident: {show_roughly(figures.n_confident, n_ok)} of them.")
    if not promise.is_guaranteed or (promise.got is not None and promise.got < promise.promised):
        got = "no label reached it" if promise.got is None else f"{show_roughly(promise.got)} were right"
        text = (
            f"“Confident” promises that {show_roughly(promise.promised)} are right; on {promise.n_speakers or 'unknown'} speakers "
            f"whom the model had not heard, {got}. On voices from elsewhere nothing is guaranteed: listen to some."
        )
        yield Remark("Trust", text)


def _ran(figures: Figures) -> Iterator[Remark]:
    runs = figures.throughput.runs
    if figures.n_lost:
        yield Remark("Runs", f"{show_count(figures.n_lost)} runs died without a word since the last that ended.")
    if runs and runs[0].outcome not in ("complete", ""):
        why = f": {runs[0].error}" if runs[0].error else ""
        yield Remark("Runs", f"The last run ended {runs[0].outcome}{why}.")
    if (lost_s := sum(run.lost_s for run in runs)) >= 60:
        text = f"{lost_s / 60:,.0f} minutes of work were lost with recordings that took a worker with them."
        yield Remark("Runs", text)
