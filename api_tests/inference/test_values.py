"""What the Open Inference Protocol answers is what the model says: against the network itself, Pillow's own
pipeline, predictions, and Triton's client.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import touchstone
from api_tests.support.fake_service import Api, FakeJob, data_url, encode_image
from touchstone.engine import Engine, Logits, NoisyLogits, Query
from touchstone.engine.noise import SampleNoise
from touchstone.engine.queries import FileLogits, InputLogits
from touchstone.evaluation import Model
from touchstone.evaluation.run import JobOutcome, run_job
from touchstone.ledger.records import ModelRef, Submission
from touchstone.methods.inference import Infer, from_npy, pack, unpack
from touchstone.models import zoo

SMALL, LARGE = "fashion-mnist-cnn", "imagenet-efficientnet-lite0"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine("cpu")
    yield engine
    engine.stop()


@pytest.fixture(scope="module", params=[SMALL, LARGE])
def model(request: pytest.FixtureRequest) -> Model:
    return touchstone.load(request.param, device="cpu")


@pytest.fixture
def computing_api(api: Api, engine: Engine) -> Iterator[Api]:
    """A service whose worker computes."""

    def work(work: FakeJob) -> None:
        submission = work.job.submission
        finished = run_job(submission, work.blobs.get(submission.source), engine)
        stored = {name: work.store(*file) for name, file in finished.artifacts.items()}
        work.finish(status="succeeded", result=finished.result, artifacts=stored)

    api.ledger.workers.heartbeat("pretender", {"running": 0})
    with api.worker.with_behavior(work):
        yield api
    api.ledger.workers.remove("pretender")


def infer(engine: Engine, name: str, *stacks: np.ndarray, **options: Any) -> JobOutcome:
    card = zoo.find_manifest(name)
    asked = Infer(datatype="FP32", rows=sum(map(len, stacks)))
    submission = Submission(
        kind="inference",
        method="infer",
        model=ModelRef(id=card.id, digest=card.digest),
        file="sha256:" + "0" * 64,
        parameters=asked.model_dump(),
        **options,
    )
    return run_job(submission, pack(stacks), engine)


def logits(finished: JobOutcome) -> np.ndarray:
    (found,) = from_npy(finished.artifacts["outputs.npy"][0])
    return found


def network_logits(model: Model, placed: np.ndarray) -> np.ndarray:
    """What the bare network says of images that are placed already."""
    sight = model.oracle.preprocessing
    with torch.no_grad():
        answer = model.oracle.module((torch.from_numpy(placed) - sight.mean) / sight.std)
    return answer.numpy()


def floats(model: Model, rows: int = 3) -> np.ndarray:
    spec = model.oracle.preprocessing.spec
    draw = np.random.default_rng(0)
    return draw.random((rows, spec.channels, spec.height, spec.width), dtype=np.float32)


def photo() -> Image.Image:
    file = files("touchstone") / "photos" / "chelsea.png"
    return Image.open(io.BytesIO(file.read_bytes())).convert("RGB").resize((301, 260))


def preprocess_with_pillow(image: Image.Image, model: Model) -> np.ndarray:
    """The pipeline of published models, written out."""
    spec = model.oracle.preprocessing.spec
    image = image.convert("L" if spec.channels == 1 else "RGB")
    size = (spec.width, spec.height)
    if spec.resize:
        scale = spec.resize / min(image.size)
        size = tuple(spec.resize if side == min(image.size) else int(side * scale) for side in image.size)
    image = image.resize(size, Image.Resampling[spec.interpolation.upper()])
    left, upper = round((size[0] - spec.width) / 2), round((size[1] - spec.height) / 2)
    pixels = np.array(image.crop((left, upper, left + spec.width, upper + spec.height)))
    return (pixels.reshape(1, spec.height, spec.width, -1).transpose(0, 3, 1, 2) / 255).astype(np.float32)


def test_floats_reach_the_network_without_resizing(engine: Engine, model: Model) -> None:
    x = floats(model)
    found = logits(infer(engine, model.manifest.id, x))
    assert found.dtype == np.float32
    assert np.abs(found - network_logits(model, x)).max() < TOLERANCE


def test_logits_of_floats_match_the_library(engine: Engine) -> None:
    model = touchstone.load(SMALL, device="cpu")
    x = floats(model, 70)
    (answer,) = model.oracle.answer([Logits(torch.from_numpy(x))])
    finished = infer(engine, SMALL, x)
    assert np.abs(logits(finished) - answer.logits.numpy()).max() < TOLERANCE
    assert finished.result == {"rows": 70, "classes": 10, "queries": {"forward": 70, "backward": 0}}


def test_pixels_go_through_the_models_own_pipeline(engine: Engine, model: Model) -> None:
    pixels = np.array(photo())[None]
    found = logits(infer(engine, model.manifest.id, pixels))
    assert np.abs(found - network_logits(model, preprocess_with_pillow(photo(), model))).max() < TOLERANCE


def test_image_stacks_are_answered_in_order(engine: Engine) -> None:
    large, small = np.array(photo())[None], np.array(photo().resize((40, 30)).convert("L"))[None, ..., None]
    together = logits(infer(engine, SMALL, large, small, large))
    alone = [logits(infer(engine, SMALL, one)) for one in (large, small, large)]
    assert np.abs(together - np.concatenate(alone)).max() < TOLERANCE
    assert not np.allclose(together[0], together[1])


def test_queries_of_all_kinds_give_the_same_logits_in_one_pass(model: Model) -> None:
    x = torch.from_numpy(floats(model, 2))
    other = torch.rand(1, 3, 40, 50)
    queries: list[Query] = [InputLogits(x), FileLogits((other * 255).round() / 255), Logits(x), Logits(other)]
    queries += [FileLogits((x * 255).round() / 255), InputLogits(x)]
    together = model.oracle.answer(queries)
    alone = [model.oracle.answer([query])[0] for query in queries]
    assert all(torch.allclose(a.logits, b.logits, atol=1e-4) for a, b in zip(together, alone, strict=True))


def test_noise_is_added_to_the_input_of_the_network(model: Model) -> None:
    x = torch.from_numpy(floats(model, 1))
    noisy = NoisyLogits(x, SampleNoise("gaussian", 0.25, 0), range(3))
    (answer,) = model.oracle.answer([noisy])
    assert np.abs(answer.logits.numpy() - network_logits(model, noisy.x.numpy())).max() < 1e-4


def test_deterministic_inference_is_bitwise_repeatable(engine: Engine) -> None:
    x = floats(touchstone.load(SMALL, device="cpu"), 100)
    first, second = (infer(engine, SMALL, x, execution="deterministic") for _ in range(2))
    assert first.artifacts == second.artifacts


def test_packed_stacks_are_read_back_unchanged() -> None:
    stacks = [np.zeros((2, 8, 9, 3), np.uint8), np.ones((1, 1, 4, 4), np.float32)]
    assert all(np.array_equal(a, b) for a, b in zip(unpack(pack(stacks)), stacks, strict=True))
    assert pack(stacks) != pack(stacks)


def test_npy_file_with_objects_is_refused() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        from_npy(buffer.getvalue())


def test_inference_agrees_with_a_prediction(computing_api: Api) -> None:
    image = encode_image(photo())
    top = computing_api.submit("/v1/predictions", image=image, model=SMALL).json()["result"]["original"][
        "top"
    ]
    asked = {
        "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [data_url(image)]}],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 5}}],
    }
    told = computing_api.client.post(f"/v2/models/{SMALL}/infer", json=asked).json()["outputs"][0]["data"]
    assert told == [f"{one['confidence']:f}:{one['label']}:{one['name']}" for one in top]


@pytest.fixture
def triton(computing_api: Api) -> Iterator[Any]:
    """Triton's own client."""
    client = importlib.import_module("tritonclient.http")
    with client.InferenceServerClient(f"127.0.0.1:{computing_api.port}") as connected:
        yield connected


def build_triton_input(values: np.ndarray, datatype: str, *, binary: bool) -> Any:
    client = importlib.import_module("tritonclient.http")
    image = client.InferInput("image", values.shape, datatype)
    image.set_data_from_numpy(values, binary_data=binary)
    return image


@pytest.mark.peer
def test_triton_client_reads_health_and_metadata(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready(SMALL)
    assert triton.is_model_ready(SMALL, zoo.find_manifest(SMALL).digest)
    assert not triton.is_model_ready("nothing")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    (told,) = triton.get_model_metadata(SMALL)["inputs"]
    assert (told["name"], told["datatype"], told["shape"]) == ("image", "FP32", [-1, 1, 28, 28])


@pytest.mark.peer
@pytest.mark.parametrize("binary", [True, False])
def test_triton_client_gets_the_logits_of_the_network(triton: Any, model: Model, *, binary: bool) -> None:
    if model.manifest.id == LARGE and not binary:
        x = np.zeros((1, 3, 224, 224), np.float32)
    else:
        x = floats(model, 2)
    answer = triton.infer(model.manifest.id, [build_triton_input(x, "FP32", binary=binary)], request_id="7")
    assert np.abs(answer.as_numpy("logits") - network_logits(model, x)).max() < TOLERANCE
    assert answer.as_numpy("probabilities").sum(1) == pytest.approx(1, abs=1e-6)
    assert answer.get_response()["id"] == "7"


@pytest.mark.peer
def test_triton_client_can_send_pixels_and_image_files(triton: Any) -> None:
    client = importlib.import_module("tritonclient.http")
    pixels, file = np.array(photo())[None], np.array([encode_image(photo())], dtype=object)
    wanted = client.InferRequestedOutput("probabilities", class_count=3)
    asked = [build_triton_input(pixels, "UINT8", binary=True), build_triton_input(file, "BYTES", binary=True)]
    first, second = (triton.infer(SMALL, [one], outputs=[wanted]).as_numpy("probabilities") for one in asked)
    assert first.shape == (1, 3)
    assert first.tolist() == second.tolist()


@pytest.mark.peer
def test_triton_client_shows_the_error_detail(triton: Any) -> None:
    errors = importlib.import_module("tritonclient.utils")
    bright = build_triton_input(np.full((1, 1, 28, 28), 2, np.float32), "FP32", binary=True)
    with pytest.raises(errors.InferenceServerException, match=r"inputs\.0\.data: values must lie in \[0,1\]"):
        triton.infer(SMALL, [bright])
