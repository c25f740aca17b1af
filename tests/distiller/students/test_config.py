from dataclasses import replace

import pytest
import torch

from distiller.common.strict import typed
from distiller.students.build import build_student
from distiller.students.config import SIZES, LogMelConfig, NarrowConfig, check_same_frames
from upstream.config import EncoderConfig
from upstream.cost import count_macs
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

HUBERT_BASE = EncoderConfig(
    embed_dim=768, num_heads=12, head_dim=64, attention_heads=(tuple(range(12)),) * 12, ffn_dims=(3072,) * 12
)
TINY = EncoderConfig(
    embed_dim=24, num_heads=2, head_dim=12, attention_heads=((0, 1),) * 4, ffn_dims=(32,) * 4,
    conv_layers=((8, 10, 5), *((8, 3, 2),) * 4, *((8, 2, 2),) * 2), positional_kernel=8, positional_groups=4,
)  # fmt: skip


def parameters(config: EncoderConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in SpeechEncoder(config).parameters())


@pytest.mark.parametrize(
    ("size", "count", "giga_macs"),
    [("base", 22_308_592, 20.62), ("L", 26_626_672, 22.77), ("S", 14_114_800, None), ("XS", 9_393_472, None)],
)
def test_paper_sizes(size: str, count: int, giga_macs: float | None) -> None:
    config = NarrowConfig(size=size).shape(HUBERT_BASE)
    assert parameters(config) == count
    assert config.projection is False
    if giga_macs:
        assert count_macs(config, 160_000) / 1e9 == pytest.approx(giga_macs, abs=0.01)


def test_a_student_takes_its_teachers_family_and_input_scaling() -> None:
    teacher = replace(HUBERT_BASE, family="wavlm", normalize_waveform=True)
    student = NarrowConfig(dropout=0.2, feature_dropout=0.1).shape(teacher)
    assert (student.family, student.normalize_waveform, student.num_layers) == ("wavlm", True, 12)
    assert (student.hidden_dropout, student.attention_dropout, student.activation_dropout) == (0.2, 0.2, 0.2)
    assert student.feature_dropout == 0.1


def test_from_the_teachers_lowest_layers() -> None:
    teacher = SpeechEncoder(TINY)
    student = build_student(NarrowConfig(size="teacher", layers=2, initialization="teacher"), teacher)
    assert student.config.num_layers == 2
    copied = student.state_dict()
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in copied.items())
    torch.manual_seed(0)
    fresh = build_student(NarrowConfig(size="teacher", layers=2), teacher)
    assert not torch.equal(fresh.layers[0].attention.q_proj.weight, copied["layers.0.attention.q_proj.weight"])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"size": "XL"}, "student.size is 'XL', but it must be one of base, L, S, XS, dice, bundled"),
        ({"initialization": "teacher"}, "student.size is 'base', but it must be teacher"),
        (
            {"look_ahead": 3},
            "student.attention is 'full', but it must be chunked with student.look_ahead or .left_context",
        ),
        (
            {"attention": "chunked", "look_ahead": 70_000},
            "student.look_ahead is 70000, but it must be a number",
        ),
        ({"front_end": "mel"}, "student.front_end is 'mel', but it must be one of conv, thin, logmel"),
        (
            {"front_end": "logmel", "log_mel": LogMelConfig(steps=3)},
            "student.log_mel.steps is 3, but it must be 0 with student.front_end logmel, whose input it already is",
        ),
        (
            {"front_end": "thin", "initialization": "teacher", "size": "teacher"},
            "student.front_end is 'thin', but it must be conv with student.initialization teacher",
        ),
        ({"initialization": "zero"}, "student.initialization is 'zero', but it must be one of random, teacher"),
        ({"dropout": 1.0}, r"student.dropout is 1.0"),
        ({"layers": 0}, r"student.layers is 0"),
    ],
)
def test_impossible_values(values: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        typed(NarrowConfig, values, "student")


def test_no_more_layers_than_the_teacher_has() -> None:
    with pytest.raises(UserError, match=r"student\.layers is 5, but it must be at most 4, the teacher's layers"):
        NarrowConfig(size="teacher", layers=5).shape(TINY)


def test_frames_must_be_the_teachers() -> None:
    for conv_layers in (TINY.conv_layers[:-1], ((8, 12, 5), *TINY.conv_layers[1:])):
        with pytest.raises(UserError, match="must use the same frame size and hop: "):
            check_same_frames(replace(TINY, conv_layers=conv_layers), TINY)
    for size in SIZES:
        check_same_frames(NarrowConfig(size=size).shape(HUBERT_BASE), HUBERT_BASE)


def test_front_ends_are_cheaper_and_make_huberts_frames() -> None:
    shapes = {kind: NarrowConfig(front_end=kind).shape(HUBERT_BASE) for kind in ("conv", "thin", "logmel")}  # type: ignore[arg-type]
    assert [parameters(shape) for shape in shapes.values()] == [22_308_592, 21_143_920, 20_734_880]
    assert [round(count_macs(shape, 160_000) / 1e9, 2) for shape in shapes.values()] == [20.61, 14.85, 13.08]
    for size in SIZES:
        for kind in ("thin", "logmel"):
            check_same_frames(NarrowConfig(size=size, front_end=kind).shape(HUBERT_BASE), HUBERT_BASE)
