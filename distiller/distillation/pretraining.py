"""Pre-training of the bundled teacher.

HuBERT's masked prediction on the synthetic corpus, with the synthesiser's phone labels as targets instead of k-means
units, and a speaker term on a middle layer so that the lower half keeps speaker information.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lhotse.cut.data import DataCut
from torch import Tensor, nn
from torch.nn import functional as F

from distiller.audio.batch import Batch
from distiller.audio.dataset import AudioDataset
from distiller.audio.decoding import Decoder
from distiller.audio.sampler import StepBatchSampler
from distiller.corpora.corpus import hours
from distiller.objectives.base import Term
from distiller.objectives.units import span_mask
from distiller.probes.phones import Probe
from distiller.probes.representations import CONTEXT, encoder_layers, filterbank
from distiller.synthesis.espeak import PHONES
from distiller.synthesis.splits import load_split, phone_targets, speaker_of
from distiller.training.config import OptimizerConfig, TrainerConfig
from distiller.training.loop import Training
from distiller.training.module import TrainingModule
from upstream.checkpoint import save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
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
SPEAKER_LAYER, SPEAKER_WEIGHT, UNMASKED_WEIGHT = 2, 0.2, 0.5


class PhonePretraining(TrainingModule):
    """Cross-entropy of each frame's phone, with spans of P masked, and of the speaker, from the mean of layer 2."""

    def __init__(self, encoder: SpeechEncoder, cuts: list[DataCut], optimizer: OptimizerConfig, seed: int) -> None:
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
        scores = self.phone_head(output.hidden_states[-1]).transpose(1, 2)
        phones = F.cross_entropy(scores, targets, reduction="none")  # (batch, frame), 0 where padded
        states = output.hidden_states[SPEAKER_LAYER] * valid[..., None]
        means = states.sum(dim=1) / lengths[:, None].to(states.device)  # (batch, channel)
        speakers = torch.tensor([self.speakers.index(speaker_of(self.cuts[name])) for name in batch.ids])
        speaker = F.cross_entropy(self.speaker_head(means), speakers.to(means.device), reduction="sum")
        return [
            Term("masked", (phones * masked).sum(), "frame"),
            Term("unmasked", (phones * ~masked).sum(), "frame", UNMASKED_WEIGHT),
            Term("speaker", speaker, "utterance", SPEAKER_WEIGHT),
        ]


def teacher_card(steps: int, seconds: float, hours_of_audio: float, probe: dict[str, dict[str, Any]]) -> str:
    """README.md of the teacher: purpose, training, and probe accuracies."""
    teacher, stacked = probe["teacher"], probe["stacked_filterbank"]
    rows = [
        f"| F^{layer} | {phone:.1f} | {unseen:.1f} | {speaker:.1f} |"
        for layer, (phone, unseen, speaker) in enumerate(
            zip(*(teacher["layers"][key] for key in ("phone", "phone_unseen", "speaker")), strict=True), start=1
        )
    ]
    return f"""# The bundled teacher

A HuBERT of 6 layers x 192 and 2,455,680 parameters, so that `python distiller/run.py --method star` needs no
download. It is meant for trying out the pipeline, for tests and for demonstrations. It was trained on synthetic speech
only: results with it say nothing about real speech or about the papers.

Trained by `distiller/pretraining.py`: masked prediction on {hours_of_audio:.1f} h of the synthetic corpus (split
`pretrain`), {steps} steps, {seconds / 60:.0f} min on a processor shared with other work. Its targets were the
synthesiser's phone labels ({len(PHONES)} classes every 20 ms), not k-means units, and the speaker from the mean of
layer {SPEAKER_LAYER}. Weights are stored as fp16.

Linear probe on utterances that it was not trained on, accuracy in percent. The 40 speakers of the last column are
among the 200 whose names the speaker term was trained on; "unseen" ones did not occur in training:

| | phones | phones, unseen speakers | speakers |
|---|---|---|---|
| log-mel, stacked | {stacked["phone"]:.1f} | {stacked["phone_unseen"]:.1f} | {stacked["speaker"]:.1f} |
{chr(10).join(rows)}

Licence: Apache-2.0, as the repository. The synthesiser (libespeak-ng, GPL-3) is not part of the weights.
"""


def pretrain(output: Path, steps: int, batch_seconds: float, lr: float, seed: int, accelerator: str) -> None:
    """Train, then write OUTPUT/teacher with its weights as fp16; continues an interrupted run.

    Args:
        batch_seconds: of audio in a batch.
        lr: peak learning rate.
        accelerator: as trainer.accelerator.
    """
    torch.manual_seed(seed)
    cuts = load_split("pretrain")
    optimizer = OptimizerConfig(lr=lr, weight_decay=0.01, warmup=0.08, clip=1.0)
    module = PhonePretraining(SpeechEncoder(TEACHER), cuts, optimizer, seed)
    sampler = partial(StepBatchSampler, cuts, batch_seconds, 10, seed, accumulate=1)
    trainer = TrainerConfig(steps=steps, accelerator=accelerator, checkpoint_every=200)  # type: ignore[arg-type]
    dataset = AudioDataset(cuts, Decoder(TEACHER.min_samples), seed)
    if Training(module, dataset, sampler, trainer, output).fit():
        labelled = Probe.synthetic(TEACHER.frame_count)
        compared = {"stacked_filterbank": filterbank(CONTEXT), "teacher": encoder_layers(module.kept_student().eval())}
        rows = {name: labelled.run(represent, name) for name, represent in compared.items()}
        card = teacher_card(steps, module.progress.elapsed, hours(cuts), rows)
        save(module.kept_student(), output / "teacher", {"README.md": card}, dtype=torch.float16)
        print(f"wrote {output / 'teacher'}")
