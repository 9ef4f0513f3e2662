"""The whole program: files and report of a run, stopping and resuming, and what it says when something is wrong."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from kill_and_resume import FILES, again, finish, kill_after, outcome
from PIL import Image

import tas_fast
from tas_fast.architecture import Architecture
from tas_fast.engine.run import locked
from tas_fast.errors import UsageError, UserError
from tas_fast.report import read_report
from tas_fast.search import main, program

TINY = [
    *("--epochs", "2", "--train-epochs", "2", "--max-steps", "2", "--batch-size", "16", "--limit", "80"),
    *("--checkpoint-seconds", "0", "--device", "cpu"),
]
RESULTS = (*FILES, "config.yaml")


def arguments(folder, *more):
    return [*TINY, "--output", str(folder), "--experiment", "run", *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One tiny run, uninterrupted."""
    folder = tmp_path_factory.mktemp("finished")
    torch.set_num_threads(1)
    assert main(arguments(folder, "--compare")) == 0
    return folder / "run"


def test_run_folder_holds_what_the_design_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert {*RESULTS, "checkpoints", "metrics.jsonl", "tensorboard", "report.json", "report.html", "plots"} <= names
    assert len(list((finished / "checkpoints").iterdir())) == 3
    assert not [name for name in names if "tmp" in name]


def test_report_has_the_designed_fields(finished):
    report = json.loads((finished / "report.json").read_text())
    fields = "command version device backend seed dataset model method target unpruned pruned seconds"
    assert {*fields.split(), "search_step_ms", "images_per_second"} <= set(report)
    assert set(report["unpruned"]) == {"accuracy", "macs", "parameters"}
    assert set(report["seconds"]) == {"teacher", "search", "distill", "total"}
    assert 0 <= report["pruned"]["accuracy_without_distillation"] <= 100
    assert report["pruned"]["macs"] == Architecture.from_json(finished / "architecture.json").macs()
    assert "fragment_aggregate" in report["backend"]


def test_found_network_meets_the_target(finished):
    report = read_report(finished / "report.json")
    assert report.target["reached"]
    assert abs(report.pruned.macs / report.unpruned.macs - 0.5) <= 0.025


def test_saved_network_loads_and_evaluates(finished, capsys):
    from tas_fast.evaluate import main as evaluate

    assert tas_fast.load(finished)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert evaluate([str(finished), "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    report = read_report(finished / "report.json")
    assert result["accuracy"] == pytest.approx(report.pruned.accuracy)
    assert (result["macs"], result["parameters"]) == (report.pruned.macs, report.pruned.parameters)


def test_halves_are_disjoint_and_whole(finished):
    halves = json.loads((finished / "halves.json").read_text())
    assert not set(halves["weight"]) & set(halves["architecture"])
    assert len(halves["weight"]) + len(halves["architecture"]) == 80


def test_config_of_a_run_starts_the_same_run_again(finished, tmp_path):
    assert main(["--config", str(finished / "config.yaml"), "--output", str(tmp_path)]) == 0
    assert outcome(tmp_path / "run") == outcome(finished)


def test_resuming_a_finished_run_repeats_its_report(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert outcome(tmp_path / "run") == outcome(finished)


def test_killed_at_random_moments_the_result_is_identical(finished, tmp_path):
    """Ten kills in one run; `kill_and_resume.py` as a script gives each kill a run of its own."""
    chance, folder = random.Random(0), tmp_path / "run"
    first = arguments(tmp_path, "--compare")
    kills = sum(kill_after(again(first, folder), chance.uniform(0.1, 1.0)) for _ in range(10))
    assert kills >= 3
    finish(again(first, folder))
    assert outcome(folder) == outcome(finished)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_exits_and_says_how_to_go_on(tmp_path, signum):
    command = [sys.executable, "-m", "tas_fast.search", *arguments(tmp_path, "--epochs", "500")]
    root = Path(tas_fast.__file__).parents[1]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"search"' in metrics.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signum)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert (
        errors.strip()
        .splitlines()[-1]
        .endswith(f"continue with: python -m tas_fast.search --resume {tmp_path / 'run'}")
    )
    assert "Traceback" not in output + errors


def images(folder, size=(8, 8), classes=("cat", "dog"), count=6):
    for split in ("train", "test"):
        for name in classes:
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", size, (40 * number, 20, 200)).save(place / f"{number}.png")
    return folder


def _empty_class(folder):
    (folder / "train" / "fox").mkdir()


def _mixed_sizes(folder):
    Image.new("RGB", (9, 8)).save(folder / "train" / "cat" / "big.png")


def _corrupted(folder):
    path = folder / "train" / "dog" / "0.png"
    path.write_bytes(path.read_bytes()[:40])


FOLDER = ["--dataset", "folder", "--model", "resnet20", "-b", "4"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_empty_class, "fox"),
        (_mixed_sizes, "big.png.*--image-size"),
        (_corrupted, "0.png"),
        (shutil.rmtree, "train"),
    ],
)
def test_bad_folders_are_one_line_and_leave_nothing(tmp_path, change, words):
    data = images(tmp_path / "data")
    change(data)
    with pytest.raises(UserError, match=words) as error:
        main(arguments(tmp_path, *FOLDER, "--data-dir", str(data)))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_class_folders_are_searched(tmp_path):
    data = images(tmp_path / "data", size=(12, 8))
    assert main(arguments(tmp_path, *FOLDER, "--data-dir", str(data), "--epochs", "1", "--train-epochs", "1")) == 0
    assert Architecture.from_json(tmp_path / "run" / "architecture.json").image_size == (8, 12)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "resnet21"], "unknown model 'resnet21'; did you mean"),
        (["--dataset", "digit"], "digit.*did you mean.*digits"),
        (["--dataset", "folder"], "needs --data-dir"),
        (["--target-macs", "0.001"], r"out of reach: a shape search of resnet20 spans 0.0582 M to 2.533 M"),
        (["--target-macs", "3M"], "target of 3 M MACs is out of reach"),
        (["--num-fragments", "9"], "--num-fragments 9 is more than the 8 width candidates"),
        (["--device", "cuda:77"], "device cuda:77 asked for, but PyTorch sees"),
        (["--device", "toaster"], "unknown device 'toaster'"),
        (["--amp", "--amp-dtype", "float16"], "float16 needs a CUDA device"),
        (["--batch-size", "100"], "100"),
        (["--loader", "dali"], "dali"),
        (["--set", "data.cutout=-3"], "cutout must be at least 0, got -3"),
        (["--set", "train.momentum=-1"], r"momentum must be in \[0, 1\), got -1"),
        (["--set", "method.arch_beta1=1.5"], r"arch_beta1 must be in \[0, 1\)"),
        (["--clip-grad", "0"], "clip_grad must be greater than 0"),
        (["-b", "1"], "batch_size must be at least 2"),
        (["--no-distill", "--compare"], "remove one of them"),
    ],
)
def test_impossible_requests_are_usage_errors_and_write_nothing(tmp_path, more, words):
    with pytest.raises(UsageError, match=words) as error:
        main(arguments(tmp_path, *more))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_missing_data_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        main(arguments(tmp_path, *FOLDER, "--data-dir", str(tmp_path / "nowhere")))


def test_missing_teacher_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read weights .*absent.safetensors"):
        main(arguments(tmp_path, "--teacher", str(tmp_path / "absent.safetensors")))
    assert not (tmp_path / "run").exists()


def test_exploding_loss_ends_with_the_place_and_no_result(tmp_path):
    with pytest.raises(UserError, match=r"loss became nan in search, epoch 1, by step \d; lower method\.lr"):
        main(arguments(tmp_path, "--set", "method.lr=1e25"))
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert (tmp_path / "run" / "teacher.safetensors").exists()


@pytest.mark.parametrize("setting", ["method.macs_weight=1e38", "method.arch_lr=1e30"])
def test_exploding_architecture_is_one_line(tmp_path, setting):
    with pytest.raises(UserError, match=r"became (nan|inf) in search") as error:
        main(arguments(tmp_path, "--set", setting))
    assert "\n" not in str(error.value)


def test_results_that_are_gone_are_missed(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot read weights .*model\.safetensors"):
        main(["--resume", str(tmp_path / "run")])


def test_two_processes_do_not_share_a_run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    with locked(tmp_path / "run"), pytest.raises(UserError, match="another process is at work"):
        main(["--resume", str(tmp_path / "run")])


def test_what_a_killed_process_left_is_cleared(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / ".x.pt.12345678.tmp").write_bytes(b"half")
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert not list((tmp_path / "run").rglob(".*.tmp"))


def test_unusable_output_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="in the way"):
        main([*TINY, "--output", str(tmp_path / "file"), "--experiment", "run"])


def test_given_teacher_is_used(finished, tmp_path):
    teacher = finished / "teacher.safetensors"
    assert main(arguments(tmp_path, "--teacher", str(teacher))) == 0
    report = read_report(tmp_path / "run" / "report.json")
    assert report.unpruned.accuracy == read_report(finished / "report.json").unpruned.accuracy
    assert report.seconds.teacher == 0


def test_an_existing_run_is_not_overwritten(finished):
    with pytest.raises(UsageError, match="already holds a run; continue it with --resume"):
        main(arguments(finished.parent))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--epochs", "3"], "remove method.epochs"),
        (["--recipe", "paper", "--set", "run.seed=1"], "remove --recipe, --set"),
    ],
)
def test_resume_takes_no_other_settings(finished, more, words):
    with pytest.raises(UsageError, match=words):
        main(["--resume", str(finished), *more])


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(UsageError, match=r"has no config\.yaml"):
        main(["--resume", str(tmp_path)])


def test_installed_command_is_the_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tas-fast-search", "--epoch", "1"])
    with pytest.raises(SystemExit) as stop:
        program()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("tas_fast: unknown option --epoch")


@pytest.mark.parametrize(
    ("words", "code"), [(["--epoch", "1"], 2), (["--dataset", "folder", "--data-dir", "nowhere"], 1)]
)
def test_exit_codes_and_one_line(tmp_path, words, code):
    command = [sys.executable, "-m", "tas_fast.search", "--output", str(tmp_path), *words]
    root = Path(tas_fast.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert done.stderr.startswith("tas_fast: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("search", ["width", "depth"])
def test_width_and_depth_searches_run_to_their_report(tmp_path, search):
    more = ["--search", search, "--no-distill", "--epochs", "1", "--train-epochs", "1", "--target-macs", "0.6"]
    assert main(arguments(tmp_path, *more)) == 0
    found = Architecture.from_json(tmp_path / "run" / "architecture.json")
    if search == "width":
        assert found.depths == (3, 3, 3)
    else:
        assert found.has_full_widths
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["method"]["search"] == search


def test_options_of_the_training_are_accepted_together(tmp_path):
    more = [
        "--label-smoothing",
        "0.1",
        "--ema-decay",
        "0.9",
        "--mixup-alpha",
        "0.2",
        "--clip-grad",
        "1",
        "--amp",
        "-k",
        "3",
    ]
    assert main(arguments(tmp_path, *more, "--set", "method.unsampled_norms=skip", "--epochs", "1")) == 0
