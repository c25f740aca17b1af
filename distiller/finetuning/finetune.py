"""A fine-tuning run, from its recipe to its report."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from distiller.audio.batch import Batch
from distiller.audio.dataset import AudioDataset, validation_batches
from distiller.audio.decoding import Decoder
from distiller.audio.sampler import StepBatchSampler
from distiller.audio.skipped import SkippedLog, check_share, skipped_count
from distiller.augmentation.augmenter import Augmenter, open_augmenter
from distiller.common.files import write_csv, write_json
from distiller.common.process import rank
from distiller.common.progress import progress
from distiller.common.provenance import ORIGIN, parameter_count, public
from distiller.common.values import digest
from distiller.corpora.corpus import Corpus, hours, open_audio, open_corpus
from distiller.corpora.scanning import forgetting_a_failed_scan
from distiller.distillation.run_folder import REPORT, SKIPPED, accept_inputs
from distiller.finetuning.config import LOG_MEL, FineTuning
from distiller.finetuning.decoding import Beam, ErrorRates, error_rates, greedy, require_packages
from distiller.finetuning.log_mel import LogMel
from distiller.finetuning.module import CTC
from distiller.finetuning.recognizer import Recognizer
from distiller.finetuning.transcripts import Labelled, label
from distiller.reports.report import of_training
from distiller.teachers.teacher import identity, load_teacher
from distiller.training.loop import Training
from upstream.encoder import SpeechEncoder

MODEL, BEST, TRANSCRIPTS = "model", "best", "transcripts.csv"


@dataclass(frozen=True)
class Run:
    """The parts of a run, opened and checked."""

    recipe: FineTuning
    output: Path
    encoder: SpeechEncoder | LogMel
    corpus: Corpus
    labelled: Labelled
    augment: Augmenter | None

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.encoder.config.min_samples)

    def held_out(self) -> list[Callable[[], Batch]]:
        return validation_batches(self.labelled.held_out, self.recipe.corpus.seconds, self.decoder)


def finetune(recipe: FineTuning, output: Path) -> None:
    """Run a recipe to its end in `output`, continuing from what an earlier process left there.

    Training comes first, then model/, then report.json, which marks the run as complete.

    Raises:
        UserError: whatever the user can correct.
    """
    started = time.perf_counter()
    run = open_run(recipe, output)
    torch.manual_seed(recipe.seed)
    module = CTC(Recognizer(run.encoder, run.labelled.vocabulary), run.labelled.targets, recipe)
    if not train(run, module):  # not the first rank
        return
    recognizer = module.kept_recognizer().eval()
    device = recipe.trainer.accelerator if recipe.trainer.accelerator in ("cuda", "mps") else "cpu"
    rows = transcribed(recognizer.to(device), run.held_out(), recipe.decoding.beam)
    rates = rates_of(rows, run.labelled.texts)
    write_csv(output / TRANSCRIPTS, [{"id": row["id"], "said": run.labelled.texts[row["id"]]} | row for row in rows])
    seconds = module.progress.elapsed + time.perf_counter() - started
    result = of_training("finetune", recipe, output, skipped_count(output / SKIPPED), seconds)
    result |= {
        "parameters": parameter_count(recognizer),
        "corpus": run.corpus.inventory.to_dict(),
        "vocabulary": {"kind": recognizer.vocabulary.kind, "tokens": len(recognizer.vocabulary)},
        "held_out": {"utterances": len(rows), "hours": round(hours(run.labelled.held_out), 4)}
        | {name: asdict(value) for name, value in rates.items()},
    }
    origin = json.dumps({"teacher": public(recipe.model)}) + "\n"
    recognizer.cpu().save(output / MODEL, {"README.md": card(recipe, result), ORIGIN: origin})
    write_json(output / REPORT, result)
    print_results(output)


def open_run(recipe: FineTuning, output: Path) -> Run:
    """The encoder, the corpus and its transcripts, the same as when the run began, wherever they are now.

    Raises:
        UserError: one of them cannot be used, or has changed.
    """
    encoder: Any = LogMel() if recipe.model == LOG_MEL else load_teacher(recipe.model)
    with forgetting_a_failed_scan(output / "corpus"):
        augment = open_augmenter(recipe.corpus.augment, recipe.seed, open_audio)
        corpus = open_corpus(recipe.corpus, Decoder(encoder.config.min_samples), output / "corpus")
        labelled = label(corpus, recipe, encoder.config)
        require_packages(recipe.decoding.beam, labelled.vocabulary)
        lines = corpus.inventory.lines("corpus.batch_seconds and .max_seconds say so")
        if set_aside := labelled.skipped:
            total = len(set_aside) + len(labelled.train) + len(labelled.held_out)
            example = f"such as {set_aside[0].path} ({set_aside[0].reason})"
            check_share(len(set_aside), total, recipe.corpus.max_skipped, example)
            lines.append(f"set aside: {len(set_aside)} utterances, {example}")
        if rank() == 0:
            print("".join(f"{line}\n" for line in lines), end="")
        texts = digest([sorted(labelled.texts.items()), labelled.vocabulary.to_dict()])[:16]
        inputs = {"model": identity(encoder), "corpus": corpus.identity(), "transcripts": {"digest": texts}}
        accept_inputs(output, recipe, inputs)
    return Run(recipe, output, encoder, corpus, labelled, augment)


def train(run: Run, module: CTC) -> bool:
    """Fit a module on the run's corpus, as `Training.fit`."""
    recipe, section, labelled = run.recipe, run.recipe.corpus, run.labelled
    skipped = SkippedLog(run.output / SKIPPED, section.max_skipped)
    skipped.record([*run.corpus.skipped, *labelled.skipped])

    def batches(rank: int, world_size: int) -> StepBatchSampler:
        accumulate = recipe.trainer.accumulate
        settings = (section.seconds, section.buckets, recipe.seed)
        return StepBatchSampler(labelled.train, *settings, rank, world_size, accumulate)

    training = Training(
        module,
        AudioDataset(labelled.train, run.decoder, recipe.seed, run.augment),
        batches,
        recipe.trainer,
        run.output,
        workers=section.workers,
        held_out=run.held_out(),
        keep_best=lambda trained: module.kept_recognizer().save(run.output / BEST),
        skipped=skipped,
    )
    return training.fit()


@torch.no_grad()
def transcribed(recognizer: Recognizer, batches: Sequence[Callable[[], Batch]], beam: int = 0) -> list[dict[str, str]]:
    """A row for each utterance: its id, its text by greedy decoding, and by beam search if `beam` is above 0."""
    search = Beam(recognizer.vocabulary, beam) if beam else None
    device = recognizer.head.weight.device
    rows = []
    for make in progress(batches, "transcribing"):
        batch = make().to(device)
        logits, lengths = recognizer(batch.waveforms, batch.lengths)
        for name, row, frames in zip(batch.ids, logits.cpu(), lengths.tolist(), strict=True):
            found = {"id": name, "greedy": greedy(row[:frames], recognizer.vocabulary)}
            rows.append(found | ({} if search is None else {"beam": search(row[:frames])}))
    return rows


def rates_of(rows: Sequence[dict[str, str]], texts: dict[str, str]) -> dict[str, ErrorRates]:
    """The error rates of each way of decoding."""
    references = [texts[row["id"]] for row in rows]
    return {name: error_rates(references, [row[name] for row in rows]) for name in rows[0] if name != "id"}


def card(recipe: FineTuning, result: dict[str, Any]) -> str:
    """README.md of the model."""
    held_out, tokens = result["held_out"], result["vocabulary"]
    rows = "".join(f"| {name} | {row['wer']:.2f} | {row['cer']:.2f} |\n" for name, row in _decoded(held_out))
    return f"""# Speech recognition, {result["parameters"]:,} parameters

`{public(recipe.model)}`, fine-tuned by CTC on `{public(recipe.corpus.path)}`: {tokens["tokens"]} tokens
({tokens["kind"]}), {result["losses"]["train"]["step"]:.0f} steps.
`python distiller/transcribe.py FOLDER FILE...` opens it.

Error rates in percent on {held_out["utterances"]} held-out utterances ({held_out["hours"]:.3g} hours):

| decoding | words | characters |
|---|---|---|
{rows}"""


def _decoded(held_out: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, row) for name, row in held_out.items() if isinstance(row, dict)]


def print_results(output: Path) -> None:
    """The error rates of a complete run."""
    held_out = json.loads((output / REPORT).read_text(encoding="utf-8"))["held_out"]
    print(f"{held_out['utterances']} held-out utterances, {held_out['hours']:.3g} hours")
    for name, row in _decoded(held_out):
        kinds = ", ".join(f"{row[kind]} {kind}" for kind in ("substitutions", "deletions", "insertions"))
        print(f"{name}: WER {row['wer']:.2f} %, CER {row['cer']:.2f} % ({kinds} in {row['words']} words)")
    print(f"the recogniser is in {output / MODEL}, its references and hypotheses in {output / TRANSCRIPTS}")
