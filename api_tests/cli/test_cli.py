"""The command line: its output, its files, and its errors."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from api_tests.support.command_line import CommandResult, run_command
from touchstone.check import check
from touchstone.cli import methods
from touchstone.methods import catalogue
from touchstone.models.zoo import manifests
from touchstone.training.datasets import fashion_mnist_sample

MODEL = "fashion-mnist-cnn"


Run = Callable[..., CommandResult]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    return partial(run_command, monkeypatch)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    Image.fromarray(fashion_mnist_sample().images[1]).save(tmp_path / "trousers.png")
    return "trousers.png"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A certificate as the command line writes it."""
    from touchstone.evaluation.local import run_file  # noqa: PLC0415 - loads torch

    buffer = io.BytesIO()
    Image.fromarray(fashion_mnist_sample().images[1]).save(buffer, "PNG")
    parameters = {"sigma": 0.12, "n": 300}
    outcome = run_file(
        buffer.getvalue(), "certificate", model=MODEL, method="smoothing", parameters=parameters
    )
    return outcome.result


def test_attack_saves_the_image_and_shows_the_labels(run: Run, photo: str, tmp_path: Path) -> None:
    result = run("attack", photo, "--model", MODEL, "--eps", "16/255", "--steps=20", "-o", "a.png")
    assert (result.code, "Trouser (1)" in result.out, "Saved a.png" in result.out) == (0, True, True)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (28, 28)


def test_attack_prints_json(run: Run, photo: str) -> None:
    result = run("attack", photo, "--model", MODEL, "--attack", "fgsm", "--label", "Trouser", "--json")
    assert result.code == 0
    assert json.loads(result.out)["original"]["label"] == 1


def test_certify_shows_what_is_proved_and_check_accepts_its_file(
    run: Run, photo: str, tmp_path: Path
) -> None:
    flags = ("--method", "smoothing", "--sigma", "0.12", "--n", "1000", "--target-radius", "0.05")
    certified = run("certify", photo, "--model", MODEL, *flags, "--json", "c.json")
    assert certified.code == 0
    result = json.loads((tmp_path / "c.json").read_text())
    assert result["decision"] == "certified"
    assert all(one.agrees for one in check(result))
    sampling = result["sampling"]
    for shown in (result["statement"], f"{result['radius']:.4f} (l2)", "certified", "Saved c.json"):
        assert shown in certified.out
    assert f"{sampling['nA']:,} of {sampling['n_used']:,}" in certified.out
    checked = run("check", "c.json")
    assert (checked.code, "The certificate is valid." in checked.out) == (0, True)


def test_certify_runs_pixeldp(run: Run, photo: str) -> None:
    result = run("certify", photo, "--model", MODEL, "--method", "pixeldp", "--sigma", "0.1", "--n=300")
    assert (result.code, "l2" in result.out) == (0, True)


def test_check_reports_the_altered_field_and_exits_with_1(
    run: Run, certificate: dict[str, Any], tmp_path: Path
) -> None:
    altered = {**certificate, "radius": certificate["radius"] + 0.1}
    (tmp_path / "c.json").write_text(json.dumps({"result": altered}))
    result = run("check", "c.json")
    [row] = [line for line in result.out.splitlines() if " radius " in line]
    assert (result.code, "no" in row, str(certificate["radius"])[:8] in row) == (1, True, True)
    assert "The certificate is not valid." in result.out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        ("", "is not a certificate"),
        ("[]", "is not a certificate"),
        ("{}", "no field 'sampling'"),
        ('{"result": null}', "is not a certificate"),
        ('{"method": "hope", "sampling": {}}', "unknown method 'hope'"),
        ("\udcff", "is not a certificate"),
    ],
)
def test_check_explains_an_unreadable_file_and_exits_with_2(
    run: Run, tmp_path: Path, content: str | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "c.json").write_bytes(content.encode(errors="surrogateescape"))
    result = run("check", "c.json")
    assert (result.code, result.out) == (2, "")
    assert reason in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("kind", ["attack", "certificate"])
def test_methods_are_listed_and_described(run: Run, kind: Any) -> None:
    result = run(f"{kind}s")
    assert result.code == 0
    for name, method in catalogue(kind).items():
        assert name in result.out
        shown = run(f"{kind}s", name).out
        assert all(f"--{field.replace('_', '-')}" in shown for field in method.model_fields)


def test_method_description_shows_readable_defaults(run: Run) -> None:
    shown = run("attacks", "pgd").out
    [eps] = [line for line in shown.splitlines() if "--eps" in line]
    [size] = [line for line in shown.splitlines() if "--step-size" in line]
    assert (" 8/255 " in eps, " unset " in size) == (True, True)
    assert (
        "restarts only the images that still resist. In L1 a step goes to the steepest coordinates" in shown
    )


def test_unwritable_output_path_is_refused_before_computing(
    run: Run, photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "_run", lambda *_, **__: pytest.fail("it was computed"))
    for words in (("attack", photo, "-o", "no/a.png"), ("certify", photo, "--json", "no/c.json")):
        result = run(*words)
        assert (result.code, "cannot be written" in result.err) == (2, True)


def test_version_flag_prints_the_version(run: Run) -> None:
    assert run("--version").out == f"touchstone {version('touchstone-robustness')}\n"


def test_attack_prints_no_progress_without_a_terminal(run: Run, photo: str) -> None:
    assert not run("attack", photo, "--model", MODEL, "--attack", "fgsm").err


def test_models_command_lists_the_zoo(run: Run) -> None:
    result = run("models")
    assert result.code == 0
    assert all(name in result.out for name in manifests())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("attack", "nowhere.png"), "nowhere.png cannot be read: No such file"),
        (("certify", "."), "cannot be read: Is a directory"),
        (("attack", "trousers.png", "--eps", "8"), "did you mean 8/255?"),
        (("attack", "trousers.png", "--attack", "hope"), "there is no attack named 'hope'"),
        (("attack", "trousers.png", "--attack", "smoothing"), "there is no attack named 'smoothing'"),
        (("attack", "trousers.png", "--model", "hope"), "there is no model named 'hope'"),
        (("attack", "trousers.png", "--model", MODEL, "--label", "hope"), "hope"),
        (("attack", "trousers.png", "--epsilon", "1"), "epsilon"),
        (("attack", "trousers.png", "--stepz", "1"), 'did you mean "steps"?'),
        (("attack", "trousers.png", "--model", MODEL, "--seed=-1"), "seed"),
        (("attack", "trousers.png", "--model", MODEL, "--seed", str(2**63)), "seed"),
        (("attack", "trousers.png", "-o", "."), ". cannot be written: it is a folder"),
        (("certify", "trousers.png", "--model", MODEL, "--seed=-1"), "seed"),
        (("attack", "trousers.png", "stray"), "'stray' is not a flag"),
        (("attack", "text.png"), "image"),
        (("attack", "trousers.png", "--model", MODEL, "-o", "no/a.png"), "no/a.png cannot be written"),
        (("certify", "trousers.png", "--sigma", "0"), "sigma"),
        (("certify", "trousers.png", "--sigma", "-1"), "sigma"),
        (("certify", "trousers.png", "--alpha", "0.5"), "alpha"),
        (("certify", "trousers.png", "--method", "pgd"), "there is no certificate named 'pgd'"),
        (("certify", "trousers.png", "--model", MODEL, "--n", "100", "--json", "no/c.json"), "no/c.json"),
        (("attacks", "hope"), "there is no attack named 'hope'"),
        (("certificates", "hope"), "there is no certificate named 'hope'"),
    ],
)
def test_bad_input_prints_one_line_and_exits_with_2(
    run: Run, photo: str, tmp_path: Path, words: tuple[str, ...], reason: str
) -> None:
    (tmp_path / "text.png").write_text("no image")
    result = run(*words)
    assert result.code == 2
    assert reason in result.err
    assert len(result.err.strip().splitlines()) == 1
