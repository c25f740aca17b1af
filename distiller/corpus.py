#!/usr/bin/env python
"""The command distiller/corpus.py: prepare a corpus, verify a prepared one, measure how fast corpora are read."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
from collections.abc import Sequence

from distiller.common.command import Parser, comma_separated, run_command
from distiller.common.files import check_writable
from upstream.errors import require

DESCRIPTION = """\
Decode a corpus once, into Lhotse Shar of 16 kHz mono audio, so that training need not; or join short clips first.

A prepared folder can replace its corpus in any recipe (--corpus DIR): ids, order and batches are the same, waveforms
differ by at most 2^-16 of full scale, and not at all if the source is 16 kHz, 16 bits, mono.
"""

EPILOG = """\
examples:
  python distiller/corpus.py prepare /data/LibriSpeech --output /ssd/librispeech --subsets train-clean-100 dev-clean
  python distiller/corpus.py join data/prompts --output data/read --seconds 3,12 --speeds 0.9,1.0,1.1
  python distiller/corpus.py prepare data/read data/voices --output data/teacher --speeds 0.9,1.0,1.1
  python distiller/corpus.py verify /ssd/librispeech
  python distiller/run.py --recipe star-hubert-100h --corpus /ssd/librispeech
  python distiller/corpus.py benchmark /data/LibriSpeech --subsets dev-clean

prepare continues where it was interrupted, and replaces damaged shards.
"""


def parser() -> Parser:
    built = Parser(prog="distiller/corpus.py", description=DESCRIPTION, epilog=EPILOG)
    commands = built.add_subparsers(dest="command", required=True, metavar="COMMAND")
    workers = {"type": int, "default": os.cpu_count() or 1, "help": "processes (default: one for each core)"}

    prepare = commands.add_parser("prepare", help="decode a corpus into shards")
    prepare.add_argument(
        "corpora",
        type=Path,
        nargs="+",
        metavar="corpus",
        help="a folder, LibriSpeech, a Lhotse manifest or Shar folder, a list",
    )
    prepare.add_argument("--output", type=Path, required=True, help="folder of the shards")
    prepare.add_argument("--subsets", nargs="+", default=[], metavar="NAME", help="as corpus.subsets and .validation")
    prepare.add_argument(
        "--format", choices=("wav", "flac"), default="wav", help="flac takes half the disk and twice the time to read"
    )
    prepare.add_argument("--workers", **workers)
    speeds = "every utterance once at each: length, pitch and formants change together (default: 1.0)"
    speeds = {"type": comma_separated(float), "default": [1.0], "metavar": "0.9,1.0,1.1", "help": speeds}
    prepare.add_argument("--speeds", **speeds)
    prepare.add_argument(
        "--max-skipped", type=float, default=0.01, metavar="SHARE", help="of unusable utterances (default: 0.01)"
    )

    join = commands.add_parser("join", help="join the clips of each folder, one speaker's, to longer utterances")
    join.add_argument("corpus", type=Path, help="a folder with a folder of clips for each speaker, or as for prepare")
    join.add_argument(
        "--output", type=Path, required=True, help="folder of the utterances (FLAC) and their clips (CSV)"
    )
    lengths = {"type": comma_separated(float), "default": [3.0, 12.0], "metavar": "LEAST,MOST"}
    join.add_argument("--seconds", **lengths, help="an utterance ends with the clip that fills it (default: 3,12)")
    join.add_argument("--speeds", **speeds)
    join.add_argument("--seed", type=int, default=1, help="of the clips' order (default: 1)")

    verify = commands.add_parser("verify", help="check every byte of a prepared folder")
    verify.add_argument("folder", type=Path)
    verify.add_argument("--workers", **workers)

    benchmark = commands.add_parser("benchmark", help="seconds of audio read for each CPU second, by format")
    benchmark.add_argument("corpus", type=Path, nargs="?", help="whose utterances to use (default: the synthetic one)")
    benchmark.add_argument("--subsets", nargs="+", default=[], metavar="NAME")
    benchmark.add_argument("--minutes", type=float, default=20.0, help="of audio to use (default: 20)")
    benchmark.add_argument("--rounds", type=int, default=7, help="interleaved readings; medians count (default: 7)")
    benchmark.add_argument(
        "--workers", type=int, default=0, help="of the loader; above 0, wall-clock time is measured (default: 0)"
    )
    benchmark.add_argument("--table", type=Path, help="CSV to add the rows to")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_args(argv)))


def _main(arguments: argparse.Namespace) -> None:
    """Checks the options, then imports and calls what they ask for: torch takes seconds."""
    options = vars(arguments)
    command = options.pop("command")
    for speed in options.get("speeds", []):
        allowed = "numbers from 0.5 to 2 with at most two decimals"
        require(0.5 <= speed <= 2 and round(speed, 2) == speed, "--speeds", speed, allowed)
    require(options.get("workers", 0) >= 0, "--workers", options.get("workers"), "an integer of at least 0")
    if command == "verify":
        from distiller.preparation.prepare import verify

        print(verify(**options))
    elif command == "join":
        seconds = arguments.seconds
        allowed = "two lengths from 1 to 1000, the lower first"
        require(len(seconds) == 2 and 1 <= seconds[0] <= seconds[1] <= 1000, "--seconds", seconds, allowed)
        require(arguments.seed >= 0, "--seed", arguments.seed, "an integer of at least 0")
        check_writable(arguments.output)
        from distiller.preparation.joining import join

        print(join(**options))
    elif command == "prepare":
        require(0 <= arguments.max_skipped <= 1, "--max-skipped", arguments.max_skipped, "a share from 0 to 1")
        unique = len(set(arguments.subsets)) == len(arguments.subsets)
        require(unique, "--subsets", arguments.subsets, "a list of different names")
        require(
            len(arguments.corpora) == 1 or not arguments.subsets, "--subsets", arguments.subsets, "of one corpus only"
        )
        from distiller.preparation.prepare import prepare

        print(prepare(**options))
        print(f"\nNext\n  python distiller/run.py --recipe star-hubert-100h --corpus {arguments.output}")
    else:
        require(arguments.minutes > 0, "--minutes", arguments.minutes, "a number above 0")
        require(arguments.rounds >= 1, "--rounds", arguments.rounds, "an integer of at least 1")
        if arguments.table is not None:
            check_writable(arguments.table.parent)
        from distiller.benchmarks.reading import benchmark

        benchmark(**options)


if __name__ == "__main__":
    sys.exit(main())
