"""s3prl's own run_downstream with our upstreams, our recipes and today's torch.

python downstream_recipes/run_downstream.py -u starhubert -k exp/star/student -d asr --corpora corpora.yaml

Every flag of s3prl's is passed on. What is added: -m defaults to train (QbE: evaluate, it trains nothing), -n to
<upstream>_<task>, -c to our recipe of the task, --device to cuda where there is one; -d takes SUPERB's codes (pr asr ks
qbe sid asv sd ic sf er se ss) beside s3prl's names. The recipe with its paths filled in is written to the experiment
folder as <task>.yaml, where an unmodified s3prl can take it with -c. Evaluations of QbE and SD print SUPERB's score.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from distiller.run import exit_code
from upstream.errors import UserError

CONTINUING = "run the same command with -a to continue from its newest checkpoint"


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags that have a default of ours, and the rest of s3prl's as they are."""
    parser = argparse.ArgumentParser(
        prog="run_downstream.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All other flags are s3prl's: python -m s3prl.run_downstream -h lists them.",
        allow_abbrev=False,
    )
    parser.add_argument("-m", "--mode", help="train, evaluate or inference")
    parser.add_argument("-u", "--upstream", help="an entry of upstream/hubconf.py, or of s3prl")
    parser.add_argument("-d", "--downstream", help="a SUPERB code, or s3prl's name of a task")
    parser.add_argument("-c", "--config", help="a recipe; ours of the task when left out")
    parser.add_argument("-n", "--expname", help="result/downstream/EXPNAME is the experiment folder")
    parser.add_argument("-p", "--expdir", help="the experiment folder itself")
    parser.add_argument("-e", "--past_exp", help="a checkpoint or experiment folder to evaluate or to continue")
    parser.add_argument("--corpora", help="YAML file with the corpora's paths; $SUPERB_CORPORA when left out")
    parser.add_argument("--device", help="cuda or cpu")
    return parser.parse_known_args(argv)


def s3prl_arguments(argv: Sequence[str]) -> list[str]:
    """s3prl's own command line for ours; the resolved recipe is written to the experiment folder on the way.

    Raises:
        UserError: no upstream or task, or anything `recipes.resolve` finds.
    """
    ours, rest = parse_arguments(argv)
    device = ours.device or ("cuda" if _cuda_is_available() else "cpu")
    if ours.past_exp:  # the checkpoint holds everything else
        given = {"-m": ours.mode or "train", "-e": _existing_checkpoint(ours.past_exp), "--device": device}
        given |= {"-c": ours.config, "-u": ours.upstream, "-d": ours.downstream, "-n": ours.expname, "-p": ours.expdir}
        return [*_flags(given), *rest]
    for flag, value in (("-u", ours.upstream), ("-d", ours.downstream)):
        if value is None:
            raise UserError(f"{flag} is missing: which {'upstream' if flag == '-u' else 'task'}?")
    from downstream_recipes.tasks import TASKS, find_task

    task = find_task(ours.downstream) if ours.config is None or ours.downstream in TASKS else None
    name = task.code if task else ours.downstream
    expdir = Path(ours.expdir or Path("result") / "downstream" / (ours.expname or f"{ours.upstream}_{name}"))
    given = {
        "-m": ours.mode or ("train" if task is None or task.trained else "evaluate"),
        "-u": ours.upstream,
        "-d": task.downstream if task else ours.downstream,
        "-c": str(_resolved_recipe(ours.config or _recipe_of(task, name), name, ours.corpora, expdir)),
        "-p": str(expdir),
        "--device": device,
    }
    return [*_flags(given), *rest]


def _flags(values: dict[str, str | None]) -> list[str]:
    return [text for flag, value in values.items() if value is not None for text in (flag, value)]


def _cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


def _existing_checkpoint(path: str) -> str:
    if not Path(path).exists():
        raise UserError(f"-e {path}: no such checkpoint or experiment folder")
    return path


def _recipe_of(task, name: str) -> Path:
    if task is None:
        from downstream_recipes.tasks import TASKS

        nearest = difflib.get_close_matches(name, [*TASKS, *(task.downstream for task in TASKS.values())], 1, 0)[0]
        raise UserError(f"-d {name}: no recipe of that name (nearest: {nearest}); give one of your own with -c")
    return task.recipe


def _resolved_recipe(recipe: str | Path, name: str, corpora: str | None, expdir: Path) -> Path:
    import yaml

    from downstream_recipes.cache import write_whole
    from downstream_recipes.recipes import REFERENCE, read_corpora, resolve

    recipe = Path(recipe)
    if not recipe.is_file():
        raise UserError(f"-c {recipe}: no such file")
    needs_corpora = REFERENCE.search(recipe.read_text()) is not None
    configuration = resolve(recipe, read_corpora(corpora) if needs_corpora else {}, expdir)
    return write_whole(expdir / f"{name}.yaml", yaml.safe_dump(configuration, sort_keys=False))


def check_upstream(name: str | None) -> None:
    """Raises: UserError: neither ours nor s3prl's."""
    from s3prl import hub

    known = [entry for entry in dir(hub) if not entry.startswith("_") and callable(getattr(hub, entry))]
    if name is not None and name not in known:
        nearest = ", ".join(difflib.get_close_matches(name, known, 3, 0))
        raise UserError(f"-u {name}: no such upstream; the nearest names are {nearest}")


def run(argv: Sequence[str]) -> None:
    """One run of s3prl in this process.

    Raises:
        UserError: anything wrong with the command line, the corpora or the checkpoint.
    """
    arguments = s3prl_arguments(argv)
    from downstream_recipes import compat

    compat.install()
    from s3prl import run_downstream

    ours, _ = parse_arguments(arguments)
    check_upstream(ours.upstream)
    before = sys.argv
    sys.argv = ["run_downstream.py", *arguments]
    try:
        run_downstream.main()
    finally:
        sys.argv = before


def main() -> int:
    return exit_code(_carry_out, CONTINUING)


def _carry_out() -> int:
    if "--device" in sys.argv and sys.argv[sys.argv.index("--device") + 1 :][:1] == ["cpu"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # s3prl enters torch.cuda.device(--device) wherever it sees a GPU
    from downstream_recipes import own_scores

    own_scores.announce()
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"run_downstream.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
