"""Render the sections about the run: what failed, examples to listen to, speed, and the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from emotion_batch.analysis.page import charts
from emotion_batch.analysis.page.markup import Html, join, name, table, tag, text
from emotion_batch.analysis.scan import Drawn
from emotion_batch.analysis.statistics import Figures, show_count, show_duration, show_share

# What gives the address of a recording from the page, or None if it cannot be reached from there.
Locate = Callable[[Drawn], str | None]
_STRATA = {
    "confident": ("Confident", "to hear whether it is right to be"),
    "unsure": ("Unsure", "in domain, but not confident"),
    "outside": ("Out of domain", "unlike what the model was trained on"),
}
_SPLITS = {
    "training": "what it learnt from",
    "stratified": "the same voices, recordings held out",
    "seed": "the last recordings by name",
    "speaker_held_out": "voices that it had not heard: the line to believe",
}
_STAGES = {
    "list": "listing the archive",
    "read": "waiting for storage",
    "decode": "decoding",
    "features": "features",
    "predict": "prediction",
    "write": "writing parts",
    "isolated": "in child processes",
}
_MOST_RUNS = 8


def show_failed(figures: Figures) -> Html:
    """Return what failed by reason, with examples."""
    n_rows = figures.coverage.n_rows
    n_failed = sum(one.n_rows for one in figures.failures)
    rows = [
        (
            tag("code", one.status),
            charts.draw_share(one.n_rows / n_failed, class_="bad"),
            show_count(one.n_rows),
            show_share(one.n_rows, n_rows),
        )
        for one in figures.failures
    ]
    caption = (
        f"{show_count(n_failed)} rows without a label"
        if figures.labels
        else f"{show_count(n_failed)} rows without features"
    )
    parts = [table(caption, ("reason", "", "rows", "of all"), rows, numbers=(2, 3), wide=1)]
    for failure in figures.failures:
        items = [
            tag("li", name(one.file), _at(one), tag("span", f" {one.error or ''}", class_="reason"))
            for one in failure.examples
        ]
        words = f"{failure.status}: {show_count(len(items))} of {show_count(failure.n_rows)}, drawn by lot"
        parts.append(tag("details", tag("summary", words), tag("ul", *items, class_="examples")))
    return join(parts)


def _at(one: Drawn) -> str | None:
    """Return which stretch of a recording a row is about, unless it is the only one."""
    if not one.start_s:
        return None
    return f" at {show_duration(one.start_s)}"


def show_listen(figures: Figures, locate: Locate) -> Html:
    """Return recordings to listen to, by label and by how sure the model is."""
    parts: list[Html] = []
    is_reachable = False
    ordered = sorted((one for one in figures.labels if one.n_rows), key=lambda one: -one.n_rows)
    for number, label in enumerate(one.label for one in ordered):
        columns = []
        for stratum, (heading, words) in _STRATA.items():
            found = [one for one in figures.drawn if one.emotion == label and one.stratum == stratum]
            items = []
            for one in found:
                source = locate(one)
                is_reachable = is_reachable or source is not None
                items.append(tag("li", *_player(one, source, label, is_window=figures.info.segments.hop_s is not None)))
            body = tag("ul", *items, class_="players") if items else tag("p", "none", class_="note")
            columns.append(tag("div", tag("h3", heading, tag("small", f" {words}")), body))
        summary = tag("summary", label)
        parts.append(tag("details", summary, tag("div", *columns, class_="strata"), open=number == 0))
    words = (
        "Recordings drawn by lot, some for each label: the same table and seed draw the same. Twenty that you have heard say more "
        "about this archive than all figures above."
    )
    if not is_reachable:
        words += " The recordings cannot be reached from this page, so only their names are here."
    return join([tag("p", words), *parts])


def _player(one: Drawn, source: str | None, label: str, *, is_window: bool) -> Iterator[Html | str]:
    yield name(one.file)
    # Of its only segment a recording's name says enough.
    is_told = is_window and one.start_s is not None and one.end_s is not None
    stretch = f", {one.start_s:,.1f} to {one.end_s:,.1f} s" if is_told else ""
    sure = "" if one.confidence is None else f"{one.confidence:.2f}"
    yield tag("span", f" {sure}{stretch}", class_="reason")
    if source is not None:
        # Nothing is loaded until somebody listens.
        yield tag("audio", controls=True, preload="none", src=source, aria_label=f"{label}: {one.file}")


def show_speed(figures: Figures) -> Html:
    """Return the rate, the workers' time by stage, the slowest recordings and the runs."""
    found = figures.throughput
    parts: list[Html] = []
    if found.rate is not None:
        audio = found.audio_hours_per_hour
        hours = "" if audio is None else f", {audio:,.0f} hours of audio in each"
        parts.append(
            tag(
                "p",
                f"{show_count(found.n_decoded)} recordings in {show_duration(found.elapsed_s)} of the clock: {found.rate:,.1f} a second{hours}"
                f"{' hour' if hours else ''}.",
            )
        )
    total = sum(found.stages_s.values())
    if total:
        rows = [
            (
                _STAGES.get(stage, stage),
                charts.draw_share(seconds / total),
                show_duration(seconds),
                show_share(seconds, total),
            )
            for stage, seconds in found.stages_s.items()
        ]
        parts.append(
            table(
                "On what the workers' time went",
                ("stage", "", "time of workers", "share"),
                rows,
                numbers=(2, 3),
                wide=1,
            )
        )
    if found.slowest:
        longest = found.slowest[0][0] or 1.0
        slowest = [
            (name(file), charts.draw_share(elapsed_s / longest, class_="other"), show_duration(elapsed_s))
            for elapsed_s, file in found.slowest
        ]
        parts.append(
            table("The recordings that took longest", ("recording", "", "time"), slowest, numbers=(2,), wide=1)
        )
    elif figures.info.labels:
        parts.append(
            tag(
                "p",
                "Which recordings took longest is not recorded: these labels were made from features, and decoding is told by the "
                "report of the feature table.",
                class_="note",
            )
            if "predict" in found.stages_s and "decode" not in found.stages_s
            else tag("p", "Which recordings took longest is not in these runs' records.", class_="note")
        )
    runs = [
        (
            run.began.replace("T", " ").removesuffix("+00:00") or run.run,
            run.outcome or "–",
            show_duration(run.elapsed_s),
            show_count(run.n_decoded),
            "–" if run.rate is None else f"{run.rate:,.1f}",
            show_count(run.n_retries),
            show_count(run.n_resubmitted),
            show_duration(run.lost_s) if run.lost_s else "0",
        )
        for run in found.runs[:_MOST_RUNS]
    ]
    caption = "Runs, the newest first; times are UTC"
    if found.n_runs > len(runs):
        caption += f"; {show_count(found.n_runs - len(runs))} earlier ones are in the table"
    head = (
        "began",
        "ended",
        "took",
        "recordings",
        "a second",
        "requests repeated",
        "shards handed out again",
        "work lost",
    )
    parts.append(table(caption, head, runs, numbers=(2, 3, 4, 5, 6, 7)))
    return join(parts)


def show_model(figures: Figures) -> Html:
    """Return what the model's card says."""
    portrait = figures.portrait
    if portrait is None:
        return tag("p", f"Model {figures.info.model_id}. Its card is not in the table, or is of another release.")
    facts = [
        ("Model", f"{portrait.model_id}, {portrait.architecture}"),
        ("Trained on", _trained(portrait.n_rows, portrait.n_speakers)),
        ("Licence of those", portrait.licence or "not said"),
    ]
    if portrait.flagged:
        words = {"held_out": "of voices it learnt", "new_voices": "of new voices"}
        found = ", ".join(f"{show_share(value)} {words.get(key, key)}" for key, value in portrait.flagged.items())
        facts.append(("Out of domain, where it was made", found))
    facts.append(("Made with", ", ".join(f"{package} {version}" for package, version in portrait.versions.items())))
    parts = [tag("dl", *(join([tag("dt", key), tag("dd", text(value))]) for key, value in facts))]
    if portrait.judged:
        rows = [
            (
                _SPLITS.get(one.kind, one.kind),
                charts.draw_share(one.accuracy, *(one.interval or (None, None))),
                f"{one.accuracy:.3f}",
                "unknown" if one.interval is None else f"{one.interval[0]:.3f} to {one.interval[1]:.3f}",
                f"{one.uar:.3f}",
                show_count(one.n_rows),
                "–" if one.n_speakers is None else show_count(one.n_speakers),
            )
            for one in portrait.judged
        ]
        head = ("judged on", "", "accuracy", "95% interval", "UAR", "segments", "speakers")
        parts.append(table("How right it was where it was made", head, rows, numbers=(2, 3, 4, 5, 6), wide=1))
    if portrait.recall:
        recall = [(label, charts.draw_share(value), show_share(value)) for label, value in portrait.recall.items()]
        parts.append(
            table(
                "Of each label, the share it found in voices that it had not heard",
                ("label", "", "found"),
                recall,
                numbers=(2,),
                wide=1,
            )
        )
    return join(parts)


def _trained(n_rows: int | None, n_speakers: int | None) -> str:
    rows = "an unknown number of segments" if n_rows is None else f"{show_count(n_rows)} segments"
    return rows if n_speakers is None else f"{rows} of {show_count(n_speakers)} speakers"
