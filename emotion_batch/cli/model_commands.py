"""The commands about models: train, evaluate and import, and what they print."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from emotion_batch.cli.console import Said, print_result
from emotion_batch.cli.option_values import read_storage_options
from emotion_batch.cli.results import Grid, Line, Result, Role, next_step
from emotion_batch.errors import format_command, quote_argument

if TYPE_CHECKING:
    from emotion_batch.inference.card import Card
    from emotion_batch.training.evaluate import Evaluation

_MOST_SPEAKERS = 20
_BESIDE = {
    "duration": "duration alone",
    "level": "level alone",
    "as_is": "as they are",
    "plus_12_db": "12 dB louder",
    "minus_12_db": "12 dB quieter",
    "padded": "1 s silence around",
}


def run_train(options: argparse.Namespace, said: Said) -> int:
    """Run `emotion-batch train` and return its exit code."""
    from dataclasses import fields

    from emotion_batch.training.fit import TrainingSettings
    from emotion_batch.training.train import train

    settings = TrainingSettings(**{field.name: getattr(options, field.name) for field in fields(TrainingSettings)})
    card = train(
        options.table,
        options.bundle,
        settings=settings,
        h5=options.h5,
        storage_options=read_storage_options(options),
        force=options.force,
        on_epoch=said.epoch,
        watcher=said.watcher(),
    )
    said.end_line()
    print_result(card.to_json().decode() if options.json else format_card(card, options.bundle))
    return 0


def run_evaluate(options: argparse.Namespace, said: Said) -> int:  # noqa: ARG001 as all commands
    """Run `emotion-batch evaluate` and return its exit code."""
    from emotion_batch.training import metrics
    from emotion_batch.training.evaluate import evaluate

    found = evaluate(
        options.bundle,
        options.table,
        labels=options.labels,
        label_map=options.label_map,
        allow_numeric_labels=options.allow_numeric_labels,
        priors=None if options.priors is None else metrics.read_priors(options.priors),
        robustness=options.robustness,
        storage_options=read_storage_options(options),
    )
    print_result(json.dumps(found.to_dict()) if options.json else format_evaluation(found, options.bundle))
    return 0


def run_import(options: argparse.Namespace, said: Said) -> int:
    """Run `emotion-batch import` and return its exit code."""
    from emotion_batch.training.import_h5 import import_h5

    card = import_h5(
        options.h5,
        options.bundle,
        labels=[label.strip() for label in options.labels.split(",")],
        storage_options=read_storage_options(options),
        force=options.force,
        watcher=said.watcher(),
    )
    print_result(card.to_json().decode() if options.json else format_card(card, options.bundle))
    return 0


def format_card(card: Card, bundle: str) -> Result:
    """Return what a training or an import gave: labels and figures."""
    counts = card.training
    said: list[Line | Grid | str] = (
        _format_figures(card) if card.metrics else [f"the network of {counts['file']}; it was judged on nothing here"]
    )
    return Result(
        Line(f"{bundle}: model {card.model_id}, labels {', '.join(card.labels)}", Role.TITLE),
        "",
        *said,
        next_step(format_command("label", "RECORDINGS", "TABLE", options=("--model", quote_argument(bundle)))),
    )


def _format_figures(card: Card) -> list[Line | Grid | str]:
    from emotion_batch.training import write_bundle

    rows = []
    for kind, figures in card.metrics.items():
        of_accuracy, of_uar = (_interval(figures["intervals"][name]) for name in ("accuracy", "uar"))
        n_speakers = str(figures["n_speakers"] or "?")
        accuracy, uar = (f"{figures[name]:.3f}" for name in ("accuracy", "uar"))
        rows.append((kind, f"{figures['n_rows']:,}", n_speakers, accuracy, of_accuracy, uar, of_uar))
    heads = ("judged on", "segments", "speakers", "accuracy", "95 %", "UAR", "95 %")
    counts, lacking = card.training, []
    if "speaker_held_out" not in card.metrics:
        lacking = ["nothing is known of speakers that it has not heard, and so confidence is not calibrated"]
    return [
        Grid("  {:<16} {:>9} {:>9} {:>9}  {:<14} {:>6}  {}", rows, heads),
        "",
        *(f"`{kind}`: {write_bundle.SPLITS[kind]}" for kind in card.metrics),
        *(Line(text, Role.NOTE) for text in lacking),
        *([_format_promise(card)] if card.confidence else []),
        f"{counts['n_rows']:,} segments used, {counts['n_unlabelled']:,} without a label and {counts['n_failed']:,} failed left out",
    ]


def _format_promise(card: Card) -> str:
    found = card.confidence
    got = "no label reaches it" if found["got"] is None else f"{found['got']:.3f} of those it let through were right"
    return (
        f"is_confident promises {found['promised']:g}; on speakers that it was not chosen on, {got} "
        f"(coverage {found['coverage']:.3f}, {found['n_speakers']} speakers)"
    )


def format_evaluation(found: Evaluation, bundle: str = "BUNDLE") -> Result:
    """Return what a bundle was found to be worth, with what limits it."""
    figures, intervals = found.figures, found.figures["intervals"]
    n_speakers = figures["n_speakers"] or "unknown"
    judged = [
        (name, f"{figures[key]:.3f}", _interval(intervals[key]), _interval(intervals["recording_wise"][key]))
        for name, key in (("accuracy", "accuracy"), ("UAR", "uar"))
    ]
    calibrated, raw = found.calibration["calibrated"], found.calibration["raw"]
    return Result(
        Line(
            f"{found.table}: model {found.model_id} judged on {figures['n_rows']:,} segments, {n_speakers} speakers",
            Role.TITLE,
        ),
        *_format_left_out(found),
        "",
        Grid(
            "  {:<8} {:>7}  {:<22} {}",
            judged,
            ("", "", f"95 %, by {intervals['unit']}", "by recording, too narrow"),
        ),
        f"  NLL      {raw['nll']:>7.3f}  calibrated {calibrated['nll']:.3f} (temperature {found.calibration['temperature']:.2f})",
        f"  ECE      {raw['ece']:>7.3f}  calibrated {calibrated['ece']:.3f}",
        "",
        _format_by_label(found),
        "",
        *_format_trust(found.trust),
        "",
        *_format_beside(found),
        *_format_speakers(found),
        "",
        *(Line(f"note: {warning}", Role.NOTE) for warning in found.warnings),
        next_step(format_command("label", "RECORDINGS", "TABLE", options=("--model", quote_argument(bundle)))),
    )


def _format_left_out(found: Evaluation) -> list[str]:
    words = [f"{word or 'without a label'} {n:,}" for word, n in found.left_out.items()]
    if not (words or found.n_failed):
        return []
    reasons = [f"{sum(found.left_out.values()):,} with no label of the model's ({', '.join(words)})"] if words else []
    return [f"  left out: {'; '.join([*reasons, f'{found.n_failed:,} without features'])}"]


def _format_speakers(found: Evaluation) -> list[Line | Grid]:
    """Return the figures of each speaker, of many the worst."""
    if not found.by_speaker:
        return []
    rows = [
        (str(one["speaker"]), f"{one['n_rows']:,}", f"{one['accuracy']:.3f}", f"{one['uar']:.3f}")
        for one in found.by_speaker[:_MOST_SPEAKERS]
    ]
    blocks: list[Line | Grid] = [
        Line(""),
        Grid("  {:<12} {:>9} {:>9} {:>6}", rows, ("speaker", "segments", "accuracy", "UAR")),
    ]
    if len(found.by_speaker) > _MOST_SPEAKERS:
        n_more = len(found.by_speaker) - _MOST_SPEAKERS
        blocks.append(Line(f"  and {n_more:,} speakers with a higher UAR; all of them with --json"))
    return blocks


def _format_by_label(found: Evaluation) -> Grid:
    figures = found.figures
    width = max(8, *(len(label) for label in found.labels))
    at_priors = found.at_priors
    rows = []
    for label, row in zip(found.labels, figures["confusion"], strict=True):
        shares = [_share(figures["recall"][label]), _share(figures["precision"][label])]
        if at_priors:
            shares.append(_share(at_priors["precision"][label]))
        rows.append([label, *shares, "", *(f"{n:,}" for n in row)])
    priors = ["at priors"] if at_priors else []
    layout = f"  {{:<{width}}} {{:>6}} {{:>10}}{' {:>10}' if at_priors else ''}{{:<8}}" + f" {{:>{width}}}" * len(
        found.labels
    )
    return Grid(layout, rows, ("true", "recall", "precision", *priors, "  given:", *found.labels))


def _format_trust(trust: Mapping[str, Any]) -> list[str]:
    if trust["threshold"] is None:
        lines = ["  is_confident: nowhere, for the bundle has no threshold"]
    else:
        got = "no row" if trust["precision"] is None else f"{trust['precision']:.3f} of them right"
        reach = f"{trust['n_confident']:,} segments, {trust['coverage']:.1%} of all"
        n_speakers = trust["n_speakers"] or "unknown"
        lines = [f"  is_confident: {reach}; {got}, promised {_share(trust['promised'])}; {n_speakers} speakers"]
    for name, key in (("is_in_domain", "in_domain"), ("is_speech", "speech")):
        lines.append(f"  {name}: {'cannot be told' if trust[key] is None else format(trust[key], '.1%')}")
    return lines


def _format_beside(found: Evaluation) -> list[Line | Grid | str]:
    """Return what shortcuts reach, and the model on recordings that were changed."""
    rows, reasons = [], []
    for figures in (found.shortcuts, found.robustness or {}):
        if "reason" in figures:
            reasons.append(f"  {figures['reason']}")
        for name, words in _BESIDE.items():
            if name in figures:
                one = figures[name]
                speakers = str(one["n_speakers"] or "?")
                rows.append((words, f"{one['n_rows']:,}", speakers, f"{one['accuracy']:.3f}", f"{one['uar']:.3f}"))
    lines = []
    if "reason" not in found.shortcuts:
        lines.append(
            "  (duration and level: linear models, each speaker judged by what was learnt on this table's others)"
        )
    if found.robustness and found.robustness.get("n_recordings"):
        unread = f", {found.robustness['n_failed']:,} more could not be" if found.robustness["n_failed"] else ""
        lines.append(
            f"  ({found.robustness['n_recordings']:,} recordings were decoded again{unread}; what is louder is not clipped)"
        )
    heads = ("beside it", "segments", "speakers", "accuracy", "UAR")
    return [Grid("  {:<18}{:>8} {:>9} {:>9} {:>6}", rows, heads), *reasons, *lines]


def _interval(bounds: Sequence[float] | None) -> str:
    return "unknown" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
