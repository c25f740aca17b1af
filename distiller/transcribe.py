#!/usr/bin/env python
"""The command distiller/transcribe.py: the text of audio files, by a recogniser of distiller/finetune.py."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence

from distiller.common.command import FAILED, Parser, complain, run_command
from upstream.errors import UserError, require

DESCRIPTION = """\
Transcribe audio files with a recogniser trained by distiller/finetune.py. Each file becomes a line with its path, a tab
and its text, printed as soon as it is ready; long files are computed in chunks of 30 s. Files that cannot be
transcribed are reported on stderr, and the exit code is then 1.
"""

EPILOG = """\
examples:
  python distiller/transcribe.py exp/ctc/model a.wav talk.mp3
  python distiller/transcribe.py exp/ctc/model recordings/ --beam 50 > recordings.txt
"""


def parser() -> Parser:
    built = Parser(prog="distiller/transcribe.py", description=DESCRIPTION, epilog=EPILOG)
    built.add_argument("model", metavar="MODEL", help="OUTPUT/model written by distiller/finetune.py")
    built.add_argument(
        "files", metavar="FILE", nargs="+", help="an audio file that libsndfile reads, or a folder of them"
    )
    built.add_argument(
        "--beam", type=int, default=0, metavar="N", help="beam size of a beam search (default: greedy decoding)"
    )
    built.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_args(argv)), "the files listed above are done")


def _main(options: argparse.Namespace) -> int:
    require(options.beam >= 0, "--beam", options.beam, "a number of hypotheses, or 0 for greedy decoding")
    from distiller.clustering.compare import usable_device  # takes seconds
    from distiller.finetuning.decoding import transcriptions
    from distiller.finetuning.recognizer import open_recognizer

    device = usable_device(options.device)
    recognizer, failed = open_recognizer(options.model).to(device), False
    for path, text in transcriptions(recognizer, options.files, options.beam):
        if isinstance(text, UserError):
            failed = True
            complain(f"error: {text}")
        else:
            print(f"{path}\t{text}", flush=True)
    return FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
