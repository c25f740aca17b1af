"""SUPERB's MTWV and DER, printed at the end of s3prl's evaluation of QbE and SD, which leaves them to other tools.

So the command in a row of the suite's scores.csv prints the number in that row.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from downstream_recipes.adaptation.import_hooks import Action, after_import
from downstream_recipes.scores.error_rates import score_diarization, score_search
from upstream.errors import UserError


def print_after_evaluation() -> None:
    """From now on an evaluation of QbE or SD in this process prints its score too."""
    after_import(
        {
            "s3prl.downstream.quesst14_dtw.expert": _ending_with(term_weighted_value),
            "s3prl.downstream.diarization.expert": _ending_with(diarization_error_rate),
        }
    )


def _ending_with(line: Callable[[Any, str], str]) -> Action:
    """An action on an expert's module: after an evaluation print `line(expert, split)`, or why there is no score."""

    def adapt(module: ModuleType) -> None:
        log_records = module.DownstreamExpert.log_records

        def log_and_print(expert: Any, mode: str, **arguments: Any) -> Any:
            names = log_records(expert, mode, **arguments)
            try:
                text = line(expert, mode)
            except (UserError, OSError) as error:  # a corpus without ground truth; s3prl's own work is done
                text = f"{mode}: no score, {error}"
            if text:
                print(text)
            return names

        module.DownstreamExpert.log_records = log_and_print

    return adapt


def term_weighted_value(expert: Any, split: str) -> str:
    value, threshold = score_search(expert.expdir, Path(expert.datarc["dataset_root"]), split)
    return f"{split} mtwv: {value:.6f} (threshold {threshold:.4f})"


def diarization_error_rate(expert: Any, split: str) -> str:
    if split != "test" or not expert.save_predictions:  # s3prl only keeps predictions of test
        return ""
    rate, median, threshold = score_diarization(Path(expert.expdir), Path(expert.loaderrc["test_dir"]))
    return f"{split} lowest der: {rate:.4f} (median {median}, threshold {threshold})"
