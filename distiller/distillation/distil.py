"""A run from its recipe to its report."""

import copy
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import torch

from distiller.audio.batch import Batch
from distiller.audio.skipped import skipped_count
from distiller.codebooks.folder import UnitFolder
from distiller.common.files import lock_folder, write_json
from distiller.common.process import rank
from distiller.corpora.config import AUTO
from distiller.corpora.corpus import open_corpus
from distiller.corpora.scanning import forgetting_a_failed_scan
from distiller.distillation import stages
from distiller.distillation.run_folder import BATCH, TEACHERS, accept_inputs
from distiller.objectives.config import ClustersConfig, ObjectiveConfig, UnitsObjectiveConfig
from distiller.recipes.recipe import Recipe, in_batches
from distiller.reports import card, report
from distiller.reports.distances import write_distances
from distiller.reports.figures import distance_curves, loss_curves, phone_accuracy, remaining_units
from distiller.reports.references import load_references
from distiller.teachers.several import targets_of
from distiller.teachers.teacher import identity, load_teacher
from distiller.training.devices import device_count, fitting_seconds, indices
from distiller.training.loop import HALF, arrange_layers
from upstream.checkpoint import save
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError

OWN_MEMORY = {"cuda"}  # accelerators whose memory batches should fill
FILLED = 0.85  # share of the free memory; the rest is for fragmentation and gradient exchange
WITHOUT_LIMIT = 100.0  # seconds of a batch on the others


def distil(recipe: Recipe, output: Path) -> None:
    """Run a recipe to its end in `output`, continuing from whatever an earlier process left there.

    The stages of the recipe's student come first, then student/, then report.json, which marks the run as complete.

    Raises:
        UserError: whatever the user can correct.
    """
    started = time.perf_counter()
    run = open_run(recipe, output)
    recipe = run.recipe
    references = load_references(recipe.probe, identity(run.teacher))
    words = report.load_words(recipe.probe, run.teacher)
    torch.manual_seed(recipe.seed)
    distilled = stages.distil(run)
    if distilled is None:  # not the first rank
        return
    student = distilled.student.eval()
    loss_curves(output, distilled.folders)
    write_distances(output / "distances.csv", run.teacher, student, run.held_out)
    distance_curves(output)
    if recipe.pruning is not None:
        remaining_units(output, run.teacher.config, student.config, distilled.folders[0])
    encoders = {"student": student}
    if not references:
        encoders = {"random": distilled.untrained, "teacher": run.teacher} | encoders
    frame_count = student.config.frame_count if recipe.probe.enabled else None
    probe = report.probe_all(encoders, frame_count, words, references)
    seconds = distilled.seconds + time.perf_counter() - started
    skipped = skipped_count(output / "skipped.csv")
    result = report.summary(recipe, distilled.folders[-1], student, probe, skipped, seconds)
    result["corpus"] = run.corpus.inventory.to_dict()
    if distilled.pruning is not None:
        result["pruning"] = distilled.pruning
    if recipe.probe.enabled:
        phone_accuracy(output, probe)
    save(student, output / "student", extra_files=card.files(output, result))
    report.write_report(output, result)


def open_run(recipe: Recipe, output: Path) -> stages.Run:
    """The teacher and the corpus of a run, the same as when it began, wherever they are now.

    Raises:
        UserError: one of them cannot be used, or has changed.
    """
    run = stages.Run(recipe, output, [load_teacher(teacher.path) for teacher in recipe.all_teachers])
    with forgetting_a_failed_scan(output / "corpus"):
        _ = run.augment  # its folders are opened before anything slow
        run = settle_batches(run)
        inputs = {"teacher": identity(run.teacher), "corpus": run.corpus.identity()}
        if recipe.teachers:
            inputs[TEACHERS] = {
                f"teacher {index}": identity(teacher) | {"weight": section.weight, "layers": section.layers}
                for index, (teacher, section) in enumerate(zip(run.teachers, recipe.teachers, strict=True), start=1)
            }
        for section in run.recipe.objective.parts():
            if isinstance(section, UnitsObjectiveConfig) and section.targets is not None:
                inputs["units"] = UnitFolder(section.targets).identity()
        accept_inputs(output, run.recipe, inputs)
    return run


def settle_batches(run: stages.Run) -> stages.Run:
    """The run with a number in place of corpus.batch_seconds=auto; all of its processes get the same one."""
    recipe = run.recipe
    if recipe.corpus.batch_seconds != AUTO:
        return run
    devices, most = device_count(recipe.trainer.devices) * recipe.trainer.num_nodes, WITHOUT_LIMIT
    if recipe.trainer.accelerator in OWN_MEMORY:
        whole = replace(run, recipe=in_batches(recipe, devices, math.inf))
        cuts = open_corpus(whole.recipe.corpus, run.decoder, run.output / "corpus").train
        with lock_folder(run.output / "corpus", ".busy", wait=True):  # one of them measures
            if not (run.output / BATCH).exists():
                longest = max(cut.duration for cut in cuts)
                write_json(run.output / BATCH, {"seconds": filling_seconds(whole, longest)})
            most = json.loads((run.output / BATCH).read_text())["seconds"]
    recipe = in_batches(recipe, devices, most)
    if rank() == 0:
        count, seconds = recipe.trainer.accumulate, recipe.corpus.seconds
        print(f"corpus.batch_seconds is auto: {count} batches of at most {seconds:g} s a step on each device")
    return replace(run, recipe=recipe)


def filling_seconds(run: stages.Run, longest: float) -> float:
    """Seconds of audio, in utterances of `longest`, that fill this process's device in a step of the first stage.

    Raises:
        UserError: it is too small for the steps that are measured.
    """
    recipe, teachers = run.recipe, copy.deepcopy(run.teachers)
    devices = str(recipe.trainer.devices)
    places = indices(devices) if "," in devices else range(int(devices))
    device = torch.device(recipe.trainer.accelerator, places[rank() % len(places)])
    free, _ = torch.cuda.mem_get_info(device)

    def known(teacher: SpeechEncoder, name: str, section: ObjectiveConfig) -> ObjectiveConfig:
        if not isinstance(section, ClustersConfig) or section.clusters is not None:
            return section
        layers = section.layers or range(teacher.config.num_layers + 1)  # no other clustering needs more memory
        return replace(section, clusters=[[layer] for layer in layers], target="mean")

    module = stages.first_module(replace(run, teachers=teachers), targets_of(recipe, teachers, known)).train()
    half = HALF.get(recipe.trainer.precision)
    module.to(device)
    module.move_frozen(device, half)
    arrange_layers(module, replace(recipe.trainer, compile=False), device, seconds=0.0)
    module.steps = 1  # schedules do not matter here
    optimizer = module.optimizer()

    def peak(utterances: int, samples: int) -> float:
        lengths = torch.full((utterances,), samples * 9 // 10)  # a mask for padding takes memory, too
        batch = Batch(0.1 * torch.randn(utterances, samples), lengths, [], [], []).to(device)
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(2):  # at the second, the optimizer has its states
            optimizer.zero_grad()
            with torch.autocast(device.type, half, enabled=half is not None):
                loss, _ = module(batch, {unit: torch.ones((), device=device) for unit in ("utterance", "frame")})
            (loss + module.penalty()[0]).backward()
            optimizer.step()
        return torch.cuda.max_memory_allocated(device)

    try:
        return fitting_seconds(longest, FILLED * free, peak)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"corpus.batch_seconds is auto, but {device} has too little memory to find a value; give a number"
        ) from error
    finally:
        module.cpu()
        for teacher in teachers:
            teacher.cpu()
        optimizer.state.clear()
        torch.cuda.empty_cache()
