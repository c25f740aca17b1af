"""s3prl's own run_downstream with our upstreams, our recipes and a current torch.

python downstream_recipes/run_downstream.py -u starhubert -k exp/star/student -d asr --corpora corpora.yaml

Every flag of s3prl's is passed on. New defaults: -m is train (QbE: evaluate, it trains nothing), -n is
<upstream>_<task>, -c is our recipe of the task, --device is cuda where there is a GPU; -d takes SUPERB's codes (pr asr
ks qbe sid asv sd ic sf er se ss) as well as s3prl's names. The recipe with its paths filled in is written to the
experiment folder as <task>.yaml, which an unmodified s3prl takes with -c. Evaluations of QbE and SD print SUPERB's
score.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from distiller.common.command import Parser, run_command
from downstream_recipes.miniature.make import corpora_file
from downstream_recipes.scores.print_scores import print_after_evaluation
from downstream_recipes.tasks.command_line import SHORT
from downstream_recipes.tasks.recipes import read_corpora
from downstream_recipes.tasks.runner import run_experiment

HELP = {
    "mode": "train, evaluate or inference; default: train",
    "evaluate_split": "the split to evaluate, or the wav to infer from",
    "upstream": "an entry of upstream/hubconf.py, or of s3prl",
    "upstream_ckpt": "its checkpoint",
    "downstream": "a SUPERB code, or s3prl's name of a task",
    "config": "a recipe; default: ours of the task",
    "expname": "result/downstream/EXPNAME is the experiment folder",
    "expdir": "the experiment folder itself",
    "past_exp": "a checkpoint or experiment folder to evaluate or to continue",
    "device": "cuda or cpu; default: cuda where there is a GPU",
    "corpora": "YAML file with the corpora's paths, or mini; default: $SUPERB_CORPORA",
}
SWITCHES = (
    *("upstream_refresh", "upstream_trainable", "upstream_feature_normalize"),
    *("auto_resume", "verbose", "disable_cudnn"),
)
OTHERS = (  # s3prl's arguments without a short flag
    *("backend", "local_rank", "hub", "upstream_model_name", "upstream_revision"),
    *("push_to_hf_hub", "hf_hub_org", "seed", "cache_dir"),
)


def parser() -> Parser:
    """The parser; its values are named like s3prl's arguments, plus `corpora`."""
    epilog = "python -m s3prl.run_downstream -h explains s3prl's other flags."
    parser = Parser(any_path=True, prog="run_downstream.py", description=__doc__, epilog=epilog)
    for name in dict.fromkeys([*HELP, *SHORT, *SWITCHES, *OTHERS]):
        flags = [SHORT[name], f"--{name}"] if name in SHORT else [f"--{name}"]
        action = "store_true" if name in SWITCHES else "store"
        parser.add_argument(*flags, action=action, help=HELP.get(name, argparse.SUPPRESS))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    continuing = "run the same command with -a to continue from its newest checkpoint"
    return run_command(lambda: _main(parser().parse_args(argv)), continuing)


def _main(arguments: argparse.Namespace) -> None:
    print_after_evaluation()
    run_experiment(vars(arguments), lambda: read_corpora(corpora_file(arguments.corpora)))


if __name__ == "__main__":
    sys.exit(main())
