"""Modules that hold parameters; `tas_fast.ops` computes."""

from tas_fast.nn.convert import Conversion, convert
from tas_fast.nn.fragment import FragmentBatchNorm2d, FragmentConv2d, FusedBatchNorm2d

__all__ = ["Conversion", "FragmentBatchNorm2d", "FragmentConv2d", "FusedBatchNorm2d", "convert"]
