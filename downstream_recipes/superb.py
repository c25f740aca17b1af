"""The whole SUPERB table of one upstream: every task trained, evaluated and scored, resumable.

python downstream_recipes/superb.py -u starhubert -k exp/star/student --corpora corpora.yaml --output exp/superb/star
python downstream_recipes/superb.py -u starhubert -k exp/star/student --corpora mini   # synthetic corpora, on a laptop
"""

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from distiller.common.command import Failed, Parser, run_command
from downstream_recipes.miniature.make import corpora_file
from downstream_recipes.suite.run import run_here, run_suite
from downstream_recipes.suite.suite import Suite
from downstream_recipes.tasks.command_checks import chosen_device
from downstream_recipes.tasks.tasks import TASKS, Task
from upstream.errors import one_of, require


def parser() -> Parser:
    parser = Parser(any_path=True, prog="superb.py", description=__doc__)
    add = parser.add_argument
    add("-u", "--upstream", required=True, help="an entry of upstream/hubconf.py, or of s3prl")
    add("-k", "--checkpoint", help="whatever upstream.checkpoint.load opens, a URL, or an ONNX file of a student")
    add("-g", "--model-config", help="as s3prl's -g: STaR's YAML, states=all, padding=reference")
    add("--tasks", default="all", help="all (the ten of the table), or comma-separated codes: pr,sid")
    add("--corpora", help="YAML file of paths, or mini; default: $SUPERB_CORPORA")
    add("--output", type=Path, help="default: exp/superb/<upstream>")
    add("--overwrite", action="store_true", help="rerun the named tasks from scratch")
    add("--lr-search", action="store_true", help="train with 1e-1 .. 1e-7, choose on dev")
    add("--submission", action="store_true", help="also write the leaderboard's predict.zip")
    add("--beside", type=Path, action="append", default=[], help="another --output to add to the table as a row")
    add(
        "--feature-cache",
        type=float,
        metavar="GB",
        help="memory to cache features in (default: 1 on miniature corpora, otherwise 0)",
    )
    add("--gpus", help="comma-separated GPU numbers; each runs one task at a time")
    add("--device", help="cuda or cpu; default: cuda where there is a GPU")
    add("--no-report", action="store_true", help=argparse.SUPPRESS)  # used by the processes of --gpus
    return parser


def chosen_tasks(text: str) -> list[Task]:
    if text == "all":
        return [task for task in TASKS.values() if not task.extra]
    codes = [code.strip() for code in text.split(",") if code.strip()]
    for code in codes:
        require(code in TASKS, "--tasks", code, one_of(code, TASKS))
    return [TASKS[code] for code in codes]


def chosen_gpus(text: str | None) -> list[str]:
    gpus = [gpu.strip() for gpu in text.split(",")] if text else []
    require(all(gpus) and len(set(gpus)) == len(gpus), "--gpus", text, "different comma-separated numbers, such as 0,1")
    return gpus


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_args(argv)))


def _main(arguments: argparse.Namespace) -> None:
    # before s3prl does it with a stream that is closed with its task; its warnings are irrelevant here
    logging.basicConfig(level=logging.ERROR)
    cache = arguments.feature_cache
    require(cache is None or 0 <= cache < math.inf, "--feature-cache", cache, "GB, 0 or more")
    tasks, gpus = chosen_tasks(arguments.tasks), chosen_gpus(arguments.gpus)
    suite = Suite(
        upstream=arguments.upstream,
        checkpoint=arguments.checkpoint,
        model_config=arguments.model_config,
        corpora_file=corpora_file(arguments.corpora),
        output=(arguments.output or Path("exp") / "superb" / arguments.upstream).absolute(),
        device=chosen_device(arguments.device),
        lr_search=arguments.lr_search,
        feature_cache=cache,
    )
    if not arguments.no_report:
        run_suite(suite, tasks, gpus, arguments.overwrite, arguments.beside, arguments.submission)
    elif failures := run_here(suite, tasks):  # in an output locked by the parent process
        raise Failed(*failures)


if __name__ == "__main__":
    sys.exit(main())
