"""A recogniser: an encoder, a linear head on its last hidden state, and the head's vocabulary.

`upstream.checkpoint.load` opens its folder as just the encoder; it has two more files:

    config.json, model.safetensors       the encoder
    head.safetensors                     weight (token, channel) and bias
    recognizer.json                      the vocabulary
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from distiller.finetuning.log_mel import LogMel
from distiller.finetuning.vocabulary import Vocabulary
from upstream.checkpoint import CONFIG, existing_checkpoint, load, save, write_folder
from upstream.chunked import outputs
from upstream.encoder import EncoderOutput, SpeechEncoder
from upstream.errors import UserError
from upstream.extractor import FeatureExtractor

HEAD, RECOGNIZER = "head.safetensors", "recognizer.json"


class Recognizer(nn.Module):
    """Waveforms to scores of the vocabulary's tokens in every frame."""

    def __init__(self, encoder: SpeechEncoder | LogMel, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.encoder, self.vocabulary = encoder, vocabulary
        self.head = nn.Linear(encoder.config.embed_dim, len(vocabulary))

    def forward(self, waveforms: Any, lengths: Any = None) -> tuple[Tensor, Tensor]:
        """As `SpeechEncoder`: waveforms and lengths -> logits (batch, frame, token), and (batch,) frames."""
        output: EncoderOutput = self.encoder(waveforms, lengths)
        return self.head(output.last_hidden_state), output.frame_lengths

    @torch.no_grad()
    def logits(self, waveform: Tensor) -> Tensor:
        """(frame, token) of a wav (sample,) of any length, in bounded memory if the encoder can run in chunks."""
        encoder = self.encoder
        if isinstance(encoder, SpeechEncoder) and isinstance(encoder.feature_extractor, FeatureExtractor):
            return torch.cat([self.head(output.last_hidden_state[0]) for output in outputs(encoder, waveform)])
        return self(waveform[None])[0][0]

    def save(self, folder: Path, files: Mapping[str, str] | None = None) -> None:
        """Write the folder atomically, with further `files`. Raises: UserError: as `upstream.checkpoint.save`."""
        head = {name: value.detach().cpu().contiguous() for name, value in self.head.state_dict().items()}
        vocabulary = json.dumps({"vocabulary": self.vocabulary.to_dict()}, indent=1, ensure_ascii=False) + "\n"
        extra: dict[str, bytes | str] = {**(files or {}), HEAD: to_safetensors(head), RECOGNIZER: vocabulary}
        if isinstance(self.encoder, SpeechEncoder):
            save(self.encoder, folder, extra)
        else:
            write_folder(folder, {**extra, CONFIG: "{}\n"})  # an empty configuration, without an encoder


def is_recognizer(path: str | Path) -> bool:
    """Whether a path is the folder of a recogniser."""
    return (Path(path) / RECOGNIZER).is_file()


def open_recognizer(path: str | Path) -> Recognizer:
    """The recogniser in a folder, in eval mode.

    Raises:
        UserError: it is not such a folder, or is damaged.
    """
    folder = existing_checkpoint(Path(path))
    if folder is None or not is_recognizer(folder):
        problem = "does not exist" if folder is None else f"is not a recogniser: it contains no {RECOGNIZER}"
        raise UserError(f"{path} {problem}; distiller/finetune.py writes OUTPUT/model")
    try:
        values = json.loads((folder / RECOGNIZER).read_text(encoding="utf-8"))
        vocabulary, head = Vocabulary.from_dict(values["vocabulary"]), load_file(folder / HEAD)
        log_mel = json.loads((folder / CONFIG).read_text()) == {}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} is damaged: {error}") from error
    recognizer = Recognizer(LogMel() if log_mel else load(folder), vocabulary)
    expected = {name: tuple(value.shape) for name, value in recognizer.head.state_dict().items()}
    if expected != (shapes := {name: tuple(value.shape) for name, value in head.items()}):
        raise UserError(f"{folder / HEAD} has {shapes}, but the vocabulary and the encoder need {expected}")
    recognizer.head.load_state_dict(head)
    return recognizer.eval()
