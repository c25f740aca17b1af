"""The command distiller/features.py."""

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile
import torch

from distiller import features
from distiller.extraction import extract, work
from distiller.extraction.folder import FeatureFolder
from tests.distiller.conftest import SmallRun
from upstream import chunked
from upstream.checkpoint import load
from upstream.encoder import EncoderOutput

ROOT = Path(__file__).resolve().parents[2]
ARGV = ("corpus", "--model=teacher", "--device=cpu", "--workers=0", "--output=features")


def alone(path: str) -> EncoderOutput:
    """The teacher's output for one file by itself."""
    with torch.no_grad():
        return load(Path("teacher"))(torch.from_numpy(soundfile.read(path, dtype="float32")[0]))


def index(output: str = "features") -> dict[str, Any]:
    return json.loads(Path(output, "index.json").read_text())


def error_of(small_run: SmallRun) -> str:
    error = small_run.capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_every_file_has_the_features_that_it_has_alone(small_run: SmallRun) -> None:
    assert features.main([*ARGV, "--layers=0,2"]) == 0
    assert small_run.capfd.readouterr().out == "features holds the features of 12 utterances, 147 frames\n"
    rows = index()["utterances"]
    assert [row["file"] for row in rows] == [f"dev/{n}.npy" for n in range(2)] + [f"train/{n}.npy" for n in range(10)]
    for row in rows:
        output, found = alone(row["audio"]), np.load(Path("features", row["file"]))
        assert found.shape == (2, row["frames"], 24)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[0], output.projected[0], atol=1e-4)
        np.testing.assert_allclose(found[1], output.hidden_states[2][0], atol=1e-4)
    assert sorted(path.name for path in Path("features").iterdir()) == [".lock", "dev", "index.json", "train"]


def test_frame_times_are_in_the_index(small_run: SmallRun) -> None:
    assert features.main([*ARGV, "--layers=1"]) == 0
    found = index()
    assert (found["frame_shift"], found["receptive_field"], found["first_centre"]) == (0.02, 0.025, 0.0125)
    assert found["encoder"]["name"] == "teacher"
    samples = [row["seconds"] * 16_000 for row in found["utterances"]]
    assert [row["frames"] for row in found["utterances"]] == [(count - 400) // 320 + 1 for count in samples]


@pytest.mark.parametrize("kind", ["safetensors", "hdf5"])
def test_shards_hold_the_same(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(work, "PART_SECONDS", 1.0)
    assert features.main([*ARGV, "--layers=2", "--output=files"]) == 0
    assert features.main([*ARGV, "--layers=2", f"--format={kind}"]) == 0
    files, shards = FeatureFolder("files"), FeatureFolder("features")
    assert list(files) == list(shards)
    assert len({row["file"] for row in shards.rows.values()}) == 4
    assert all(torch.equal(values, shards[name]) for name, values in files.items())
    if kind == "hdf5":
        with h5py.File("features/features.000000.h5") as shard:
            assert shard["dev"]["0"].shape == (12, 24)


def test_the_mean_and_half_precision(small_run: SmallRun) -> None:
    assert features.main([*ARGV, "--layers=1,2", "--mean", "--dtype=fp16"]) == 0
    row = index()["utterances"][0]
    found, states = np.load(Path("features", row["file"])), alone(row["audio"]).hidden_states
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, (states[1] + states[2])[0] / 2, rtol=1e-3, atol=1e-3)


def test_what_half_precision_cannot_hold_is_refused(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def large(config: object, output: EncoderOutput) -> torch.Tensor:
        return (output.projected + 1e6).half()

    monkeypatch.setattr(extract, "representation", large)
    assert features.main([*ARGV, "--dtype=fp16"]) == 2
    assert "the features of dev/0.wav are not finite in fp16; the largest fp16 number is 65504" in error_of(small_run)


def featurizer(path: str, weights: list[float], **arguments: Any) -> None:
    content = {"Featurizer": {"weights": torch.tensor(weights)}, "Args": Namespace(**arguments), "Downstream": {}}
    torch.save(content, path)


def test_a_featurizers_weights_are_softmaxed_as_s3prl_does(small_run: SmallRun) -> None:
    featurizer("best.ckpt", [0.0, 1.0, -0.5])
    assert features.main([*ARGV, "--weights=best.ckpt"]) == 0
    assert index()["layers"] == [0, 1, 2]
    row = index()["utterances"][3]
    output = alone(row["audio"])
    states = torch.stack([output.projected, *output.hidden_states[1:]])
    expected = (torch.tensor([0.0, 1.0, -0.5]).softmax(dim=0)[:, None, None, None] * states).sum(dim=0)[0]
    np.testing.assert_allclose(np.load(Path("features", row["file"])), expected, atol=1e-4)


def test_a_list_of_weights_is_taken_as_it_is_for_the_layers_that_fit(small_run: SmallRun) -> None:
    Path("w.json").write_text("[2, -1.5]")
    assert features.main([*ARGV, "--weights=w.json"]) == 0
    assert index()["layers"] == [1, 2]
    row = index()["utterances"][0]
    states = alone(row["audio"]).hidden_states
    np.testing.assert_allclose(np.load(Path("features", row["file"])), (2 * states[1] - 1.5 * states[2])[0], atol=1e-4)


def test_long_recordings_are_computed_in_chunks_and_never_split(small_run: SmallRun) -> None:
    Path("long").mkdir()
    soundfile.write("long/a.flac", 0.1 * np.random.default_rng(1).standard_normal(40_000), 16_000)
    soundfile.write("long/b.flac", 0.1 * np.random.default_rng(2).standard_normal(16_000), 16_000)
    assert features.main(["long", *ARGV[1:], "--layers=2", "--chunk-seconds=1"]) == 0
    long = torch.from_numpy(soundfile.read("long/a.flac", dtype="float32")[0])
    expected = chunked.extract(load(Path("teacher")), long, 1.0)[2]
    np.testing.assert_allclose(np.load("features/a.npy"), expected, atol=1e-4)
    assert len(expected) == 124
    np.testing.assert_allclose(np.load("features/b.npy"), alone("long/b.flac").hidden_states[2][0], atol=1e-4)


def test_names_in_a_list_stay_apart_and_inside(small_run: SmallRun) -> None:
    noise = 0.1 * np.random.default_rng(1).standard_normal(4000)
    Path("lists").mkdir()
    for name in ("a.wav", "a.flac", "lists/b.wav"):
        soundfile.write(name, noise, 16_000)
    Path("lists/list.txt").write_text("../a.wav\n../a.flac\nb.wav\n")
    assert features.main(["lists/list.txt", *ARGV[1:], "--layers=1"]) == 0
    names = [row["file"] for row in index()["utterances"]]
    assert len(set(names)) == 3
    assert all(Path("features", name).resolve().is_relative_to(Path("features").resolve()) for name in names)
    Path("lists/list.txt").write_text("b.wav\nb.wav\n")
    assert features.main(["lists/list.txt", *ARGV[1:], "--output=other"]) == 2
    assert "two utterances of the corpus have the id b.wav" in error_of(small_run)
    assert not Path("other").exists()


def test_bad_audio_is_set_aside_and_counted(small_run: SmallRun) -> None:
    Path("corpus/train/broken.wav").write_bytes(b"RIFF")
    soundfile.write("corpus/train/silent.wav", np.zeros(4000), 16_000)
    assert features.main([*ARGV, "--layers=1"]) == 0
    assert "warning: 2 utterances cannot be used; the first is" in small_run.capfd.readouterr().err
    assert len(index()["utterances"]) == 12
    assert sorted(Path(row["path"]).name for row in index()["skipped"]) == ["broken.wav", "silent.wav"]


def test_a_killed_command_continues_and_computes_nothing_again(
    small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "PART_SECONDS", 1.0)
    assert features.main([*ARGV, "--format=safetensors", "--output=whole"]) == 0
    write, written = extract.write_features, []

    def killed_at_the_third(folder: Path, kind: str, part: int, values: Any) -> list[str]:
        written.append(part)
        if len(written) == 3:
            raise KeyboardInterrupt
        return write(folder, kind, part, values)

    monkeypatch.setattr(extract, "write_features", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        features.main([*ARGV, "--format=safetensors"])
    soundfile.write("corpus/dev/later.wav", np.ones(4000), 16_000)  # would move all parts
    assert not Path("features/index.json").exists()
    assert features.main([*ARGV, "--format=safetensors"]) == 0
    assert written == [0, 1, 2, 2, 3]
    assert index() == index("whole")
    for path in Path("whole").glob("*.safetensors"):
        assert path.read_bytes() == Path("features", path.name).read_bytes()
    shutil.move("teacher", "moved")
    assert features.main([*ARGV, "--format=safetensors", "--model=moved"]) == 0  # the same encoder
    assert len(written) == 5


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_do_not_mix(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch, finished: bool) -> None:
    if not finished:
        monkeypatch.setattr(extract, "write_json", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            features.main([*ARGV, "--layers=1"])
    else:
        assert features.main([*ARGV, "--layers=1"]) == 0
    assert features.main([*ARGV, "--layers=1", "--dtype=fp16"]) == 2
    assert "was made with other settings: dtype ('fp32' against 'fp16'); choose another --output" in error_of(small_run)
    assert features.main([*ARGV, "--layers=1", "--subsets=dev"]) == 2
    assert "was made with other settings: subsets" in error_of(small_run)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--layers=3"], "--layers is [3], but it must be all, or layers of the encoder, from 0 to 2"),
        (["--layers=1,1"], "--layers is [1, 1],"),
        (["--layers=x"], "argument --layers: invalid int list value: 'x'"),
        (["--dtype=fp8"], "--dtype is 'fp8', but it must be one of fp32, fp16"),
        (["--format=numpy"], "--format is 'numpy', but it must be one of npy, safetensors, hdf5; did you mean npy?"),
        (["--layer-zero=p"], "--layer-zero is 'p'"),
        (["--chunk-seconds=0"], "--chunk-seconds is 0.0, but it must be at least 1"),
        (["--workers=-1"], "--workers is -1"),
        (["--subsets=x"], "has no subset 'x'"),
        (["--subsets=x,x"], "--subsets is ['x', 'x'], but it must be different names"),
        (["--weights=nowhere.json"], "nowhere.json cannot be read"),
        (["--weights=teacher/config.json"], "--weights teacher/config.json is not a JSON list of numbers"),
        (["--weights=w.json", "--mean"], "--mean is True, but it must be left out with --weights"),
        (
            ["--weights=w.json", "--layers=0,1,2"],
            "--layers is [0, 1, 2], but it must be 2 layers, one for each of --weights",
        ),
        (["--weights=normalised.ckpt"], "normalises every layer, which is not supported"),
        (["--weights=other.ckpt"], "contains no Featurizer"),
        (["--weights=one.ckpt"], "its featurizer used a single layer"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_folder(small_run: SmallRun, argv: list[str], text: str) -> None:
    Path("w.json").write_text("[0.5, 0.5]")
    featurizer("normalised.ckpt", [0.0, 0.0], upstream_feature_normalize=True)
    torch.save({"Downstream": {}}, "other.ckpt")
    torch.save({"Featurizer": {}}, "one.ckpt")
    assert features.main([*ARGV, *argv]) == 2
    assert text in error_of(small_run)
    assert not Path("features").exists()


def test_hdf5_without_its_library_is_refused(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert features.main([*ARGV, "--format=hdf5"]) == 2
    assert "needs h5py" in error_of(small_run)


@pytest.mark.slow
def test_two_processes_share_the_work_and_write_the_same(small_run: SmallRun) -> None:
    script = [str(ROOT / "distiller" / "features.py"), *ARGV, "--layers=2"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    subprocess.run([sys.executable, *script, "--output=one"], check=True)
    result = subprocess.run([*launch, *script, "--output=two"], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("two holds the features of 12 utterances") == 1
    one, two = FeatureFolder("one"), FeatureFolder("two")
    assert list(one) == list(two)
    assert all(torch.equal(values, two[name]) for name, values in one.items())
