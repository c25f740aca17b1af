"""ABX: which phones of which recordings are compared, and the errors of representations that are known."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from distiller.probes.abx import HEADER, Abx, read_items
from upstream.errors import UserError

SPEAKERS, PHONES, TIMES = ("anna", "ben", "carl"), ("a", "e", "i"), 3


def spoken() -> Abx:
    """Each speaker says each phone three times, in the context p_t: five frames, samples being its number."""
    items, recordings = [], {}
    for speaker in SPEAKERS:
        for number, phone in enumerate(PHONES):
            for time in range(TIMES):
                name = f"{speaker}-{phone}-{time}"
                recordings[name] = torch.full((7 * 320,), float(number))
                items.append([name, "0.02", "0.12", phone, "p", "t", speaker])
    return Abx(items, recordings)


def represent(waveforms: list[Tensor]) -> Iterator[list[Tensor]]:
    """A layer that knows the phone, and one that is noise."""
    random = torch.Generator().manual_seed(0)
    for waveform in waveforms:
        frames = waveform[: len(waveform) // 320 * 320 : 320].long()
        yield [torch.randn(len(frames) - 1, 4, generator=random), torch.eye(4)[frames[:-1]]]


def test_a_layer_that_knows_the_phone_makes_no_errors_and_noise_half_of_them() -> None:
    pytest.importorskip("fastabx", reason="fastabx needs Python 3.12")
    row = spoken().run(represent)
    assert (row["abx_within"], row["abx_across"], row["abx_within_best"], row["abx_across_best"]) == (0, 0, 0, 0)
    for speakers in ("within", "across"):
        noise, known = row["layers"][f"abx_{speakers}"]
        assert known == 0
        assert noise == pytest.approx(50, abs=15)


def test_a_phone_shorter_than_a_frame_is_one_sentence() -> None:
    pytest.importorskip("fastabx", reason="fastabx needs Python 3.12")
    abx = spoken()
    abx.items[0][1:3] = ["0.021", "0.022"]
    with pytest.raises(UserError, match="fastabx rejects these phones: 1 empty entries found"):
        abx.run(represent)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Recordings in folders of their speakers, one of them broken, and an .item file that names one more."""
    random = np.random.default_rng(0)
    lines = [HEADER]
    for name in ("one", "two", "broken", "missing"):
        lines.append(f"{name} 0.05 0.15 a p t anna")
        (tmp_path / "anna").mkdir(exist_ok=True)
        if name != "missing":
            soundfile.write(tmp_path / "anna" / f"{name}.flac", 0.1 * random.standard_normal(4000), 16_000)
    (tmp_path / "anna" / "broken.flac").write_bytes(b"fLaC and no more")
    (tmp_path / "phones.item").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_recordings_are_found_by_their_names_and_whole(folder: Path) -> None:
    abx = Abx.load(folder)
    assert {name: len(waveform) for name, waveform in abx.recordings.items()} == {"one": 4000, "two": 4000}
    assert [item[0] for item in abx.items] == ["one", "two"]
    assert {Path(row.path).stem for row in abx.skipped} == {"broken", "missing"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "#file onset offset phone\none 0 1 a\n",
            "'#file onset offset phone'; its lines must be #file onset offset #p",
        ),
        (f"{HEADER}\none 0.2 0.1 a p t anna\n", "'one 0.2 0.1 a p t anna'"),
        (f"{HEADER}\none 0.1 nan a p t anna\n", "'one 0.1 nan a p t anna'"),
        (f"{HEADER}\none 0.1 0.2 a p t\n", "'one 0.1 0.2 a p t'"),
        (f"{HEADER}\n", "is not an .item file of phones"),
        ("", "is not an .item file of phones"),
        (
            f"{HEADER}\nnobody 0.1 0.2 a p t anna\n",
            "holds none of the recordings that phones.item names, such as nobody",
        ),
    ],
)
def test_an_item_file_that_does_not_fit_is_one_sentence(content: str, message: str, folder: Path) -> None:
    (folder / "phones.item").write_text(content)
    with pytest.raises(UserError) as caught:
        Abx.load(folder)
    assert message in str(caught.value)


def test_there_must_be_one_item_file(folder: Path, tmp_path: Path) -> None:
    (folder / "more.item").write_text("")
    with pytest.raises(UserError, match=r"must hold one \.item file .* but holds more\.item, phones\.item"):
        Abx.load(folder)
    with pytest.raises(UserError, match="nowhere does not exist"):
        Abx.load(tmp_path / "nowhere")


def test_triphones_of_the_synthetic_corpus_have_their_neighbours_and_lie_in_the_recording() -> None:
    abx = Abx.synthetic("probe_unseen")
    first = [item for item in abx.items if item[0] == abx.items[0][0]]
    for earlier, item in pairwise(first):
        assert (item[4], earlier[5]) == (earlier[3], item[3])  # its predecessor, and that one's successor
        assert float(earlier[1]) < float(item[1])
    for name, onset, offset, *_ in abx.items:
        assert 0 <= float(onset) < float(offset) <= len(abx.recordings[name]) / 16_000 + 0.01
    assert len({item[6] for item in abx.items}) == 16


def test_the_items_of_zerospeech_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "triphone.item"
    path.write_text(f"{HEADER}\n6295-244435-0009 0.2925 0.4725 IH L NG 6295\n")
    assert read_items(path) == [["6295-244435-0009", "0.2925", "0.4725", "IH", "L", "NG", "6295"]]
