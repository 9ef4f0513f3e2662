"""A network layer by layer and stage by stage, before and after pruning, for the plots and the page's table."""

from __future__ import annotations

from dataclasses import dataclass

from tas_fast.architecture import SKELETONS, Architecture, Block


@dataclass(frozen=True)
class Layer:
    """A convolution of the main path: output channels before and after, `width` 0 where its block was removed."""

    stage: int  # 0 for the stem, then 1, 2, ...
    full: int
    width: int


@dataclass(frozen=True)
class Part:
    """A stage, the stem or the classifier: widths of each kept block's convolutions, MACs before and after."""

    name: str
    blocks: int
    kept: int
    widths: tuple[tuple[int, ...], ...]
    macs: int
    kept_macs: int


def layer_stages(model: str, count: int) -> tuple[int, ...]:
    """Return the stage (0: stem) of each of `count` convolutions on the unpruned `model`'s main path.

    A model that is not known, or not known to have `count` of them, is one stage.
    """
    skeleton = SKELETONS.get(model)
    if skeleton is None or len(skeleton.full_widths()) != count:
        return (1,) * count
    blocks = enumerate(skeleton.blocks, 1)
    return (0, *(stage for stage, number in blocks for _ in range(number * skeleton.convs_per_block)))


def list_layers(architecture: Architecture) -> tuple[Layer, ...]:
    """Return every convolution of the unpruned network's main path with the width that `architecture` gives it."""
    skeleton = architecture.skeleton
    widths = iter(architecture.widths)
    layers = [Layer(0, skeleton.base_width, next(widths))]
    for stage, (blocks, depth) in enumerate(zip(skeleton.blocks, architecture.depths, strict=True)):
        for block in range(blocks):
            for full in skeleton.block_widths(stage):
                layers.append(Layer(stage + 1, full, next(widths) if block < depth else 0))
    return tuple(layers)


def list_parts(architecture: Architecture) -> tuple[Part, ...]:
    """Return stem, stages and classifier of `architecture` beside those of the unpruned network."""
    unpruned = Architecture(
        architecture.model,
        architecture.num_classes,
        in_channels=architecture.in_channels,
        image_size=architecture.image_size,
    )
    before, after = unpruned.plan(), architecture.plan()
    parts = [Part("stem", 1, 1, ((after.stem.out_channels,),), before.stem.macs, after.stem.macs)]
    for stage, blocks in enumerate(architecture.skeleton.blocks):
        kept = [block for block in after.blocks if block.stage == stage]
        widths = tuple(tuple(conv.out_channels for conv in block.convs) for block in kept)
        macs = [sum(_block_macs(block) for block in plan.blocks if block.stage == stage) for plan in (before, after)]
        parts.append(Part(f"stage {stage + 1}", blocks, len(kept), widths, *macs))
    classifier = [(plan.features + 1) * plan.num_classes for plan in (before, after)]
    return (*parts, Part("classifier", 1, 1, ((after.num_classes,),), *classifier))


def _block_macs(block: Block) -> int:
    shortcut = block.shortcut.macs if block.shortcut else 0
    return sum(conv.macs for conv in block.convs) + shortcut
