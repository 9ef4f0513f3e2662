"""Layer shapes of the library's networks, used by every benchmark; ids read as network-stage."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerShape:
    """One convolution output: batch, channels of the unpruned layer, channels of a typical fragment, image side."""

    id: str
    batch: int
    channels: int
    narrow: int
    size: int


CIFAR = (
    LayerShape("resnet20-stage1", 128, 16, 9, 32),
    LayerShape("resnet20-stage2", 128, 32, 19, 16),
    LayerShape("resnet20-stage3", 128, 64, 38, 8),
)
IMAGENET = (
    LayerShape("resnet18-stage1", 32, 64, 38, 56),
    LayerShape("resnet18-stage4", 32, 512, 307, 7),
    LayerShape("resnet50-stage1", 32, 256, 153, 56),
)
ALL = CIFAR + IMAGENET
