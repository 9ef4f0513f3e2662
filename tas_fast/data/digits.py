"""scikit-learn's handwritten digits: 1797 real images of 8x8 grey pixels in ten classes, part of that package."""

from __future__ import annotations

import torch

from tas_fast.data.images import Images
from tas_fast.data.order import by_class, shuffled
from tas_fast.errors import UserError


def read_digits(part: str) -> Images:
    """The images of `part` ("train": 1437, "test": 360); a fixed fifth of every class is the test set.

    Pixel values 0..16 become 0..255; `mean` and `std` are those of the training images.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the digits data set comes with scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    pixels = (torch.from_numpy(digits.images) * (255 / 16)).round().to(torch.uint8)[..., None]
    targets = torch.from_numpy(digits.target).to(torch.int64)
    train, test = _split(targets)
    values = pixels[train].to(torch.float64) / 255
    index = train if part == "train" else test
    return Images(
        pixels=pixels[index],
        targets=targets[index],
        classes=tuple(map(str, digits.target_names)),
        mean=(float(values.mean()),),
        std=(float(values.std(correction=0)),),
        ids=torch.arange(len(index)),
        stamp=f"digits/{part}",
    )


def _split(targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    train: list[int] = []
    test: list[int] = []
    for members in by_class(targets):
        order = shuffled(members, "digits")
        # A fifth of the classes so far, rounded up: 35 to 37 of each class and 360 in all.
        tested = -(-(len(train) + len(test) + len(order)) // 5) - len(test)
        test.extend(order[:tested])
        train.extend(order[tested:])
    return torch.tensor(sorted(train)), torch.tensor(sorted(test))
