"""Images in, batches out: `build_loader` is the one door; docs/data.md describes data sets, order and resuming."""

from tas_fast.data.augment import Augment
from tas_fast.data.build import DATASETS, LOADERS, SPLITS, build_loader, default_augment
from tas_fast.data.loader import Loader

__all__ = ["DATASETS", "LOADERS", "SPLITS", "Augment", "Loader", "build_loader", "default_augment"]
