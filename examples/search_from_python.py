"""A search from Python: settings as values, the report as a value, the network as an ordinary module.

python examples/search_from_python.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import torch

import tas_fast
from tas_fast.config import Config
from tas_fast.search import run


def main(folder: Path) -> None:
    config = Config().updated(
        {
            "data": {"dataset": "synthetic", "image_size": 16, "limit": 256},
            "method": {"search": "width", "target_macs": "0.4", "epochs": 2},
            "train": {"epochs": 2},
            "run": {"amp": True, "seed": 1},
        },
        "this example",
    )
    report = run(config, folder)
    print(report.summary_table())

    model = tas_fast.load(folder)
    print(model.architecture.widths, model(torch.zeros(1, 3, 16, 16)).shape)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
