"""The s3prl upstream: a list of wavs in, hidden states out."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .checkpoint import load
from .encoder import EncoderOutput
from .errors import UserError, no_such, one_of, shown
from .extractor import normalize_waveforms
from .formats.files import read_yaml

OPTIONS = {
    # exposed states: F^1..F^L as STaR's authors do, with P in front as DPHuBERT's do, or P and F^0..F^L
    "states": ("layers", "projected", "all"),
    # group norm over an utterance's own frames, or over the padded batch as in the published features
    "padding": ("invariant", "reference"),
}


class UpstreamExpert(nn.Module):
    """A `SpeechEncoder` with s3prl's upstream interface.

    Args:
        ckpt: as in `checkpoint.load`.
        model_config: the configuration file of a checkpoint that does not contain it (STaR's YAML), or options as text
            (`states=all,padding=reference`, for s3prl's `-g`), or both with a comma between.
        states: "layers" (F^1..F^L), "projected" (P, F^1..F^L) or "all" (P, F^0..F^L).
        padding: "invariant": a wav's features do not depend on its batch, and padded frames repeat its last valid
            one; "reference": the published features, whose group norm averages over the padding.
        kwargs: further options of s3prl's runner; `refresh` is accepted and ignored.

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
            last_hidden_state: (batch, frame, channel), after the final norm in pre-LN models.
            A wav of n samples has (n - 400) // 320 + 1 valid frames; s3prl cuts off the others except one.

        Raises:
            UserError: a wav that is not 1-D.
        """
        if not wavs or any(wav.dim() != 1 for wav in wavs):
            shapes = [tuple(wav.shape) for wav in wavs][:3]
            raise UserError(f"wavs have shapes {shapes}, but they must be 1-D tensors of samples")
        minimum = self.encoder.config.min_samples
        lengths = torch.tensor([max(len(wav), minimum) for wav in wavs])
        dtype = next(self.encoder.parameters()).dtype
        waveforms = pad_sequence([wav.to(dtype) for wav in wavs], batch_first=True)  # (batch, sample)
        waveforms = nn.functional.pad(waveforms, (0, max(minimum - waveforms.shape[1], 0)))
        output = self._encode(waveforms, lengths)
        front = {"layers": [], "projected": [output.projected], "all": [output.projected, output.hidden_states[0]]}
        states = [*front[self.states], *output.hidden_states[1:], output.last_hidden_state]
        if self.padding == "invariant" and int(lengths.min()) < waveforms.shape[1]:
            states = _repeat_last_frame(states, output)
        return {"hidden_states": states[:-1], "last_hidden_state": states[-1]}

    def _encode(self, waveforms: Tensor, lengths: Tensor) -> EncoderOutput:
        encoder = self.encoder
        if self.padding == "invariant":
            return encoder(waveforms, lengths)
        if encoder.config.normalize_waveform:
            waveforms = normalize_waveforms(waveforms, lengths, encoder.config.normalize_eps)
        features = encoder.feature_extractor(waveforms, None)  # whose group norm takes every frame for a valid one
        projected = encoder.feature_projection(features)
        return encoder.contextualize(projected, encoder.config.frame_count(lengths))


def _repeat_last_frame(states: list[Tensor], output: EncoderOutput) -> list[Tensor]:
    """States (batch, frame, channel) with each padded frame replaced by the wav's last valid one.

    For most lengths s3prl counts a frame too many, and so reads one frame of padding.
    """
    frames = torch.arange(output.projected.shape[1])
    source = torch.minimum(frames, output.frame_lengths[:, None] - 1).to(output.projected.device)  # (batch, frame)
    return [state.gather(1, source[..., None].expand_as(state)) for state in states]


def parse_model_config(model_config: str | Path | None) -> tuple[Path | None, dict[str, str]]:
    """Split s3prl's only configuration argument into a checkpoint's configuration file and our options.

    Raises:
        UserError: neither a file nor options, or a file that is not a small YAML mapping of plain data.
    """
    configuration, options = None, {}
    for part in str(model_config or "").split(","):
        key, equals, value = part.strip().partition("=")
        path = Path(part.strip())
        if os.path.isfile(path):  # False for a name that no file can have
            values = read_yaml(path)
            if values and set(values) <= set(OPTIONS):  # options in a file; s3prl's copy of it works too
                options.update(values)
            else:
                configuration = path
        elif equals:
            options[key.strip()] = value.strip()
        elif key:
            raise UserError(f"model_config is '{key}', but it must be a file or options such as states=all")
    return configuration, options


def _check_options(options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        if key not in OPTIONS:
            raise no_such(f"upstream option {key}", key, OPTIONS)
        if value not in OPTIONS[key]:
            text = f"{value:.80}" if isinstance(value, str) else shown(value)
            raise UserError(f"upstream option {key} is {text}, but it must be {one_of(value, OPTIONS[key])}")
