import numpy as np
import pytest
import torch
from data_samples import random_image, write_folder
from PIL import Image

from tas_fast.data import build_loader
from tas_fast.data.decode import decode, listed, read_rgb
from tas_fast.data.folder import read_folder
from tas_fast.errors import UsageError, UserError

COUNTS = {"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 2}


def rejected(root, part="train", image_size=None) -> str:
    with pytest.raises(UserError) as raised:
        decode(read_folder(root, part, image_size), workers=2)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_classes_are_the_sorted_folders_and_images_follow_by_name(tmp_path):
    images = decode(read_folder(write_folder(tmp_path, COUNTS), "train", None), workers=2)
    assert images.classes == ("cat", "dog")
    assert images.targets.tolist() == [0, 0, 0, 1, 1]
    expected = [np.array(Image.open(path)) for path in sorted(tmp_path.glob("train/*/*.png"))]
    assert torch.equal(images.pixels, torch.from_numpy(np.stack(expected)))


@pytest.mark.parametrize("name", ["test", "val"])
def test_the_test_set_may_be_called_test_or_val(tmp_path, name):
    write_folder(tmp_path, {"train/cat": 1, "train/dog": 1, f"{name}/dog": 2})
    assert read_folder(tmp_path, "test", None).targets.tolist() == [1, 1]


def test_images_need_not_be_square(tmp_path):
    write_folder(tmp_path, {"train/cat": 4}, size=(6, 9))
    loader = build_loader("folder", tmp_path, "train", 2)
    assert loader.image_size == (6, 9)
    assert next(iter(loader))[0].shape == (2, 3, 6, 9)


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (16, 16), (7, 50)])
def test_image_size_resizes_the_shorter_side_and_crops_the_centre(tmp_path, size):
    height, width = size
    (tmp_path / "train/cat").mkdir(parents=True)
    image = random_image(height, width)
    image.save(tmp_path / "train/cat/a.png")
    pixels = decode(read_folder(tmp_path, "train", 16), workers=0).pixels[0].numpy()
    scale = 16 / min(size)
    resized = np.array(image.resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR))
    top, left = round((resized.shape[0] - 16) / 2), round((resized.shape[1] - 16) / 2)
    assert np.array_equal(pixels, resized[top : top + 16, left : left + 16])


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("1", "png"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("CMYK", "jpg")]
)
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"image.{suffix}"
    random_image(5, 4, mode).save(path)
    image = read_rgb(str(path))
    assert (image.mode, image.size) == ("RGB", (4, 5))
    assert np.array(image).std() > 0


def test_a_palette_with_transparent_entries_becomes_rgb_without_a_warning(tmp_path):
    path = tmp_path / "image.png"
    random_image(5, 4, "P").save(path, transparency=bytes(range(200)))
    assert read_rgb(str(path)).mode == "RGB"


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.array([[0, 256, 32768, 65535]], dtype=np.uint16)).save(path)
    assert np.array(read_rgb(str(path)))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_files_that_begin_with_a_dot_are_skipped(tmp_path):
    write_folder(tmp_path, COUNTS)
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/cat/.DS_Store").write_bytes(b"x")
    assert len(read_folder(tmp_path, "train", None).paths) == 5


def test_a_missing_folder_is_named_with_the_expected_layout(tmp_path):
    message = rejected(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message
    assert "train/<class>/" in message


@pytest.mark.parametrize(("part", "present"), [("train", "test/cat"), ("test", "train/cat")])
def test_a_missing_part_is_named(tmp_path, part, present):
    write_folder(tmp_path, {present: 1})
    assert str(tmp_path / part) in rejected(tmp_path, part)


def test_a_part_without_classes_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    assert f"{tmp_path / 'train'} has no class folders" in rejected(tmp_path)


def test_an_empty_class_folder_is_named(tmp_path):
    write_folder(tmp_path, {**COUNTS, "train/fox": 0})
    assert f"{tmp_path / 'train/fox'} is empty" in rejected(tmp_path)


def test_files_of_zero_bytes_are_named(tmp_path):
    write_folder(tmp_path, COUNTS)
    empty = [tmp_path / "train/cat/x.png", tmp_path / "train/dog/y.png"]
    for path in empty:
        path.touch()
    assert all(str(path) in rejected(tmp_path) for path in empty)


@pytest.mark.parametrize("name", ["notes.txt", "labels", "sub/"])
def test_what_is_no_image_file_is_named(tmp_path, name):
    write_folder(tmp_path, COUNTS)
    path = tmp_path / "train/cat" / name
    path.mkdir() if name.endswith("/") else path.write_text("x")
    assert f"not image files: {path}" in rejected(tmp_path)


def test_classes_that_training_does_not_have_are_named(tmp_path):
    write_folder(tmp_path, {**COUNTS, "test/fox": 1})
    assert str(tmp_path / "test/fox") in rejected(tmp_path, "test")


def test_truncated_and_false_images_are_named_together(tmp_path):
    write_folder(tmp_path, COUNTS, size=(64, 64), suffix="jpg")
    truncated, false = tmp_path / "train/cat/001.jpg", tmp_path / "train/dog/000.jpg"
    truncated.write_bytes(truncated.read_bytes()[:2000])
    false.write_text("no image")
    message = rejected(tmp_path)
    assert message.startswith("2 image files cannot be read")
    assert str(truncated) in message
    assert f"{false} (not an image)" in message


def test_the_first_file_may_be_the_damaged_one(tmp_path):
    write_folder(tmp_path, COUNTS)
    (tmp_path / "train/cat/000.png").write_text("no image")
    assert "000.png (not an image)" in rejected(tmp_path)


def test_a_folder_of_damaged_files_alone_is_refused(tmp_path):
    write_folder(tmp_path, {"train/cat": 2})
    for path in (tmp_path / "train/cat").iterdir():
        path.write_text("no image")
    assert "none of the image files can be read" in rejected(tmp_path)


def test_mixed_sizes_name_two_files_and_the_remedy(tmp_path):
    write_folder(tmp_path, {"train/cat": 2})
    random_image(9, 7).save(tmp_path / "train/cat/odd.png")
    message = rejected(tmp_path)
    assert "000.png is 8x8" in message
    assert "odd.png is 7x9" in message
    assert "--image-size 8" in message


def test_mixed_sizes_are_fine_with_an_image_size(tmp_path):
    write_folder(tmp_path, {"train/cat": 2})
    random_image(9, 7).save(tmp_path / "train/cat/odd.png")
    assert decode(read_folder(tmp_path, "train", 8), workers=1).pixels.shape == (3, 8, 8, 3)


def test_long_lists_are_cut():
    assert listed([str(number) for number in range(8)]) == "0, 1, 2, 3, 4 and 3 more"
    assert listed(["0", "1"]) == "0, 1"


def test_too_large_a_set_is_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr("tas_fast.data.memory.available_memory", lambda: 2**20)
    monkeypatch.setattr("tas_fast.data.device.decode", lambda *_: pytest.fail("decoded"))
    write_folder(tmp_path, COUNTS)
    with pytest.raises(UserError, match=r"5 images of 1000x1000 need 0\.\d GiB.*--loader torch"):
        build_loader("folder", tmp_path, "train", 2, image_size=1000)


def test_the_batch_size_is_checked_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr("tas_fast.data.device.decode", lambda *_: pytest.fail("decoded"))
    write_folder(tmp_path, COUNTS)
    with pytest.raises(UsageError, match="batch size 9"):
        build_loader("folder", tmp_path, "train", 9)


def test_changed_files_are_read_again(tmp_path):
    write_folder(tmp_path, {"train/cat": 2, "test/cat": 2})
    first = build_loader("folder", tmp_path, "test", 2)
    random_image(seed=77).save(tmp_path / "test/cat/000.png", compress_level=0)
    second = build_loader("folder", tmp_path, "test", 2)
    assert not torch.equal(next(iter(first))[0], next(iter(second))[0])


def test_imagenet_must_have_its_thousand_classes(tmp_path):
    write_folder(tmp_path, COUNTS)
    with pytest.raises(UserError, match=r"2 class folders.*1000"):
        build_loader("imagenet", tmp_path, "train", 2)
