"""Memories in the worker processes of TorchRL's collectors: they follow the weights, and draw windows of their own."""

from functools import partial

import pytest
import torch
from torchrl.collectors import Collector, MultiAsyncCollector, MultiSyncCollector
from torchrl.collectors.distributed import DistributedCollector
from torchrl.weight_update import SharedMemWeightSyncScheme

from htrmrl_torchrl import EpisodicMemory, EpisodicReplayBuffer, EpisodicStorage, keys, make_env
from htrmrl_torchrl.agent.networks import build_networks
from htrmrl_torchrl.memory import episodic as memory_module
from htrmrl_torchrl.memory.processes import EPISODES_A_WORKER, worker_number
from tests.helpers import assert_same

LANES, WORKERS, STEPS = 2, 2, 17  # trials have 3 episodes of 6 steps: batches end in the middle of the third one
SMALL = {"window": 3, "episodes": 3, "d_model": 8, "num_heads": 2, "intra_layers": 1, "inter_layers": 1}
make_toy = partial(make_env, "toy", num_envs=LANES, episodes_per_trial=3)


class Counting(EpisodicMemory):
    """Trusts torch's count of changes, as an earlier version did; the negative control."""

    def _follow_weights(self, state):
        version = sum(t._version for table in self._watched for t in table.values())
        if version != getattr(self, "_version", None):
            super()._follow_weights(state)
        self._version = version


def build(**choices):
    torch.manual_seed(0)
    networks = build_networks(observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2, **(SMALL | choices))
    for parameter in networks.actor.parameters():  # initial heads hardly look at what they are given
        parameter.data += 0.3 * torch.randn_like(parameter)
    return networks


def sync(networks, **settings):
    frames = WORKERS * LANES * STEPS
    return MultiSyncCollector(
        [make_toy] * WORKERS, networks.policy, frames_per_batch=frames, total_frames=4 * frames, cat_results=0,
        auto_register_policy_transforms=False, **settings,
    )  # fmt: skip


def buffer_for(networks):
    storage = EpisodicStorage(1_000, window=networks.encoder.window, episodes=networks.encoder.episodes)
    return EpisodicReplayBuffer(storage=storage, batch_size=STEPS)


@torch.no_grad()
def log_ratio(networks, buffer, batch):
    """How far the rollout's log-probs are from those of the buffer's contexts, ``[N, T]``."""
    buffer.empty()
    frames = buffer.extend(batch)
    contexts = batch.select(keys.ACTION).set(keys.CONTEXT, buffer.storage.contexts(frames)).reshape(-1)
    return networks.actor.get_dist(contexts).log_prob(contexts[keys.ACTION]) - batch[keys.LOG_PROB].flatten()


@torch.no_grad()
def update(networks):
    for parameter in networks.encoder.parameters():
        parameter += 0.1 * torch.randn_like(parameter)


def collected(networks, collector):
    """All batches and their ratios, with an update in place after each."""
    batches, ratios, buffer = [], [], buffer_for(networks)
    try:
        for batch in collector:
            if batch.ndim == 3:  # a distributed collector's: one of each worker
                batch = torch.cat(list(batch.unbind(0)))
            batches.append(batch.clone())
            ratios.append(log_ratio(networks, buffer, batch))
            update(networks)
            collector.update_policy_weights_()
    finally:
        collector.shutdown()
    return torch.cat(batches, 1), torch.stack(ratios)


def windows_of_worker(number, monkeypatch):
    """What a collector draws that is the only one, but for its number."""
    monkeypatch.setattr(memory_module, "worker_number", lambda: number)
    collector = Collector(
        make_toy, build().policy, frames_per_batch=LANES * STEPS, total_frames=4 * LANES * STEPS,
        auto_register_policy_transforms=False,
    )  # fmt: skip
    windows = torch.cat([batch["window"].clone() for batch in collector], 1)
    collector.shutdown()
    return windows


@pytest.mark.slow
def test_workers_follow_the_weights_and_draw_windows_of_their_own(monkeypatch):
    networks = build()
    env = make_toy()
    env.rollout(20, networks.policy, break_when_any_done=False)  # what it remembers is not for the workers
    before = networks.memory.checkpoint_state()
    batch, ratios = collected(networks, sync(networks))
    assert_same(ratios, torch.zeros_like(ratios))
    for first in range(STEPS, 4 * STEPS, STEPS):  # what it sees was drawn and encoded in the batch before
        assert not batch[keys.IS_INIT][:, first].any() and (batch[keys.WINDOW_EPISODE][:, first] >= 0).all()
    assert networks.memory.checkpoint_state() == before
    expected = [windows_of_worker(number, monkeypatch) for number in range(WORKERS)]  # as they are, run after run
    assert (batch["window"] == torch.cat(expected)).all()
    starts = batch[keys.WINDOW_START][:, ::6].flatten(1)
    assert all(not torch.equal(starts[i], starts[j]) for i in range(LANES * WORKERS) for j in range(i))


@pytest.mark.slow
def test_a_memory_that_counts_changes_is_caught():
    networks = build()
    networks.memory.__class__ = Counting
    _, ratios = collected(networks, sync(networks))
    assert_same(ratios[0], torch.zeros_like(ratios[0]))
    assert (ratios[1:].abs().amax(-1) > 1e-2).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices", [{"attention": "full"}, {"critic_kind": "separate"}, {"encoder_kind": "rl2"}, {"encoder_kind": "mlp"}]
)
def test_the_ratio_is_one_with_every_encoder(choices):
    networks = build(**choices)
    _, ratios = collected(networks, sync(networks))
    assert_same(ratios, torch.zeros_like(ratios))


@pytest.mark.slow
def test_the_ratio_is_one_with_weights_in_shared_memory():
    networks = build()
    _, ratios = collected(networks, sync(networks, weight_sync_schemes={"policy": SharedMemWeightSyncScheme()}))
    assert_same(ratios, torch.zeros_like(ratios))


@pytest.mark.slow
@pytest.mark.parametrize("choices", [{}, {"encoder_kind": "rl2"}], ids=str)
def test_the_ratio_is_one_in_processes_that_talk_over_gloo(choices):
    networks, frames = build(**choices), WORKERS * LANES * STEPS
    collector = DistributedCollector(
        [make_toy] * WORKERS, networks.policy, frames_per_batch=frames, total_frames=4 * frames, sync=True,
        launcher="mp", backend="gloo", collector_kwargs={"auto_register_policy_transforms": False},
    )  # fmt: skip
    batch, ratios = collected(networks, collector)
    assert batch.shape == (WORKERS * LANES, 4 * STEPS)
    assert_same(ratios, torch.zeros_like(ratios))


def make_policy():
    return build().policy


@pytest.mark.slow
def test_memories_that_workers_build_draw_windows_of_their_own(monkeypatch):
    frames = WORKERS * LANES * STEPS
    collector = MultiSyncCollector(
        [make_toy] * WORKERS, policy_factory=make_policy, frames_per_batch=frames, total_frames=4 * frames,
        cat_results=0, auto_register_policy_transforms=False,
    )  # fmt: skip
    windows = torch.cat([batch["window"].clone() for batch in collector], 1)
    collector.shutdown()
    expected = [windows_of_worker(number, monkeypatch) for number in range(WORKERS)]
    assert (windows == torch.cat(expected)).all()


@pytest.mark.slow
def test_asynchronous_workers_follow_the_weights():
    """A buffer for each worker, because batches cut trials. The batch in flight during an update is of two weights."""
    networks = build()
    collector = MultiAsyncCollector(
        [make_toy] * WORKERS, networks.policy, frames_per_batch=LANES * STEPS, total_frames=40 * LANES * STEPS,
        auto_register_policy_transforms=False,
    )  # fmt: skip
    buffers, since, checked = [buffer_for(networks) for _ in range(WORKERS)], [1] * WORKERS, 0
    try:
        for batch in collector:
            worker = int(batch[keys.WINDOW_CURRENT][0, 0]) // EPISODES_A_WORKER
            ratio = log_ratio(networks, buffers[worker], batch)
            if since[worker]:
                assert_same(ratio, torch.zeros_like(ratio))
                checked += 1
            since[worker] += 1
            if min(since) > 1:
                update(networks)
                collector.update_policy_weights_()
                since = [0] * WORKERS
    finally:
        collector.shutdown()
    assert checked >= 10


def test_batches_of_two_workers_are_not_taken_for_one_lanes(monkeypatch):
    """As MultiAsyncCollector gives them; whole trials may follow each other, cut ones may not."""

    def rollout(number, steps):
        monkeypatch.setattr(memory_module, "worker_number", lambda: number)
        env, policy = make_toy(), build().policy
        batch = env.rollout(18 + steps, policy, break_when_any_done=False)
        return batch[:, :18], batch[:, 18:]

    buffer = buffer_for(build())
    (whole, cut), (other, other_cut) = rollout(0, 8), rollout(1, 8)
    for batch in (whole, other, whole, cut):
        buffer.empty()
        buffer.extend(batch)
    beginning, end = other_cut[:, :4], other_cut[:, 4:]
    buffer.empty()
    buffer.extend(beginning)
    buffer.extend(end)
    buffer.empty()
    buffer.extend(cut[:, :4])
    with pytest.raises(ValueError, match=r"several workers, one after the other \(MultiAsyncCollector\)"):
        buffer.extend(end)


def test_this_process_is_no_worker():
    assert worker_number() is None
