"""Recipes and overrides: anything a YAML file or a command line can hold is a recipe, or one sentence."""

from pathlib import Path
from typing import Any

import yaml
from fuzz_mutations import LETTERS, apply, edits, junk, misspelt, one_sentence, spoiled
from fuzz_worker import Broken, Target
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from distiller.common.values import flatten
from distiller.recipes.recipe import Recipe, first_difference, resolve, to_dict, to_yaml
from distiller.recipes.yaml_files import RECIPES, read, shipped
from upstream.errors import UserError

BOMB = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(9)
)
YAML = [
    "extends: star\nseed: &a [*a]",
    "extends: star\ncorpus: &c {path: synthetic, subsets: *c}",
    BOMB,
    f"extends: star\n{BOMB}",
    "extends: star\nseed: !!python/object/apply:os.system ['touch ran']",
    "extends: star\nseed: !!int x",
    "extends: star\nseed: !!binary aGVsbG8=",
    "extends: star\nseed: 2026-01-01",
    "extends: star\noptimizer: {? [1, 2] : 3}",
    "extends: star\noptimizer: {1: 2, null: 3, true: 4, 1.5: 5}",
    "extends: star\n<<: {seed: 3}\nseed: 4",
    "extends: star\nseed: 1\nseed: 2",
    "extends: [star]",
    "extends: mine.yaml",
    "extends: ./nothing.yaml",
    "extends: .",
    "extends: {a: b}",
    "--- \nextends: star\n---\nextends: skill",
    "%YAML 9.9\n---\nextends: star",
    "[" * 5000,
    "a: " * 3000,
    "extends: star\nseed: " + "9" * 5000,
    "extends: star\nseed: ${seed}",
    "extends: star\nteacher: ${oc.env:HOME}",
    "extends: star\nteacher: ${oc.decode:1}\nseed: ${trainer.steps}",
    "extends: star\ncorpus: ${objective}",
    "extends: star\ncorpus: {path: ???}",
    "extends: star\nstudent: ${objective.name}",
]


def check(example: tuple[bytes, list[str]]) -> None:
    content, overrides = example
    path = Path("mine.yaml")
    path.write_bytes(content)
    try:
        recipe = resolve(recipe=str(path.absolute()), overrides=overrides)
    except UserError as error:
        one_sentence(error, 3000 + len(content) + sum(map(len, overrides)))
        return
    if not isinstance(recipe, Recipe):
        raise Broken("no Recipe")
    again = Path("again.yaml")
    again.write_text(to_yaml(recipe))
    difference = first_difference(resolve(recipe=str(again.absolute())), recipe)
    if difference is not None:
        raise Broken("a recipe that its own YAML does not give again")


def dumped(values: Any) -> bytes:
    try:
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    except yaml.YAMLError:
        return repr(values).encode("utf-8", "surrogatepass")


def recipes() -> SearchStrategy[bytes]:
    whole = [to_dict(resolve(recipe=name, corpus="corpus")) for name in shipped()]
    short = [read(name) for name in shipped()]
    files = [path.read_bytes() for path in sorted(RECIPES.glob("*.yaml"))]
    nested = st.sampled_from([*whole, *short]).flatmap(spoiled).map(dumped)
    extended = st.sampled_from(short).flatmap(lambda one: spoiled({"extends": "star", **one})).map(dumped)
    edited = st.tuples(st.sampled_from(files), edits).map(lambda pair: apply(*pair))
    said = st.sampled_from(YAML).map(str.encode)
    spoiled_text = st.tuples(said, edits).map(lambda pair: apply(*pair))
    random = st.text(LETTERS + "/.~").map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary()
    plain = st.just(b"extends: star")  # first: what examples are made small towards
    return plain | said | nested | nested | extended | edited | spoiled_text | random


def overrides() -> SearchStrategy[list[str]]:
    keys = sorted({key for name in shipped() for key in flatten(to_dict(resolve(recipe=name, corpus="corpus")))})
    keys += ["objective", "student", "corpus", "trainer", "pruning", "extends"]
    known = st.sampled_from(keys)
    key = known | known.flatmap(misspelt) | st.text(LETTERS, max_size=8)
    value = junk.map(lambda one: dumped(one).decode("utf-8", "replace").removesuffix("...\n").strip()) | st.text(
        LETTERS, max_size=12
    )
    return st.lists(st.tuples(key, value).map("=".join) | st.text(LETTERS, max_size=12), max_size=2)


def target(base: Path) -> Target:
    return Target(st.tuples(recipes(), overrides()), check)
