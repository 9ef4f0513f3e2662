import sys

import pytest
import torch

from tas_fast.data import Augment, build_loader, default_augment
from tas_fast.data.digits import read_digits
from tas_fast.data.memory import available_memory
from tas_fast.data.synthetic import read_synthetic
from tas_fast.errors import UsageError, UserError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dataset": "cifar-10"}, r"data set 'cifar-10'; did you mean cifar10 .*Known: digits, "),
        ({"dataset": "Digits"}, "did you mean digits"),
        ({"dataset": "zzz"}, "unknown data set 'zzz'; Known: digits"),
        ({"split": "valid"}, "unknown split 'valid'.*train, test, search"),
        ({"loader": "devise"}, "unknown loader 'devise'; did you mean device"),
        ({"loader": "dali"}, "not available in this version"),
        ({"batch_size": 0}, "--batch-size must be 1 or more, got 0"),
        ({"image_size": 0}, "--image-size must be 1 or more"),
        ({"limit": 0}, "--limit must be 1 or more"),
        ({"workers": -1}, "--workers must be 0 or more, got -1"),
        ({"dtype": torch.uint8}, "floating-point"),
        ({"dataset": "folder"}, "--dataset folder needs --data-dir"),
    ],
)
def test_impossible_arguments_are_answered_in_one_line(arguments, words):
    fields = {"dataset": "digits", "data_dir": None, "split": "train", "batch_size": 8, **arguments}
    with pytest.raises(UsageError, match=words) as raised:
        build_loader(**fields)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("part", "count"), [("train", 1437), ("test", 360)])
def test_digits_have_fixed_parts(part, count):
    assert len(read_digits(part).targets) == count


def test_digits_are_split_by_class():
    shares = torch.bincount(read_digits("test").targets) / torch.bincount(read_digits("train").targets)
    assert (shares - 0.25).abs().max() < 0.01


def test_no_digit_is_in_both_parts():
    images = torch.cat([read_digits(part).pixels.flatten(1) for part in ("train", "test")])
    assert len(images.unique(dim=0)) == 1797


def test_digits_use_all_of_a_byte():
    pixels = read_digits("train").pixels
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert pixels.dtype == torch.uint8


def test_digits_are_normalised_by_their_training_images():
    images = torch.cat([batch[0] for batch in build_loader("digits", None, "train", 64, augment=Augment())])
    assert images.mean() == pytest.approx(0, abs=1e-4)
    assert images.std(correction=0) == pytest.approx(1, abs=1e-4)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        read_digits("train")


@pytest.mark.parametrize(("dataset", "channels"), [("digits", 1), ("synthetic", 3)])
@pytest.mark.parametrize("image_size", [None, 5, 16])
def test_embedded_sets_come_in_any_size(dataset, channels, image_size):
    loader = build_loader(dataset, None, "test", 50, image_size=image_size)
    side = image_size or {"digits": 8, "synthetic": 32}[dataset]
    assert (loader.image_size, loader.in_channels, loader.num_classes) == ((side, side), channels, 10)
    assert next(iter(loader))[0].shape == (50, channels, side, side)


def test_resized_digits_keep_their_brightness():
    plain, large = read_digits("test"), read_digits("test").resized(16)
    assert large.pixels.float().mean() == pytest.approx(float(plain.pixels.float().mean()), rel=0.02)


@pytest.mark.parametrize("size", [(32, 32), (9, 12)])
def test_synthetic_images_can_be_learnt(size):
    train, test = read_synthetic("train", num_images=400, size=size), read_synthetic("test", num_images=100, size=size)
    pixels = train.pixels.flatten(1).float()
    centres = torch.stack([pixels[train.targets == target].mean(0) for target in range(10)])
    predicted = torch.cdist(test.pixels.flatten(1).float(), centres).argmin(1)
    assert (predicted == test.targets).float().mean() > 0.95


def test_synthetic_images_are_always_the_same():
    torch.manual_seed(1)
    first = read_synthetic("train", num_images=70)
    torch.manual_seed(2)
    assert torch.equal(first.pixels, read_synthetic("train", num_images=70).pixels)
    assert not torch.equal(first.pixels, read_synthetic("test", num_images=70).pixels)


def test_synthetic_data_are_adjustable():
    images = read_synthetic("train", num_images=9, num_classes=4, channels=1, size=(5, 7))
    assert images.pixels.shape == (9, 5, 7, 1)
    assert images.targets.max() == 3


@pytest.mark.parametrize(
    ("dataset", "size", "loader", "augment"),
    [
        ("cifar10", (32, 32), "device", Augment(crop_padding=4, flip=True)),
        ("cifar100", (32, 32), "torch", Augment(crop_padding=4, flip=True)),
        ("digits", (8, 8), "device", Augment(crop_padding=1)),
        ("synthetic", (32, 32), "device", Augment(crop_padding=4)),
        ("folder", (48, 64), "device", Augment(crop_padding=6, flip=True)),
        ("imagenet", (224, 224), "device", Augment(crop_padding=28, flip=True)),
        ("imagenet", (224, 224), "torch", Augment(flip=True, resized_crop=0.08, color_jitter=0.4)),
    ],
)
def test_default_augmentation(dataset, size, loader, augment):
    assert default_augment(dataset, size, loader) == augment


def test_the_test_split_is_never_augmented():
    plain = torch.cat([batch[0] for batch in build_loader("digits", None, "test", 64)])
    asked = torch.cat([batch[0] for batch in build_loader("digits", None, "test", 64, augment=Augment(cutout=4))])
    assert torch.equal(plain, asked)


@pytest.mark.parametrize("split", ["train", "search", "test"])
def test_a_limit_keeps_classes_even(split):
    loader = build_loader("digits", None, split, 10, limit=40, augment=Augment())
    targets = torch.cat([tensor for batch in loader for tensor in batch[1::2]])
    assert loader.num_images == 40
    assert torch.bincount(targets).tolist() == [4] * 10


def test_halves_under_a_limit_are_numbers_of_the_whole_training_set():
    loader = build_loader("synthetic", None, "search", 5, limit=25, seed=3)
    whole = read_synthetic("train").targets
    counts = [torch.bincount(whole[loader.halves[name]], minlength=10) for name in ("weight", "architecture")]
    assert [int(count.sum()) for count in counts] == [13, 12]
    assert (counts[0] - counts[1]).abs().max() <= 1


def test_free_memory_lies_between_a_page_and_a_petabyte():
    assert 4096 < available_memory() < 2**50
