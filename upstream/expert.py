"""The s3prl upstream: a list of wavs in, hidden states out."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import load
from .chunked import encode
from .config import SAMPLE_RATE
from .encoder import EncoderOutput
from .errors import UserError, no_such, one_of, require, shown
from .formats.files import read_yaml
from .onnx_encoder import SUFFIX, OnnxEncoder
from .waveforms import as_batch, normalize_waveforms

OPTIONS = {
    # exposed states: F^1..F^L as STaR's authors do, with P in front as DPHuBERT's do, or P and F^0..F^L
    "states": ("layers", "projected", "all"),
    # group norm over an utterance's own frames, or over the padded batch as in the published features
    "padding": ("invariant", "reference"),
    "chunk_seconds": (),  # a positive number
}


class UpstreamExpert(nn.Module):
    """A `SpeechEncoder` with s3prl's upstream interface.

    Args:
        ckpt: as in `checkpoint.load`, or an ONNX file of a student (`onnx_encoder`), which has `states` "layers" only.
        model_config: the configuration file of a checkpoint that does not contain it (STaR's YAML), or options as text
            (`states=all,padding=reference`, for s3prl's `-g`), or both with a comma between.
        states: "layers" (F^1..F^L), "projected" (P, F^1..F^L) or "all" (P, F^0..F^L).
        padding: "invariant": a wav's features do not depend on its batch, and padded frames repeat its last valid
            one; "reference": the published features, whose group norm averages over the padding.
        chunk_seconds: longer wavs are computed in overlapping chunks of that length (30 is a good one), without
            gradients and in bounded memory, see `chunked`; None: every wav in one piece.
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
        chunk_seconds: float | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        configuration, options = parse_model_config(model_config)
        options = {"states": states, "padding": padding, "chunk_seconds": chunk_seconds, **options}
        _check_options(options | {key: value for key, value in kwargs.items() if key != "refresh"})
        self.name = type(self).__name__
        self.states, self.padding = options["states"], options["padding"]
        self.chunk_seconds = float(options["chunk_seconds"] or math.inf)
        self.encoder = load(ckpt, configuration) if Path(ckpt).suffix != SUFFIX else self._exported(Path(ckpt))

    def _exported(self, path: Path) -> OnnxEncoder:
        """An ONNX file in place of the encoder; it has neither P nor parts that could run alone."""
        states, padding = self.states, self.padding
        require(states == "layers", "upstream option states", states, f"layers for {path.name}, which has no P")
        require(padding == "invariant", "upstream option padding", padding, f"invariant for {path.name}")
        whole = math.isinf(self.chunk_seconds)
        require(whole, "upstream option chunk_seconds", self.chunk_seconds, f"left out for {path.name}")
        return OnnxEncoder(path)

    def get_downsample_rates(self, key: str = "hidden_states") -> int:
        """Samples per frame, the same for every key."""
        return self.encoder.config.samples_per_frame

    def forward(self, wavs: Any) -> dict[str, Any]:
        """
        Args:
            wavs: 16 kHz, of any lengths, as a list or a batch, see `as_batch`; one shorter than a frame is zero-padded
                to one.

        Returns:
            hidden_states: list of (batch, frame, channel), see `states`.
            last_hidden_state: (batch, frame, channel), after the final norm in pre-LN models.
            A wav of n samples has (n - 400) // 320 + 1 valid frames; s3prl cuts off the others except one.

        Raises:
            UserError: as `as_batch`.
        """
        minimum = self.encoder.config.min_samples
        waveforms, lengths = as_batch(wavs, None, next(self.encoder.parameters()), 1)
        waveforms = nn.functional.pad(waveforms, (0, max(minimum - waveforms.shape[1], 0)))
        lengths = lengths.clamp(min=minimum)
        output = self._encode(waveforms, lengths)
        front = {"layers": [], "projected": [output.projected], "all": [output.projected, output.hidden_states[0]]}
        states = [*front[self.states], *output.hidden_states[1:], output.last_hidden_state]
        if self.padding == "invariant" and int(lengths.min()) < waveforms.shape[1]:
            states = _repeat_last_frame(states, output)
        return {"hidden_states": states[:-1], "last_hidden_state": states[-1]}

    def _encode(self, waveforms: Tensor, lengths: Tensor) -> EncoderOutput:
        encoder = self.encoder
        if isinstance(encoder, OnnxEncoder):
            return encoder(waveforms, lengths)
        if waveforms.shape[1] > self.chunk_seconds * SAMPLE_RATE:
            return encode(encoder, waveforms, lengths, self.chunk_seconds)
        if self.padding == "invariant":
            return encoder(waveforms, lengths)
        if encoder.config.normalize_waveform:
            waveforms = normalize_waveforms(waveforms, lengths, encoder.config.normalize_eps)
        waveforms = waveforms.to(next(encoder.parameters()).dtype)
        features = encoder.feature_extractor(waveforms, None)  # its group norm treats every frame as valid
        projected = encoder.feature_projection(features)
        return encoder.contextualize(projected, encoder.config.frame_count(lengths))


def _repeat_last_frame(states: list[Tensor], output: EncoderOutput) -> list[Tensor]:
    """States (batch, frame, channel) with each padded frame replaced by the wav's last valid one.

    For most lengths s3prl counts one frame too many, and so reads one frame of padding.
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
        text = f"{value:.80}" if isinstance(value, str) else shown(value)
        if key == "chunk_seconds":
            if value is not None and not _is_positive(value):
                raise UserError(f"upstream option {key} is {text}, but it must be a positive number")
            if value is not None and options["padding"] == "reference":
                raise UserError(f"upstream option {key} is {text}, but it must be left out with padding=reference")
        elif value not in OPTIONS[key]:
            raise UserError(f"upstream option {key} is {text}, but it must be {one_of(value, OPTIONS[key])}")


def _is_positive(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and 0 < float(value) < math.inf
    except (TypeError, ValueError):
        return False
