"""Pre-training of the embedded teacher: `python distiller/pretraining.py --output exp/teacher`.

HuBERT's masked prediction on the embedded synthetic corpus, with the synthesiser's own phone labels as targets (no
k-means units), and a speaker term on a middle layer so that the lower half keeps who speaks. Run again after an
interruption, it continues.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from lhotse.cut import Cut
from torch import Tensor, nn
from torch.nn import functional as F

from distiller.audio.batch import Batch
from distiller.audio.dataset import AudioDataset
from distiller.audio.sampler import StepBatchSampler
from distiller.corpora.corpus import hours
from distiller.objectives.base import Term
from distiller.reports.probe import CONTEXT, Probe, encoder_layers, filterbank
from distiller.synthesis.espeak import PHONES
from distiller.synthesis.splits import load_split, phone_targets, speaker_of
from distiller.training.config import OptimizerConfig, TrainerConfig
from distiller.training.loop import Training
from distiller.training.module import TrainingModule
from upstream.checkpoint import save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.extractor import frame_mask

TEACHER = EncoderConfig(
    embed_dim=192,
    num_heads=4,
    head_dim=48,
    attention_heads=(tuple(range(4)),) * 6,
    ffn_dims=(512,) * 6,
    conv_layers=((32, 10, 5), (32, 3, 2), (32, 3, 2), (48, 3, 2), (64, 3, 2), (96, 2, 2), (128, 2, 2)),
)
SPAN, STARTS = 10, 0.065  # frames of a mask, share of frames that one starts at
UNMASKED_WEIGHT = 0.5
SPEAKER_LAYER, SPEAKER_WEIGHT = 2, 0.2


class PhonePretraining(TrainingModule):
    """Cross-entropy of each frame's phone, with spans of P masked; cross-entropy of the speaker from layer 2's mean."""

    def __init__(self, encoder: SpeechEncoder, cuts: list[Cut], optimizer: OptimizerConfig, seed: int) -> None:
        super().__init__(encoder, optimizer, seed)
        self.cuts = {cut.id: cut for cut in cuts}
        self.speakers = sorted({speaker_of(cut) for cut in cuts})
        width = encoder.config.embed_dim
        self.mask = nn.Parameter(torch.empty(width).uniform_())
        self.phone_head = nn.Linear(width, len(PHONES))
        self.speaker_head = nn.Linear(width, len(self.speakers))

    def frame_lengths(self, batch: Batch) -> Tensor:
        return self.kept_student().config.frame_count(batch.lengths)

    def losses(self, batch: Batch) -> list[Term]:
        encoder = self.kept_student()
        projected, lengths = encoder.extract(batch.waveforms, batch.lengths)
        valid = frame_mask(lengths, projected.shape[1], projected.device)  # (batch, frame)
        masked = span_mask(valid, SPAN, STARTS)
        output = encoder.contextualize(torch.where(masked[..., None], self.mask, projected), lengths)
        targets = torch.full(valid.shape, -100, device=valid.device)
        for row, (name, frames) in enumerate(zip(batch.ids, lengths.tolist(), strict=True)):
            targets[row, :frames] = torch.from_numpy(phone_targets(self.cuts[name], frames)).to(targets.device)
        scores = self.phone_head(output.hidden_states[-1])
        phones = F.cross_entropy(scores.transpose(1, 2), targets, reduction="none")  # (batch, frame), 0 where padded
        states = output.hidden_states[SPEAKER_LAYER] * valid[..., None]
        means = states.sum(dim=1) / lengths[:, None].to(states.device)  # (batch, channel)
        speakers = [self.speakers.index(speaker_of(self.cuts[name])) for name in batch.ids]
        speaker = F.cross_entropy(
            self.speaker_head(means), torch.tensor(speakers, device=means.device), reduction="sum"
        )
        return [
            Term("masked", (phones * masked).sum(), "frame"),
            Term("unmasked", (phones * ~masked).sum(), "frame", UNMASKED_WEIGHT),
            Term("speaker", speaker, "utterance", SPEAKER_WEIGHT),
        ]


def span_mask(valid: Tensor, span: int, starts: float) -> Tensor:
    """Random spans of valid frames, overlapping ones merged: (batch, frame) bool both ways."""
    begins = (torch.rand(valid.shape, device=valid.device) < starts).float()
    covered = F.max_pool1d(F.pad(begins, (span - 1, 0))[:, None], span, stride=1)[:, 0]
    return (covered > 0) & valid


def teacher_card(steps: int, seconds: float, hours_of_audio: float, probe: dict[str, dict[str, Any]]) -> str:
    """README.md of the teacher: what it is for, what it was trained on, how long, and what it holds."""
    teacher, stacked = probe["teacher"], probe["stacked_filterbank"]
    rows = [
        f"| F^{layer} | {phone:.1f} | {unseen:.1f} | {speaker:.1f} |"
        for layer, (phone, unseen, speaker) in enumerate(
            zip(*(teacher["layers"][key] for key in ("phone", "phone_unseen", "speaker")), strict=True), start=1
        )
    ]
    return f"""# The embedded teacher

A HuBERT of 6 layers x 192 and 2,455,680 parameters, so that `python distiller/run.py --method star` needs no
download. It is for trying the machinery, for tests and for demonstrations. It has heard synthetic speech only: it
says nothing about real speech, and no result on it says anything about the papers.

Trained by `distiller/pretraining.py`: masked prediction on {hours_of_audio:.1f} h of the embedded corpus (split
`pretrain`), {steps} steps, {seconds / 60:.0f} min on a processor shared with other work. Its targets were the
synthesiser's own phone labels ({len(PHONES)} classes every 20 ms), not k-means units, and the speaker from layer
{SPEAKER_LAYER}'s mean. Weights are stored as fp16.

Linear probe on utterances that it was not trained on, accuracy in percent. The 40 speakers of the last column are
among the 200 whose names the speaker term was trained on; "unseen" ones were heard nowhere:

| | phones | phones, unseen speakers | speakers |
|---|---|---|---|
| log-mel, stacked | {stacked["phone"]:.1f} | {stacked["phone_unseen"]:.1f} | {stacked["speaker"]:.1f} |
{chr(10).join(rows)}

Licence: Apache-2.0, as the repository. The synthesiser (libespeak-ng, GPL-3) is no part of the weights.
"""


def main() -> None:
    """Train, then write OUTPUT/teacher with its weights as fp16."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("exp/teacher"), help="folder (exp/teacher)")
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps (4000)")
    parser.add_argument("--batch-seconds", type=float, default=20.0, help="of audio in a batch (20)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (2e-3)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu or cuda (auto)")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    cuts = load_split("pretrain")
    optimizer = OptimizerConfig(lr=options.lr, weight_decay=0.01, warmup=0.08, clip=1.0)
    module = PhonePretraining(SpeechEncoder(TEACHER), list(cuts.data), optimizer, options.seed)

    def windows(rank: int, world_size: int) -> StepBatchSampler:
        return StepBatchSampler(cuts, options.batch_seconds, 10, options.seed, rank, world_size, accumulate=1)

    trainer = TrainerConfig(steps=options.steps, accelerator=options.accelerator, checkpoint_every=200)
    if Training(module, AudioDataset(cuts, options.seed), windows, trainer, options.output).fit():
        probe = {
            "stacked_filterbank": filterbank(CONTEXT),
            "teacher": encoder_layers(module.kept_student().cpu().eval()),
        }
        labelled = Probe.embedded(TEACHER.frame_count)
        rows = {name: labelled.run(represent, name) for name, represent in probe.items()}
        card = teacher_card(options.steps, module.progress.elapsed, hours(cuts), rows)
        save(module.kept_student(), options.output / "teacher", {"README.md": card}, dtype=torch.float16)
        print(f"wrote {options.output / 'teacher'}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
