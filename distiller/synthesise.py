#!/usr/bin/env python
"""The command distiller/synthesise.py: synthetic speech of many voices and languages, to train a teacher on."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
from collections.abc import Sequence

from distiller.common.command import Parser, comma_separated, run_command
from upstream.errors import require

DESCRIPTION = """\
Synthesise speech with random voices in many languages: OUTPUT/LANGUAGE/SPEAKER/ID.flac (16 kHz, mono), with language,
speaker and text in OUTPUT/manifest.csv. Run the same command again to continue after an interruption, or with more
--hours to add speech.
"""

EPILOG = """\
examples:
  python distiller/synthesise.py --output data/voices --hours 5
  python distiller/synthesise.py --output data/voices --hours 5 --without it
  python distiller/synthesise.py --output data/romance --hours 1 --languages es,fr,pt,ro --seed 2
  python distiller/corpus.py prepare data/voices --output data/voices-prepared

It needs the packages espeakng-loader and babel; the texts contain babel's names of places and languages.
"""


def parser() -> Parser:
    built = Parser(prog="distiller/synthesise.py", description=DESCRIPTION, epilog=EPILOG)
    option, words = built.add_argument, comma_separated(str)
    option("--output", type=Path, required=True, help="folder for the speech")
    option("--hours", type=float, required=True, help="hours of speech")
    option("--languages", type=words, default=["all"], metavar="all|en,fr,...", help="(default: all)")
    option("--without", type=words, default=[], metavar="it,...", help="languages to leave out")
    option("--seed", type=int, default=1, help="random seed for voices and texts (default: 1)")
    option("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one for each core)")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_args(argv)))


def _main(options: argparse.Namespace) -> None:
    require(0 < options.hours <= 1e5, "--hours", options.hours, "a number above 0, at most 100000")
    require(options.seed >= 0, "--seed", options.seed, "an integer of at least 0")
    require(options.workers >= 1, "--workers", options.workers, "an integer of at least 1")
    from distiller.voices.languages import chosen  # scipy takes a second
    from distiller.voices.make import make_speech

    languages = chosen(options.languages, options.without)
    rows = make_speech(options.output, options.hours, languages, options.seed, options.workers)
    hours, speakers = sum(float(row["seconds"]) for row in rows) / 3600, len({row["speaker"] for row in rows})
    spoken = len({row["language"] for row in rows})
    print(f"{options.output} holds {hours:.3g} h: {len(rows)} utterances, {speakers} speakers, {spoken} languages")


if __name__ == "__main__":
    sys.exit(main())
