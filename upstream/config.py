"""The shape of an encoder: frozen, strict, to and from what JSON holds."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import UserError, shown

FAMILIES = ("hubert", "wav2vec2", "wavlm")
CONV_NORMS = ("group", "layer")
SAMPLE_RATE = 16_000
UNNAMED = "the encoder configuration"  # what an error names where no file is known

# Convolutions of the Base and Large models alike: (channels, kernel, stride), 320 samples a frame.
FEATURE_EXTRACTOR_EPS = 1e-7  # what the feature extractor of `transformers` adds to a waveform's variance
BASE_CONV_LAYERS = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that decides an encoder's shape and numbers, one entry per layer where layers may differ.

    Raises:
        UserError: a value that no encoder can have; the sentence names the key, the value and what is allowed.
    """

    embed_dim: int  # d, the width of every hidden state
    num_heads: int  # heads of the unpruned model; attention_heads indexes into them
    attention_heads: tuple[tuple[int, ...] | None, ...]  # per layer the heads it has; (): output bias only; None: none
    ffn_dims: tuple[int | None, ...]  # per layer the inner width; 0: output bias only; None: no feed-forward
    head_dim: int
    family: str = "hubert"
    conv_layers: tuple[tuple[int, int, int], ...] = BASE_CONV_LAYERS  # (channels, kernel, stride)
    unpruned_channels: tuple[int, ...] = ()  # channels that layer norms still count over, as zeros; (): conv_layers'
    conv_bias: bool = False
    conv_norm: str = "group"  # "group": after the first convolution only; "layer": after each
    frame_multiple: int = 1  # frames beyond the last multiple of it are dropped (fairseq's crop_seq_to_multiple)
    feature_scale: bool = False  # a factor per channel of the last convolution (folded gates)
    feature_norm: bool = True  # layer norm in front of the projection
    projection: bool = True  # linear layer from the last convolution's channels to embed_dim
    positional_kernel: int = 128
    positional_groups: int = 16
    layer_norm_first: bool = False  # pre-LN (Large)
    relative_buckets: int = 320  # WavLM's relative position table
    relative_max_distance: int = 800
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
        return self.family == "wavlm"

    @property
    def normalizes_with_other_eps(self) -> bool:
        """Whether waveforms are normalised as no feature extractor of `transformers` does it: a model must do it."""
        return self.normalize_waveform and self.normalize_eps != FEATURE_EXTRACTOR_EPS

    @property
    def samples_per_frame(self) -> int:
        """Total stride of the extractor in samples (320 for all published models)."""
        stride = 1
        for _, _, layer_stride in self.conv_layers:
            stride *= layer_stride
        return stride

    @property
    def min_samples(self) -> int:
        """The least that gives a frame: the extractor's receptive field (400 for all published models)."""
        samples = self.frame_multiple
        for _, kernel, stride in reversed(self.conv_layers):
            samples = (samples - 1) * stride + kernel
        return samples

    def frame_count(self, samples: Any) -> Any:
        """Frames of `samples` samples (an int or an integer tensor): the one place where frames are counted."""
        for _, kernel, stride in self.conv_layers:
            samples = (samples - kernel) // stride + 1
        return samples if self.frame_multiple == 1 else samples - samples % self.frame_multiple

    def norm_width(self, index: int) -> int:
        """Channels that a layer norm behind convolution `index` counts over: those before pruning."""
        return self.unpruned_channels[index] if self.unpruned_channels else self.conv_layers[index][0]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = UNNAMED) -> "EncoderConfig":
        """Build from parsed JSON.

        Raises:
            UserError: an unknown or missing key or a value of the wrong type, naming `source` and the key.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{source}: holds a {type(values).__name__}, not an object with keys")
        known = {field.name: field for field in fields(cls)}
        for key in values:
            if key not in known:
                nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0)[0]
                raise UserError(f"{source}: unknown key '{key}'; the nearest known one is '{nearest}'")
        required = ("embed_dim", "num_heads", "attention_heads", "ffn_dims", "head_dim")
        missing = [key for key in required if key not in values]
        if missing:
            raise UserError(f"{source}: missing key{'s' * (len(missing) > 1)} {', '.join(missing)}")
        typed = {
            key: _typed(key, value, getattr(known[key].type, "__name__", ""), source) for key, value in values.items()
        }
        try:
            return cls(**typed)
        except UserError as error:
            raise UserError(str(error).replace(UNNAMED, source, 1)) from None


def _typed(key: str, value: Any, kind: str, source: str) -> Any:
    """`value` as the field's type, lists as tuples; a bool is no int here."""

    def is_int(item: Any) -> bool:
        return isinstance(item, int) and not isinstance(item, bool)

    def is_ints(item: Any) -> bool:
        return isinstance(item, Iterable) and not isinstance(item, str) and all(map(is_int, item))

    checks = {
        "int": is_int(value),
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
        "float": isinstance(value, float) or is_int(value),
    }
    if kind in checks:
        if checks[kind]:
            return float(value) if kind == "float" else value
        raise UserError(f"{source}: '{key}' is {shown(value)}, not of type {kind}")
    if isinstance(value, (list, tuple)):
        entries = [
            entry if entry is None or is_int(entry) else (tuple(entry) if is_ints(entry) else ...) for entry in value
        ]
        if ... not in entries:
            return tuple(entries)
    raise UserError(f"{source}: '{key}' is {shown(value)}, not a list with an entry per layer")


def _check_values(config: EncoderConfig) -> None:
    def require(holds: bool, key: str, allowed: str) -> None:
        if not holds:
            raise UserError(f"{UNNAMED}: {key} is {shown(getattr(config, key))}; {allowed}")

    require(config.family in FAMILIES, "family", f"allowed are {', '.join(FAMILIES)}")
    require(config.conv_norm in CONV_NORMS, "conv_norm", f"allowed are {', '.join(CONV_NORMS)}")
    for key in (
        "embed_dim",
        "num_heads",
        "head_dim",
        "positional_kernel",
        "positional_groups",
        "relative_max_distance",
        "frame_multiple",
    ):
        require(0 < getattr(config, key) <= 2**16, key, "it must be between 1 and 65536")
    require(bool(config.conv_layers), "conv_layers", "at least one convolution is needed")
    for layer in config.conv_layers:
        fits = isinstance(layer, tuple) and len(layer) == 3 and all(0 < number <= 2**16 for number in layer)
        require(fits, "conv_layers", f"{shown(layer)} is not (channels, kernel, stride), each from 1 to 65536")
    _check_unpruned(config, require)
    require(
        config.projection or config.conv_layers[-1][0] == config.embed_dim,
        "projection",
        f"without it the last {config.conv_layers[-1][0]} channels must be embed_dim ({config.embed_dim})",
    )
    require(
        config.embed_dim % config.positional_groups == 0,
        "positional_groups",
        f"it must divide embed_dim ({config.embed_dim})",
    )
    require(0 < len(config.attention_heads) <= 1024, "attention_heads", "between 1 and 1024 layers are needed")
    require(
        len(config.ffn_dims) == len(config.attention_heads),
        "ffn_dims",
        f"it must have an entry for each of the {len(config.attention_heads)} layers, as attention_heads has",
    )
    for heads in config.attention_heads:
        allowed = heads is None or (
            isinstance(heads, tuple)
            and list(heads) == sorted(set(heads))
            and all(0 <= head < config.num_heads for head in heads)
        )
        require(allowed, "attention_heads", f"{shown(heads)} is not a rising list of heads below {config.num_heads}")
    for width in config.ffn_dims:
        allowed = width is None or (isinstance(width, int) and 0 <= width <= 2**20)
        require(allowed, "ffn_dims", f"{shown(width)} is neither null nor between 0 and 1048576")
    if config.relative_position:
        fits = config.num_heads * config.head_dim == config.embed_dim
        require(
            fits,
            "num_heads",
            f"WavLM's gates need num_heads x head_dim ({config.head_dim}) = embed_dim ({config.embed_dim})",
        )
        require(
            config.relative_buckets >= 4 and config.relative_buckets % 2 == 0, "relative_buckets", "even and at least 4"
        )
        more = config.relative_max_distance > config.relative_buckets // 4
        require(more, "relative_max_distance", f"it must exceed relative_buckets / 4 ({config.relative_buckets // 4})")
    for key in ("layer_norm_eps", "normalize_eps"):
        require(0 < getattr(config, key) < 1, key, "it must lie between 0 and 1")
    for key in ("feature_dropout", "hidden_dropout", "attention_dropout", "activation_dropout"):
        require(0 <= getattr(config, key) < 1, key, "a probability below 1 is needed")


def _check_unpruned(config: EncoderConfig, require: Callable[[bool, str, str], None]) -> None:
    """Channels before pruning: as many entries as convolutions, none below what is left."""
    if not config.unpruned_channels:
        return
    left = [channels for channels, _, _ in config.conv_layers]
    fits = len(config.unpruned_channels) == len(left) and all(
        isinstance(before, int) and now <= before <= 2**16
        for now, before in zip(left, config.unpruned_channels, strict=True)
    )
    require(fits, "unpruned_channels", f"an entry per convolution is needed, none below the channels left ({left})")
    projected = config.projection or config.unpruned_channels[-1] == left[-1]
    require(projected, "unpruned_channels", "without a projection the last convolution keeps its channels")
