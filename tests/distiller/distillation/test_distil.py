"""Distillation against an independent account of it, and the run from a recipe to its report."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch.optim.lr_scheduler import LambdaLR
from transformers import HubertConfig, HubertModel, PreTrainedModel, WavLMConfig, WavLMModel

from distiller.audio.batch import Batch, StepBatch
from distiller.distillation.distillation_module import Distillation
from distiller.objectives.registry import build
from distiller.recipes.recipe import load_recipe
from distiller.training.step import optimiser_step
from upstream.checkpoint import load

LENGTHS = [16_000, 11_231, 7_040]
CONV = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}


def tiny(kind: str, width: int, seed: int, path: Path) -> PreTrainedModel:
    """A random model of three layers, saved at `path` as transformers saves it."""
    torch.manual_seed(seed)
    shape = {"hidden_size": width, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 2 * width}
    quiet = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0)
    config, model = {"hubert": (HubertConfig, HubertModel), "wavlm": (WavLMConfig, WavLMModel)}[kind]
    network = model(config(**shape, **CONV, **quiet, layerdrop=0.0)).eval()
    network.save_pretrained(path)
    return network


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_the_first_loss_is_what_numpy_makes_of_transformers_states(kind: str, tmp_path: Path) -> None:
    models = [tiny(kind, width, seed, tmp_path / str(width)) for seed, width in enumerate((48, 32))]
    teacher, student = load(tmp_path / "48"), load(tmp_path / "32").train()
    recipe = load_recipe("star", ["objective.scaling=none"])
    module = Distillation(teacher, student, build(recipe.objective, teacher.config, student.config), recipe)
    module.steps = 1
    random = torch.Generator().manual_seed(0)
    waveforms = [torch.randn(length, generator=random) for length in LENGTHS]
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    batch = Batch(padded, torch.tensor(LENGTHS), ["a", "b", "c"], ["a", "b", "c"], [])
    fabric, adamw = Fabric(accelerator="cpu", devices=1), module.optimizer()
    network, optimizer = fabric.setup_module(module), fabric.setup_optimizers(adamw)
    taken = optimiser_step(fabric, network, optimizer, LambdaLR(adamw, lambda step: 1.0), StepBatch([batch], 0, 0))
    row = taken.row(fabric, module)

    layer_wise = intra_layer = 0.0
    for waveform in waveforms:
        with torch.no_grad():
            states = [model(waveform[None], output_hidden_states=True).hidden_states for model in models]
        teacher_states, student_states = ([state[0].double().numpy() for state in side] for side in states)
        for layer in range(1, 4):
            grams = [side[layer] @ side[layer].T for side in (teacher_states, student_states)]
            layer_wise += np.mean((grams[0] - grams[1]) ** 2) / len(waveforms)
            grams = [side[layer - 1] @ side[layer].T for side in (teacher_states, student_states)]
            intra_layer += np.mean((grams[0] - grams[1]) ** 2) / len(waveforms)
    assert row["term/layer_wise"] == pytest.approx(layer_wise, rel=1e-4)
    assert row["term/intra_layer"] == pytest.approx(intra_layer, rel=1e-4)
    assert row["loss"] == pytest.approx(layer_wise + intra_layer, rel=1e-4)
