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
Decode a corpus once to Lhotse Shar (16 kHz, mono), so that training does not have to; or join short clips first.

A prepared folder can replace its corpus in any recipe (--corpus DIR): ids, order and batches are the same. Waveforms
differ by at most 2^-16 of full scale, and are identical if the source is 16 kHz, 16-bit, mono.
"""

EPILOG = """\
examples:
  python distiller/corpus.py prepare /data/LibriSpeech --output /ssd/librispeech --subsets train-clean-100 dev-clean
  python distiller/corpus.py join data/prompts --output data/read --seconds 3,12 --speeds 0.9,1.0,1.1
  python distiller/corpus.py prepare data/read data/voices --output data/teacher --speeds 0.9,1.0,1.1
  python distiller/corpus.py verify /ssd/librispeech
  python distiller/run.py --recipe star-hubert-100h --corpus /ssd/librispeech
  python distiller/corpus.py benchmark /data/LibriSpeech --subsets dev-clean

If interrupted, prepare continues where it stopped; it also replaces damaged shards.
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
    prepare.add_argument("--output", type=Path, required=True, help="folder for the shards")
    prepare.add_argument("--subsets", nargs="+", default=[], metavar="NAME", help="subsets to prepare (default: all)")
    prepare.add_argument(
        "--format", choices=("wav", "flac"), default="wav", help="flac needs half the space, but is read half as fast"
    )
    prepare.add_argument("--workers", **workers)
    speeds = "write every utterance at each speed; length, pitch and formants change together (default: 1.0)"
    speeds = {"type": comma_separated(float), "default": [1.0], "metavar": "0.9,1.0,1.1", "help": speeds}
    prepare.add_argument("--speeds", **speeds)
    prepare.add_argument(
        "--max-skipped", type=float, default=0.01, metavar="SHARE", help="limit for unusable utterances (default: 0.01)"
    )

    join = commands.add_parser("join", help="join short clips of the same speaker into longer utterances")
    join.add_argument("corpus", type=Path, help="a folder with one subfolder of clips per speaker, or as for prepare")
    join.add_argument("--output", type=Path, required=True, help="folder for utterances (FLAC), clip lists (CSV)")
    lengths = {"type": comma_separated(float), "default": [3.0, 12.0], "metavar": "LEAST,MOST"}
    join.add_argument(
        "--seconds", **lengths, help="clips are joined up to a random length in this range (default: 3,12)"
    )
    join.add_argument("--speeds", **speeds)
    join.add_argument("--seed", type=int, default=1, help="random seed for the order of the clips (default: 1)")

    verify = commands.add_parser("verify", help="check every byte of a prepared folder")
    verify.add_argument("folder", type=Path)
    verify.add_argument("--workers", **workers)

    benchmark = commands.add_parser("benchmark", help="measure the seconds of audio read per CPU second, by format")
    benchmark.add_argument("corpus", type=Path, nargs="?", help="corpus to read from (default: the synthetic one)")
    benchmark.add_argument("--subsets", nargs="+", default=[], metavar="NAME")
    benchmark.add_argument("--minutes", type=float, default=20.0, help="minutes of audio to use (default: 20)")
    benchmark.add_argument("--rounds", type=int, default=7, help="measurements to take the median of (default: 7)")
    benchmark.add_argument(
        "--workers", type=int, default=0, help="loader processes; above 0, wall-clock time is measured (default: 0)"
    )
    benchmark.add_argument("--table", type=Path, help="CSV file to append the rows to")
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
            len(arguments.corpora) == 1 or not arguments.subsets,
            "--subsets",
            arguments.subsets,
            "left out with several corpora",
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
