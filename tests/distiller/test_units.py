"""The command distiller/units.py."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from distiller import features, targets, units
from distiller.codebooks import text
from distiller.codebooks.folder import read_codebook, read_settings
from distiller.codebooks.text import statistics_of
from distiller.extraction import work
from distiller.synthesis.splits import load_split, phone_targets
from tests.distiller.conftest import TEACHER, SmallRun
from upstream.checkpoint import load, save
from upstream.encoder import SpeechEncoder

CPU = ("--device=cpu", "--workers=0")
FIT = ("fit", "corpus", "--model=teacher", "--layer=2", "--units=5", *CPU)
EXTRACT = ("extract", "corpus", "--units=units", "--output=units.txt", *CPU)


def states(path: str, layer: int = 2) -> Tensor:
    """(frame, channel) of a file by itself."""
    with torch.no_grad():
        output = load(Path("teacher"))(torch.from_numpy(soundfile.read(path, dtype="float32")[0]))
    return output.layer(layer)[0]


def lines(path: str = "units.txt") -> dict[str, list[list[int]]]:
    """The columns of numbers by utterance id."""
    rows = [line.split("\t") for line in Path(path).read_text().splitlines()]
    return {name: [[int(number) for number in column.split()] for column in columns] for name, *columns in rows}


def statistics(path: str = "units.txt.json") -> dict[str, Any]:
    return json.loads(Path(path).read_text())


def error_of(small_run: SmallRun) -> str:
    error = small_run.capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_every_frame_has_the_nearest_centroid(small_run: SmallRun) -> None:
    assert units.main([*FIT, "--norm=frame", "--output=units"]) == 0
    assert units.main(EXTRACT) == 0
    (centroids,) = read_codebook(Path("units"))["layer.2"]
    found = lines()
    assert list(found) == [f"dev/{n}.wav" for n in range(2)] + [f"train/{n}.wav" for n in range(10)]
    for name, (numbers,) in found.items():
        frames = torch.nn.functional.layer_norm(states(f"corpus/{name}"), (24,))
        assert numbers == torch.cdist(frames, centroids).argmin(dim=1).tolist()


def test_what_is_printed_and_stored_agrees(small_run: SmallRun) -> None:
    assert units.main([*FIT, "--output=units"]) == 0
    assert units.main(EXTRACT) == 0
    values, found = statistics(), [numbers for (numbers,) in lines().values()]
    seconds = (sum(range(3000, 5500, 250)) + 4000 + 4500) / 16_000
    assert values["seconds"] == pytest.approx(seconds, abs=0.005)
    assert values["plain"]["per_second"] == pytest.approx(147 / seconds)
    counts = np.bincount(np.concatenate(found))
    shares = counts[counts > 0] / 147
    assert values["plain"]["entropy"] == pytest.approx(-(shares * np.log2(shares)).sum())
    assert "phones" not in values  # noise has none
    out = small_run.capfd.readouterr().out
    assert "units.txt holds the units of 12 utterances, 3.1 s; " in out
    assert f"= {values['plain']['bits_per_second']:.1f} bits/s" in out


def test_deduplicated_units_have_durations(small_run: SmallRun) -> None:
    assert units.main([*FIT, "--output=units"]) == 0
    assert units.main(EXTRACT) == 0
    assert units.main([*EXTRACT, "--deduplicate", "--output=short.txt"]) == 0
    plain, short = lines(), lines("short.txt")
    assert list(plain) == list(short)
    for (numbers,), (kept, durations) in zip(plain.values(), short.values(), strict=True):
        assert np.repeat(kept, durations).tolist() == numbers
        assert all(one != other for one, other in pairwise(kept))
    assert statistics()["deduplicated"] == statistics("short.txt.json")["deduplicated"]


@pytest.mark.parametrize("layers", ["2", "all"])
def test_a_fit_on_features_is_the_one_on_their_corpus(small_run: SmallRun, layers: str) -> None:
    assert features.main(["corpus", "--model=teacher", f"--layers={layers}", "--output=features", *CPU]) == 0
    argv = ["--norm=frame", "--frames=60", "--seed=3"]
    assert units.main([*FIT, *argv, "--output=units"]) == 0
    assert units.main([FIT[0], "features", *FIT[2:], *argv, "--output=other"]) == 0
    assert read_settings(Path("units")) == read_settings(Path("other"))
    one, other = (read_codebook(Path(name))["layer.2"] for name in ("units", "other"))
    assert one.shape == (1, 5, 24)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0.0)


def test_units_in_the_models_folder_move_with_it(small_run: SmallRun) -> None:
    assert units.main([*FIT, "--output=teacher/units"]) == 0
    shutil.move("teacher", "moved")
    assert units.main([*FIT, "--model=moved", "--output=moved/units"]) == 0  # there already
    assert units.main([*EXTRACT, "--units=moved/units"]) == 0
    assert len(lines()) == 12
    load(Path("moved"))  # is still a model


def test_units_of_targets_py_can_be_extracted_with_the_model_named(small_run: SmallRun) -> None:
    argv = ["corpus", "--subsets=train,dev", "--teacher=teacher", "--units=5", "--device=cpu", "--output=units"]
    assert targets.main([*argv, "--layers=2"]) == 0
    assert units.main(EXTRACT) == 2
    assert "--units units does not name the model; give it with --model" in error_of(small_run)
    assert units.main([*EXTRACT, "--model=teacher"]) == 0
    assert len(lines()) == 12


def test_a_killed_extraction_continues(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "PART_SECONDS", 1.0)
    assert units.main([*FIT, "--output=units"]) == 0
    assert units.main([*EXTRACT, "--output=whole.txt"]) == 0
    rows, done = text._rows, []

    def killed_at_the_third(part: int, results: Any) -> Any:
        done.append(part)
        if len(done) == 3:
            raise KeyboardInterrupt
        return rows(part, results)

    monkeypatch.setattr(text, "_rows", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        units.main(EXTRACT)
    assert not Path("units.txt").exists()
    assert units.main([*EXTRACT, "--deduplicate"]) == 2
    assert "was made with other settings: deduplicate (False against True)" in error_of(small_run)
    assert units.main(EXTRACT) == 0
    assert done == [0, 1, 2, 2, 3]
    assert Path("units.txt").read_bytes() == Path("whole.txt").read_bytes()
    assert statistics() == statistics("whole.txt.json")
    assert not Path("units.txt.unfinished").exists()
    assert units.main(EXTRACT) == 0
    assert len(done) == 5


def test_units_of_synthetic_speech_are_compared_with_its_phones(small_run: SmallRun) -> None:
    cuts = load_split("validation")[:3]
    encoder = SpeechEncoder(TEACHER)
    phones = {cut.id: phone_targets(cut, TEACHER.frame_count(cut.recording.num_samples)).tolist() for cut in cuts}  # type: ignore[union-attr]
    exact = statistics_of(phones, cuts, 41, encoder.config)["phones"]
    assert exact == pytest.approx({"pnmi": 1.0, "phone_purity": 1.0, "cluster_purity": 1.0})
    silence = {name: [0] * len(sequence) for name, sequence in phones.items()}
    known = statistics_of(silence, cuts, 41, encoder.config)["phones"]
    every = np.concatenate(list(map(np.array, phones.values())))
    assert known["pnmi"] == pytest.approx(0.0, abs=1e-12)
    assert known["cluster_purity"] == 1.0
    assert known["phone_purity"] == pytest.approx(np.bincount(every).max() / len(every))


def test_mistakes_of_fit(small_run: SmallRun) -> None:
    assert features.main(["corpus", "--model=teacher", "--layers=1,2", "--mean", "--output=mean", *CPU]) == 0
    assert features.main(["corpus", "--model=teacher", "--layers=0,1", "--output=layers", *CPU]) == 0
    torch.manual_seed(1)
    save(SpeechEncoder(TEACHER), "other")
    small_run.capfd.readouterr()
    cases = [
        (["--layer=3"], "--layer is 3, but it must be a layer of the model, from 0 to 2"),
        (["--units=1"], "--units is 1, but it must be from 2"),
        (["--units=5000"], "--units is 5000, but it must be at most 147"),
        (["--norm=x"], "--norm is 'x'"),
        (["--seed=-1"], "--seed is -1"),
        (["--batch-seconds=nan"], "--batch-seconds is nan"),
        (["--subsets=x"], "has no subset 'x'"),
        (["mean"], "--layer is 2, but mean holds a sum of layers"),
        (["layers"], "--layer is 2, but layers holds layers [0, 1], 0 being feature_projection"),
        (["layers", "--layer=0", "--layer-zero=transformer_input"], "--layer is 0, but layers holds layers [0, 1]"),
        (["layers", "--layer=1", "--model=other"], "layers contains features of a different model than"),
    ]
    for argv, message in cases:
        source = argv.pop(0) if not argv[0].startswith("--") else "corpus"
        assert units.main([FIT[0], source, *FIT[2:], *argv, "--output=units"]) == 2
        assert message in error_of(small_run)
        assert not Path("units").exists()
    assert units.main([*FIT, "--output=units"]) == 0
    assert units.main([*FIT, "--units=6", "--output=units"]) == 2
    assert "units was made with other settings: units (5 against 6); choose another --output" in error_of(small_run)


def test_mistakes_of_extract(small_run: SmallRun) -> None:
    assert units.main([*FIT, "--output=units"]) == 0
    torch.manual_seed(1)
    save(SpeechEncoder(TEACHER), "other")
    Path("mine.txt").write_text("a page")
    small_run.capfd.readouterr()
    cases = [
        (["--units=nowhere"], "nowhere holds no units"),
        (["--model=other"], "--model is other, but the units were fitted on a different model: sha256"),
        (["--output=mine.txt"], "mine.txt exists and was not written by this command"),
        (["--workers=-1"], "--workers is -1"),
    ]
    before = {path.name for path in Path().iterdir()}
    for argv, message in cases:
        assert units.main([*EXTRACT, *argv]) == 2
        assert message in error_of(small_run)
        assert {path.name for path in Path().iterdir()} == before
    assert Path("mine.txt").read_text() == "a page"
