from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from distiller.probes.recordings import LONGEST, load_recordings, trimmed
from distiller.probes.words import Words
from upstream.errors import UserError

RATE = 16_000


def noise(seconds: float) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(int(seconds * RATE))


def test_silence_at_both_ends_is_cut_off_but_not_a_pause() -> None:
    silence = 1e-5 * noise(0.5)
    waveform = np.concatenate([silence, noise(0.2), silence, noise(0.2), silence])
    kept = trimmed(torch.from_numpy(waveform))
    assert len(kept) == int(1.0 * RATE)  # 50 ms before and after, and the pause
    assert torch.equal(kept, torch.from_numpy(waveform[7200:23200]))


def test_recordings_are_named_by_their_path_and_bad_ones_set_aside(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name, samples in {"a/v1.0.wav": noise(0.5), "a/long.flac": noise(11), "a/v1.0.flac": noise(0.5)}.items():
        soundfile.write(tmp_path / name, samples, RATE)
    (tmp_path / "a" / "broken.wav").write_bytes(b"RIFF....")
    soundfile.write(tmp_path / "a" / "zero.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "a" / "short.wav", noise(0.01), RATE)
    recordings, skipped = load_recordings(tmp_path, 400)
    assert {name: len(waveform) for name, waveform in recordings.items()} == {"a/v1.0": RATE // 2, "a/long": LONGEST}
    assert {Path(row.path).name for row in skipped} == {"broken.wav", "zero.wav", "short.wav", "v1.0.wav"}


def test_words_need_one_of_the_same_name_in_two_groups(tmp_path: Path) -> None:
    for path in ("a/one.wav", "b/two.wav", "one.wav"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / path, noise(0.2), RATE)
    with pytest.raises(UserError, match=r"the same WORD as GROUP/WORD\.flac in two GROUP folders, but has none"):
        Words.load(tmp_path)
    soundfile.write(tmp_path / "b/one.wav", noise(0.2), RATE)
    assert {group: list(words) for group, words in Words.load(tmp_path).groups.items()} == {
        "a": ["one"], "b": ["one", "two"],
    }  # fmt: skip


def test_a_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_recordings(tmp_path / "nowhere", 400)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not a folder"):
        load_recordings(tmp_path / "file", 400)
