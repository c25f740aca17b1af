"""Any file becomes 16 kHz mono, or a reason why it cannot."""

import numpy as np
import pytest
import soundfile
import torch
from lhotse import AudioSource, CutSet, Recording

from distiller.audio.decoding import Decoder, Undecodable
from distiller.corpora.scanning import scan
from upstream.config import SAMPLE_RATE

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}


decode = Decoder(min_samples=400).decode


def tone(seconds=0.5, rate=SAMPLE_RATE, hertz=440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def write(path, samples, rate=SAMPLE_RATE, kind=None, subtype=None):
    kind, default = FORMATS[kind or path.suffix[1:]]
    soundfile.write(path, samples, rate, format=kind, subtype=subtype or default)
    return path


def cut_of(path):
    cuts, skipped = scan(path, path.parent)
    assert not skipped
    return cuts[0]


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_tone_back(tmp_path, ending):
    waveform = decode(cut_of(write(tmp_path / f"a.{ending}", tone())))
    assert waveform.dtype == torch.float32
    assert waveform.shape == (8000,)
    assert np.abs(np.fft.rfft(waveform.numpy())).argmax() == 220  # 440 Hz in bins of 2 Hz


def test_8_khz_stereo_becomes_16_khz_mono(tmp_path):
    stereo = np.stack([tone(rate=8000), 0.5 * tone(rate=8000)], axis=1)
    waveform = decode(cut_of(write(tmp_path / "a.wav", stereo, 8000)))
    assert waveform.shape == (8000,)
    inner = slice(200, -200)  # away from the resampling filter's edges
    np.testing.assert_allclose(waveform[inner], 0.75 * tone()[inner], atol=2e-3)


@pytest.mark.parametrize("rate", [11_025, 22_050, 22_254, 44_100, 48_000, 15_999])
def test_any_rate(tmp_path, rate):
    waveform = decode(cut_of(write(tmp_path / "a.wav", tone(rate=rate), rate)))
    assert abs(len(waveform) - 8000) <= 1
    np.testing.assert_allclose(waveform[200:7800], tone()[200:7800], atol=5e-3)


def truncate(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("ending", ["mp3", "flac"])
def test_a_truncated_file_does_not_pass_for_complete(tmp_path, ending, share):
    """Both durations are named."""
    noise = np.random.default_rng(0).normal(0, 0.1, 3 * SAMPLE_RATE)
    path = write(tmp_path / f"a.{ending}", noise)
    cut = cut_of(path)
    truncate(path, share)
    with pytest.raises(Undecodable, match=r"^its declared length is 3.00 s, but only [12].\d\d s can be decoded$"):
        decode(cut)


def test_a_file_zeroed_after_it_was_scanned(tmp_path):
    path = write(tmp_path / "a.wav", tone())
    cut = cut_of(path)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(Undecodable, match=r"^Format not recognised\.$"):
        decode(cut)


def test_a_file_that_vanished(tmp_path):
    path = write(tmp_path / "a.wav", tone())
    cut = cut_of(path)
    path.unlink()
    with pytest.raises(Undecodable, match=r"^No such file or directory$"):
        decode(cut)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(8000), "all its samples are zero"),
        (np.where(np.arange(8000) == 4000, np.nan, 0.1), "it holds NaN or infinite samples"),
        (np.where(np.arange(8000) == 4000, np.inf, 0.1), "it holds NaN or infinite samples"),
        (np.full(1, 0.1), "it has 1 samples at 16 kHz, but one frame needs 400"),
        (np.full(399, 0.1), "it has 399 samples at 16 kHz, but one frame needs 400"),
    ],
)
def test_samples_that_cannot_be_used(tmp_path, samples, reason):
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    with pytest.raises(Undecodable) as error:
        decode(cut_of(path))
    assert str(error.value) == reason


def test_the_shortest_input_is_the_encoders(tmp_path):
    cut = cut_of(write(tmp_path / "a.wav", tone()[:399]))
    assert Decoder(min_samples=399).decode(cut).shape == (399,)


def test_a_header_that_promises_more_than_there_is(tmp_path):
    path = write(tmp_path / "a.wav", tone(0.5))
    lying = Recording("a", [AudioSource("file", [0], str(path))], SAMPLE_RATE, 9700, 9700 / SAMPLE_RATE).to_cut()
    with pytest.raises(Undecodable, match="declared length"):
        decode(lying)
    nearly = Recording("a", [AudioSource("file", [0], str(path))], SAMPLE_RATE, 8010, 8010 / SAMPLE_RATE).to_cut()
    assert decode(nearly).shape == (8010,)


def test_a_part_of_a_recording(tmp_path):
    cut = cut_of(write(tmp_path / "a.wav", np.arange(16_000) / 20_000)).truncate(offset=0.25, duration=0.5)
    np.testing.assert_allclose(decode(cut), np.arange(4_000, 12_000) / 20_000, atol=1e-4)


def test_decoding_does_not_depend_on_the_number_of_threads(tmp_path):
    cut = cut_of(write(tmp_path / "a.wav", tone(5.0, 44_100), 44_100))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = decode(cut)
        torch.set_num_threads(2)
        assert torch.equal(single, decode(cut))
    finally:
        torch.set_num_threads(threads)


def test_no_message_of_a_decoder_reaches_stderr(tmp_path, capfd):
    path = write(tmp_path / "a.mp3", np.random.default_rng(0).normal(0, 0.1, 3 * SAMPLE_RATE))
    cut = cut_of(path)
    truncate(path, 0.5)
    soundfile.read(path)
    assert "Xing" in capfd.readouterr().err  # libmpg123 does talk
    with pytest.raises(Undecodable):
        decode(cut)
    assert capfd.readouterr().err == ""


def test_a_cut_survives_a_manifest(tmp_path):
    cut = cut_of(write(tmp_path / "a.wav", np.stack([tone(), tone()], axis=1)))
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl.gz")
    (again,) = CutSet.from_file(tmp_path / "cuts.jsonl.gz")
    assert torch.equal(decode(cut), decode(again))
