# ruff: noqa: RUF001  (IPA is made of letters that look like others)
"""The synthetic corpus: deterministic, resumable, and labelled where the sound is."""

import os
import re
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from lhotse import MonoCut, SupervisionSegment
from lhotse.supervision import AlignmentItem

from distiller.synthesis.espeak import ACCENTS, PHONES, Prosody, Synthesizer, Voice, phones_of
from distiller.synthesis.sentences import LEXICON
from distiller.synthesis.shards import synthesise
from distiller.synthesis.splits import phone_targets, plan
from distiller.synthesis.utterances import Conditions, Utterance, render
from upstream.config import SAMPLE_RATE
from upstream.errors import UserError
from upstream.files import PART

UTTERANCES = 6
VOWELS = {"IY", "IH", "EH", "AE", "AA", "AO", "AH", "UH", "UW", "ER", "AX", "EY", "AY", "OY", "OW", "AW"}


@pytest.fixture(scope="module")
def synthesizer():
    with Synthesizer() as synthesizer:
        yield synthesizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Six utterances in shards of one: (directory, cuts)."""
    directory = tmp_path_factory.mktemp("corpus")
    return directory, synthesise(plan("probe_unseen", UTTERANCES), directory, shard_size=1, workers=1)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but the lock, by its relative path."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def start_another_process(directory: Path, utterances: int, errors: Path) -> BaseProcess:
    """Synthesise in a process forked from this one, which spares it the imports; its stderr goes to `errors`."""

    def work():
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        synthesise(plan("probe_unseen", utterances), directory, shard_size=1, workers=2)

    process = get_context("fork").Process(target=work)
    process.start()
    return process


# ---- the same bytes every time


def test_the_bytes_do_not_depend_on_the_workers_or_the_process(corpus, tmp_path):
    directory, _ = corpus
    reference = contents(directory)
    assert len(reference) == 2 * UTTERANCES  # audio and manifest of each
    synthesise(plan("probe_unseen", UTTERANCES), tmp_path, shard_size=1, workers=3)
    assert contents(tmp_path) == reference


def test_two_processes_at_once_do_no_harm(corpus, tmp_path):
    directory, _ = corpus
    errors = tmp_path / "errors"
    processes = [start_another_process(tmp_path / "corpus", UTTERANCES, errors) for _ in range(2)]
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0, errors.read_text()
    assert contents(tmp_path / "corpus") == contents(directory)
    assert re.fullmatch(r"(waiting for process \d+, which is writing .*\n)?", errors.read_text())


def test_neither_what_was_said_before_nor_the_time_matters(synthesizer):
    second, first = plan("probe_train", 2)
    assert first.voice.breath  # its noise comes from a generator that the library seeds with the clock, in seconds
    alone = render(first, synthesizer)
    render(second, synthesizer)
    again = render(first, synthesizer)
    time.sleep(1.1)
    with Synthesizer() as fresh:
        elsewhere = render(first, fresh)
    for samples, phones in (again, elsewhere):
        np.testing.assert_array_equal(samples, alone[0])
        assert phones == alone[1]


def test_more_utterances_extend_fewer():
    assert plan("train", 7)[:4] == plan("train", 4)


# ---- shards


def test_a_missing_shard_alone_is_made_again(corpus, tmp_path):
    synthesise(plan("probe_unseen", UTTERANCES), tmp_path, shard_size=2, workers=1)
    before = contents(tmp_path)
    lost, *kept = sorted(tmp_path.glob("0*"))
    times = {path: path.stat().st_mtime_ns for shard in kept for path in shard.iterdir()}
    for path in lost.iterdir():
        path.unlink()
    lost.rmdir()
    synthesise(plan("probe_unseen", UTTERANCES), tmp_path, shard_size=2, workers=1)
    assert contents(tmp_path) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_kill_leaves_complete_shards_and_the_next_run_adds_the_rest(corpus, tmp_path):
    directory, errors, count = tmp_path / "corpus", tmp_path / "errors", 40
    process = start_another_process(directory, count, errors)
    deadline = time.monotonic() + 60
    while not list(directory.glob("0*")) and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.join()
    shards = sorted(directory.glob("0*"))
    assert 1 <= len(shards) < count
    for shard in shards:
        assert sorted(path.suffix for path in shard.iterdir()) == [".flac", ".jsonl"]
    (directory / f"{PART}1").mkdir()
    cuts = synthesise(plan("probe_unseen", UTTERANCES), directory, shard_size=1)
    assert len(cuts) == UTTERANCES
    assert not list(directory.glob(f"{PART}*"))
    made, reference = contents(directory), contents(corpus[0])
    assert {path: made[path] for path in reference} == reference
    assert errors.read_text() == ""  # the speech processes ended silently with the one that was killed


def test_another_plan_gets_other_shards(corpus):
    directory, _ = corpus
    utterances = plan("probe_unseen", 1)
    louder = [replace(utterances[0], conditions=replace(utterances[0].conditions, level=-20.0))]
    synthesise(louder, directory, shard_size=1)
    assert len(list(directory.glob("00000-*"))) == 2


# ---- cuts and labels


def test_cuts_carry_audio_speaker_text_and_phones(corpus):
    _, cuts = corpus
    for cut, utterance in zip(cuts, plan("probe_unseen", UTTERANCES), strict=True):
        (supervision,) = cut.supervisions
        assert (cut.id, supervision.speaker, supervision.text) == (utterance.id, utterance.speaker, utterance.text)
        audio = cut.load_audio()  # (channel, sample)
        assert cut.sampling_rate == SAMPLE_RATE
        assert audio.shape == (1, round(cut.duration * SAMPLE_RATE))
        assert 1.5 < cut.duration < 6.0
        phones = supervision.alignment["phone"]
        assert {phone.symbol for phone in phones} <= set(PHONES)
        assert phones[0].start == 0.0
        assert phones[-1].end == pytest.approx(cut.duration, abs=1e-4)
        for phone, following in pairwise(phones):
            assert phone.duration > 0
            assert phone.end == pytest.approx(following.start, abs=1e-6)
            assert phone.symbol != "sil" or following.symbol != "sil"


def test_silence_is_silent_and_speech_is_as_loud_as_asked(synthesizer):
    conditions = Conditions(silence=(0.3, 0.2), tilt=0.3, level=-26.0, snr=30.0, colour=0.8, seed=3)
    samples, phones = render(Utterance("x", "s", "My money.", Voice(), conditions=conditions), synthesizer)
    speech = samples / 32768

    def level(part):
        return 10 * np.log10(np.mean(part**2))

    assert [phones[0][0], phones[-1][0]] == ["sil", "sil"]
    assert level(speech[: int(0.29 * SAMPLE_RATE)]) == pytest.approx(-56, abs=1)
    assert level(speech[-int(0.19 * SAMPLE_RATE) :]) == pytest.approx(-56, abs=1)
    assert level(speech[int(0.3 * SAMPLE_RATE) : -int(0.2 * SAMPLE_RATE)]) == pytest.approx(-26, abs=0.1)


def test_labels_stand_where_the_sound_is(synthesizer):
    """Sibilants hold the high frequencies, and no shift of the labels by 30 ms finds more of them there."""
    text = "She sees six sharp scissors, so she sips some soup."
    conditions = Conditions(silence=(0.2, 0.2))
    samples, phones = render(Utterance("x", "s", text, Voice(), conditions=conditions), synthesizer)
    assert [symbol for symbol, *_ in phones][:4] == ["sil", "SH", "IY", "S"]
    shift = 80
    frames = np.lib.stride_tricks.sliding_window_view(samples / 32768, 320)[::shift] * np.hanning(320)
    power = np.abs(np.fft.rfft(frames)) ** 2  # (frame, 50 Hz)
    brightness = np.log(power[:, 70:].sum(1) + 1e-6) - np.log(power[:, 2:50].sum(1) + 1e-6)
    times = (np.arange(len(frames)) * shift + 160) / SAMPLE_RATE

    def contrast(lag):
        sibilant = np.zeros(len(frames), dtype=bool)
        vowel = np.zeros(len(frames), dtype=bool)
        for symbol, start, end in phones:
            inside = (times >= start + lag) & (times < end + lag)
            sibilant |= inside & (symbol in {"S", "Z", "SH"})
            vowel |= inside & (symbol in VOWELS)
        return brightness[sibilant].mean() - brightness[vowel].mean()

    assert contrast(0.0) > 3
    assert contrast(0.0) > max(contrast(-0.03), contrast(0.03)) + 0.3


def test_phone_targets_by_hand():
    # the centres of frames 0..4 are samples 200, 520, 840, 1160, 1480: 12.5, 32.5, 52.5, 72.5, 92.5 ms
    phones = [AlignmentItem("sil", 0.0, 0.0125), AlignmentItem("S", 0.0125, 0.04), AlignmentItem("IY", 0.0525, 0.035)]
    supervision = SupervisionSegment("x", "x", 0.0, 0.1, alignment={"phone": phones})
    cut = MonoCut("x", 0.0, 0.1, 0, [supervision])
    targets = phone_targets(cut, 5)
    assert targets.dtype == np.int64
    assert [PHONES[target] for target in targets] == ["S", "S", "IY", "IY", "sil"]
    assert phone_targets(MonoCut("x", 0.0, 0.1, 0, []), 3).tolist() == [0, 0, 0]


def test_phone_targets_follow_a_truncated_cut(corpus):
    _, cuts = corpus
    cut = next(iter(cuts))
    full = phone_targets(cut, 100)
    assert len(set(full.tolist())) > 10
    np.testing.assert_array_equal(phone_targets(cut.truncate(offset=16 * 0.02), 84), full[16:])


def test_the_library_names_only_known_phones_and_all_of_them(synthesizer):
    assert len(PHONES) == len(set(PHONES)) == 41
    assert PHONES[0] == "sil"
    heard: Counter[str] = Counter()
    for accent in ACCENTS:
        for first in range(0, len(LEXICON), 30):
            text = " ".join(LEXICON[first : first + 30])
            _, phones = synthesizer.speak(text, Voice(accent=accent), Prosody(rate=240))
            heard.update(symbol for symbol, *_ in phones)
    assert set(heard) == set(PHONES)


def test_compound_sounds_are_taken_apart():
    assert phones_of("ˈɑːɹ") == ["AA", "R"]
    assert phones_of("aɪɚ") == ["AY", "ER"]
    assert phones_of("tʃ") == ["CH"]
    assert phones_of("") == phones_of("ʲ") == ["sil"]
    with pytest.raises(UserError, match="'ø'"):
        phones_of("ø")


def test_a_short_text(synthesizer):
    samples, phones = synthesizer.speak("Yes.", Voice())
    assert samples.dtype == np.int16
    assert [symbol for symbol, *_ in phones if symbol != "sil"] == ["Y", "EH", "S"]
    assert phones[-1][2] == pytest.approx(samples.size / SAMPLE_RATE, abs=1e-3)
