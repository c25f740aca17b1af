"""ABX: is a phone nearer to one of its own class than to one of another class? As in ZeroSpeech 2021, by fastabx."""

import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lhotse.cut import Cut
from torch import Tensor
from torch.nn import functional as F

from distiller.audio.decoding import Decoder, Undecodable, source_path
from distiller.audio.skipped import Skipped
from distiller.common.progress import progress
from distiller.corpora.scanning import scan
from distiller.probes.representations import FRAME, HOP, Representation, represented
from distiller.synthesis.splits import load_split, speaker_of
from upstream.config import SAMPLE_RATE
from upstream.errors import UserError

HEADER = "#file onset offset #phone prev-phone next-phone speaker"
LARGEST_GROUP, MOST_SPEAKERS = 10, 5  # ZeroSpeech's: recordings of a class, and speakers of X for an A and B
Speakers = Literal["within", "across"]
SPEAKERS: tuple[Speakers, ...] = get_args(Speakers)  # whether X is spoken by the speaker of A and B, or by another
NUMBER = "{:06d}"  # file names for the layers of recordings


@dataclass
class Abx:
    """Phones in their context: where they are, and the recordings."""

    items: list[list[str]]  # the columns of HEADER; the first is a key of `recordings`
    recordings: dict[str, Tensor]  # (sample,)
    skipped: list[Skipped] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path, min_samples: int = FRAME) -> "Abx":
        """ZeroSpeech's FOLDER/NAME.item, and the recordings that it names, anywhere below the folder.

        Phones of recordings that cannot be used are left out.

        Raises:
            UserError: no such folder, more than one .item in it, one of another format, or none of its recordings.
        """
        path = _only_item(folder)
        items = read_items(path)
        wanted = {item[0] for item in items}
        cuts, skipped = scan(folder, folder)
        decoder, recordings = Decoder(min_samples), {}
        for cut in progress([cut for cut in cuts if Path(cut.id).stem in wanted], f"Reading {folder.name}"):
            try:
                recordings[Path(cut.id).stem] = decoder.decode(cut)
            except Undecodable as error:
                skipped.append(Skipped(source_path(cut), str(error)))
        skipped += [Skipped(name, f"{path.name} names it") for name in sorted(wanted - recordings.keys())]
        kept = [item for item in items if item[0] in recordings]
        if not kept:
            raise UserError(f"{folder} holds none of the recordings that {path.name} names, such as {min(wanted)}")
        return cls(kept, recordings, skipped)

    @classmethod
    def synthetic(cls, split: str = "probe_train") -> "Abx":
        """The triphones of a split of the synthetic corpus."""
        items: list[list[str]] = []
        recordings: dict[str, Tensor] = {}
        for cut in load_split(split):
            audio = cut.load_audio()
            assert audio is not None
            recordings[cut.id] = torch.from_numpy(audio[0])
            items += _triphones(cut)
        return cls(items, recordings)

    def run(self, represent: Representation, name: str = "") -> dict[str, Any]:
        """ABX errors in percent (chance: 50) of the last layer and (as _best) of the best layer.

        "abx_within" is within speakers, "abx_across" across speakers; both within the context of neighbouring phones.
        "layers" has those of every layer.
        """
        check_installed()
        order = {key: NUMBER.format(index) for index, key in enumerate(self.recordings)}
        waveforms = list(self.recordings.values())
        with tempfile.TemporaryDirectory() as temporary:  # the layers of hours of speech do not fit into memory
            folder = Path(temporary)
            lines = [" ".join((order[item[0]], *item[1:])) for item in self.items]
            (folder / "phones.item").write_text("\n".join((HEADER, *lines)) + "\n")
            count = 0
            for index, layers in represented(represent, waveforms, f"Probing {name}, ABX"):
                torch.save(_padded(layers, len(waveforms[index])), folder / f"{NUMBER.format(index)}.pt")
                count = len(layers)
            scores = [[_score(folder, layer, speakers) for layer in range(count)] for speakers in SPEAKERS]
        layers = {f"abx_{speakers}": values for speakers, values in zip(SPEAKERS, scores, strict=True)}
        row = {key: values[-1] for key, values in layers.items()}
        return row | {f"{key}_best": min(values) for key, values in layers.items()} | {"layers": layers}


def read_items(path: Path) -> list[list[str]]:
    """The rows of an .item file.

    Raises:
        UserError: it cannot be read, or is not of ZeroSpeech's form.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    items = [line.split() for line in lines[1:]]
    wrong = [line for line in lines[:1] if line.split() != HEADER.split()]
    wrong += [line for line, item in zip(lines[1:], items, strict=True) if not _is_item(item)]
    if wrong or not items:
        found = repr(wrong[0]) if wrong else "no phones"
        raise UserError(f"{path} is not an .item file of phones: it has {found}; its lines must be {HEADER}")
    return items


def check_installed() -> None:
    """Raises: UserError: fastabx is not installed."""
    if importlib.util.find_spec("fastabx") is None:
        raise UserError("fastabx is not installed; run uv sync --extra abx, with Python 3.12 or later")


def _only_item(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    paths = sorted(folder.glob("*.item"))
    if len(paths) != 1:
        found = ", ".join(path.name for path in paths) or "none"
        raise UserError(f"{folder} must hold one .item file beside its recordings, but holds {found}")
    return paths[0]


def _is_item(line: Sequence[str]) -> bool:
    try:
        return len(line) == len(HEADER.split()) and 0 <= float(line[1]) < float(line[2]) < float("inf")
    except ValueError:
        return False


def _triphones(cut: Cut) -> Iterator[list[str]]:
    """The items of a cut: each phone with the one before and the one after it."""
    phones = [phone for supervision in cut.supervisions for phone in (supervision.alignment or {}).get("phone", [])]
    runs = zip(pairwise(phones), pairwise(phones[1:]), strict=False)
    for (before, phone), (_, after) in runs:
        times = (f"{before.start - cut.start:.4f}", f"{after.end - cut.start:.4f}")
        yield [cut.id, *times, phone.symbol, before.symbol, after.symbol, speaker_of(cut)]


def _padded(layers: Sequence[Tensor], samples: int) -> Tensor:
    """(layer, frame, channel): the last frame is repeated to the end of the recording, where phones may end."""
    stacked = torch.stack(list(layers))
    missing = max(0, -(-samples // HOP) + 1 - stacked.shape[1])
    return F.pad(stacked.transpose(1, 2), (0, missing), mode="replicate").transpose(1, 2).contiguous()


def _layer(path: str | Path, layer: int) -> Tensor:
    return torch.load(path, mmap=True)[layer]


def _score(folder: Path, layer: int, speakers: Speakers) -> float:
    """Percent of errors."""
    os.environ.setdefault("POLARS_MAX_THREADS", "1")  # with more, fastabx's seed does not settle which phones it takes
    from fastabx import zerospeech_abx  # pyright: ignore[reportMissingImports]  # an extra, and not for 3.11

    try:
        error = zerospeech_abx(
            folder / "phones.item",
            folder,
            max_size_group=LARGEST_GROUP,
            max_x_across=MOST_SPEAKERS,
            speaker=speakers,
            frequency=SAMPLE_RATE // HOP,
            feature_maker=partial(_layer, layer=layer),
            device="cpu",
            progress=False,
        )
    except ValueError as problem:  # fastabx's own: a phone shorter than a frame, or beyond the end
        raise UserError(f"fastabx rejects these phones: {str(problem).splitlines()[0]}") from None
    return round(100 * error, 2)
