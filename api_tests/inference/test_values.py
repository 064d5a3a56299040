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
from api_tests.support.fake_service import Api, Work, data_url, encoded
from touchstone.engine import Engine, Logits, Noisy, Query
from touchstone.engine.noise import Stream
from touchstone.engine.queries import Placed, Saved
from touchstone.evaluation import Model
from touchstone.evaluation.run import Finished, run
from touchstone.ledger.records import ModelRef, Submission
from touchstone.methods.inference import Infer, from_npy, pack, unpack
from touchstone.models import zoo

SMALL, LARGE = "fashion-mnist-cnn", "imagenet-efficientnet-lite0"
EXACT = 1e-5


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine("cpu")
    yield engine
    engine.stop()


@pytest.fixture(scope="module", params=[SMALL, LARGE])
def model(request: pytest.FixtureRequest) -> Model:
    return touchstone.load(request.param, device="cpu")


@pytest.fixture
def answering(api: Api, engine: Engine) -> Iterator[Api]:
    """A service whose worker computes."""

    def work(work: Work) -> None:
        submission = work.job.submission
        finished = run(submission, work.blobs.get(submission.source), engine)
        stored = {name: work.store(*file) for name, file in finished.artifacts.items()}
        work.finish(status="succeeded", result=finished.result, artifacts=stored)

    api.ledger.beat("pretender", {"running": 0})
    with api.worker.doing(work):
        yield api
    api.ledger.leave("pretender")


def infer(engine: Engine, name: str, *stacks: np.ndarray, **options: Any) -> Finished:
    card = zoo.manifest(name)
    asked = Infer(datatype="FP32", rows=sum(map(len, stacks)))
    submission = Submission(
        kind="inference",
        method="infer",
        model=ModelRef(id=card.id, digest=card.digest),
        file="sha256:" + "0" * 64,
        parameters=asked.model_dump(),
        **options,
    )
    return run(submission, pack(stacks), engine)


def logits(finished: Finished) -> np.ndarray:
    (found,) = from_npy(finished.artifacts["outputs.npy"][0])
    return found


def said(model: Model, placed: np.ndarray) -> np.ndarray:
    """What the bare network says of images that are placed already."""
    sight = model.oracle.sight
    with torch.no_grad():
        answer = model.oracle.module((torch.from_numpy(placed) - sight.mean) / sight.std)
    return answer.numpy()


def floats(model: Model, rows: int = 3) -> np.ndarray:
    spec = model.oracle.sight.spec
    draw = np.random.default_rng(0)
    return draw.random((rows, spec.channels, spec.height, spec.width), dtype=np.float32)


def photo() -> Image.Image:
    file = files("touchstone") / "photos" / "chelsea.png"
    return Image.open(io.BytesIO(file.read_bytes())).convert("RGB").resize((301, 260))


def through_pillow(image: Image.Image, model: Model) -> np.ndarray:
    """The pipeline of published models, written out."""
    spec = model.oracle.sight.spec
    image = image.convert("L" if spec.channels == 1 else "RGB")
    size = (spec.width, spec.height)
    if spec.resize:
        scale = spec.resize / min(image.size)
        size = tuple(spec.resize if side == min(image.size) else int(side * scale) for side in image.size)
    image = image.resize(size, Image.Resampling[spec.interpolation.upper()])
    left, upper = round((size[0] - spec.width) / 2), round((size[1] - spec.height) / 2)
    pixels = np.array(image.crop((left, upper, left + spec.width, upper + spec.height)))
    return (pixels.reshape(1, spec.height, spec.width, -1).transpose(0, 3, 1, 2) / 255).astype(np.float32)


def test_floats_are_taken_as_they_are(engine: Engine, model: Model) -> None:
    x = floats(model)
    found = logits(infer(engine, model.manifest.id, x))
    assert found.dtype == np.float32
    assert np.abs(found - said(model, x)).max() < EXACT


def test_floats_are_answered_as_by_the_library(engine: Engine) -> None:
    model = touchstone.load(SMALL, device="cpu")
    x = floats(model, 70)
    (answer,) = model.oracle.answer([Logits(torch.from_numpy(x))])
    finished = infer(engine, SMALL, x)
    assert np.abs(logits(finished) - answer.logits.numpy()).max() < EXACT
    assert finished.result == {"rows": 70, "classes": 10, "queries": {"forward": 70, "backward": 0}}


def test_pixels_go_through_the_model_s_own_pipeline(engine: Engine, model: Model) -> None:
    pixels = np.array(photo())[None]
    found = logits(infer(engine, model.manifest.id, pixels))
    assert np.abs(found - said(model, through_pillow(photo(), model))).max() < EXACT


def test_stacks_are_answered_in_order(engine: Engine) -> None:
    large, small = np.array(photo())[None], np.array(photo().resize((40, 30)).convert("L"))[None, ..., None]
    together = logits(infer(engine, SMALL, large, small, large))
    alone = [logits(infer(engine, SMALL, one)) for one in (large, small, large)]
    assert np.abs(together - np.concatenate(alone)).max() < EXACT
    assert not np.allclose(together[0], together[1])


def test_questions_of_all_kinds_share_a_pass(model: Model) -> None:
    x = torch.from_numpy(floats(model, 2))
    other = torch.rand(1, 3, 40, 50)
    queries: list[Query] = [Placed(x), Saved((other * 255).round() / 255), Logits(x), Logits(other)]
    queries += [Saved((x * 255).round() / 255), Placed(x)]
    together = model.oracle.answer(queries)
    alone = [model.oracle.answer([query])[0] for query in queries]
    assert all(torch.allclose(a.logits, b.logits, atol=1e-4) for a, b in zip(together, alone, strict=True))


def test_noise_is_added_to_what_the_network_sees(model: Model) -> None:
    x = torch.from_numpy(floats(model, 1))
    noisy = Noisy(x, Stream("gaussian", 0.25, 0), range(3))
    (answer,) = model.oracle.answer([noisy])
    assert np.abs(answer.logits.numpy() - said(model, noisy.x.numpy())).max() < 1e-4


def test_deterministic_answers_are_the_same_bits(engine: Engine) -> None:
    x = floats(touchstone.load(SMALL, device="cpu"), 100)
    first, second = (infer(engine, SMALL, x, execution="deterministic") for _ in range(2))
    assert first.artifacts == second.artifacts


def test_a_file_of_stacks_is_read_back() -> None:
    stacks = [np.zeros((2, 8, 9, 3), np.uint8), np.ones((1, 1, 4, 4), np.float32)]
    assert all(np.array_equal(a, b) for a, b in zip(unpack(pack(stacks)), stacks, strict=True))
    assert pack(stacks) != pack(stacks)


def test_a_file_with_objects_is_refused() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        from_npy(buffer.getvalue())


def test_an_inference_agrees_with_a_prediction(answering: Api) -> None:
    image = encoded(photo())
    top = answering.submit("/v1/predictions", image=image, model=SMALL).json()["result"]["original"]["top"]
    asked = {
        "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [data_url(image)]}],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 5}}],
    }
    told = answering.client.post(f"/v2/models/{SMALL}/infer", json=asked).json()["outputs"][0]["data"]
    assert told == [f"{one['confidence']:f}:{one['label']}:{one['name']}" for one in top]


@pytest.fixture
def triton(answering: Api) -> Iterator[Any]:
    """Triton's own client."""
    client = importlib.import_module("tritonclient.http")
    with client.InferenceServerClient(f"127.0.0.1:{answering.port}") as connected:
        yield connected


def image_of(values: np.ndarray, datatype: str, *, binary: bool) -> Any:
    client = importlib.import_module("tritonclient.http")
    image = client.InferInput("image", values.shape, datatype)
    image.set_data_from_numpy(values, binary_data=binary)
    return image


@pytest.mark.peer
def test_triton_s_client_finds_its_way(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready(SMALL)
    assert triton.is_model_ready(SMALL, zoo.manifest(SMALL).digest)
    assert not triton.is_model_ready("nothing")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    (told,) = triton.get_model_metadata(SMALL)["inputs"]
    assert (told["name"], told["datatype"], told["shape"]) == ("image", "FP32", [-1, 1, 28, 28])


@pytest.mark.peer
@pytest.mark.parametrize("binary", [True, False])
def test_triton_s_client_is_answered(triton: Any, model: Model, *, binary: bool) -> None:
    if model.manifest.id == LARGE and not binary:
        x = np.zeros((1, 3, 224, 224), np.float32)
    else:
        x = floats(model, 2)
    answer = triton.infer(model.manifest.id, [image_of(x, "FP32", binary=binary)], request_id="7")
    assert np.abs(answer.as_numpy("logits") - said(model, x)).max() < EXACT
    assert answer.as_numpy("probabilities").sum(1) == pytest.approx(1, abs=1e-6)
    assert answer.get_response()["id"] == "7"


@pytest.mark.peer
def test_triton_s_client_sends_pixels_and_files(triton: Any) -> None:
    client = importlib.import_module("tritonclient.http")
    pixels, file = np.array(photo())[None], np.array([encoded(photo())], dtype=object)
    wanted = client.InferRequestedOutput("probabilities", class_count=3)
    asked = [image_of(pixels, "UINT8", binary=True), image_of(file, "BYTES", binary=True)]
    first, second = (triton.infer(SMALL, [one], outputs=[wanted]).as_numpy("probabilities") for one in asked)
    assert first.shape == (1, 3)
    assert first.tolist() == second.tolist()


@pytest.mark.peer
def test_triton_s_client_reads_what_was_wrong(triton: Any) -> None:
    errors = importlib.import_module("tritonclient.utils")
    bright = image_of(np.full((1, 1, 28, 28), 2, np.float32), "FP32", binary=True)
    with pytest.raises(errors.InferenceServerException, match=r"inputs\.0\.data: values must lie in \[0,1\]"):
        triton.infer(SMALL, [bright])
