"""The CTC loss by hand, and which parameters move when and how fast."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from distiller.audio.batch import Batch, StepBatch
from distiller.finetuning.config import EncoderTuning, FineTuning, resolve
from distiller.finetuning.log_mel import LogMel
from distiller.finetuning.module import CTC
from distiller.finetuning.recognizer import Recognizer
from distiller.finetuning.vocabulary import Vocabulary
from distiller.training.config import OptimizerConfig
from distiller.training.step import optimiser_step
from tests.distiller.conftest import TEACHER
from tests.distiller.training.test_module import one_step
from upstream.encoder import SpeechEncoder

VOCABULARY = Vocabulary(["<pad>", "|", "A", "B"])
TARGETS = {"0": [2, 1, 3], "1": [2], "2": [3, 3]}


def recipe(**encoder: Any) -> FineTuning:
    plain = resolve("ctc", "bundled", "synthetic", ["head.dropout=0", "optimizer.clip=0"])
    return replace(plain, encoder=EncoderTuning(**encoder))


def module(**encoder: Any) -> CTC:
    torch.manual_seed(0)
    return CTC(Recognizer(SpeechEncoder(TEACHER), VOCABULARY), TARGETS, recipe(**encoder)).train()


def batch(lengths: list[int], extra: int = 0) -> Batch:
    random = torch.Generator().manual_seed(0)
    waveforms = torch.zeros(len(lengths), max(lengths) + extra)
    for row, length in enumerate(lengths):
        waveforms[row, :length] = 0.1 * torch.randn(length, generator=random)
    return Batch(waveforms, torch.tensor(lengths), [str(n) for n in range(len(lengths))], ["x.wav"] * len(lengths), [])


def test_the_loss_of_two_frames_by_hand() -> None:
    """Of the text A: the alignments A_, _A and AA."""
    ctc = module()
    with torch.no_grad():
        ctc.recognizer.head.weight.zero_()
        ctc.recognizer.head.bias.copy_(torch.tensor([0.5, 0.1, 0.3, 0.1]).log())
    audio = replace(batch([720]), ids=["1"])  # floor((720 - 400) / 320) + 1 = 2 frames
    (term,) = ctc.losses(audio)
    assert ctc.frame_lengths(audio).tolist() == [2]
    assert float(term.total.detach()) == pytest.approx(-math.log(0.3 * 0.5 + 0.5 * 0.3 + 0.3 * 0.3), rel=1e-5)


def test_neither_padding_nor_the_batch_changes_the_loss() -> None:
    ctc, lengths = module(frozen=0.0), [4000, 2500, 3300]
    totals = [float(ctc.losses(batch(lengths, extra))[0].total.detach()) for extra in (0, 1600)]
    whole = batch(lengths)
    alone = [
        Batch(whole.waveforms[row : row + 1, :length], torch.tensor([length]), [str(row)], ["x.wav"], [])
        for row, length in enumerate(lengths)
    ]
    totals.append(sum(float(ctc.losses(one)[0].total.detach()) for one in alone))
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-5)


def test_the_last_copies_of_an_epoch_have_their_originals_text() -> None:
    ctc, audio = module(), batch([4000])
    renamed = replace(audio, ids=["0_dup0"])
    assert float(ctc.losses(renamed)[0].total.detach()) == float(ctc.losses(audio)[0].total.detach())


def test_learning_rates_fall_from_the_head_down() -> None:
    """TEACHER has two layers; what comes before them counts as layer 0. Biases and norms have no weight decay."""
    ctc = module(lr_scale=0.5, layer_decay=0.1)
    ctc.optimizer_config = OptimizerConfig(lr=1.0, weight_decay=0.25)
    ctc.steps = 100
    adamw = ctc.optimizer()
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in adamw.param_groups for p in group["params"]}
    named = dict(ctc.student.named_parameters())
    expected = {
        "head.weight": (1.0, 0.25), "head.bias": (1.0, 0.0),
        "encoder.layers.1.feed_forward.output.weight": (0.5, 0.25),
        "encoder.layers.0.feed_forward.output.weight": (0.05, 0.25),
        "encoder.layers.0.attention_norm.weight": (0.05, 0.0),
        "encoder.feature_projection.projection.weight": (0.005, 0.25), "encoder.layer_norm.bias": (0.005, 0.0),
    }  # fmt: skip
    assert {name: pytest.approx(rates[id(named[name])]) for name in expected} == expected
    assert {group["first_step"] for group in adamw.param_groups[2:]} == {10}
    extractor = {id(p) for p in ctc.recognizer.encoder.feature_extractor.parameters()}
    assert not extractor & rates.keys()
    assert len(rates) == len(named) - len(extractor)


def test_after_a_pre_ln_encoder_the_norm_learns_as_its_last_layer() -> None:
    encoder = SpeechEncoder(replace(TEACHER, layer_norm_first=True))
    ctc = CTC(Recognizer(encoder, VOCABULARY), TARGETS, recipe(layer_decay=0.5))
    rates = {id(p): group["lr"] for group in ctc.special_groups() for p in group["params"]}
    assert rates[id(encoder.layer_norm.weight)] == rates[id(encoder.layers[1].attention_norm.weight)]


def moved(ctc: CTC, before: dict[str, Tensor]) -> set[str]:
    """The parts of the recogniser that an optimiser step has changed."""
    state = ctc.student.state_dict()
    names = {name for name in state if not torch.equal(state[name], before[name])}
    return {name.split(".")[0] if name.startswith("head") else name.split(".")[1] for name in names}


def steps(ctc: CTC, number: int) -> list[set[str]]:
    """What each of so many steps moves."""
    from lightning.fabric import Fabric
    from torch.optim.lr_scheduler import LambdaLR

    ctc.steps = number
    fabric = Fabric(accelerator="cpu")
    network, adamw = fabric.setup_module(ctc), ctc.optimizer()
    optimizer, scheduler = fabric.setup_optimizers(adamw), LambdaLR(adamw, lambda step: 1.0)
    found = []
    for index in range(number):
        before = copy.deepcopy(ctc.student.state_dict())
        optimiser_step(fabric, network, optimizer, scheduler, StepBatch([batch([4000, 2500])], 0, index))
        found.append(moved(ctc, before))
    return found


WITHOUT_EXTRACTOR = {"head", "layers", "feature_projection", "positional", "layer_norm"}


@pytest.mark.parametrize(
    ("settings", "later"),
    [
        ({}, WITHOUT_EXTRACTOR),
        ({"train_extractor": True}, WITHOUT_EXTRACTOR | {"feature_extractor"}),
        ({"mask_starts": 0.2, "mask_span": 2}, WITHOUT_EXTRACTOR),
    ],
)
def test_the_head_is_trained_first_and_then_the_encoder(settings: dict[str, Any], later: set[str]) -> None:
    assert steps(module(frozen=0.5, **settings), 4) == [{"head"}, {"head"}, later, later]


def test_a_frozen_encoder_never_moves() -> None:
    assert steps(module(frozen=1.0), 3) == [{"head"}] * 3


def test_a_frozen_step_gives_every_parameter_a_gradient_for_ddp_and_the_head_its_own() -> None:
    first, unfrozen = module(frozen=0.5), module(frozen=0.0)
    first.steps = unfrozen.steps = 2
    (frozen_term,), (term,) = first.losses(batch([4000])), unfrozen.losses(batch([4000]))
    frozen_term.total.backward()
    term.total.backward()
    ours, theirs = dict(first.named_parameters()), dict(unfrozen.named_parameters())
    for name, parameter in ours.items():
        assert (parameter.grad is not None) == parameter.requires_grad
        if name.startswith("student.head"):
            torch.testing.assert_close(parameter.grad, theirs[name].grad)
        elif parameter.grad is not None:
            assert not parameter.grad.any()


def test_masked_frames_are_those_of_the_mask_in_training_only() -> None:
    ctc = module(frozen=0.0, mask_starts=1.0)  # all of them: the audio does not matter
    audio = batch([4000])
    other = replace(audio, waveforms=audio.waveforms.flip(1))
    totals = [float(ctc.losses(one)[0].total.detach()) for one in (audio, other)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)
    ctc.eval()
    totals = [float(ctc.losses(one)[0].total.detach()) for one in (audio, other)]
    assert totals[0] != pytest.approx(totals[1], rel=1e-6)


def test_log_mel_energies_have_no_parameter_and_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    ctc = CTC(Recognizer(LogMel(), VOCABULARY), TARGETS, recipe()).train()
    assert [name for name, _ in ctc.named_parameters()] == ["student.head.weight", "student.head.bias"]
    audio = batch([4000, 2500, 3300])
    logits, lengths = ctc.recognizer(audio.waveforms, audio.lengths)
    assert lengths.tolist() == [12, 7, 10]
    for row, length in enumerate(audio.lengths.tolist()):
        alone, _ = ctc.recognizer(audio.waveforms[row, None, :length])
        torch.testing.assert_close(alone[0], logits[row, : lengths[row]], rtol=1e-4, atol=1e-5)
    quiet, _ = ctc.recognizer(0.5 * audio.waveforms[:1])
    torch.testing.assert_close(quiet[0], logits[0], rtol=0, atol=0.05)  # normalised; but for the floor of energies


def test_gradients_of_accumulated_batches_are_those_of_one() -> None:
    lengths = [4000, 2500, 3300]
    whole = batch(lengths)
    parts = [
        Batch(whole.waveforms[rows], whole.lengths[rows], whole.ids[rows], whole.paths[rows], [])
        for rows in (slice(None, 1), slice(1, None))
    ]
    expected, actual = (one_step(module(frozen=0.0), batches) for batches in ([whole], parts))  # type: ignore[arg-type]
    assert expected
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-3, atol=1e-6)
