"""The model card of an exported folder: how to open it, what it is, what its own card and scores say."""

import csv
import re
from pathlib import Path

import yaml

from distiller.common.provenance import TEN_SECONDS
from upstream.config import EncoderConfig
from upstream.cost import count_macs
from upstream.encoder import SpeechEncoder
from upstream.formats.huggingface_writing import obstacles

TASKS = ("pr", "asr", "ks", "qbe", "sid", "asv", "sd", "ic", "sf", "er", "se", "ss", "overall", "generalizability")
UNKNOWN_LICENCE = "other"


def transformers_card(student: SpeechEncoder, source: str, own_code: bool) -> str:
    """README.md of a folder for `transformers`, its head in the hub's own terms.

    Args:
        student: the exported encoder.
        source: the checkpoint that it came from; its README.md and scores.csv are taken over when they are there.
        own_code: whether the folder needs its own modelling file.
    """
    found = _source_card(Path(source))
    return "\n".join(
        [
            "---",
            yaml.safe_dump(_head(found, student.config), sort_keys=False).rstrip(),
            "---",
            "",
            f"# Speech encoder, {sum(parameter.numel() for parameter in student.parameters()):,} parameters",
            "",
            *_facts(student.config),
            "",
            *_usage(own_code),
            "",
            *_notes(student.config, own_code),
            "",
            *_scores(Path(source)),
            *(["## Where it comes from", "", _demoted(found)] if found else [f"Exported from `{Path(source).name}`."]),
            "",
        ]
    )


def _source_card(source: Path) -> str:
    path = source / "README.md"
    return path.read_text() if path.is_file() else ""


def _head(card: str, config: EncoderConfig) -> dict[str, object]:
    """The hub's metadata; licence and teacher from the student's own card."""
    licence = _cell(card, "teacher's licence").partition(" ")[0].lower()
    teacher = _cell(card, "teacher")
    head: dict[str, object] = {
        "library_name": "transformers",
        "license": licence if licence in ("apache-2.0", "mit") else UNKNOWN_LICENCE,
        "tags": ["speech", "audio", "distillation", config.family],
        "pipeline_tag": "feature-extraction",
    }
    if re.fullmatch(r"[\w.-]+/[\w.-]+", teacher):
        head["base_model"] = teacher
    return head


def _cell(card: str, name: str) -> str:
    """The value beside `name` in a card's table, '' where there is none."""
    match = re.search(rf"^\| *{re.escape(name)} *\| *(.*?) *\|$", card, flags=re.MULTILINE)
    return match[1] if match else ""


def _facts(config: EncoderConfig) -> list[str]:
    return [
        f"{config.num_layers} layers, {config.embed_dim} channels, a frame every {config.samples_per_frame} samples at "
        f"16 kHz; {count_macs(config, TEN_SECONDS) / 1e9:.2f} G multiply-accumulates for 10 s of audio.",
    ]


def _usage(own_code: bool) -> list[str]:
    trust = ", trust_remote_code=True" if own_code else ""
    return [
        "```python",
        "from transformers import AutoFeatureExtractor, AutoModel",
        "",
        "prepare = AutoFeatureExtractor.from_pretrained(FOLDER)",
        f"model = AutoModel.from_pretrained(FOLDER{trust})",
        'inputs = prepare(waveform, sampling_rate=16000, return_tensors="pt")  # waveform: mono, 16 kHz',
        "states = model(**inputs, output_hidden_states=True).hidden_states     # F^0..F^L, (batch, frame, channel)",
        "```",
    ]


def _notes(config: EncoderConfig, own_code: bool) -> list[str]:
    notes = []
    if own_code:
        notes.append(
            f"- The classes of `transformers` cannot hold it ({', '.join(obstacles(config))}): the folder brings its "
            "own modelling file, hence `trust_remote_code`."
        )
        notes.append("- A wav's states do not depend on what it is batched with; pass the `attention_mask`.")
    elif config.conv_norm == "group":
        notes.append(
            "- Hidden states equal the original encoder's to 1e-4 for single utterances. In a padded batch the group "
            "norm of `transformers` averages over the padding, so that shorter wavs come out differently: encode them "
            "one by one, or in batches of equal length."
        )
    else:
        notes.append(
            "- Hidden states equal the original encoder's to 1e-4; in a padded batch pass the `attention_mask`."
        )
    if config.normalizes_with_other_eps:
        notes.append("- The model normalises waveforms itself: give them as they are.")
    elif config.normalize_waveform:
        notes.append("- Waveforms must have zero mean and unit variance; the feature extractor sees to it.")
    if not own_code:
        notes.append("- For recognition, fine-tuning starts from this folder with the family's `...ForCTC` class.")
    return notes


def _scores(source: Path) -> list[str]:
    """SUPERB scores beside the student or its run, as a table; nothing where there are none."""
    path = next(
        (folder / "scores.csv" for folder in (source, source.parent) if (folder / "scores.csv").is_file()), None
    )
    if path is None:
        return []
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("task") in TASKS]
    if not rows:
        return []
    table = [f"| {row['task']} | {row['metric']} | {row['value']} |" for row in rows]
    return ["## SUPERB", "", "| task | metric | value |", "|---|---|---|", *table, ""]


def _demoted(card: str) -> str:
    """The student's own card, its headings a level lower and without pictures, which are not in the folder."""
    without_head = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
    lines = [line for line in without_head.splitlines() if not re.fullmatch(r"!\[.*\]\(.*\)", line.strip())]
    return "\n".join("##" + line if line.startswith("#") else line for line in lines).strip()
