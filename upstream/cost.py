"""The cost of an encoder: multiply-accumulates, counted from its configuration."""

from .config import MEL_HOP, MEL_WINDOW, EncoderConfig


def count_macs(config: EncoderConfig, samples: int) -> int:
    """Multiply-accumulates of a forward pass over one wav of `samples` samples.

    Convolutions, matrix products and attention are counted; norms, activations and softmax are not. HuBERT Base has
    74.07 G for 10 s.
    """
    width, frames = config.embed_dim, config.frame_count(samples)
    if config.whisper:
        frames = config.max_frames if config.attends_to_padding else frames
        macs = _mel_convolutions(config, frames)
    else:
        macs = _mel_frames(config, samples) if config.mel_bins else _convolutions(config, samples)
        even = not (config.positional_kernel % 2 or config.chunk_frames)
        positions = frames + even  # an even kernel centred on its frame gives one frame more
        taps = config.positional_layers * config.positional_kernel
        macs += positions * width * (width // config.positional_groups) * taps
    pairs = _pairs(frames, config.chunk_frames, config.left_frames)
    for heads, ffn_dim in zip(config.attention_heads, config.ffn_dims, strict=True):
        inner = len(heads or ()) * config.head_dim
        macs += 4 * frames * width * inner  # query, key, value, output
        macs += 2 * pairs * inner  # scores, context
        macs += 8 * frames * inner if config.relative_position else 0  # gate
        macs += 2 * frames * width * (ffn_dim or 0)
    return macs


def _pairs(frames: int, chunk: int, left: int) -> int:
    """Number of (query, visible key) pairs."""
    if not chunk:
        return frames * frames
    starts = range(0, frames, chunk)
    return sum(min(chunk, frames - start) * (min(left, start) + min(chunk, frames - start)) for start in starts)


def _convolutions(config: EncoderConfig, samples: int) -> int:
    """Multiply-accumulates of the extractor and the projection."""
    macs, frames, in_channels = 0, samples, 1
    for channels, kernel, stride in config.conv_layers:
        frames = (frames - kernel) // stride + 1
        macs += frames * in_channels * channels * kernel
        in_channels = channels
    return macs + (config.frame_count(samples) * in_channels * config.embed_dim if config.projection else 0)


def _mel_frames(config: EncoderConfig, samples: int) -> int:
    """Those of a log-mel front end: the spectrum as products with sines and cosines, filters, one convolution."""
    frequencies, frames = MEL_WINDOW // 2 + 1, config.frame_count(samples)
    columns = (samples + 2 * MEL_HOP - MEL_WINDOW) // MEL_HOP + 1
    ((channels, kernel, _),) = config.conv_layers
    macs = columns * frequencies * (2 * MEL_WINDOW + config.mel_bins) + frames * config.mel_bins * channels * kernel
    return macs + (frames * channels * config.embed_dim if config.projection else 0)


def _mel_convolutions(config: EncoderConfig, frames: int) -> int:
    """Those of Whisper's front end, without the spectrogram, which is a transform and a few sums."""
    columns = 2 * frames
    (first, kernel, _), (second, _, _) = config.conv_layers
    return kernel * first * (columns * config.mel_bins + frames * second)
