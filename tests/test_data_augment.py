import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as naive

from tas_fast.data.augment import (
    Augment,
    Draws,
    Finish,
    augment_pixels,
    crop,
    crop_starts,
    cut_out,
    draw,
    expand,
)
from tas_fast.data.order import generator
from tas_fast.errors import UsageError

MEAN, STD = (0.48, 0.45, 0.4), (0.2, 0.3, 0.25)

augments = st.builds(Augment, crop_padding=st.integers(0, 5), flip=st.booleans(), cutout=st.integers(0, 7))
shapes = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))


def naive_pixels(image: torch.Tensor, draws: Draws, place: int, augment: Augment) -> torch.Tensor:
    """One image [H, W, C] flipped, bordered and cropped by torchvision."""
    channels_first = image.permute(2, 0, 1)
    if draws.mirror[place]:
        channels_first = naive.horizontal_flip(channels_first)
    bordered = naive.pad(channels_first, [augment.crop_padding] * 4)
    height, width = image.shape[:2]
    cropped = naive.crop(bordered, int(draws.top[place]), int(draws.left[place]), height, width)
    return cropped.permute(1, 2, 0)


def finish_like(pixels: torch.Tensor, **changes: object) -> Finish:
    """A `Finish` for images like `pixels` [N, H, W, C] on the CPU."""
    channels = pixels.shape[3]
    fields = {"cutout": 0, "device": pixels.device, "dtype": torch.float32, "channels_last": True, **changes}
    return Finish(MEAN[:channels], STD[:channels], pixels.shape[2], **fields)


def no_draws(pixels: torch.Tensor) -> Draws:
    return draw(len(pixels), Augment(), pixels.shape[1:3], generator(0))


def random_pixels(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(shape))


@settings(max_examples=60, deadline=None)
@given(shapes, augments, st.integers(0, 1000))
def test_a_batch_equals_torchvision_image_by_image(shape, augment, seed):
    pixels = random_pixels(shape)
    draws = draw(shape[0], augment, shape[1:3], generator(seed))
    expected = torch.stack([naive_pixels(image, draws, place, augment) for place, image in enumerate(pixels)])
    assert torch.equal(augment_pixels(pixels, draws, augment), expected)


@settings(max_examples=60, deadline=None)
@given(shapes, augments, st.integers(0, 1000))
def test_crops_from_an_expanded_store_equal_those_of_single_batches(shape, augment, seed):
    pixels = random_pixels(shape)
    order = torch.randperm(shape[0], generator=generator(seed))
    draws = draw(shape[0], augment, shape[1:3], generator(seed, "draws"))
    store = expand(pixels, augment)
    crops = crop(store, crop_starts(order, draws, store.shape, augment), shape[1:3])
    assert torch.equal(crops, augment_pixels(pixels[order], draws, augment))


@settings(deadline=None)
@given(shapes, augments)
def test_augmentation_leaves_its_input_alone(shape, augment):
    pixels = random_pixels(shape)
    before = pixels.clone()
    draws = draw(shape[0], augment, shape[1:3], generator(0))
    finish_like(pixels, cutout=augment.cutout)(augment_pixels(pixels, draws, augment), draws)
    assert torch.equal(pixels, before)


def test_a_mirrored_crop_of_known_pixels():
    pixels = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8).view(1, 2, 3, 1)
    draws = Draws(*(torch.tensor([value]) for value in (2, 0, 1, 0, 0)))
    crops = augment_pixels(pixels, draws, Augment(crop_padding=1, flip=True))
    assert crops.view(2, 3).tolist() == [[0, 6, 5], [0, 0, 0]]


def test_crop_offsets_are_uniform():
    draws = draw(90_000, Augment(crop_padding=4), (32, 32), generator(0))
    counts = torch.bincount(draws.top * 9 + draws.left, minlength=81)
    expected = 90_000 / 81
    # Chi-squared with 80 degrees of freedom exceeds 134 once in 10,000 draws.
    assert ((counts - expected) ** 2 / expected).sum() < 134


def test_half_of_the_images_are_mirrored():
    assert draw(40_000, Augment(flip=True), (8, 8), generator(0)).mirror.float().mean() == pytest.approx(0.5, abs=0.01)


def test_nothing_is_mirrored_without_flip():
    assert not draw(1000, Augment(crop_padding=4), (8, 8), generator(0)).mirror.any()


def test_switching_one_augmentation_keeps_the_numbers_of_the_others():
    with_flip = draw(50, Augment(crop_padding=2, flip=True), (8, 8), generator(3))
    without = draw(50, Augment(crop_padding=2), (8, 8), generator(3))
    assert all(torch.equal(getattr(with_flip, name), getattr(without, name)) for name in ("top", "left", "cut_row"))


@pytest.mark.parametrize("side", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_cutout_sets_the_clipped_square_to_zero(side, channels):
    draws = draw(40, Augment(cutout=side), (6, 9), generator(side))
    images = torch.randn(40, 6, 9, channels)
    expected = images.clone()
    for image, row, column in zip(expected, draws.cut_row.tolist(), draws.cut_column.tolist(), strict=True):
        top, left = row - side // 2, column - side // 2
        image[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 0
    cut_out(images, draws, side)
    assert torch.equal(images, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_that_of_torchvision(dtype, channels_last, channels):
    pixels = random_pixels((5, 4, 7, channels))
    images = finish_like(pixels, dtype=dtype, channels_last=channels_last)(pixels, no_draws(pixels))
    scaled = naive.to_dtype(pixels.permute(0, 3, 1, 2), torch.float64, scale=True)
    expected = naive.normalize(scaled, list(MEAN[:channels]), list(STD[:channels]))
    # One rounding to dtype, plus float32 arithmetic on values up to 3 where dtype is float32.
    torch.testing.assert_close(images.double(), expected, rtol=torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    assert images.dtype == dtype


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("cutout", [0, 2])
def test_images_have_the_asked_layout(layout, cutout):
    pixels = random_pixels((2, 5, 4, 3))
    finish = finish_like(pixels, cutout=cutout, channels_last=layout is torch.channels_last)
    assert finish(pixels, no_draws(pixels)).is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("field", "value"), [("crop_padding", -1), ("cutout", -2), ("resized_crop", 1.5), ("color_jitter", -0.1)]
)
def test_impossible_values_are_named(field, value):
    with pytest.raises(UsageError, match=f"{field} .*{value}"):
        Augment(**{field: value})
