"""Experiment trackers: every point is sent once, and a tracker that fails ends nothing."""

import csv
import json
import sys
from pathlib import Path

import pytest
import yaml
from torchrl.record.loggers.csv import CSVLogger

from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.runs import trackers
from htrmrl_torchrl.runs.loggers import RunLogger
from recipes.configuration.compose import load_config
from recipes.configuration.run_folder import remove_records
from tests.recipes.runs import run
from tests.runs.test_loggers import rows, steps

DEFAULT = ["csv", "tensorboard"]
OF_THE_MACHINE = ("time/", "process/")


class Local(CSVLogger):
    """TorchRL's logger that writes plain files, in place of a tracker that is not installed."""

    failing: bool = False

    def log_metrics(self, metrics, step=None, **others):
        if Local.failing:
            raise ConnectionError("the server\nis away")
        return super().log_metrics(metrics, step=step, **others)


@pytest.fixture
def local(tmp_path, monkeypatch):
    """The tracker ``wandb`` keeps its points in ``tmp_path/tracker/<identity>``; returns what reads their frames."""
    made = []

    def build(run_dir, identity):
        made.append(identity or f"own-{len(made)}")
        return Local(exp_name=made[-1], log_dir=str(tmp_path / "tracker")), made[-1]

    monkeypatch.setitem(trackers.TRACKERS, "wandb", build)
    monkeypatch.setattr(Local, "failing", False)
    monkeypatch.setattr("htrmrl_torchrl.runs.loggers.require", lambda *_: None)

    def points(identity="own-0"):
        (path,) = (tmp_path / "tracker" / identity).rglob("*success.csv")
        return [int(step) for step, _ in csv.reader(path.open())]

    points.made = made
    return points


def log(folder, frames, *, resume=None, loggers=(*DEFAULT, "wandb"), config=None):
    with RunLogger(folder, resume_from_frames=resume, loggers=loggers, config=config) as logger:
        for at in frames:
            logger.log({"train/success": at / 1000}, frames=at)


def test_a_continued_run_sends_no_point_twice(local, tmp_path):
    log(tmp_path / "run", [100, 200, 300])
    log(tmp_path / "run", [200, 300, 400, 500], resume=100)  # killed, and continued from an earlier checkpoint
    assert local.made == ["own-0", "own-0"] and local() == [100, 200, 300, 400, 500]
    assert [frames for frames, _, _ in rows(tmp_path / "run")] == [100, 200, 300, 400, 500]


def test_a_point_that_a_kill_may_have_sent_is_not_sent_again(local, tmp_path):
    log(tmp_path / "run", [100])
    path = tmp_path / "run" / trackers.RECORDS
    path.write_text(json.dumps({"wandb": {"identity": "own-0", "frames": 200}}))  # noted before it is sent
    log(tmp_path / "run", [200, 300], resume=100)
    assert local() == [100, 300]


def test_a_tracker_that_comes_later_begins_where_the_run_goes_on(local, tmp_path):
    log(tmp_path / "run", [100, 200, 300], loggers=DEFAULT)
    log(tmp_path / "run", [200, 300], resume=100, config={"seed": 1})
    assert local() == [200, 300]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"wandb": 1}', '{"wandb": {"identity": 1, "frames": 2}}'])
def test_a_damaged_record_begins_a_new_run_there(content, local, tmp_path):
    log(tmp_path / "run", [100])
    (tmp_path / "run" / trackers.RECORDS).write_text(content)
    log(tmp_path / "run", [200], resume=100)
    assert local() == [100] and local("own-1") == [200]


def test_starting_over_is_a_new_run_there(local, tmp_path):
    log(tmp_path / "run", [100, 200])
    log(tmp_path / "run", [100], resume=-1)
    assert local() == [100, 200] and local("own-1") == [100]


def test_a_failing_tracker_is_named_once_and_then_off(local, tmp_path, capsys):
    with RunLogger(tmp_path / "run", loggers=[*DEFAULT, "wandb"]) as logger:
        logger.log({"train/success": 0.1}, frames=100)
        Local.failing = True
        logger.log({"train/success": 0.2}, frames=200)
        Local.failing = False
        logger.log({"train/success": 0.3}, frames=300)
    said = "warning: the logger wandb failed (ConnectionError: the server is away) and is off; the run continues\n"
    assert capsys.readouterr().err == said
    assert local() == [100]
    assert (
        steps(tmp_path / "run", "train/success")
        == [frames for frames, _, _ in rows(tmp_path / "run")]
        == [100, 200, 300]
    )


def test_one_that_cannot_begin_is_named_too(tmp_path, monkeypatch, capsys):
    def build(run_dir, identity):
        raise SystemError("no key")

    monkeypatch.setitem(trackers.TRACKERS, "mlflow", build)
    monkeypatch.setattr("htrmrl_torchrl.runs.loggers.require", lambda *_: None)
    log(tmp_path, [100], loggers=["csv", "mlflow"])
    assert capsys.readouterr().err.count("the logger mlflow failed (SystemError: no key) and is off") == 1
    assert [frames for frames, _, _ in rows(tmp_path)] == [100] and not (tmp_path / "tensorboard").exists()


def test_a_full_disk_is_still_said_after_every_logger_has_had_its_turn(local, tmp_path, monkeypatch):
    logger = RunLogger(tmp_path / "run", loggers=[*DEFAULT, "wandb"])
    monkeypatch.setattr(logger._csv, "write", lambda _: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        logger.log({"train/success": 0.1}, frames=100)
    assert local() == [100] and steps(tmp_path / "run", "train/success") == [100]
    logger.close()


def test_other_loggers_change_no_byte_of_the_csv(local, tmp_path):
    for folder, loggers in (("with", [*DEFAULT, "wandb"]), ("without", DEFAULT)):
        log(tmp_path / folder, [100, 200], loggers=loggers)
    with_it, without = ((tmp_path / folder / "metrics.csv").read_bytes() for folder in ("with", "without"))
    assert with_it == without


def test_a_run_that_never_began_leaves_no_record(local, tmp_path):
    log(tmp_path / "run", [100])
    remove_records(tmp_path / "run")
    assert not (tmp_path / "run" / trackers.RECORDS).exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[csv,tensorbord]", "logger 'tensorbord' is unknown; choose from csv, tensorboard, wandb, mlflow, trackio."),
        ("[tensorboard]", "the loggers lack csv: metrics.csv is what a run's summary and its plots are made from."),
        ("wandb", "logger is 'wandb' but must be a list, as in [1,2]"),
        ("[csv,no_such]", "is unknown"),
        ("[csv,mlflow]", "mlflow is not installed: pip install 'htrmrl_torchrl[mlflow]'"),
    ],
)
def test_wrong_loggers_are_refused_before_anything_is_built(value, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError) as refused:
        load_config("toy_ppo", [f"logger={value}"])
    assert said in str(refused.value)


# ------------------------------------------------------------------------------------------------ one of them, for real


def records(folder: Path):
    """All records of a run of Weights & Biases that was kept offline, in the order of its sessions.

    Its files are logs of LevelDB after a header of 7 bytes: blocks of 32 KiB with pieces of records, each behind a
    checksum (4 bytes), a length (2) and a kind (1 whole, 2 first, 3 middle, 4 last).
    """
    from wandb.proto import wandb_internal_pb2

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content, place, record = path.read_bytes(), 7, b""
        while place + 7 <= len(content):
            if (left := 32768 - place % 32768) < 7:
                place += left
                continue
            size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
            record, place = record + content[place + 7 : place + 7 + size], place + 7 + size
            if kind in (1, 4):
                found = wandb_internal_pb2.Record()
                found.ParseFromString(record)
                record = b""
                yield found


@pytest.mark.slow
def test_weights_and_biases_for_real_and_offline(tmp_path, monkeypatch):
    try:
        import wandb  # noqa: F401
    except ImportError:
        pytest.fail("wandb is missing: pip install 'htrmrl_torchrl[wandb]', or make test-slow, which installs it")
    for name in ("WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    folder, loggers = tmp_path / "tracked", "logger=[csv,tensorboard,wandb]"
    run(folder, loggers, "total_frames=768")
    for path in [*(folder / "checkpoints").glob("*-000000000768.torchrl"), folder / "summary.json"]:
        path.unlink()  # as if it had been killed after it had logged its last iteration
    run(folder, loggers, "total_frames=768")
    run(tmp_path / "plain", "total_frames=768")

    seen = [*records(folder)]
    (identity,) = {record.run.run_id for record in seen if record.WhichOneof("record_type") == "run"}
    assert identity == json.loads((folder / trackers.RECORDS).read_text())["wandb"]["identity"]
    settings = {
        item.key: json.loads(item.value_json)
        for record in seen
        for item in (*record.run.config.update, *record.config.update)
    }
    assert settings["env.num_envs"] == 8 and settings["logger"] == ["csv", "tensorboard", "wandb"]
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in seen
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["train/step"] for row in history] == [192, 384, 576, 768]
    logged = {(frames, name): value for frames, name, value in rows(folder)}
    for row in history:
        for name, value in row.items():
            if not name.startswith(("_", *OF_THE_MACHINE)) and not name.endswith("/step"):
                assert value == logged[row["train/step"], name]
    # What is learned does not depend on who looks on.
    kept = [[row for row in rows(one) if not row[1].startswith(OF_THE_MACHINE)] for one in (folder, tmp_path / "plain")]
    assert kept[0] == kept[1]
    assert yaml.safe_load((folder / "config.yaml").read_text())["logger"] == ["csv", "tensorboard", "wandb"]
