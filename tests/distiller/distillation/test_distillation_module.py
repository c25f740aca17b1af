"""The losses of a micro-batch: what the host may not wait for on a GPU."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distiller.audio.batch import Batch
from distiller.distillation.distillation_module import Distillation
from distiller.objectives import gram
from distiller.objectives.registry import build
from distiller.recipes.recipe import load_recipe
from distiller.students.gates import GatedEncoder
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

ENCODER: dict[str, Any] = {
    "embed_dim": 24, "num_heads": 2, "head_dim": 12, "attention_heads": ((0, 1),) * 3, "ffn_dims": (32,) * 3,
    "conv_layers": ((8, 10, 5), *((8, 3, 2),) * 4, (8, 2, 2), (16, 2, 2)), "positional_kernel": 8,
    "positional_groups": 4, "hidden_dropout": 0.1, "attention_dropout": 0.1,
}  # fmt: skip
WAVLM = {"family": "wavlm", "relative_buckets": 32, "relative_max_distance": 80, "normalize_waveform": True}


class BlockingCopies(TorchDispatchMode):
    """Lists copies from the CPU to another device, or back, that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sources = [value for value in args if isinstance(value, torch.Tensor)]
        if isinstance(result, torch.Tensor) and sources and "copy" in func.name():
            blocking = not (kwargs or {}).get("non_blocking")
            if {value.device.type for value in (*sources, result)} == {"cpu", "meta"} and blocking:
                self.found.append(func.name())
        return result


@pytest.mark.parametrize("encoder", [ENCODER, ENCODER | WAVLM], ids=["hubert", "wavlm"])
@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        # the identity looks at its result, whatever the lengths
        ("star", ["objective.identity=never", "objective.average_attention=1"]),
        ("star", ["objective.identity=never", "control=shuffled"]),
        ("dphubert", []),
        ("distilhubert", ["objective.layers=[1,2]"]),
        ("skill", ["objective.clusters=[[0,1],[2,3]]"]),
    ],
)
def test_no_loss_waits_for_the_device(
    method: str, overrides: list[str], encoder: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands in for a GPU: its tensors have no values, so reading one is an error."""
    monkeypatch.setattr(gram, "full_precision", lambda _: nullcontext())  # there is no autocast for it
    recipe = load_recipe(method, ["corpus.path=none", *overrides])
    config = EncoderConfig(**encoder)
    with torch.device("meta"):
        teacher = SpeechEncoder(config)
        student = SpeechEncoder(config)
        gated = GatedEncoder(student, {"heads": 0.1, "channels": 0.1}) if recipe.pruning is not None else student
        module = Distillation(teacher, gated, build(recipe.objective, config, config), recipe)
    module.train()
    batch = Batch(torch.randn(3, 16_000), torch.tensor([16_000, 11_231, 7_040]), [], [], [])
    with BlockingCopies() as copies:
        batch = batch.to("meta", non_blocking=True)  # as training does
        terms = module.losses(batch)
        frames = module.frame_lengths(batch)
        torch.stack([term.total for term in terms]).sum().backward()
    assert [term.total.device.type for term in terms] == ["meta"] * len(terms)
    assert frames.tolist() == [49, 34, 21]
    assert copies.found == []
