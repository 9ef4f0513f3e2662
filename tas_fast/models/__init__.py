"""Networks, built by name at full size or from an `Architecture` at any size."""

from __future__ import annotations

from torch import nn

from tas_fast.architecture import SKELETONS, Architecture
from tas_fast.errors import UsageError
from tas_fast.models.resnet import ResNet

__all__ = ["ResNet", "build", "names"]


def names() -> tuple[str, ...]:
    """Return the names `build` knows."""
    return tuple(SKELETONS)


def build(
    name: str,
    num_classes: int,
    architecture: Architecture | None = None,
    *,
    in_channels: int = 3,
    image_size: int | tuple[int, int] | None = None,
) -> nn.Module:
    """Return a freshly initialised network: the unpruned `name`, or the smaller one that `architecture` describes.

    Args:
        name: one of `names()`.
        num_classes: outputs of the classifier.
        architecture: widths and depths; must belong to `name` and `num_classes`. Its image format wins over the rest.
        in_channels: channels of the images.
        image_size: height and width in pixels (or one number), for the count of MACs; the network takes any size.

    Raises:
        UsageError: unknown name, or an architecture of another model or number of classes.
    """
    if architecture is None:
        architecture = Architecture(name, num_classes, in_channels=in_channels, image_size=image_size)  # type: ignore[arg-type]
    if (architecture.model, architecture.num_classes) != (name, num_classes):
        raise UsageError(
            f"build: architecture is of {architecture.model} with {architecture.num_classes} classes, "
            f"asked for {name} with {num_classes}"
        )
    return ResNet(architecture)
