#!/usr/bin/env python
"""The command line of distiller/corpus.py: prepare a corpus, verify what was prepared, measure how fast it is read."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distiller.common.command import Parser, run_command
from distiller.common.files import check_writable
from upstream.errors import require

if TYPE_CHECKING:
    from distiller.corpora.prepare import Prepared

DESCRIPTION = """\
Decode a corpus once, into Lhotse Shar of 16 kHz mono audio, so that training need not.

A prepared folder stands for its corpus in any recipe (--corpus DIR): ids, order and batches are the corpus's, waveforms
differ by at most 2^-16 of full scale, and not at all where the source is 16 kHz, 16 bits, mono.
"""

EPILOG = """\
examples:
  python distiller/corpus.py prepare /data/LibriSpeech --output /ssd/librispeech --subsets train-clean-100 dev-clean
  python distiller/corpus.py verify /ssd/librispeech
  python distiller/run.py --recipe star-hubert-100h --corpus /ssd/librispeech
  python distiller/corpus.py benchmark /data/LibriSpeech --subsets dev-clean

prepare continues where it was interrupted, and makes damaged shards anew.
"""


def parser() -> Parser:
    built = Parser(prog="distiller/corpus.py", description=DESCRIPTION, epilog=EPILOG)
    commands = built.add_subparsers(dest="command", required=True, metavar="COMMAND")
    workers = {"type": int, "default": os.cpu_count() or 1, "help": "processes (default: one for each core)"}

    prepare = commands.add_parser("prepare", help="decode a corpus into shards")
    prepare.add_argument("corpus", type=Path, help="a folder, LibriSpeech, a Lhotse manifest or Shar folder, a list")
    prepare.add_argument("--output", type=Path, required=True, help="folder of the shards")
    prepare.add_argument("--subsets", nargs="+", default=[], metavar="NAME", help="as corpus.subsets and .validation")
    prepare.add_argument(
        "--format", choices=("wav", "flac"), default="wav", help="flac takes half the disk and twice the time to read"
    )
    prepare.add_argument("--workers", **workers)
    prepare.add_argument(
        "--max-skipped", type=float, default=0.01, metavar="SHARE", help="of unusable utterances (default: 0.01)"
    )

    verify = commands.add_parser("verify", help="check every byte of a prepared folder")
    verify.add_argument("folder", type=Path)
    verify.add_argument("--workers", **workers)

    benchmark = commands.add_parser("benchmark", help="seconds of audio read for each CPU second, by format")
    benchmark.add_argument("corpus", type=Path, nargs="?", help="whose utterances to use (default: the embedded one)")
    benchmark.add_argument("--subsets", nargs="+", default=[], metavar="NAME")
    benchmark.add_argument("--minutes", type=float, default=20.0, help="of audio to use (default: 20)")
    benchmark.add_argument("--rounds", type=int, default=7, help="interleaved readings; medians count (default: 7)")
    benchmark.add_argument(
        "--workers", type=int, default=0, help="processes of the loader, which is then timed by the clock (default: 0)"
    )
    benchmark.add_argument("--table", type=Path, help="CSV to add the rows to")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _carry_out(parser().parse_args(argv)))


def _carry_out(options: argparse.Namespace) -> None:
    require(options.workers >= 0, "--workers", options.workers, "an integer of at least 0")
    if options.command == "benchmark":
        require(options.minutes > 0, "--minutes", options.minutes, "a number above 0")
        require(options.rounds >= 1, "--rounds", options.rounds, "an integer of at least 1")
        if options.table is not None:
            check_writable(options.table.parent)
        from distiller.benchmarks.reading import benchmark

        benchmark(options.corpus, options.subsets, options.minutes, options.rounds, options.workers, options.table)
        return
    # heavy imports, after everything that may be wrong with the options
    if options.command == "verify":
        from distiller.corpora.prepare import verify

        _print(verify(options.folder, options.workers))
        return
    require(0 <= options.max_skipped <= 1, "--max-skipped", options.max_skipped, "a share from 0 to 1")
    require(len(set(options.subsets)) == len(options.subsets), "--subsets", options.subsets, "different names")
    from distiller.corpora.prepare import prepare

    prepared = prepare(
        options.corpus, options.output, options.subsets, options.format, options.workers, options.max_skipped
    )
    _print(prepared)
    print(f"\nNext\n  python distiller/run.py --recipe star-hubert-100h --corpus {options.output}")


def _print(prepared: "Prepared") -> None:
    print(
        f"{prepared.folder}: {prepared.utterances:,} utterances, {prepared.seconds / 3600:,.2f} hours, "
        f"{prepared.shards:,} shards, {prepared.bytes / 1e9:,.2f} GB, every byte as it was written"
    )
    if prepared.skipped:
        print(f"{prepared.skipped:,} utterances are set aside: {prepared.folder / 'skipped.csv'} says why")


if __name__ == "__main__":
    sys.exit(main())
