"""A run from its recipe to its report."""

import time
from pathlib import Path

import torch

from distiller.audio.skipped import skipped_count
from distiller.common.values import digest
from distiller.corpora.corpus import hours
from distiller.distillation import stages
from distiller.distillation.run_folder import accept_inputs, forgetting_a_failed_scan
from distiller.distillation.teacher import identity, load_teacher
from distiller.recipes.recipe import Recipe
from distiller.reports import card, report
from distiller.reports.distances import write_distances
from distiller.reports.figures import distance_curves, loss_curves, phone_accuracy, remaining_units
from upstream.checkpoint import save


def distil(recipe: Recipe, output: Path) -> None:
    """Run a recipe to its end in `output`, continuing with whatever an earlier process left there.

    First the stages of the recipe's student, then student/, then report.json, which marks the run as complete.

    Raises:
        UserError: whatever the user can correct.
    """
    started = time.perf_counter()
    run = open_run(recipe, output)
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
    probe = report.probe_all(run.teacher, distilled.untrained, student) if recipe.probe.enabled else None
    seconds = distilled.seconds + time.perf_counter() - started
    skipped = skipped_count(output / "skipped.csv")
    result = report.summary(recipe, distilled.folders[-1], student, probe, skipped, seconds)
    result["corpus"] = run.corpus.inventory.to_dict()
    if distilled.pruning is not None:
        result["pruning"] = distilled.pruning
    if probe is not None:
        phone_accuracy(output, probe)
    save(student, output / "student", extra_files=card.files(output, result))
    report.write_report(output, result)


def open_run(recipe: Recipe, output: Path) -> stages.Run:
    """The teacher and the corpus of a run, the same as when it began, wherever they lie now.

    Raises:
        UserError: one of them cannot be used, or is another one.
    """
    run = stages.Run(recipe, output, load_teacher(recipe.teacher))
    with forgetting_a_failed_scan(output):
        corpus = run.corpus
        cuts = [[(cut.id, round(cut.duration, 4)) for cut in part] for part in (corpus.train, corpus.validation)]
        found = {"utterances": sum(map(len, cuts)), "hours": round(hours(corpus.train + corpus.validation), 4)}
        found["ids_and_durations"] = digest(cuts)[:16]
        accept_inputs(output, recipe, {"teacher": identity(run.teacher), "corpus": found})
    return run
