"""Recipes: the shipped ones load and say how to run them; mistakes are one line; sections follow their names."""

import shlex
import subprocess
import sys
from copy import deepcopy
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from distiller import run
from distiller.common.files import write_text
from distiller.common.strict import STRICT, typed
from distiller.objectives.config import ObjectiveConfig
from distiller.objectives.registry import OBJECTIVES, Entry
from distiller.recipes.command_line import recipe_of
from distiller.recipes.recipe import final_stage, first_difference, load_recipe, resolve, save, to_yaml
from distiller.recipes.yaml_files import RECIPES, overlay, parse_overrides, read, shipped
from distiller.students.config import SIZES, STUDENTS, PruningConfig, StudentConfig
from upstream.errors import UserError

PAPER = [
    f"star-{teacher}-{hours}" for teacher in ("hubert", "wavlm", "wavlm-plus", "wav2vec2") for hours in ("100h", "960h")
]


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipe_opens_with_the_command_that_runs_it(name: str, tmp_path: Path) -> None:
    first_line = (RECIPES / f"{name}.yaml").read_text().partition("\n")[0]
    sharp, python, script, *argv = shlex.split(first_line)
    assert (sharp, python, script) == ("#", "python", "distiller/run.py")
    recipe = recipe_of(run.parser().parse_intermixed_args([*argv, "--dry-run"]))
    assert recipe == load_recipe(name, [f"corpus.path={argv[-1]}"] if "--corpus" in argv else [])
    save(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe  # every key comes back with its type
    assert first_difference(tmp_path / "recipe.yaml", recipe) is None


def test_the_paper_recipes() -> None:
    assert set(PAPER) <= set(shipped())
    hubert, wavlm = (load_recipe(name, ["corpus.path=x"]) for name in ("star-hubert-100h", "star-wavlm-960h"))
    assert (hubert.teacher, wavlm.teacher) == ("facebook/hubert-base-ls960", "microsoft/wavlm-base")
    assert (hubert.trainer.epochs, wavlm.trainer.epochs) == (200, 100)
    assert list(hubert.corpus.subsets) == ["train-clean-100"]
    assert list(wavlm.corpus.subsets) == ["train-clean-100", "train-clean-360", "train-other-500"]
    for recipe in (hubert, wavlm):
        objective = recipe.objective
        assert (recipe.method, objective.name, objective.scaling) == ("star", "star", "none")
        assert (objective.layer_wise, objective.intra_layer, objective.average_attention) == (1, 1, 0)
        assert (recipe.student.size, recipe.student.initialization) == ("base", "random")
        assert (recipe.optimizer.lr, recipe.optimizer.betas, recipe.optimizer.warmup) == (1e-3, (0.9, 0.98), 0.05)
        assert recipe.control == "none"


def test_the_final_stage_is_relative_to_the_first() -> None:
    recipe = load_recipe("skill", ["trainer.steps=1", "pruning.final={length: 3.4, lr_scale: 2, warmup: 0.3}"])
    final = final_stage(recipe)
    assert (final.trainer.steps, final.trainer.epochs, final.optimizer.warmup) == (3, None, 0.3)
    assert final.optimizer.lr == 2 * recipe.optimizer.lr
    assert final_stage(load_recipe("skill", ["trainer.epochs=1"])).trainer.epochs == 1  # at least one


@pytest.mark.parametrize("size", ["base", "L", "S", "XS"])
def test_sizes(size: str) -> None:
    assert load_recipe("star-hubert-960h", ["corpus.path=x", f"student.size={size}"]).student.size == size


# --- what the command line changes


def test_options_and_overrides() -> None:
    overrides = [
        "optimizer.lr=5e-3",
        "optimizer.betas=[0.8,1E-1]",
        "seed=7",
        "seed=8",
        "corpus.subsets=[2026-01-01, 3]",
    ]
    recipe = resolve("star", None, "a/b", "/data", overrides)
    assert (recipe.teacher, recipe.corpus.path, recipe.seed) == ("a/b", "/data", 8)
    assert (recipe.optimizer.lr, recipe.optimizer.betas) == (5e-3, (0.8, 0.1))
    assert recipe.corpus.subsets == ["2026-01-01", "3"]  # text, as folders are called
    assert resolve("star", "star", overrides=["teacher=c/d"], teacher="a/b").teacher == "c/d"


def test_steps_and_epochs_replace_each_other() -> None:
    assert load_recipe("star", ["trainer.epochs=2"]).trainer.steps is None
    assert load_recipe("star-hubert-100h", ["corpus.path=x", "trainer.steps=9"]).trainer.epochs is None
    with pytest.raises(UserError, match=r"^both trainer\.epochs and trainer\.steps are set"):
        load_recipe("star", ["trainer.epochs=2", "trainer.steps=3"])


@dataclass(config=STRICT)
class OtherConfig(ObjectiveConfig):
    name: str = "other"
    clusters: int = 4


@dataclass(config=STRICT)
class Stage:
    steps: int = 25


@dataclass(config=STRICT)
class ShrinkingConfig(PruningConfig):
    sparsity: Annotated[float, Field(gt=0, lt=1, description="a share between 0 and 1")] = 0.75
    second: Stage = field(default_factory=Stage)


@dataclass(config=STRICT)
class ShrunkConfig(StudentConfig):
    pruning: ClassVar[type[PruningConfig] | None] = ShrinkingConfig
    name: str = "shrunk"


@pytest.fixture
def methods_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """An objective and a kind of student, each with a single line in a table."""
    monkeypatch.setitem(OBJECTIVES, "other", Entry(OtherConfig, "imported.when:Built"))
    monkeypatch.setitem(STUDENTS, "shrunk", ShrunkConfig)


@pytest.mark.usefixtures("methods_to_come")
def test_another_objective_or_student_brings_its_own_keys() -> None:
    overrides = ["objective.clusters=6", "objective=other", "student=shrunk", "pruning.second.steps=3"]
    recipe = load_recipe("star", overrides)
    assert (recipe.objective, recipe.student) == (OtherConfig(clusters=6), ShrunkConfig())  # no key of star's remains
    assert recipe.pruning == ShrinkingConfig(second=Stage(3))
    assert load_recipe("star", ["objective.name=other"]).objective == OtherConfig()
    assert load_recipe("star", ["objective=star"]) == load_recipe("star")  # the same name changes nothing
    assert load_recipe("star").pruning is None
    mistakes = {
        "objective.scaling=none": r"objective\.scaling is not a recipe key; it could be one of objective\.name",
        "pruning.second.step=3": r"pruning\.second\.step is not a recipe key; it could be pruning\.second\.steps$",
        "pruning.second=3": r"pruning\.second is 3, but it must be a section with the keys steps",
        "pruning.sparsity=2": r"pruning\.sparsity is 2\.0, but it must be a share between 0 and 1",
    }
    for mistake, sentence in mistakes.items():
        with pytest.raises(UserError, match=sentence):
            load_recipe("star", ["objective=other", "student=shrunk", mistake])
    with pytest.raises(UserError, match=r"pruning\.sparsity is set, but student\.name=narrow does not prune"):
        load_recipe("star", ["pruning.sparsity=0.5"])


@pytest.mark.usefixtures("methods_to_come")
def test_a_recipe_extends_another(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("extends: star\nstudent: shrunk\npruning: {sparsity: 0.5}\ntrainer: {epochs: 3}\n")
    (tmp_path / "sub" / "b.yaml").write_text("extends: ../a.yaml\nobjective: {name: other, clusters: 2}\n")
    (tmp_path / "sub" / "c.yaml").write_text("extends: b.yaml\nstudent: narrow\n")
    b, c = (load_recipe(tmp_path / "sub" / f"{name}.yaml") for name in "bc")
    assert (b.objective.clusters, b.pruning.sparsity, b.trainer.epochs, b.trainer.steps) == (2, 0.5, 3, None)
    assert b.optimizer == load_recipe("star").optimizer
    assert (c.student.name, c.pruning) == ("narrow", None)  # the pruned student's sections went with it
    (tmp_path / "a.yaml").write_text("extends: sub/b.yaml\n")
    with pytest.raises(UserError, match="extends itself"):
        load_recipe(tmp_path / "sub" / "c.yaml")


# --- what is wrong


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optimizer.lrr=1", "optimizer.lrr is not a recipe key; .*did you mean optimizer.lr?"),
        ("lr=1", "lr is not a recipe key; it could be optimizer.lr$"),
        ("optimzer.lr=1", "optimzer is not a recipe key; .*did you mean optimizer?"),
        ("trainer=3", "trainer is 3, but it must be a section with the keys epochs, steps"),
        ("optimizer.lr=fast", "optimizer.lr is 'fast', but it must be a number"),
        ("optimizer.lr=0", "optimizer.lr is 0.0, but it must be a number above 0"),
        ("optimizer.lr=.nan", "optimizer.lr is nan, but it must be a number above 0"),
        ("optimizer.lr.x=1", "optimizer.lr is {'x': 1}, but it must be a number"),
        ("optimizer.betas=[0.9]", r"optimizer.betas is \[0.9\], but it must be a list of 2"),
        ("optimizer.betas=[0.9,1.5]", "optimizer.betas is .*, but it must be two numbers"),
        ("optimizer.warmup=5", "optimizer.warmup is 5.0, but it must be a share"),
        ("optimizer.schedule=cosin", "optimizer.schedule is 'cosin', .*did you mean cosine?"),
        ("trainer.steps=0", "trainer.steps is 0, but it must be an integer of at least 1"),
        ("trainer.steps=2.5", "trainer.steps is 2.5, but it must be an integer or null"),
        ("trainer.steps=null", "neither trainer.epochs nor trainer.steps is set"),
        ("trainer.devices=-1", "trainer.devices is -1, but it must be a count"),
        ("trainer.devices=[0,1]", "trainer.devices is .*, but it must be an integer or text"),
        ("trainer.precision=bf16", "trainer.precision is 'bf16', .*did you mean bf16-mixed?"),
        ("trainer.ema=1", "trainer.ema is 1.0, but it must be a decay below 1"),
        ("probe.words=[a/it,b/it]", r"probe.words is \['a/it', 'b/it'\], but it must be folders of different names"),
        ("probe.enabled=perhaps", "probe.enabled is 'perhaps', but it must be true or false"),
        ("seed=-1", "seed is -1, but it must be an integer from 0"),
        ("control=reverse", "control is 'reverse', .*did you mean reversed?"),
        ("objective=stra", "objective.name is 'stra', but it must be one of star.*; did you mean star?"),
        ("student=narow", "student.name is 'narow', but it must be .*narrow"),
        ("student.size=huge", "student.size is 'huge'"),
        ("student.dropout=1.5", "student.dropout is 1.5"),
        ("objective.layer_wise=-1", "objective.layer_wise is -1.0"),
        ("corpus.batch_second=3", "corpus.batch_second is not a recipe key; .*did you mean corpus.batch_seconds?"),
        ("corpus.path=???", "corpus.path is not set; it must be text"),
        ("teacher=null", "teacher is None, but it must be text"),
        ("optimizer.lr", "argument 'optimizer.lr' is not of the form key=value"),
        ("=3", "argument '=3' is not of the form key=value"),
        ("optimizer.betas=[1", "the value of .* is not valid YAML"),
        ("optimizer.lr=${nothing}", "optimizer.lr is .*, but it must be a number"),
    ],
)
def test_a_mistake_is_one_line_with_its_key(override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence.replace('?', '[?]')}") as caught:
        load_recipe("star", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("method: [star\n", r"is not valid YAML \(.*line 2\)"),
        ("- star\n", "is not a mapping of sections"),
        ("", "is not a mapping of sections"),
        ("extends: strar\n", "recipe strar does not exist; .*did you mean star"),
        ("teacher: x\n", "student.name is not set; it must be one of narrow, pruned"),
        ("student: narrow\nobjective: star\ntrainer: {steps: 1}\n", "method is not set; it must be text"),
        ("extends: star\nstudent: {nam: narrow}\n", r"student\.nam is not a recipe key"),
        (
            "method: x\nteacher: x\nstudent: {name: narrow}\ntrainer: {steps: 1}\n",
            r"objective\.name is not set; it must be",
        ),
        ("a: 1\na: 2\n", r"is not valid YAML \(found duplicate key a, line 1\)"),
        ("extends: star\n<<: {seed: 3}\nseed: 4\nseed: 4\n", r"is not valid YAML \(found duplicate key seed"),
        (b"\xff\xfe\x00", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_line(content: str | bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=sentence):
        load_recipe(path)


def test_a_required_key_and_a_section_of_nothing() -> None:
    @dataclass(config=STRICT)
    class Needs:
        path: str
        count: int = 3

    assert typed(Needs, {"path": "x"}, "it") == Needs("x")
    with pytest.raises(UserError, match=r"^it\.path is not set; it must be text$"):
        typed(Needs, None, "it")
    assert typed(Stage, None, "stage") == Stage()


def test_light_mistakes_do_not_wait_for_torch() -> None:
    check = """
import sys
from distiller.run import main
for argv in (["--method", "strat"], ["--method", "star", "optimizer.lrr=1"], ["--method", "star", "student=narow"]):
    assert main(argv) == 2
assert "torch" not in sys.modules and "lightning" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", check], cwd=RECIPES.parents[1], capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (0, 3), done.stderr


# --- differences and files


def test_first_difference(tmp_path: Path) -> None:
    star = load_recipe("star")
    assert first_difference(star, load_recipe("star")) is None
    longer = load_recipe("star", ["trainer.steps=20", "probe.enabled=false"])
    assert first_difference(star, longer) == f"trainer.steps ({star.trainer.steps} against 20)"
    assert first_difference(star, longer, ignore={"trainer.steps"}) == "probe.enabled (True against False)"
    other_workers = load_recipe("star", [f"corpus.workers={star.corpus.workers + 1}", "trainer.checkpoint_every=7"])
    assert first_difference(star, other_workers) is None
    assert first_difference(star, other_workers, ignore=()) is not None
    # files of other versions: a key more, a key less, a key of another type
    path = tmp_path / "recipe.yaml"
    write_text(path, to_yaml(star) + "more: 1\n")
    assert first_difference(path, star) == "more (1 against not set)"
    write_text(path, to_yaml(star).replace("  clip: 1.0\n", ""))
    assert first_difference(path, star) == "optimizer.clip (not set against 1.0)"


def test_words_of_earlier_versions_mean_the_same(tmp_path: Path) -> None:
    star = load_recipe("star", ["teacher=embedded", "corpus.path=embedded", "student.size=embedded"])
    assert star == load_recipe("star")
    assert (star.teacher, star.corpus.path, star.student.size) == ("bundled", "synthetic", "synthetic")
    assert resolve("star", teacher="embedded", corpus="embedded") == star
    assert load_recipe("star", ["objective.zeroth=projected"]).objective.layer_zero == "feature_projection"
    old = ["objective.zeroth=layer_input", "objective.calibration.corpus=embedded"]
    new = ["objective.layer_zero=transformer_input", "objective.calibration.corpus=synthetic"]
    assert load_recipe("skill", old) == load_recipe("skill", new)
    path = tmp_path / "recipe.yaml"  # as an earlier version wrote it
    words = [("synthetic", "embedded"), ("bundled", "embedded"), ("layer_zero: tr", "zeroth: tr")]
    text = to_yaml(star)
    for today, earlier in [*words, ("transformer_input", "layer_input")]:
        assert today in text
        text = text.replace(today, earlier)
    path.write_text(text)
    assert first_difference(path, star) is None
    assert load_recipe(path) == star


def test_few_aliases_are_read_and_a_flood_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: star\n<<: {seed: 4}\n")
    assert load_recipe(path).seed == 4
    path.write_text("extends: star\noptimizer: {warmup: &share 0.3}\ncorpus: {validation_share: *share}\n")
    assert load_recipe(path).corpus.validation_share == 0.3
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))
    for text in (bomb, "extends: star\ncorpus: &c {path: x, subsets: *c}\n"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"is not valid YAML \(it has an alias inside its own value, or more than"):
            load_recipe(path)


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, star = tmp_path / "recipe.yaml", load_recipe("star")
    save(star, path)
    before = path.read_text()
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("distiller.common.files.os.fsync", lambda descriptor: (_ for _ in ()).throw(full))
    with pytest.raises(UserError, match=r"recipe\.yaml cannot be written: No space left"):
        save(replace(star, seed=5), path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_overlay_keeps_its_arguments() -> None:
    base, over = read("star"), parse_overrides(["objective=other", "trainer.epochs=1"])
    before = deepcopy((base, over))
    overlay(base, over)
    assert (base, over) == before


def test_dice_hubert_has_the_papers_settings() -> None:
    recipe = load_recipe("dice-hubert-960h", ["corpus.path=x"])
    size = SIZES[recipe.student.size]
    assert (size.layers, size.embed_dim, size.ffn_dim, recipe.student.initialization) == (12, 384, 1536, "random")
    assert (recipe.objective.name, recipe.objective.width) == ("units", 128)
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.trainer.epochs) == (5e-4, 0.0, 250)
