"""Training with the student's parameters and the optimiser's state split over the ranks, by torch's `fully_shard`."""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from upstream.encoder import EncoderOutput


@functools.cache
def _show_tensors() -> None:
    """`fully_shard` hooks the tensors that enter and leave; in a dataclass it finds them only if that is registered."""
    from torch.export import register_dataclass  # takes a while, and is needed here only

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
        """Put full children in the place of the split ones. Every rank must take part."""
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
