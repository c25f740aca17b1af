"""The s3prl upstream: a list of wavs in, hidden states out."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .checkpoint import load
from .encoder import EncoderOutput
from .errors import UserError, shown
from .extractor import normalize_waveforms
from .formats.files import read_yaml

OPTIONS = {
    # which states are exposed: F^1..F^L as STaR's authors do, with P in front as DPHuBERT's do, or P and F^0..F^L
    "states": ("layers", "projected", "all"),
    # group norm over an utterance's own frames, or over the padded batch as in the published features
    "padding": ("invariant", "reference"),
}


class UpstreamExpert(nn.Module):
    """A `SpeechEncoder` behind s3prl's upstream interface.

    Args:
        ckpt: whatever `checkpoint.load` opens.
        model_config: the configuration file of a checkpoint that keeps it apart (STaR's YAML), or options as text
            (`states=all,padding=reference`, what s3prl's `-g` can carry), or both with a comma between.
        states: "layers" (F^1..F^L), "projected" (P, F^1..F^L) or "all" (P, F^0..F^L).
        padding: "invariant": a wav's features do not depend on what it is batched with, and padded frames repeat its
            last valid one; "reference": the published features, whose group norm averages over the padding.
        kwargs: further options of s3prl's runner; `refresh` is taken and ignored.

    Raises:
        UserError: no such checkpoint, or an unknown option.
    """

    def __init__(
        self,
        ckpt: str | Path,
        model_config: str | Path | None = None,
        states: str = "projected",
        padding: str = "invariant",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        configuration, options = parse_model_config(model_config)
        options = {"states": states, "padding": padding, **options}
        _check_options(options | {key: value for key, value in kwargs.items() if key != "refresh"})
        self.name = type(self).__name__
        self.states, self.padding = options["states"], options["padding"]
        self.encoder = load(ckpt, configuration)

    def get_downsample_rates(self, key: str = "hidden_states") -> int:
        """Samples per frame, the same for every key."""
        return self.encoder.config.samples_per_frame

    def forward(self, wavs: list[Tensor]) -> dict[str, Any]:
        """
        Args:
            wavs: 1-D, 16 kHz, of any lengths; one shorter than a frame is zero-padded to one.

        Returns:
            hidden_states: list of (batch, frame, channel), see `states`.
            last_hidden_state: (batch, frame, channel), normed when the model is pre-LN.
            A wav of n samples has (n - 400) // 320 + 1 valid frames; s3prl cuts the rest off, but for one frame.

        Raises:
            UserError: a wav that is not 1-D.
        """
        if not wavs or any(wav.dim() != 1 for wav in wavs):
            shapes = [tuple(wav.shape) for wav in wavs][:3]
            raise UserError(f"wavs must be 1-D tensors of samples, not of shapes {shapes}")
        shortest = self.encoder.config.min_samples
        lengths = torch.tensor([max(len(wav), shortest) for wav in wavs])
        waveforms = pad_sequence([wav.to(self._dtype) for wav in wavs], batch_first=True)  # (batch, sample)
        waveforms = nn.functional.pad(waveforms, (0, max(shortest - waveforms.shape[1], 0)))
        output = self._encode(waveforms, lengths)
        front = {"layers": [], "projected": [output.projected], "all": [output.projected, output.hidden_states[0]]}
        hidden_states = [*front[self.states], *output.hidden_states[1:]]
        if self.padding == "invariant" and int(lengths.min()) < waveforms.shape[1]:
            hidden_states = [_repeat_last_frame(state, output) for state in hidden_states]
            output.last_hidden_state = _repeat_last_frame(output.last_hidden_state, output)
        return {"hidden_states": hidden_states, "last_hidden_state": output.last_hidden_state}

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype

    def _encode(self, waveforms: Tensor, lengths: Tensor) -> EncoderOutput:
        encoder = self.encoder
        if self.padding == "invariant":
            return encoder(waveforms, lengths)
        if encoder.config.normalize_waveform:
            waveforms = normalize_waveforms(waveforms, lengths.to(waveforms.device), encoder.config.normalize_eps)
        features = encoder.feature_extractor(waveforms, None)  # every frame is a valid one to its group norm
        projected = encoder.feature_projection(features)
        return encoder.contextualize(projected, encoder.config.frame_count(lengths))


def _repeat_last_frame(states: Tensor, output: EncoderOutput) -> Tensor:
    """(batch, frame, channel) with each padded frame replaced by the wav's last valid one.

    s3prl counts a frame more than there are for most lengths, and so reads one frame of padding.
    """
    last = (output.frame_lengths - 1).to(states.device)
    last = states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2]))  # (batch, 1, channel)
    return torch.where(output.frame_mask()[..., None], states, last)


def parse_model_config(model_config: str | Path | None) -> tuple[Path | None, dict[str, str]]:
    """Split s3prl's one configuration argument into a checkpoint's configuration file and our options.

    Raises:
        UserError: neither a file nor options, or a file that is no small YAML mapping of plain data.
    """
    configuration, options = None, {}
    for part in str(model_config or "").split(","):
        key, assigned, value = part.strip().partition("=")
        path = Path(part.strip())
        if os.path.isfile(path):  # to it, a name too long for any file is merely none
            found = _options_file(path)
            options.update(found)
            configuration = configuration if found else path
        elif assigned:
            options[key.strip()] = value.strip()
        elif key:
            raise UserError(f"model_config: '{key}' is neither a file nor an option such as states=all")
    return configuration, options


def _options_file(path: Path) -> dict[str, str]:
    """The options in a YAML file that holds nothing else (the copy that s3prl keeps of it works too)."""
    values = read_yaml(path)
    return values if values and set(values) <= set(OPTIONS) else {}


def _check_options(options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        if key not in OPTIONS:
            nearest = difflib.get_close_matches(key, OPTIONS, n=1, cutoff=0)[0]
            raise UserError(f"upstream option '{key}' is unknown; the nearest known one is '{nearest}'")
        if value not in OPTIONS[key]:
            given = f"{value:.80}" if isinstance(value, str) else shown(value)
            raise UserError(f"upstream option {key}={given}; allowed are {', '.join(OPTIONS[key])}")
