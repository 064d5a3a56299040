"""The price of memory, compared with a limit before a job is accepted."""

from __future__ import annotations

import pytest

from touchstone.engine.pieces import PART_VALUES, PIECE_BYTES
from touchstone.errors import CostTooHigh
from touchstone.methods import Footprint, catalogue, find, total_footprint
from touchstone.methods.memory_price import ImageSize, check_memory, memory_of
from touchstone.methods.prediction import Predict
from touchstone.settings import Settings

LIMIT = Settings.model_fields["job_memory"].default
NETWORK = 3 * 224 * 224
MIB = 2**20

WITHIN_4096 = {"fgsm", "pgd"}


def size(side: int) -> ImageSize:
    return ImageSize(side, side, input_values=NETWORK)


def test_bytes_are_tensors_of_the_image_and_of_a_piece() -> None:
    one = Footprint(images=3, many=50, each=2, inputs=5, values=7)
    assert one.rows(1000) == 3 + 2 * 50
    assert one.bytes(1000, 10) == 4 * (103 * 1000 + 50 + 7)
    assert Footprint(0, parts=2, lines=3).bytes(10**9, side=5) == 4 * (2 * PART_VALUES + 3 * 25)
    large = PIECE_BYTES  # values of which one is a piece
    assert one.rows(large) == 3 + 2


@pytest.mark.parametrize("name", catalogue())
def test_default_parameters_are_accepted_up_to_1024_pixels_a_side(name: str) -> None:
    check_memory(find(name)(), size(1024), LIMIT)


def test_prediction_of_the_largest_upload_is_accepted() -> None:
    check_memory(Predict(), size(4096), LIMIT)
    check_memory(Predict(defence="smoothing"), size(4096), LIMIT)


def test_refusal_names_the_limit_what_it_comes_to_and_what_would_fit() -> None:
    method, image = find("apgdt").parse({"rivals": 500}), ImageSize(1024, 512)
    with pytest.raises(CostTooHigh) as refused:
        check_memory(method, image, LIMIT)
    failure = refused.value
    rows, needed = total_footprint(method).rows(image.values), memory_of(method, image)
    assert failure.extra["memory"] == {"rows": rows, "bytes": needed, "limit": LIMIT}
    assert f"{-(-needed // MIB):,} MiB" in failure.detail
    assert f"{LIMIT // MIB:,} MiB" in failure.detail
    fits = failure.extra["fits"]
    assert f"rivals={fits['rivals']} or an image of {fits['width']}x{fits['height']} pixels" in failure.detail
    check_memory(find("apgdt").parse({"rivals": fits["rivals"]}), image, LIMIT)
    check_memory(method, ImageSize(fits["width"], fits["height"]), LIMIT)
    with pytest.raises(CostTooHigh):
        check_memory(find("apgdt").parse({"rivals": fits["rivals"] + 1}), image, LIMIT)


def test_limit_below_a_single_pixel_fits_nothing() -> None:
    with pytest.raises(CostTooHigh, match="no image fits"):
        check_memory(find("pgd")(), size(32), 1)


def test_populations_samples_and_averaged_gradients_cost_no_more_than_a_piece() -> None:
    image = size(1024)
    for name, few, many in (
        ("nes", {"samples": 20}, {"samples": 10_000}),
        ("zoo", {"batch": 20}, {"batch": 10_000}),
        ("pgd", {"eot": 20}, {"eot": 1_000}),
    ):
        costs = [memory_of(find(name).parse(asked), image) for asked in (few, many)]
        assert costs[0] == costs[1]
