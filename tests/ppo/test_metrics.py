"""Metrics of a batch against loops over the recorded episodes."""

import math

import pytest
import torch

from htrmrl_torchrl import keys
from htrmrl_torchrl.evaluation.report import evaluation_metrics
from htrmrl_torchrl.ppo.metrics import (
    critic_metrics,
    episode_outcomes,
    explained_variance,
    memory_metrics,
    process_metrics,
    training_metrics,
)  # fmt: skip
from tests.evaluation.reports import hand_made, two_runs
from tests.helpers import as_batch, assert_same, record
from tests.replay.test_storage import ragged


def some_batch(begin, end):
    recording = record(ragged(3), window=2, episodes=3)
    batch = as_batch(recording, begin, end, tasks=[1, 0, 1])
    generator = torch.Generator().manual_seed(0)
    batch["next", keys.SUCCESS] = torch.rand(*batch.shape, 1, generator=generator) < 0.2
    return recording, batch


def outcomes_by_loops(recording, batch, begin, end):
    rows = []
    for lane, steps in enumerate(recording.steps):
        for n, trial in enumerate(recording.trials[lane]):
            for k, episode in enumerate(trial):
                frames = [i for i, step in enumerate(steps) if (step.n, step.k) == (n, k)]
                if frames[0] >= begin and frames[-1] < end:
                    success = any(bool(batch["next", keys.SUCCESS][lane, i - begin]) for i in frames)
                    rows.append((float(success), sum(episode.rewards), k, [1, 0, 1][lane]))
    return rows


@pytest.mark.parametrize("begin,end", [(0, 40), (7, 29), (20, 22)])
def test_outcomes_of_whole_episodes(begin, end):
    recording, batch = some_batch(begin, end)
    out = episode_outcomes(batch)
    rows = outcomes_by_loops(recording, batch, begin, end)
    assert len(out) == len(rows)
    assert out["success"].tolist() == [row[0] for row in rows]
    assert_same(out["return"], torch.tensor([row[1] for row in rows], dtype=torch.float32))
    assert out["episode"].tolist() == [row[2] for row in rows]
    assert out["task"].tolist() == [row[3] for row in rows]


def test_outcomes_without_success_and_task():
    _, batch = some_batch(0, 40)
    out = episode_outcomes(batch.exclude(keys.TASK, ("next", keys.SUCCESS)))
    assert "success" not in out.keys() and not out["task"].any() and len(out) == len(episode_outcomes(batch))


def test_training_metrics_are_means_of_the_outcomes():
    recording, batch = some_batch(0, 40)
    metrics = training_metrics(batch, ["reach", "push"])
    rows = outcomes_by_loops(recording, batch, 0, 40)

    def mean(values):
        return pytest.approx(sum(values) / len(values), rel=1e-5)

    assert metrics["train/success"] == mean([row[0] for row in rows])
    assert metrics["train/return"] == mean([row[1] for row in rows])
    for task, name in enumerate(["reach", "push"]):
        assert metrics[f"train/success/{name}"] == mean([row[0] for row in rows if row[3] == task])
        assert metrics[f"train/return/{name}"] == mean([row[1] for row in rows if row[3] == task])
    assert training_metrics(batch, ["reach"])["train/return/task-1"] == metrics["train/return/push"]
    for k in {row[2] for row in rows}:
        assert metrics[f"train/success_by_episode/{k}"] == mean([row[0] for row in rows if row[2] == k])
        assert metrics[f"train/return_by_episode/{k}"] == mean([row[1] for row in rows if row[2] == k])


def test_where_there_is_no_success_none_is_reported():
    _, batch = some_batch(0, 40)
    metrics = training_metrics(batch.exclude(("next", keys.SUCCESS)), ["reach", "push"])
    assert "train/return_by_episode/0" in metrics and not any("success" in name for name in metrics)
    report = hand_made([[[0, 0]]], returns=[[[1, 4]]], tasks=["Ant-Dir"], benchmark="Ant-Dir", adaptation_episodes=1)
    assert evaluation_metrics(report) == {
        "eval/test_return": 4.0,
        "eval/test_return_by_episode/0": 1.0,
        "eval/test_return_by_episode/1": 4.0,
    }


def test_a_batch_in_which_no_episode_ends_has_no_outcomes():
    recording = record([[[9]]], window=2, episodes=3)
    metrics = training_metrics(as_batch(recording, 0, 5), ["only"])
    assert not any(math.isnan(value) for value in metrics.values()), metrics


def test_evaluation_metrics_are_those_of_the_report():
    """Worked out in tests/evaluation/test_report.py."""

    def about(value):
        return pytest.approx(value, abs=1e-10)

    assert evaluation_metrics(two_runs()) == {
        "eval/test_success": about(0.625),
        "eval/test_success/alpha": about(0.5),
        "eval/test_success/beta": 0.75,
        "eval/test_return": 157.0,
        "eval/test_return_by_episode/0": about(7.0),
        "eval/test_return_by_episode/1": about(107.0),
        "eval/test_return_by_episode/2": about(207.0),
        "eval/test_success_by_episode/0": about(5 / 12),
        "eval/test_success_by_episode/1": 0.75,
        "eval/test_success_by_episode/2": 0.5,
    }


def test_evaluation_metrics_weigh_tasks_equally_and_leave_out_those_not_played():
    success = [[[1, 1], [0, 1], [0, 1], [1, 0]]]
    returns = [[[1, 4], [2, 5], [3, 6], [0, 1]]]
    report = hand_made(
        success, returns=returns, task=[0, 0, 0, 1], tasks=["a", "b", "never"], adaptation_episodes=1, split="val"
    )
    assert evaluation_metrics(report) == {
        "eval/val_success": 0.5,
        "eval/val_success/a": 1.0,
        "eval/val_success/b": 0.0,
        "eval/val_return": 3.0,
        "eval/val_return_by_episode/0": 1.0,
        "eval/val_return_by_episode/1": 3.0,
        "eval/val_success_by_episode/0": pytest.approx((1 / 3 + 1) / 2, abs=1e-10),
        "eval/val_success_by_episode/1": 0.5,
    }


def test_memory_metrics_are_occupancy_and_age_in_episodes():
    recording, batch = some_batch(0, 40)
    held = ages = frames = 0
    for lane in range(3):
        for step in recording.steps[lane][:40]:
            windows = recording.drawn[lane, step.n, step.k]
            frames += 1
            held += len(windows)
            ages += sum(step.k - e for e, _ in windows)
    metrics = memory_metrics(batch)
    assert metrics["memory/occupancy"] == pytest.approx(held / (2 * frames))
    assert metrics["memory/window_age"] == pytest.approx(ages / held)
    assert memory_metrics(as_batch(record([[[3]]], window=2, episodes=1))) == {}
    assert memory_metrics(as_batch(record([[[3]]], window=2, episodes=2))) == {"memory/occupancy": 0.0}


def test_the_critic_by_task():
    """Lanes 0 and 2 play task 1, lane 1 task 0: perfect on one task and blind on the other, which pays little."""
    _, batch = some_batch(0, 40)
    target = torch.randn(*batch.shape, 1, generator=torch.Generator().manual_seed(1))
    target[1] *= 0.01
    batch[keys.STATE_VALUE] = target.clone()
    batch[keys.STATE_VALUE][1] = 0.0
    metrics = critic_metrics(batch, target, ["poor", "rich"])
    assert metrics["ppo/explained_variance/rich"] == pytest.approx(1)
    assert metrics["ppo/explained_variance/poor"] == pytest.approx(0, abs=1e-6)
    assert metrics["ppo/explained_variance"] > 0.999  # the mean hides it
    assert set(critic_metrics(batch.exclude(keys.TASK), target, ["only"])) == {
        "ppo/explained_variance",
        "ppo/explained_variance/only",
    }


def test_explained_variance():
    target = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    assert explained_variance(target, target) == pytest.approx(1)
    assert explained_variance(target + 7, target) == pytest.approx(1, abs=1e-4)
    assert explained_variance(torch.full_like(target, 3.0), target) == pytest.approx(0, abs=1e-5)
    assert explained_variance(-target, target) == pytest.approx(-3, abs=1e-4)


def test_process_metrics_see_memory_and_files_that_are_kept(tmp_path):
    before = process_metrics()
    kept = torch.ones(2**24)  # 64 MiB
    files = [(tmp_path / str(i)).open("w") for i in range(5)]
    after = process_metrics()
    for file in files:
        file.close()
    assert 60 < after["process/resident_mib"] - before["process/resident_mib"] < 70
    assert after["process/open_files"] - before["process/open_files"] == 5
    del kept
    assert process_metrics()["process/open_files"] == before["process/open_files"]
