"""`touchstone demo`: one attack over HTTP, on a service that it starts."""

from __future__ import annotations

import base64
import io
import json
import shlex
import time
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import Progress as ProgressBar

from touchstone.cli.console import show
from touchstone.errors import Failure
from touchstone.settings import Settings
from touchstone.supervisor.up import run_service

PHOTO = Path(__file__).parents[1] / "photos" / "coffee.png"
MODEL = "imagenet-efficientnet-lite0"
PARAMETERS = {"target": "airliner", "eps": "2/255", "min_confidence": 0.99, "random_start": "false"}
CAPTION = 34


def run(folder: Path, out: Console) -> None:
    """Start the service, attack the photo over HTTP, save the images in `folder`, and stop the service."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(home=folder.resolve() / "home", port=0)
    with run_service(settings, lambda line: out.print(line, highlight=False)) as url:
        out.print(f"POST {url}/v1/attacks/pgd  with {PHOTO.name}", highlight=False)
        job, files = attack_photo(url, out)
        _show(job, out)
        (folder / "adversarial.png").write_bytes(files["adversarial.png"])
        side_by_side(job["result"], files).save(folder / "side-by-side.png")
        out.print(f"Saved {folder}/adversarial.png and {folder}/side-by-side.png", highlight=False)
    out.print("\nThe same by hand, while `make up` serves:\n")
    out.print(curl("http://127.0.0.1:8000"), highlight=False, soft_wrap=True)


def attack_photo(url: str, out: Console) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The job of the demo's request, once it has ended, and its images by name."""
    job = _wait_for_job(url, _submit(url), out)
    names = ("original.png", "adversarial.png", "difference.png")
    return job, {name: _get(url, job["links"]["artifacts"][name]) for name in names}


def curl(url: str) -> str:
    """The demo's request as a shell command."""
    fields = {"image": f"@{_display_path(PHOTO)}", "model": MODEL, **PARAMETERS}
    flags = " ".join(f"-F {shlex.quote(f'{name}={value}')}" for name, value in fields.items())
    return f"curl -H 'Prefer: wait=30' {flags} {url}/v1/attacks/pgd"


def side_by_side(result: dict[str, Any], files: dict[str, bytes]) -> Image.Image:
    """Original, adversarial and difference in one row, each with its caption."""
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in files.values()]
    captions = [
        *(
            f"{result[when]['name']}  {result[when]['confidence']:.0%}"
            for when in ("original", "adversarial")
        ),
        f"difference x {result['difference_factor']}",
    ]
    width, height = images[0].size
    sheet = Image.new("RGB", (3 * width + 2 * 8, height + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=18)
    for column, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = column * (width + 8)
        sheet.paste(image, (left, CAPTION))
        draw.text((left + width / 2, CAPTION / 2), caption, fill="black", font=font, anchor="mm")
    return sheet


def _submit(url: str) -> dict[str, Any]:
    image = "data:image/png;base64," + base64.b64encode(PHOTO.read_bytes()).decode()
    body = json.dumps({"image": image, "model": MODEL, **PARAMETERS}).encode()
    request = urllib.request.Request(  # noqa: S310 - the address is our own service's
        f"{url}/v1/attacks/pgd", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        job: dict[str, Any] = json.load(response)
    return job


def _wait_for_job(url: str, job: dict[str, Any], out: Console) -> dict[str, Any]:
    with ProgressBar(console=out, transient=True) as bar:
        task = bar.add_task("attacking", total=None)
        while job["status"] in ("queued", "running"):
            time.sleep(0.1)
            job = json.loads(_get(url, job["links"]["self"]))
            bar.update(task, completed=job["progress"]["done"], total=job["progress"]["total"] or None)
    if job["status"] != "succeeded":
        raise Failure(f"the demo's job {job['status']}: {job['error']}")
    return job


def _show(job: dict[str, Any], out: Console) -> None:
    show(job["result"])
    before, after = (job["result"][when] for when in ("original", "adversarial"))
    out.print(
        f"{before['name']} {before['confidence']:.0%} → {after['name']} {after['confidence']:.0%}",
        highlight=False,
    )
    seconds = job["timings"]["compute"] + job["timings"]["prepare"]
    out.print(f"The attack took {seconds:.1f} s on the worker.", highlight=False)


def _get(url: str, path: str) -> bytes:
    with urllib.request.urlopen(url + path, timeout=30) as response:  # noqa: S310 - our own service
        data: bytes = response.read()
    return data


def _display_path(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
