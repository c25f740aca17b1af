"""Clustering of layers: planted structure, exact counts, contiguity, separation by hand."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster

from distiller.clustering.tree import automatic_count, layer_tree, representative, separation, tree_clusters
from upstream.errors import UserError


def block_cka(blocks: list[list[int]], within: float = 0.95, between: float = 0.4) -> np.ndarray:
    cka = np.full((sum(map(len, blocks)),) * 2, between)
    for block in blocks:
        cka[np.ix_(block, block)] = within
    np.fill_diagonal(cka, 1.0)
    return cka


def drifting_cka(layers: int = 9) -> np.ndarray:
    """Layers on a line at uneven steps: the similarity falls with distance, as in a real teacher."""
    place = np.cumsum([0, 1, 3, 1, 2, 6, 1, 2, 1][:layers])
    return np.exp(-np.abs(place[:, None] - place[None, :]) / 10)


@pytest.mark.parametrize("linkage", ["average", "complete", "single", "weighted"])
@pytest.mark.parametrize("contiguous", [False, True])
def test_three_planted_blocks_are_found_with_the_count_unknown(linkage, contiguous):
    blocks = [[0, 1, 2], [3, 4], [5, 6, 7, 8]]
    cka = block_cka(blocks)
    tree = layer_tree(cka, linkage, contiguous)
    assert automatic_count(cka, tree) == 3
    assert tree_clusters(tree, 3) == blocks


@pytest.mark.parametrize("linkage", ["average", "complete", "single", "weighted"])
def test_every_count_is_exact_and_agrees_with_scipy(linkage):
    generator = np.random.default_rng(0)
    noise = generator.uniform(0, 0.05, size=(9, 9))
    cka = np.clip(drifting_cka() - (noise + noise.T) / 2, 0, 1)
    np.fill_diagonal(cka, 1)
    tree = layer_tree(cka, linkage)
    for count in range(1, 10):
        clusters = tree_clusters(tree, count)
        assert len(clusters) == count
        labels = fcluster(tree, count, "maxclust")
        theirs = sorted(sorted(np.flatnonzero(labels == label).tolist()) for label in set(labels))
        assert clusters == theirs


def test_ties_still_give_the_count():
    tree = layer_tree(block_cka([[0], [1], [2], [3]]))
    assert [len(tree_clusters(tree, count)) for count in (1, 2, 3, 4)] == [1, 2, 3, 4]


@pytest.mark.parametrize("linkage", ["average", "complete", "single", "weighted"])
def test_contiguous_equals_the_free_tree_where_that_is_contiguous(linkage):
    cka = drifting_cka()
    np.testing.assert_allclose(layer_tree(cka, linkage, contiguous=True), layer_tree(cka, linkage))


def test_contiguous_keeps_runs_where_the_free_tree_does_not():
    blocks = [[0, 1, 6], [2, 3, 4, 5]]
    cka = block_cka(blocks)
    assert tree_clusters(layer_tree(cka), 2) == blocks
    for count in range(1, 8):
        for cluster in tree_clusters(layer_tree(cka, contiguous=True), count):
            assert cluster == list(range(cluster[0], cluster[-1] + 1))


def test_leaves_stay_in_order():
    from scipy.cluster.hierarchy import leaves_list

    assert leaves_list(layer_tree(drifting_cka())).tolist() == list(range(9))


def test_separation_by_hand():
    cka = np.array([[1.0, 0.9, 0.3], [0.9, 1.0, 0.5], [0.3, 0.5, 1.0]])
    result = separation(cka, [[0, 1], [2]])
    assert result.within == pytest.approx(0.9)
    assert result.between == pytest.approx(0.4)
    # layer 0: a = 0.1, b = 0.7; layer 1: a = 0.1, b = 0.5; layer 2 alone: 0
    assert result.silhouette == pytest.approx(((0.7 - 0.1) / 0.7 + (0.5 - 0.1) / 0.5 + 0) / 3)
    assert np.isnan(separation(cka, [[0], [1], [2]]).within)
    assert separation(cka, [[0, 1, 2]]).silhouette == 0


def test_representative_is_the_medoid():
    cka = np.array([[1.0, 0.9, 0.3], [0.9, 1.0, 0.8], [0.3, 0.8, 1.0]])
    assert representative(cka, [0, 1, 2]) == 1
    assert representative(cka, [0, 2]) == 0
    assert representative(cka, [2]) == 2


def test_refusals():
    with pytest.raises(UserError, match="3 layers cannot be divided into 7 clusters, only into 1 to 3"):
        tree_clusters(layer_tree(block_cka([[0, 1], [2]])), 7)
    with pytest.raises(UserError, match="linkage is 'ward', but it must be one of average, complete, single, weighted"):
        layer_tree(block_cka([[0, 1], [2]]), "ward")


def test_the_smallest_teachers():
    assert tree_clusters(layer_tree(np.ones((1, 1))), 1) == [[0]]
    two = np.array([[1.0, 0.5], [0.5, 1.0]])
    assert automatic_count(two, layer_tree(two)) == 2
