import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.upstream.hostile_makers import CUBE
from upstream.checkpoint import save
from upstream.errors import UserError
from upstream.expert import UpstreamExpert, parse_model_config

LENGTHS = (16000, 11231, 7040, 400)


@pytest.fixture
def student(tmp_path: Path, tiny_encoder) -> Path:
    save(tiny_encoder(), tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def wavs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, generator=generator) for length in LENGTHS]


def expert(student: Path, *args, **kwargs) -> UpstreamExpert:
    return UpstreamExpert(student, *args, **kwargs).eval()


@pytest.mark.parametrize(("states", "count"), [("layers", 3), ("projected", 4), ("all", 5)])
def test_the_states_that_each_option_exposes(student, wavs, states, count):
    model = expert(student, states=states)
    with torch.no_grad():
        features = model(wavs[:1])
        output = model.encoder(wavs[0][None])
    expected = {
        "layers": output.hidden_states[1:],
        "projected": [output.projected, *output.hidden_states[1:]],
        "all": [output.projected, *output.hidden_states],
    }[states]
    assert len(features["hidden_states"]) == count
    for state, truth in zip(features["hidden_states"], expected, strict=True):
        assert torch.equal(state, truth)
    assert torch.equal(features["last_hidden_state"], output.last_hidden_state)


@pytest.mark.parametrize("kind", [{"conv_norm": "group"}, {"layer_norm_first": True, "normalize_waveform": True}])
def test_a_wav_has_the_same_features_alone_and_in_a_batch(tmp_path, tiny_encoder, wavs, kind):
    save(tiny_encoder(**kind), tmp_path / "student")
    model = expert(tmp_path / "student", states="all")
    with torch.no_grad():
        batch = model(wavs)
        for index, wav in enumerate(wavs):
            alone = model([wav])
            frames = alone["last_hidden_state"].shape[1]
            pairs = zip(
                [*alone["hidden_states"], alone["last_hidden_state"]],
                [*batch["hidden_states"], batch["last_hidden_state"]],
                strict=True,
            )
            for single, batched in pairs:
                assert (single[0] - batched[index, :frames]).abs().max() < 1e-4
                # the frame more that s3prl reads is the last one again, not padding
                rest = batched[index, frames:]
                assert torch.allclose(rest, single[0, -1].expand_as(rest), atol=1e-4)


def test_reference_padding_averages_the_group_norm_over_the_padding(student, wavs):
    with torch.no_grad():
        invariant, reference = expert(student)(wavs), expert(student, padding="reference")(wavs)
        alone = expert(student, padding="reference")(wavs[1:2])
    first, second = invariant["last_hidden_state"], reference["last_hidden_state"]
    assert (first[0] - second[0]).abs().max() < 1e-4  # the longest wav has no padding
    assert (first[1, :34] - second[1, :34]).abs().max() > 1e-2
    assert (first[1, :34] - alone["last_hidden_state"][0]).abs().max() < 1e-4


@pytest.mark.parametrize("samples", [1, 160, 399, 400, 719, 720, 5119, 8000, 16001, 47999])
def test_any_length_gives_the_frames_that_s3prl_expects(student, samples):
    with torch.no_grad():
        features = expert(student)([torch.randn(samples)])
    frames = features["last_hidden_state"].shape[1]
    assert frames >= 1
    assert abs(frames - round(samples / 320)) < 5
    assert frames == max((samples - 400) // 320 + 1, 1)


def test_a_clip_shorter_than_a_frame_is_zero_padded_to_one(student):
    clip = torch.randn(160)
    padded = torch.cat([clip, torch.zeros(240)])
    with torch.no_grad():
        short, whole = expert(student)([clip]), expert(student)([padded])
    assert torch.equal(short["last_hidden_state"], whole["last_hidden_state"])


def test_fine_tuning_reaches_every_parameter(student, wavs):
    model = expert(student, states="all").train()
    torch.stack(model(wavs)["hidden_states"]).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_every_layer_is_there_in_training_mode_too(student, wavs):
    model = expert(student).train()
    assert {len(model(wavs)["hidden_states"]) for _ in range(20)} == {4}


def test_s3prls_featurizer_takes_it(student, wavs):
    interfaces = pytest.importorskip("s3prl.upstream.interfaces")
    model = expert(student)
    featurizer = interfaces.Featurizer(model, upstream_device="cpu")
    with torch.no_grad():
        features = featurizer(wavs, model(wavs))
    assert featurizer.downsample_rate == 320
    assert featurizer.output_dim == 48
    assert [len(feature) for feature in features] == [49, 35, 22, 1]


def test_options_come_through_s3prls_one_argument(tmp_path, student):
    model = expert(student, "states=all,padding=reference")
    assert (model.states, model.padding) == ("all", "reference")
    options = tmp_path / "options.yaml"
    options.write_text("states: layers\n")
    assert expert(student, str(options)).states == "layers"
    configuration = tmp_path / "star.yaml"
    configuration.write_text("distiller: {}\n")
    assert parse_model_config(f"{configuration},states=all") == (configuration, {"states": "all"})
    assert parse_model_config(None) == (None, {})


def test_long_wavs_are_computed_in_chunks_if_asked(student, wavs):
    """Chunks of 5 s of context: all of these short wavs. Every state, P and the last one included, in one batch."""
    whole, chunked = expert(student, states="all"), expert(student, "states=all,chunk_seconds=0.3")
    with torch.no_grad():
        expected = whole(wavs)
    found = chunked(wavs)
    pairs = zip(found["hidden_states"], expected["hidden_states"], strict=True)
    for left, right in [*pairs, (found["last_hidden_state"], expected["last_hidden_state"])]:
        torch.testing.assert_close(left, right, atol=1e-4, rtol=0)


FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


@pytest.mark.parametrize(
    ("file", "states"),
    [
        ("star_small.ckpt", "layers"),
        ("star_small_proj.ckpt", "layers"),
        ("dphubert_small.pth", "projected"),
        ("dpwavlm_small.pth", "projected"),
    ],
)
def test_published_features_are_reproduced(file, states):
    reference = np.load((FIXTURES / file).with_suffix(".npz"))
    wavs = [torch.from_numpy(reference[f"wav{index}"]) for index in range(3)]
    frames = reference["frame_lengths"].tolist()
    with torch.no_grad():
        padded = UpstreamExpert(FIXTURES / file, states=states, padding="reference").eval()(wavs)["hidden_states"]
        batch = UpstreamExpert(FIXTURES / file, states=states).eval()(wavs)["hidden_states"]
    assert len(padded) == len(batch) == len(reference["hidden_states"])
    for index, count in enumerate(frames):
        single = reference[f"single{index}_hidden_states"]
        for layer in range(len(padded)):
            difference = padded[layer][index, :count].numpy() - reference["hidden_states"][layer][index, :count]
            assert np.abs(difference).max() < 1e-4
            assert np.abs(batch[layer][index, :count].numpy() - single[layer].reshape(count, -1)).max() < 1e-4


def test_a_configuration_may_lie_elsewhere(tmp_path):
    shutil.copy(FIXTURES / "star_small.ckpt", tmp_path / "run.ckpt")
    configuration = shutil.copy(FIXTURES / "star_small.yaml", tmp_path / "elsewhere.yaml")
    model = UpstreamExpert(tmp_path / "run.ckpt", f"{configuration},states=all")
    assert (model.states, model.encoder.config.embed_dim) == ("all", 48)


def test_wrong_options_are_one_sentence(student, wavs):
    with pytest.raises(UserError, match="upstream option statess does not exist; did you mean states\\?"):
        expert(student, "statess=all")
    with pytest.raises(UserError, match="states is some, but it must be one of layers, projected, all"):
        expert(student, states="some")
    with pytest.raises(UserError, match="upstream option pading does not exist; did you mean padding\\?"):
        expert(student, pading="reference")
    with pytest.raises(UserError, match="model_config is 'nowhere', but it must be a file or options"):
        expert(student, "nowhere")
    with pytest.raises(UserError, match=r"model_config is 'x{300}', but it must be a file or options"):
        expert(student, "x" * 300)
    with pytest.raises(UserError, match="chunk_seconds is long, but it must be a positive number"):
        expert(student, "chunk_seconds=long")
    with pytest.raises(UserError, match="chunk_seconds is 0, but it must be a positive number"):
        expert(student, chunk_seconds=0)
    with pytest.raises(UserError, match="chunk_seconds is 30, but it must be left out with padding=reference"):
        expert(student, "padding=reference", chunk_seconds=30)
    with pytest.raises(UserError, match="absent"):
        expert(student.parent / "absent")
    expert(student, refresh=True)  # s3prl's runner passes it to every upstream


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 5000, "not plain YAML"),
        ("states: layers # " + "x" * 2**20, "has more than 1048576 bytes"),
        ("a: &a {states: all}\n<<: [*a, *a]", "merge keys are not supported"),
        ("- states", "contains a list, but it must contain keys"),
        ("states: !!python/name:os.system", "not plain YAML"),
    ],
)
def test_a_hostile_file_of_options_is_a_one_line_error(text, sentence, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"options\.yaml .*{sentence}") as raised:
        parse_model_config(str(file))
    assert len(str(raised.value)) < 3000


def test_a_value_that_names_itself_many_times_is_not_written_out(student, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(f"states: {CUBE}")
    started = time.process_time()
    with pytest.raises(UserError, match=r"states is \[\[\['x', .*, but it must be one of layers") as raised:
        expert(student, str(file))
    assert time.process_time() - started < 2
    assert len(str(raised.value)) < 300


COPIED = """
import sys, types, torch, torchaudio
if not hasattr(torchaudio, "set_audio_backend"):  # gone since torchaudio 2.9; s3prl imports them with its hub
    torchaudio.set_audio_backend = lambda backend: None
    effects = types.SimpleNamespace(apply_effects_file=None, apply_effects_tensor=None)
    torchaudio.sox_effects = sys.modules["torchaudio.sox_effects"] = effects
from s3prl import hub
from s3prl.nn import S3PRLUpstream
assert hub.__file__.startswith(sys.argv[1]), hub.__file__
assert "upstream" not in sys.modules
model = S3PRLUpstream("starhubert", sys.argv[2], extra_conf={"states": "all"}).eval()
with torch.no_grad():
    wavs = torch.randn(2, 32000)
    states, lengths = model(wavs, torch.tensor([16000, 32000]))
    alone, _ = model(wavs[:1, :16000], torch.tensor([16000]))
assert len(states) == 5 and states[0].shape == (2, 100, 48), [state.shape for state in states]
assert lengths[0].tolist() == [50, 100]
assert max((one[0] - both[0, :50]).abs().max() for one, both in zip(alone, states)) < 1e-4
print("names", [name for name in dir(hub) if name.startswith(("star", "sk", "dp"))])
"""


@pytest.mark.slow
def test_a_copy_inside_s3prl_works_as_its_contributions_do(tmp_path, student):
    installed = Path(pytest.importorskip("s3prl").__file__).parent
    copy = tmp_path / "tree" / "s3prl"
    shutil.copytree(installed, copy, ignore=shutil.ignore_patterns("__pycache__"))
    root = Path(__file__).parents[2]
    shutil.copytree(root / "upstream", copy / "upstream" / "distilled", ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "hub.py").open("a") as hub:
        hub.write("\nfrom s3prl.upstream.distilled.hubconf import *\n")
    run = subprocess.run(
        [sys.executable, "-c", COPIED, str(copy), str(student)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(copy.parent)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    names = run.stdout.split("names ")[1]
    assert "'starhubert_l_url'" in names
    assert names.count("'") == 2 * 27
