"""What a person reads: results on stdout, notes, progress and one sentence for an error on stderr."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from emotion_batch.bundle import Card
    from emotion_batch.judging import Evaluation
    from emotion_batch.ledger import TableStatus, Verification
    from emotion_batch.planning import Due, Plan
    from emotion_batch.recording import SegmentLabel
    from emotion_batch.summary import Progress, Summary, Watcher
    from emotion_batch.tables import Counts

_MANY_FILES = 10_000
_PROGRESS_EVERY_S = 10.0
_MOST_PROBLEMS = 20
_MOST_SPEAKERS = 20
# Below it, a run's own processes wait for each other.
_CROWDED = 0.1


class Said:
    """What goes to stderr: notes, progress, one sentence for an error.

    Parameters
    ----------
    is_quiet
        Whether notes and progress are kept back.
    is_debug
        Whether an error's traceback is shown.
    goes_on
        Whether the same command goes on where it was stopped.
    """

    def __init__(self, *, is_quiet: bool, is_debug: bool, goes_on: bool) -> None:
        self._is_quiet = is_quiet
        self._is_debug = is_debug
        self._goes_on = goes_on
        self._is_terminal = sys.stderr.isatty()
        self._last: Progress | None = None
        self._said_at = -_PROGRESS_EVERY_S
        self._is_in_line = False

    def watcher(self) -> Watcher:
        """Return what a run tells its notes and progress to."""
        from emotion_batch.summary import Watcher

        return Watcher(on_note=self.note, on_progress=self.progress, on_listed=self.listed)

    def note(self, text: str) -> None:
        """Say a sentence that a person should read."""
        if not self._is_quiet:
            self.end_line()
            self._write(f"{_shown(text)}\n")

    def error(self, text: str) -> None:
        """Say what went wrong, in one sentence."""
        self.end_line()
        if self._is_debug:
            traceback.print_exc()
        self._write(f"emotion-batch: {_shown(text)}\n")

    def progress(self, progress: Progress) -> None:
        """Say how far a run is."""
        self._last = progress
        rate = progress.n_done_here / max(progress.elapsed_s, 1e-9)
        left_s = (progress.n_recordings - progress.n_done) / max(rate, 1e-9)
        self._line(
            f"{progress.n_done:,} of {progress.n_recordings:,} recordings, {progress.n_failed:,} failed, "
            f"{rate:,.0f} a second, {_duration(left_s)} left",
            is_last=progress.n_done == progress.n_recordings,
        )

    def listed(self, n_files: int) -> None:
        """Say how far the listing of an archive is, if it is no short one."""
        if n_files >= _MANY_FILES:
            self._line(f"{n_files:,} files listed", is_last=False)

    def epoch(self, phase: str, epoch: int, n_epochs: int, figures: Mapping[str, float]) -> None:
        """Show how far a training is: the network, or one of its folds."""
        shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        self._line(f"{phase}: epoch {epoch} of {n_epochs}: {shown}", is_last=epoch == n_epochs)

    def how_far(self) -> str:
        """Return what to say when a signal stopped the command."""
        if not self._goes_on:
            return "stopped"
        at = f" at {self._last.n_done:,} of {self._last.n_recordings:,} recordings" if self._last else ""
        return f"stopped{at}; run the same command again, it goes on from there"

    def end_line(self) -> None:
        """End the line that progress is shown in, if it is open."""
        if self._is_in_line:
            self._write("\n")
            self._is_in_line = False

    def _write(self, text: str) -> None:
        # Nobody may be reading: the work goes on all the same.
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except BrokenPipeError:
            _give_up(sys.stderr)

    def _line(self, text: str, *, is_last: bool) -> None:
        """Show progress: in place for a person, a line now and then for a log."""
        if self._is_quiet:
            return
        now = time.monotonic()
        if self._is_terminal:
            self._write(f"\r\x1b[K{text}")
            self._is_in_line = True
        elif is_last or now - self._said_at >= _PROGRESS_EVERY_S:
            self._said_at = now
            self._write(f"{text}\n")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(min(seconds, 3.6e8)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def print_result(text: str) -> None:
    """Print a result; whoever reads no further changes neither what was done nor its exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _give_up(sys.stdout)


def _give_up(stream: TextIO) -> None:
    """Let a stream that nobody reads lead nowhere; Python would try once more at its end, and exit with 120."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def format_summary(summary: Summary, next_command: str) -> str:
    """Return what a run left behind, with the command that comes next."""
    counts = summary.counts
    lines = [
        f"{summary.table}: {summary.n_shards} parts, {summary.n_shards_done} of them made now in {summary.elapsed_s:.1f} s"
    ]
    lines += [
        f"  {status}, as {_shown(file)}: {reason}" for status, ((file, reason), *_) in sorted(summary.examples.items())
    ]
    if counts.by_label:
        lines += [f"  {emotion:<12} {n:>10,}  {n / counts.n_ok:6.1%}" for emotion, n in counts.by_label.items()]
    spent = summary.spent
    if spent.n_isolated:
        lines.append(
            f"{spent.n_isolated} shards were done in a child process, which a recording may kill; "
            f"{spent.lost_s:.0f} s of work were lost with workers and children"
        )
    if summary.n_resubmitted or spent.n_retries:
        lines.append(
            f"{spent.n_retries} requests to storage were repeated, {summary.n_resubmitted} shards handed out again"
        )
    lines.append(f"next: {next_command}")
    lines.append(_format_counts(counts))
    return "\n".join(lines)


def _format_counts(counts: Counts) -> str:
    reasons = ", ".join(f"{status} {n:,}" for status, n in counts.by_status.items() if status != "ok")
    failed = f"{counts.n_failed:,} failed" + (f" ({reasons})" if reasons else "")
    return f"{counts.n_recordings:,} recordings, {counts.n_rows:,} rows: {counts.n_ok:,} ok, {failed}"


def format_status(found: TableStatus) -> str:
    """Return how far a table is, and who is at work on it."""
    n_left = found.n_recordings - found.n_done
    lines = [
        f"{found.table}: {found.kind} of {_shown(found.source)}",
        f"  done  {found.n_done:>12,} of {found.n_recordings:,} recordings, {found.n_shards_done:,} of {found.n_shards:,} parts",
        f"  left  {n_left:>12,}",
    ]
    lines += [f"  {status:<12} {n:>10,} rows" for status, n in found.counts.by_status.items()]
    for holder in found.at_work:
        lines.append(
            f"run {holder.run} is at work, on {_shown(holder.host)}, process {holder.pid}, for {_ago(holder.began_s)}"
        )
    if found.rate:
        lines.append(f"  {found.rate:,.0f} recordings a second, {_duration(n_left / found.rate)} left")
    for holder in found.lost:
        lines.append(f"run {holder.run} died, on {_shown(holder.host)}; last heard of {_ago(holder.renewed_s)} ago")
    last = found.last_run
    if last is not None:
        rate = f", {last['n_decoded'] / last['elapsed_s']:,.0f} recordings a second" if last.get("n_decoded") else ""
        reason = f": {_shown(last['error'])}" if last.get("error") else ""
        lines.append(f"last run {last['run']}: {last['outcome']}, ended {last.get('ended', 'unknown')}{rate}{reason}")
    return "\n".join(lines)


def format_verification(found: Verification) -> str:
    """Return whether a table is whole, with what is wrong, the first of it."""
    lines = [f"  {_shown(problem)}" for problem in found.problems[:_MOST_PROBLEMS]]
    if len(found.problems) > _MOST_PROBLEMS:
        lines.append(f"  and {len(found.problems) - _MOST_PROBLEMS:,} more; all of them with --json")
    word = "whole" if found.is_whole else "not whole"
    how = "every row was read" if found.is_deep else "by what its parts say of themselves"
    lines.append(f"{found.table}: {word}, {how}; {found.n_recordings:,} recordings in {found.n_shards:,} parts")
    lines.append(_format_counts(found.counts))
    return "\n".join(lines)


def format_plan(found: Plan) -> str:
    """Return what a run would do and how long it would take, with the answer in the last line."""
    lines = [f"{_shown(found.source)}: to {found.work}, {found.n_recordings:,} recordings in {found.n_parts:,} parts"]
    if found.table is not None:
        lines.append(f"  done    {found.n_done:,} of them, in {_shown(found.table)}")
    lines += [f"  note    {_shown(note)}" for note in found.notes]
    if not found.n_left:
        return "\n".join([*lines, "nothing is left to do"])
    audio, unsized = found.audio_s, f", without {found.n_unsized:,} of unknown size" if found.n_unsized else ""
    hours = f"{audio.likely / 3600:,.1f} h of audio"
    if not found.is_audio_exact:
        hours = f"about {hours} ({audio.low / 3600:,.1f} to {audio.high / 3600:,.1f})"
    lines += [
        f"  left    {found.n_left:,} recordings in {found.n_shards:,} shards, {_size(found.n_bytes)}{unsized}, {hours}",
        f"  makes   {found.n_shards:,} parts of about {found.n_rows:,} rows, {_size(found.part_bytes)} in all",
        f"  memory  about {_size(found.memory_bytes)} a worker at most",
        *_format_sample(found),
        "",
        "   workers      likely  between            done",
    ]
    now = time.time()
    for one in found.times:
        between = f"{_duration(one.low_s)} and {_duration(one.high_s)}"
        here = ", those that are there" if one.is_here else ""
        when = f"{_clock(now + one.low_s)} to {_clock(now + one.high_s)}"
        lines.append(f"{one.workers:>10,}  {_duration(one.likely_s):>10}  {between:<23} {when}{here}")
    if found.times[-1].workers > found.n_shards:
        lines.append(f"  no more than {found.n_shards:,} workers have something to do, for no shard is cut further")
    if found.due is not None:
        lines += ["", _format_due(found.due)]
    return "\n".join(lines)


def _format_sample(found: Plan) -> list[str]:
    reasons = ", ".join(f"{status} {n:,}" for status, n in found.statuses.items() if status != "ok")
    cut = f", {found.n_cut:,} of them in part" if found.n_cut else ""
    lines = [
        f"  sample  {found.n_sampled:,} recordings{cut}, in {found.sample_s:.1f} s on {found.sample_workers:,} workers at once"
    ]
    if reasons:
        lines.append(f"  failed  {reasons} of the sample; about {found.n_failed:,} of all")
    if found.crowd >= _CROWDED:
        lines.append(
            f"  busy    other work had the cores for {found.crowd:.0%} of that time; the range allows that it ends, or doubles"
        )
    if found.n_lost:
        lines.append(f"  lost    {found.n_lost:,} stretches of the sample, with their workers or in failures")
    return lines


def _format_due(due: Due) -> str:
    answers = {
        "yes": "done, also at the late end of the range",
        "perhaps": "perhaps done: the hour is within the range",
        "no": "not done, even at the early end of the range",
    }
    words = f"by {due.at[11:16]}, in {_duration(max(0.0, due.within_s))}, on {due.workers:,} workers: {answers[due.is_done]}"
    if due.workers_likely is None:
        return f"{words}; nor on any number of workers, for a single shard takes longer"
    sure = "surely on no number" if due.workers_sure is None else f"surely on {due.workers_sure:,}"
    return f"{words}; likely on {due.workers_likely:,} workers, {sure}"


def _size(n_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"


def _clock(time_s: float) -> str:
    """Return a time, in seconds since 1970, as a clock here shows it, with the days that are between."""
    then = datetime.fromtimestamp(time_s)
    days = (then.date() - datetime.now().date()).days
    return f"{then:%H:%M}" + (f" in {days} days" if days > 1 else " tomorrow" if days else "")


def _ago(time_s: float) -> str:
    """Return how long ago a time was, in seconds since 1970."""
    return _duration(max(0.0, time.time() - time_s))


def format_labels(found: Sequence[SegmentLabel]) -> str:
    """Return one label with all its probabilities, or a line for each of several."""
    name = _shown(found[0].file)
    if len(found) > 1:
        return "\n".join([name, *(f"  {one.start_s:10.3f} {_format_segment(one)}" for one in found)])
    (one,) = found
    if one.status != "ok":
        return f"{name}  {one.status}: {one.error}"
    width = max(len(word) for word in one.probabilities)
    ranked = sorted(one.probabilities.items(), key=lambda item: -item[1])
    lines = [f"{name}  {one.emotion}  {one.confidence:.3f}  {_doubts(one)}".rstrip(), ""]
    return "\n".join([*lines, *(f"  {word:<{width}}  {value:.6f}" for word, value in ranked)])


def _format_segment(one: SegmentLabel) -> str:
    if one.status != "ok":
        return f"{'':10}  {one.status}: {one.error}"
    return f"{one.end_s:10.3f}  {one.emotion:<12} {one.confidence:.3f}  {_doubts(one)}".rstrip()


def _doubts(one: SegmentLabel) -> str:
    """Return why a label is not to be believed, as far as the model knows."""
    words = ["no speech"] if one.is_speech is False else []
    if one.is_in_domain is False:
        words.append("unlike what the model was trained on")
    if not words and not one.is_confident:
        words.append("not confident")
    return ", ".join(words)


def format_card(card: Card, bundle: str) -> str:
    """Return what a training or an import gave: labels and figures."""
    counts = card.training
    said = (
        _format_figures(card)
        if card.metrics
        else [f"the network of {_shown(counts['file'])}; it was judged on nothing here"]
    )
    return "\n".join(
        [
            f"{bundle}: model {card.model_id}, labels {', '.join(card.labels)}",
            "",
            *said,
            f"next: emotion-batch label RECORDINGS TABLE --model {bundle}",
        ]
    )


def _format_figures(card: Card) -> list[str]:
    from emotion_batch import binding

    lines = ["  judged on         segments  speakers  accuracy  95 %              UAR  95 %"]
    for kind, figures in card.metrics.items():
        speakers = figures["n_speakers"] or "?"
        of_accuracy, of_uar = (_interval(figures["intervals"][name]) for name in ("accuracy", "uar"))
        lines.append(
            f"  {kind:<16} {figures['n_rows']:>9,} {speakers:>9} {figures['accuracy']:>9.3f}  {of_accuracy:<14} "
            f"{figures['uar']:>6.3f}  {of_uar}"
        )
    counts, lacking = card.training, []
    if "speaker_held_out" not in card.metrics:
        lacking = ["nothing is known of speakers that it has not heard, and so confidence is not calibrated"]
    return [
        *lines,
        "",
        *(f"`{kind}`: {binding.SPLITS[kind]}" for kind in card.metrics),
        *lacking,
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


def format_evaluation(found: Evaluation) -> str:
    """Return what a bundle was found to be worth, with what limits it."""
    figures, intervals = found.figures, found.figures["intervals"]
    n_speakers = figures["n_speakers"] or "unknown"
    lines = [
        f"{found.table}: model {found.model_id} judged on {figures['n_rows']:,} segments, {n_speakers} speakers",
        *_format_left_out(found),
        "",
        "                    95 %, by " + intervals["unit"] + "   by recording, too narrow",
    ]
    lines += [
        f"  {name:<8} {figures[key]:>7.3f}  {_interval(intervals[key]):<22} {_interval(intervals['recording_wise'][key])}"
        for name, key in (("accuracy", "accuracy"), ("UAR", "uar"))
    ]
    calibrated, raw = found.calibration["calibrated"], found.calibration["raw"]
    lines += [
        f"  NLL      {raw['nll']:>7.3f}  calibrated {calibrated['nll']:.3f} (temperature {found.calibration['temperature']:.2f})",
        f"  ECE      {raw['ece']:>7.3f}  calibrated {calibrated['ece']:.3f}",
        "",
        *_format_by_label(found),
        "",
        *_format_trust(found.trust),
        "",
        "  beside it         segments  speakers  accuracy    UAR",
        *_format_beside(found),
    ]
    if found.by_speaker:
        lines += ["", "  speaker       segments  accuracy    UAR"]
        lines += [
            f"  {_shown(one['speaker']):<12} {one['n_rows']:>9,} {one['accuracy']:>9.3f} {one['uar']:>6.3f}"
            for one in found.by_speaker[:_MOST_SPEAKERS]
        ]
        if len(found.by_speaker) > _MOST_SPEAKERS:
            n_more = len(found.by_speaker) - _MOST_SPEAKERS
            lines.append(f"  and {n_more:,} speakers with a higher UAR; all of them with --json")
    return "\n".join([*lines, "", *(_shown(f"note: {warning}") for warning in found.warnings)])


def _format_left_out(found: Evaluation) -> list[str]:
    words = [f"{_shown(word) or 'without a label'} {n:,}" for word, n in found.left_out.items()]
    if not (words or found.n_failed):
        return []
    reasons = [f"{sum(found.left_out.values()):,} with no label of the model's ({', '.join(words)})"] if words else []
    return [f"  left out: {'; '.join([*reasons, f'{found.n_failed:,} without features'])}"]


def _format_by_label(found: Evaluation) -> list[str]:
    figures = found.figures
    width = max(8, *(len(label) for label in found.labels))
    heads = "".join(f" {label:>{width}}" for label in found.labels)
    at_priors = found.at_priors
    lines = [f"  {'true':<{width}} recall  precision{'  at priors' if at_priors else ''}  given:{heads}"]
    for label, row in zip(found.labels, figures["confusion"], strict=True):
        shares = f"{_share(figures['recall'][label]):>6} {_share(figures['precision'][label]):>10}"
        if at_priors:
            shares += f" {_share(at_priors['precision'][label]):>10}"
        lines.append(f"  {label:<{width}} {shares}        " + "".join(f" {n:>{width},}" for n in row))
    return lines


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


_BESIDE = {
    "duration": "duration alone",
    "level": "level alone",
    "as_is": "as they are",
    "plus_12_db": "12 dB louder",
    "minus_12_db": "12 dB quieter",
    "padded": "1 s silence around",
}


def _format_beside(found: Evaluation) -> list[str]:
    """Return what shortcuts reach, and the model on recordings that were changed."""
    lines = []
    for figures in (found.shortcuts, found.robustness or {}):
        if "reason" in figures:
            lines.append(f"  {_shown(figures['reason'])}")
        for name, words in _BESIDE.items():
            if name in figures:
                one = figures[name]
                lines.append(
                    f"  {words:<18} {one['n_rows']:>7,} {one['n_speakers'] or '?':>9} {one['accuracy']:>9.3f} {one['uar']:>6.3f}"
                )
    if "reason" not in found.shortcuts:
        lines.append(
            "  (duration and level: linear models, each speaker judged by what was learnt on this table's others)"
        )
    if found.robustness and found.robustness.get("n_recordings"):
        unread = f", {found.robustness['n_failed']:,} more could not be" if found.robustness["n_failed"] else ""
        lines.append(
            f"  ({found.robustness['n_recordings']:,} recordings were decoded again{unread}; what is louder is not clipped)"
        )
    return lines


def _interval(bounds: Sequence[float] | None) -> str:
    return "unknown" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _shown(text: str) -> str:
    """Return a name as a terminal may show it: on one line, without control characters."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
