"""report.json, and the table at the end of a run."""

import json
import shlex
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from distiller.audio.inventory import Inventory
from distiller.common.files import read_columns, write_json
from distiller.common.process import rank
from distiller.common.provenance import TEN_SECONDS, command_line, commit, machine, parameter_count, peak_memory_mb
from distiller.probes.phones import Probe, retention
from distiller.probes.representations import CONTEXT, FRAME, encoder_layers, filterbank
from distiller.probes.words import Words
from distiller.recipes.recipe import AnyRecipe, ProbeConfig, Recipe, to_dict
from distiller.reports.figures import FIGURES, TERM
from distiller.reports.references import Rows
from upstream.cost import count_macs
from upstream.encoder import SpeechEncoder

ROWS = {
    "filterbank": "log-mel",
    "stacked_filterbank": f"log-mel, ±{CONTEXT} frames",
    "random": "random student",
    "teacher": "teacher",
    "student": "{method} student",
}
METHODS = {"star": "STaR", "clusters": "SKILL", "layers": "DPHuBERT", "predictions": "DistilHuBERT"}  # by objective
WORD = "word_"  # prefix of the name of a folder of recordings
COLUMNS = {  # accuracies in percent; columns for words in recordings are added if they were probed
    "phone": "phones",
    "phone_unseen": "unseen speakers",
    "phone_best": "best layer",
    "speaker": "speakers",
    "speaker_best": "best layer",
}


def load_words(config: ProbeConfig, teacher: SpeechEncoder) -> dict[str, Words]:
    """The recordings of the recipe's folders, by the name of the folder.

    Raises:
        UserError: a folder cannot be used.
    """
    shortest = max(FRAME, teacher.config.min_samples)
    words = {(folder := Path(path)).name: Words.load(folder, shortest) for path in config.words}
    for name, probe in words.items():
        if probe.skipped and rank() == 0:
            first = probe.skipped[0]
            print(f"probe.words: {name} has {len(probe.skipped)} unusable files, such as {first.path}: {first.reason}")
    return words


def probe_all(
    encoders: Mapping[str, SpeechEncoder],
    frame_count: Callable[[int], int] | None,
    words: Mapping[str, Words],
    references: Rows,
) -> Rows:
    """Both filterbanks and the encoders on the same probes: a row each, or nothing without any probe.

    Args:
        encoders: by the name of their row.
        frame_count: frames of an utterance, to probe phones and speakers; None: these are not probed.
        words: from `load_words`.
        references: from `load_references`; these rows are not measured again.
    """
    represented = {} if references else {"filterbank": filterbank(), "stacked_filterbank": filterbank(CONTEXT)}
    represented |= {name: encoder_layers(encoder.cpu().eval()) for name, encoder in encoders.items()}
    probes: dict[str, Probe | Words] = {} if frame_count is None else {"": Probe.synthetic(frame_count)}
    probes |= {f"_{name}": probe for name, probe in words.items()}
    rows: Rows = references | {name: {"layers": {}} for name in represented} if probes else {}
    for ending, probe in probes.items():
        for name, represent in represented.items():
            result = probe.run(represent, name)
            rows[name]["layers"] |= {f"{key}{ending}": values for key, values in result.pop("layers").items()}
            rows[name] |= {f"{key}{ending}": value for key, value in result.items()}
    return rows


def columns(row: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a probe's row in tables, and their titles."""
    shown = {key: title for key, title in COLUMNS.items() if key in row}
    for key, title in word_columns(row).items():
        shown |= {key: title, _best(key): "best layer"}
    return shown


def word_columns(keys: Collection[str]) -> dict[str, str]:
    """The keys for words by the last layer, one for each folder of recordings, and their titles."""
    known = set(keys)
    return {key: f"words, {key.removeprefix(WORD)}" for key in keys if key.startswith(WORD) and _best(key) in known}


def _best(key: str) -> str:
    return key.replace(WORD, f"{WORD}best_", 1)


def summary(
    recipe: Recipe,
    folder: Path,
    student: SpeechEncoder,
    probe: dict[str, dict[str, Any]],
    skipped: int,
    seconds: float,
) -> dict[str, Any]:
    """The content of report.json.

    Args:
        folder, skipped, seconds: as `of_training`.
        probe: rows of `probe_all`.
    """
    result = of_training("run", recipe, folder, skipped, seconds)
    result |= {"parameters": parameter_count(student), "macs_10s": count_macs(student.config, TEN_SECONDS)}
    if probe:
        result["probe"] = probe
        kept = [key for key in columns(probe["student"]) if not key.startswith("speaker")]
        result["retention"] = {key: retention(probe, key) for key in kept}
    return result


def of_training(command: str, recipe: AnyRecipe, folder: Path, skipped: int, seconds: float) -> dict[str, Any]:
    """The part of the report common to any training: its recipe, where it ran, and its losses.

    Args:
        command: the name of the script.
        folder: of the last stage, for its losses.
        skipped: files that could not be used.
        seconds: of the whole run.
    """
    steps, held_out = read_columns(folder / "metrics.csv"), read_columns(folder / "held_out.csv")
    steps.pop("step_seconds")
    losses: dict[str, Any] = {"train": _last(steps)}
    if held_out:
        losses |= {"held_out": _last(held_out), "held_out_best": min(held_out["loss"])}
    return {
        "recipe": to_dict(recipe),
        "command": command_line(command),
        "commit": commit(),
        "machine": machine(),
        "finished": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "seconds": round(seconds, 1),
        "peak_rss_mb": round(peak_memory_mb(children=True)),
        "losses": losses,
        "skipped": skipped,
    }


def _last(columns: dict[str, list[float]]) -> dict[str, float]:
    return {name.removeprefix(TERM): values[-1] for name, values in columns.items()}


def write_report(output: Path, result: dict[str, Any]) -> None:
    """Write report.json, which marks the run as finished, and show it."""
    write_json(output / "report.json", result)
    print_report(output)


def print_report(output: Path) -> None:
    """Print the table of a finished run, the location of its files, and what to try next."""
    result = json.loads((output / "report.json").read_text())
    if "probe" in result:
        Console(width=100).print(_probe_table(result))
    held_out = result["losses"].get("held_out", {}).get("loss")
    numbers = [
        f"{result['parameters']:,} parameters",
        f"{result['macs_10s'] / 1e9:.2f} G MACs for 10 s",
        f"{result['seconds']:.0f} s",
        f"peak {result['peak_rss_mb']} MB",
    ]
    numbers += [] if held_out is None else [f"held-out loss {held_out:.4g}"]
    numbers += [f"{result['skipped']} files skipped, see {output / 'skipped.csv'}"] if result["skipped"] else []
    print("".join(f"{line}\n" for line in audio_lines(result)), end="")
    if "pruning" in result:
        print(pruning_summary(result["pruning"]))
    figures = ", ".join(name for name in FIGURES if (output / name).exists())
    print(", ".join(numbers))
    print(f"\nStudent  {output / 'student'}\nFigures  {figures} in {output}\nNumbers  {output / 'report.json'}")
    code = f"from upstream.checkpoint import load; print(load({json.dumps(str(output / 'student'))}))"
    print(f"\nNext\n  python -c {shlex.quote(code)}\n  {another_run(result, output)}")


def audio_lines(result: Mapping[str, Any]) -> list[str]:
    """What was split or left out of the corpus; nothing for a report of an earlier version."""
    return Inventory.from_dict(result["corpus"]).lines() if "corpus" in result else []


def another_run(result: dict[str, Any], output: Path) -> str:
    """The shell command that made a run, with a new output and one change."""
    ending, change = _variant(result["recipe"])
    words, kept = iter(shlex.split(result["command"])), []
    for word in words:
        if word == "--output":
            next(words, None)
        elif not word.startswith(("--output=", f"{change.partition('=')[0]}=")) and word != "--overwrite":
            kept.append(word)
    return shlex.join([*kept[:2], f"--output={output}-{ending}", *kept[2:], change])


def _variant(recipe: dict[str, Any]) -> tuple[str, str]:
    """A run to try next: the suffix of its output, and the change."""
    if pruning := recipe.get("pruning"):
        target = "0.5" if pruning["target"] > 0.7 else "0.75"
        return target, f"pruning.target={target}"
    if recipe["objective"]["name"] == "star" and recipe["objective"]["scaling"] != "none":
        return "raw", "objective.scaling=none"
    return "again", f"seed={recipe['seed'] + 1}"


def _probe_table(result: dict[str, Any]) -> Table:
    shown = columns(result["probe"]["student"])
    accuracies = (Column(title, justify="right") for title in shown.values())
    heading = f"{'Linear probe, a' if 'phone' in shown else 'A'}ccuracy in percent; last layer unless stated"
    table = Table("", *accuracies, title=heading, box=box.SIMPLE_HEAD)
    method = " + ".join(METHODS.get(part, part) for part in str(result["recipe"]["objective"]["name"]).split("+"))
    for key, row in result["probe"].items():
        title = ROWS[key].format(method=method)
        table.add_row(title, *(f"{row[column]:.1f}" for column in shown))
    shares = (result["retention"].get(column) for column in shown)
    table.add_section()
    table.add_row("retention", *("" if share is None else f"{share:.2f}" for share in shares))
    return table


def pruning_summary(metadata: Mapping[str, Any]) -> str:
    """Whether pruning met its target, in a line; `metadata` is the content of pruning.json."""
    line = f"pruned {metadata['sparsity']:.1%} of the teacher's parameters (target {metadata['target']:.1%})"
    if not metadata["met"]:
        line += ": more than 1% off the target; increase trainer.steps or change pruning.lr"
    return line
