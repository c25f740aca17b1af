"""s3prl's own run_downstream with our upstreams, our recipes and today's torch.

python downstream_recipes/run_downstream.py -u starhubert -k exp/star/student -d asr --corpora corpora.yaml

Every flag of s3prl's is passed on. What is added: -m defaults to train (QbE: evaluate, it trains nothing), -n to
<upstream>_<task>, -c to our recipe of the task, --device to cuda where there is one; -d takes SUPERB's codes (pr asr ks
qbe sid asv sd ic sf er se ss) beside s3prl's names. The recipe with its paths filled in is written to the experiment
folder as <task>.yaml, where an unmodified s3prl can take it with -c. Evaluations of QbE and SD print SUPERB's score.
"""

import gc
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from distiller.common.command import run_command
from downstream_recipes.tasks.runner import CONTINUING, LOG, _experiment_folder, in_one_line, parse_arguments, run
from upstream.errors import UserError


def main() -> int:
    try:
        return run_command(_carry_out, CONTINUING)
    except Exception as error:  # whatever a task of s3prl's raises
        told = in_one_line(error, _experiment_folder(parse_arguments(sys.argv[1:], __doc__)[0]) / LOG)
    gc.collect()  # its frames are gone, and now their progress bars, which say a last word
    print(f"run_downstream.py: {told}", file=sys.stderr)
    return 1


def _carry_out() -> int:
    if "--device" in sys.argv and sys.argv[sys.argv.index("--device") + 1 :][:1] == ["cpu"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # s3prl enters torch.cuda.device(--device) wherever it sees a GPU
    from downstream_recipes.scores import print_scores as own_scores

    own_scores.announce()
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"run_downstream.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
