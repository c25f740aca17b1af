"""Layers computed again going backward, or compiled: the same numbers, and no other names."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from distiller.distillation.distillation_module import Distillation
from distiller.objectives.registry import build
from distiller.recipes.recipe import load_recipe
from distiller.training import layer_options as memory
from distiller.training.layer_options import checkpoint_layers, compile_layers
from distiller.training.loop import arrange_layers
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

CONFIG = EncoderConfig(
    embed_dim=24, num_heads=2, head_dim=12, attention_heads=((0, 1),) * 3, ffn_dims=(32,) * 3,
    conv_layers=((8, 10, 5), *((8, 3, 2),) * 4, (8, 2, 2), (16, 2, 2)), positional_kernel=8, positional_groups=4,
    hidden_dropout=0.2, attention_dropout=0.2, activation_dropout=0.2, feature_dropout=0.2,
)  # fmt: skip


def loss_and_gradients(encoder: SpeechEncoder, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(1)
    encoder.zero_grad()
    states = encoder(waveforms, lengths).hidden_states
    direction = torch.linspace(-1, 1, CONFIG.embed_dim)  # the mean square of what a layer norm leaves is a constant
    loss = torch.stack([(state @ direction).square().mean() for state in states]).sum()
    loss.backward()
    return loss.detach(), [p.grad for p in encoder.parameters() if p.grad is not None]


@pytest.fixture
def encoder() -> SpeechEncoder:
    torch.manual_seed(0)
    return SpeechEncoder(CONFIG).train()


WAVEFORMS, LENGTHS = torch.randn(3, 6000, generator=torch.Generator().manual_seed(0)), torch.tensor([6000, 4000, 1500])


def test_checkpointing_changes_no_number(encoder: SpeechEncoder) -> None:
    """With all dropouts on, and again for a copy, as an averaged or sharded student is one."""
    loss, gradients = loss_and_gradients(encoder, WAVEFORMS, LENGTHS)
    names = list(encoder.state_dict())
    saved = kept_bytes(encoder)
    checkpoint_layers(encoder.layers)
    for one in (encoder, copy.deepcopy(encoder)):
        again, theirs = loss_and_gradients(one, WAVEFORMS, LENGTHS)
        assert torch.equal(again, loss)
        assert all(torch.equal(a, b) for a, b in zip(theirs, gradients, strict=True))
        assert list(one.state_dict()) == names
    assert kept_bytes(encoder) < saved - 200_000
    duplicate = copy.deepcopy(encoder)
    with torch.no_grad():
        duplicate.layers[0].feed_forward.output.weight.zero_()  # of the copy alone
    assert not torch.equal(loss_and_gradients(duplicate, WAVEFORMS, LENGTHS)[0], loss)
    assert torch.equal(loss_and_gradients(encoder, WAVEFORMS, LENGTHS)[0], loss)


def kept_bytes(encoder: SpeechEncoder) -> int:
    """What the forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = encoder(WAVEFORMS, LENGTHS)  # noqa: F841  (keeps the graph alive: no address is used twice)
    return sum(kept.values())


def test_compiled_layers_share_graphs_between_shapes(encoder: SpeechEncoder) -> None:
    """Fewer graphs than shapes and layers, and never more than the limit; in evaluation, where nothing is random."""
    encoder.eval()
    shapes = [(1, 3000), (2, 4100), (3, 5200), (4, 6300), (2, 7000), (5, 4500)]
    batches = [torch.randn(*shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
    with torch.no_grad():
        expected = [encoder(batch).hidden_states for batch in batches]
        names = list(encoder.state_dict())
        counter = CompileCounter()
        torch._dynamo.reset()
        compile_layers(encoder.layers, backend=counter)
        for batch, states in zip(batches, expected, strict=True):
            for state, other in zip(encoder(batch).hidden_states, states, strict=True):
                torch.testing.assert_close(state, other, rtol=1e-5, atol=1e-5)
    assert 0 < counter.frame_count <= 6
    assert list(encoder.state_dict()) == names
    torch._dynamo.reset()


def test_a_recipe_that_asks_for_both_gets_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled in training, on padded audio: the same numbers, and a copy goes by its own weights."""
    dropouts = ("hidden_dropout", "attention_dropout", "activation_dropout", "feature_dropout")
    config = replace(CONFIG, **dict.fromkeys(dropouts, 0.0))  # compiled layers draw other random numbers
    torch.manual_seed(0)
    encoder = SpeechEncoder(config).train()
    loss, gradients = loss_and_gradients(encoder, WAVEFORMS, LENGTHS)
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr("distiller.training.loop.compile_layers", partial(compile_layers, backend=counter))
    torch._dynamo.reset()
    recipe = load_recipe("star", ["trainer.checkpoint_activations=true", "trainer.compile=true"])
    module = Distillation(SpeechEncoder(CONFIG), encoder, torch.nn.Module(), recipe)
    arrange_layers(module, recipe.trainer, torch.device("cpu"), 1.0)
    again, theirs = loss_and_gradients(encoder, WAVEFORMS, LENGTHS)
    assert counter.frame_count > 0
    torch.testing.assert_close(again, loss)
    for gradient, other in zip(theirs, gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)
    duplicate = copy.deepcopy(encoder)
    with torch.no_grad():
        duplicate.layers[0].feed_forward.output.weight.zero_()
    assert not torch.allclose(loss_and_gradients(duplicate, WAVEFORMS, LENGTHS)[0], loss)
    torch._dynamo.reset()


def test_a_recipe_asks_for_them(monkeypatch: pytest.MonkeyPatch, encoder: SpeechEncoder) -> None:
    recipe = load_recipe("star", ["trainer.checkpoint_activations=true", "trainer.compile=true"])
    teacher = SpeechEncoder(CONFIG)
    module = Distillation(teacher, encoder, build(recipe.objective, CONFIG, CONFIG), recipe)
    compiled: list[object] = []
    monkeypatch.setattr("distiller.training.loop.compile_layers", lambda layers, **_: compiled.append(layers))
    arrange_layers(module, recipe.trainer, torch.device("cpu"), 1.0)
    assert [part is layers for part, layers in zip(compiled, (encoder.layers, teacher.layers), strict=True)] == [
        True
    ] * 2
    assert all(layer.forward.func is memory.checkpoint for layer in encoder.layers)
    assert not any(hasattr(layer.forward, "func") for layer in teacher.layers)
    with pytest.raises(UserError, match=r"student.name is 'pruned', but it must be narrow with trainer.checkpoint"):
        load_recipe("star", ["trainer.checkpoint_activations=true", "student=pruned"])
