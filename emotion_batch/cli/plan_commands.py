"""The command plan, and what it prints."""

from __future__ import annotations

import argparse
import time
from datetime import datetime
from typing import TYPE_CHECKING

from emotion_batch.cli.console import Grid, Line, Result, Said, format_size, title, warn
from emotion_batch.cli.options import call, command
from emotion_batch.errors import counted, format_duration

if TYPE_CHECKING:
    from emotion_batch.run.plan import Due, Plan

# Below it, a run's own processes wait for each other.
_CROWDED = 0.1


@command("plan")
def _run_plan(options: argparse.Namespace, said: Said) -> int:
    from emotion_batch.run import plan

    found = call(plan.plan, options, watcher=said.watcher())
    said.answer(found.to_dict(), _format_plan(found))
    return int(found.is_late)


def _format_plan(found: Plan) -> Result:
    blocks: list[Line | Grid | str] = [
        title(
            f"{found.source}: to {found.work}, {counted(found.n_recordings, 'recording')} in {counted(found.n_parts, 'part')}"
        )
    ]
    if found.table is not None:
        blocks.append(f"  done    {found.n_done:,} of them, in {found.table}")
    blocks += [warn(f"  note    {note}") for note in found.notes]
    if not found.n_left:
        return Result(*blocks, "nothing is left to do")
    audio, unsized = found.audio_s, f", without {found.n_unsized:,} of unknown size" if found.n_unsized else ""
    hours = f"{format_duration(audio.likely)} of audio"
    if not found.is_audio_exact:
        hours = f"about {hours} ({format_duration(audio.low)} to {format_duration(audio.high)})"
    share = found.heard_s / audio.likely if audio.likely else 1.0
    advice, rows = "" if found.is_selective else "; use --window to hear all of it", []
    now = time.time()
    for one in found.times:
        between = f"{format_duration(one.low_s)} and {format_duration(one.high_s)}"
        here = ", those that are there" if one.is_here else ""
        when = f"{_clock(now + one.low_s)} to {_clock(now + one.high_s)}"
        rows.append((f"{one.workers:,}", format_duration(one.likely_s), between, f"{when}{here}"))
    blocks += [
        f"  left    {counted(found.n_left, 'recording')} in {counted(found.n_shards, 'shard')}, {format_size(found.n_bytes)}{unsized}, {hours}",
        f"  hears   {'all of it' if share > 0.99 else f'{share:.0%} of it{advice}'}",
        f"  makes   {counted(found.n_shards, 'part')} with about {counted(found.n_rows, 'row')}, {format_size(found.part_bytes)} in all",
        f"  memory  about {format_size(found.memory_bytes)} a worker at most",
        *_format_sample(found),
        "",
        Grid(">><<", rows, ("workers", "likely", "between", f"done ({datetime.now().astimezone():%Z})")),
    ]
    if found.times[-1].workers > found.n_shards:
        blocks.append(f"  at most {counted(found.n_shards, 'worker')} can be used, because a shard is never divided")
    if found.due is not None:
        blocks += ["", title(_format_due(found.due))]
    return Result(*blocks)


def _format_sample(found: Plan) -> list[str]:
    reasons = ", ".join(f"{status} {n:,}" for status, n in found.statuses.items() if status != "ok")
    cut = f", {found.n_cut:,} of them in part" if found.n_cut else ""
    lines = [
        f"  sample  {counted(found.n_sampled, 'recording')}{cut}, in {found.sample_s:.1f} s on {counted(found.sample_workers, 'worker')}"
    ]
    if reasons:
        lines.append(f"  failed  {reasons} of the sample; about {found.n_failed:,} of all")
    if found.crowd >= _CROWDED:
        lines.append(
            f"  busy    other programs used the cores for {found.crowd:.0%} of that time; the range assumes that they end, or use twice as much"
        )
    if found.n_lost:
        lines.append(f"  lost    {counted(found.n_lost, 'piece')} of the sample, with their workers or in failures")
    return lines


def _format_due(due: Due) -> str:
    answers = {
        "yes": "done, also at the late end of the range",
        "perhaps": "perhaps done: the hour is within the range",
        "no": "not done, even at the early end of the range",
    }
    words = f"by {datetime.fromisoformat(due.at).astimezone():%H:%M %Z}, in {format_duration(max(0.0, due.within_s))}, on {counted(due.workers, 'worker')}: {answers[due.is_done]}"
    if due.workers_likely is None:
        return f"{words}; nor on any number of workers, because a single shard takes longer"
    sure = "surely on no number" if due.workers_sure is None else f"surely on {due.workers_sure:,}"
    return f"{words}; likely on {counted(due.workers_likely, 'worker')}, {sure}"


def _clock(time_s: float) -> str:
    """Return a time, in seconds since 1970, as a clock here shows it, with the days that are between."""
    then = datetime.fromtimestamp(time_s)
    days = (then.date() - datetime.now().date()).days
    return f"{then:%H:%M}" + (f" in {days} days" if days > 1 else " tomorrow" if days else "")
