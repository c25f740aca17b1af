"""The times of frames, and what an encoder does not take."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import soundfile
import torch

from distiller.audio.decoding import Decoder
from distiller.corpora.corpus import all_audio
from distiller.extraction.extract import frame_times
from distiller.extraction.forward import Group, Pace, forward, short_enough
from tests.distiller.conftest import TEACHER
from upstream.encoder import EncoderOutput, SpeechEncoder


def test_times_of_convolutional_frames_are_those_of_the_samples_they_depend_on() -> None:
    """A frame's convolutions change with the samples of its receptive field, and with no others."""
    torch.manual_seed(0)
    config = dataclasses.replace(TEACHER, conv_norm="layer", conv_bias=True)  # a norm over time would see all samples
    encoder, times = SpeechEncoder(config).eval(), frame_times(config)
    wav = torch.randn(1, 4000)
    with torch.no_grad():
        before = encoder.convolve(wav)[0][0, 5]
        seen = []
        for sample in range(0, 4000, 10):
            changed = wav.clone()
            changed[0, sample : sample + 10] += 1.0
            if not torch.equal(encoder.convolve(changed)[0][0, 5], before):
                seen.append(sample)
    centre = (times["first_centre"] + 5 * times["frame_shift"]) * 16_000
    half = times["receptive_field"] * 16_000 / 2
    assert (seen[0], seen[-1] + 10) == (centre - half, centre + half)


@pytest.fixture
def noises(tmp_path: Path) -> Path:
    for index, seconds in enumerate((0.5, 0.2, 0.4, 2.0)):
        noise = 0.1 * np.random.default_rng(index).standard_normal(int(seconds * 16_000))
        soundfile.write(tmp_path / f"{index}.wav", noise, 16_000)
    return tmp_path


def test_parts_come_one_after_the_other_even_if_nothing_of_one_can_be_decoded(noises: Path) -> None:
    soundfile.write(noises / "1.wav", np.zeros(3200), 16_000)  # which only decoding shows
    cuts, skipped = all_audio(str(noises), [], Decoder(400))
    assert (len(cuts), skipped) == (4, [])
    encoder = SpeechEncoder(TEACHER).eval()

    def projected(output: EncoderOutput) -> torch.Tensor:
        return output.projected

    parts = [cuts[:1], cuts[1:2], cuts[2:]]
    groups: list[Group] = list(forward(encoder, parts, projected, Pace(batch_seconds=0.45, chunk_seconds=1.0)))
    assert sorted({group.part for group in groups}) == [0, 1, 2]
    assert [group.part for group in groups] == sorted(group.part for group in groups)
    found = {name: len(values) for group in groups for name, values in zip(group.ids, group.values, strict=True)}
    assert [Path(row.path).name for group in groups for row in group.skipped] == ["1.wav"]
    lengths = {"0.wav": 8000, "2.wav": 6400, "3.wav": 32_000}
    assert found == {name: (count - 400) // 320 + 1 for name, count in lengths.items()}


def test_whisper_takes_what_its_positions_are_for(noises: Path) -> None:
    """The encoder of Whisper refuses longer audio, so it is set aside before."""
    cuts, skipped = all_audio(str(noises), [], Decoder(1))
    whisper = cast(SpeechEncoder, SimpleNamespace(config=SimpleNamespace(max_samples=6400)))
    kept = short_enough(whisper, cuts, skipped)
    assert [cut.id for cut in kept] == ["1.wav", "2.wav"]
    assert [Path(row.path).name for row in skipped] == ["0.wav", "3.wav"]
    assert skipped[0].reason == "it is longer than 0.4 s, the most that this encoder takes"
    assert short_enough(SpeechEncoder(TEACHER), cuts, skipped) == cuts
