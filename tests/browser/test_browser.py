"""docs/browser in a real browser: what it computes of a file and of the microphone is what PyTorch computes.

Needs Chromium, and onnxruntime-web's folder `dist`, where docs/browser/README.md installs it or ONNXRUNTIME_WEB says.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnxruntime.quantization import quantize_dynamic
from safetensors.torch import load_file
from scipy.signal import correlate

from distiller.codebooks.codebook import normalised, quantise
from distiller.codebooks.folder import write_codebook
from distiller.common.provenance import parameter_count
from distiller.graphs.onnx import QUANTIZED, graph_of, to_onnx
from distiller.objectives.gram import gram_features, temporal_gram
from tests.browser.chromium import Page, chromium
from upstream.config import SAMPLE_RATE, EncoderConfig
from upstream.encoder import SpeechEncoder
from upstream.onnx_encoder import session

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/browser"
RUNTIME = Path(os.environ.get("ONNXRUNTIME_WEB", ROOT / "exp/browser/node_modules/onnxruntime-web/dist"))
BUNDLE = "ort.wasm.bundle.min.mjs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed"),
    pytest.mark.skipif(
        not (RUNTIME / BUNDLE).is_file(), reason=f"onnxruntime-web is not in {RUNTIME}; see docs/browser/README.md"
    ),
]

COMMON: dict[str, Any] = {
    "embed_dim": 24,
    "num_heads": 2,
    "head_dim": 12,
    "attention_heads": ((0, 1),) * 2,
    "ffn_dims": (32,) * 2,
    "conv_layers": ((8, 10, 5), *((8, 3, 2),) * 4, (8, 2, 2), (16, 2, 2)),
    "positional_kernel": 8,
    "positional_groups": 4,
}
CONFIGS = {  # one that centres its waveform in the graph, and one that normalises it
    "hubert": EncoderConfig(**COMMON),
    "wavlm": EncoderConfig(**COMMON, family="wavlm", conv_norm="layer", normalize_waveform=True),
}


class Quiet(SimpleHTTPRequestHandler):
    """`python -m http.server` without its log."""

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def waited(look: Callable[[], Any], seconds: float = 60) -> Any:
    """What `look` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"nothing after {seconds} s"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def encoders() -> dict[str, SpeechEncoder]:
    torch.manual_seed(0)
    return {name: SpeechEncoder(config).eval() for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def wav() -> np.ndarray:
    """Three seconds with an offset, (sample,): noise below 2 kHz that swells."""
    noise = np.convolve(np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE), np.full(8, 0.3), mode="same")
    loudness = 0.2 + np.abs(np.sin(np.linspace(0.1, 9, len(noise))))  # in silence a norm would enlarge rounding
    return (0.1 + 0.1 * noise * loudness).astype(np.float32)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, encoders: dict[str, SpeechEncoder], wav: np.ndarray) -> Path:
    """What is served: the page, onnxruntime-web, models, a wav and units."""
    folder = tmp_path_factory.mktemp("site")
    for path in PAGE.iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    (folder / "ort").symlink_to(RUNTIME.resolve())
    for name, encoder in encoders.items():
        to_onnx(graph_of(encoder, "all", None), folder / f"{name}.onnx")
    quantize_dynamic(folder / "hubert.onnx", folder / "int8.onnx", op_types_to_quantize=QUANTIZED, per_channel=True)
    renamed = onnx.load(folder / "hubert.onnx")  # as one of --states last names its output
    for node in renamed.graph.node:
        node.output[:] = ["last_hidden_state" if name == "hidden_states" else name for name in node.output]
    renamed.graph.output[0].name = "last_hidden_state"
    onnx.save(renamed, folder / "last.onnx")
    (folder / "text.onnx").write_text("no model")
    soundfile.write(folder / "noise.wav", wav, SAMPLE_RATE, subtype="FLOAT")
    soundfile.write(folder / "microphone.wav", wav, SAMPLE_RATE, subtype="PCM_16")
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(2, 20, COMMON["embed_dim"], generator=generator)
    write_codebook(folder / "units", {"layer.1": codebook})
    settings = {"layers": [1], "units": 20, "stages": 2, "norm": "frame", "layer_zero": "feature_projection"}
    for name, parameters in (("units", parameter_count(encoders["hubert"])), ("others", 5)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "targets.json").write_text(json.dumps(settings | {"teacher": {"parameters": parameters}}))
    shutil.copy(folder / "units/codebook.safetensors", folder / "others")
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("localhost", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def page(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """An open browser, whose microphone hears the wav again and again."""
    heard = f"--use-file-for-fake-audio-capture={site / 'microphone.wav'}"
    with chromium(CHROMIUM, tmp_path_factory.mktemp("chromium"), heard) as opened:
        yield opened


class Visit:
    """The page, opened with what `query` names."""

    def __init__(self, page: Page, address: str, **query: str) -> None:
        self.page = page
        query = {"ort": f"ort/{BUNDLE}", **query}
        page.open(f"{address}/index.html?{'&'.join(f'{key}={value}' for key, value in query.items())}")

    def shown(self, minimum: int = 1) -> dict[str, Any]:
        """What its pictures show, once they do so for that many samples."""
        expression = f"""import('/page.js').then(({{ shown }}) => shown && shown.samples.length >= {minimum} && {{
            samples: [...shown.samples], states: [...shown.result.states],
            shape: [shown.result.layers, shown.result.frames, shown.result.channels],
            units: shown.streams?.map((stream) => stream.units) }})"""
        found = waited(lambda: self.problem() or self.page.evaluate(expression))
        assert isinstance(found, dict), found
        states = np.array(found["states"], np.float32).reshape(found["shape"])
        return found | {"samples": np.array(found["samples"], np.float32), "states": states}

    def problem(self) -> str:
        return self.text("#problem:not([hidden])")

    def text(self, selector: str) -> str:
        return self.page.evaluate(f"document.querySelector('{selector}')?.textContent ?? ''")


def states_of(encoder: SpeechEncoder, samples: np.ndarray) -> np.ndarray:
    """F^0..F^L of one wav, (layer, frame, channel)."""
    with torch.no_grad():
        return torch.stack(encoder(torch.from_numpy(samples)[None]).hidden_states)[:, 0].numpy()


def likeness(part: np.ndarray, whole: np.ndarray) -> float:
    """The highest correlation of `part` with a part of `whole`."""
    part, whole = part - part.mean(), whole - whole.mean()
    products = correlate(whole, part, mode="valid")
    energies = np.convolve(np.square(whole), np.ones(len(part)), mode="valid")
    return float((products / np.sqrt(energies * np.square(part).sum())).max())


@pytest.mark.parametrize("name", CONFIGS)
def test_states_of_a_file(name, page, address, encoders, wav) -> None:
    visit = Visit(page, address, model=f"{name}.onnx", audio="noise.wav")
    shown = visit.shown()
    assert np.array_equal(shown["samples"], wav)
    expected = states_of(encoders[name], wav)
    assert shown["states"].shape == expected.shape
    assert np.abs(shown["states"] - expected).max() < 1e-4
    assert "2 layers of 24 channels" in visit.text("#model-facts")
    assert "real time" in visit.text("#pace")


def test_files_are_chosen(page, address, site, encoders, wav) -> None:
    visit = Visit(page, address)
    page.evaluate("import('/page.js').then(() => true)")
    page.choose("#model-file", site / "hubert.onnx")
    page.choose("#audio-file", site / "noise.wav")
    assert np.abs(visit.shown()["states"] - states_of(encoders["hubert"], wav)).max() < 1e-4
    page.choose("#unit-files", site / "units/targets.json", site / "units/codebook.safetensors")
    waited(lambda: visit.text("#unit-facts") == "2 × 20 units of layer 1")  # noqa: RUF001


def test_states_in_8_bits(page, address, site, encoders, wav) -> None:
    """Rounding differs between processors, so they are close to onnxruntime's and as close to PyTorch's."""
    states = Visit(page, address, model="int8.onnx", audio="noise.wav").shown()["states"]
    theirs, _ = session(site / "int8.onnx")(torch.from_numpy(wav)[None], torch.tensor([len(wav)]))
    for expected in (theirs[:, 0].numpy(), states_of(encoders["hubert"], wav)):
        assert np.linalg.norm(states - expected) < 0.02 * np.linalg.norm(expected)


def test_states_of_the_microphone(page, address, encoders, wav) -> None:
    visit = Visit(page, address, model="hubert.onnx")
    waited(lambda: "layers" in visit.text("#model-facts") or visit.problem())
    page.call("Browser.setPermission", permission={"name": "microphone"}, setting="granted")
    page.evaluate("document.getElementById('microphone').click()")
    shown = visit.shown(minimum=2 * SAMPLE_RATE)
    heard = shown["samples"]
    assert np.abs(shown["states"] - states_of(encoders["hubert"], heard)).max() < 1e-4
    assert likeness(heard[-SAMPLE_RATE:], np.tile(wav, 2)) > 0.95
    page.evaluate("document.getElementById('microphone').click()")
    assert visit.text("#microphone") == "Microphone"


def test_units(page, address, site, encoders, wav) -> None:
    shown = Visit(page, address, model="hubert.onnx", audio="noise.wav", units="units").shown()
    states = torch.from_numpy(states_of(encoders["hubert"], wav)[1])
    codebook = load_file(site / "units/codebook.safetensors")["layer.1"]
    expected = quantise(normalised(states, "frame"), codebook).T.tolist()
    assert shown["units"] == expected


@pytest.mark.parametrize("scaling", ["none", "unit", "centred"])
def test_the_gram_matrix_is_that_of_the_objective(scaling, page, address) -> None:
    Visit(page, address)
    states = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) + 1
    numbers = json.dumps(states.flatten().tolist())
    call = f"import('/similarity.js').then(({{ gram }}) => [...gram(Float32Array.from({numbers}), 5, 7, '{scaling}')])"
    found = torch.tensor(waited(lambda: page.evaluate(call))).reshape(5, 5)
    (features,) = gram_features([states[None]], torch.ones(1, 5, dtype=torch.bool), scaling)
    expected = 5 * temporal_gram(features[0], features[0])  # the objective divides by the number of frames
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"model": "text.onnx"}, "text.onnx is not an ONNX file"),
        ({"model": "last.onnx"}, "last.onnx does not hold all hidden states"),
        ({"model": "none.onnx"}, "none.onnx could not be loaded (404)"),
        ({"model": "hubert.onnx", "ort": "none.mjs"}, "onnxruntime-web could not be loaded"),
        ({"model": "hubert.onnx", "ort": "https://example.org/ort.mjs"}, "it must be on this page's own server"),
        ({"audio": "page.js"}, "page.js is not audio that this browser can decode"),
        ({"model": "hubert.onnx", "units": "others"}, "The units were fitted on a model with 5 parameters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_goes_wrong_is_said(query, said, page, address) -> None:
    visit = Visit(page, address, **query)
    assert said in waited(visit.problem)


def test_a_forbidden_microphone_is_said(page, address) -> None:
    visit = Visit(page, address)
    page.call("Browser.setPermission", permission={"name": "microphone"}, setting="denied")
    page.evaluate("import('/page.js').then(() => document.getElementById('microphone').click())")
    assert "The microphone is not allowed" in waited(visit.problem)


def test_it_fits_a_phone(page, address) -> None:
    visit = Visit(page, address, model="hubert.onnx", audio="noise.wav", units="units")
    visit.shown()
    page.resize(360, 700)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
