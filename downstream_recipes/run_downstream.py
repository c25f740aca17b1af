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
from downstream_recipes.tasks.recipes import read_corpora
from downstream_recipes.tasks.runner import SHORT, plan_experiment, run_experiment

SWITCHES = (
    *("upstream_refresh", "upstream_trainable", "upstream_feature_normalize"),
    *("auto_resume", "verbose", "disable_cudnn"),
)
PASSED_ON = (
    *("override", "backend", "local_rank", "init_ckpt", "downstream_variant", "hub", "upstream_model_config"),
    *("upstream_feature_selection", "upstream_layer_selection", "upstream_model_name", "upstream_revision"),
    *("push_to_hf_hub", "hf_hub_org", "seed", "cache_dir"),
)


def parser() -> Parser:
    """Its values have the names of s3prl's arguments, and `corpora`."""
    parser = Parser(
        prog="run_downstream.py",
        description=__doc__,
        epilog="python -m s3prl.run_downstream -h explains s3prl's other flags.",
    )
    for name, settings in {
        "mode": {"choices": ["train", "evaluate", "inference"], "help": "default: train"},
        "evaluate_split": {"help": "the split to evaluate, or the wav to infer from"},
        "upstream": {"help": "an entry of upstream/hubconf.py, or of s3prl"},
        "upstream_ckpt": {"help": "its checkpoint"},
        "downstream": {"help": "a SUPERB code, or s3prl's name of a task"},
        "config": {"help": "a recipe; default: ours of the task"},
        "expname": {"help": "result/downstream/EXPNAME is the experiment folder"},
        "expdir": {"help": "the experiment folder itself"},
        "past_exp": {"help": "a checkpoint or experiment folder to evaluate or to continue"},
        "device": {"help": "cuda or cpu; default: cuda where there is a GPU"},
        "corpora": {"help": "YAML file with the corpora's paths, or mini; default: $SUPERB_CORPORA"},
        **{name: {"help": argparse.SUPPRESS} for name in PASSED_ON},
        **{name: {"help": argparse.SUPPRESS, "action": "store_true"} for name in SWITCHES},
    }.items():
        parser.add_argument(*([SHORT[name]] if name in SHORT else []), f"--{name}", **settings)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    continuing = "run the same command with -a to continue from its newest checkpoint"
    return run_command(lambda: _main(parser().parse_args(argv)), continuing)


def _main(arguments: argparse.Namespace) -> None:
    values = vars(arguments)
    file = values.pop("corpora")
    experiment = plan_experiment(values, lambda: read_corpora(corpora_file(file)))
    print_after_evaluation()
    run_experiment(experiment)


if __name__ == "__main__":
    sys.exit(main())
