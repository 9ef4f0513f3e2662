import itertools
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import write_cifar_batch, write_folder

from tas_fast.data import build_loader, cifar
from tas_fast.data.cifar import ARCHIVES, read_cifar
from tas_fast.data.plain_pickle import load_plain
from tas_fast.errors import UserError

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def small(monkeypatch):
    """Archives of 20 training and 4 test images."""
    monkeypatch.setattr(cifar, "NUM_IMAGES", {"train": 20, "test": 4})


def write_cifar10(folder: Path) -> Path:
    for number in range(1, 6):
        write_cifar_batch(folder / f"data_batch_{number}", 4)
    write_cifar_batch(folder / "test_batch", 4)
    return folder


@pytest.mark.parametrize("folder", [".", "cifar-10-batches-py"])
@pytest.mark.parametrize(("part", "count"), [("train", 20), ("test", 4)])
def test_cifar10_is_read_from_its_batches(tmp_path, small, folder, part, count):
    write_cifar10(tmp_path / folder)
    images = read_cifar("cifar10", tmp_path, part, None)
    assert images.pixels.shape == (count, 32, 32, 3)
    assert images.targets.tolist() == [0, 1, 2, 3] * (count // 4)
    assert images.classes[:2] == ("airplane", "automobile")


def test_cifar100_has_its_fine_labels(tmp_path, small):
    write_cifar_batch(tmp_path / "cifar-100-python/train", 20, "fine_labels", num_classes=100, coarse_labels=[0] * 20)
    images = read_cifar("cifar100", tmp_path, "train", None)
    assert images.targets.tolist() == list(range(20))
    assert len(images.classes) == 100


def test_rows_of_3072_are_red_green_blue_planes(tmp_path, small):
    data = np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 3072)
    write_cifar_batch(tmp_path / "test_batch", 4, data=data)
    pixels = read_cifar("cifar10", tmp_path, "test", None).pixels
    assert np.array_equal(pixels.numpy(), data.reshape(4, 3, 32, 32).transpose(0, 2, 3, 1))


def test_statistics_are_those_of_the_original_code():
    assert [round(255 * value, 6) for value in ARCHIVES["cifar10"].mean] == [125.3, 123.0, 113.9]
    assert [round(255 * value, 6) for value in ARCHIVES["cifar100"].std] == [68.2, 65.4, 70.4]


def test_another_image_size_is_made_once(tmp_path, small):
    write_cifar10(tmp_path)
    assert build_loader("cifar10", tmp_path, "test", 4, image_size=24).image_size == (24, 24)


def test_class_folders_of_images_are_read_too(tmp_path):
    write_folder(tmp_path, {f"train/{name}": 1 for name in ARCHIVES["cifar10"].classes}, size=(32, 32))
    loader = build_loader("cifar10", tmp_path, "train", 5)
    assert loader.mean == ARCHIVES["cifar10"].mean
    assert loader.num_images == 10


@pytest.mark.parametrize(
    ("counts", "size", "words"),
    [
        ({"train/a": 1, "train/b": 1}, (32, 32), "2 class folders, cifar10 has 10"),
        ({f"train/{number}": 1 for number in range(10)}, (8, 9), "is 9x8, cifar10 has 32x32"),
    ],
)
def test_other_class_folders_are_not_cifar(tmp_path, counts, size, words):
    write_folder(tmp_path, counts, size=size)
    with pytest.raises(UserError, match=words):
        read_cifar("cifar10", tmp_path, "train", None)


@pytest.mark.parametrize(("dataset", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_a_folder_without_cifar_is_told_what_belongs_there(tmp_path, dataset, folder):
    with pytest.raises(UserError, match=rf"{tmp_path} holds neither {folder}/.*https://.*train/<class>/"):
        read_cifar(dataset, tmp_path, "train", None)


def test_a_missing_batch_is_named(tmp_path, small):
    (write_cifar10(tmp_path) / "data_batch_3").unlink()
    with pytest.raises(UserError, match="data_batch_3 is missing"):
        read_cifar("cifar10", tmp_path, "train", None)


def test_a_wrong_number_of_images_is_named(tmp_path):
    write_cifar10(tmp_path)
    with pytest.raises(UserError, match=r"has 20 images in data_batch_1.* instead of 50000"):
        read_cifar("cifar10", tmp_path, "train", None)


@pytest.mark.parametrize(
    "content",
    [
        {"data": None},
        {"data": np.zeros((4, 3071), np.uint8)},
        {"data": np.zeros((4, 3072), np.float32)},
        {"labels": [0, 1, 2]},
        {"labels": [0, 1, 2, 10]},
        {"labels": ["0", "1", "2", "3"]},
    ],
    ids=["no data", "wrong width", "not bytes", "too few labels", "label too large", "labels are text"],
)
def test_a_file_that_is_no_batch_is_named(tmp_path, small, content):
    write_cifar_batch(tmp_path / "test_batch", 4, **content)
    with pytest.raises(UserError, match=f"{tmp_path / 'test_batch'} "):
        read_cifar("cifar10", tmp_path, "test", None)


@pytest.mark.parametrize("kept", [0, 1, 100, 5000])
def test_a_truncated_batch_is_named(tmp_path, small, kept):
    path = tmp_path / "test_batch"
    write_cifar_batch(path, 4)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=f"{path} cannot be read"):
        read_cifar("cifar10", tmp_path, "test", None)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_cannot_run_anything(tmp_path):
    path, marker = tmp_path / "test_batch", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"data": Malicious(marker)}))
    with pytest.raises(UserError, match=r"asks for posix\.mkdir"):
        load_plain(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "value", [np.array([{}], dtype=object), np.zeros(3, np.int64), np.zeros(2, "V4"), np.float64(1.0)]
)
def test_only_byte_arrays_are_read(tmp_path, value):
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps({"data": value}, protocol=2))
    with pytest.raises(UserError, match="cannot be read"):
        load_plain(path)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_byte_arrays_of_every_protocol_and_order(tmp_path, protocol, order):
    array = np.asarray(np.arange(12, dtype=np.uint8).reshape(3, 4), order=order)
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": array}, protocol=protocol))
    assert np.array_equal(load_plain(path)["data"].values, array)


def test_pickles_of_python_2_are_read(tmp_path):
    text = (
        b"(dp0\nS'data'\np1\n"
        b"cnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n"
        b"(I1\n(I1\nI3\ntp8\n"
        b"cnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'|'\np13\nNNNI-1\nI-1\nI0\ntp14\nb"
        b"I00\nS'\\x00\\x80\\xff'\np15\ntp16\nb"
        b"sS'labels'\np17\n(lp18\nI7\nas."
    )
    path = tmp_path / "batch"
    path.write_bytes(text)
    content = load_plain(path)
    assert content["labels"] == [7]
    assert content["data"].values.tolist() == [[0, 128, 255]]


@pytest.mark.skipif(not (SHARED / "data/cifar10-jpeg.tar.xz").is_file(), reason="needs the shared data")
def test_real_jpegs_are_read(tmp_path):
    names = iter(ARCHIVES["cifar10"].classes)
    with tarfile.open(SHARED / "data/cifar10-jpeg.tar.xz") as archive:
        for member in itertools.islice((member for member in archive if member.name.endswith(".jpg")), 10):
            path = tmp_path / "train" / next(names) / "image.jpg"
            path.parent.mkdir(parents=True)
            path.write_bytes(archive.extractfile(member).read())
    loader = build_loader("cifar10", tmp_path, "train", 10)
    images, targets = next(iter(loader))
    assert images.shape == (10, 3, 32, 32)
    assert torch.equal(targets.sort().values, torch.arange(10))
