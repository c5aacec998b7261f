"""Faults in whole runs, as real processes, and what taking an update back means."""

import copy
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import SerialEnv, TransformedEnv

from htrmrl_torchrl import TrialTransform, keys, make_env
from htrmrl_torchrl.agent.heads import value_head
from htrmrl_torchrl.agent.networks import load_networks
from htrmrl_torchrl.checkpoints.checkpoint import latest_checkpoint, read_component
from htrmrl_torchrl.faults import NonFiniteError, WorkerFault
from htrmrl_torchrl.ppo.checks import check_losses, check_targets, clip_gradients
from htrmrl_torchrl.runs.guard import FaultGuard, TooManyFaults
from htrmrl_torchrl.runs.progress import Progress
from tests.helpers import WALKS, Walk, assert_same
from tests.ppo.test_parity import Pipeline
from tests.recipes.runs import python_path, wait_for

ROOT = Path(__file__).resolve().parents[2]
NAN = float("nan")


# ------------------------------------------------------------------------------------------------- taking updates back


def guard_of(pipeline, *, max_in_a_row=3, restart_workers=False, progress=None):
    return FaultGuard(
        max_in_a_row=max_in_a_row,
        restart_workers=restart_workers,
        progress=Progress(best_val_success=0.0) if progress is None else progress,
        memory=pipeline.networks.memory,
        loss=pipeline.loss,
        optimizer=pipeline.optimizer,
        rewards=pipeline.rewards,
    )


def step(pipeline, minibatch):
    losses = pipeline.loss(minibatch)
    check_losses(losses, minibatch, pipeline.loss)
    pipeline.optimizer.zero_grad()
    (losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]).backward()
    clip_gradients(pipeline.loss, 1.0)
    pipeline.optimizer.step()
    return losses["mean_ratio"].item()


def state_of(pipeline):
    parts = (pipeline.loss.state_dict(), pipeline.optimizer.state_dict()["state"], pipeline.rewards.state_dict())
    return copy.deepcopy(parts)


def leaves(tree):
    if isinstance(tree, dict | tuple):
        return [leaf for branch in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(branch)]
    return [tree]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def test_an_update_that_fails_in_its_middle_leaves_nothing_behind():
    """Weights, Adam's moments, normalisers; and the acting memory encodes the past with the old weights again."""
    pipeline = Pipeline("toy", {"value_norm": True})
    guard, states = guard_of(pipeline, progress=(progress := Progress(best_val_success=0.0))), []
    for number, batch in zip(range(3), guard.batches(pipeline.collector), strict=False):
        pipeline.buffer.empty()
        frames = pipeline.buffer.extend(batch)
        ends = torch.zeros_like(batch[keys.STATE_VALUE])
        states.append(state_of(pipeline))
        with guard.update():
            pipeline.rewards.adapt(batch)
            targets = pipeline.gae(pipeline.rewards(batch), final_values=ends)
            if number == 1:
                targets[keys.ADVANTAGE][2, 3] = NAN  # unseen until its minibatch comes
            pipeline.buffer.assign(frames, targets)
            value_head(pipeline.networks.critic).adapt(targets[keys.VALUE_TARGET])
            ratios = [step(pipeline, minibatch) for _ in range(2) for minibatch in pipeline.buffer]
        # The first minibatch's ratio: what was recorded was computed with the weights that stand.
        assert number == 1 or abs(ratios[0] - 1) <= 1e-5
    assert not same(states[0], states[1])  # the first update moved everything
    assert same(states[1], states[2])  # the second one nothing
    assert not same(states[2], state_of(pipeline))
    assert progress.faults == {"collecting": 0, "updating": 1, "evaluating": 0}


def test_a_loss_is_named_with_the_lanes_that_it_comes_from():
    pipeline = Pipeline("toy", {})
    batch = next(pipeline.collector.iterator())
    frames = pipeline.buffer.extend(batch)
    targets = pipeline.gae(batch, final_values=torch.zeros_like(batch[keys.STATE_VALUE]))
    pipeline.buffer.assign(frames, targets)
    pipeline.buffer._batch_size = 54
    (minibatch,) = list(pipeline.buffer)
    check_losses(pipeline.loss(minibatch), minibatch, pipeline.loss)
    minibatch[keys.LOG_PROB][minibatch["lane"] == 1] = -200.0  # this lane's ratio overflows
    with pytest.raises(NonFiniteError, match=r"is not finite \(.*\), from environments 1$"):
        check_losses(pipeline.loss(minibatch), minibatch, pipeline.loss)


def test_targets_whose_squares_overflow_are_refused_before_the_normaliser_sees_them():
    targets = Pipeline("toy", {}).gae(
        next(Pipeline("toy", {}).collector.iterator()), final_values=torch.zeros(3, 18, 1)
    )
    check_targets(targets)
    for value, name in ((NAN, "value_target"), (1e25, "square of value_target")):
        wrong = targets.clone()
        wrong[keys.VALUE_TARGET][2, 0] = value
        with pytest.raises(NonFiniteError, match=f"^{name} is not finite in environment 2"):
            check_targets(wrong)


def test_gradients_are_clipped_as_torch_does_and_named_before_they_spread():
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    for module, clip in (
        (ours, lambda m: clip_gradients(m, 0.5)),
        (theirs, lambda m: torch.nn.utils.clip_grad_norm_(m.parameters(), 0.5)),
    ):
        module.weight.grad, module.bias.grad = torch.arange(6.0).view(2, 3), torch.ones(2)
        module.norm = clip(module)
    assert torch.equal(ours.norm, theirs.norm) and torch.equal(ours.weight.grad, theirs.weight.grad)
    ours.weight.grad[1, 2] = NAN
    before = ours.bias.grad.clone()
    with pytest.raises(NonFiniteError, match=r"gradient of weight is not finite in row 1 \(nan\)"):
        clip_gradients(ours, 0.5)
    assert torch.equal(ours.bias.grad, before)


# --------------------------------------------------------------------------------------------------- collecting again


class Poisoned(Walk):
    """A walk whose observation is not finite in one step of its life."""

    def __init__(self, lengths, offset, at):
        super().__init__(lengths, offset)
        self.at, self.count = at, 0

    def _step(self, tensordict):
        result = super()._step(tensordict)
        self.count += 1
        if self.count == self.at:
            result[keys.OBSERVATION][1] = NAN
        return result


@pytest.mark.parametrize(
    "remembers",
    [
        {},
        {"scope": "lane", "max_episodes": 4},
        {"scope": "lane", "max_episodes": 4, "strategy": "recent"},  # shows how the broken-off episodes ended
        {"encoder_kind": "rl2"},
    ],
    ids=str,
)
def test_collection_begins_anew_also_where_batches_cut_trials(remembers):
    """The fault falls into the second batch, in the middle of a trial whose beginning the first one has brought."""
    pipeline = Pipeline("walks", remembers)
    lanes = [lambda i=i: Poisoned(WALKS[i], 0.3 * i, at=40 if i == 1 else -1) for i in range(3)]
    env = TransformedEnv(SerialEnv(3, lanes), TrialTransform(episodes_per_trial=3))
    collector = Collector(
        env, pipeline.networks.policy, frames_per_batch=75, total_frames=-1, auto_register_policy_transforms=False
    )
    guard = guard_of(pipeline, progress=(progress := Progress(best_val_success=0.0)))
    for number, batch in zip(range(4), guard.batches(collector), strict=False):
        assert all(value.isfinite().all() for value in batch.values(True, True))
        fresh = batch[keys.TRIAL_INIT][:, 0].flatten()
        assert fresh.all() if number < 2 else not fresh.all()
        assert progress.faults.get("collecting", 0) == (number > 0)
        pipeline.buffer.empty()
        frames = pipeline.buffer.extend(batch)
        columns = batch.select(keys.STATE_VALUE).rename_key_(keys.STATE_VALUE, keys.VALUE_TARGET)
        pipeline.buffer.assign(frames, columns.set(keys.ADVANTAGE, torch.ones(3, 25, 1)))
        for minibatch in pipeline.buffer:  # contexts come back from the storage as they were seen
            log_prob = pipeline.loss.actor_network.get_dist(minibatch).log_prob(minibatch[keys.ACTION])
            assert_same(log_prob, minibatch[keys.LOG_PROB])
    collector.shutdown()


def test_faults_in_a_row_end_the_run_and_completed_updates_begin_the_count_anew(capsys):
    pipeline = Pipeline("toy", {})
    guard = guard_of(pipeline)

    def fail():
        with guard.update():
            raise NonFiniteError("loss_critic is not finite (nan)")

    for _ in range(3):
        fail()
        fail()
        with guard.update():
            pass
    fail()
    with pytest.raises(WorkerFault, match="of a worker"):  # not to be restarted: it goes through, uncounted
        guard.evaluate(lambda: (_ for _ in ()).throw(WorkerFault("of a worker")))
    fail()
    with pytest.raises(TooManyFaults, match=r"^the run ended after 3 faults in a row .* while updating: loss_critic"):
        fail()
    assert capsys.readouterr().err.count("fault while updating") == 9


def test_a_policy_whose_actions_are_not_finite_ends_the_run():
    """New trials with the same weights don't help, and it is the actions that are named."""
    pipeline = Pipeline("toy", {})
    next(pipeline.networks.actor.parameters()).data.fill_(NAN)
    with pytest.raises(TooManyFaults, match=r"action is not finite in environments 0 \(nan\), 1 \(nan\), 2 \(nan\)"):
        next(guard_of(pipeline).batches(pipeline.collector))


def test_an_evaluation_is_repeated():
    guard, attempts = guard_of(Pipeline("toy", {})), []

    def run():
        attempts.append(None)
        if len(attempts) < 3:
            raise NonFiniteError("reward is not finite in environment 0 (inf)")
        return "report"

    assert guard.evaluate(run) == "report"


def test_what_is_counted_goes_on_with_the_run():
    """A continued run counts from what its checkpoint says, and its new environment from zero."""
    progress = Progress(best_val_success=0.0, faults={"collecting": 2}, divergences=5, worker_restarts=1)
    guard, env = guard_of(Pipeline("toy", {}), progress=progress), make_env("toy", num_envs=2)
    env._lanes.divergences = 3
    for _ in range(2):
        assert guard.metrics(env) == {
            "faults/collecting": 2.0,
            "faults/updating": 0.0,
            "faults/evaluating": 0.0,
            "env/divergences": 8.0,
            "env/worker_restarts": 1.0,
        }
    assert progress.divergences == 8


# --------------------------------------------------------------------------------------------------------- whole runs

# 8 lanes * 4 episodes * 6 steps = 192 frames an iteration, 24 steps of the lanes; a checkpoint after each.
TINY = ["env.num_envs=8", "loss.minibatch_frames=96", "checkpoint.every_frames=192"]


class Run:
    """A training process on `tests.faulty:factory`, and the processes that it leaves behind."""

    def __init__(self, run_dir, *overrides, **environment):
        self.token = f"FAULT_TEST={run_dir}"
        variables = {name.upper(): str(value) for name, value in environment.items()}
        command = [sys.executable, str(ROOT / "recipes" / "toy_ppo.py"), f"run_dir={run_dir}", *TINY]
        process = subprocess.Popen(
            [*command, "env.name=tests.faulty:factory", "total_frames=576", *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": python_path(ROOT), "FAULT_TEST": str(run_dir), **variables},
        )
        self.stdout, self.stderr = process.communicate(timeout=300)
        self.code, self.dir = process.returncode, run_dir

    def faults(self):
        return [line for line in self.stderr.splitlines() if line.startswith("fault while")]

    def metrics(self, *names):
        """Values by iteration."""
        with (self.dir / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [[float(row["value"]) for row in rows if row["metric"] == name] for name in names]

    def weights_are_good(self):
        networks = load_networks(latest_checkpoint(self.dir / "checkpoints")[0])
        return all(parameter.isfinite().all() for parameter in networks.actor.parameters())

    def wait_for_leftovers(self):
        """Waits until no process carries this run's mark; multiprocessing's resource tracker leaves a moment later."""
        wait_for(lambda: not self._marked(), what="the end of all its processes")

    def _marked(self):
        marked = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.token.encode() in path.read_bytes().split(b"\0"):
                    marked.append(path.parent.name)
            except OSError:
                continue
        return marked


def test_a_run_survives_an_observation_that_is_not_finite(tmp_path):
    run = Run(tmp_path / "run", fault="nan:30")
    assert run.code == 0, run.stderr
    assert run.faults() == [
        "fault while collecting, all environments begin new trials: observation is not finite in environment 7 (nan)"
    ]
    assert run.metrics("faults/collecting", "env/divergences") == [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    assert json.loads((run.dir / "summary.json").read_text())["progress"]["frames"] == 576  # the lost ones don't count
    (ratios,) = run.metrics("ppo/first_minibatch_ratio")
    assert len(ratios) == 3 and all(abs(ratio - 1) <= 1e-5 for ratio in ratios)


@pytest.mark.slow
def test_a_run_that_meets_nothing_but_faults_ends_with_a_sentence_and_can_go_on(tmp_path):
    run = Run(tmp_path / "run", fault="reward:30+")
    assert run.code == 3
    assert len(run.faults()) == 3
    last = run.stderr.strip().splitlines()[-1]
    assert (
        last.startswith("error: the run ended after 3 faults in a row")
        and "reward is not finite in environment 7" in last
    )
    assert "Traceback" not in run.stderr
    assert read_component(latest_checkpoint(run.dir / "checkpoints")[0], "progress")["frames"] == 192
    assert run.weights_are_good()
    run = Run(tmp_path / "run")  # the fault is mended
    assert run.code == 0, run.stderr
    assert run.metrics("ppo/first_minibatch_ratio")[0] == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.slow
def test_a_run_takes_an_update_back_and_goes_on(tmp_path):
    """A reward of 1e25 in the last step of an iteration: finite, but neither its square nor the critic's loss."""
    run = Run(tmp_path / "run", fault="huge_reward:48")
    assert run.code == 0, run.stderr
    (fault,) = run.faults()
    assert fault.startswith("fault while updating, the weights are those before the update: square of ")
    assert fault.endswith("in environment 7 (inf)")
    updating, kl = run.metrics("faults/updating", "ppo/kl")
    assert updating == [0.0, 1.0, 1.0] and len(kl) == 2
    assert run.weights_are_good()


WORKER_FAULTS = {
    "kill": "died with exit code -9",
    "stop": "did not answer within 10 s and was killed",
    "loop": "did not answer within 10 s and was killed",
    "raise": "the simulator exploded",
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in WORKER_FAULTS])
@pytest.mark.parametrize("restart", [False, True])
def test_a_failed_worker_ends_the_run_or_is_replaced(tmp_path, kind, restart):
    """A death is noticed by itself, in whatever time an answer may take."""
    limit = 10 if kind in ("stop", "loop") else 3600
    restart_workers, flag = f"env.restart_workers={restart}", tmp_path / "flag"
    run = Run(tmp_path / "run", restart_workers, fault=f"{kind}:30", fault_flag=flag, workers=2, timeout=limit)
    assert WORKER_FAULTS[kind] in run.stderr and "environment-worker-" in run.stderr
    run.wait_for_leftovers()
    if restart:
        assert run.code == 0, run.stderr
        assert run.metrics("env/worker_restarts", "faults/collecting") == [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    else:
        assert run.code == 1
        assert read_component(latest_checkpoint(run.dir / "checkpoints")[0], "progress")["frames"] == 192
    assert run.weights_are_good()


@pytest.mark.slow
def test_workers_that_die_every_time_end_the_run(tmp_path):
    run = Run(tmp_path / "run", "env.restart_workers=true", "faults.max_in_a_row=2", fault="kill:10+", workers=2)
    assert run.code == 3
    assert len(run.faults()) == 2
    assert run.stderr.strip().splitlines()[-1].startswith("error: the run ended after 2 faults in a row")
    run.wait_for_leftovers()
