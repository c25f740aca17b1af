"""Calibration and the similarity script: a planted teacher, files, warnings, and one sentence per mistake."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from distiller import run
from distiller.audio.batch import Batch
from distiller.clustering.calibrate import calibrate, cluster_layers, measure, read_clusters
from distiller.common.strict import typed
from distiller.corpora.config import CorpusConfig
from distiller.objectives.config import CalibrationConfig, ClustersConfig
from distiller.objectives.registry import build
from distiller.recipes.command_line import recipe_of
from distiller.similarity import main
from upstream.checkpoint import save
from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput, SpeechEncoder
from upstream.errors import UserError
from upstream.extractor import frame_mask

CONFIG = EncoderConfig(
    embed_dim=8,
    num_heads=2,
    head_dim=4,
    attention_heads=((0, 1),) * 4,
    ffn_dims=(8,) * 4,
    conv_layers=((4, 10, 5), (4, 8, 4)),
    positional_kernel=4,
    positional_groups=2,
)
BLOCKS = [[0, 1, 2], [3, 4], [5, 6, 7, 8]]


class Planted(nn.Module):
    """A teacher whose layers are views of three unrelated signals, one per block, padded frames full of NaN."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.config = EncoderConfig(
            embed_dim=width,
            num_heads=1,
            head_dim=width,
            attention_heads=((0,),) * 8,
            ffn_dims=(4,) * 8,
            conv_layers=((1, 1, 1),),
            positional_groups=1,
        )
        generator = torch.Generator().manual_seed(0)
        mix = torch.randn(9, width, width, generator=generator)
        self.views = nn.Parameter(torch.linalg.qr(mix)[0] + 0.1 * torch.randn(mix.shape, generator=generator))

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> EncoderOutput:
        generator = torch.Generator().manual_seed(int(waveforms[0, 0] * 1000))
        signals = torch.randn(3, *waveforms.shape, self.config.embed_dim, generator=generator)
        states = []
        for block, layers in enumerate(BLOCKS):
            states += [signals[block] @ self.views[layer] + 3.0 for layer in layers]
        padding = ~frame_mask(lengths, waveforms.shape[1])
        states = [state.masked_fill(padding[..., None], float("nan")) for state in states]
        nothing = torch.full_like(states[0], float("nan"))
        return EncoderOutput(states[0], [nothing, *states[1:]], states[-1], lengths)


def planted_batches(count: int = 4, samples: int = 300):
    def load(index: int) -> Batch:
        lengths = torch.tensor([samples, samples // 2])
        return Batch(torch.full((2, samples), index / 10.0), lengths, ["a", "b"], ["", ""], [])

    return [lambda index=index: load(index) for index in range(count)]


def test_a_planted_teacher_is_recovered():
    similarity = measure(ClustersConfig(), Planted(), planted_batches())
    assert similarity.layers == list(range(9))
    assert similarity.calibration["frames"] == 4 * (60 + 30)
    inside = np.zeros((9, 9), dtype=bool)
    for block in BLOCKS:
        inside[np.ix_(block, block)] = True
    assert similarity.cka[inside].min() > 0.8
    assert similarity.cka[~inside].max() < 0.2


def test_layers_and_what_layer_zero_is():
    similarity = measure(ClustersConfig(layers=[3, 1]), Planted(), planted_batches())
    assert similarity.layers == [1, 3]
    assert similarity.cka.shape == (2, 2)
    with pytest.raises(UserError, match="constant or not finite"):
        measure(ClustersConfig(layer_zero="transformer_input"), Planted(), planted_batches())  # the planted F^0 is NaN
    with pytest.raises(UserError, match=r"objective.layers is \[9\]"):
        measure(ClustersConfig(layers=[9]), Planted(), planted_batches())


def test_few_frames_warn_and_fewer_are_refused():
    plain, debiased = (ClustersConfig(calibration=CalibrationConfig(debiased=debiased)) for debiased in (False, True))
    with pytest.warns(UserWarning, match="90 frames, fewer than 20 for each of the teacher's 8 channels"):
        measure(plain, Planted(), planted_batches(count=1))
    with pytest.raises(UserError, match="8 frames, no more than the teacher has channels"):
        measure(plain, Planted(), planted_batches(count=1, samples=25))
    similarity = measure(debiased, Planted(), planted_batches(count=1, samples=25))
    assert similarity.calibration["frames"] == 8


@pytest.mark.parametrize("debiased", [False, True])
def test_fewer_frames_than_asked_for_warn(debiased):
    asked = ClustersConfig(calibration=CalibrationConfig(frames=400, debiased=debiased))
    with pytest.warns(UserWarning, match="gives 360 frames, fewer than the 400 asked for") as caught:
        measure(asked, Planted(), planted_batches())
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="90 frames, fewer than") as caught:
        measure(asked, Planted(), planted_batches(count=1))
    assert len(caught) == 1


@pytest.mark.filterwarnings("error")
def test_as_many_frames_as_asked_for_do_not_warn():
    measure(ClustersConfig(calibration=CalibrationConfig(frames=360)), Planted(), planted_batches())
    measure(ClustersConfig(), Planted(), planted_batches())


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    generator = np.random.default_rng(0)
    for index in range(12):
        soundfile.write(folder / f"{index}.wav", 0.1 * generator.standard_normal(8000 + 400 * index), 16_000)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    encoder = SpeechEncoder(CONFIG)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    save(encoder, folder)
    return folder


def test_calibration_takes_as_much_audio_as_is_wanted(audio):
    encoder, corpus = SpeechEncoder(CONFIG), CorpusConfig(path=str(audio), batch_seconds=2.0)
    few = calibrate(ClustersConfig(calibration=CalibrationConfig(frames=200)), encoder, corpus)
    assert 200 <= few.calibration["frames"] < 400
    assert few.calibration["corpus"] == str(audio)
    again = calibrate(ClustersConfig(calibration=CalibrationConfig(frames=200)), encoder, corpus)
    np.testing.assert_array_equal(few.cka, again.cka)
    other = calibrate(ClustersConfig(calibration=CalibrationConfig(frames=200)), encoder, corpus, seed=2)
    assert not np.array_equal(few.cka, other.cka)


def test_clusters_are_found_once_and_go_into_the_objective(audio, tmp_path):
    torch.manual_seed(0)
    encoder, corpus = SpeechEncoder(CONFIG), CorpusConfig(path=str(audio), batch_seconds=2.0)
    config = ClustersConfig(count=3, target="representative")
    found = cluster_layers(config, encoder, corpus, tmp_path)
    assert len(found.clusters) == 3
    assert sorted(layer for cluster in found.clusters for layer in cluster) == [0, 1, 2, 3, 4]
    written = json.loads((tmp_path / "clusters.json").read_text())
    assert {"layers", "cka", "linkage", "clusters", "calibration"} <= written.keys()
    assert written["clusters"] == found.clusters
    assert all(layer in cluster for layer, cluster in zip(found.representatives, found.clusters, strict=True))
    assert (tmp_path / "similarity.png").stat().st_size > 10_000
    with (tmp_path / "cka.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["layer", "P", "1", "2", "3", "4"]
    np.testing.assert_allclose(np.array([row[1:] for row in rows[1:]], dtype=float), written["cka"], atol=1e-8)

    again = cluster_layers(config, encoder, CorpusConfig(path="/nowhere"), tmp_path)  # nothing is read again
    assert again == found
    objective = build(found, CONFIG, CONFIG)
    assert [match.teacher for match in objective.matches] == [(layer,) for layer in found.representatives]


def test_clusters_by_hand_need_no_audio(tmp_path):
    config = ClustersConfig(clusters=[[0, 1], [2, 3, 4]])
    assert cluster_layers(config, SpeechEncoder(CONFIG), CorpusConfig(path="/nowhere"), tmp_path) is config
    assert not list(tmp_path.iterdir())


def test_another_domain_to_calibrate_on(audio, tmp_path):
    config = ClustersConfig(count=2, calibration=CalibrationConfig(corpus=str(audio)))
    elsewhere = CorpusConfig(path="/nowhere", subsets=["a"], min_seconds=0.2, max_seconds=0.3, batch_seconds=0.3)
    encoder = SpeechEncoder(CONFIG)
    assert len(cluster_layers(config, encoder, elsewhere, tmp_path).clusters) == 2  # files of 0.5 s and more
    missing = ClustersConfig(calibration=CalibrationConfig(corpus="/none"))
    with pytest.raises(UserError, match=r"^/none does not exist$"):
        calibrate(missing, encoder, elsewhere)
    with pytest.raises(UserError, match=r"^objective.calibration.corpus is '', but it must be synthetic, a folder"):
        typed(CalibrationConfig, {"corpus": ""}, "objective.calibration")


def test_a_damaged_clusters_file_is_named(tmp_path):
    (tmp_path / "clusters.json").write_text('{"layers": [0]}')
    with pytest.raises(UserError, match=r"clusters\.json cannot be read: KeyError"):
        read_clusters(tmp_path / "clusters.json", ClustersConfig())


def test_more_clusters_than_layers(audio, tmp_path):
    with pytest.raises(UserError, match="9 clusters cannot be made of 5 layers"):
        cluster_layers(ClustersConfig(count=9), SpeechEncoder(CONFIG), CorpusConfig(path=str(audio)), tmp_path)


def test_script(audio, teacher, tmp_path, capsys):
    arguments = ["--teacher", str(teacher), "--corpus", str(audio), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--clusters", "3,2"]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"cka.csv", "clusters.json", "clusters-2.json", "similarity.png", "similarity-2.png"}
    assert len(json.loads((tmp_path / "out" / "clusters.json").read_text())["clusters"]) == 3
    assert len(json.loads((tmp_path / "out" / "clusters-2.json").read_text())["clusters"]) == 2
    printed = capsys.readouterr().out
    assert "silhouette" in printed
    assert "'objective.clusters=[[" in printed


def test_the_line_to_try_next_is_skill_on_what_was_compared(audio, tiny_teacher, tmp_path, capsys):
    corpus = tmp_path / "my audio"
    corpus.symlink_to(audio)
    given = ["--teacher", str(tiny_teacher), "--corpus", str(corpus)]
    arguments = [*given, "--output", str(tmp_path / "out"), "--layers=0,1,2", "--zeroth=layer_input", "--clusters=2"]
    assert main([*arguments, "--debiased"]) == 0
    python, script, *words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert (python, script) == ("python", "distiller/run.py")
    options = run.parser().parse_intermixed_args(words)
    recipe = recipe_of(options)
    clusters = json.loads((tmp_path / "out" / "clusters.json").read_text())["clusters"]
    assert options.output == tmp_path / "out-skill"
    assert (recipe.method, recipe.teacher, recipe.corpus.path) == ("skill", str(tiny_teacher), str(corpus))
    objective = recipe.objective
    assert (objective.clusters, objective.layers) == (clusters, [0, 1, 2])
    assert objective.layer_zero == "transformer_input"
    assert objective.count == 2  # the recipe's four are more than there are layers


def test_script_finds_the_count_itself(audio, teacher, tmp_path, capsys):
    arguments = ["--teacher", str(teacher), "--corpus", str(audio), "--output", str(tmp_path), "--contiguous"]
    assert main(arguments) == 0
    count = len(json.loads((tmp_path / "clusters.json").read_text())["clusters"])
    table = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [cells[2].strip() for cells in table] == ["2", "3", "4"]
    silhouettes = [float(cells[3]) for cells in table]
    assert count == 2 + int(np.argmax(silhouettes))
    assert [cells[1].strip() for cells in table].index("*") == count - 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--clusters", "many"], "--clusters is many"),
        (["--clusters", "0"], "0 clusters cannot be made of 5 layers"),
        (["--clusters", "7"], "7 clusters cannot be made of 5 layers; between 1 and 5 can"),
        (["--linkage", "ward"], "objective.linkage is 'ward'"),
        (["--zeroth", "first"], "objective.layer_zero is 'first'"),
        (["--layers", "1,9"], "objective.layers is [1, 9]"),
        (["--stride", "0"], "objective.calibration.stride is 0"),
        (["--device", "tpu"], "--device is 'tpu'"),
        (["--device", "meta"], "--device is 'meta', on which this machine cannot compute"),
        (["--seed", "-1"], "--seed is -1, but it must be an integer from 0"),
        (["--output", "/dev/null/x"], "/dev/null/x cannot be the output: /dev/null is a file"),
        (["--teacher", "/nowhere"], "/nowhere"),
        (["--corpus", "/nowhere"], "/nowhere"),
        (["--cluster", "3"], "--cluster"),
    ],
)
def test_mistakes_are_one_line(audio, teacher, tmp_path, capsys, options, sentence):
    arguments = ["--teacher", str(teacher), "--corpus", str(audio), "--output", str(tmp_path / "out"), *options]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert sentence in printed.err
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_is_refused_before_any_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("distiller.distillation.teacher.load_teacher", lambda name: pytest.fail("it was loaded"))
    (tmp_path / "file").touch()
    assert main(["--output", str(tmp_path / "file" / "x")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/file/x cannot be the output: {tmp_path}/file is a file\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_is_one_line(number, code, teacher, monkeypatch, tmp_path, capsys):
    def interrupted(*_):
        os.kill(os.getpid(), number)
        time.sleep(2)

    monkeypatch.setattr("distiller.clustering.tree.calibrate.calibrate", interrupted)
    assert main(["--teacher", str(teacher), "--output", str(tmp_path / "out")]) == code
    assert capsys.readouterr().err == "interrupted; run the same command to start again\n"


def test_one_utterance_is_one_sentence(teacher, tmp_path, capsys):
    (tmp_path / "audio").mkdir()
    generator = np.random.default_rng(0)
    soundfile.write(tmp_path / "audio" / "a.wav", generator.standard_normal(700) * 0.1, 16_000)
    arguments = ["--teacher", str(teacher), "--corpus", str(tmp_path / "audio"), "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "frames" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [(120.0,), (110.0, 7.5)])
def test_all_of_a_corpus_is_used_however_long_its_files(seconds, tiny_teacher, tmp_path, capsys):
    (tmp_path / "audio").mkdir()
    generator = np.random.default_rng(0)
    for index, length in enumerate(seconds):
        samples = generator.standard_normal(round(16_000 * length)) * 0.1
        soundfile.write(tmp_path / "audio" / f"{index}.wav", samples, 16_000)
    arguments = ["--teacher", str(tiny_teacher), "--corpus", str(tmp_path / "audio"), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--frames=99999"]) == 0
    calibration = json.loads((tmp_path / "out" / "clusters.json").read_text())["calibration"]
    assert calibration["seconds"] == pytest.approx(sum(seconds))
    frames = calibration["frames"]
    assert capsys.readouterr().err.splitlines() == [
        f"warning: the calibration set gives {frames} frames, fewer than the 99999 asked for: there is no more audio"
    ]


def test_runs_uninstalled_from_any_directory(tmp_path):
    script = Path(__file__).parents[2] / "distiller" / "similarity.py"
    result = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0
    assert "--linkage" in result.stdout
