import multiprocessing

import pytest
import torch
from data_samples import numbered_images, numbers_of, options, random_image, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from tas_fast.data import build_loader
from tas_fast.data.augment import Augment
from tas_fast.data.stream import StreamLoader
from tas_fast.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

RANDOM = Augment(crop_padding=1, flip=True, cutout=2, resized_crop=0.3, color_jitter=0.4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    counts = {f"{part}/{name}": count for part, count in (("train", 7), ("test", 2)) for name in ("cat", "dog")}
    return write_folder(tmp_path_factory.mktemp("images"), counts, size=(12, 10))


def assert_equal_batches(first, second):
    assert len(first) == len(second)
    for batch, other in zip(first, second, strict=True):
        assert all(torch.equal(tensor, same) for tensor, same in zip(batch, other, strict=True))


@pytest.mark.parametrize("split", ["train", "test", "search"])
@pytest.mark.parametrize("image_size", [None, 8, 16])
def test_files_give_the_same_batches_as_the_device_loader(folder, split, image_size):
    def batches(loader):
        return list(build_loader("folder", folder, split, 3, loader=loader, image_size=image_size, seed=4))

    assert_equal_batches(batches("torch"), batches("device"))


@pytest.mark.parametrize("dataset", ["digits", "synthetic"])
def test_decoded_sets_give_the_same_batches_as_the_device_loader(dataset):
    def batches(loader):
        augment = Augment(crop_padding=2, flip=True, cutout=3)
        return list(build_loader(dataset, None, "search", 20, loader=loader, augment=augment, limit=90))

    assert_equal_batches(batches("torch"), batches("device"))


def test_batches_do_not_depend_on_the_number_of_workers(folder):
    here = build_loader("folder", folder, "search", 3, loader="torch", augment=RANDOM)
    workers = build_loader("folder", folder, "search", 3, loader="torch", augment=RANDOM, workers=2)
    for _ in range(2):
        assert_equal_batches(list(here), list(workers))
    workers.close()


def test_breaking_off_with_workers_loses_and_repeats_nothing(folder):
    loader = build_loader("folder", folder, "train", 2, loader="torch", augment=RANDOM, workers=2)
    whole = list(build_loader("folder", folder, "train", 2, loader="torch", augment=RANDOM))
    batches = [next(iter(loader)) for _ in range(3)]
    assert_equal_batches(batches + list(loader), whole)
    loader.close()


def test_closing_ends_the_workers_and_iterating_starts_them_again(folder):
    loader = build_loader("folder", folder, "train", 2, loader="torch", workers=1)
    first = len(list(loader))
    loader.close()
    assert not multiprocessing.active_children()
    assert len(list(loader)) == first
    loader.close()
    loader.close()


@settings(max_examples=15, deadline=None)
@given(data=st.data(), split=st.sampled_from(["train", "search"]))
def test_resuming_at_any_batch_continues_bit_by_bit(folder, data, split):
    def make():
        return build_loader("folder", folder, split, 3, loader="torch", augment=RANDOM, seed=2)

    whole = make()
    batches = [batch for _ in range(2) for batch in whole]
    taken = data.draw(st.integers(0, len(batches) - 1))
    resumed = make()
    resumed.load_state_dict({"epoch": taken // len(whole), "batch": taken % len(whole), "seed": 2})
    rest = [batch for _ in range(2 - taken // len(whole)) for batch in resumed]
    assert_equal_batches(batches[taken:], rest)


def test_reading_leaves_the_global_generator_alone(folder):
    loader = build_loader("folder", folder, "train", 3, loader="torch", augment=RANDOM)
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(before, torch.get_rng_state())


def test_every_image_gets_its_own_random_crop():
    source = numbered_images(1, size=(9, 9))
    repeated = source.take(torch.zeros(6, dtype=torch.int64))
    repeated.pixels.copy_(torch.arange(81).view(9, 9, 1))
    (batch,) = StreamLoader(repeated, options(batch_size=6, augment=Augment(resized_crop=0.2)))
    assert len({tuple(image.flatten().tolist()) for image in batch[0]}) > 1


def test_every_image_comes_once_with_its_target():
    loader = StreamLoader(numbered_images(11), options(batch_size=3))
    pairs = [(n, t) for images, targets in loader for n, t in zip(numbers_of(images), targets.tolist(), strict=True)]
    assert sorted(pairs) == [(number, number % 3) for number in range(11)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_ends_in_one_line_that_names_it(tmp_path, workers):
    write_folder(tmp_path, {"train/cat": 3})
    damaged = tmp_path / "train/cat/001.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    loader = build_loader("folder", tmp_path, "train", 3, loader="torch", workers=workers)
    with pytest.raises(UserError) as raised:
        list(loader)
    assert str(damaged) in str(raised.value)
    assert "\n" not in str(raised.value)
    loader.close()


def test_a_file_of_another_size_ends_in_one_line_that_names_it(tmp_path):
    write_folder(tmp_path, {"train/cat": 3})
    random_image(9, 9).save(tmp_path / "train/cat/odd.png")
    with pytest.raises(UserError, match=r"000\.png is 8x8 and .*odd\.png is 9x9.*--image-size 8"):
        list(build_loader("folder", tmp_path, "train", 2, loader="torch"))


def test_evaluation_of_imagenet_crops_the_centre_of_a_larger_image(tmp_path, monkeypatch):
    monkeypatch.setattr("tas_fast.data.build.IMAGENET_CLASSES", 1)
    write_folder(tmp_path, {"train/cat": 1, "val/cat": 1}, size=(32, 32))
    (streamed,) = build_loader("imagenet", tmp_path, "test", 1, image_size=28)
    (resident,) = build_loader("imagenet", tmp_path, "test", 1, image_size=28, loader="device")
    (folder,) = build_loader("folder", tmp_path, "test", 1, image_size=32)
    torch.testing.assert_close(streamed[0], folder[0][:, :, 2:30, 2:30])
    assert streamed[0].shape == resident[0].shape
    assert not torch.equal(streamed[0], resident[0])
