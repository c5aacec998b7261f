"""The recipe that records trials: files, their names, TensorBoard, refusals."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipes import video
from tests.recipes.runs import TINY, here, train_here

SMALL = ["adaptation_episodes=1", "every=3", "size=128"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with one checkpoint."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    train_here(run_dir, "total_frames=192", *TINY)
    return run_dir


@pytest.fixture
def recipe(monkeypatch, capsys):
    return here(monkeypatch, capsys, video, config_name="video")


@pytest.mark.parametrize(("kind", "begins"), [("mp4", b"ftyp"), ("gif", b"GIF8")])
def test_each_task_is_a_file_and_in_tensorboard(kind, begins, trained, recipe, tmp_path):
    out, error, code = recipe(f"checkpoint={trained}", *SMALL, f"format={kind}", f"out={tmp_path}", "goal=2", "seed=5")
    assert code == 0, error
    file = tmp_path / f"test_hidden-goal_goal2_seed5_000000000192.{kind}"
    assert begins in file.read_bytes()[:8]
    assert f"{file}: success in " in out and " of 2 episodes" in out
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["video/test/hidden-goal"]
    assert [event.step for event in events.Images("video/test/hidden-goal")] == [192]


def test_by_default_it_lies_in_the_run_folder(trained, recipe):
    _, error, code = recipe(f"checkpoint={trained}", *SMALL)
    assert code == 0, error
    assert len(list((trained / "videos").glob("*.mp4"))) == 1


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tasks=[reach-v3]", "tasks has 'reach-v3' but toy has hidden-goal in its split test"),
        ("tasks=[]", "tasks is [] but must be a list of names"),
        ("tasks=[1]", "tasks is [1] but must be a list of names"),
        ("goal=4", "goal is 4 but must be below 4"),
        ("size=64", "size is 64 but must be at least 128"),
        ("format=avi", "format is 'avi' but must be mp4 or gif"),
        ("every=0", "every is 0 but must be at least 1"),
        ("benchmark=ML11", "ML11"),
    ],
)
def test_what_cannot_be_is_one_sentence(override, expected, trained, recipe, tmp_path):
    _, error, code = recipe(f"checkpoint={trained}", *SMALL, f"out={tmp_path / 'new'}", override)
    assert code == 2 and error.startswith("error: ") and expected in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()
