"""A run from its recipe to its report."""

import time
from pathlib import Path

import torch

from distiller.audio.skipped import skipped_count
from distiller.distillation import stages
from distiller.distillation.teacher import load_teacher
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
    run = stages.Run(recipe, output, load_teacher(recipe.teacher))
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
