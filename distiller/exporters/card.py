"""The model card of an exported folder: how to open it, what it is, where it comes from, its scores."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from distiller.common.files import read_csv
from distiller.common.provenance import ORIGIN, TEN_SECONDS, parameter_count, public, teacher_licence
from distiller.exporters.fine_tuned import Student
from upstream.config import EncoderConfig
from upstream.cost import count_macs
from upstream.formats.huggingface_writing import obstacles

ABSOLUTE = re.compile(r"(?<![\w/.:~])~?/(?:[^\s/|`]+/)+([^\s/|`]+)")  # a path; older students name their corpus so
CARD = """\
---
{head}---

# Speech encoder, {parameters:,} parameters

{layers} layers, {width} channels, a frame every {hop} samples at 16 kHz; {gmacs:.2f} G multiply-accumulates \
for 10 s of audio.

```python
from transformers import AutoFeatureExtractor, AutoModel

prepare = AutoFeatureExtractor.from_pretrained(FOLDER)
model = AutoModel.from_pretrained(FOLDER{trust})
inputs = prepare(waveform, sampling_rate=16000, return_tensors="pt")  # waveform: mono, 16 kHz
states = model(**inputs, output_hidden_states=True).hidden_states     # F^0..F^L, (batch, frame, channel)
```

{notes}

{scores}{origin}
"""


def student_files(student: Student) -> dict[str, str]:
    """README.md and the teacher's name, for a student made from another checkpoint."""
    folder = Path(student.source)
    history = student.history or f"Converted from `{folder.name}`."
    card = (
        f"# Speech encoder, {parameter_count(student.encoder):,} parameters\n\n{history}\n\n{_demoted(_card(folder))}"
    )
    origin = _origin(folder)
    origin = {ORIGIN: json.dumps(origin) + "\n"} if origin else {}
    return {"README.md": card.rstrip() + "\n", **origin}


def transformers_card(student: Student, own_code: bool) -> str:
    """README.md of a folder for `transformers`, with the hub's metadata at its head.

    README.md, the teacher and scores.csv of the student's source are used if they are there.

    Args:
        own_code: whether the folder needs its own modelling file.
    """
    config, folder = student.encoder.config, Path(student.source)
    card = _card(folder)
    history = f"{student.history}\n\n" if student.history else ""
    return CARD.format(
        head=yaml.safe_dump(_metadata(_origin(folder), config), sort_keys=False),
        parameters=parameter_count(student.encoder),
        layers=config.num_layers,
        width=config.embed_dim,
        hop=config.samples_per_frame,
        gmacs=count_macs(config, TEN_SECONDS) / 1e9,
        trust=", trust_remote_code=True" if own_code else "",
        notes="\n".join(f"- {note}" for note in _notes(config, own_code)),
        scores=_scores(folder),
        origin=history + (f"## Where it comes from\n\n{_demoted(card)}" if card else f"Exported from `{folder.name}`."),
    )


def _card(student: Path) -> str:
    return (student / "README.md").read_text(encoding="utf-8") if (student / "README.md").is_file() else ""


def _origin(student: Path) -> dict[str, Any]:
    """The teacher or teachers recorded in a student's folder; empty if none is."""
    if (path := student / ORIGIN).is_file():
        return json.loads(path.read_text())
    if (path := student.parent / "report.json").is_file():  # a student older than that file, still in its run's folder
        return {"teacher": public(json.loads(path.read_text())["recipe"]["teacher"])}
    return {}


def _metadata(origin: dict[str, Any], config: EncoderConfig) -> dict[str, object]:
    teachers = origin.get("teachers") or [origin.get("teacher", "")]
    licences = {teacher_licence(teacher).partition(" ")[0].lower() for teacher in teachers}
    head: dict[str, object] = {
        "library_name": "transformers",
        "license": "apache-2.0" if licences == {"apache-2.0"} else "other",
        "tags": ["speech", "audio", "distillation", config.family],
        "pipeline_tag": "feature-extraction",
    }
    if on_hub := [teacher for teacher in teachers if re.fullmatch(r"[\w.-]+/[\w.-]+", teacher)]:
        head["base_model"] = on_hub[0] if len(on_hub) == 1 else on_hub
    return head


def _notes(config: EncoderConfig, own_code: bool) -> list[str]:
    notes = []
    if own_code:
        notes.append(
            f"The classes of `transformers` cannot hold it ({', '.join(obstacles(config))}): the folder contains its "
            "own modelling file, hence `trust_remote_code`."
        )
        notes.append("A wav's states do not depend on the rest of its batch; pass the `attention_mask`.")
    elif config.conv_norm == "group":
        notes.append(
            "Hidden states equal the original encoder's to 1e-4 for single utterances. In a padded batch the group "
            "norm of `transformers` averages over the padding, so that shorter wavs come out differently: encode them "
            "one by one, or in batches of equal length."
        )
    else:
        notes.append("Hidden states equal the original encoder's to 1e-4; in a padded batch pass the `attention_mask`.")
    if config.normalizes_with_other_eps:
        notes.append("The model normalises waveforms itself: pass them as they are.")
    elif config.normalize_waveform:
        notes.append("Waveforms must have zero mean and unit variance; the feature extractor ensures it.")
    trust = " and `trust_remote_code=True`" if own_code else ""
    notes.append(
        f"Fine-tuning starts from this folder with `AutoModelForCTC` or `AutoModelForAudioClassification`{trust}."
    )
    return notes


def _scores(student: Path) -> str:
    """SUPERB scores beside the student or its run, as a section; '' if there are none."""
    rows = read_csv(student / "scores.csv") or read_csv(student.parent / "scores.csv")
    lines = [f"| {row['task']} | {row['metric']} | {row['value']} |\n" for row in rows if row.get("task")]
    return "## SUPERB\n\n| task | metric | value |\n|---|---|---|\n" + "".join(lines) + "\n" if lines else ""


def _demoted(card: str) -> str:
    """The student's own card, with headings one level lower, without pictures and local folders."""
    without_head = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
    lines = [line for line in without_head.splitlines() if not re.fullmatch(r"!\[.*\]\(.*\)", line.strip())]
    text = "\n".join("##" + line if line.startswith("#") else line for line in lines).strip()
    return ABSOLUTE.sub(r"\1", text)
