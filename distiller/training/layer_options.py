"""How a network's layers are run: recomputed in the backward pass, compiled, with half-precision weights, or sharded.

None of these changes the computation, nor a name in a state dict.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from upstream.encoder import EncoderOutput, SpeechEncoder

RECOMPILATIONS = 16  # of a layer; beyond them it runs uncompiled, so that odd shapes cannot stall a run


def checkpoint_layers(layers: nn.ModuleList) -> None:
    """Keep only the input of each layer; recompute the rest in the backward pass, with the same random numbers."""
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(layers: nn.ModuleList, fall_back: bool = False, backend: str | Callable = "inductor") -> None:
    """Compile each layer for any batch size and length: all bucket shapes share one graph.

    Call before `checkpoint_layers` if both are wanted: torch compiles nothing that contains a checkpoint.

    Args:
        fall_back: run a layer uncompiled if compiling it fails, as without a C compiler, instead of raising.
    """
    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    torch._dynamo.config.suppress_errors = fall_back
    for layer in layers:
        compiled = torch.compile(type(layer).forward, dynamic=True, backend=backend)
        layer.forward = partial(compiled, layer)  # so that a copy of the layer uses its own weights


def plain_layers(layers: nn.ModuleList) -> None:
    """Undo `checkpoint_layers` and `compile_layers`."""
    for layer in layers:
        vars(layer).pop("forward", None)


def half_matrices(network: SpeechEncoder, dtype: torch.dtype) -> SpeechEncoder:
    """A copy of a frozen encoder for autocast in `dtype`, which then need not cast its matrices in every forward pass.

    These are the weights of linear layers and of convolutions over channels: autocast would round them the same, and
    nothing else uses them. The rest stays in fp32, including the first convolution, whose dtype determines that of the
    waveforms and whose weights determine its norm's statistics.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)) and module.weight.shape[1] > 1:
            module.weight.data = module.weight.data.to(dtype)
    return network


@functools.cache
def _show_tensors() -> None:
    """`fully_shard` hooks input and output tensors; it finds those in a dataclass only if the class is registered."""
    from torch.export import register_dataclass  # slow to import, and only needed here

    register_dataclass(EncoderOutput)


class Shards:
    """The trained children of a module, split over the ranks of a mesh, and a full copy of each to gather into.

    Args:
        module: each child with parameters to train is split, its Transformer layers one by one.
    """

    def __init__(self, module: nn.Module, mesh: DeviceMesh) -> None:
        trained = {
            name: child
            for name, child in module.named_children()
            if any(parameter.requires_grad for parameter in child.parameters())
        }
        _show_tensors()
        self.module, self.split = module, trained
        self.full = {name: copy.deepcopy(child) for name, child in trained.items()}
        for child in trained.values():
            for layer in getattr(child, "layers", []):
                fully_shard(layer, mesh=mesh)
            fully_shard(child, mesh=mesh)

    def gather(self) -> None:
        """Replace the split children by full ones. Every rank must take part."""
        for name, child in self.split.items():
            full, device = self.full[name], next(child.parameters()).device
            full.load_state_dict(get_model_state_dict(child, options=StateDictOptions(full_state_dict=True)))
            setattr(self.module, name, full.to(device).train(child.training))

    def scatter(self) -> None:
        """Put the split children back."""
        for name, child in self.split.items():
            setattr(self.module, name, child)

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Full children for what ranks do on their own, such as unequal numbers of batches."""
        self.gather()
        try:
            yield
        finally:
            self.scatter()
