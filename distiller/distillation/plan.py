"""What a recipe would do and cost, said without doing any of it: nothing is trained, downloaded or written."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from distiller.common.files import expanded
from distiller.common.provenance import TEN_SECONDS, parameter_count
from distiller.corpora.config import EMBEDDED
from distiller.corpora.corpus import hours, open_corpus
from distiller.distillation.teacher import EMBEDDED_TEACHER
from distiller.recipes.recipe import Recipe, to_yaml
from distiller.students.lagrangian import SparsityLagrangian
from distiller.students.narrow import SHAPES
from distiller.training.devices import device_count
from upstream.checkpoint import load
from upstream.config import FAMILIES, EncoderConfig
from upstream.cost import count_macs
from upstream.encoder import SpeechEncoder
from upstream.formats import huggingface
from upstream.formats.files import read_json

LARGE: dict[str, int | bool | str] = {  # settings of transformers
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True,
}  # fmt: skip
LARGE_NAMES = ("large", "xlsr", "mms300m")
LIBRISPEECH_HOURS = {"train-clean-100": 100.6, "train-clean-360": 363.6, "train-other-500": 496.7}  # as published
EMBEDDED_SECONDS = 3.0  # of an utterance, about


def print_plan(recipe: Recipe) -> None:
    """The recipe as YAML with every key, and its costs as comments at the end: a recipe file as it stands.

    Raises:
        UserError: a teacher or corpus that is there but cannot be used.
    """
    print(to_yaml(recipe))
    for name, text in costs(recipe):
        print(f"# {name:<13} {text}")


def costs(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Rows of a name and what is to be said of it."""
    teacher, known = teacher_shape(recipe.teacher)
    if known:
        yield "teacher", f"{parameters(teacher):,} parameters, {_giga(count_macs(teacher, TEN_SECONDS))} MACs for 10 s"
    else:
        yield "teacher", f"{recipe.teacher} is not on this machine; taken to be {_model(teacher)}"
    yield from _student(recipe, teacher, known)
    yield from _length(recipe, teacher.min_samples)


def _student(recipe: Recipe, teacher: EncoderConfig, known: bool) -> Iterator[tuple[str, str]]:
    """Size and cost of the student; of one to be pruned only its size is known."""
    student = SHAPES[recipe.student.name](recipe.student, teacher)
    whole = parameters(teacher)
    if recipe.pruning is not None:
        SparsityLagrangian(recipe.pruning, student, whole, steps=1)  # whether the target can be reached
        left = round((1 - recipe.pruning.target) * whole)
        yield "parameters", f"about {left:,}, which units is learned" + (_share(left, whole) if known else "")
        return
    yield "parameters", f"{parameters(student):,}" + (_share(parameters(student), whole) if known else "")
    macs, teacher_macs = (count_macs(config, TEN_SECONDS) for config in (student, teacher))
    yield "MACs for 10 s", _giga(macs) + (_share(macs, teacher_macs) if known else "")


def teacher_shape(name: str) -> tuple[EncoderConfig, bool]:
    """The teacher's configuration and True; when it is not on this machine, what its name says and False.

    Raises:
        UserError: its config.json cannot be read, or holds what is not supported.
    """
    path = EMBEDDED_TEACHER if name == "embedded" else expanded(name)
    config = path / "config.json" if os.path.exists(path) else _in_hub_cache(name)
    if config is None:
        plain = name.lower().replace("-", "")
        family = next((family for family in FAMILIES if family in plain), "hubert")
        size = LARGE if any(large in plain for large in LARGE_NAMES) else {}
        return huggingface.parse_config({"model_type": family, **size}, False, name), False
    if not config.is_file():  # one of the formats that keep the shape beside the weights
        return load(path).config, True
    values = read_json(config)
    if huggingface.matches(values):
        return huggingface.parse_config(values, False, str(config)), True
    return EncoderConfig.from_dict(values, str(config)), True


def _model(config: EncoderConfig) -> str:
    return f"{FAMILIES[config.family].title} {'Large' if config.num_layers == LARGE['num_hidden_layers'] else 'Base'}"


def _in_hub_cache(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json") if name.count("/") == 1 else None
    return Path(found) if isinstance(found, str) else None


def parameters(config: EncoderConfig) -> int:
    """Trainable numbers of an encoder, counted without making any."""
    with torch.device("meta"):
        return parameter_count(SpeechEncoder(config))


def _length(recipe: Recipe, min_samples: int) -> Iterator[tuple[str, str]]:
    """Optimiser steps and audio hours, of each stage."""
    trainers = {"": recipe.trainer}
    if recipe.pruning is not None:
        trainers = {"joint: ": recipe.trainer, "final: ": recipe.pruning.final.trainer(recipe.trainer)}
    corpus, devices = recipe.corpus, device_count(recipe.trainer.devices) * recipe.trainer.num_nodes
    accumulate = recipe.trainer.accumulate
    step_seconds = corpus.batch_seconds * accumulate * devices
    of_each = f"of at most {step_seconds:g} s ({corpus.batch_seconds:g} s x {accumulate} batches x {devices} devices)"
    epoch_hours, windows = _epoch(recipe, devices, min_samples) if recipe.trainer.steps is None else (None, None)
    for stage, trainer in trainers.items():
        epochs = trainer.epochs or 0
        if trainer.steps is not None:
            yield "steps", f"{stage}{trainer.steps:,} {of_each}"
            yield "audio", f"{stage}at most {trainer.steps * step_seconds / 3600:,.1f} hours"
        elif epoch_hours is None:
            yield "steps", f"{stage}{epochs} epochs of a corpus that is not on this machine"
        else:
            exact = windows is not None
            steps = epochs * (windows if windows is not None else int(epoch_hours * 3600 // step_seconds))
            yield "steps", f"{stage}{'' if exact else 'about '}{steps:,} {of_each}"
            hours_said = f"{epochs * epoch_hours:,.1f} hours ({epochs} epochs of {epoch_hours:,.1f})"
            yield "audio", stage + hours_said + ("" if exact else ", the corpus not looked at")


def _epoch(recipe: Recipe, devices: int, min_samples: int) -> tuple[float | None, int | None]:
    """Hours of an epoch and its optimiser steps, as far as they can be known."""
    config = recipe.corpus
    if config.path == EMBEDDED:  # not made for this
        from distiller.synthesis.splits import SPLITS

        return SPLITS["train"].utterances * EMBEDDED_SECONDS / 3600, None
    if not os.path.exists(expanded(config.path)):
        known = bool(config.subsets) and set(config.subsets) <= set(LIBRISPEECH_HOURS)
        return sum(LIBRISPEECH_HOURS[name] for name in config.subsets) if known else None, None
    from distiller.audio.decoding import Decoder
    from distiller.audio.sampler import StepBatchSampler, step_batches_per_epoch

    train = open_corpus(config, Decoder(min_samples)).train
    sampler = StepBatchSampler(
        train, config.batch_seconds, config.buckets, recipe.seed, 0, devices, recipe.trainer.accumulate
    )
    return hours(train), step_batches_per_epoch(sampler)


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.2f} G"


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.1%} of the teacher's)"
