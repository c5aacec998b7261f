"""Stages tell scripted experts, who stop where they are told, from idle agents; on the real simulator."""

import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase

from htrmrl_torchrl import evaluate, keys
from htrmrl_torchrl.evaluation.protocols import PROTOCOLS
from htrmrl_torchrl.evaluation.stages import STAGES, play_stages
from tests.experts import Experts

BENCHMARK = "custom:[drawer-close-v3]/[push-v3,pick-place-v3]"
SHORT = {"goals_per_task": 2, "adaptation_episodes": 1}
RULES = PROTOCOLS["strict"].changed(**SHORT)


@pytest.fixture(scope="module")
def experts():
    return Experts(BENCHMARK, "test", goals_per_task=2)


def test_experts_come_to_the_end_where_they_try_and_nowhere_else(experts):
    report = play_stages(
        experts.policy(lambda task, goal, episode: episode == 1 and goal == 0), BENCHMARK, RULES, horizon=150
    )
    assert report.tasks == ["pick-place-v3", "push-v3"]
    assert report.task.tolist() == [0, 0, 1, 1] and report.reached.shape == (4, 2, 4)
    near, grasped, in_place, success = report.reached.transpose(2, 0, 1)
    solved = [[0, 1], [0, 0], [0, 1], [0, 0]]  # goal 0, in the second episode
    assert near.tolist() == grasped.tolist() == success.tolist() == solved
    assert (in_place[:, 0] < 0.5).all() and (in_place[[0, 2], 1] > 0.9).all()
    by_task = report.by_task()
    assert by_task["push-v3"]["success"] == by_task["push-v3"]["grasped"] == 0.5
    assert by_task["push-v3"]["in place"] == pytest.approx(in_place[2:, 1].mean())
    assert str(report).splitlines()[0].split() == ["task", "near", "grasped", "in", "place", "success"]


class LetsGo(TensorDictModuleBase):
    """The expert until some step of an episode, then an open hand that stays where it is."""

    def __init__(self, expert, *, after):
        super().__init__()
        self.in_keys, self.out_keys = expert.in_keys, expert.out_keys
        self.expert, self.after, self.step = expert, after, 0

    def forward(self, td):
        self.step = 0 if td[keys.IS_INIT].all() else self.step + 1
        td = self.expert(td)
        if self.step >= self.after:
            td[keys.ACTION] = torch.tensor([0.0, 0.0, 0.0, -1.0]).expand(len(td), 4)
        return td


def test_one_who_lets_go_has_grasped_and_not_succeeded(experts):
    expert = experts.policy(lambda task, goal, episode: True)
    lost = play_stages(LetsGo(expert, after=35), BENCHMARK, RULES, horizon=150).by_task()["pick-place-v3"]
    kept = play_stages(LetsGo(expert, after=150), BENCHMARK, RULES, horizon=150).by_task()["pick-place-v3"]
    assert lost["near"] == lost["grasped"] == kept["grasped"] == kept["success"] == 1
    assert lost["success"] == 0 and lost["in place"] < kept["in place"]


@pytest.mark.parametrize("num_envs", [1, 3, 4])
def test_success_is_that_of_an_evaluation_whatever_the_lanes(num_envs, experts):
    policy = experts.policy(lambda task, goal, episode: (task + goal + episode) % 2 == 0)
    stages = play_stages(policy, BENCHMARK, RULES, num_envs=num_envs, horizon=150)
    report = evaluate(policy, BENCHMARK, split="test", horizon=150, **SHORT)
    assert stages.reached[..., STAGES.index("success")].tolist() == report.success[0].tolist()
    assert stages.task.tolist() == list(report.task)


def test_other_benchmarks_have_no_stages():
    with pytest.raises(ValueError, match="toy is not of Meta-World"):
        play_stages(TensorDictModule(lambda o: o, in_keys=["observation"], out_keys=["action"]), "toy", RULES)
