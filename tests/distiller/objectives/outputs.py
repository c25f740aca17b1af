"""Random outputs of small encoders, on which the tests of STaR compute its losses."""

import torch
from torch import Tensor

from distiller.objectives.config import StarConfig
from distiller.objectives.registry import build
from distiller.objectives.star import Star
from upstream.config import EncoderConfig
from upstream.encoder import EncoderOutput

LAYERS, TEACHER_WIDTH, STUDENT_WIDTH = 3, 10, 6
ALL_TERMS = {"average_attention": 1.0, "last_attention": 1.0, "layer_wise": 1.0, "intra_layer": 1.0}


def plain_config(depth: int, width: int = 4) -> EncoderConfig:
    """Layers of the default extractor's encoder, for objectives that read no waveform."""
    return EncoderConfig(
        embed_dim=width,
        num_heads=2,
        head_dim=width // 2,
        attention_heads=((0, 1),) * depth,
        ffn_dims=(8,) * depth,
        positional_groups=1,
    )


def encoder_config(layers: int = LAYERS, heads: int = 2, width: int = 8) -> EncoderConfig:
    return EncoderConfig(
        embed_dim=width,
        num_heads=heads,
        attention_heads=(tuple(range(heads)),) * layers,
        ffn_dims=(4,) * layers,
        head_dim=4,
        conv_layers=((4, 10, 5), (width, 8, 4)),
        positional_kernel=4,
        positional_groups=2,
    )


def frame_mask_of(*lengths: int) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def random_states(seed: int, width: int, mask: Tensor, layers: int = LAYERS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*mask.shape, width, generator=generator, dtype=torch.float64) for _ in range(layers + 1)]


def random_output(seed: int, width: int, heads: int, mask: Tensor, gradient: bool = False) -> EncoderOutput:
    """An encoder's output in fp64, with attention that ignores padded keys; its tensors are leaves."""
    states = random_states(seed, width, mask)
    generator = torch.Generator().manual_seed(seed + 1)
    maps = []
    for _ in range(LAYERS):
        scores = torch.randn(len(mask), heads, mask.shape[1], mask.shape[1], generator=generator, dtype=torch.float64)
        maps.append(scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=-1))
    leaves = [tensor.requires_grad_(gradient) for tensor in (*states, *maps)]
    return EncoderOutput(
        projected=torch.randn(*mask.shape, width, generator=generator, dtype=torch.float64),
        hidden_states=leaves[: LAYERS + 1],
        last_hidden_state=leaves[LAYERS],
        frame_lengths=mask.sum(dim=1),
        attention_maps=list(leaves[LAYERS + 1 :]),
    )


def star(**values: object) -> Star:
    objective = build(StarConfig(**values), encoder_config(), encoder_config())  # type: ignore[arg-type]
    assert isinstance(objective, Star)
    return objective


def isometry(seed: int) -> Tensor:
    """(student width, teacher width) with orthonormal rows."""
    matrix = torch.randn(
        TEACHER_WIDTH, STUDENT_WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return torch.linalg.qr(matrix)[0].T
