"""What training shows of its inside: logged beside evaluations, said once, and kept over a restart."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from htrmrl_torchrl.agent.networks import build_networks
from htrmrl_torchrl.checkpoints.checkpoint import latest_checkpoint, read_component
from htrmrl_torchrl.inspection.progress import look_inside
from htrmrl_torchrl.runs.loggers import RunLogger
from htrmrl_torchrl.runs.progress import Progress
from tests.inspection.test_training import a_minibatch
from tests.recipes.runs import train_here
from tests.recipes.test_ppo import TINY, metrics


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return build_networks(
        observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2, d_model=16, episodes=4, window=3, num_heads=2
    )


def test_pictures_histograms_and_warnings_said_once(networks, tmp_path, capsys):
    minibatch = a_minibatch(networks)
    progress = Progress(frames=100, best_val_success=0.75)
    fallen = {"eval/val_success": 0.25, "eval/val_success/a": 0.25, "eval/test_success": 0.0}
    with RunLogger(tmp_path) as logger:
        look_inside(
            networks,
            minibatch,
            {"eval/val_success": 0.75, "eval/val_success/a": 0.75},
            progress,
            logger,
            total_frames=1000,
        )
        assert capsys.readouterr().err == ""
        progress.frames = 200
        seen = look_inside(networks, minibatch, fallen, progress, logger, total_frames=1000)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("warning at 200 frames: held-out success fell to 0.25 from its best of 0.75")
        look_inside(networks, minibatch, fallen, progress, logger, total_frames=1000)
        assert capsys.readouterr().err == ""
        taken_back = look_inside(networks, None, fallen, progress, logger, total_frames=1000)
        assert set(taken_back) == {"eval/val_forgetting", "eval/val_forgetting/a", "eval/val_test_gap", "time/inspect"}
    assert seen["eval/val_forgetting/a"] == 0.5 and seen["eval/val_test_gap"] == 0.25 and seen["time/inspect"] > 0
    assert progress.best_by_task == {"a": 0.75} and progress.warned == ["falling held-out success"]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("attention/maps")] == [100, 200, 200]
    assert set(events.Tags()["histograms"]) == {"action/1", "action/2", "std/1", "std/2"}
    histogram = events.Histograms("action/2")[0].histogram_value
    assert histogram.num == 96 and histogram.sum == pytest.approx(float(minibatch["action"][..., 1].sum()), rel=1e-4)


@pytest.mark.slow
def test_a_run_keeps_its_bests_over_a_restart(tmp_path):
    train_here(tmp_path / "run", "total_frames=384", *TINY)
    path, _ = latest_checkpoint(tmp_path / "run" / "checkpoints")
    first = metrics(tmp_path / "run")
    best = read_component(path, "progress")["best_by_task"]
    assert best == {"hidden-goal": float(first[384, "eval/val_success/hidden-goal"])}
    train_here(tmp_path / "run", "total_frames=768", *TINY)
    logged = metrics(tmp_path / "run")
    now = float(logged[768, "eval/val_success/hidden-goal"])
    expected = max(best["hidden-goal"], now) - now
    assert float(logged[768, "eval/val_forgetting/hidden-goal"]) == pytest.approx(expected)
    assert {frames for frames, name in logged if name == "attention/past_share"} == {384, 768}
