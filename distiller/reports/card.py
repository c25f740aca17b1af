"""The model card that a student carries, and the figures beside it."""

from pathlib import Path
from typing import Any

from distiller.reports.figures import FIGURES
from distiller.reports.report import outcome

# What a teacher's own card says of its weights; a student's card repeats it.
LICENCES = {
    "bundled": "Apache-2.0 (this project's own weights, trained on synthetic speech)",
    "facebook/hubert": "Apache-2.0",
    "facebook/wav2vec2": "Apache-2.0",
    "microsoft/wavlm": "see the licence that microsoft/wavlm's own card names",
}


def files(output: Path, result: dict[str, Any]) -> dict[str, bytes | str]:
    """README.md and the figures, as extra files of a saved student."""
    figures = {path.name: path.read_bytes() for name in FIGURES if (path := output / name).exists()}
    return {"README.md": model_card(result, list(figures)), **figures}


def model_card(result: dict[str, Any], figures: list[str]) -> str:
    """What the student is, where it comes from, how to use it and what was measured."""
    recipe = result["recipe"]
    teacher, corpus = recipe["teacher"], recipe["corpus"]["path"]
    licence = next((text for prefix, text in LICENCES.items() if teacher.startswith(prefix)), "as the teacher's")
    lines = [
        f"# {recipe['method']} student of {teacher}",
        "",
        f"A speech encoder of {result['parameters']:,} parameters; 10 s of audio take {result['macs_10s'] / 1e9:.2f} G "
        f"multiply-accumulates. Distilled from `{teacher}` on `{corpus}`, objective {recipe['objective']['name']}.",
        "",
        "```python",
        "from upstream.checkpoint import load",
        "",
        "encoder = load(PATH)                       # in eval mode",
        "out = encoder(waveforms, lengths)          # (batch, sample) at 16 kHz, (batch,)",
        "out.hidden_states                          # F^0..F^L, each (batch, frame, channel)",
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| teacher | {teacher} |",
        f"| teacher's licence | {licence} |",
        f"| audio | {corpus} |",
        f"| recipe | {recipe['method']}, seed {recipe['seed']} |",
        f"| code | commit {result['commit']} |",
        f"| training | {result['losses']['train']['step']:.0f} steps, {result['seconds']:.0f} s |",
    ]
    if "pruning" in result:
        lines.append(f"| pruning | {outcome(result['pruning'])} |")
    if "held_out" in result["losses"]:
        lines.append(f"| held-out loss | {result['losses']['held_out']['loss']:.4g} |")
    if "probe" in result:
        lines += [
            "",
            "Linear probe on synthetic speech, accuracy in percent, last layer (evidence about nothing else):",
            "",
        ]
        lines += ["| | phones | phones, unseen speakers | speakers |", "|---|---|---|---|"]
        for name, row in result["probe"].items():
            cells = " | ".join(f"{row[key]:.1f}" for key in ("phone", "phone_unseen", "speaker"))
            lines.append(f"| {name.replace('_', ' ')} | {cells} |")
    lines += [""] + [f"![{name}]({name})" for name in figures]
    return "\n".join(lines) + "\n"
