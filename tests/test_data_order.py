import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tas_fast.data.order import balanced_subset, batch_bounds, generator, mix, shuffled, stratified_halves

targets_lists = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(torch.tensor)


@settings(deadline=None)
@given(targets_lists, st.integers(0, 100))
def test_halves_are_disjoint_and_cover_everything(targets, seed):
    first, second = stratified_halves(targets, seed)
    assert sorted(first.tolist() + second.tolist()) == list(range(len(targets)))
    assert first.tolist() == sorted(first.tolist())


@settings(deadline=None)
@given(targets_lists, st.integers(0, 100))
def test_halves_differ_by_at_most_one_image_per_class_and_in_all(targets, seed):
    first, second = stratified_halves(targets, seed)
    counts = [torch.bincount(targets[half], minlength=6) for half in (first, second)]
    assert (counts[0] - counts[1]).abs().max() <= 1
    assert 0 <= len(first) - len(second) <= 1


@settings(deadline=None)
@given(targets_lists, st.integers(0, 100))
def test_halves_depend_on_the_seed_alone(targets, seed):
    torch.manual_seed(seed + 1)
    once = stratified_halves(targets, seed)
    again = stratified_halves(targets, seed)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_halves_are_the_same_in_every_version_of_torch():
    first, second = stratified_halves(torch.arange(20) % 2, seed=7)
    assert first.tolist() == [0, 2, 3, 7, 9, 10, 15, 16, 18, 19]
    assert second.tolist() == [1, 4, 5, 6, 8, 11, 12, 13, 14, 17]


def test_another_seed_gives_other_halves():
    targets = torch.arange(200) % 10
    assert not torch.equal(stratified_halves(targets, 0)[0], stratified_halves(targets, 1)[0])


@settings(deadline=None)
@given(targets_lists, st.integers(1, 80))
def test_a_subset_has_the_asked_size_and_is_ascending(targets, limit):
    subset = balanced_subset(targets, limit).tolist()
    assert len(subset) == min(limit, len(targets))
    assert subset == sorted(set(subset))


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 6))
def test_a_subset_takes_classes_evenly(per_class, num_classes):
    targets = torch.arange(num_classes).repeat_interleave(per_class)
    counts = torch.bincount(
        targets[balanced_subset(targets, (per_class * num_classes + 1) // 2)], minlength=num_classes
    )
    assert counts.max() - counts.min() <= 1


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 200))
def test_batches_cover_every_place_once(num_images, batch_size):
    bounds = batch_bounds(num_images, batch_size, drop_last=False, merge_single=True)
    assert [place for start, stop in bounds for place in range(start, stop)] == list(range(num_images))


@settings(deadline=None)
@given(st.integers(2, 200), st.integers(2, 50))
def test_merging_leaves_no_batch_of_one(num_images, batch_size):
    bounds = batch_bounds(num_images, batch_size, drop_last=False, merge_single=True)
    assert min(stop - start for start, stop in bounds) >= 2


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 50))
def test_dropping_keeps_full_batches_alone(num_images, batch_size):
    bounds = batch_bounds(num_images, batch_size, drop_last=True, merge_single=True)
    assert [stop - start for start, stop in bounds] == [batch_size] * (num_images // batch_size)


@pytest.mark.parametrize(("merge", "sizes"), [(True, [4, 5]), (False, [4, 4, 1])])
def test_a_single_last_image_joins_the_batch_before_only_when_asked(merge, sizes):
    bounds = batch_bounds(9, 4, drop_last=False, merge_single=merge)
    assert [stop - start for start, stop in bounds] == sizes


def test_mix_separates_neighbours_and_fits_a_signed_word():
    numbers = {mix(seed, split, epoch) for seed in range(9) for split in ("train", "test") for epoch in range(9)}
    assert len(numbers) == 9 * 2 * 9
    assert all(0 <= number < 2**63 for number in numbers)


def test_mix_keeps_parts_apart():
    assert mix(1, 23) != mix(12, 3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40))
def test_shuffled_is_a_permutation_fixed_by_its_key(key):
    order = shuffled(list(range(30)), key)
    assert sorted(order) == list(range(30))
    assert order == shuffled(list(range(30)), key) != shuffled(list(range(30)), key, "other")


def test_generators_leave_the_global_one_alone():
    before = torch.get_rng_state()
    torch.rand(3, generator=generator(1, 2))
    assert torch.equal(before, torch.get_rng_state())
