"""Tests of the figures of a table: intervals, what the card and the run records say, what stands out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.review_tables import figures_of

from benchmarks.generated import write_label_table
from emotion_batch.analysis import statistics
from emotion_batch.analysis.findings import headline, remark, summarise_table
from emotion_batch.analysis.statistics import Figures, FolderCluster, effective_size, wilson_interval
from emotion_batch.inference import bundle
from emotion_batch.inference.card import read_portrait
from emotion_batch.storage.folder import Folder, seal
from emotion_batch.tables.status import read_throughput


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    folder = tmp_path_factory.mktemp("generated") / "table"
    write_label_table(folder, 2_000)
    return figures_of(folder)


@pytest.mark.parametrize(
    ("n_yes", "n", "expected"),
    [(0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (10, 10, (0.7225, 1.0)), (81, 263, (0.2553, 0.3662))],
)
def test_wilsons_interval(n_yes: int, n: int, expected: tuple[float, float]) -> None:
    """The interval is that of published tables (the last by Newcombe, 1998, table I)."""
    assert wilson_interval(n_yes / n, n) == pytest.approx(expected, abs=5e-5)


def test_what_is_alike_within_folders_is_worth_less() -> None:
    """Folders of one label each are worth as many rows as there are folders; such as are all alike, all their rows."""
    generator = np.random.default_rng(0)

    def cluster(of_label: np.ndarray, of_all: np.ndarray) -> FolderCluster:
        squares = ((of_label**2).sum(), (of_label * of_all).sum(), (of_all**2).sum())
        return FolderCluster(len(of_all), *map(float, squares))

    of_all = np.full(40, 50)
    whole = np.where(np.arange(40) % 2 == 0, 50, 0)
    assert effective_size(1_000, 2_000, cluster(whole, of_all)) == pytest.approx(39)
    # Drawn one by one they are worth about what they are; the variance of a ratio, by its definition.
    drawn = generator.binomial(of_all, 0.3)
    share = drawn.sum() / of_all.sum()
    variance = 40 / 39 * ((drawn - share * of_all) ** 2).sum() / of_all.sum() ** 2
    expected = min(2_000, share * (1 - share) / variance)
    assert effective_size(int(drawn.sum()), 2_000, cluster(drawn, of_all)) == pytest.approx(expected)
    assert expected > 1_000
    assert effective_size(0, 2_000, cluster(0 * of_all, of_all)) == 2_000


def test_intervals_hold_what_they_promise() -> None:
    """Of archives whose folders differ, nineteen of twenty intervals hold the true share; without folders far fewer do."""
    generator = np.random.default_rng(1)
    n_held = {"folders": 0, "rows": 0}
    for _ in range(400):
        of_all = generator.integers(5, 60, 30)
        of_label = generator.binomial(of_all, generator.beta(2, 6, 30))
        n_yes, n = int(of_label.sum()), int(of_all.sum())
        squares = ((of_label**2).sum(), (of_label * of_all).sum(), (of_all**2).sum())
        n_effective = effective_size(n_yes, n, FolderCluster(30, *map(float, squares)))
        for name, (low, high) in (
            ("folders", wilson_interval(n_yes / n, n_effective, 30)),
            ("rows", wilson_interval(n_yes / n, n)),
        ):
            n_held[name] += low <= 0.25 <= high
    assert n_held["folders"] >= 0.92 * 400
    assert n_held["rows"] < 0.8 * 400


def test_figures_add_up(found: Figures) -> None:
    """Labels, bins, folders and failures each come to all rows that they are of."""
    coverage = found.coverage
    assert coverage.is_complete
    assert sum(one.n_rows for one in found.labels) == coverage.n_ok == coverage.n_labelled
    assert sum(one.share for one in found.labels) == pytest.approx(1)
    assert sum(found.confident_bins) == found.n_confident == sum(one.n_confident for one in found.labels)
    assert sum(found.confident_bins) + sum(found.other_bins) == coverage.n_ok
    assert sum(one.n_rows for one in found.failures) == coverage.n_failed == coverage.n_rows - coverage.n_ok
    assert sum(one.n_rows for one in found.columns) == coverage.n_rows
    assert sum(one.n_failed for one in found.columns) == coverage.n_failed
    assert sum(one.n_outside for one in found.columns) == found.n_outside == sum(one.n_outside for one in found.labels)
    assert all(one.low < one.share < one.high for one in found.labels)
    assert len(found.folders) == statistics.N_FOLDERS < found.n_folders == len(found.columns)
    assert found.folders[0].distance == max(one.distance for one in found.columns)


def test_few_folders_give_no_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With too few folders the interval is over recordings, and of windows no narrower than their recordings allow."""
    write_label_table(tmp_path / "table", 1_200, n_windows=12)
    n_folders = figures_of(tmp_path / "table").n_clusters
    assert n_folders is not None
    monkeypatch.setattr(statistics, "_LEAST_FOLDERS", n_folders + 1)
    made = figures_of(tmp_path / "table")
    assert made.n_clusters is None
    for one in made.labels:
        expected = wilson_interval(one.n_rows / made.coverage.n_ok, made.coverage.n_labelled)
        assert (one.low, one.high) == expected
    assert made.moments[0].start_s == 0
    assert sum(sum(one.by_label) for one in made.moments) == made.coverage.n_ok


def test_a_reader_of_labels_gets_what_the_card_says() -> None:
    """What ships is read whole, the figures to believe last."""
    whole = read_portrait(bundle.open_bundle(bundle.find_model("voices-1")).card)
    assert [one.kind for one in whole.judged] == ["training", "speaker_held_out", "corpus_held_out"]
    assert whole.judged[-1].interval is not None
    assert len(whole.recall) == 7
    assert [one.name for one in whole.calibration][-4:] == ["emodb", "nemo", "ravdess", "tess"]
    assert whole.promise is not None
    assert (whole.promise.promised, whole.promise.is_guaranteed) == (0.75, False)
    assert set(whole.flagged) == {"new_voices"}


def test_run_records_are_added_up(tmp_path: Path) -> None:
    """Rates, stages and slowest recordings come from all records; damaged ones and those without figures harm nothing."""
    runs = tmp_path / "_table" / "runs"
    runs.mkdir(parents=True)
    record = {"run": "20260101T000000Z-a", "outcome": "complete", "n_decoded": 100, "elapsed_s": 10.0, "audio_s": 300.0}
    spent = {"stages_s": {"write": 1, "decode": 2.0}, "slowest": [[3.0, "b.wav"], [1.0, "a.wav"]], "n_retries": 2}
    (runs / "20260101T000000Z-a.json").write_bytes(seal({**record, "spent": spent}))
    later = {"stages_s": {"decode": 1.0}, "slowest": [[2.0, "a.wav"]], "lost_s": 61}
    (runs / "20260102T000000Z-b.json").write_bytes(seal({**record, "outcome": "stopped", "spent": later}))
    (runs / "20260103T000000Z-c.json").write_text("{")
    (runs / "20260104T000000Z-d.json").write_bytes(seal({"run": "d", "outcome": "lost", "host": "x"}))
    (runs / "20260105T000000Z-e.lease").write_text("{}")
    found = read_throughput(Folder.of(tmp_path))
    assert [run.outcome for run in found.runs] == ["lost", "stopped", "complete"]
    assert (found.n_decoded, found.elapsed_s, found.rate, found.audio_hours_per_hour) == (200, 20.0, 10.0, 30.0)
    assert found.stages_s == {"decode": 3.0, "write": 1.0}
    assert list(found.stages_s) == ["decode", "write"]
    assert found.slowest == ((3.0, "b.wav"), (2.0, "a.wav"))


def test_what_stands_out_is_said(found: Figures) -> None:
    """Each remark is there when its reason is, and not otherwise; with no reason, all is well."""
    assert headline(found).startswith(f"{found.coverage.n_labelled:,} of 2,000 recordings labelled; ")
    assert summarise_table(found).startswith("Most frequent: ")
    assert {one.topic for one in remark(found)} == {"Failed", "Speech", "Confidence", "Trust"} - (
        set() if found.n_silent >= 0.1 * found.coverage.n_ok else {"Speech"}
    ) - (set() if found.n_confident < 0.2 * found.coverage.n_ok else {"Confidence"})
    assert found.portrait is not None
    assert found.portrait.promise is not None
    calm = replace(
        found,
        coverage=replace(found.coverage, n_labelled=2_000),
        failures=(),
        n_silent=0,
        n_confident=found.coverage.n_ok,
        portrait=replace(found.portrait, promise=replace(found.portrait.promise, got=0.95, is_guaranteed=True)),
    )
    assert [one.kind for one in remark(calm)] == ["fine"]
    assert summarise_table(calm).endswith("None failed.")
    cardless = remark(replace(calm, portrait=None))
    assert [(one.topic, one.text[:34]) for one in cardless] == [("Trust", "The model's card is not in the tab")]
    assert calm.portrait is not None
    unsure = remark(replace(calm, portrait=replace(calm.portrait, promise=None)))
    assert [one.text[:29] for one in unsure] == ["No label counts as confident,"]
    unfinished = replace(calm, coverage=replace(calm.coverage, n_complete=3, n_surveyed=900))
    assert remark(unfinished)[0].kind == "stop"
    assert "Missing, out of date or damaged: 15 of 18 parts, with 1,100 recordings." in remark(unfinished)[0].text
    assert headline(unfinished).startswith("So far, ")
    assert "Domain" in {one.topic for one in remark(replace(calm, n_outside=calm.coverage.n_ok // 2))}
    assert "Runs" in {one.topic for one in remark(replace(calm, n_lost=1))}
    first, *others = calm.folders
    broken = replace(first, name="day/7", n_rows=40, n_failed=30)
    said = remark(replace(calm, folders=(broken, *others), columns=()))
    assert [one.text for one in said if one.topic == "Folder"] == ["Folder “day/7”: 75% of its rows failed."]
