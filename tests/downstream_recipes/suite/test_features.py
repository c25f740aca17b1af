"""Reused features: the same numbers for any batch, any size of the cache and anything it held before."""

import pytest
import torch
from torch import Tensor

from downstream_recipes.suite.features import FeatureCache, reused
from upstream.checkpoint import save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.expert import UpstreamExpert

CONFIG = EncoderConfig(
    embed_dim=24, num_heads=2, head_dim=12, attention_heads=((0, 1),) * 2, ffn_dims=(32,) * 2,
    conv_layers=((8, 10, 5), *((8, 3, 2),) * 4, (8, 2, 2), (16, 2, 2)), positional_kernel=8, positional_groups=4,
)  # fmt: skip
STATES = 3  # P, F^1, F^2


class CountingCache(FeatureCache):
    hits = misses = 0

    def get(self, key):
        features = super().get(key)
        self.hits += features is not None
        self.misses += features is None
        return features


@pytest.fixture
def upstream(tmp_path) -> UpstreamExpert:
    torch.manual_seed(0)
    save(SpeechEncoder(CONFIG), tmp_path / "encoder")
    return UpstreamExpert(tmp_path / "encoder").eval()


@pytest.fixture
def wavs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(length, generator=generator) for length in (4000, 300, 9000, 4000)]


@torch.no_grad()
def everything(upstream: UpstreamExpert, wavs: list[Tensor], cache: FeatureCache | None) -> list[Tensor]:
    with reused(cache):
        output = upstream(wavs)
    return [*output["hidden_states"], output["last_hidden_state"]]


def test_they_are_those_of_the_upstream(upstream, wavs):
    cache = CountingCache(10**9)
    expected = everything(upstream, wavs, None)
    for misses, hits in ((4, 0), (4, 4)):
        found = everything(upstream, wavs, cache)
        assert len(found) == len(expected) == STATES + 1
        for state, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(state, reference, atol=1e-5, rtol=0)
        assert (cache.misses, cache.hits) == (misses, hits)


def test_to_the_last_bit_neither_batch_nor_size_nor_history_matter(upstream, wavs):
    frame = 4 * 24 * (STATES + 1)
    small, large, none = CountingCache(30 * frame), CountingCache(10**9), CountingCache(1)
    everything(upstream, wavs[2:], large)
    for batch in (wavs, wavs[::-1], wavs[:1], wavs[1:]):
        first, *others = (everything(upstream, batch, cache) for cache in (small, large, none))
        for other in others:
            assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))
        assert small.size <= small.limit
    assert (small.hits > 0, none.hits, none.size) == (True, 0, 0)


def test_what_was_used_last_is_kept():
    cache = CountingCache(8)
    for key in (b"a", b"b"):
        cache.put(key, [torch.zeros(1)])
    assert cache.get(b"a") is not None
    cache.put(b"c", [torch.zeros(1)])
    assert [cache.get(key) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    assert cache.size == 8


def test_another_model_has_its_own(upstream, wavs):
    cache = CountingCache(10**9)
    before = everything(upstream, wavs, cache)
    with torch.no_grad():
        upstream.encoder.layers[1].feed_forward.output.bias += 1
    after = everything(upstream, wavs, cache)
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[2], after[2])


@pytest.mark.parametrize("changed", ["trained", "gradients", "the batch's own"])
def test_features_that_may_change_are_computed(upstream, wavs, changed):
    cache = CountingCache(10**9)
    upstream.train(changed == "trained")
    upstream.padding = "reference" if changed == "the batch's own" else "invariant"
    with reused(cache), torch.set_grad_enabled(changed == "gradients"):
        output = upstream(wavs)
    assert cache.misses == cache.hits == 0
    assert output["last_hidden_state"].requires_grad == (changed == "gradients")
