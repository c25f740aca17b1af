"""SUPERB's MTWV and DER, printed after s3prl's evaluation of QbE and SD, which does not compute them.

Thus the command in a row of the suite's scores.csv prints the number in that row.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from downstream_recipes.adaptation.import_hooks import after_import
from downstream_recipes.scores.error_rates import score_diarization, score_search
from upstream.errors import UserError


def print_after_evaluation() -> None:
    """Make evaluations of QbE and SD in this process print their scores too."""
    after_import(
        {
            "s3prl.downstream.quesst14_dtw.expert": partial(_end_with, term_weighted_value),
            "s3prl.downstream.diarization.expert": partial(_end_with, diarization_error_rate),
        }
    )


def _end_with(line: Callable[[Any, str], str], module: ModuleType) -> None:
    """Make a module's expert print `line(expert, split)` after an evaluation, or why there is no score."""
    log_records = module.DownstreamExpert.log_records

    def log_and_print(expert: Any, mode: str, **arguments: Any) -> Any:
        names = log_records(expert, mode, **arguments)
        try:
            text = line(expert, mode)
        except (UserError, OSError) as error:  # a corpus without ground truth; s3prl has finished its work
            text = f"{mode}: no score, {error}"
        if text:
            print(text)
        return names

    module.DownstreamExpert.log_records = log_and_print


def term_weighted_value(expert: Any, split: str) -> str:
    value, threshold = score_search(expert.expdir, Path(expert.datarc["dataset_root"]), split)
    return f"{split} mtwv: {value:.6f} (threshold {threshold:.4f})"


def diarization_error_rate(expert: Any, split: str) -> str:
    if split != "test" or not expert.save_predictions:  # s3prl only keeps predictions of test
        return ""
    rate, median, threshold = score_diarization(Path(expert.expdir), Path(expert.loaderrc["test_dir"]))
    return f"{split} lowest der: {rate:.4f} (median {median}, threshold {threshold})"
