"""The tasks of SUPERB: everything that differs between them, except their recipes (CODE.yaml) and their corpora."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from upstream.errors import UserError

FOLDER = Path(__file__).parents[1]  # of the recipes
# How a task is scored (suite/procedures.py): by the best checkpoint on dev (in diarization by a sweep over its
# predictions), by the best of all checkpoints on test, or by a search without training
Procedure = Literal["best on dev", "diarization", "best on test", "search"]


@dataclass(frozen=True)
class Metric:
    """A metric of a task; in the table a percentage, unless `unit` says otherwise.

    Args:
        name, title: in scores.csv and in the table.
        pattern: how s3prl prints it, with {split}; None: scores/error_rates.py computes it.
        scale: factor for the printed number: s3prl prints fractions where SUPERB reports percent.
        digits: decimals in the table.
    """

    name: str
    title: str
    higher_better: bool
    pattern: str | None = None
    scale: float = 100.0
    unit: str = "%"
    digits: int = 2

    def printed(self, text: str, split: str) -> list[float]:
        """Its values in s3prl's output about `split`, in order."""
        pattern = (self.pattern or "").format(split=re.escape(split))
        return [self.scale * float(value) for value in re.findall(pattern, text, re.MULTILINE)] if pattern else []

    @property
    def best(self) -> Callable[..., Any]:
        """Chooses the best of several values: `max` or `min`."""
        return max if self.higher_better else min

    def points(self, value: float) -> float:
        """The value as points of 100, higher better, as the overall score adds them up."""
        if self.unit == "fraction":
            return 100 * value
        return value if self.higher_better else 100 - value


@dataclass(frozen=True)
class Task:
    """A task of SUPERB.

    Args:
        title: SUPERB's name for it; its code is the same in lower case.
        downstream: s3prl's name for it, -d.
        metrics: its columns in the table.
        submission: the file (or folder) that s3prl leaves for the leaderboard, and its name there.
        dev_metric: selects checkpoints and learning rates on dev; default: the first of `metrics`.
        dev_split, test_split: s3prl's names, -t (QbE: QUESST's; to s3prl its eval is test).
        best: the file that s3prl keeps its best checkpoint in.
        split_section: the section of the recipe that lists the folders of each split, if the recipe does so.
        folds: s3prl's variants, -v, whose mean is the score.
        leaderboard: its code there, if it differs.
        extra: not one of the ten tasks of the table.
        packages: needed beyond the dependency group superb.
    """

    title: str
    downstream: str
    metrics: tuple[Metric, ...]
    submission: tuple[str, str] = ("test_predict.txt", "predict.txt")
    procedure: Procedure = "best on dev"
    dev_metric: Metric | None = None
    dev_split: str = "dev"
    test_split: str = "test"
    best: str = "dev-best.ckpt"
    split_section: str | None = None
    folds: tuple[str, ...] = ()
    leaderboard: str = ""
    extra: bool = False
    packages: tuple[str, ...] = ()

    @property
    def code(self) -> str:
        return self.title.lower()

    @property
    def recipe(self) -> Path:
        return FOLDER / f"{self.code}.yaml"

    @property
    def trained(self) -> bool:
        return self.procedure != "search"

    @property
    def judged_by(self) -> Metric:
        return self.dev_metric or self.metrics[0]

    def printed_scores(self, split: str, text: str) -> dict[Metric, float]:
        """The last printed value of each metric that s3prl prints.

        Raises:
            UserError: one of them was not printed.
        """
        values = {metric: metric.printed(text, split) for metric in self.metrics if metric.pattern}
        for metric in values:
            if not values[metric]:
                raise UserError(f"{self.code}: s3prl printed no {metric.name} for {split}")
        return {metric: printed[-1] for metric, printed in values.items()}

    def best_on_dev(self, text: str) -> float | None:
        """The best dev value that a training printed; None without an evaluation."""
        return self.judged_by.best(self.judged_by.printed(text, self.dev_split), default=None)


PER = Metric("per", "PER", False, r"^{split} per: (\S+)$")
WER = Metric("wer", "WER", False, r"^{split} wer: (\S+)$", scale=1)
ACCURACY = Metric("acc", "Acc", True, r"^{split} acc: (\S+)$")
MTWV = Metric("mtwv", "MTWV", True, unit="fraction", digits=4)
EER = Metric("eer", "EER", False, r"^sv-voxceleb1/{split}-EER: (\S+)$")
DER = Metric("der", "DER", False)
FRAME_ACCURACY = Metric("frame_acc", "frame accuracy", True, r"^mode {split} acc (\S+) der \S+$")  # not SUPERB's DER
SLOT_F1 = Metric("f1", "F1", True, r"^{split} slot_type_f1: (\S+)$")
SLOT_CER = Metric("cer", "CER", False, r"^{split} slot_value_cer: (\S+)$")
PESQ = Metric("pesq", "PESQ", True, r"^Average pesq of \d+ utts is (\S+)$", scale=1, unit="")
STOI = Metric("stoi", "STOI", True, r"^Average stoi of \d+ utts is (\S+)$", scale=1, unit="", digits=4)
SI_SDR = Metric("si_sdr", "SI-SDRi", True, r"^Average si_sdr of \d+ utts: (\S+)$", scale=1, unit="dB")

FOLDS = tuple(f"fold{number}" for number in range(1, 6))
BEST_STATES = "best-states-dev.ckpt"
SEPARATION = ("asteroid", "pesq", "pystoi")
HYPOTHESES, MEASURES = ("test-hyp.ark", "predict.ark"), ("test_metrics.txt", "metrics.txt")  # to be submitted
STDLIST = "benchmark.stdlist.xml"

_TASKS = [
    Task("PR", "ctc", (PER,), HYPOTHESES, split_section="corpus"),
    Task(
        "ASR",
        "asr",
        (WER,),
        ("test-clean-noLM-hyp.ark", "predict.ark"),
        dev_split="dev-clean",
        test_split="test-clean",
        best="dev-clean-best.ckpt",
        split_section="datarc",
    ),
    Task("KS", "speech_commands", (ACCURACY,)),
    Task("QbE", "quesst14_dtw", (MTWV,), (STDLIST, STDLIST), "search", test_split="eval"),
    Task("SID", "voxceleb1", (ACCURACY,)),
    Task("ASV", "sv_voxceleb1", (EER,), procedure="best on test", leaderboard="sv"),
    Task("SD", "diarization", (DER,), ("scoring/predictions", ""), "diarization", FRAME_ACCURACY, best=BEST_STATES),
    Task("IC", "fluent_commands", (ACCURACY,), ("test_predict.csv", "predict.csv")),
    Task("SF", "ctc", (SLOT_F1, SLOT_CER), HYPOTHESES, split_section="corpus"),
    Task("ER", "emotion", (ACCURACY,), ("test_{fold}_predict.txt", "predict.txt"), folds=FOLDS),
    Task("SE", "enhancement_stft", (PESQ, STOI), MEASURES, best=BEST_STATES, extra=True, packages=SEPARATION),
    Task("SS", "separation_stft", (SI_SDR,), MEASURES, best=BEST_STATES, extra=True, packages=SEPARATION),
]
TASKS = {task.code: task for task in _TASKS}


def find_task(name: str) -> Task | None:
    """The task with a SUPERB code or with s3prl's name; None for a task that has no recipe here.

    Raises:
        UserError: several tasks have this name in s3prl.
    """
    if name in TASKS:
        return TASKS[name]
    tasks = [task for task in TASKS.values() if task.downstream == name]
    if len(tasks) > 1:
        codes = " or ".join(task.code for task in tasks)
        raise UserError(f"-d {name} is more than one task; choose -d {codes}, or give a recipe with -c")
    return tasks[0] if tasks else None
