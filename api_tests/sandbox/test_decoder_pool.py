"""Uploads are decoded in processes that may crash, hang or run out of memory without affecting others."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from api_tests.sandbox.hostile_decoder import install_hostile_decoder
from api_tests.support.fake_service import Api, assert_problem, encode_image, gradient_image, png
from api_tests.support.fuzz_images import decode, mutants
from api_tests.support.wait import wait_until
from touchstone.errors import ImageTooLarge, InvalidImage, NotReady
from touchstone.evaluation.local import canonicalize
from touchstone.images import MAX_SCANS, count_scans, decode as decode_here
from touchstone.ledger.records import LOCAL
from touchstone.sandbox import decoder, decoder_pool
from touchstone.sandbox.confinement import MAX_FILES
from touchstone.sandbox.decoder_pool import DecoderPool


@pytest.fixture
def decoders() -> Iterator[DecoderPool]:
    decoders = DecoderPool(2)
    yield decoders
    decoders.stop()


@pytest.fixture
def hostile(decoders: DecoderPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DecoderPool:
    """Decoders of which some uploads make short work."""
    install_hostile_decoder(tmp_path, monkeypatch)
    return decoders


def decoder_pids() -> list[int]:
    """The decoders that this process has started."""
    mine = re.compile(rb"-P\0-m\0(touchstone\.sandbox\.decoder|hostile)\0")
    return [process for process in _child_pids() if mine.search(_read_proc(process, "cmdline"))]


def _child_pids() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _read_proc(process: int, what: str) -> bytes:
    return Path(f"/proc/{process}/{what}").read_bytes()


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGBA"), ("PNG", "1")])
def test_decoder_process_gives_the_same_image_as_decoding_in_process(
    decoders: DecoderPool, kind: str, mode: str
) -> None:
    upload = encode_image(gradient_image(30, 20, mode), kind)
    assert decoders.of(LOCAL).canonical(upload) == canonicalize(upload)
    assert np.array_equal(decoders.of(LOCAL).pixels(upload), decode_here(upload).pixels)


def test_first_picture_of_a_camera_jpeg_with_two_is_taken(decoders: DecoderPool) -> None:
    first, exif = gradient_image(30, 20), Image.Exif()
    exif[0x0112] = 3
    upload = encode_image(
        first, "MPO", save_all=True, append_images=[first.rotate(180).resize((15, 10))], exif=exif
    )
    png_file, image = decoders.of(LOCAL).canonical(upload)
    alone, _ = decoders.of(LOCAL).canonical(encode_image(first, "JPEG", exif=exif))
    assert png_file == alone
    assert image.conversions == ("the first of 2 pictures taken", "EXIF orientation applied")


def test_decoder_process_refuses_invalid_images_without_dying(decoders: DecoderPool) -> None:
    with pytest.raises(InvalidImage, match="animation") as refused:
        decoders.of(LOCAL).canonical(
            encode_image(
                gradient_image(), "WEBP", save_all=True, append_images=[gradient_image().rotate(180)]
            )
        )
    assert refused.value.field == "image"
    with pytest.raises(ImageTooLarge, match="4097x8 is too large"):
        decoders.of(LOCAL).pixels(png(4097, 8))
    with pytest.raises(InvalidImage, match="7x8 is too small"):
        decoders.of(LOCAL).pixels(png(7, 8))
    assert decoders.deaths == 0


def test_largest_allowed_image_is_decoded(decoders: DecoderPool) -> None:
    values = np.linspace(0, 255, 4096, dtype=np.uint8)
    whole = Image.fromarray(np.broadcast_to(values[:, None, None], (4096, 4096, 4)))
    exif = Image.Exif()
    exif[0x0112] = 6
    _, image = decoders.of(LOCAL).canonical(encode_image(whole, compress_level=1, exif=exif))
    assert (image.width, image.height, image.channels) == (4096, 4096, 3)
    assert image.conversions == ("EXIF orientation applied", "transparency of RGBA laid over white")
    assert decoders.deaths == 0


def test_decoder_starts_on_first_use_and_ends_on_stop(decoders: DecoderPool) -> None:
    before = decoder_pids()
    decoders.of(LOCAL).canonical(png())
    decoders.of(LOCAL).canonical(png())
    started = set(decoder_pids()) - set(before)
    assert len(started) == 1
    decoders.stop()
    assert not started & set(decoder_pids())


def test_number_of_decoder_processes_is_limited(decoders: DecoderPool) -> None:
    before = decoder_pids()
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: decoders.of(LOCAL).canonical(png()), range(64)))
    assert len(found) == 1
    assert len(set(decoder_pids()) - set(before)) == 2


def test_decoder_process_runs_without_secrets_and_with_resource_limits(
    decoders: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOUCHSTONE_SECRET_NAME", "swordfish")
    before = decoder_pids()
    decoders.of(LOCAL).canonical(png())
    (process,) = set(decoder_pids()) - set(before)
    assert b"swordfish" not in _read_proc(process, "environ")
    limits = dict(
        re.findall(r"^(Max [a-z ]+?) {2,}(\d+|unlimited)", _read_proc(process, "limits").decode(), re.M)
    )
    assert int(limits["Max address space"]) < decoder.MEMORY + 2**30
    assert limits["Max file size"] == limits["Max core file size"] == "0"
    assert limits["Max open files"] == str(MAX_FILES)
    assert os.readlink(f"/proc/{process}/cwd") == "/"
    assert os.getsid(process) == process, "what the terminal sends is not for it"
    assert _read_proc(process, "oom_score_adj").strip() == b"1000"


def test_killed_decoder_is_replaced(decoders: DecoderPool) -> None:
    before = decoder_pids()
    decoders.of(LOCAL).canonical(png())
    (process,) = set(decoder_pids()) - set(before)
    os.kill(process, signal.SIGKILL)
    assert decoders.of(LOCAL).canonical(png()) == canonicalize(png())
    assert decoders.deaths == 1


@pytest.mark.parametrize(
    ("upload", "deaths"),
    [(b"crash", 2), (b"eat", 2), (b"spin", 1), (b"boast", 2), (b"giant", 2), (b"flood", 2)],
)
def test_file_that_kills_its_decoder_is_refused(hostile: DecoderPool, upload: bytes, deaths: int) -> None:
    with pytest.raises(InvalidImage):
        hostile.of(LOCAL).canonical(upload)
    assert hostile.deaths == deaths
    assert hostile.of(LOCAL).canonical(png()) == canonicalize(png())


def test_image_is_refused_when_its_decoder_sends_too_few_pixels(hostile: DecoderPool) -> None:
    with pytest.raises(InvalidImage):
        hostile.of(LOCAL).pixels(b"short")
    assert hostile.deaths == 2


def test_decoder_timer_is_cleared_after_each_image(hostile: DecoderPool) -> None:
    with pytest.raises(InvalidImage, match=r"^0\.0$"):
        hostile.of(LOCAL).canonical(b"timer")


@pytest.mark.parametrize("upload", [b"sleep", b"pause"])
def test_silent_decoder_is_ended_and_its_image_refused(
    hostile: DecoderPool, monkeypatch: pytest.MonkeyPatch, upload: bytes
) -> None:
    hostile.of(LOCAL).canonical(png())
    monkeypatch.setattr(decoder_pool, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(InvalidImage):
        hostile.of(LOCAL).canonical(upload)
    assert hostile.deaths == 2


def test_unread_answer_is_not_given_to_the_next_image(
    decoders: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders.of(LOCAL).canonical(png())

    def deaf(*_: object) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(decoder_pool._Decoder, "_receive", deaf)
        with pytest.raises(MemoryError):
            decoders.of(LOCAL).canonical(png(30, 20))
    assert decoders.of(LOCAL).canonical(png()) == canonicalize(png())


def test_decoder_that_cannot_start_raises_not_ready(
    decoders: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_pool, "MODULE", "no.such.module")
    with pytest.raises(NotReady):
        decoders.of(LOCAL).canonical(png())


def test_decoder_that_never_gets_ready_is_ended(
    hostile: DecoderPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile.py").write_text("import time\ntime.sleep(600)")
    monkeypatch.setattr(decoder_pool, "START_SECONDS", 0.2)
    before = decoder_pids()
    with pytest.raises(NotReady):
        hostile.of(LOCAL).canonical(png())
    assert decoder_pids() == before


def test_service_keeps_working_after_its_decoders_are_killed(api: Api) -> None:
    before = decoder_pids()
    api.run_job()
    for process in set(decoder_pids()) - set(before) or before:
        os.kill(process, signal.SIGKILL)
    assert api.run_job()["status"] == "succeeded"


def jpeg_of_scans(count: int, side: int = 64) -> bytes:
    """A progressive JPEG of so many scans: the last one of ten is repeated."""
    whole = encode_image(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    scan = whole[whole.rindex(b"\xff\xc4", 0, last) : -2]
    return whole[:-2] + scan * (count - 10) + whole[-2:]


@pytest.mark.parametrize(("scans", "side"), [(MAX_SCANS + 1, 64), (495, 4096), (20_000, 2048)])
def test_jpeg_with_too_many_scans_is_refused_before_it_is_decoded(api: Api, scans: int, side: int) -> None:
    body = assert_problem(
        api.submit(wait=None, image=jpeg_of_scans(scans, side)), 422, "invalid_image", "image"
    )
    assert f"{scans:,} scans; at most {MAX_SCANS} are allowed" in body["detail"]


def test_jpeg_of_as_many_scans_as_allowed_is_decoded(decoders: DecoderPool) -> None:
    upload = jpeg_of_scans(MAX_SCANS)
    assert count_scans(upload) == MAX_SCANS
    assert decoders.of(LOCAL).canonical(upload) == canonicalize(upload)


def test_scans_of_thumbnails_and_bytes_in_metadata_do_not_count() -> None:
    whole = encode_image(gradient_image(64, 64), "JPEG", progressive=True)
    metadata = b"\xff\xe1" + (2 + 3 * 1000).to_bytes(2) + b"\xff\xda\0" * 1000
    upload = whole[:2] + metadata + whole[2:]
    assert count_scans(upload) == count_scans(whole) == 10
    assert np.array_equal(decode_here(upload).pixels, decode_here(whole).pixels)


@pytest.mark.usefixtures("hostile")
def test_upload_waits_for_no_more_than_one_upload_of_another_tenant() -> None:
    decoders = DecoderPool(1)
    ended: list[str] = []

    def decode_all(tenant: str, upload: bytes) -> None:
        with suppress(InvalidImage):
            decoders.of(tenant).canonical(upload)
        ended.append(tenant)

    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            pool.submit(decode_all, "slow", b"spin")
        wait_until(lambda: decoders.deaths > 0)
        pool.submit(decode_all, "quick", png())
    decoders.stop()
    assert ended.index("quick") < 4


def test_mutated_files_give_an_image_or_a_documented_error(decoders: DecoderPool) -> None:
    before = decoder_pids()
    outcomes = {decode(decoders, data) for data in islice(mutants(7), 5000)}
    assert outcomes == {"decoded", "invalid_image", "image_too_large"}
    (process,) = set(decoder_pids()) - set(before)
    (peak,) = re.findall(rb"VmHWM:\s+(\d+) kB", _read_proc(process, "status"))
    assert int(peak) * 1024 < decoder.MEMORY


def test_conversion_is_not_charged_to_the_limit_of_decoding(hostile: DecoderPool) -> None:
    with pytest.raises(InvalidImage, match=r"^20\.0|^19\.9"):
        hostile.of(LOCAL).canonical(b"convert")
