"""Layers computed again going backward, or compiled: the same numbers, and no other names."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from distiller.distillation.distillation_module import Distillation
from distiller.objectives.registry import build
from distiller.recipes.recipe import load_recipe
from distiller.teachers.teacher import identity
from distiller.training import layer_options as memory
from distiller.training.layer_options import checkpoint_layers, compile_layers, half_matrices, plain_layers
from distiller.training.loop import COMPILING_PAYS, arrange_layers
from upstream import attention
from upstream.config import EncoderConfig
from upstream.encoder import EncoderLayer, SpeechEncoder
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
    # the mean square of what a layer norm leaves is a constant
    direction = torch.linspace(-1, 1, CONFIG.embed_dim).to(states[0].dtype)
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


@pytest.mark.slow
def test_a_recipe_that_asks_for_both_gets_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled in training, on padded audio: the same numbers, and a copy goes by its own weights."""
    dropouts = ("hidden_dropout", "attention_dropout", "activation_dropout", "feature_dropout")
    config = replace(CONFIG, **dict.fromkeys(dropouts, 0.0))  # compiled layers draw other random numbers
    torch.manual_seed(0)
    encoder = SpeechEncoder(config).double().train()  # in fp32 rounding alone exceeds 1e-4 of some gradients
    loss, gradients = loss_and_gradients(encoder, WAVEFORMS, LENGTHS)
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr("distiller.training.loop.compile_layers", partial(compile_layers, backend=counter))
    torch._dynamo.reset()
    recipe = load_recipe("star", ["trainer.checkpoint_activations=true", "trainer.compile=true"])
    module = Distillation([SpeechEncoder(CONFIG)], encoder, torch.nn.Module(), recipe)
    arrange_layers(module, recipe.trainer, torch.device("cpu"), 1.0)
    again, theirs = loss_and_gradients(encoder, WAVEFORMS, LENGTHS)
    assert counter.frame_count > 0
    torch.testing.assert_close(again, loss)
    for gradient, other in zip(theirs, gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-7, atol=1e-9)
    duplicate = copy.deepcopy(encoder)
    with torch.no_grad():
        duplicate.layers[0].feed_forward.output.weight.zero_()
    assert not torch.allclose(loss_and_gradients(duplicate, WAVEFORMS, LENGTHS)[0], loss)
    torch._dynamo.reset()


def test_a_recipe_asks_for_them(monkeypatch: pytest.MonkeyPatch, encoder: SpeechEncoder) -> None:
    recipe = load_recipe("star", ["trainer.checkpoint_activations=true", "trainer.compile=true"])
    teacher = SpeechEncoder(CONFIG)
    module = Distillation([teacher], encoder, build(recipe.objective, CONFIG, CONFIG), recipe)
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


@pytest.mark.parametrize(
    ("device", "key", "seconds", "compiled"),
    [
        ("cpu", "auto", 1e9, False),
        ("cuda", "auto", COMPILING_PAYS / 2, False),
        ("cuda", "auto", COMPILING_PAYS * 2, True),
        ("cuda", "false", 1e9, False),
        ("cpu", "true", 1.0, True),
    ],
)
def test_layers_are_compiled_by_themselves_where_that_pays(
    device: str, key: str, seconds: float, compiled: bool, monkeypatch: pytest.MonkeyPatch, encoder: SpeechEncoder
) -> None:
    recipe = load_recipe("star", ["corpus.path=none", f"trainer.compile={key}"])
    module = Distillation([SpeechEncoder(CONFIG)], encoder, torch.nn.Module(), recipe)
    falls_back: list[bool] = []
    monkeypatch.setattr(
        "distiller.training.loop.compile_layers", lambda layers, fall_back: falls_back.append(fall_back)
    )
    arrange_layers(module, recipe.trainer, torch.device(device), seconds)
    assert falls_back == [key == "auto"] * 2 * compiled


@pytest.mark.parametrize("value", ["maybe", "1", "[1]", "null", "'true'"])
def test_what_else_compile_cannot_be(value: str) -> None:
    with pytest.raises(UserError, match=r"^trainer\.compile is .*, but it must be true, false or auto$"):
        load_recipe("star", ["corpus.path=none", f"trainer.compile={value}"])


def test_a_compiler_that_fails_ends_a_run_only_if_it_was_asked_for(encoder: SpeechEncoder) -> None:
    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("no C compiler")

    layer, states = encoder.layers[0].eval(), torch.randn(1, 5, CONFIG.embed_dim)
    with torch.no_grad():
        expected, _ = layer(states, None, None, False)
        try:
            for fall_back in (True, False):
                torch._dynamo.reset()
                compile_layers(encoder.layers[:1], fall_back=fall_back, backend=broken)
                with nullcontext() if fall_back else pytest.raises(Exception, match="no C compiler"):
                    assert torch.equal(layer(states, None, None, False)[0], expected)
        finally:
            torch._dynamo.config.suppress_errors = False
            torch._dynamo.reset()


def test_what_follows_training_runs_plain_layers(encoder: SpeechEncoder) -> None:
    compile_layers(encoder.layers, backend="eager")
    checkpoint_layers(encoder.layers)
    plain_layers(encoder.layers)
    assert all(layer.forward == EncoderLayer.forward.__get__(layer) for layer in encoder.layers)


DEEP_NORMS = {"conv_norm": "layer", "conv_bias": True, "layer_norm_first": True, "normalize_waveform": True}
WAVLM = {"family": "wavlm", "relative_buckets": 32, "relative_max_distance": 80}
NARROW = {"projection": False, "embed_dim": 16, "num_heads": 2, "head_dim": 8}
PRUNED = {"attention_heads": ((1,), None, ()), "ffn_dims": (20, 0, None)}


@pytest.mark.parametrize(
    "changes",
    [{}, WAVLM, DEEP_NORMS, DEEP_NORMS | WAVLM, NARROW, PRUNED, PRUNED | WAVLM | DEEP_NORMS],
    ids=["hubert", "wavlm", "deep norms", "wavlm, deep norms", "narrow", "pruned", "all"],
)
@pytest.mark.parametrize("spare", [1, 8])  # 8: heads of 12 channels are padded to 16, as on a GPU
def test_half_matrices_give_the_bits_that_autocast_gives(
    changes: dict[str, object], spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padded and not, with and without attention maps; the encoder itself stays as it is."""
    monkeypatch.setattr(attention, "HEAD_MULTIPLE", {"cpu": spare})
    torch.manual_seed(0)
    encoder = SpeechEncoder(replace(CONFIG, **changes)).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    half = half_matrices(encoder, torch.bfloat16)
    halved = {name for name, value in half.state_dict().items() if value.dtype == torch.bfloat16}
    assert {name for name in halved if "norm" in name or "bias" in name} == set()
    assert len(halved) > 10
    # on a CPU a frozen network is computed row by row without gradients; on a GPU never, nor here with them
    for grad in (True, False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
            for lengths, maps in ((LENGTHS, False), (LENGTHS, True), (None, False)):
                ours, theirs = (network(WAVEFORMS, lengths, maps) for network in (half, encoder))
                for state, other in zip(
                    [ours.projected, ours.last_hidden_state, *ours.hidden_states, *(ours.attention_maps or ())],
                    [theirs.projected, theirs.last_hidden_state, *theirs.hidden_states, *(theirs.attention_maps or ())],
                    strict=True,
                ):
                    assert (state is None and other is None) or torch.equal(state, other)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert {value.dtype for value in encoder.state_dict().values()} == {torch.float32}


def test_the_teacher_has_half_matrices_in_training_only(encoder: SpeechEncoder) -> None:
    teacher, recipe = SpeechEncoder(CONFIG), load_recipe("star", ["corpus.path=none"])
    module, known = Distillation([teacher], encoder, torch.nn.Module(), recipe), identity(teacher)
    module.move_frozen(torch.device("cpu"), torch.bfloat16)
    assert module.teachers[0].layers[0].feed_forward.output.weight.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in module.teachers[0].parameters())
    assert identity(teacher) == known


@pytest.mark.slow
def test_a_run_in_bf16_is_the_run_with_the_teachers_fp32_matrices(small_run, monkeypatch: pytest.MonkeyPatch) -> None:
    for output in ("half", "whole"):
        small_run.completes("trainer.precision=bf16-mixed", output=output)
        monkeypatch.setattr("distiller.training.loop.HALF", {})
    for name in ("student/model.safetensors", "inputs.json", "held_out.csv", "distances.csv"):
        assert Path("half", name).read_bytes() == Path("whole", name).read_bytes(), name
