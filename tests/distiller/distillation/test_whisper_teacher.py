"""Whisper as the teacher of runs, through the command line: what works, and what is refused in one line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from distiller import export, similarity
from distiller.audio.batch import Batch
from distiller.benchmarks.encoders import open_target
from distiller.distillation.distillation_module import Distillation
from distiller.distillation.plan import costs, teacher_shape
from distiller.objectives.registry import build
from distiller.probes.phones import Probe
from distiller.probes.representations import encoder_layers
from distiller.recipes.recipe import load_recipe
from distiller.steps.peer import Peer
from distiller.students.build import build_student
from upstream.checkpoint import load, save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

WHISPER = EncoderConfig(
    family="whisper", embed_dim=24, num_heads=2, head_dim=12, attention_heads=((0, 1),) * 3, ffn_dims=(32,) * 3,
    conv_layers=((24, 3, 1), (24, 3, 2)), conv_bias=True, feature_norm=False, projection=False, layer_norm_first=True,
    mel_bins=80, max_frames=50, attends_to_padding=True,
)  # fmt: skip
STUDENT = ("--teacher=whisper", "student.size=synthetic", "student.layers=2")


def whisper() -> SpeechEncoder:
    torch.manual_seed(0)
    return SpeechEncoder(WHISPER).eval()


@pytest.mark.parametrize(
    "objective",
    [
        ("objective.average_attention=1", "objective.last_attention=1"),
        ("objective.name=layers", "objective.layers=[0,2,3]"),
        ("objective.name=predictions", "objective.layers=[3]"),
    ],
    ids=["star", "layers", "predictions"],
)
def test_a_run_with_every_objective(objective, small_run) -> None:
    save(whisper(), "whisper")
    report, _ = small_run.completes(*STUDENT, *objective)
    assert np.isfinite(report["losses"]["held_out"]["loss"])
    student = load("run/student").config
    assert (student.family, student.whisper, student.min_samples) == ("hubert", False, 400)
    assert Path("run/distances.csv").read_text().count("\n") == 4


def test_the_loss_is_that_of_each_wav_alone() -> None:
    teacher, recipe = whisper(), load_recipe("star", ["student.size=synthetic", "student.layers=2"])
    student = build_student(recipe.student, teacher).eval()
    module = Distillation([teacher], student, build(recipe.objective, WHISPER, student.config), recipe).eval()
    lengths = torch.tensor([16000, 9001, 4000])
    assert module.frame_lengths(Batch(torch.empty(0), lengths, [], [], [])).tolist() == [49, 27, 12]
    waveforms = 0.1 * torch.randn(3, 16000) * (torch.arange(16000) < lengths[:, None])
    with torch.no_grad():
        together = [term.total for term in module.losses(Batch(waveforms, lengths, [], [], []))]
        alone = [
            torch.stack([term.total for term in module.losses(Batch(wav[None, :n], torch.tensor([n]), [], [], []))])
            for wav, n in zip(waveforms, lengths.tolist(), strict=True)
        ]
    torch.testing.assert_close(torch.stack(together), torch.stack(alone).sum(dim=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--teacher=whisper", "--method=skill"],
            "a Whisper encoder cannot be pruned, only distilled into a narrow student",
        ),
        (["--teacher=whisper"], "student.size is 'teacher', but it must be one of"),
    ],
)
def test_what_makes_no_sense_is_one_line(argv, said, small_run) -> None:
    save(whisper(), "whisper")
    drop = ["student.size=teacher"] if "--method=skill" in argv else []
    small_run.ARGV = tuple(word for word in small_run.ARGV if word not in drop)
    assert said in small_run.refused(*argv)


def test_an_utterance_longer_than_the_teacher_takes_is_one_line_before_any_step(small_run) -> None:
    save(whisper(), "whisper")
    soundfile.write("corpus/train/long.wav", 0.1 * np.random.default_rng(0).standard_normal(20000), 16_000)
    line = small_run.refused(*STUDENT)
    assert "an utterance has 1.2 s, but the teacher takes at most 1 s; corpus.max_seconds=1 splits longer ones" in line
    small_run.completes(*STUDENT, "corpus.max_seconds=1")


@pytest.mark.parametrize("to", ["transformers", "onnx", "torch-export"])
def test_it_is_not_exported(to, tmp_path, capsys) -> None:
    save(whisper(), tmp_path / "whisper")
    assert export.main([str(tmp_path / "whisper"), "--to", to, "--output", str(tmp_path / "out")]) == 2
    assert "is a Whisper encoder, which is opened as a teacher and not exported" in capsys.readouterr().err


def test_its_layers_are_compared(audio, tmp_path, capsys) -> None:
    save(whisper(), tmp_path / "whisper")
    argv = ["--teacher", str(tmp_path / "whisper"), "--corpus", str(audio), "--output", str(tmp_path / "out")]
    assert similarity.main(argv) == 0
    assert (tmp_path / "out" / "cka.csv").exists()


def test_a_probe_takes_the_frames_that_both_have() -> None:
    waveforms = [0.1 * torch.randn(length) for length in (16000, 9001)]
    examples = [(wav, torch.zeros(12 if len(wav) < 10000 else 49, dtype=torch.long), 0) for wav in waveforms]
    streamed = list(Probe({"train": examples})._stream(encoder_layers(whisper()), "train", ""))
    assert [(len(layers[0]), len(phones)) for layers, phones, _ in streamed] == [(12, 12), (49, 49)]


def test_the_plan_knows_sizes_by_name() -> None:
    lines = dict(costs(load_recipe("star", ["teacher=openai/whisper-small", "corpus.path=none", "trainer.steps=3"])))
    assert "taken to be Whisper small" in lines["teacher"]
    shape, known = teacher_shape("openai/whisper-small")
    assert (shape.embed_dim, shape.num_layers, known) == (768, 12, False)
    assert replace(shape, attention_heads=((0,),) * 12, ffn_dims=(4,) * 12).max_samples == 480_000
    assert teacher_shape("facebook/data2vec-audio-base")[0].family == "data2vec-audio"


def test_benchmarks_measure_it_and_refuse_the_rest_in_a_line(tmp_path) -> None:
    save(whisper(), tmp_path / "whisper")
    opened = open_target(str(tmp_path / "whisper"), "cpu", threads=1)
    assert opened.config == WHISPER
    assert opened.run(torch.randn(2, 8000), torch.tensor([8000, 5000])) is not None
    with pytest.raises(UserError, match="is a Whisper model, which does not accept waveforms"):
        open_target(f"transformers:{tmp_path / 'whisper'}", "cpu", threads=1)
    with pytest.raises(UserError, match="it is a Whisper encoder, which can be read but not written"):
        Peer("star", WHISPER, WHISPER)
