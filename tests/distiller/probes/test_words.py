from collections.abc import Iterator

import torch
from torch import Tensor

from distiller.probes.words import Words

WORDS = [f"word-{index}" for index in range(20)]


def spoken(shuffled: bool) -> Words:
    """Each group says each word as its own sequence of five directions, at another tempo; or any word by any name."""
    random = torch.Generator().manual_seed(0)
    contents = {word: torch.randint(8, (5,), generator=random) for word in WORDS}
    order = torch.randperm(len(WORDS), generator=random).tolist()
    said = {word: contents[WORDS[order[index]]] if shuffled else contents[word] for index, word in enumerate(WORDS)}
    slow = {word: content.repeat_interleave(2) for word, content in said.items()}
    return Words({"studio": contents, "telephone": slow})


def represent(utterances: list[Tensor]) -> Iterator[list[Tensor]]:
    for directions in utterances:
        frames = torch.eye(8)[directions]
        yield [torch.ones_like(frames), 3 * frames + 5]


def test_the_same_words_at_another_tempo_are_all_found() -> None:
    row = spoken(shuffled=False).run(represent)
    assert (row["word"], row["word_best"]) == (100.0, 100.0)
    layers = row["layers"]
    assert isinstance(layers, dict)
    assert layers["studio to telephone"][1] == layers["telephone to studio"][1] == 100.0
    assert layers["word"][0] == 5.0  # a constant says nothing: one of the 20 is found


def test_words_by_other_names_are_found_by_chance() -> None:
    row = spoken(shuffled=True).run(represent)
    assert isinstance(row["word"], float)
    assert row["word"] <= 15.0


def test_a_word_that_the_other_group_has_not_is_no_query() -> None:
    words = spoken(shuffled=False)
    del words.groups["telephone"]["word-3"]
    assert words.run(represent)["word"] == 100.0
