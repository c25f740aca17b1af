"""Pre-training of the bundled teacher: masks, loss terms, and the teacher that is shipped."""

import math
from pathlib import Path

import pytest
import torch

from distiller.audio.batch import Batch
from distiller.distillation.pretraining import TEACHER, PhonePretraining
from distiller.distillation.teacher import BUNDLED_TEACHER, load_teacher
from distiller.objectives.units import span_mask
from distiller.synthesis.espeak import PHONES
from distiller.synthesis.splits import load_split
from distiller.training.config import OptimizerConfig
from upstream.encoder import SpeechEncoder


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


def test_the_terms_count_every_frame_once_and_every_utterance_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SPEECH_DISTILLER_CACHE", str(tmp_path))
    cuts = load_split("validation", 3)
    torch.manual_seed(0)
    module = PhonePretraining(SpeechEncoder(TEACHER), cuts, OptimizerConfig(), seed=0)
    torch.nn.init.zeros_(module.phone_head.weight)
    torch.nn.init.zeros_(module.phone_head.bias)
    waveforms = [torch.from_numpy(cut.load_audio()[0]) for cut in cuts]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    terms = {term.name: term for term in module.losses(Batch(padded, lengths, [cut.id for cut in cuts], [], []))}
    frames = int(module.frame_lengths(Batch(padded, lengths, [], [], [])).sum())
    total = float((terms["masked"].total + terms["unmasked"].total).detach())
    assert total == pytest.approx(frames * math.log(len(PHONES)), rel=1e-5)  # uniform scores
    assert terms["masked"].total > 0
    assert terms["unmasked"].total > 0
    assert terms["speaker"].unit == "utterance"


def test_the_shipped_teacher_is_what_the_script_trains() -> None:
    teacher = load_teacher("bundled")
    assert teacher.config == TEACHER
    assert sum(parameter.numel() for parameter in teacher.parameters()) == 2_455_680
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert (BUNDLED_TEACHER / "README.md").read_text().startswith("# The bundled teacher")
