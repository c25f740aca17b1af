"""A pruned export is a model of `transformers`: what scripts for HuBERT, WavLM and wav2vec 2.0 do works with it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distiller.exporters.transformers import to_transformers
from upstream.checkpoint import load
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

SHAPE: dict[str, Any] = {
    "embed_dim": 24,
    "num_heads": 2,
    "head_dim": 12,
    "attention_heads": ((1,), None, (0, 1)),
    "ffn_dims": (7, 0, 16),
    "conv_layers": ((8, 10, 5), (8, 8, 8), (12, 4, 4), (10, 2, 2)),
    "feature_scale": True,
    "positional_kernel": 8,
    "positional_groups": 4,
    "relative_buckets": 32,
    "relative_max_distance": 80,
}
FAMILIES = ("hubert", "wavlm", "wav2vec2")
LENGTHS = (8000, 5000)
FRAMES = [24, 15]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """An export of each family."""
    root = tmp_path_factory.mktemp("exports")
    for family in FAMILIES:
        torch.manual_seed(0)
        to_transformers(SpeechEncoder(EncoderConfig(**{**SHAPE, "family": family})).eval(), root / family, "")
    return {family: root / family for family in FAMILIES}


def opened(opener: str, folder: Path, **options: Any) -> Any:
    import transformers

    return getattr(transformers, opener).from_pretrained(folder, trust_remote_code=True, **options)


def for_ctc(folder: Path, **options: Any) -> Any:
    return opened("AutoModelForCTC", folder, vocab_size=30, pad_token_id=29, ctc_loss_reduction="mean", **options)


def batch() -> dict[str, Tensor]:
    waveforms = 0.1 * torch.randn(2, max(LENGTHS), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_values": waveforms * mask, "attention_mask": mask}


LABELS = torch.tensor([[1, 2, 3], [4, 2, -100]])


@pytest.mark.parametrize("family", FAMILIES)
def test_fine_tuning_as_scripts_do_it(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = {"attention_dropout": 0.1, "hidden_dropout": 0.2, "feat_proj_dropout": 0.0, "layerdrop": 0.1}
    masks = {"mask_time_prob": 0.3, "mask_time_length": 2}
    if family != "wavlm":  # whose class of `transformers` cannot do it
        masks |= {"mask_feature_prob": 0.1, "mask_feature_length": 2}
    model = for_ctc(folders[family], **settings, **masks).train()
    assert model.config.inputs_to_logits_ratio == 320
    assert model._get_feat_extract_output_lengths(torch.tensor(LENGTHS)).tolist() == FRAMES
    valid = model._get_feature_vector_attention_mask(24, batch()["attention_mask"])
    assert valid.sum(-1).tolist() == FRAMES
    encoder = model.base_model.encoder
    assert encoder.layers[0].attention.dropout.p == 0.1
    assert encoder.layers[0].dropout.p == 0.2
    model.freeze_feature_encoder()
    model.gradient_checkpointing_enable()
    loss = model(**batch(), labels=LABELS).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all((gradient is None) for name, gradient in gradients.items() if "feature_extractor" in name)
    assert gradients["lm_head.weight"].abs().max() > 0
    assert gradients[f"{model.base_model_prefix}.encoder.feature_projection.projection.weight"].abs().max() > 0
    assert gradients[f"{model.base_model_prefix}.masked_spec_embed"].abs().max() > 0


def test_recomputed_activations_give_the_same_gradients(folders: dict[str, Path]) -> None:
    gradients = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        model = for_ctc(folders["wavlm"], final_dropout=0.0).train()
        if recomputed:
            model.gradient_checkpointing_enable()
        model(**batch(), labels=LABELS).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_the_familys_own_class(family: str, folders: dict[str, Path]) -> None:
    import transformers

    model = opened("AutoModel", folders[family]).eval()
    base = {
        "hubert": transformers.HubertModel,
        "wavlm": transformers.WavLMModel,
        "wav2vec2": transformers.Wav2Vec2Model,
    }
    assert isinstance(model, base[family])
    output = model(**batch(), output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 4
    assert [tuple(maps.shape) for maps in output.attentions] == [(2, heads, 24, 24) for heads in (1, 0, 2)]
    parts = model(**batch(), output_hidden_states=True, return_dict=False)
    assert torch.allclose(parts[0][0], output.last_hidden_state[0], atol=1e-5)
    assert len(parts) == (2 if family == "hubert" else 3)
    assert isinstance(parts[-1], tuple)
    plain = opened("AutoModel", folders[family], attn_implementation="eager").eval()(**batch()).last_hidden_state
    fused = opened("AutoModel", folders[family], attn_implementation="sdpa").eval()(**batch()).last_hidden_state
    for row, frames in enumerate(FRAMES):
        assert (plain - fused)[row, :frames].abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_of_the_family_opens_and_computes_a_loss(family: str, folders: dict[str, Path]) -> None:
    openers = {"AutoModelForCTC": LABELS, "AutoModelForAudioClassification": torch.tensor([0, 4])}
    if family != "hubert":  # for which `transformers` has no such classes
        frames = torch.nn.functional.one_hot(torch.zeros(2, 24, dtype=torch.long), 5)
        openers |= {"AutoModelForAudioFrameClassification": frames, "AutoModelForAudioXVector": torch.tensor([0, 4])}
    named = json.loads((folders[family] / "config.json").read_text())["auto_map"]
    assert set(named) == {"AutoConfig", "AutoModel", *openers}
    for opener, labels in openers.items():
        model = opened(opener, folders[family], num_labels=5, use_weighted_layer_sum=opener != "AutoModelForCTC")
        if model.config.use_weighted_layer_sum:  # not what happened to be in memory
            assert torch.equal(model.layer_weights, torch.full((4,), 0.25)), opener
        output = model.eval()(**batch(), labels=labels)
        assert bool(output.loss.isfinite()), opener
        assert output.logits.shape[0] == 2
        if opener != "AutoModelForAudioXVector":  # it pools padded frames, since it forgets that it is dilated
            alone = model(input_values=batch()["input_values"][1:, : LENGTHS[1]]).logits[0]
            assert torch.allclose(output.logits[1][: len(alone)], alone, atol=1e-4), opener


def test_saved_again_it_is_complete(folders: dict[str, Path], tmp_path: Path) -> None:
    tuned = for_ctc(folders["wavlm"], mask_time_prob=0.1).eval()
    tuned.save_pretrained(tmp_path / "tuned")
    shutil.copytree(tmp_path / "tuned", tmp_path / "elsewhere")
    again = opened("AutoModelForCTC", tmp_path / "elsewhere").eval()
    assert again.config.vocab_size == 30
    assert torch.equal(again(**batch()).logits, tuned(**batch()).logits)
    assert opened("AutoModelForAudioClassification", tmp_path / "elsewhere").config.pad_token_id == 29
    encoder = load(tmp_path / "elsewhere")  # without head and mask embedding
    states = tuned.base_model(**batch()).last_hidden_state
    ours = encoder(batch()["input_values"], torch.tensor(LENGTHS)).last_hidden_state
    for row, frames in enumerate(FRAMES):
        assert (states - ours)[row, :frames].abs().max() < 1e-4


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"torch_dtype": torch.float16}, {"device_map": "cpu"}])
def test_other_types_and_devices(options: dict[str, Any], folders: dict[str, Path]) -> None:
    if "device_map" in options:
        pytest.importorskip("accelerate")
    model = for_ctc(folders["wavlm"], **options).eval()
    exact = for_ctc(folders["wavlm"]).eval()
    exact.load_state_dict(model.float().state_dict())
    model = model.to(options.get("dtype") or options.get("torch_dtype") or torch.float32)
    with torch.no_grad():
        logits = model(**batch()).logits  # from float32 waveforms
        assert logits.dtype == model.dtype
        assert (logits.float() - exact(**batch()).logits)[0].abs().max() < 0.1


def test_labels_outside_the_vocabulary_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="Label values must be"):
        for_ctc(folders["hubert"])(**batch(), labels=LABELS + 100)


@pytest.mark.slow
def test_the_trainer_of_transformers_fine_tunes_it(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    examples = [{"input_values": row, "attention_mask": mask, "labels": labels} for row, mask, labels in zip(
        *batch().values(), LABELS, strict=True)] * 8  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=4,
        num_train_epochs=12,
        learning_rate=1e-2,
        gradient_checkpointing=True,
        save_strategy="epoch",
        save_total_limit=1,
        eval_strategy="epoch",
        report_to=[],
        use_cpu=True,
        logging_steps=1,
    )
    torch.manual_seed(0)
    model = for_ctc(folders["wavlm"])
    model.freeze_feature_encoder()
    trainer = Trainer(model=model, args=arguments, train_dataset=examples, eval_dataset=examples[:4])
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.5 * before
    trainer.save_model(str(tmp_path / "tuned"))
    assert opened("AutoModelForCTC", tmp_path / "tuned")(**batch(), labels=LABELS).loss < 0.5 * before
