"""The shape of an encoder: frozen, strict, to and from JSON."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import UserError, no_such, one_of, shown
from .families import FAMILIES

CONV_NORMS = ("group", "layer")
SAMPLE_RATE = 16_000
MEL_WINDOW, MEL_HOP = 400, 160  # window and hop of a log-mel spectrogram, in samples
FEATURE_EXTRACTOR_EPS = 1e-7  # added to a waveform's variance by the feature extractor of `transformers`
BASE_CONV_LAYERS = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)  # of Base and Large: 320 samples a frame


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that determines an encoder's shape and numbers, with an entry per layer where layers may differ.

    Raises:
        UserError: a value out of range; the message names the key, the value and the allowed ones.
    """

    embed_dim: int  # d, the width of every hidden state
    num_heads: int  # heads of the unpruned model; attention_heads indexes into them
    attention_heads: tuple[tuple[int, ...] | None, ...]  # heads of each layer; (): output bias only; None: no attention
    ffn_dims: tuple[int | None, ...]  # inner width of each layer; 0: output bias only; None: no feed-forward
    head_dim: int
    family: str = "hubert"
    conv_layers: tuple[tuple[int, int, int], ...] = BASE_CONV_LAYERS  # (channels, kernel, stride)
    unpruned_channels: tuple[int, ...] = ()  # channels that layer norms count over, before pruning; (): conv_layers'
    conv_bias: bool = False
    conv_norm: str = "group"  # "group": after the first convolution only; "layer": after each
    frame_multiple: int = 1  # frames beyond the last multiple of it are dropped (fairseq's crop_seq_to_multiple)
    feature_scale: bool = False  # the last convolution's channels have factors (folded gates)
    feature_norm: bool = True  # layer norm in front of the projection
    projection: bool = True  # linear layer from the last convolution's channels to embed_dim
    positional_kernel: int = 128
    positional_groups: int = 16
    positional_layers: int = 1  # data2vec's convolutions over frames
    layer_norm_first: bool = False  # pre-LN (Large)
    relative_buckets: int = 320  # WavLM's relative position table
    relative_max_distance: int = 800
    mel_bins: int = 0  # of Whisper's front end, or of a log-mel front end in place of convolutions
    max_frames: int = 0  # of Whisper's table of positions: those of the longest wav
    attends_to_padding: bool = False  # Whisper, as published: every wav is padded to max_frames, all attended to
    chunk_frames: int = 0  # frames attend within chunks of this size and to `left_frames` before; 0: to all
    left_frames: int = 0
    layer_norm_eps: float = 1e-5
    normalize_waveform: bool = False  # zero mean, unit variance over the valid samples
    normalize_eps: float = FEATURE_EXTRACTOR_EPS  # added to the variance; fairseq and torchaudio have 1e-5
    feature_dropout: float = 0.0  # after the projection
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_values(self)

    @property
    def num_layers(self) -> int:
        return len(self.attention_heads)

    @property
    def relative_position(self) -> bool:
        return FAMILIES[self.family].relative_position

    @property
    def whisper(self) -> bool:
        return FAMILIES[self.family].whisper

    @property
    def ignores_mean(self) -> bool:
        """Whether the mean of a wav has no effect: a group norm removes what it adds to each channel over time.

        It is also removed before log-mel energies, but not in streaming, where the mean of the wav is unknown.
        """
        return self.conv_norm == "group" and not self.whisper and not self.chunk_frames

    @property
    def positional_reach(self) -> int:
        """Frames before a frame that its positional convolution sees; with chunks, all taps look back."""
        return self.positional_kernel - 1 if self.chunk_frames else self.positional_kernel // 2

    @property
    def normalizes_with_other_eps(self) -> bool:
        """True if normalisation must happen in the model, because `Wav2Vec2FeatureExtractor` uses another epsilon."""
        return self.normalize_waveform and self.normalize_eps != FEATURE_EXTRACTOR_EPS

    @property
    def samples_per_frame(self) -> int:
        """Total stride of the extractor in samples (320 for all published models)."""
        return math.prod(stride for _, _, stride in self.conv_layers) * (MEL_HOP if self.mel_bins else 1)

    @property
    def min_samples(self) -> int:
        """Samples of the shortest wav with a frame: the receptive field (400 for all published models but Whisper)."""
        if self.whisper:
            return 1
        if self.mel_bins:
            return MEL_WINDOW
        samples = self.frame_multiple
        for _, kernel, stride in reversed(self.conv_layers):
            samples = (samples - 1) * stride + kernel
        return samples

    @property
    def max_samples(self) -> int:
        """Samples of the longest wav: 30 s of Whisper's; 0: no limit."""
        return self.max_frames * self.samples_per_frame

    def frame_count(self, samples: Any) -> Any:
        """Frames of `samples` samples, an int or an integer tensor. Frames are counted nowhere else.

        Whisper's are centred at every 320th sample, from the first on.
        """
        if self.whisper:
            return -(-samples // self.samples_per_frame)
        if self.mel_bins:
            return (samples - MEL_WINDOW) // self.samples_per_frame + 1
        for _, kernel, stride in self.conv_layers:
            samples = (samples - kernel) // stride + 1
        return samples if self.frame_multiple == 1 else samples - samples % self.frame_multiple

    def norm_width(self, index: int) -> int:
        """Channels that a layer norm after convolution `index` counts over: those before pruning."""
        return self.unpruned_channels[index] if self.unpruned_channels else self.conv_layers[index][0]

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Keys added in later versions are left out at their default, so earlier versions can read it."""
        later = {field.name: field.default for field in fields(self) if field.name in LATER_KEYS}
        return {key: value for key, value in asdict(self).items() if key not in later or value != later[key]}

    @classmethod
    def from_dict(cls, values: Any, source: str = "the encoder configuration") -> "EncoderConfig":
        """Build from parsed JSON.

        Raises:
            UserError: not an object, an unknown or missing key, a wrong type or value; names `source` and the key.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{source}: holds a {type(values).__name__}, but it must hold an object with keys")
        kinds: dict[str, Any] = {field.name: field.type for field in fields(cls)}
        for key in values:
            if key not in kinds:
                raise no_such(f"{source}: key {key}", key, kinds)
        missing = [key for key in REQUIRED if key not in values]
        if missing:
            raise UserError(f"{source}: missing key{'s' * (len(missing) > 1)} {', '.join(missing)}")
        try:
            return cls(**{key: _from_json(value, kinds[key]) for key, value in values.items()})
        except (UserError, OverflowError) as error:  # OverflowError: an integer too large for a float
            raise UserError(f"{source}: {error}") from None


REQUIRED = ("embed_dim", "num_heads", "attention_heads", "ffn_dims", "head_dim")
LATER_KEYS = ("positional_layers", "mel_bins", "max_frames", "attends_to_padding", "chunk_frames", "left_frames")
COUNTS = (
    "embed_dim", "num_heads", "head_dim", "positional_kernel", "positional_groups", "positional_layers",
    "relative_max_distance", "frame_multiple",
)  # fmt: skip
DROPOUTS = ("feature_dropout", "hidden_dropout", "attention_dropout", "activation_dropout")


def _from_json(value: Any, kind: Any) -> Any:
    """A value for a field of type `kind`: an integer may be a float, and lists, nested once, are tuples."""
    if isinstance(value, (list, tuple)):
        return tuple(tuple(entry) if isinstance(entry, list) else entry for entry in value)
    return float(value) if kind is float and type(value) is int else value


def _require(holds: bool, key: str, value: Any, allowed: str) -> None:
    if not holds:
        raise UserError(f"{key} is {shown(value)}, but it must be {allowed}")


def _check_values(config: EncoderConfig) -> None:
    for field in fields(config):
        kind: Any = field.type if isinstance(field.type, type) else tuple  # else it is tuple[...]
        allowed = "a list with an entry per layer" if kind is tuple else f"of type {kind.__name__}"
        value = getattr(config, field.name)
        _require(type(value) in ((int, float) if kind is float else (kind,)), field.name, value, allowed)
    _require(config.family in FAMILIES, "family", config.family, one_of(config.family, FAMILIES))
    _require(config.conv_norm in CONV_NORMS, "conv_norm", config.conv_norm, one_of(config.conv_norm, CONV_NORMS))
    for key in COUNTS:
        _require(0 < getattr(config, key) <= 2**16, key, getattr(config, key), "between 1 and 65536")
    for key in ("layer_norm_eps", "normalize_eps"):
        _require(0 < getattr(config, key) < 1, key, getattr(config, key), "between 0 and 1")
    for key in DROPOUTS:
        _require(0 <= getattr(config, key) < 1, key, getattr(config, key), "a probability below 1")
    _check_convolutions(config)
    _check_layers(config)
    _check_chunks(config)
    if config.whisper:
        _check_whisper(config)
        return
    for key, without in (("max_frames", 0), ("attends_to_padding", False)):
        _require(getattr(config, key) == without, key, getattr(config, key), f"{without} except for Whisper")
    if config.mel_bins:
        _check_mel_front_end(config)
    family, layers = FAMILIES[config.family], config.positional_layers
    fits = layers <= 64 if family.positional_stack else layers == 1
    _require(fits, "positional_layers", layers, "at most 64" if family.positional_stack else f"1 for {family.title}")
    width, groups = config.embed_dim, config.positional_groups
    _require(width % groups == 0, "positional_groups", groups, f"a divisor of embed_dim ({width})")
    if config.relative_position:
        heads, buckets, distance = config.num_heads, config.relative_buckets, config.relative_max_distance
        allowed = f"embed_dim / head_dim ({width} / {config.head_dim}) for the gates of relative positions"
        _require(heads * config.head_dim == width, "num_heads", heads, allowed)
        _require(buckets >= 4 and buckets % 2 == 0, "relative_buckets", buckets, "even and at least 4")
        allowed = f"above relative_buckets / 4 ({buckets // 4})"
        _require(distance > buckets // 4, "relative_max_distance", distance, allowed)


def _check_convolutions(config: EncoderConfig) -> None:
    _require(bool(config.conv_layers), "conv_layers", config.conv_layers, "a list of at least one convolution")
    for index, layer in enumerate(config.conv_layers):
        fits = isinstance(layer, tuple) and len(layer) == 3
        fits = fits and all(type(number) is int and 0 < number <= 2**16 for number in layer)
        _require(fits, f"conv_layers[{index}]", layer, "(channels, kernel, stride), each from 1 to 65536")
    channels, unpruned = [channels for channels, _, _ in config.conv_layers], config.unpruned_channels
    allowed = f"true, since the last convolution's {channels[-1]} channels are not embed_dim ({config.embed_dim})"
    _require(config.projection or channels[-1] == config.embed_dim, "projection", config.projection, allowed)
    if unpruned:
        fits = len(unpruned) == len(channels) and all(
            type(before) is int and now <= before <= 2**16 for now, before in zip(channels, unpruned, strict=True)
        )
        allowed = f"a list of channel counts, none below those of conv_layers {channels}"
        _require(fits, "unpruned_channels", unpruned, allowed)
        fits = config.projection or unpruned[-1] == channels[-1]
        _require(fits, "unpruned_channels", unpruned, f"a list that ends in {channels[-1]} when projection is false")


def _check_chunks(config: EncoderConfig) -> None:
    """A chunked encoder may not depend on anything known only at the end of a wav."""
    for key in ("chunk_frames", "left_frames"):
        _require(0 <= getattr(config, key) <= 2**16, key, getattr(config, key), "between 0 and 65536")
    if config.chunk_frames:
        only = {"normalize_waveform": False, "frame_multiple": 1, "whisper": False}
        stacked = FAMILIES[config.family].positional_stack
        _require(not stacked, "family", config.family, "one with a single positional convolution, with chunk_frames")
        for key, value in only.items():
            _require(getattr(config, key) == value, key, getattr(config, key), f"{value} with chunk_frames")


def _check_mel_front_end(config: EncoderConfig) -> None:
    """One convolution over three log-mel columns, with stride 2."""
    channels, bins = config.conv_layers[-1][0], config.mel_bins
    _require(0 < bins <= 1024, "mel_bins", bins, "between 0 and 1024")
    layers = ((channels, 3, 2),)
    _require(config.conv_layers == layers, "conv_layers", config.conv_layers, f"{layers} with mel_bins")
    for key, value in {"feature_scale": False, "unpruned_channels": (), "frame_multiple": 1, "conv_bias": True}.items():
        _require(getattr(config, key) == value, key, getattr(config, key), f"{value} with mel_bins")


def _check_whisper(config: EncoderConfig) -> None:
    """Whisper's front end: convolutions of three taps over log-mel columns, the second with stride 2."""
    width = config.embed_dim
    for key, most in (("mel_bins", 1024), ("max_frames", 2**16)):
        _require(0 < getattr(config, key) <= most, key, getattr(config, key), f"between 1 and {most}")
    layers = ((width, 3, 1), (width, 3, 2))
    _require(config.conv_layers == layers, "conv_layers", config.conv_layers, f"{layers} with a log-mel front end")
    only = {"projection": False, "feature_norm": False, "normalize_waveform": False, "conv_bias": True}
    only |= {"layer_norm_first": True, "feature_scale": False, "unpruned_channels": (), "frame_multiple": 1}
    for key, value in only.items():
        _require(getattr(config, key) == value, key, getattr(config, key), f"{value} with a log-mel front end")


def _check_layers(config: EncoderConfig) -> None:
    layers = len(config.attention_heads)
    _require(0 < layers <= 1024, "attention_heads", config.attention_heads, "a list of 1 to 1024 layers")
    for index, heads in enumerate(config.attention_heads):
        own = () if heads is None else heads
        fits = isinstance(own, tuple) and all(type(head) is int and 0 <= head < config.num_heads for head in own)
        fits = fits and list(own) == sorted(set(own))
        allowed = f"null or a rising list of heads below {config.num_heads}"
        _require(fits, f"attention_heads[{index}]", heads, allowed)
    allowed = f"a list of {layers} layers, as attention_heads is"
    _require(len(config.ffn_dims) == layers, "ffn_dims", config.ffn_dims, allowed)
    for index, width in enumerate(config.ffn_dims):
        fits = width is None or (type(width) is int and 0 <= width <= 2**20)
        _require(fits, f"ffn_dims[{index}]", width, "null or between 0 and 1048576")
