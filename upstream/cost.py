"""The cost of an encoder: multiply-accumulates, counted from its configuration."""

from .config import EncoderConfig


def count_macs(config: EncoderConfig, samples: int) -> int:
    """Multiply-accumulates of a forward pass over one wav of `samples` samples.

    Convolutions, matrix products and attention are counted; norms, activations and softmax are not. HuBERT Base has
    74.07 G for 10 s.
    """
    macs, frames, in_channels = 0, samples, 1
    for channels, kernel, stride in config.conv_layers:
        frames = (frames - kernel) // stride + 1
        macs += frames * in_channels * channels * kernel
        in_channels = channels
    width, frames = config.embed_dim, config.frame_count(samples)
    macs += frames * in_channels * width if config.projection else 0
    positions = frames + (config.positional_kernel + 1) % 2  # an even kernel computes an additional frame
    macs += positions * width * (width // config.positional_groups) * config.positional_kernel
    for heads, ffn_dim in zip(config.attention_heads, config.ffn_dims, strict=True):
        inner = len(heads or ()) * config.head_dim
        macs += 4 * frames * width * inner  # query, key, value, output
        macs += 2 * frames * frames * inner  # scores, context
        macs += 8 * frames * inner if config.relative_position else 0  # gate
        macs += 2 * frames * width * (ffn_dim or 0)
    return macs
