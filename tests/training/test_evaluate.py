"""Tests of judging a bundle: its figures, what is left out, what shortcuts and other levels give."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from sklearn import metrics
from support.commands import Finished, call_command
from support.damage import seal_part

import emotion_batch
from emotion_batch.cli.model_commands import format_evaluation
from emotion_batch.errors import UsageError
from emotion_batch.features import audio
from emotion_batch.features.recipes import compute, prepare, to_table
from emotion_batch.inference import domain
from emotion_batch.inference.bundle import open_bundle
from emotion_batch.inference.card import Promise
from emotion_batch.inference.predict import Predictor, load_predictor
from emotion_batch.settings import FeatureSettings, VoicesSettings
from emotion_batch.storage.archive import list_recordings
from emotion_batch.storage.folder import Folder, seal, unseal
from emotion_batch.training import calibrate, evaluate
from emotion_batch.worker import recordings

EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")


@pytest.fixture(scope="module")
def done(bundle: Path, features: Path) -> Finished:
    """What the command says, in full."""
    found = call_command("evaluate", bundle, features, "--json")
    assert found.code == 0, found.err
    return found


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return load_predictor(open_bundle(Folder.of(bundle)))


def emotion_of(file: str) -> str:
    return file.rsplit("_", 1)[1].removesuffix(".wav")


def test_figures_are_those_of_the_label_table(done: Finished, labels: Path) -> None:
    """Accuracy, UAR, recall, precision and confusion are scikit-learn's on what `label` wrote."""
    table = pq.read_table(labels, filters=[("status", "==", "ok")]).to_pydict()
    true = [emotion_of(file) for file in table["file"]]
    found = done.result["figures"]
    assert (found["n_rows"], found["n_speakers"]) == (84, 2)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, table["emotion"]))
    assert found["uar"] == pytest.approx(metrics.balanced_accuracy_score(true, table["emotion"]))
    assert found["confusion"] == metrics.confusion_matrix(true, table["emotion"], labels=EMOTIONS).tolist()
    recall = metrics.recall_score(true, table["emotion"], labels=EMOTIONS, average=None)
    assert list(found["recall"].values()) == pytest.approx(list(recall))
    calibrated = [table[f"p_{word}"][number] for number, word in enumerate(true)]
    assert done.result["calibration"]["calibrated"]["nll"] == pytest.approx(-np.log(calibrated).mean(), rel=1e-5)
    assert done.result["calibration"]["raw"]["nll"] == found["nll"]
    assert found["intervals"]["unit"] == "speaker by emotion"
    low, high = found["intervals"]["accuracy"]
    assert low < found["accuracy"] < high
    voices = done.result["by_speaker"]
    assert {one["speaker"] for one in voices} == {"V1", "V2"}
    assert voices[0]["uar"] <= voices[1]["uar"]
    assert sum(one["accuracy"] * one["n_rows"] for one in voices) / 84 == pytest.approx(found["accuracy"])
    assert done.result["n_failed"] == 5


def test_shortcuts_stand_beside_the_figures(done: Finished) -> None:
    """Duration and level alone are judged on speakers held out, and few speakers are said to be few."""
    for name in ("duration", "level"):
        assert done.result["shortcuts"][name].keys() == {"n_rows", "n_speakers", "accuracy", "uar"}
        assert done.result["shortcuts"][name]["n_rows"] == 84
    few, learnt = done.result["warnings"]
    assert "these are figures of 2 speakers" in few
    assert "learnt from 67 segments of 2 speakers with labels from 'tess'" in learnt


def test_recordings_are_judged_at_other_levels_and_padded(
    done: Finished, speech: Path, vectors: np.ndarray, features: Path, predictor: Predictor, tmp_path: Path
) -> None:
    """As they are they give the table's figures; of the seed's features 12 dB move c0 alone; padding is as in a file."""
    found = done.result["robustness"]
    assert (found["n_recordings"], found["n_failed"]) == (84, 0)
    assert found["as_is"]["accuracy"] == done.result["figures"]["accuracy"]
    files = pq.read_table(features, columns=["file", "status"], filters=[("status", "==", "ok")])["file"].to_pylist()
    targets = np.array([EMOTIONS.index(emotion_of(file)) for file in files])
    # Decibels add up, and the orthonormal DCT's first row is 1 / sqrt(n_mels).
    shift = np.zeros(40, np.float32)
    shift[0] = 12 * np.sqrt(128)
    for name, moved in (("plus_12_db", vectors + shift), ("minus_12_db", vectors - shift)):
        expected = float(np.mean(predictor.predict(moved).argmax(axis=1) == targets))
        assert found[name]["accuracy"] == pytest.approx(expected, abs=1.5 / 84)
    for file in files:
        samples, rate = soundfile.read(speech / file, dtype="int16")
        (tmp_path / file).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / file, np.pad(samples, 2 * rate), rate, subtype="PCM_16")
    listing = list_recordings(tmp_path)
    (batch,) = listing.entries.to_batches()
    padded = recordings.extract_rows(batch, listing.folder, FeatureSettings(), FeatureSettings().segments)
    assert set(padded["status"].to_pylist()) == {"ok"}
    right = [
        word == EMOTIONS[number]
        for word, number in zip(
            map(emotion_of, padded["file"].to_pylist()),
            predictor.predict(prepare(padded, FeatureSettings())).argmax(axis=1),
            strict=True,
        )
    ]
    assert found["padded"]["accuracy"] == pytest.approx(np.mean(right))


def test_what_is_louder_is_not_clipped(tmp_path: Path) -> None:
    """12 dB are a factor of 3.98 on each sample, beyond full scale too; of the seed's features they move c0 alone."""
    samples = (np.random.default_rng(4).standard_normal(60_000) * 9_000).clip(-32_768, 32_767).astype(np.int16)
    soundfile.write(tmp_path / "loud.wav", samples, 22_050, subtype="PCM_16")
    data = (tmp_path / "loud.wav").read_bytes()
    settings = FeatureSettings()
    with audio.opened(data, len(data)) as recording:
        varied = evaluate._vary(recording, 0.5, settings.segments.duration_s, settings)
    (plain, louder, quieter, padded), rates = [one for one, _ in varied[:4]], {rate for _, rate in varied}
    assert rates == {22_050}
    np.testing.assert_array_equal(plain, samples[11_025:] / np.float32(32_768))
    np.testing.assert_allclose(louder, plain * 3.9811, rtol=1e-4)
    np.testing.assert_allclose(quieter * 3.9811, plain, rtol=1e-4)
    assert np.abs(louder).max() > 1
    assert not padded[: 3 * 11_025].any()
    moved = compute(louder, 22_050, settings)[0] - compute(plain, 22_050, settings)[0]
    assert moved[0] == pytest.approx(12 * np.sqrt(128), abs=0.01)
    np.testing.assert_allclose(moved[1:], 0, atol=0.01)


@pytest.mark.parametrize("settings", [FeatureSettings(), VoicesSettings()])
def test_telephones_noise_rooms_and_pace_are_what_they_are_called(
    settings: FeatureSettings | VoicesSettings, tmp_path: Path
) -> None:
    """Of a tone in the band of a telephone and one above it, by their power."""
    rate = 22_050
    at_s = np.arange(3 * rate) / rate
    tones = (0.2 * np.sin(2 * np.pi * 1_000 * at_s) + 0.2 * np.sin(2 * np.pi * 5_000 * at_s)).astype(np.float32)
    soundfile.write(tmp_path / "tones.wav", tones, rate, subtype="FLOAT")
    data = (tmp_path / "tones.wav").read_bytes()
    with audio.opened(data, len(data)) as recording:
        varied = evaluate._vary(recording, 0.0, settings.segments.duration_s, settings)
    found = dict(zip(evaluate.CONDITIONS, varied, strict=True))

    def power(name: str, hertz: float) -> float:
        """Return the mean square of the tone that is there, in decibels to that of 0.2."""
        samples, rate_hz = found[name]
        wave = np.exp(-2j * np.pi * hertz * np.arange(len(samples)) / rate_hz)
        return float(20 * np.log10(abs(wave @ samples) / len(samples) / 0.1 + 1e-9))

    is_narrow = settings.sample_rate is None
    for name in ("telephone", "8_khz", "mu_law", "amr", "mp3"):
        # AMR is made for voices, and tones come out of it less exactly.
        assert power(name, 1_000) == pytest.approx(0, abs=1.5 if name == "amr" else 0.5), name
        assert len(found[name][0]) / found[name][1] == pytest.approx(3, abs=0.03), name
    for name in ("telephone",) if is_narrow else ("telephone", "8_khz", "mu_law", "amr"):
        assert power(name, 5_000) < -30, name
    assert power("mp3", 5_000) == pytest.approx(0, abs=0.5)
    assert [found[name][1] for name in ("8_khz", "mu_law", "amr")] == [8_000 if is_narrow else rate] * 3
    assert found["mp3"][1] == (16_000 if is_narrow else rate)
    plain = found["as_is"][0]
    # Eight bits of mu-law are some 38 dB above their noise, which is what makes it differ.
    line, coded = found["8_khz"][0], found["mu_law"][0]
    assert 25 < 10 * np.log10(np.mean(line**2) / np.mean((coded - line) ** 2)) < 45
    for name, of in (("amr", "8_khz"), ("mp3", "as_is")):
        assert not np.allclose(found[name][0][:1_000], found[of][0][:1_000], atol=1e-4), name
    for name, snr_db in (("noise_20_db", 20), ("noise_10_db", 10)):
        noise = found[name][0] - plain
        assert 10 * np.log10(np.mean(plain**2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.1)
    echo = found["reverberation"][0] - plain
    assert 0.2 < np.mean(echo**2) / np.mean(plain**2) < 5
    for name, speed in (("faster", 1.1), ("slower", 1 / 1.1)):
        assert len(found[name][0]) == pytest.approx(len(plain) / speed, abs=2)
        assert power(name, 1_000 * speed) == pytest.approx(0, abs=0.5)


@pytest.mark.parametrize("start_s", [0.0, 0.5, 1.0, 1.75, 2.5, 3.5])
def test_a_padded_segment_is_that_of_a_padded_file(start_s: float, tmp_path: Path) -> None:
    """Wherever it starts, the decoder's samples of a file with silence around it, to the last."""
    rate = 24_414
    samples = (np.random.default_rng(3).standard_normal(int(2.2 * rate)) * 3_000).astype(np.int16)
    for name, one in (("plain.wav", samples), ("padded.wav", np.pad(samples, 2 * rate))):
        soundfile.write(tmp_path / name, one, rate, subtype="PCM_16")
    plain, padded = ((tmp_path / name).read_bytes() for name in ("plain.wav", "padded.wav"))
    for duration_s in (0.25, 3.0):
        with audio.opened(padded, len(padded)) as recording:
            expected = recording.read(start_s, duration_s, sample_rate=22_050).samples
        with audio.opened(plain, len(plain)) as recording:
            found = evaluate._read_padded(recording, start_s, duration_s, 22_050)
        np.testing.assert_array_equal(found, expected)


def test_a_choice_of_recordings_has_labels_as_all_have(bundle: Path, features: Path) -> None:
    """Fourteen of 84 recordings of seven labels are two of each."""
    found = emotion_batch.evaluate(bundle, features, robustness=14).robustness
    assert found is not None
    assert found["n_recordings"] == found["padded"]["n_rows"] == 14
    again = emotion_batch.evaluate(bundle, features, robustness=14).robustness
    assert again == found
    assert found["as_is"]["kept"] == 1 and all(0 <= found[name]["kept"] <= 1 for name in evaluate.CONDITIONS)
    assert emotion_batch.evaluate(bundle, features, robustness=0).robustness is None
    with pytest.raises(UsageError, match="robustness must be a number of recordings, or 0: -1"):
        emotion_batch.evaluate(bundle, features, robustness=-1)


def test_labels_are_mapped_and_what_has_no_counterpart_is_counted(bundle: Path, features: Path, tmp_path: Path) -> None:
    """A map brings labels to the model's; others are left out and counted, and giving an absent label is wrong."""
    (tmp_path / "map.txt").write_text("fear = \nhappy = joy\nps = sad\ndisgust =\n")
    done = call_command(
        "evaluate", bundle, features, "--label-map", tmp_path / "map.txt", "--robustness", "0", "--json"
    )
    assert done.code == 0, done.err
    figures = done.result["figures"]
    assert done.result["left_out"] == {"disgust": 12, "fear": 12, "happy": 12}
    assert figures["n_rows"] == 48
    confusion = np.array(figures["confusion"])
    assert confusion.sum(axis=1).tolist() == [12, 0, 0, 0, 12, 0, 24]
    present = [0, 4, 6]
    assert figures["uar"] == pytest.approx(np.mean(confusion[present, present] / confusion[present].sum(axis=1)))
    assert figures["recall"]["ps"] is figures["precision"]["ps"] is None
    # Some were given a label that the reference has not.
    assert confusion[:, [1, 2, 3, 5]].sum() > 0
    assert done.result["robustness"] is None


def test_precision_is_told_at_priors(bundle: Path, features: Path) -> None:
    """Bayes's rule on the confusion, in JSON and in text; unknown labels are refused before any work."""
    found = emotion_batch.evaluate(bundle, features, priors={"angry": 1, "sad": 3}, robustness=0)
    recall = np.array(found.figures["confusion"]) / 12
    angry, sad = 0.25 * recall[0], 0.75 * recall[6]
    assert found.at_priors is not None
    if angry[6] + sad[6]:
        assert found.at_priors["precision"]["sad"] == pytest.approx(sad[6] / (angry[6] + sad[6]))
    assert "at priors" in str(format_evaluation(found))
    done = call_command("evaluate", bundle, features, "--priors", "bored=1")
    assert done.code == 2
    assert "is not a label of the model; its labels are angry, disgust" in done.err


def test_other_features_are_refused(bundle: Path, speech: Path, features: Path, tmp_path: Path) -> None:
    """A table of other settings, one of labels, or none, is a wrong call."""
    few = tmp_path / "few"
    shutil.copytree(speech / "V1_angry", few)
    done = call_command("extract", few, tmp_path / "other", "--n-mels", "64")
    assert done.code == 0, done.err
    done = call_command("evaluate", bundle, tmp_path / "other")
    assert done.code == 2
    assert "n_mels is 64 instead of 128" in done.err
    with pytest.raises(UsageError, match="there is no feature table; make one with `emotion-batch extract`"):
        emotion_batch.evaluate(bundle, tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"of the model's labels .* at least two are needed"):
        emotion_batch.evaluate(bundle, features, labels="ravdess")


def test_an_incomplete_table_is_not_judged(bundle: Path, features: Path, tmp_path: Path) -> None:
    """A part that is missing is said, for figures of a rest mean something else."""
    shutil.copytree(features, tmp_path / "table")
    next((tmp_path / "table").glob("*.parquet")).unlink()
    done = call_command("evaluate", bundle, tmp_path / "table")
    assert done.code == 1
    n_parts = len(list(features.glob("*.parquet")))
    assert f"1 of its {n_parts} parts cannot be used (missing, damaged or out of date)" in done.err


def test_an_archive_that_is_gone_costs_the_robustness_alone(bundle: Path, features: Path, tmp_path: Path) -> None:
    """Without recordings, or with others in their place, one sentence says so, and the rest is reported."""
    table = tmp_path / "table"
    shutil.copytree(features, table)
    about = json.loads((table / "_table" / "table.json").read_text())
    missing, changed = tmp_path / "missing", tmp_path / "changed"
    changed.mkdir()
    for place, sentence in (
        (missing, "the archive's recordings cannot be read again"),
        (changed, "none of 84 recordings can be read again"),
    ):
        _move_source(table, about["source"], str(place))
        found = emotion_batch.evaluate(bundle, table)
        assert found.robustness is not None
        assert sentence in found.robustness["reason"]
        assert found.figures["n_rows"] == 84
        assert sentence in str(format_evaluation(found))
        about["source"] = str(place)


def test_one_speaker_gives_no_shortcuts(bundle: Path, features: Path) -> None:
    """Where no other voice can be held out, or who speaks is unknown, it is said in one sentence."""
    found = emotion_batch.evaluate(bundle, features, labels=r"regex:_(?P<emotion>[a-z]+)\.wav", robustness=0)
    assert "at least two speakers are needed, known speakers: 0" in found.shortcuts["reason"]
    assert found.by_speaker == []
    assert "who speaks is unknown" in found.warnings[0]
    text = str(format_evaluation(found))
    assert "unknown speakers" in text
    assert found.shortcuts["reason"] in text


def test_confidence_is_judged_as_labels_have_it(
    bundle: Path, features: Path, vectors: np.ndarray, tmp_path: Path
) -> None:
    """`is_confident` and `is_in_domain` are those of a label table by the same bundle."""
    sure = tmp_path / "sure"
    shutil.copytree(bundle, sure)
    card = open_bundle(Folder.of(sure)).card
    summaries = domain.summarise_rows(
        to_table([(vector,) for vector in vectors], card.feature_settings), card.feature_settings
    )
    fitted = calibrate.fit_domain(summaries[:60], summaries[60:])
    promise = Promise(threshold=0.15, promised=0.9, got=None, coverage=0.0, n_speakers=2, is_guaranteed=False)
    card = replace(card, domain=fitted.to_dict(), confidence=asdict(promise))
    (sure / "card.json").write_bytes(card.to_json())
    found = emotion_batch.evaluate(sure, features, robustness=0)
    done = call_command("label", features, tmp_path / "labels", "--model", sure)
    assert done.code == 0, done.err
    table = pq.read_table(tmp_path / "labels", filters=[("status", "==", "ok")])
    is_confident = np.asarray(table["is_confident"])
    is_right = np.array(table["emotion"].to_pylist()) == [emotion_of(file) for file in table["file"].to_pylist()]
    assert is_confident.sum() > 0
    assert found.trust["n_confident"] == is_confident.sum()
    assert found.trust["precision"] == pytest.approx(is_right[is_confident].mean())
    assert found.trust["coverage"] == pytest.approx(is_confident.mean())
    assert found.trust["in_domain"] == pytest.approx(np.asarray(table["is_in_domain"]).mean())
    assert found.trust["speech"] is None
    assert "promised 0.900" in str(format_evaluation(found))


def test_what_is_printed_is_readable(bundle: Path, features: Path) -> None:
    """The text has each figure once, a line for each label and condition, and of many speakers the worst twenty."""
    done = call_command("evaluate", bundle, features, "--robustness", "7")
    assert done.code == 0, done.err
    for word in (
        *EMOTIONS,
        "accuracy",
        "UAR",
        "duration alone",
        "level alone",
        "12 dB louder",
        "2 s of silence around",
        "telephone's band",
        "labels kept",
    ):
        assert word in done.out
    assert "not clipped" in done.out
    found = emotion_batch.evaluate(bundle, features, robustness=0)
    voices = [{"speaker": f"S{number}", "n_rows": 1, "accuracy": 1.0, "uar": 1.0} for number in range(33)]
    text = str(format_evaluation(replace(found, by_speaker=voices)))
    assert "S19" in text
    assert "S20" not in text
    assert "and 13 speakers with a higher UAR" in text


def _move_source(table: Path, old: str, new: str) -> None:
    """Say that a table was made of another archive, in its settings and in each part's footer."""
    for path in (table / "_table" / "table.json", *table.glob("*.parquet")):
        if path.suffix == ".json":
            path.write_bytes(seal({**unseal(path.read_bytes()), "source": new}))
            continue
        part = pq.read_table(path)
        metadata = pq.ParquetFile(path).metadata.metadata
        about = {key: value.replace(old.encode(), new.encode()) for key, value in metadata.items()}
        pq.write_table(pa.table(part.columns, schema=part.schema.with_metadata(about)), path)
        seal_part(path)


def test_a_model_that_ships_is_judged_by_its_name(features: Path) -> None:
    """A name that is no folder here is that of a model that comes with the program, as for `label`."""
    found = emotion_batch.evaluate("tess-seed", features, robustness=0)
    assert found.model.endswith("/models/tess-seed")
