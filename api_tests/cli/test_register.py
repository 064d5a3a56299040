"""`touchstone register`: a file becomes a registered model, and failures are explained."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api_tests.support.command_line import run_command
from api_tests.support.external_data import DATA, write_external, zip_of
from api_tests.support.fake_service import MODEL_PROBE, Api, FakeJob, fail, png, register_model
from api_tests.support.own_models import linear_onnx
from api_tests.support.ports import reserve_port
from touchstone.cli.register import build_manifest, parse_numbers
from touchstone.cli.service_client import POLL_SECONDS, Client, RefusedError, Upload
from touchstone.models.external_data import Joined, Piece
from touchstone.models.measurements import ExampleAccuracy, ExampleWarning
from touchstone.storage.blobs import digest_of

ONNX = linear_onnx()
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in a folder with a network and its labels; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "My Net.onnx").write_bytes(ONNX)
    (tmp_path / "labels.txt").write_text("cat\ndog\n")

    def command(*words: str) -> tuple[int, str, str]:
        result = run_command(monkeypatch, *words)
        return result.code, result.out, result.err

    return command


FLAGS = ("--classes", "labels.txt", "--size", "8")


def test_register_turns_a_file_into_a_registered_model(run: Run, api: Api) -> None:
    words = (
        "register",
        "My Net.onnx",
        "--url",
        api.origin,
        *FLAGS,
        "--mean",
        "0.5,0.5,0.5",
        "--std",
        "1,1,1",
    )
    code, out, _ = run(*words)
    assert code == 0
    assert f"Registered my-net as {digest_of(ONNX)}" in out
    for shown in ("8x8x3", "2: cat, dog", "onnx", "386", "agrees", "0.10 ms, 0.20 ms"):
        assert shown in out
    card = api.client.get("/v1/models/my-net").json()
    assert (card["classes"], card["mean"]) == (["cat", "dog"], [0.5, 0.5, 0.5])
    code, out, _ = run(*words)
    assert (code, "was registered before" in out) == (0, True)
    assert "my-net" in run("models", "--url", api.origin)[1]
    assert "my-net" not in run("models")[1]


def test_weights_in_a_second_file_are_found_and_a_zip_is_unpacked(run: Run, api: Api, tmp_path: Path) -> None:
    words = ("--url", api.origin, *FLAGS, "--id", "two-files")
    file = write_external(tmp_path)
    code, out, _ = run("register", "m.onnx", *words)
    assert (code, "Registered two-files" in out) == (0, True)
    (tmp_path / "m.zip").write_bytes(
        zip_of({name: (tmp_path / name).read_bytes() for name in ("m.onnx", DATA)})
    )
    code, out, _ = run("register", "m.zip", *words)
    assert (code, "two-files was registered before" in out) == (0, True)
    (tmp_path / DATA).unlink()
    code, _, err = run("register", file.name, *words)
    assert (code, "external_data=False" in err) == (1, True)


def test_phases_accuracy_and_warnings_are_printed(run: Run, api: Api, tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    for name in ("cat/a.png", "dog/b.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(png())
    warning = ExampleWarning(code="preprocessing_looks_wrong", detail="2 would be with the range -1,1")
    found = ExampleAccuracy(count=2, correct=1, accuracy=0.5, warnings=(warning,))
    labels = []

    def try_with_examples(work: FakeJob) -> None:
        examples = work.job.submission.examples
        labels.extend(examples.labels if examples else ())
        work.report(4, 6)
        time.sleep(2 * POLL_SECONDS)
        register_model(work, MODEL_PROBE.model_copy(update={"examples": found}))

    words = (
        "register",
        "My Net.onnx",
        "--url",
        api.origin,
        *FLAGS,
        "--id",
        "tried",
        "--examples",
        str(folder),
    )
    with api.worker.with_behavior(try_with_examples):
        code, out, err = run(*words)
    assert (code, labels) == (0, [0, 1])
    assert err.split("\n")[:5] == ["start", "build", "answer", "gradient check", "latency"]
    assert "50.0% (1 of 2)" in out
    assert "warning: 2 would be with the range -1,1" in out
    code, _, err = run(*words[:-1], "none")
    assert (code, "none cannot be read" in err) == (1, True)


def test_refused_registration_is_explained_and_exits_with_1(run: Run, api: Api, tmp_path: Path) -> None:
    url = ("--url", api.origin)
    (tmp_path / "no.onnx").write_bytes(b"\x1f\x8b" + bytes(100))
    (tmp_path / "m.json").write_text("{")
    for words, reason in (
        (("no.onnx", *url, *FLAGS), "gzip"),
        (("My Net.onnx", *url, "--size", "8"), "name the classes"),
        (("My Net.onnx", *url, *FLAGS, "--id", "fashion-mnist-cnn"), "comes with Touchstone"),
        (("My Net.onnx", *url, *FLAGS, "--mean", "a"), "--mean: 'a' is no number"),
        (("My Net.onnx", *url, *FLAGS, "--size", "wide"), "--size: 'wide' is no number"),
        (("My Net.onnx", *url, "--classes", "labels.txt"), "add --size"),
        (("My Net.onnx", *url, *FLAGS, "--manifest", "m.json"), "m.json is not JSON"),
        (("My Net.onnx", *url, "--classes", "none.txt"), "none.txt cannot be read"),
        (("none.onnx", *url, *FLAGS), "none.onnx is no file"),
        (("My Net.onnx", "--url", "ftp://x", *FLAGS), "no address"),
        (("My Net.onnx", "--url", "http://x:y", *FLAGS), "no address"),
    ):
        code, out, err = run("register", *words)
        assert (code, out, reason in err) == (1, "", True), err
    with api.worker.with_behavior(fail):
        code, _, err = run("register", "My Net.onnx", *url, *FLAGS, "--id", "unfit")
    assert (code, "the model answered NaN" in err) == (1, True)


def test_register_explains_that_the_service_is_unreachable(run: Run) -> None:
    with reserve_port() as port:
        code, _, err = run("register", "My Net.onnx", "--url", f"http://127.0.0.1:{port}", *FLAGS)
    assert (code, "cannot be reached" in err, "touchstone up" in err) == (1, True, True)


def test_flags_override_the_manifest_file(tmp_path: Path) -> None:
    written = tmp_path / "m.json"
    written.write_text(
        json.dumps({"id": "a", "input": {"height": 4, "width": 4, "channels": 1}, "licence": "MIT"})
    )
    flags = {
        "id": None,
        "size": "6x8",
        "resize": 9,
        "licence": "BSD",
        "range": parse_numbers("-1,0.5", "--range"),
    }
    assert build_manifest(tmp_path / "X y.onnx", written, flags) == {
        "id": "a",
        "input": {"height": 6, "width": 8, "channels": 1, "resize": 9},
        "licence": "BSD",
        "range": [-1, 0.5],
    }
    assert build_manifest(tmp_path / "X y.v2.onnx", None, {}) == {"id": "x-y.v2"}


@pytest.fixture
def refusing_url() -> Iterator[str]:
    """The address of a service that refuses at once and closes the connection."""
    body = b'{"detail": "too large for me"}'
    answer = b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(2**16):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_refusal_during_the_upload_is_read(refusing_url: str) -> None:
    file = Joined((Piece(bytes(2**24), 0, 2**24),))
    sent: list[int] = []
    with pytest.raises(RefusedError, match="too large for me"):
        Client(refusing_url).register(Upload.of(file, {}), sent.append)
    assert sum(sent) == 2**24


def test_model_listing_follows_the_cursor(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: Any = {
        "/v1/models": {"items": [{"id": "a"}], "cursor": "a"},
        "/v1/models?cursor=a": {"items": [{"id": "b"}], "cursor": None},
    }
    monkeypatch.setattr(Client, "get", lambda _self, path: pages[path])
    assert [one["id"] for one in Client(api.origin).models()] == ["a", "b"]
