"""A step of every method: what the host may not wait for on a GPU."""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from distiller.audio.batch import Batch, StepBatch
from distiller.common.provenance import parameter_count
from distiller.distillation.distillation_module import Distillation, JointDistillation
from distiller.objectives import gram
from distiller.objectives.registry import build
from distiller.recipes.recipe import load_recipe
from distiller.students.gates import GatedEncoder
from distiller.students.lagrangian import SparsityLagrangian
from distiller.training import step
from distiller.training.module import schedule
from distiller.training.step import Numbers, optimiser_step
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


WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"}  # operators that read values


def reads(compute: Callable[[], Any]) -> set[str]:
    """Which of WAITING a computation calls; a dispatch mode would make torch choose other gradients, a profiler not."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        compute()
    return WAITING & {event.key.removeprefix("aten::") for event in profiler.key_averages()}


def training_module(method: str, overrides: list[str], encoder: dict[str, Any], device: str) -> Distillation:
    """What the first stage of a recipe trains, with tiny networks."""
    recipe, config = load_recipe(method, ["corpus.path=none", *overrides]), EncoderConfig(**encoder)
    torch.manual_seed(0)
    teacher, student = SpeechEncoder(config), SpeechEncoder(config)
    objective = build(recipe.objective, config, config)
    if recipe.pruning is None:
        module = Distillation([teacher], student, objective, recipe)
    else:
        lagrangian = SparsityLagrangian(recipe.pruning, config, parameter_count(teacher), steps=1)
        gated = GatedEncoder(student, recipe.pruning.drops)
        module = JointDistillation([teacher], gated, objective, recipe, lagrangian)
    module.steps = 100
    module.move_frozen(torch.device(device))
    return module.to(device).train()


class OnDevice:
    """Fabric, its module and its optimizer, on a device that Fabric does not know."""

    def __init__(self, module: Distillation, device: str) -> None:
        self.module, self.device, self.world_size, self.global_rank = module, torch.device(device), 1, 0
        self.adamw, self.optimizer = module.optimizer(), SimpleNamespace()
        self.strategy = SimpleNamespace(precision=SimpleNamespace(unscale_gradients=lambda _: None))
        self.zero_grad, self.param_groups = self.adamw.zero_grad, self.adamw.param_groups
        self.no_backward_sync = lambda _, enabled: nullcontext()
        self.backward = lambda loss: loss.backward()

    def __call__(self, *arguments: Any) -> Any:
        return self.module(*arguments)

    def step(self) -> None:
        self.adamw.step()

    def take(self, batch: Batch) -> dict[str, Any]:
        """A step of two micro-batches: its numbers, where they are computed."""
        this: Any = self
        scheduler = LambdaLR(self.adamw, schedule(self.module.optimizer_config, self.module.steps))
        return optimiser_step(this, this, this, scheduler, StepBatch([batch, batch], 0, 0)).numbers.values  # type: ignore[return-value]


METHODS = [
    ("star", ["objective.average_attention=1", "objective.relative=true", "trainer.ema=0.9"], ENCODER),
    ("star", ["objective.scaling=centred", "control=shuffled"], ENCODER | WAVLM),
    ("star", ["control=reversed", "optimizer.clip=1"], ENCODER),
    ("dphubert", ["objective.layers=[0,3]"], ENCODER),
    ("distilhubert", ["objective.layers=[1,2]"], ENCODER | WAVLM),
    ("skill", ["objective.clusters=[[0,1],[2,3]]"], ENCODER | WAVLM),
]
WAVEFORMS, LENGTHS = 0.1 * torch.randn(3, 16_000), torch.tensor([16_000, 11_231, 7_040])


@pytest.mark.parametrize("method", ["star", "skill"])
def test_the_student_hears_degraded_speech_and_the_teacher_does_not(method: str) -> None:
    module = training_module(method, ["objective.clusters=[[0,1],[2,3]]"] if method == "skill" else [], ENCODER, "cpu")
    heard: dict[str, torch.Tensor] = {}
    for name, network in (("teacher", module.teachers[0]), ("student", module.student)):
        network.register_forward_pre_hook(lambda _, inputs, name=name: heard.update({name: inputs[0]}))
    degraded = WAVEFORMS.roll(1, dims=1)
    batch = Batch(WAVEFORMS, LENGTHS, [], [], [], degraded=degraded)
    for compute in (module.losses, module.finite_outputs):
        heard.clear()
        compute(batch)
        assert torch.equal(heard["teacher"], WAVEFORMS)
        assert torch.equal(heard["student"], degraded)


@pytest.mark.parametrize(("method", "overrides", "encoder"), METHODS)
def test_no_step_waits_for_the_device(
    method: str, overrides: list[str], encoder: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands in for a GPU: its tensors have no values, so reading one is an error."""
    monkeypatch.setattr(gram, "fp32_products", lambda *_: nullcontext())  # there is no autocast for it
    monkeypatch.setattr(step, "LATE", {"meta"})
    monkeypatch.setattr(Numbers, "__init__", lambda self, values: setattr(self, "values", values))  # none to copy
    module = training_module(method, overrides, encoder, "meta")
    place = OnDevice(module, "meta")
    with BlockingCopies() as copies:
        numbers = place.take(Batch(WAVEFORMS, LENGTHS, [], [], []).to("meta", non_blocking=True))  # as training does
    assert {"loss", "gradient_norm"} < numbers.keys()
    assert numbers.keys() >= ({"sparsity", "lambda1", "lambda2"} if module.penalty()[1] else set())
    assert {value.device.type for value in numbers.values() if isinstance(value, torch.Tensor)} == {"meta"}
    assert place.optimizer.found_inf.device.type == "meta"
    assert copies.found == []
    assert module.frame_lengths(Batch(WAVEFORMS, LENGTHS, [], [], [])).tolist() == [49, 34, 21]


@pytest.mark.parametrize(("method", "overrides", "encoder"), METHODS)
def test_no_backward_pass_reads_a_value(method: str, overrides: list[str], encoder: dict[str, Any]) -> None:
    """Torch has gradients that read values but on the meta device, such as that of `prod`."""
    never = ["objective.identity=never"] if method == "star" else []  # as on a GPU
    place = OnDevice(training_module(method, [*overrides, *never], encoder, "cpu"), "cpu")
    found: set[str] = set()
    place.backward = lambda loss: found.update(reads(loss.backward))
    place.take(Batch(WAVEFORMS, LENGTHS, [], [], []))
    assert found == set()
    assert reads(torch.ones(2, requires_grad=True).prod().backward) == {"nonzero"}  # what would have been found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("method", "overrides", "encoder"), METHODS)
def test_no_step_waits_for_a_gpu(method: str, overrides: list[str], encoder: dict[str, Any]) -> None:
    module = training_module(method, overrides, encoder, "cuda")
    place = OnDevice(module, "cuda")
    place.optimizer = place.adamw
    batch = Batch(WAVEFORMS.pin_memory(), LENGTHS, [], [], [])
    place.take(batch.to("cuda", non_blocking=True))  # the first one also makes handles and the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        place.take(batch.to("cuda", non_blocking=True))
    finally:
        torch.cuda.set_sync_debug_mode("default")
