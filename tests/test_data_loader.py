import itertools

import pytest
import torch
from data_samples import numbered_images, numbers_of, options
from hypothesis import given, settings
from hypothesis import strategies as st

from tas_fast.data import device as device_module
from tas_fast.data.augment import Augment
from tas_fast.data.device import DeviceLoader
from tas_fast.data.images import Images
from tas_fast.data.order import generator
from tas_fast.errors import UsageError, UserError

FULL = Augment(crop_padding=2, flip=True, cutout=3)


def noise(count: int, size: tuple[int, int] = (6, 5), channels: int = 3) -> Images:
    pixels = torch.randint(0, 256, (count, *size, channels), dtype=torch.uint8, generator=generator(count))
    return Images(
        pixels=pixels,
        targets=torch.arange(count) % 3,
        classes=("a", "b", "c"),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        ids=torch.arange(count),
        stamp=f"noise/{count}/{size}/{channels}",
    )


def assert_equal_batches(first, second):
    assert len(first) == len(second)
    for batch, other in zip(first, second, strict=True):
        assert all(torch.equal(tensor, same) for tensor, same in zip(batch, other, strict=True))


@settings(deadline=None)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 12), seed=st.integers(0, 5))
def test_an_epoch_holds_every_image_once_with_its_target(count, batch_size, seed):
    loader = DeviceLoader(numbered_images(count), options(batch_size=min(batch_size, count), seed=seed))
    for _ in range(2):
        pairs = [
            (n, t) for images, targets in loader for n, t in zip(numbers_of(images), targets.tolist(), strict=True)
        ]
        assert sorted(pairs) == [(number, number % 3) for number in range(count)]


@settings(deadline=None)
@given(count=st.integers(2, 40), seed=st.integers(0, 5), batch_size=st.integers(1, 9))
def test_a_search_epoch_pairs_the_whole_weight_half_with_the_whole_architecture_half(count, seed, batch_size):
    half = (count + 1) // 2
    loader = DeviceLoader(numbered_images(count), options("search", min(batch_size, half), seed=seed))
    seen = {"weight": [], "architecture": []}
    for images, targets, images_a, targets_a in loader:
        assert images.shape == images_a.shape
        assert targets.shape == targets_a.shape
        seen["weight"] += numbers_of(images)
        seen["architecture"] += numbers_of(images_a)
    assert sorted(seen["weight"]) == loader.halves["weight"]
    assert sorted(set(seen["architecture"])) == loader.halves["architecture"]
    assert len(seen["architecture"]) - len(set(seen["architecture"])) == count % 2


def test_search_targets_belong_to_their_images():
    for images, targets, images_a, targets_a in DeviceLoader(numbered_images(20), options("search")):
        assert [number % 3 for number in numbers_of(images)] == targets.tolist()
        assert [number % 3 for number in numbers_of(images_a)] == targets_a.tolist()


def test_both_halves_are_shuffled_anew_each_epoch():
    loader = DeviceLoader(numbered_images(40), options("search", 20))
    (first,), (second,) = list(loader), list(loader)
    assert numbers_of(first[0]) != numbers_of(second[0])
    assert numbers_of(first[2]) != numbers_of(second[2])


@settings(max_examples=40, deadline=None)
@given(data=st.data(), split=st.sampled_from(["train", "search", "test"]), limit=st.sampled_from([0, 2**30]))
def test_resuming_at_any_batch_continues_bit_by_bit(data, split, limit):
    device_module.EXPANDED_LIMIT = limit
    source, settings_ = noise(23), options(split, 4, augment=FULL, seed=5)
    loader = DeviceLoader(source, settings_)
    total = 2 * len(loader)
    taken = data.draw(st.integers(0, total - 1))
    stream = itertools.chain(iter(loader), iter(loader))
    list(itertools.islice(stream, taken))
    state = loader.state_dict()
    rest = list(stream)

    resumed = DeviceLoader(source, settings_)
    resumed.load_state_dict(state)
    again = list(resumed)
    if resumed.epoch < 2:
        again += list(resumed)
    assert_equal_batches(rest, again)
    assert resumed.state_dict() == loader.state_dict() == {"epoch": 2, "batch": 0, "seed": 5}


@pytest.fixture(autouse=True)
def _limit(monkeypatch):
    monkeypatch.setattr(device_module, "EXPANDED_LIMIT", device_module.EXPANDED_LIMIT)


@pytest.mark.parametrize("augment", [Augment(), FULL], ids=["plain", "augmented"])
@pytest.mark.parametrize("size", [(6, 5), (1, 1), (5, 8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_store_too_large_to_expand_gives_the_same_batches(augment, size, channels, monkeypatch):
    source, settings_ = noise(23, size, channels), options(augment=augment)
    expanded = list(DeviceLoader(source, settings_))
    monkeypatch.setattr(device_module, "EXPANDED_LIMIT", 0)
    assert_equal_batches(expanded, list(DeviceLoader(source, settings_)))


def test_batches_do_not_depend_on_the_global_generator():
    source, settings_ = noise(23), options(augment=FULL)
    torch.manual_seed(1)
    first = list(DeviceLoader(source, settings_))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert_equal_batches(first, list(DeviceLoader(source, settings_)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "search"}])
def test_seed_and_split_change_the_order(change):
    source = numbered_images(40)
    plain = next(iter(DeviceLoader(source, options(batch_size=20))))[0]
    other = next(iter(DeviceLoader(source, options(**{"batch_size": 20, **change}))))[0]
    assert numbers_of(plain) != numbers_of(other)


def test_epochs_differ_in_order_and_augmentation():
    source = noise(12)
    loader = DeviceLoader(source, options(batch_size=12, augment=FULL))
    (first,), (second,) = list(loader), list(loader)
    assert not torch.equal(first[0].sum((1, 2, 3)).sort().values, second[0].sum((1, 2, 3)).sort().values)


def test_the_stored_pixels_are_never_written():
    source = noise(23)
    before = source.pixels.clone()
    for images, _ in DeviceLoader(source, options(augment=Augment(cutout=3))):
        images.zero_()
    assert torch.equal(source.pixels, before)


def test_the_test_split_comes_in_order_whole_and_without_seed():
    for seed in (0, 1):
        loader = DeviceLoader(numbered_images(11), options("test", 5, seed=seed))
        assert [numbers_of(images) for images, _ in loader] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10]]


def test_breaking_off_an_evaluation_starts_the_next_one_over():
    loader = DeviceLoader(numbered_images(11), options("test", 5))
    for _ in loader:
        break
    assert sum(len(targets) for _, targets in loader) == 11


def test_breaking_off_training_keeps_the_position():
    loader = DeviceLoader(numbered_images(12), options(batch_size=4))
    first = [numbers_of(images) for images, _ in itertools.islice(loader, 1)]
    rest = [numbers_of(images) for images, _ in loader]
    assert sorted(itertools.chain(*first, *rest)) == list(range(12))


def test_another_epoch_starts_at_its_first_batch():
    loader = DeviceLoader(numbered_images(12), options(batch_size=4))
    next(iter(loader))
    loader.set_epoch(3)
    assert loader.state_dict() == {"epoch": 3, "batch": 0, "seed": 0}


def test_setting_the_current_epoch_keeps_a_resumed_position():
    loader = DeviceLoader(numbered_images(12), options(batch_size=4))
    loader.load_state_dict({"epoch": 2, "batch": 1, "seed": 0})
    loader.set_epoch(2)
    assert len(list(loader)) == 2


def test_the_position_moves_when_a_batch_is_handed_out():
    loader = DeviceLoader(numbered_images(12), options(batch_size=4))
    positions = [(loader.epoch, loader.batch) for _ in loader]
    assert positions == [(0, 1), (0, 2), (1, 0)]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"epoch": 0, "batch": 1, "seed": 7}, "seed 7.*--seed 7"),
        ({"epoch": 0, "batch": 3, "seed": 0}, "batch 3.*3 batches"),
        ({"epoch": 0, "batch": -1, "seed": 0}, "batch -1"),
    ],
)
def test_a_foreign_position_is_refused(state, words):
    with pytest.raises(UserError, match=words):
        DeviceLoader(numbered_images(12), options(batch_size=4)).load_state_dict(state)


@pytest.mark.parametrize(("split", "sizes"), [("train", [4, 5]), ("test", [4, 4, 1])])
def test_training_never_sees_a_batch_of_one(split, sizes):
    loader = DeviceLoader(numbered_images(9), options(split, 4))
    assert [len(targets) for _, targets in loader] == sizes
    assert len(loader) == len(sizes)


def test_dropping_the_last_batch():
    loader = DeviceLoader(numbered_images(11), options(batch_size=4, drop_last=True))
    assert [len(targets) for _, targets in loader] == [4, 4]


@pytest.mark.parametrize(
    ("split", "count", "drop_last", "words"),
    [
        ("train", 7, False, "8 is larger than the train set, which has 7"),
        ("search", 14, False, "8 is larger than the weight half.*has 7"),
        ("test", 7, True, "8 is larger than the test set, which has 7"),
    ],
)
def test_a_batch_larger_than_the_data_is_refused(split, count, drop_last, words):
    with pytest.raises(UsageError, match=words):
        DeviceLoader(numbered_images(count), options(split, 8, drop_last=drop_last))


def test_an_evaluation_batch_may_be_larger_than_the_data():
    (batch,) = DeviceLoader(numbered_images(7), options("test", 8))
    assert len(batch[1]) == 7


def test_one_image_cannot_be_split_into_halves():
    with pytest.raises(UsageError, match="two halves, it has 1 image"):
        DeviceLoader(numbered_images(1), options("search", 1))


@pytest.mark.parametrize("field", ["resized_crop", "color_jitter"])
def test_augmentation_of_the_torch_loader_is_refused(field):
    with pytest.raises(UsageError, match=f"{field}.*--loader torch"):
        DeviceLoader(noise(9), options(augment=Augment(**{field: 0.5})))


def test_loaders_of_the_same_data_share_one_store():
    source = noise(9)
    first = DeviceLoader(source, options("train", augment=FULL))
    second = DeviceLoader(source, options("search", augment=FULL))
    other = DeviceLoader(source, options("train"))
    assert first._store is second._store is not other._store


def test_stores_go_with_their_last_loader():
    source = noise(9)
    loader = DeviceLoader(source, options("train", augment=FULL))
    assert len(device_module._stores) >= 1
    key = next(key for key, store in device_module._stores.items() if store is loader._store)
    del loader
    assert key not in device_module._stores


def test_attributes_describe_the_data():
    loader = DeviceLoader(noise(9), options())
    assert (loader.num_classes, loader.in_channels, loader.image_size) == (3, 3, (6, 5))
    assert (loader.classes, loader.num_images, loader.halves) == (("a", "b", "c"), 9, None)


def test_batches_are_on_the_device_and_equal_those_of_the_cpu(device):
    source = noise(23)
    expected = list(DeviceLoader(source, options(augment=FULL)))
    batches = list(DeviceLoader(source, options(augment=FULL, device=device)))
    assert all(tensor.device.type == device.type for batch in batches for tensor in batch)
    for batch, other in zip(batches, expected, strict=True):
        # A GPU may fuse the multiplication and the addition of normalising into one rounding.
        torch.testing.assert_close(batch[0].cpu(), other[0], rtol=1e-6, atol=1e-6)
        assert torch.equal(batch[1].cpu(), other[1])
