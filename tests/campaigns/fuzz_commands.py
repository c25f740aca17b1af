"""Command lines of every script: done, help, or exit code 2 with one line; never a traceback.

What would take long, write, or train is replaced by nothing: what is tried is everything before it.
"""

import contextlib
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from fuzz_audio import noise, written
from fuzz_checkpoints import encoder
from fuzz_mutations import LETTERS, junk, misspelt, texts
from fuzz_recipes import overrides
from fuzz_scripts import SCRIPTS, Stopped
from fuzz_worker import Broken, Target
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from upstream.checkpoint import save


def argv(words: Sequence[str], options: dict[str, Sequence[str]], with_overrides: bool) -> SearchStrategy[list[str]]:
    def option(name: str) -> SearchStrategy[list[str]]:
        value = (st.sampled_from(options[name]) if options[name] else st.nothing()) | texts
        given = value.map(lambda one: [name, one]) | value.map(lambda one: [f"{name}={one}"])
        return given if options[name] else st.just([name]) | given

    known = st.sampled_from(sorted(options)).flatmap(option)
    wrong = st.sampled_from(sorted(options)).flatmap(misspelt).map(lambda name: [name]) | texts.map(lambda one: [one])
    some = known | known | known | wrong
    some = some | overrides() if with_overrides else some
    usual = st.just(list(words)) | st.just(list(words)) | st.just([])
    return st.tuples(usual, st.lists(some, max_size=4)).map(
        lambda pair: [*pair[0], *(word for one in pair[1] for word in one)]
    )


def corpora_files() -> SearchStrategy[str]:
    """Mostly a good one."""
    keys = ["librispeech", "lexicon", "workers", "voxceleb1", "asr_lengths", "miniature", "libirspeech"]
    value = st.sampled_from(["corpus", "gone", ["corpus", "corpus/a.wav"], [], 0, 1, "corpus/a.wav", None]) | junk
    values = st.dictionaries(st.sampled_from(keys) | texts, value, max_size=4)
    dumped = values.map(lambda one: yaml.safe_dump(one, allow_unicode=True))
    return st.just("librispeech: corpus\nlexicon: [corpus]\n") | dumped | st.text(LETTERS, max_size=30)


def check(example: tuple[str, list[str], str]) -> None:
    script, words, listed = example
    for name in ("student", "corpus"):
        shutil.copytree(Path.cwd().parent / "base" / name, name)
    Path("corpora.yaml").write_bytes(listed.encode("utf-8", "surrogatepass"))
    Path("recipe.yaml").write_text("runner: {total_steps: 1}\nworkers: ${workers}\nx: ${corpora.librispeech}\n")
    Path("mine.yaml").write_text("extends: star\nseed: 3\n")
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), no_paths():
            code: Any = SCRIPTS[script][0](words)
    except Stopped:
        return
    except SystemExit as error:
        code = error.code
        if code == 2 and "usage:" in err.getvalue():  # argparse's own, of the downstream scripts
            return
    if code not in (0, 1, 2):
        raise Broken(f"exit code {code!r}")
    if "Traceback" in err.getvalue():
        raise Broken(f"a traceback of {script}")
    lines = [line for line in err.getvalue().splitlines() if not line.startswith("warning: ")]
    if code == 2 and len(lines) + (script == "superb" and len(out.getvalue().splitlines())) != 1:
        raise Broken(f"exit code 2 of {script} with {len(lines)} lines on stderr")


@contextlib.contextmanager
def no_paths() -> Iterator[None]:
    """Neither a hub nor corpora of the machine, whatever the environment says."""
    with patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}):
        for name in ("SUPERB_CORPORA", "RANK", "LOCAL_RANK", "SLURM_PROCID"):
            os.environ.pop(name, None)
        yield


def target(base: Path) -> Target:
    save(encoder(), base / "student")
    (base / "corpus").mkdir()
    for name in "abcd":
        (base / f"corpus/{name}.wav").write_bytes(written("wav", noise(16_000), 16_000))
    script = st.sampled_from(sorted(SCRIPTS))
    return Target(
        script.flatmap(lambda name: st.tuples(st.just(name), argv(*SCRIPTS[name][1:]), corpora_files())), check
    )
