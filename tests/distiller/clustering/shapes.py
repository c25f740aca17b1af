"""A small encoder whose layers are compared."""

from upstream.config import EncoderConfig

CONFIG = EncoderConfig(
    embed_dim=8,
    num_heads=2,
    head_dim=4,
    attention_heads=((0, 1),) * 4,
    ffn_dims=(8,) * 4,
    conv_layers=((4, 10, 5), (4, 8, 4)),
    positional_kernel=4,
    positional_groups=2,
)
