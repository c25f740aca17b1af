"""FSDP: what is trained, its gradients and its optimiser state split over the ranks, by torch's `fully_shard`.

Lightning's FSDPStrategy wraps the older API and needs CUDA; its ModelParallelStrategy leaves the splitting to the
module (here) and runs on any device, so that two processes on a CPU test what a cluster does.
"""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from distiller.objectives.base import Term
from upstream.encoder import EncoderOutput


class Sharded(ModelParallelStrategy):
    """All ranks share the work on data; checkpoints are whole, as those of any other strategy."""

    def __init__(self, ranks: int, timeout: timedelta) -> None:
        super().__init__(
            data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout
        )


@functools.cache
def _show_tensors() -> None:
    """`fully_shard` hooks the tensors that go in and out; in a dataclass it finds them only if that is registered."""
    from torch.export import register_dataclass  # takes a while, and is needed here only

    for passed in (EncoderOutput, Term):
        register_dataclass(passed)


class Shards:
    """The trained children of a module, split over the ranks of a mesh, and a whole copy of each to put them into.

    Args:
        module: each of its children that has something to train is split, Transformer layers one by one.
    """

    def __init__(self, module: nn.Module, mesh: DeviceMesh) -> None:
        trained = {
            name: child
            for name, child in module.named_children()
            if any(parameter.requires_grad for parameter in child.parameters())
        }
        _show_tensors()
        self.module, self.split = module, trained
        self.wholes = {name: copy.deepcopy(child) for name, child in trained.items()}
        for child in trained.values():
            for layer in getattr(child, "layers", []):
                fully_shard(layer, mesh=mesh)
            fully_shard(child, mesh=mesh)

    def gather(self) -> None:
        """Put whole children in the place of the split ones. Every rank must take part."""
        for name, child in self.split.items():
            whole, device = self.wholes[name], next(child.parameters()).device
            whole.load_state_dict(get_model_state_dict(child, options=StateDictOptions(full_state_dict=True)))
            setattr(self.module, name, whole.to(device).train(child.training))

    def scatter(self) -> None:
        """Put the split children back."""
        for name, child in self.split.items():
            setattr(self.module, name, child)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Whole children for what ranks do on their own, such as unequal numbers of batches."""
        self.gather()
        try:
            yield
        finally:
            self.scatter()
