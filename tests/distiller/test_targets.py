"""The command distiller/targets.py, and a run on its units."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from distiller import targets
from distiller.audio.batch import Batch
from distiller.codebooks import make
from distiller.codebooks.folder import UnitFolder, shard_path
from distiller.distillation.distillation_module import Distillation
from distiller.objectives.base import Term
from tests.distiller.conftest import SmallRun
from upstream.checkpoint import load
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

ARGV = (
    "corpus",
    "--subsets=train,dev",
    "--teacher=teacher",
    "--layers=1,2",
    "--units=5",
    "--device=cpu",
    "--output=units",
)
UNITS = ("objective=units", "objective.targets=units", "objective.width=8")


def test_every_frame_has_the_nearest_centroid_of_its_layer(small_run: SmallRun) -> None:
    assert targets.main([*ARGV, "--norm=frame"]) == 0
    folder, teacher = UnitFolder("units"), load(Path("teacher")).eval()
    assert folder.settings["streams"] == ["layer 1, stage 0", "layer 2, stage 0"]
    assert len(folder.units) == 12
    waveform = torch.from_numpy(soundfile.read("corpus/dev/0.wav", dtype="float32")[0])
    (name,) = (name for name in folder.units if "dev" in name and name.endswith("0.wav"))
    with torch.no_grad():
        output = teacher(waveform[None])
    for stream, (layer, centroids) in enumerate(zip((1, 2), folder.codebook(), strict=True)):
        states = torch.nn.functional.layer_norm(output.layer(layer)[0], (24,))
        expected = torch.cdist(states, centroids).argmin(dim=1)
        assert folder.units[name][:, stream].tolist() == expected.tolist()


def test_a_residual_quantiser_comes_nearer_with_each_stage(small_run: SmallRun) -> None:
    errors = []
    teacher = load(Path("teacher")).eval()
    waveform = torch.from_numpy(soundfile.read("corpus/train/0.wav", dtype="float32")[0])
    with torch.no_grad():
        states = teacher(waveform[None]).layer(2)[0]
    for stages in (1, 3):
        argv = ["--layers=2", f"--stages={stages}", f"--output=units-{stages}"]
        assert targets.main([*ARGV, *argv]) == 0
        folder = UnitFolder(f"units-{stages}")
        (name,) = (name for name in folder.units if "train" in name and name.split("/")[-1] == "0.wav")
        units = folder.units[name]
        assert units.dtype == torch.uint8
        assert units.shape == (len(states), stages)
        codes = [centroids[units[:, stage].long()] for stage, centroids in enumerate(folder.codebook())]
        errors.append(float((states - sum(codes)).square().sum()))
    assert errors[1] < errors[0]


def test_a_killed_command_continues_and_gives_the_same_units(
    small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "SHARD", 5)
    assert targets.main([*ARGV, "--output=whole"]) == 0
    write, written = make.write_shard, []

    def killed_at_the_second(path: Path, *rest: object) -> None:
        written.append(path.name)
        if len(written) == 2:
            raise UserError("killed")
        write(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(make, "write_shard", killed_at_the_second)
    assert targets.main(ARGV) == 2
    with pytest.raises(UserError, match="not complete"):
        UnitFolder("units")
    assert targets.main(ARGV) == 0
    assert written == [f"units.00000{index}.safetensors" for index in (0, 1, 1, 2)]
    for index in range(3):
        assert shard_path(Path("units"), index).read_bytes() == shard_path(Path("whole"), index).read_bytes()


def test_windows_of_long_recordings_have_units_of_their_own(small_run: SmallRun) -> None:
    Path("long").mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    for name in "ab":
        soundfile.write(f"long/{name}.wav", noise, 16_000)
    assert targets.main(["long", *ARGV[2:], "--longest=0.5", "--window-seconds=0.5"]) == 0
    assert sorted(name.split("/")[-1] for name in UnitFolder("units").units) == [
        "a.wav-0",
        "a.wav-1",
        "b.wav-0",
        "b.wav-1",
    ]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--layers=3"], "--layers is [3], but it must be layers of the teacher, from 0 to 2"),
        (["--units=1"], "--units is 1,"),
        (["--units=5000"], "--units is 5000, but it must be at most"),
        (["--norm=x"], "--norm is 'x'"),
        (["--stages=0"], "--stages is 0"),
        (["--longest=0"], "--longest is 0"),
        (["--seed=-1"], "--seed is -1"),
        (["--subsets=train,train"], "--subsets is ['train', 'train'], but it must be different names"),
    ],
)
def test_mistakes_are_one_line(small_run: SmallRun, argv: list[str], text: str) -> None:
    assert targets.main([*ARGV, *argv]) == 2
    error = small_run.capfd.readouterr().err
    assert error.startswith(f"error: {text}")
    assert len(error.splitlines()) == 1


def test_other_settings_do_not_mix_with_units_that_are_there(small_run: SmallRun) -> None:
    assert targets.main(ARGV) == 0
    assert targets.main([*ARGV, "--units=6"]) == 2
    assert "units contains units made with other settings: units (5 against 6)" in small_run.capfd.readouterr().err


@pytest.mark.slow
def test_a_run_learns_units_without_its_teacher_and_resumes_exactly(
    small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert targets.main(ARGV) == 0
    small_run.capfd.readouterr()
    small_run.completes(*UNITS, output="whole")
    calls, losses = [0], Distillation.losses

    def killed(self: Distillation, batch: Batch) -> list[Term]:
        calls[0] += self.training
        if calls[0] == 3:
            raise UserError("killed")
        return losses(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Distillation, "losses", killed)
        assert "killed" in small_run.refused(*UNITS)
    forward, ran, last = SpeechEncoder.forward, [], [0]
    with monkeypatch.context() as patched:

        def counted(self: Distillation, batch: Batch) -> list[Term]:
            terms = losses(self, batch)
            assert not any(encoder is teacher for teacher in self.teachers for encoder in ran)
            last[0] = len(ran)
            return terms

        patched.setattr(Distillation, "losses", counted)
        patched.setattr(SpeechEncoder, "forward", lambda self, *inputs: (ran.append(self), forward(self, *inputs))[1])
        small_run.completes(*UNITS)
    assert 0 < last[0] < len(ran)  # after training, the teacher runs for the table of distances
    one, other = (load_file(f"{name}/student/model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert json.loads(Path("run/inputs.json").read_text())["units"]["utterances"] == 12


def test_a_run_refuses_units_that_do_not_fit_its_corpus(small_run: SmallRun) -> None:
    assert targets.main([*ARGV, "--subsets=train", "--layers=1"]) == 0
    small_run.capfd.readouterr()
    assert "has no units in" in small_run.refused(*UNITS)
    assert "objective.targets nowhere does not exist" in small_run.refused(*UNITS, "objective.targets=nowhere")
