"""`python -m tas_fast.evaluate RUN`: the accuracy of a run's saved network on the test set of the run's data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tas_fast import artefact
from tas_fast.cli import Parser, load_yaml, run_program
from tas_fast.config import Config
from tas_fast.cost import count_macs, count_parameters
from tas_fast.engine import Precision, accuracy
from tas_fast.engine.run import find_device, open_data
from tas_fast.errors import UserError

PROGRAM = "python -m tas_fast.evaluate"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with `argv` (None: the process's own); returns the exit code."""
    parser = Parser(prog=PROGRAM, description="Measure the accuracy of a run's network.", allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("--weights", metavar="FILE", help="another safetensors file of the same architecture")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set is (default: where the run found it)")
    parser.add_argument("-b", "--batch-size", metavar="N", help="images per step (default: the run's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args(argv)
    changes = {"data_dir": arguments.data_dir, "batch_size": arguments.batch_size}
    given = {"data": {name: value for name, value in changes.items() if value is not None}}
    config = _config(Path(arguments.run)).updated(given, "command line")
    device = find_device(arguments.device)
    model = artefact.load(arguments.run, arguments.weights).to(device)
    loader = open_data(config, "test", device)
    precision = Precision(device, config.run.amp, config.run.amp_dtype)
    result = {
        "accuracy": accuracy(model, loader, precision),
        "images": loader.num_images,
        "precision": str(precision),
        "macs": count_macs(model, (loader.in_channels, *loader.image_size)),
        "parameters": count_parameters(model),
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"accuracy    {result['accuracy']:.2f} % of {result['images']} images, {precision}")
        print(f"MACs        {result['macs']:,}\nparameters  {result['parameters']:,}")
    return 0


def _config(folder: Path) -> Config:
    path = folder / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} is not the folder of a run: cannot read {path}: {error.strerror}") from None
    return Config().updated(load_yaml(text, str(path)), str(path))


if __name__ == "__main__":
    run_program(main)
