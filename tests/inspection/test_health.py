"""Each warning sign shows just beyond its threshold and not just below; healthy and untrained runs show none."""

import pytest

from htrmrl_torchrl.inspection import health
from htrmrl_torchrl.inspection.health import warning_signs

A_LITTLE = 1e-6
HEALTHY = {
    "attention/intra_evenness/1.1": 0.9,
    "attention/inter_evenness/1.1": 0.4,
    "attention/inter_evenness/1.2": 0.0,  # one sharp head of two is no collapse
    "memory/duplicates": 0.1,
    "memory/window_distance": 0.5,
    "eval/val_success": 0.5,
    "eval/val_forgetting/push-v3": 0.1,
}
# sign -> metrics on the quiet side of the threshold, and beyond it; what the line names
CASES = {
    "dead heads, inter": (
        {"attention/inter_evenness/2.3": health.DEAD_HEAD},
        {"attention/inter_evenness/2.3": health.DEAD_HEAD + A_LITTLE},
        "inter heads 2.3",
    ),
    "dead heads, intra": (
        {"attention/intra_evenness/1.1": health.DEAD_HEAD},
        {"attention/intra_evenness/1.1": 1.0},
        "intra heads 1.1",
    ),
    "collapsed attention, inter": (
        {"attention/inter_evenness/1.1": 2 * health.COLLAPSED},
        {"attention/inter_evenness/1.1": 2 * health.COLLAPSED - A_LITTLE},
        "all inter heads",
    ),
    "collapsed attention, intra": (
        {"attention/intra_evenness/1.1": health.COLLAPSED},
        {"attention/intra_evenness/1.1": health.COLLAPSED - A_LITTLE},
        "all intra heads",
    ),
    "saturated memory": (
        {"memory/duplicates": health.DUPLICATES},
        {"memory/duplicates": 0.75},
        "75% of the slots",
    ),
    "saturated memory, alike": (
        {"memory/window_distance": health.ALIKE},
        {"memory/window_distance": health.ALIKE - A_LITTLE},
        "nearly equal",
    ),
    "forgotten tasks": (
        {"eval/val_forgetting/push-v3": health.FORGOTTEN},
        {"eval/val_forgetting/push-v3": health.FORGOTTEN + 0.25},
        "push-v3 by 0.75",
    ),
    "falling held-out success": (
        {"eval/val_success": 0.75 - health.FALLING + A_LITTLE},
        {"eval/val_success": 0.75 - health.FALLING - A_LITTLE},
        "from its best of 0.75",
    ),
}


def signs(metrics):
    return warning_signs(HEALTHY | metrics, best_val_success=0.75 if "eval/val_success" in metrics else 0.5)


def test_a_healthy_run_is_left_in_peace():
    assert signs({}) == {} and warning_signs({}, best_val_success=-1.0) == {}


@pytest.mark.parametrize("case", CASES)
def test_a_sign_shows_beyond_its_threshold_only(case):
    quiet, beyond, said = CASES[case]
    assert signs(quiet) == {}
    shown = signs(beyond)
    assert list(shown) == [case.removesuffix(", alike")]
    (line,) = shown.values()
    assert said in line and "\n" not in line


@pytest.mark.parametrize("case", ["dead heads, inter", "dead heads, intra", "saturated memory, alike"])
def test_what_untrained_networks_show_counts_after_the_warm_up_only(case):
    beyond = HEALTHY | CASES[case][1]
    assert warning_signs(beyond, best_val_success=0.5, share_of_run=health.WARM_UP - A_LITTLE) == {}
    assert len(warning_signs(beyond, best_val_success=0.5, share_of_run=health.WARM_UP)) == 1


def test_several_tasks_are_one_line_the_worst_first():
    lost = {"eval/val_forgetting/reach-v3": 0.6, "eval/val_forgetting/sweep-v3": 0.9, "eval/val_forgetting/x": 0.2}
    assert "in sweep-v3 by 0.90, reach-v3 by 0.60" in signs(lost)["forgotten tasks"]
