"""A student's model card, and the figures beside it."""

import json
from pathlib import Path
from typing import Any

from distiller.common.provenance import ORIGIN, public, teacher_licence, teachers_of
from distiller.reports.figures import FIGURES
from distiller.reports.report import audio_lines, columns, pruning_summary

CARD = """\
# {recipe[method]} student of {teacher}

A speech encoder of {parameters:,} parameters; 10 s of audio take {gmacs:.2f} G multiply-accumulates. Distilled from \
{quoted} on `{corpus}`, objective {recipe[objective][name]}.

```python
from upstream.checkpoint import load

encoder = load(PATH)                       # in eval mode
out = encoder(waveforms, lengths)          # (batch, sample) at 16 kHz, (batch,)
out.hidden_states                          # F^0..F^L, each (batch, frame, channel)
```

| | |
|---|---|
| teacher | {teacher} |
| teacher's licence | {licence} |
| audio | {corpus} |
| recipe | {recipe[method]}, seed {recipe[seed]} |
| code | commit {commit} |
| training | {losses[train][step]:.0f} steps, {seconds:.0f} s |
"""
PROBE = """
Accuracy in percent, last layer: a linear probe on synthetic speech (it says nothing about real speech), and words by
their nearest recording.

"""
PROBED = {"phone": "phones", "phone_unseen": "phones, unseen speakers", "speaker": "speakers"}


def files(output: Path, result: dict[str, Any]) -> dict[str, bytes | str]:
    """The card, the figures and the teacher's name, as extra files of a saved student."""
    figures = {path.name: path.read_bytes() for name in FIGURES if (path := output / name).exists()}
    teachers = teachers_of(result["recipe"])
    origin = json.dumps({"teacher": teachers[0]} if len(teachers) == 1 else {"teachers": teachers}) + "\n"
    return {"README.md": model_card(result, list(figures)), ORIGIN: origin, **figures}


def model_card(result: dict[str, Any], figures: list[str]) -> str:
    """The card: what the student is, where it comes from, how to use it and what was measured."""
    recipe = result["recipe"]
    teachers = teachers_of(recipe)
    names = {"teacher": " and ".join(teachers), "corpus": public(recipe["corpus"]["path"])}
    names["quoted"] = " and ".join(f"`{name}`" for name in teachers)
    licences = " and ".join(dict.fromkeys(map(teacher_licence, teachers)))
    numbers = {"gmacs": result["macs_10s"] / 1e9, "licence": licences}
    card = CARD.format_map(result | names | numbers)
    for line in audio_lines(result):
        card += "| {} | {} |\n".format(*line.split(": ", 1))
    if "pruning" in result:
        card += f"| pruning | {pruning_summary(result['pruning'])} |\n"
    if "held_out" in result["losses"]:
        card += f"| held-out loss | {result['losses']['held_out']['loss']:.4g} |\n"
    if "probe" in result:
        titles = columns(result["probe"]["student"])
        shown = {key: PROBED.get(key, title) for key, title in titles.items() if "_best" not in key}
        card += PROBE + f"| | {' | '.join(shown.values())} |\n{'|---' * (1 + len(shown))}|\n"
        for name, row in result["probe"].items():
            card += f"| {name.replace('_', ' ')} | {' | '.join(f'{row[key]:.1f}' for key in shown)} |\n"
    return card + "\n" + "".join(f"![{name}]({name})\n" for name in figures)
