"""The augment section: off by default, strict, and its mistakes are one line before any work."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distiller.audio.batch import Batch
from distiller.distillation.distillation_module import Distillation
from distiller.objectives.base import Term
from distiller.recipes.recipe import load_recipe, to_dict
from upstream.errors import UserError


def test_it_is_off_and_then_not_in_a_recipe() -> None:
    recipe = load_recipe("star")
    assert not recipe.corpus.augment.enabled


def test_one_key_switches_an_effect_on() -> None:
    recipe = load_recipe("star", ["corpus.augment.noise.probability=0.3", "corpus.augment.noise.snr=[0, 20]"])
    assert recipe.corpus.augment.enabled
    assert to_dict(recipe)["corpus"]["augment"]["noise"]["snr"] == [0, 20]


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("noise.probability=1.5", "noise.probability is 1.5, but it must be a probability from 0 to 1"),
        (
            "noise.snr=[20,0]",
            "noise.snr is [20, 0], but it must be a list of two levels in dB from -60 to 60, the lower",
        ),
        ("noise.snr=5", "noise.snr is 5, but it must be a list"),
        ("noise.path=''", "noise.path is '', but it must be a folder, a file or null"),
        ("noises.snr=[0,1]", "noises is not a recipe key; it could be one of"),
        ("noise.folder=x", "noise.folder is not a recipe key; it could be one of"),
        ("noise=0.5", "noise is 0.5, but it must be a section with the keys probability, snr, colour, path"),
        ("speech.voices=0", "speech.voices is 0, but it must be an integer of at least 1"),
        ("reverberation.seconds=[0,1]", "reverberation.seconds is [0, 1], but it must be a list of two numbers of sec"),
        ("band.highest=[3400,9000]", "band.highest is [3400, 9000], but it must be a list of two frequencies in Hz"),
        ("band.lowest=[0,2000]", "band.lowest is [0.0, 2000.0], but it must be at most 1700, half of the lower"),
        ("telephone.codecs=[]", "telephone.codecs is [], but it must be a list of linear, mu-law, a-law, gsm"),
        ("telephone.codecs=[mp3]", "telephone.codecs is ['mp3'], but it must be a list with each entry one of linear"),
        ("gain.clip=1", "gain.clip is 1, but it must be true or false"),
        ("teacher=noisy", "teacher is 'noisy', but it must be one of clean, augmented"),
    ],
)
def test_mistakes_name_the_key_and_what_is_allowed(override: str, error: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("star", [f"corpus.augment.{override}"])
    assert str(caught.value).startswith(f"corpus.augment.{error}")


def test_folders_are_looked_for_before_anything_else(small_run) -> None:
    probable = "corpus.augment.reverberation.probability=1"
    error = small_run.refused("corpus.augment.noise.path=corpsu")
    assert error.startswith(
        "error: corpus.augment.noise.path corpsu does not exist; it could be synthetic, a folder or a"
    )
    assert "did you mean corpus?" in error
    Path("empty").mkdir()
    assert "empty holds no audio" in small_run.refused("corpus.augment.reverberation.path=empty", probable)


@pytest.mark.slow
def test_a_run_hears_the_same_after_an_interruption(small_run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with workers; what is held out stays clean."""
    effects = [f"corpus.augment.{name}.probability=0.7" for name in ("speech", "noise", "telephone", "gain")]
    Path("noises").mkdir()
    Path("noises/0.wav").write_bytes(Path("corpus/dev/0.wav").read_bytes())
    effects += ["corpus.augment.noise.path=noises"]
    small_run.completes(output="plain")
    small_run.completes(*effects, output="whole")
    heard, losses = [], Distillation.losses

    def killed(self: Distillation, batch: Batch) -> list[Term]:
        heard.append(self.training and batch.degraded is not None)
        assert self.training or batch.degraded is None
        if sum(heard) == 3:
            raise UserError("killed")
        return losses(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Distillation, "losses", killed)
        assert "killed" in small_run.refused(*effects)
    small_run.completes(*effects, "corpus.workers=2")
    plain, whole, run = (load_file(f"{name}/student/model.safetensors") for name in ("plain", "whole", "run"))
    assert all(torch.equal(whole[key], run[key]) for key in whole)
    assert not all(torch.equal(whole[key], plain[key]) for key in whole)
