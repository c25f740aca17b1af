"""Manifests, lists of paths, shards and folders: whatever they hold is a corpus, entries set aside, or one sentence."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

from fuzz_audio import DECODER, decoded, noise, reasonable, written
from fuzz_mutations import LETTERS, apply, edits, junk, one_sentence, spoiled
from fuzz_worker import Broken, Target
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from lhotse import AudioSource, CutSet, Recording
from lhotse.cut import MonoCut, MultiCut
from lhotse.supervision import SupervisionSegment

from distiller.corpora import scanning
from distiller.corpora.config import CorpusConfig
from distiller.corpora.corpus import open_corpus
from upstream.errors import UserError

Files = dict[str, bytes]  # what an example writes, by name
GOOD = ("../base/good.wav", "../base/better.wav", "../base/stereo.flac")
NAMES = [
    "a.wav", "A.WAV", "b.Mp3", " .wav", "a b.flac", "é.ogg", "a\nb.wav", ".hidden.wav", "x.wav.txt", "d/e/f.wav",
    "\U0001f600.opus", "-.wav", "%s.wav", "${a}.wav", "cuts.jsonl", "recordings.jsonl.gz", "list.txt",
    "a" * 250 + ".wav", "d.wav/e.wav", "\udcff.wav", "a,b.wav", '"q".wav', "cuts.000000.jsonl", "recording.000000.tar",
    "preparation.json",
]  # fmt: skip


def check(example: tuple[str, Files]) -> None:
    opened, files = example
    for name, content in files.items():
        path = Path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except (OSError, ValueError):  # a name inside a file, or one that none can have
            continue
    config = CorpusConfig(path=opened, max_skipped=1.0, validation_share=0.5)
    try:
        corpus = open_corpus(config, DECODER, Path("cache"))
        again = open_corpus(config, DECODER, Path("cache"))
    except UserError as error:
        one_sentence(error)
        return
    if [cut.id for cut in again.train] != [cut.id for cut in corpus.train]:
        raise Broken("a corpus that is another one when its scan is kept")
    for row in corpus.skipped:
        reasonable(row)
    for cut in [*corpus.train, *corpus.validation][:20]:
        decoded(cut)


def items() -> list[dict[str, Any]]:
    """Lhotse's recordings and cuts of the good files, with all that they may carry."""
    recordings = [
        Recording(f"r{number}", [AudioSource("file", [0], name)], 16_000, 16_000, 1.0)
        for number, name in enumerate(GOOD[:2])
    ]
    stereo = Recording("stereo", [AudioSource("file", [0, 1], GOOD[2])], 48_000, 48_000, 1.0)
    supervision = SupervisionSegment("s", "r0", 0.1, 0.5, text="a", custom={"b": 1})
    cuts = [
        MonoCut("c0", 0.25, 0.5, 0, [supervision], recording=recordings[0], custom={"x": [1]}),
        MultiCut("c1", 0.0, 1.0, [0, 1], recording=stereo),
        recordings[0].to_cut().pad(2.0),
        recordings[1].perturb_speed(0.9).to_cut(),
        recordings[1].resample(8000).to_cut(),
        recordings[1].perturb_volume(2.0).to_cut(),
    ]
    return [json.loads(json.dumps(item.to_dict())) for item in [*recordings, stereo, *cuts]]


def lines(known: list[dict[str, Any]]) -> SearchStrategy[bytes]:
    """Two good items and some that are not."""
    bad = st.sampled_from(known).flatmap(spoiled).map(json.dumps)
    other = junk.map(json.dumps) | st.text(LETTERS, max_size=20)
    good = "\n".join(json.dumps(item) for item in known[:2]) + "\n"
    text = st.lists(bad | bad | bad | other, min_size=1, max_size=3).map(lambda rows: good + "\n".join(rows))
    whole = "\n".join(json.dumps(item) for item in known).encode()
    plain = text.map(lambda rows: rows.encode("utf-8", "surrogatepass"))
    return plain | plain | edits.map(lambda changes: apply(whole, changes))


def manifests(known: list[dict[str, Any]]) -> SearchStrategy[tuple[str, Files]]:
    content = lines(known)
    packed = content.map(gzip.compress)
    damaged = st.tuples(packed, edits).map(lambda pair: apply(*pair))
    plain = content.map(lambda one: ("m.jsonl", {"m.jsonl": one}))
    zipped = (packed | damaged | content).map(lambda one: ("m.jsonl.gz", {"m.jsonl.gz": one}))
    return plain | plain | zipped


def lists() -> SearchStrategy[tuple[str, Files]]:
    line = st.sampled_from(
        [
            *GOOD, "list.txt", "m.jsonl", "gone.wav", "empty", ".", "./list.txt", "bad.wav", "\x00", "~", "# no",
            "x.m4a", f"{GOOD[0]}\t16000", f'"{GOOD[1]}"', "..", "../base/\t1", "\t5",
        ]
    )  # fmt: skip
    text = st.lists(line | st.text(LETTERS, max_size=20), max_size=6).map("\n".join)
    encoded = text.map(lambda rows: rows.encode("utf-8", "surrogatepass"))
    marked = encoded.map(lambda rows: b"\xef\xbb\xbf" + rows.replace(b"\n", b"\r\n"))
    content = encoded | marked | text.map(lambda rows: rows.encode("utf-16", "surrogatepass")) | st.binary(max_size=60)
    return st.tuples(st.sampled_from(["list.txt", "list.lst", "list.tsv"]), content).map(
        lambda pair: (pair[0], {pair[0]: pair[1], "bad.wav": b"RIFF"})
    )


def folders(good: bytes) -> SearchStrategy[tuple[str, Files]]:
    name = st.sampled_from(NAMES) | st.text(LETTERS.replace("\x00", ""), min_size=1, max_size=9).map("{}.wav".format)
    content = st.sampled_from(
        [good, good, b"", b"RIFF", good[:44], good[:1000], b"{}", b"[]", b'{"version": 1, "subsets": []}']
    )
    return st.dictionaries(name, content, min_size=1, max_size=5).map(
        lambda files: ("f", {f"f/{k}": v for k, v in files.items()})
    )


def shards(base: Path) -> SearchStrategy[tuple[str, Files]]:
    """A Lhotse Shar folder, its manifest's items spoiled or its archive's bytes edited."""
    cuts = CutSet.from_cuts(
        Recording(f"r{number}", [AudioSource("file", [0], str(base / Path(name).name))], 16_000, 16_000, 1.0).to_cut()
        for number, name in enumerate(GOOD[:2])
    )
    (base / "shar").mkdir()
    cuts.to_shar(str(base / "shar"), fields={"recording": "wav"}, shard_size=2)
    manifest = gzip.decompress(next(base.glob("shar/cuts*.jsonl.gz")).read_bytes())
    archive = next(base.glob("shar/recording*.tar")).read_bytes()
    rows = [json.loads(line) for line in manifest.splitlines()]
    changed = spoiled(rows).map(
        lambda some: "\n".join(map(json.dumps, some)).encode() if isinstance(some, list) else b""
    )
    cut_side = changed | edits.map(lambda changes: apply(manifest, changes)) | st.just(manifest)
    audio_side = edits.map(lambda changes: apply(archive, changes)) | retold(archive) | st.just(archive)
    return st.tuples(cut_side, audio_side).map(
        lambda pair: ("s", {"s/cuts.000000.jsonl": pair[0], "s/recording.000000.tar": pair[1]})
    )


def retold(archive: bytes) -> SearchStrategy[bytes]:
    """The archive with what its JSON members say spoiled."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    texts = [json.loads(content) for name, content in members if name.endswith("json")]

    def packed(told: Any) -> bytes:
        file, left = io.BytesIO(), list(told) if isinstance(told, list) else [told]
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name, content in members:
                if name.endswith("json"):
                    content = json.dumps(left.pop(0) if left else None).encode()
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        return file.getvalue()

    return spoiled(texts).map(packed)


def target(base: Path) -> Target:
    scanning.THREADS = 2  # for the few files of an example
    os.chdir(base)
    good = written("wav", noise(16_000), 16_000)
    for name in ("good.wav", "better.wav"):
        (base / name).write_bytes(good)
    (base / "stereo.flac").write_bytes(written("flac", noise(48_000, 2), 48_000))
    many = manifests(items())
    return Target(many | many | lists() | folders(good) | shards(base), check)
