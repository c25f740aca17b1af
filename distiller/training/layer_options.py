"""The Transformer layers computed again going backward, or compiled: memory and speed of a GPU.

Neither changes what is computed, nor a name in a state dict.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

RECOMPILATIONS = 16  # of a layer; beyond them it runs uncompiled, so that odd shapes cannot stall a run


def checkpoint_layers(layers: nn.ModuleList) -> None:
    """Keep of each layer its input only; the rest is computed again going backward, with the same random numbers."""
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(layers: nn.ModuleList, backend: str | Callable = "inductor") -> None:
    """Compile each layer for any batch size and length: the buckets' shapes share a graph, instead of one for each.

    Before `checkpoint_layers`, where both are wanted: torch compiles nothing that a checkpoint is within.
    """
    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    for layer in layers:
        compiled = torch.compile(type(layer).forward, dynamic=True, backend=backend)
        layer.forward = partial(compiled, layer)  # a copy of the layer computes with its own weights
