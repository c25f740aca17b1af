#!/usr/bin/env python
"""The command distiller/probe.py: what can be read from the layers of encoders."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence

from distiller.common.command import Parser, comma_separated, run_command
from distiller.common.files import check_writable
from upstream.errors import UserError, require

DESCRIPTION = """\
Probe every layer of encoders, and log-mel energies for comparison; the last and best layers are printed, and all layers
are written to a table. One of --words, --classes, --abx and --synthetic is needed; the first three can be repeated.

--words FOLDER: FOLDER/GROUP/WORD.flac, where groups are speakers or channels. For every recording, the nearest one of
another group is found by dynamic time warping; the score is how often it is the same word.

--classes FOLDER: FOLDER/CLASS/GROUP/NAME.flac, for example languages and their speakers: the classes of one group's
recordings are predicted by classifiers fitted on the other groups. Or FOLDER/CLASS/NAME.flac, for example speakers of
the same prompts: classifiers fitted on one half of the names predict the classes of the other half. "linear" is ridge
regression and "centroid" the nearest centroid, both on the mean of a recording's frames; classes have equal weight.

--abx FOLDER: a folder with one of ZeroSpeech's .item files, such as triphone-dev-clean.item, and the recordings that it
names. The error is how often a phone is nearer to a different phone than to the same phone in the same context, within
and across speakers. `--abx synthetic` uses triphones of the synthetic corpus. ABX needs Python 3.12 and
`uv sync --extra abx`.

--synthetic: phones and speakers of the synthetic corpus by ridge regression, as at the end of a run. "Unseen" are
phones of speakers that the regression was not fitted on.

--degraded=20,10,0,-5,telephone,room: repeat the probes of words and of the synthetic corpus for each condition: noise
at this signal-to-noise ratio in dB, a telephone line, or a room. Regressions are fitted on clean speech.
"""

EPILOG = """\
examples:
  distiller/probes/prompt_pairs.sh pairs          # real prompts, each by two speakers, in three languages
  python distiller/probe.py bundled exp/star/student --words pairs/fr --words pairs/it --classes pairs
  python distiller/probe.py microsoft/wavlm-base-plus --classes speakers --output exp/speakers.csv
  python distiller/probe.py bundled exp/star/student --synthetic --abx synthetic
  python distiller/probe.py bundled exp/star/student --synthetic --degraded 20,10,5,0,telephone --output exp/noise.csv

Any format that libsndfile reads is accepted. Silence at both ends is cut off, and only the first 10 s of a recording
are used; ABX uses recordings as they are. Files that cannot be used are listed in NAME.skipped.csv, next to the table.
"""


def parser() -> Parser:
    built = Parser(prog="distiller/probe.py", description=DESCRIPTION, epilog=EPILOG)
    models = "bundled, a hub name, a student folder or any checkpoint that upstream.checkpoint.load opens"
    built.add_argument("models", metavar="MODEL", nargs="+", help=models)
    folder = {"type": Path, "action": "append", "default": [], "metavar": "FOLDER"}
    built.add_argument("--words", **folder, help="recordings of the same words by several speakers")
    built.add_argument("--classes", **folder, help="recordings of several speakers, languages, ...")
    abx = {"action": "append", "default": [], "metavar": "FOLDER"}
    built.add_argument("--abx", **abx, help="recordings with an .item file of their phones, or synthetic")
    built.add_argument("--synthetic", action="store_true", help="phones and speakers of the synthetic corpus")
    built.add_argument("--degraded", type=comma_separated(str), default=[], metavar="20,10,telephone", help="see above")
    table = "the table (default: exp/probe.csv)"
    built.add_argument("--output", type=Path, default=Path("exp/probe.csv"), metavar="CSV", help=table)
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_args(argv)), "run the same command to start again")


def _main(options: argparse.Namespace) -> None:
    if not (options.words or options.classes or options.abx or options.synthetic):
        raise UserError("give --words FOLDER, --classes FOLDER, --abx FOLDER or --synthetic")
    require(
        options.output.suffix == ".csv" and not options.output.is_dir(), "--output", str(options.output), "a .csv file"
    )
    heard_by_others = bool(options.degraded and (options.classes or options.abx))
    require(not heard_by_others, "--degraded", ",".join(options.degraded), "left out with --classes and --abx")
    check_writable(options.output.parent)
    from distiller.augmentation.conditions import conditions
    from distiller.probes.evaluate import evaluate, load_probes
    from distiller.teachers.teacher import load_teacher  # takes seconds

    heard = conditions(options.degraded)
    encoders = {name: load_teacher(name) for name in options.models}
    probes = load_probes(encoders, options.words, options.classes, options.abx, options.synthetic)
    evaluate(encoders, probes, options.output, heard)


if __name__ == "__main__":
    sys.exit(main())
