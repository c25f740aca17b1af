"""The units objective: torchaudio's HuBERT loss, masks, layers, and what it refuses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchaudio.models.wav2vec2.components import LogitGenerator

from distiller.audio.batch import Batch
from distiller.codebooks.folder import CODEBOOK, SETTINGS, VERSION, shard_path, write_shard
from distiller.common.files import write_json
from distiller.distillation.distillation_module import Distillation
from distiller.distillation.plan import costs
from distiller.objectives.base import Term
from distiller.objectives.config import UnitsObjectiveConfig
from distiller.objectives.units import UnitHead, Units, UnitTargets, span_mask
from distiller.recipes.recipe import load_recipe
from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput, SpeechEncoder
from upstream.errors import UserError

SHAPE = EncoderConfig(
    embed_dim=16,
    num_heads=2,
    head_dim=8,
    attention_heads=((0, 1),) * 2,
    ffn_dims=(32,) * 2,
    conv_layers=((8, 10, 5), (8, 3, 2), (8, 3, 2), (8, 3, 2), (8, 3, 2), (8, 2, 2), (8, 2, 2)),
    positional_kernel=8,
    positional_groups=2,
)
UNITS, FRAMES = 7, (40, 24)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Units of the utterances a and b, of one stream."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    save_file({"layer.2": torch.randn(1, UNITS, 5, generator=generator)}, tmp_path / CODEBOOK)
    write_json(tmp_path / SETTINGS, {"version": VERSION, "layers": [2], "streams": ["layer 2, stage 0"], "shards": 1})
    units = [torch.randint(UNITS, (frames, 1), generator=generator) for frames in FRAMES]
    write_shard(shard_path(tmp_path, 0), ["a", "b"], units, 1, torch.uint8)
    return tmp_path


def objective(folder: Path, **keys: Any) -> Units:
    torch.manual_seed(1)
    return Units(UnitsObjectiveConfig(targets=str(folder), width=6, **keys), SHAPE, SHAPE)


def batch() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([400 + 320 * (frames - 1) for frames in FRAMES])
    return 0.1 * torch.randn(2, int(lengths.max()), generator=torch.Generator().manual_seed(2)), lengths


def encode(
    units: Units, student: SpeechEncoder, waveforms: Tensor, lengths: Tensor, ids: Sequence[str] = ("a", "b")
) -> tuple[UnitTargets, EncoderOutput]:
    """The targets of a batch, and the student's output for it."""
    with units.watching(student, lengths, list(ids)) as targets:
        output = student(waveforms, lengths)
    return targets, output


def encoded(units: Units) -> tuple[UnitTargets, EncoderOutput]:
    torch.manual_seed(3)
    return encode(units, SpeechEncoder(SHAPE), *batch())


def terms_of(units: Units, targets: UnitTargets, output: EncoderOutput) -> list[Term]:
    return units(None, output, output.frame_mask(), targets)


@pytest.mark.parametrize("unmasked", [0.0, 0.5])
def test_the_loss_is_torchaudios_hubert_loss(folder: Path, unmasked: float) -> None:
    units = objective(folder, unmasked_weight=unmasked)
    targets, output = encoded(units)
    targets.masked[:] = False
    targets.masked[:, 5:15] = True  # as torchaudio's masks, as many in each row: the penalty's mean is theirs
    mask = output.frame_mask()
    theirs = LogitGenerator(16, UNITS, 6, False, False)
    head = units.heads[0]
    theirs.load_state_dict(
        {
            "label_embeddings": head.embeddings[0].data,
            "final_proj.weight": head.projection.weight.data,
            "final_proj.bias": head.projection.bias.data,
        }
    )
    logits = theirs(output.hidden_states[-1], targets.units[..., 0], targets.masked, mask & ~targets.masked)
    losses = [
        torch.nn.functional.cross_entropy(part, torch.zeros(len(part), dtype=torch.int64), reduction="sum")
        for part in logits
    ]
    expected = losses[0] + unmasked * losses[1] + 10.0 * targets.penalty.mean() * len(logits[0])
    terms = terms_of(units, targets, output)
    assert {term.unit for term in terms} == {"frame"}
    torch.testing.assert_close(sum(term.weight * term.total for term in terms), expected, rtol=1e-5, atol=1e-5)


def test_span_mask_covers_complete_spans_of_valid_frames_only() -> None:
    torch.manual_seed(0)
    valid = torch.ones(50, 200, dtype=torch.bool)
    valid[:, 150:] = False
    mask = span_mask(valid, span=10, starts=0.065)
    assert not mask[:, 150:].any()
    assert float(mask[:, 10:150].float().mean()) == pytest.approx(1 - (1 - 0.065) ** 10, abs=0.03)
    begins = mask[:, 1:140] & ~mask[:, :139]
    for row, frame in begins.nonzero().tolist():
        assert mask[row, frame + 1 : frame + 11].all()


def test_the_penalty_is_the_mean_square_of_the_convolutions_without_padding(folder: Path) -> None:
    torch.manual_seed(3)
    student = SpeechEncoder(SHAPE)
    targets, _ = encode(objective(folder), student, *batch())
    features, _ = student.convolve(*batch())
    expected = torch.stack([features[row, :frames].square().mean() for row, frames in enumerate(FRAMES)])
    torch.testing.assert_close(targets.penalty, expected)


def test_masked_frames_show_the_student_nothing_of_themselves(folder: Path) -> None:
    units = objective(folder, mask_probability=1.0, mask_span=1)
    output = encoded(units)[1]
    assert units.mask is not None
    torch.testing.assert_close(output.projected[0], units.mask.expand(FRAMES[0], -1))


def test_masks_are_drawn_anew_in_training_and_fixed_in_validation(folder: Path) -> None:
    units, student = objective(folder), SpeechEncoder(SHAPE)
    first, second = (encode(units, student, *batch())[0].masked for _ in range(2))
    assert not torch.equal(first, second)
    units.eval()
    first, second = (encode(units, student, *batch())[0].masked for _ in range(2))
    assert torch.equal(first, second)


def test_units_begin_in_different_directions() -> None:
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(UnitHead(4, 128, [500], 0.1).embeddings[0].detach(), dim=-1)
    assert abs(float((directions @ directions.T).mean())) < 0.02  # uniform from 0 to 1: 0.75


def test_padding_changes_nothing_without_masks(folder: Path) -> None:
    units = objective(folder, mask_probability=0.0, unmasked_weight=1.0, student_layers=[1, 2])
    student = SpeechEncoder(SHAPE).eval()
    waveforms, lengths = batch()

    def total(rows: slice, ids: list[str]) -> Tensor:
        part = waveforms[rows, : int(lengths[rows].max())]
        (term,) = terms_of(units, *encode(units, student, part, lengths[rows], ids))
        return term.total

    parts = total(slice(0, 1), ["a"]) + total(slice(1, 2), ["b"])
    torch.testing.assert_close(total(slice(0, 2), ["a", "b"]), parts)


def test_soft_targets_spread_by_distance_and_tend_to_the_hard_ones(folder: Path) -> None:
    keys = {"mask_probability": 0.0, "unmasked_weight": 1.0}
    totals = []
    for soft in (0.0, 1e-4, 10.0):
        units = objective(folder, soft=soft, **keys)
        totals.append(terms_of(units, *encoded(units))[0].total)
    torch.testing.assert_close(totals[0], totals[1])
    assert abs(totals[0] - totals[2]) > 1e-3


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["objective.mask_probability=0", "objective.unmasked_weight=0"], "objective.unmasked_weight is 0"),
        (["control=reversed"], "control is .reversed"),
        (["trainer.strategy=fsdp"], "trainer.strategy is .fsdp"),
        (["objective.targts=x"], "objective.targts"),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], text: str) -> None:
    with pytest.raises(UserError, match=text):
        load_recipe("star", ["objective=units", *overrides])


def test_frames_that_only_whisper_has_are_left_out(folder: Path) -> None:
    units = objective(folder).folder
    assert torch.equal(units.batch(["a"], [FRAMES[0] - 2], 50)[0, :38], units.units["a"][:38].long())
    with pytest.raises(UserError, match="utterance a has 40 frames of units, not 37"):
        units.batch(["a"], [FRAMES[0] - 3], 50)


def test_the_student_hears_the_degraded_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, (clean, lengths) = SpeechEncoder(SHAPE), batch()
    recipe = load_recipe("star", ["objective=units", f"objective.targets={folder}"])
    module = Distillation([SpeechEncoder(SHAPE)], student, objective(folder), recipe)
    heard, convolve = [], student.convolve
    monkeypatch.setattr(student, "convolve", lambda *inputs: (heard.append(inputs[0]), convolve(*inputs))[1])
    module.losses(Batch(clean, lengths, ["a", "b"], [], [], degraded=clean.flip(0)))
    assert torch.equal(heard[0], clean.flip(0))


def test_a_plan_says_that_the_teacher_is_not_run() -> None:
    units, star = (dict(costs(load_recipe("star", overrides))) for overrides in (["objective=units"], []))
    assert units["teacher"] == f"{star['teacher']}; no training step runs it"


def test_units_must_be_there_and_fit_the_frames(folder: Path) -> None:
    with pytest.raises(UserError, match=r"objective\.targets is not set"):
        Units(UnitsObjectiveConfig(), SHAPE, SHAPE)
    with pytest.raises(UserError, match=r"student_layers is \[3\]"):
        objective(folder, student_layers=[3])
    units = objective(folder)
    with pytest.raises(UserError, match="utterance c has no units"):
        encode(units, SpeechEncoder(SHAPE), *batch(), ["a", "c"])
    with pytest.raises(UserError, match="utterance b has 24 frames of units, not 40"):
        encode(units, SpeechEncoder(SHAPE), *batch(), ["b", "a"])
