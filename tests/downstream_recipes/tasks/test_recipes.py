import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from distiller.common.values import flatten
from downstream_recipes.tasks import recipes
from downstream_recipes.tasks.corpus_layouts import CORPORA
from downstream_recipes.tasks.tasks import FOLDER, TASKS
from tests.downstream_recipes.laid_out import lay_out
from upstream.errors import UserError

TEMPLATE = yaml.safe_load((FOLDER / "corpora.yaml").read_text())


@pytest.fixture
def corpora(tmp_path: Path) -> dict:
    """A corpora file of every corpus, each of empty files, and of what is prepared from them."""
    lines = {}
    for key in [*TEMPLATE, *recipes.PREPARED]:
        lay_out(key, tmp_path / key) if key in TEMPLATE else (tmp_path / key).mkdir()
        lines[key] = [key] if isinstance(TEMPLATE.get(key), list) else key
    (tmp_path / "corpora.yaml").write_text(yaml.safe_dump({**lines, "workers": 0}))
    return recipes.read_corpora(tmp_path / "corpora.yaml")


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.code)
def test_every_recipe_is_complete(task, corpora, tmp_path):
    text = task.recipe.read_text()
    assert text.splitlines()[0].startswith("# ")
    assert re.search(rf"^#   python downstream_recipes/run_downstream\.py -u starhubert -d {task.code}\b", text, re.M)
    configuration = recipes.resolve(task.recipe, corpora, tmp_path / "exp")
    assert set(configuration) >= {"runner", "downstream_expert"}
    assert "${" not in yaml.safe_dump(configuration)
    if task.trained:
        runner = configuration["runner"]
        assert {"total_steps", "gradient_clipping", "gradient_accumulate_steps"} <= set(runner)
        assert {"log_step", "eval_step", "save_step", "max_keep", "eval_dataloaders"} <= set(runner)
        assert configuration["optimizer"]["lr"] > 0


def stated(path: str, name: str) -> float:
    """A number in s3prl's own SUPERB settings, which its release has as code (its YAMLs are not in it)."""
    package = importlib.util.find_spec("s3prl")
    if package is None or not package.submodule_search_locations:
        pytest.skip("s3prl is not installed")
    source = Path(package.submodule_search_locations[0], "problem", f"{path}.py").read_text()
    return float(re.findall(rf"\b{name}=([\d.e+-]+)", source)[0])


@pytest.mark.parametrize(
    ("code", "path"),
    [
        ("pr", "asr/superb_pr"),
        ("asr", "asr/superb_asr"),
        ("ks", "common/superb_ks"),
        ("sid", "common/superb_sid"),
        ("asv", "asv/superb_asv"),
        ("sd", "diarization/superb_sd"),
        ("ic", "common/superb_ic"),
        ("sf", "asr/superb_sf"),
        ("er", "common/superb_er"),
    ],
)
def test_steps_and_learning_rates_are_superbs(code, path, corpora, tmp_path):
    ours = recipes.resolve(TASKS[code].recipe, corpora, tmp_path)
    assert ours["runner"]["total_steps"] == stated(path, "total_steps")
    assert ours["runner"]["gradient_clipping"] == stated(path, "gradient_clipping")
    assert ours["runner"]["gradient_accumulate_steps"] == stated(path, "gradient_accumulate")
    factor = 10 if code == "sid" else 1  # the STaR evaluation's
    assert ours["optimizer"]["lr"] == pytest.approx(factor * stated(path, "lr"))


def test_the_star_evaluation_enables_every_scheduler(corpora, tmp_path):
    with_scheduler = {
        code for code, task in TASKS.items() if "scheduler" in recipes.resolve(task.recipe, corpora, tmp_path / code)
    }
    assert with_scheduler == {"pr", "asr", "ks", "sid", "asv", "ic", "sf", "er"}


def test_vocabularies_are_written_beside_the_recipe(corpora, tmp_path):
    configuration = recipes.resolve(TASKS["pr"].recipe, corpora, tmp_path / "exp")
    path = Path(configuration["downstream_expert"]["text"]["vocab_file"])
    assert path == tmp_path / "exp" / "phonemes.txt"
    assert not path.parent.exists()  # resolving a recipe leaves nothing behind
    file = recipes.write_recipe(configuration, tmp_path / "exp" / "pr.yaml")
    assert yaml.safe_load(file.read_text()) == configuration
    assert sorted(found.name for found in path.parent.iterdir()) == ["phonemes.txt", "pr.yaml"]
    phonemes = path.read_text().split()
    assert len(phonemes) == 71
    assert phonemes[:5] == ["SIL", "SPN", "AA0", "AA1", "AA2"]
    assert phonemes[-1] == "ZH"


def test_asr_reads_the_generated_letters(corpora, tmp_path):
    dictionary = pytest.importorskip("s3prl.downstream.asr.dictionary").Dictionary
    configuration = recipes.resolve(TASKS["asr"].recipe, corpora, tmp_path)
    recipes.write_recipe(configuration, tmp_path / "asr.yaml")
    letters = dictionary.load(configuration["downstream_expert"]["datarc"]["dict_path"])
    assert len(letters) == 28 + 4
    assert letters.string(letters.encode_line("| I ' D |", line_tokenizer=str.split, append_eos=False)) == "| I ' D |"


def test_workers_and_paths_come_from_the_corpora_file(corpora, tmp_path):
    configuration = recipes.resolve(TASKS["qbe"].recipe, corpora, tmp_path)["downstream_expert"]
    assert configuration["datarc"] == {"dataset_root": str(tmp_path / "quesst14"), "num_workers": 0, "batch_size": 1}
    assert configuration["max_workers"] == 1
    default = recipes.resolve(TASKS["qbe"].recipe, {"quesst14": corpora["quesst14"]}, tmp_path)["downstream_expert"]
    assert 1 <= default["datarc"]["num_workers"] <= recipes.MAX_WORKERS


def test_wrong_corpora_are_a_one_line_error(tmp_path):
    file = tmp_path / "corpora.yaml"
    with pytest.raises(UserError, match=r"corpora\.yaml cannot be read: No such file"):
        recipes.read_corpora(file)
    for content, message in (
        ("libri_speech: /x", "corpora.yaml: libri_speech does not exist; did you mean librispeech?"),
        ("[a, b", "is not a YAML file"),
        ("- a", "must hold `key: value` lines"),
        ("librispeech: [x]", r"corpora\.yaml: librispeech is \['x'\], but it must be a path$"),
        ("librispeech: 5", "librispeech is 5, but it must be a path$"),
        ("snips: ''", "snips is '', but it must be a path$"),
        ("emotion_folds: {a: b}", r"emotion_folds is \{'a': 'b'\}, but it must be a path$"),
        ("lexicon: []", r"lexicon is \[\], but it must be a path or a list of paths"),
        ("lexicon: [null]", r"lexicon is \[None\], but it must be a path or a list of paths"),
        ("workers: -1", "workers is -1, but it must be a number of processes, 0 or more"),
        ("workers: true", "workers is True, but it must be a number"),
        ("miniature: 1", "miniature is 1, but it must be true or false"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            recipes.read_corpora(file)
    file.write_text("quesst14: absent")
    with pytest.raises(UserError, match=r"qbe needs the corpus 'quesst14': .*absent does not exist"):
        recipes.resolve(TASKS["qbe"].recipe, recipes.read_corpora(file), tmp_path)
    with pytest.raises(UserError, match="ic needs the corpus 'fluent_commands': not in the corpora file"):
        recipes.resolve(TASKS["ic"].recipe, recipes.read_corpora(file), tmp_path)


def test_one_lexicon_is_a_list_of_one(tmp_path):
    (tmp_path / "corpora.yaml").write_text("lexicon: lex.txt\nlibrispeech:\n")
    assert recipes.read_corpora(tmp_path / "corpora.yaml") == {
        "lexicon": [str(tmp_path / "lex.txt")],
        "librispeech": None,
    }


def test_wrong_recipes_are_a_one_line_error(tmp_path):
    recipe = tmp_path / "own.yaml"
    with pytest.raises(UserError, match=r"own\.yaml cannot be read: No such file"):
        recipes.resolve(recipe, {}, tmp_path)
    for content, message in (
        ("a: ${vocabulary.words}", r"\$\{vocabulary\.words\} does not exist"),
        ("a: ${b}", "own.yaml: Interpolation key 'b' not found"),
        ("a: [", "is not a YAML file"),
        ("- a\n- b", r"own\.yaml must hold `key: value` lines"),
        ("", "own.yaml has no section runner; every recipe needs runner and downstream_expert"),
        ("\udcff", "is not a YAML file"),
    ):
        recipe.write_text(content, errors="surrogateescape")
        with pytest.raises(UserError, match=message):
            recipes.resolve(recipe, {}, tmp_path)


@pytest.mark.parametrize("code", TASKS)
def test_a_folder_that_is_another_corpus_is_named(code, corpora, tmp_path):
    (tmp_path / "another" / "data").mkdir(parents=True)
    (tmp_path / "another" / "README.md").touch()
    for name in recipes.corpora_of(TASKS[code].recipe):
        wrong = str(tmp_path / "another")
        with pytest.raises(UserError, match=f"^{code} needs the corpus '{name}': .*another"):
            recipes.resolve(TASKS[code].recipe, corpora | {name: [wrong] if name == "lexicon" else wrong}, tmp_path)
    own = "runner: {}\ndownstream_expert: {root: '${corpora.librispeech}'}\n"
    (tmp_path / "own.yaml").write_text(own)  # a user's own recipe may need only a part of a corpus
    resolved = recipes.resolve(tmp_path / "own.yaml", {"librispeech": str(tmp_path / "another")}, tmp_path)
    assert resolved["downstream_expert"] == {"root": str(tmp_path / "another")}


def test_the_template_lists_every_corpus():
    assert list(TEMPLATE) == list(CORPORA)
    assert [key for key, value in TEMPLATE.items() if isinstance(value, list)] == ["lexicon"]


@pytest.mark.parametrize("code", [code for code, task in TASKS.items() if task.trained])
def test_miniature_settings_only_change_what_the_recipe_has(code, corpora, tmp_path):
    settings = yaml.safe_load((FOLDER / "miniature.yaml").read_text())
    assert set(settings) == {code for code, task in TASKS.items() if task.trained}
    assert set(flatten(settings[code])) <= set(flatten(recipes.resolve(TASKS[code].recipe, corpora, tmp_path)))
