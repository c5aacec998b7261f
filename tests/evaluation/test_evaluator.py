"""`evaluate` counts the same whoever steps the simulators, leaves no trace, and refuses what is not an agent."""

import hashlib
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.checkpoint import Checkpoint

from htrmrl_torchrl import HTrMRLAgent, evaluate, keys, make_env
from htrmrl_torchrl.agent.networks import load_networks
from htrmrl_torchrl.checkpoints.versions import versions
from htrmrl_torchrl.evaluation import PROTOCOLS, EvaluationReport, ExactPolicy
from htrmrl_torchrl.evaluation.intervals import SHARES, interval_over_runs
from tests.checkpoints.test_checkpoint import Run
from tests.evaluation.test_report import assert_equal
from tests.evaluation.test_trials import networks_for_toy, scripted

TOY = {"adaptation_episodes": 3}


def shaken(networks, seed):
    """Weights whose actions depend on what is remembered."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in networks.actor.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return networks


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Of two training seeds, far enough apart to succeed on different goals."""
    paths = []
    for seed in (0, 1):
        run = Run(tmp_path_factory.mktemp("run"), seed=seed)
        run.iterate(1 + seed)
        shaken(run.networks, seed)
        paths.append(run.save())
    return paths


# ---------------------------------------------------------------------------------------------------------- counting


@pytest.mark.parametrize("lanes,workers", [(1, 0), (3, 0), (20, 0), (3, 2)])
def test_lanes_and_workers_do_not_show_in_the_report(lanes, workers):
    policy = scripted({1: {2}, 2: {0, 2}}, by_mean={0, 1, 3})
    report = evaluate(policy, "toy", **TOY, num_envs=lanes, num_workers=workers, command="python here.py")
    success = [[[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 1]]]
    expected = EvaluationReport(
        benchmark="toy",
        split="test",
        benchmark_seed=0,
        protocol=PROTOCOLS["strict"].changed(adaptation_episodes=3),
        horizon=6,
        tasks=["hidden-goal"],
        task=np.zeros(4, dtype=int),
        goal=np.arange(4),
        success=np.array(success, dtype=float),
        returns=report.returns,
        steps_to_success=np.where(np.array(success) == 1, 6.0, np.nan),
        runs=[{"seed": 0}],
        versions=versions(),
        command="python here.py",
    )
    assert_equal(report, expected)
    # 1 at the goal and -1 at the opposite side, to what the toy's float32 positions allow
    assert np.abs(report.returns - (2 * expected.success - 1)).max() <= 1e-5
    assert_equal(report, evaluate(policy, "toy", **TOY, num_envs=4, command="python here.py"))  # returns, bit for bit


def test_garage_samples_in_the_episodes_that_count():
    knows = {episode: {1} if episode % 2 else {0, 1} for episode in range(10, 20)}
    report = evaluate(scripted(knows, by_mean=()), "toy", protocol="garage")
    assert report.protocol == PROTOCOLS["garage"] and report.success.shape == (1, 2, 20)
    assert report.goal.tolist() == [0, 1]
    assert report.success_rate == 0.75
    assert report.success_by_episode() == [0] * 10 + [1.0, 0.5] * 5


def test_sampled_plays_the_goals_of_strict_and_the_trials_of_garage():
    """Bit for bit: on as many goals the two differ in name only."""
    agent = shaken(networks_for_toy(), 0)
    sampled = evaluate(agent, "toy", protocol="sampled", num_envs=4)
    assert sampled.goal.tolist() == evaluate(agent, "toy").goal.tolist() == [0, 1, 2, 3]
    garage = evaluate(agent, "toy", protocol="garage", goals_per_task=4, num_envs=4)
    assert_equal(replace(sampled, protocol=garage.protocol), garage)
    assert np.any(sampled.success[..., 10:] != sampled.success[..., 10:11])  # each of the ten has noise of its own


def test_what_is_asked_for_in_place_of_the_protocols_is_played_and_noted():
    report = evaluate(
        scripted({1: {2}, 2: {1, 2}}, by_mean=()),
        "toy",
        split="val",
        goals_per_task=3,
        adaptation_episodes=1,
        evaluation_episodes=2,
        evaluation_actions="sampled",
        horizon=5,
        benchmark_seed=8,
        seed=4,
    )
    assert report.protocol == replace(
        PROTOCOLS["strict"],
        goals_per_task=3,
        adaptation_episodes=1,
        evaluation_episodes=2,
        evaluation_actions="sampled",
    )
    assert (report.split, report.horizon, report.benchmark_seed, report.runs) == ("val", 5, 8, [{"seed": 4}])
    assert report.success.tolist() == [[[0, 0, 0], [0, 0, 1], [0, 1, 1]]]
    assert report.steps_to_success[0, 2].tolist()[1:] == [5, 5]


def test_the_same_call_twice_gives_the_same_file(tmp_path):
    networks = shaken(networks_for_toy(), 0)
    reports = [evaluate(networks, "toy", **TOY, seed=seed) for seed in (2, 2, 3)]
    for index, report in enumerate(reports):
        report.save(tmp_path / str(index))
    first, again, other = ((tmp_path / str(index)).read_bytes() for index in range(3))
    assert first == again
    assert not np.array_equal(reports[0].returns, reports[2].returns) and first != other


# ------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_known_by_its_bytes_and_frames(checkpoints):
    report = evaluate(str(checkpoints[1]), "toy", **TOY, seed=7)
    digest = hashlib.sha256(checkpoints[1].read_bytes()).hexdigest()
    assert report.runs == [{"seed": 7, "checkpoint": str(checkpoints[1]), "sha256": digest, "frames": 2 * 54}]
    assert digest[:12] in str(report)


def test_a_checkpoint_is_read_without_a_draw_from_torchs_random_stream(checkpoints):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    evaluate(checkpoints[0], "toy", **TOY)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_checkpoint_its_networks_its_agent_and_its_policy_are_the_same(checkpoints):
    networks = load_networks(checkpoints[0])
    policy = ExactPolicy(load_networks(checkpoints[0]).policy)  # in float64, as the others are played
    reports = [
        evaluate(agent, "toy", **TOY) for agent in (checkpoints[0], networks, HTrMRLAgent(networks, num_envs=3), policy)
    ]
    for report in reports[1:]:
        assert report.runs == [{"seed": 0}]
        assert_equal(replace(report, runs=reports[0].runs), reports[0])


def test_several_checkpoints_are_one_report_with_an_interval_over_runs(checkpoints):
    report = evaluate(checkpoints, "toy", **TOY)
    single = [evaluate(path, "toy", **TOY) for path in checkpoints]
    assert_equal(report, EvaluationReport.merge(single))
    rates = [one.success_rate for one in single]
    assert rates[0] != rates[1]  # else the interval says nothing
    assert report.success_rate == pytest.approx(sum(rates) / 2, abs=1e-10)
    assert report.interval(over="runs") == interval_over_runs(rates, scale=SHARES)
    assert [run["frames"] for run in report.runs] == [54, 108]


# --------------------------------------------------------------------------------------------------- changes nothing


def weights_of(networks):
    parts = {"actor": networks.actor, "critic": networks.critic}
    return {(part, name): value.clone() for part, m in parts.items() for name, value in m.state_dict().items()}


@pytest.mark.parametrize("kind", ["networks", "policy"])
def test_training_goes_on_as_if_there_had_been_no_evaluation(kind):
    """Also where what is evaluated is the collector's policy, which carries the training memory, in mid-trial."""
    rollouts = []
    for evaluates in (False, True):
        networks = networks_for_toy(strategy="uniform")
        env = make_env("toy", num_envs=3, episodes_per_trial=3, seed=1)
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        now, seen = env.reset(), []
        for t in range(27):
            if evaluates and t in (0, 8, 20):
                agent = networks if kind == "networks" else networks.policy
                weights, memory = weights_of(networks), networks.memory.checkpoint_state()
                evaluate(agent, "toy", adaptation_episodes=1, num_envs=3)
                assert networks.memory.checkpoint_state() == memory
                after = weights_of(networks)
                assert after.keys() == weights.keys() and all(torch.equal(after[name], weights[name]) for name in after)
            stepped, now = env.step_and_maybe_reset(networks.policy(now))
            now = now.detach()
            seen.append(stepped.select(keys.ACTION, "window", keys.STATE_VALUE, keys.GOAL, keys.OBSERVATION).detach())
        rollouts.append(torch.stack(seen))
        rollouts.append((torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()))
    assert (rollouts[0] == rollouts[2]).all()
    assert rollouts[1] == rollouts[3]


def test_an_agent_in_mid_trial_goes_on_as_if_nothing_had_happened():
    """It sees the same and samples the same; and it has a memory, which another reward shows."""

    def actions(evaluates, reward=1.0):
        agent = HTrMRLAgent(shaken(networks_for_toy(), 0), num_envs=2, seed=5)
        torch.manual_seed(2)
        agent.reset()
        generator, seen = np.random.default_rng(0), []
        for t in range(12):
            seen.append(agent.act(generator.normal(size=(2, 3)).astype(np.float32)))
            if evaluates and t in (2, 7):
                evaluate(agent, "toy", adaptation_episodes=1)  # even between act and observe
            ends = np.array([t % 4 == 3, t % 5 == 4])
            agent.observe(np.array([reward * t, -1.0]), ends, np.zeros(2, dtype=bool))
        return np.stack(seen)

    undisturbed = actions(evaluates=False)
    assert np.array_equal(actions(evaluates=True), undisturbed)
    assert not np.array_equal(actions(evaluates=False, reward=-1.0), undisturbed)


def test_another_device_is_for_the_copy_that_plays():
    networks = networks_for_toy()
    for agent in (networks, HTrMRLAgent(networks), networks.policy):
        with pytest.raises((NotImplementedError, RuntimeError)):  # meta tensors have no values to act with
            evaluate(agent, "toy", **TOY, device="meta")
        assert {parameter.device.type for parameter in networks.policy.parameters()} == {"cpu"}


# ------------------------------------------------------------------------------------------------------- wrong input

WRONG = {
    "unknown benchmark": ({"benchmark": "toyy"}, "Unknown environment 'toyy'; nearest known: toy"),
    "unknown task": ({"benchmark": "ML1:reech-v3"}, "'reech-v3' .*nearest known: reach-v3"),
    "a factory": ({"benchmark": "math:floor"}, "'math:floor' is a factory, whose tasks and goals are unknown"),
    "unknown split": ({"split": "tset"}, r"Unknown split 'tset'; allowed are train, val, test \(nearest: test\)"),
    "unknown protocol": ({"protocol": "loose"}, "Protocol 'loose' is unknown; choose one of strict, sampled, garage"),
    "unknown actions": ({"evaluation_actions": "best"}, "evaluation_actions='best' is unknown"),
    "too many goals": ({"goals_per_task": 5}, "goals_per_task is 5 but must be at most 4, the goals that toy has"),
    "goals of Meta-World": ({"benchmark": "ML10", "goals_per_task": 51}, "goals_per_task is 51 .* at most 50"),
    "negative goals": ({"goals_per_task": -2}, "goals_per_task must be a whole number of at least 1, received -2"),
    "no goals": ({"goals_per_task": 0}, "goals_per_task must be a whole number of at least 1, received 0"),
    "negative adaptation": ({"adaptation_episodes": -1}, "adaptation_episodes .* at least 0, received -1"),
    "nothing that counts": ({"evaluation_episodes": 0}, "evaluation_episodes .* at least 1, received 0"),
    "no lanes": ({"num_envs": 0}, "num_envs must be a whole number of at least 1, received 0"),
    "negative workers": ({"num_workers": -1}, "num_workers must be from 0 to num_envs .*, received -1"),
    "negative seed": ({"seed": -1}, "seed must be a whole number of at least 0, received -1"),
    "fractional seed": ({"seed": 1.5}, r"seed must be a whole number of at least 0, received 1\.5"),
    "negative benchmark seed": ({"benchmark_seed": -1}, "benchmark_seed must be .*, received -1"),
    "no horizon": ({"horizon": 0}, "horizon must be a whole number of at least 1, received 0"),
    "too long": ({"benchmark": "ML10", "horizon": 501}, "horizon must be at most 500 in ML10, received 501"),
    "official toy": ({"protocol": "metaworld"}, "'toy' is none of Meta-World's own benchmarks"),
    "nobody": ({"agent": None}, "Received NoneType to evaluate; give a checkpoint's path, a HTrMRLAgent"),
    "no checkpoints": ({"agent": []}, r"Received \[\] to evaluate; give at least one"),
    "another module": ({"agent": torch.nn.Linear(3, 2)}, "Received Linear to evaluate"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_a_value_error_that_names_it(case):
    changes, message = WRONG[case]
    arguments = {"agent": networks_for_toy(), "benchmark": "toy", **TOY, **changes}
    with pytest.raises(ValueError, match=message):
        evaluate(arguments.pop("agent"), arguments.pop("benchmark"), **arguments)


@pytest.mark.parametrize("wrap", [lambda networks: networks, HTrMRLAgent, lambda networks: networks.policy])
def test_an_agent_for_other_observations_is_refused(wrap):
    other = networks_for_toy(observation_dim=5)
    with pytest.raises(ValueError, match=r"observations and actions of sizes \(5, 2\); this benchmark has \(3, 2\)"):
        evaluate(wrap(other), "toy", **TOY)


def foreign(kind, tmp_path, checkpoint):
    path = tmp_path / "foreign.torchrl"
    if kind == "directory":
        path.mkdir()
    elif kind == "another archive":
        Checkpoint(format="archive", progress={"frames": 3}, actor=torch.nn.Linear(1, 1)).save(path)
    elif kind == "another archive with our names":
        parts = {"agent": {"layers": 3}, "progress": {"step": 1}, "actor": torch.nn.Linear(1, 1)}
        Checkpoint(format="archive", **parts, critic=torch.nn.Linear(1, 1)).save(path)
    elif kind == "a checkpoint folder of torchrl":
        Checkpoint(format="directory", progress={"frames": 3}).save(path)
    else:
        whole = checkpoint.read_bytes()
        path.write_bytes({"text": b"hello", "empty": b"", "truncated": whole[: len(whole) // 2]}[kind])
    return path


FOREIGN = [
    "text", "empty", "truncated", "directory", "another archive", "another archive with our names",
    "a checkpoint folder of torchrl",
]  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused_by_name(kind, tmp_path, checkpoints):
    path = foreign(kind, tmp_path, checkpoints[0])
    for load in (lambda: evaluate(path, "toy", **TOY), lambda: HTrMRLAgent.from_checkpoint(path)):
        with pytest.raises(ValueError, match=r"foreign\.torchrl is not a checkpoint of this package"):
            load()


def test_no_file_is_refused_by_name(tmp_path):
    for path in (tmp_path / "nowhere.torchrl", str(tmp_path / "nowhere.torchrl")):
        with pytest.raises(FileNotFoundError, match=r"There is no checkpoint at .*nowhere\.torchrl"):
            evaluate(path, "toy", **TOY)


def test_a_foreign_file_shows_before_the_first_agent_is_played(tmp_path, checkpoints):
    played = tmp_path / "played"

    def act(observation):
        played.touch()
        return torch.zeros(len(observation), 2)

    policy = TensorDictModule(act, in_keys=[keys.OBSERVATION], out_keys=[keys.ACTION])
    with pytest.raises(ValueError, match="foreign"):
        evaluate([policy, foreign("text", tmp_path, checkpoints[0])], "toy", **TOY)
    assert not played.exists()
    evaluate([policy], "toy", **TOY)
    assert played.exists()
