"""What a recipe would do and cost; nothing is trained, downloaded or written."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch

from distiller.common.files import expanded
from distiller.common.provenance import TEN_SECONDS, parameter_count
from distiller.corpora.config import AUTO, SYNTHETIC
from distiller.corpora.corpus import hours, open_corpus
from distiller.recipes.recipe import BUNDLED, Recipe, final_stage, in_batches, to_yaml
from distiller.students.lagrangian import SparsityLagrangian
from distiller.teachers.several import check_frame_rates, teacher_names
from distiller.teachers.teacher import BUNDLED_TEACHER
from distiller.training.devices import device_count
from upstream.checkpoint import load
from upstream.config import EncoderConfig
from upstream.cost import count_macs
from upstream.encoder import SpeechEncoder
from upstream.families import FAMILIES
from upstream.formats import huggingface
from upstream.formats.files import read_json

LARGE: dict[str, int | bool | str] = {  # settings of transformers
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True,
}  # fmt: skip
WHISPER = {"tiny": (384, 4), "base": (512, 6), "small": (768, 12), "medium": (1024, 24), "large": (1280, 32)}
LARGE_NAMES = ("large", "xlsr", "mms300m")
LIBRISPEECH_HOURS = {"train-clean-100": 100.6, "train-clean-360": 363.6, "train-other-500": 496.7}  # as published
SYNTHETIC_SECONDS = 3.0  # of an utterance, about


def print_plan(recipe: Recipe) -> None:
    """Print the recipe as YAML with every key, its costs as comments at the end: a complete recipe file.

    Raises:
        UserError: a teacher or corpus that exists but cannot be used.
    """
    print(to_yaml(recipe))
    for name, text in costs(recipe):
        print(f"# {name:<13} {text}")


def costs(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Names and texts of the lines about size and cost."""
    names, found = teacher_names(recipe), [teacher_shape(teacher.path) for teacher in recipe.all_teachers]
    for name, section, (teacher, known) in zip(names, recipe.all_teachers, found, strict=True):
        if known:
            macs = _giga(count_macs(teacher, TEN_SECONDS))
            unused = "" if recipe.objective.needs_teacher else "; no training step runs it"
            of = f"{name}: " if len(names) > 1 else ""
            yield "teacher", f"{of}{parameters(teacher):,} parameters, {macs} MACs for 10 s{unused}"
        else:
            yield "teacher", f"{section.path} is not on this machine; taken to be {_model(teacher)}"
    teacher, known = found[0]
    student, shapes = recipe.student.shape(teacher), [shape for shape, _ in found]
    check_frame_rates(dict(zip(names, shapes, strict=True)), student)
    yield from _student(recipe, teacher, known)
    yield from _length(recipe, max(shape.min_samples for shape in (*shapes, student)))


def _student(recipe: Recipe, teacher: EncoderConfig, known: bool) -> Iterator[tuple[str, str]]:
    """Size and cost of the student; only the size is known of one that will be pruned."""
    student, teacher_size = recipe.student.shape(teacher), parameters(teacher)
    if recipe.pruning is not None:
        SparsityLagrangian(recipe.pruning, student, teacher_size, steps=1)  # raises if the target is out of reach
        size = round((1 - recipe.pruning.target) * teacher_size)
        yield (
            "parameters",
            f"about {size:,}; which units remain is learned" + (_share(size, teacher_size) if known else ""),
        )
        return
    size = parameters(student)
    yield "parameters", f"{size:,}" + (_share(size, teacher_size) if known else "")
    macs, teacher_macs = (count_macs(config, TEN_SECONDS) for config in (student, teacher))
    yield "MACs for 10 s", _giga(macs) + (_share(macs, teacher_macs) if known else "")


def teacher_shape(name: str) -> tuple[EncoderConfig, bool]:
    """The teacher's configuration and True; or False and a guess by its name when it is not on this machine.

    Raises:
        UserError: its config.json cannot be read, or holds an unsupported setting.
    """
    path = BUNDLED_TEACHER if name == BUNDLED else expanded(name)
    config = path / "config.json" if os.path.exists(path) else _in_hub_cache(name)
    if config is None:
        plain = name.lower().replace("-", "")
        family = next((family for family in FAMILIES if family.replace("-", "") in plain), "hubert")
        size = LARGE if any(large in plain for large in LARGE_NAMES) else {}
        if family == "whisper":
            width, layers = next((size for word, size in WHISPER.items() if word in plain), WHISPER["base"])
            size = {"d_model": width, "encoder_layers": layers, "encoder_ffn_dim": 4 * width}
            size |= {"encoder_attention_heads": width // 64}
        return huggingface.parse_config({"model_type": family, **size}, False, name), False
    if not config.is_file():  # a format that keeps the shape inside the file of weights
        return load(path).config, True
    values = read_json(config)
    if huggingface.matches(values):
        return huggingface.parse_config(values, False, str(config)), True
    return EncoderConfig.from_dict(values, str(config)), True


def _model(config: EncoderConfig) -> str:
    size = "Large" if config.num_layers == LARGE["num_hidden_layers"] else "Base"
    if config.whisper:
        size = next((name for name, (width, _) in WHISPER.items() if width == config.embed_dim), "")
    return f"{FAMILIES[config.family].title} {size}"


def _in_hub_cache(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json") if name.count("/") == 1 else None
    return Path(path) if isinstance(path, str) else None


def parameters(config: EncoderConfig) -> int:
    """Number of parameters of an encoder, without allocating them."""
    with torch.device("meta"):
        return parameter_count(SpeechEncoder(config))


def _length(recipe: Recipe, min_samples: int) -> Iterator[tuple[str, str]]:
    """Optimiser steps and audio hours, of each stage."""
    trainers = {"": recipe.trainer}
    if recipe.pruning is not None:
        trainers = {"joint: ": recipe.trainer, "final: ": final_stage(recipe).trainer}
    devices, auto = device_count(recipe.trainer.devices) * recipe.trainer.num_nodes, recipe.corpus.batch_seconds == AUTO
    if auto:
        recipe = in_batches(recipe, devices, math.inf)
        yield "batches", f"{recipe.corpus.seconds:g} s a step on each device, in equal parts that fit its memory"
    seconds, accumulate = recipe.corpus.seconds, recipe.trainer.accumulate
    step_seconds = seconds * accumulate * devices
    of_each = f"of at most {step_seconds:g} s ({seconds:g} s x {accumulate} batches x {devices} devices)"
    known = _epoch(recipe, devices, min_samples) if recipe.trainer.steps is None else (None, None, [])
    epoch_hours, windows, lines = known
    yield from (cast(tuple[str, str], tuple(line.split(": ", 1))) for line in lines)
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
            yield "steps", f"{stage}{'about ' if auto or not exact else ''}{steps:,} {of_each}"
            total_hours = f"{epochs * epoch_hours:,.1f} hours ({epochs} epochs of {epoch_hours:,.1f})"
            yield "audio", stage + total_hours + ("" if exact else ", without looking at the corpus")


def _epoch(recipe: Recipe, devices: int, min_samples: int) -> tuple[float | None, int | None, list[str]]:
    """Hours of an epoch, its optimiser steps, and how much of the corpus is split or left out, as far as known."""
    config = recipe.corpus
    if config.path == SYNTHETIC:  # not synthesised for this
        from distiller.synthesis.splits import SPLITS

        return SPLITS["train"].utterances * SYNTHETIC_SECONDS / 3600, None, []
    if not os.path.exists(expanded(config.path)):
        known = bool(config.subsets) and set(config.subsets) <= set(LIBRISPEECH_HOURS)
        return sum(LIBRISPEECH_HOURS[name] for name in config.subsets) if known else None, None, []
    from distiller.audio.decoding import Decoder
    from distiller.audio.sampler import StepBatchSampler, step_batches_per_epoch

    corpus = open_corpus(config, Decoder(min_samples))
    sampler = StepBatchSampler(
        corpus.train, config.seconds, config.buckets, recipe.seed, 0, devices, recipe.trainer.accumulate
    )
    return hours(corpus.train), step_batches_per_epoch(sampler), corpus.inventory.lines()


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.2f} G"


def _share(part: int, total: int) -> str:
    return f" ({part / total:.1%} of the teacher's)"
