"""Captions: what they cover, that they fit, and that the success mark is there when it should be."""

import numpy as np
import pytest

from htrmrl_torchrl.evaluation.overlay import Caption, draw_caption

GREEN = (46, 204, 113)
LONGEST = "button-press-topdown-wall-v3"  # of Meta-World's names


def caption(task="reach-v3", step=40, success=(False,), horizon=500, adaptation_episodes=10, evaluation_episodes=1):
    return Caption(
        task=task,
        step=step,
        horizon=horizon,
        adaptation_episodes=adaptation_episodes,
        evaluation_episodes=evaluation_episodes,
        success=success,
    )


def grey(size=256, width=None):
    return np.full((size, width or size, 3), 128, np.uint8)


def bright(picture):
    return (picture > 180).all(-1)


def test_the_episode_is_named_as_it_is_played():
    words = [caption(success=(False,) * n).episode for n in (1, 10, 11)]
    assert words == ["episode 1 of 11 (adapting)", "episode 10 of 11 (adapting)", "episode 11 of 11 (evaluating)"]
    assert caption(adaptation_episodes=0, evaluation_episodes=2).episode == "episode 1 of 2 (evaluating)"


def test_bands_are_drawn_and_the_middle_is_left_alone():
    picture = grey()
    drawn = draw_caption(picture, caption())
    assert (picture == 128).all() and drawn.shape == picture.shape and drawn.dtype == np.uint8
    assert (drawn[30:220] == 128).all()
    assert (drawn[:24].mean(-1) < 60).mean() > 0.7 and bright(drawn[:24]).any()
    assert (drawn[225:].mean(-1) < 80).mean() > 0.7 and bright(drawn[225:]).any()


@pytest.mark.parametrize("size", [128, 200, 256, 480])
@pytest.mark.parametrize("task", ["reach-v3", "peg-unplug-side-v3", LONGEST])
def test_no_text_is_cut_off_or_meets_another(size, task):
    drawn = draw_caption(grey(size), caption(task=task, step=500, success=(False,) * 11))
    unit = size // 64
    upper, lower = bright(drawn[: 6 * unit]), bright(drawn[-8 * unit : -2 * unit - 1])
    for band in (upper, lower):
        assert band.any()
        assert not band[:, : 2 * unit - 1].any() and not band[:, -2 * unit + 1 :].any()  # margins
        assert not band[0].any() and not band[-1].any()
    columns = np.flatnonzero(upper.any(0))
    assert (np.diff(columns) > 2 * unit - 2).any()  # a gap between name and step


def test_another_step_episode_or_task_is_another_picture():
    others = [caption(), caption(step=45), caption(success=(False, False)), caption(task="push-v3")]
    assert len({draw_caption(grey(), other).tobytes() for other in others}) == 4


def marked(drawn):
    """The green frame and the badge in the upper middle."""
    frame = (drawn[100, 0] == GREEN).all() and (drawn[100, -1] == GREEN).all() and (drawn[-1, 100] == GREEN).all()
    badge = (drawn[30:60, 60:196] == GREEN).all(-1).mean() > 0.3
    assert frame == badge
    return bool(frame)


def test_success_is_marked_for_the_present_episode_only():
    assert not marked(draw_caption(grey(), caption(success=(False,))))
    assert marked(draw_caption(grey(), caption(success=(False, True))))
    assert not marked(draw_caption(grey(), caption(success=(True, False))))  # the one before


def test_one_segment_an_episode_tells_how_the_trial_went():
    drawn = draw_caption(
        grey(), caption(adaptation_episodes=3, evaluation_episodes=1, success=(False, True, False), step=250)
    )
    line = drawn[-6, 8:248].astype(int)  # inside the margins, 60 pixels a segment
    colours = [tuple(line[column]) for column in (20, 80, 130, 170, 200)]
    assert colours == [(150, 156, 164), GREEN, (255, 255, 255), (70, 76, 84), (70, 76, 84)]  # half of the third


def test_many_episodes_still_have_their_segments():
    drawn = draw_caption(grey(), caption(adaptation_episodes=99, success=(True,) * 50, step=500))
    green = (drawn[-6] == GREEN).all(-1)
    assert green[8:120].all() and not green[140:248].any()


@pytest.mark.parametrize("shape", [(100, 256), (256, 127)])
def test_pictures_that_are_too_small_are_refused(shape):
    with pytest.raises(ValueError, match=rf"at least 128 x 128 pixels, received {shape[0]} x {shape[1]}"):
        draw_caption(grey(*shape), caption())
