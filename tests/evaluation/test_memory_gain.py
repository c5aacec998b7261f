"""The gain from memory is exact for agents of known success, and 0 for agents that remember nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom
from tensordict.nn import TensorDictModule

from htrmrl_torchrl import evaluate, keys
from htrmrl_torchrl.agent import acting_policy, build_networks
from htrmrl_torchrl.envs.toy import GOALS
from htrmrl_torchrl.evaluation import EvaluationReport, ProtocolMismatchError
from htrmrl_torchrl.evaluation.intervals import DIFFERENCES, interval_over_goals, interval_over_runs
from htrmrl_torchrl.evaluation.report import evaluation_metrics
from tests.evaluation.reports import hand_made
from tests.evaluation.test_evaluator import shaken
from tests.evaluation.test_intervals import RATES, covered, drawn
from tests.evaluation.test_report import assert_equal
from tests.evaluation.test_trials import towards


def by_hand(**others):
    """Two runs; two goals of alpha and two of beta; three episodes to adapt and one that counts.

    Gains of the runs: alpha 1/2 and -1/2 (goal 0), 1 and 1/2 (goal 1); beta 0 and 0, 0 and -1.
    """
    success = [
        [[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1]],
        [[1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1]],
    ]
    without = [[[1, 0], [0, 0], [0, 0], [1, 0]], [[1, 1], [0, 0], [1, 1], [1, 1]]]
    about = {"without_memory": np.array(without, dtype=float), "task": [0, 0, 1, 1], "adaptation_episodes": 3}
    return hand_made(success, **(about | others))


# ------------------------------------------------------------------------------------------------------------ numbers


def test_the_gain_is_of_the_adaptation_episodes_after_the_first():
    report = by_hand()
    assert report.task_memory_gain() == {"alpha": 3 / 8, "beta": -1 / 4}
    assert report.memory_gain == 1 / 16
    assert report.success_rate == 0.75  # has no part in it


def test_its_intervals_are_paired_by_goal_and_by_run():
    report = by_hand()
    alpha, beta = np.array([0.0, 0.75]), np.array([0.0, -0.5])
    assert report.memory_gain_interval() == interval_over_goals([alpha, beta], scale=DIFFERENCES)
    assert report.memory_gain_interval(task="beta") == interval_over_goals([beta], scale=DIFFERENCES)
    runs = [(0.75 + 0.0) / 2, (0.0 - 0.5) / 2]
    assert report.memory_gain_interval(over="runs") == interval_over_runs(runs, scale=DIFFERENCES)
    with pytest.raises(ValueError, match=r"over='seeds' is unknown; choose goals or runs"):
        report.memory_gain_interval(over="seeds")


@pytest.mark.parametrize("tasks,goals", [(1, 5), (2, 10), (5, 2)])
def test_intervals_of_a_gain_cover_95_percent(tasks, goals):
    """Nine episodes on either side, of goals that differ; memory adds the same share of what is missing everywhere."""
    trials = 400
    for name in ("nearly 0", "half", "one high, the others 0"):
        rates = RATES[name](tasks)
        first = drawn(rates, goals=goals, episodes=9, trials=trials)
        better = first + (1 - first) * drawn(np.full(tasks, 0.1), goals=goals, episodes=9, trials=trials, seed=1)
        truth = (0.1 * (1 - rates)).mean()
        hits = covered(better - first, truth, lambda sample: interval_over_goals(sample, scale=DIFFERENCES))
        assert hits >= binom.ppf(1e-6, trials, 0.93), f"{name}: {hits} of {trials}"


def test_the_table_and_the_metrics_show_it():
    shown = str(by_hand()).partition("gain from memory")[2].splitlines()
    (a, b), (c, d), (e, f), (g, h) = (
        by_hand().memory_gain_interval(**how) for how in ({"task": "alpha"}, {"task": "beta"}, {}, {"over": "runs"})
    )
    assert shown == [
        ": success in episodes 2 to 3 minus that of 2 episodes that each start with an empty memory, sampled actions",
        "task            gain      95% over goals",
        f"alpha           0.38  {f'{a:.2f} to {b:.2f}':>18}",
        f"beta           -0.25  {f'{c:.2f} to {d:.2f}':>18}",
        f"all tasks       0.06  {f'{e:.2f} to {f:.2f}':>18}",
        f"2 runs, 95% over runs: {g:.2f} to {h:.2f}",
    ]
    plain = replace(by_hand(), without_memory=None)
    assert "gain" not in str(plain)
    assert evaluation_metrics(by_hand()) == {**evaluation_metrics(plain), "eval/test_memory_gain": 1 / 16}


def test_where_there_is_no_success_it_is_of_returns():
    about = {"task": [0, 0], "tasks": ["Ant-Dir"], "benchmark": "Ant-Dir", "adaptation_episodes": 2}
    report = hand_made(
        np.zeros((1, 2, 3)), returns=[[[1, 10, 0], [2, 30, 0]]], without_memory=np.array([[[4.0], [-6.0]]]), **about
    )
    assert report.memory_gain == 21.0
    assert report.memory_gain_interval() == interval_over_goals([np.array([6.0, 36.0])], scale=None)
    assert "return in episodes 2 to 2" in str(report)


# --------------------------------------------------------------------------------------------------- files, merging


def test_it_goes_into_a_file_and_comes_out_and_older_files_have_none(tmp_path):
    by_hand().save(tmp_path / "report.json")
    assert_equal(EvaluationReport.load(tmp_path / "report.json"), by_hand())
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["summary"]["memory_gain"] == 1 / 16
    assert content["summary"]["memory_gain_interval_over_goals"] == list(by_hand().memory_gain_interval())
    plain = replace(by_hand(), without_memory=None)
    plain.save(tmp_path / "plain.json")
    assert "memory" not in (tmp_path / "plain.json").read_text()
    assert_equal(EvaluationReport.load(tmp_path / "plain.json"), plain)
    with pytest.raises(ValueError, match="evaluate with memory_gain=True"):
        _ = plain.memory_gain


WRONG = {
    "an episode too many": np.zeros((2, 4, 3)),
    "another run": np.zeros((1, 4, 2)),
    "above 1": np.full((2, 4, 2), 1.5),
    "unknown": np.full((2, 4, 2), np.nan),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_cannot_be_is_refused_here_and_in_a_file(fault, tmp_path):
    with pytest.raises(ValueError, match="without_memory"):
        by_hand(without_memory=WRONG[fault])
    by_hand().save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    values = np.where(np.isnan(WRONG[fault]), None, WRONG[fault]).tolist()
    (tmp_path / "report.json").write_text(json.dumps({**content, "without_memory": values}))
    with pytest.raises(ValueError, match=r"report\.json is not an evaluation report"):
        EvaluationReport.load(tmp_path / "report.json")


def test_merging_keeps_it_and_refuses_half_of_it():
    names = ("success", "returns", "steps_to_success", "without_memory")
    parts = [
        replace(by_hand(), runs=[{"seed": run}], **{name: getattr(by_hand(), name)[run : run + 1] for name in names})
        for run in (0, 1)
    ]
    assert_equal(EvaluationReport.merge(parts), replace(by_hand(), runs=[{"seed": 0}, {"seed": 1}]))
    with pytest.raises(ProtocolMismatchError, match="episodes without memory"):
        EvaluationReport.merge([parts[0], replace(parts[1], without_memory=None)])


# ------------------------------------------------------------------------------------------------------------ playing


def remembering(knows):
    """Goes to the goals ``knows[k]`` in the k-th episode that it remembers, elsewhere to the opposite side."""
    lived = {}

    def act(observation, goal, is_init, trial_init):
        for lane, (begins, anew) in enumerate(
            zip(is_init.flatten().tolist(), trial_init.flatten().tolist(), strict=True)
        ):
            lived[lane] = 0 if anew else lived[lane] + begins
        where = torch.from_numpy(GOALS)[goal.squeeze(-1)]
        known = torch.tensor([[int(g) in knows.get(lived[lane], ())] for lane, g in enumerate(goal)])
        return towards(torch.where(known, where, -where), observation[:, :2])

    names = [keys.OBSERVATION, keys.GOAL, keys.IS_INIT, keys.TRIAL_INIT]
    return TensorDictModule(act, in_keys=names, out_keys=[keys.ACTION])


@pytest.mark.parametrize("protocol", ["strict", "sampled", "garage"])
@pytest.mark.parametrize("lanes", [1, 3, 4])
def test_an_agent_of_known_success_gains_exactly_what_it_remembers(lanes, protocol):
    """Goals have 2/3, 1, 2/3 and 1/3 in episodes 2 to 4, and 1, 0, 0 and 0 without memory."""
    agent = remembering({0: {0}, 1: {0, 1}, 2: {1, 2}, 3: {0, 1, 2, 3}})
    asked = {"protocol": protocol, "adaptation_episodes": 4, "goals_per_task": 4, "num_envs": lanes}
    report = evaluate(agent, "toy", memory_gain=True, **asked)
    assert report.success[0, :, :4].tolist() == [[1, 1, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
    assert report.without_memory.tolist() == [[[1] * 3, [0] * 3, [0] * 3, [0] * 3]]
    assert report.memory_gain == pytest.approx((-1 / 3 + 1 + 2 / 3 + 1 / 3) / 4, abs=1e-10)
    # All else is as without it.
    assert_equal(replace(report, without_memory=None), evaluate(agent, "toy", **asked))


def networks(*, encoder_kind="htrmrl", **sizes):
    torch.manual_seed(0)
    sizes = {"d_model": 8, **({} if encoder_kind == "mlp" else {"window": 2, "episodes": 3, "num_heads": 2}), **sizes}
    bounds = {"action_low": [-1.0] * 2, "action_high": [1.0] * 2}
    return build_networks(observation_dim=3, encoder_kind=encoder_kind, **bounds, **sizes)


@pytest.mark.parametrize("sizes", [{"encoder_kind": "mlp"}, {"episodes": 1}], ids=["mlp", "one window"])
def test_an_agent_without_memory_gains_exactly_nothing(sizes):
    """The noise is the same, also where goals are played in rounds."""
    report = evaluate(shaken(networks(**sizes), 0), "toy", adaptation_episodes=12, memory_gain=True, num_envs=3)
    assert np.array_equal(report.without_memory, report.success[..., 1:12])
    assert 0 < report.without_memory.mean() < 1 and report.memory_gain == 0.0


def test_an_agent_with_memory_does_not():
    """The control, and the way by hand: episodes of ``garage`` without adaptation begin with an empty memory."""
    agent = networks()
    for seed in range(4):  # until what is remembered decides
        shaken(agent, seed)
    report = evaluate(agent, "toy", adaptation_episodes=12, memory_gain=True, num_envs=4)
    assert not np.array_equal(report.without_memory, report.success[..., 1:12])
    by_hand = {"protocol": "garage", "adaptation_episodes": 0, "evaluation_episodes": 12, "goals_per_task": 4}
    assert np.array_equal(report.without_memory, evaluate(agent, "toy", num_envs=4, **by_hand).success[..., 1:])


def test_starts_are_the_same_too():
    """HalfCheetah's episodes begin at random, and idling returns what the start decides. (All goals at once.)"""
    idle = TensorDictModule(lambda o: torch.zeros(len(o), 6), in_keys=[keys.OBSERVATION], out_keys=[keys.ACTION])
    asked = {"goals_per_task": 3, "adaptation_episodes": 3, "horizon": 4}
    report = evaluate(idle, "HalfCheetah-Vel", memory_gain=True, **asked)
    assert np.array_equal(report.without_memory, report.returns[..., 1:3])
    assert len({*report.without_memory.flatten().tolist()}) == 6 and report.memory_gain == 0.0


@pytest.mark.parametrize(
    "asked,message",
    [
        ({"adaptation_episodes": 1}, "adaptation_episodes must be at least 2, received 1"),
        (
            {"protocol": "metaworld", "benchmark": "ML1:reach-v3"},
            "memory_gain is for strict, sampled and garage; metaworld",
        ),
    ],
)
def test_what_has_no_such_episodes_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        evaluate(networks(), **{"benchmark": "toy", "memory_gain": True, **asked})


def test_a_policy_that_remembers_earlier_trials_is_refused():
    policy = acting_policy(networks(scope="lane", max_episodes=2), scope="lane")
    with pytest.raises(ValueError, match="this policy remembers earlier trials, scope=lane"):
        evaluate(policy, "toy", memory_gain=True)
