"""A start that fails does not occupy its output, and a run continues where its inputs have moved to."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile

from distiller.audio.decoding import Decoder
from distiller.common.files import remove
from upstream.encoder import SpeechEncoder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- a start that fails


@pytest.mark.parametrize(
    "wrong",
    [
        ["--teacher=corpus"],
        ["--corpus=silent"],
        ["objective.layers=[9]", "--method=skill", "student=narrow"],
        ["trainer.accumulate=50"],
    ],
)
def test_a_start_that_fails_leaves_nothing(wrong: list[str], small_run) -> None:
    shutil.copytree("corpus", "silent")
    for path in Path("silent").glob("*/*.wav"):
        soundfile.write(path, [0.0] * 100, 16_000)  # too short
    small_run.refused(*wrong)
    left = names(Path("run")) if Path("run").exists() else []
    assert {Path(name).name for name in left} <= {".lock", ".busy", "recipe.yaml", "skipped.csv"}
    small_run.completes()


def test_a_start_that_fails_keeps_what_is_the_users(small_run, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = ["run/notes.md", "run/corpus/mine.wav", "run/corpus/notes.csv", "run/tensorboard/notes"]

    def fail(self: SpeechEncoder, *_: object) -> None:
        for name in mine:
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text("mine")
        raise RuntimeError("a defect")

    with monkeypatch.context() as broken:
        broken.setattr(SpeechEncoder, "forward", fail)
        with pytest.raises(RuntimeError, match="a defect"):
            small_run.refused()
    small_run.completes("optimizer.lr=0.1")
    assert [Path(name).read_text() for name in mine] == ["mine"] * 4


@pytest.mark.slow
def test_a_kill_before_the_first_checkpoint_leaves_the_place_to_another_recipe(small_run) -> None:
    expected = small_run.completes("objective.scaling=none", output="other")[0]["losses"]
    small_run.completes()
    for name in ("report.json", "student", "checkpoints", "inputs.json"):  # as after a kill in the first step
        remove(Path("run", name))
    Path("run/clusters.json").write_text("of another recipe")
    assert small_run.completes("objective.scaling=none")[0]["losses"] == expected
    assert not Path("run/clusters.json").exists()


def test_the_same_start_succeeds_once_its_corpus_is_mended(small_run) -> None:
    """Nothing that the failed start has seen of the corpus is believed."""
    Path("corpus/dev").rename("dev")
    Path("corpus/dev").mkdir()
    shutil.copy("dev/0.wav", "corpus/dev/0.wav")
    Path("corpus/dev/0.wav").write_bytes(b"RIFF")
    assert "corpus.max_skipped" in small_run.refused("corpus.max_skipped=0")
    shutil.rmtree("corpus/dev")
    Path("dev").rename("corpus/dev")
    assert small_run.completes("corpus.max_skipped=0")[0]["skipped"] == 0


# --- inputs that move


@pytest.fixture
def losses(small_run) -> dict:
    """Leaves run/ as a kill after the second of three steps would; what the losses would have been."""
    report, _ = small_run.completes()
    for name in ("report.json", "student", "checkpoints/step-00000003.ckpt"):
        remove(Path("run", name))
    return report["losses"]


def test_a_run_continues_where_its_inputs_have_moved_to(small_run, losses: dict) -> None:
    Path("local").mkdir()
    for name in ("corpus", "teacher"):
        Path(name).rename(f"local/{name}")
    moved = ("--corpus=local/corpus", "--teacher=local/teacher")
    assert small_run.completes(*moved)[0]["losses"] == losses
    Path("corpus").symlink_to("local/corpus")
    Path("local/corpus").rename("elsewhere")
    Path("corpus").unlink()
    Path("corpus").symlink_to("elsewhere")  # re-pointed
    assert small_run.completes("--teacher=local/teacher")[0]["losses"] == losses  # a finished one is shown


@pytest.mark.parametrize("finished", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_other_inputs_are_refused(finished: bool, small_run, losses: dict) -> None:
    if finished:
        small_run.completes()
        Path("run/report.json").rename("report.json")
    recipe = Path("run/recipe.yaml").read_bytes()
    shutil.copytree("corpus", "other")
    Path("other/train/3.wav").unlink()
    line = small_run.refused("--corpus=other")
    assert "run was made with another corpus: utterances (12 against 11); change corpus.path" in line
    shutil.copy("corpus/train/4.wav", "other/train/3.wav")
    assert "another corpus: hours (" in (line := small_run.refused("--corpus=other")) or "ids_and_durations" in line
    shutil.copytree("teacher", "another")
    (weights := Path("another/model.safetensors")).write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert "run was made with another teacher: sha256 (" in small_run.refused("--teacher=another")
    assert Path("run/recipe.yaml").read_bytes() == recipe
    Path("run/inputs.json").write_text("")  # a run of an older version: only the path says which corpus it was
    assert "corpus.path (" in small_run.refused("--corpus=other")
    assert small_run.completes()[0]["losses"] == losses
    assert json.loads(Path("run/inputs.json").read_text())["corpus"]["utterances"] == 12


def test_nothing_is_decoded_to_recognise_a_corpus(small_run, losses: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree("corpus", "other")
    Path("other/train/3.wav").unlink()
    monkeypatch.setattr(Decoder, "decode", lambda *_: pytest.fail("decoded"))
    small_run.refused("--corpus=other")
