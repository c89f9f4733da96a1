"""The commands about models: train, evaluate and import, and what they print."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from emotion_batch.cli.console import Grid, Line, Result, Said, next_step, title, warn
from emotion_batch.cli.options import call, command
from emotion_batch.errors import format_command, quote_argument

if TYPE_CHECKING:
    from emotion_batch.inference.card import Card
    from emotion_batch.training.evaluate import Evaluation

_MOST_SPEAKERS = 20


@command("train")
def _run_train(options: argparse.Namespace, said: Said) -> None:
    from emotion_batch.training.fit import TrainingSettings
    from emotion_batch.training.labels import read_label_map
    from emotion_batch.training.train import train

    labels = options.labels or ["tess"]
    settings = call(
        TrainingSettings,
        options,
        labels=labels[0] if len(labels) == 1 else labels,
        label_map=read_label_map(options.label_map) if options.label_map else {},
        balance=options.balance and options.balance == "alike",
    )
    card = call(train, options, settings=settings, on_epoch=said.epoch, watcher=said.watcher())
    said.answer(card.to_json().decode(), format_card(card, options.bundle))


@command("evaluate")
def _run_evaluate(options: argparse.Namespace, said: Said) -> None:
    from emotion_batch.training import metrics
    from emotion_batch.training.evaluate import evaluate

    priors = None if options.priors is None else metrics.read_priors(options.priors)
    found = call(evaluate, options, priors=priors)
    said.answer(found.to_dict(), format_evaluation(found, options.bundle))


@command("import")
def _run_import(options: argparse.Namespace, said: Said) -> None:
    from emotion_batch.training.import_h5 import import_h5

    labels = [label.strip() for label in options.labels.split(",")]
    card = call(import_h5, options, labels=labels, watcher=said.watcher())
    said.answer(card.to_json().decode(), format_card(card, options.bundle))


def format_card(card: Card, bundle: str) -> Result:
    """Return what a training or an import gave: labels and figures."""
    unjudged = [f"the network of {card.training.get('file')}; it was judged on nothing here"]
    return Result(
        title(f"{bundle}: model {card.model_id}, labels {', '.join(card.labels)}"),
        "",
        *(_format_figures(card) if card.metrics else unjudged),
        next_step(format_command("label", "RECORDINGS", "TABLE", options=("--model", quote_argument(bundle)))),
    )


def _format_figures(card: Card) -> list[Line | Grid | str]:
    from emotion_batch.training import write_bundle

    rows = []
    for kind, figures in card.metrics.items():
        n_rows, n_speakers, accuracy, uar = _show(figures, "n_rows", "n_speakers", "accuracy", "uar")
        of_accuracy, of_uar = (_interval(figures["intervals"][name]) for name in ("accuracy", "uar"))
        rows.append((kind, n_rows, n_speakers, accuracy, of_accuracy, uar, of_uar))
    heads = ("judged on", "segments", "speakers", "accuracy", "95 %", "UAR", "95 %")
    blocks: list[Line | Grid | str] = [Grid("<>>><><", rows, heads), ""]
    blocks += [f"`{kind}`: {write_bundle.SPLITS[kind]}" for kind in card.metrics]
    if start := card.training.get("from_model"):
        before = [f"{kind} {figures['before']['uar']:.3f}" for kind, figures in card.metrics.items()]
        blocks.append(f"UAR of model {start}, from which it started, on the same segments: {', '.join(before)}")
    if "speaker_held_out" not in card.metrics:
        left = f"is that of model {start}" if "taken_from" in card.calibration else "is not calibrated"
        blocks.append(warn(f"it is unknown how the model does on speakers that it has not heard, so confidence {left}"))
    if card.confidence:
        blocks.append(_format_promise(card))
    used, unlabelled, failed = (f"{card.training[name]:,}" for name in ("n_rows", "n_unlabelled", "n_failed"))
    return [*blocks, f"{used} segments used, {unlabelled} without a label and {failed} failed left out"]


def _format_promise(card: Card) -> str:
    found = card.confidence
    got = "no label reaches it" if found["got"] is None else f"{found['got']:.3f} of those it let through were right"
    whose = f"of model {found['taken_from']} " if "taken_from" in found else ""
    return (
        f"is_confident {whose}promises {found['promised']:g}; on voices that it was not chosen on, {got} "
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
        title(f"{found.table}: model {found.model_id} judged on {figures['n_rows']:,} segments, {n_speakers} speakers"),
        *_format_left_out(found),
        "",
        Grid("<><<", judged, ("", "", f"95 %, by {intervals['unit']}", "by recording, too narrow")),
        f"  NLL      {raw['nll']:>7.3f}  calibrated {calibrated['nll']:.3f} (temperature {found.calibration['temperature']:.2f})",
        f"  ECE      {raw['ece']:>7.3f}  calibrated {calibrated['ece']:.3f}",
        "",
        _format_by_label(found),
        "",
        *_format_trust(found.trust),
        "",
        *_format_beside(found),
        *_format_groups(found),
        "",
        *(warn(f"note: {warning}") for warning in found.warnings),
        next_step(format_command("label", "RECORDINGS", "TABLE", options=("--model", quote_argument(bundle)))),
    )


def _format_left_out(found: Evaluation) -> list[str]:
    words = [f"{word or 'without a label'} {n:,}" for word, n in found.left_out.items()]
    if not (words or found.n_failed):
        return []
    reasons = [f"{sum(found.left_out.values()):,} with no label of the model's ({', '.join(words)})"] if words else []
    return [f"  left out: {'; '.join([*reasons, f'{found.n_failed:,} without features'])}"]


def _format_groups(found: Evaluation) -> list[Line | Grid | str]:
    """Return the figures of each speaker, of many the worst, and those by language and sex, where they are known."""
    blocks: list[Line | Grid | str] = []
    shown = found.by_speaker[:_MOST_SPEAKERS]
    if rows := [(str(one["speaker"]), *_show(one, "n_rows", "accuracy", "uar")) for one in shown]:
        blocks += ["", Grid("<>>>", rows, ("speaker", "segments", "accuracy", "UAR"))]
    if n_more := len(found.by_speaker) - len(shown):
        blocks.append(f"  and {n_more:,} speakers with a higher UAR; all of them with --json")
    if rows := [(name, *_show(one, "n_rows", "n_speakers", "accuracy", "uar")) for name, one in found.by_voice.items()]:
        blocks += ["", Grid("<>>>>", rows, ("voices", "segments", "speakers", "accuracy", "UAR"))]
    return blocks


def _format_by_label(found: Evaluation) -> Grid:
    figures, at_priors = found.figures, found.at_priors
    shares = {"recall": figures["recall"], "precision": figures["precision"]}
    if at_priors:
        shares["at priors"] = at_priors["precision"]
    rows = [
        [label, *(_share(share[label]) for share in shares.values()), "", *(f"{n:,}" for n in row)]
        for label, row in zip(found.labels, figures["confusion"], strict=True)
    ]
    heads = ("true", *shares, "given:", *found.labels)
    return Grid("<" + ">" * (len(heads) - 1), rows, heads)


def _format_trust(trust: Mapping[str, Any]) -> list[str]:
    if trust["threshold"] is None:
        lines = ["  is_confident: never true, because the bundle has no threshold"]
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
    shortcuts, robustness = found.shortcuts, found.robustness or {}
    words_of = json.loads(resources.files(__package__).joinpath("beside.json").read_bytes())
    rows, lines = [], []
    for figures in (shortcuts, robustness):
        if "reason" in figures:
            lines.append(f"  {figures['reason']}")
        for name, words in words_of.items():
            if name in figures:
                kept = f"{figures[name]['kept']:.3f}" if "kept" in figures[name] else ""
                rows.append((words, *_show(figures[name], "n_rows", "n_speakers", "accuracy", "uar"), kept))
    if "reason" not in shortcuts:
        lines.append(
            "  (duration and level: linear models, each speaker judged by what was learnt on this table's others)"
        )
    if robustness.get("n_recordings"):
        unread = f", {robustness['n_failed']:,} more could not be" if robustness["n_failed"] else ""
        lines.append(
            f"  ({robustness['n_recordings']:,} recordings were decoded again{unread}; what is louder is not clipped)"
        )
    return [Grid("<>>>>>", rows, ("beside it", "segments", "speakers", "accuracy", "UAR", "labels kept")), *lines]


def _interval(bounds: Sequence[float] | None) -> str:
    return "unknown" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _show(figures: Mapping[str, Any], *names: str) -> list[str]:
    """Return figures of these names: counts, and shares with three digits."""
    values = [figures[name] for name in names]
    return [f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if value else "?" for value in values]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
