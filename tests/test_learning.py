"""The thing learns: on the toy, an agent with memory finds the hidden goal and one without cannot."""

import pytest
import torch
from torchrl.collectors import Collector

from htrmrl_torchrl import EpisodicReplayBuffer, EpisodicStorage, NormalizedClipPPOLoss, TrialGAE, keys, make_env
from htrmrl_torchrl.modules.heads import value_head
from htrmrl_torchrl.networks import build_networks

LANES, K, H = 128, 4, 3


def train(*, episodes, seed, iterations):
    """Success by episode ``[K]`` of the last ten batches of a short PPO run."""
    torch.manual_seed(seed)
    env = make_env("toy", num_envs=LANES, episodes_per_trial=K, horizon=H, seed=seed)
    networks = build_networks(
        observation_dim=3, action_low=[-1.0, -1.0], action_high=[1.0, 1.0], window=3, episodes=episodes, d_model=32,
        intra_layers=1, inter_layers=1, strategy="recent", init_std=0.6, seed=seed,
    )  # fmt: skip
    loss = NormalizedClipPPOLoss(
        networks.actor, networks.critic, entropy_coeff=0.005, critic_coeff=0.5, loss_critic_type="l2"
    )
    optimizer = torch.optim.Adam(loss.parameters(), lr=2e-3)
    gae = TrialGAE(advantage_norm="batch")
    storage = EpisodicStorage(LANES * K * H, window=3, episodes=episodes)
    buffer = EpisodicReplayBuffer(storage=storage, batch_size=384, segment_frames=H)
    collector = Collector(
        env, networks.policy, frames_per_batch=LANES * K * H, total_frames=-1, auto_register_policy_transforms=False
    )
    successes = []
    for _, batch in zip(range(iterations), collector, strict=False):
        buffer.empty()
        frames = buffer.extend(batch)
        targets = gae(batch)
        buffer.assign(frames, targets)
        value_head(networks.critic).adapt(targets[keys.VALUE_TARGET])
        for _ in range(4):
            for minibatch in buffer:
                losses = loss(minibatch)
                optimizer.zero_grad()
                (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
                torch.nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
                optimizer.step()
        successes.append(batch["next", keys.SUCCESS].view(LANES, K, H).any(-1).float().mean(0))
    collector.shutdown()
    return torch.stack(successes[-10:]).mean(0)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Without memory no player exceeds 1/4 in any episode (see `htrmrl_torchrl.envs.toy`). Ten batches hold 1,280 trials, so
# five standard deviations above that are:
CEILING = 0.25 + 5 * (0.25 * 0.75 / (10 * LANES)) ** 0.5


def test_an_agent_with_memory_learns_to_explore_once_and_then_exploit(one_thread):
    """Seeds 0, 1 and 2 end at 0.6 and more; the first episode can only explore."""
    first, *_, last = train(episodes=K, seed=0, iterations=35).tolist()
    assert first < CEILING < 0.45 < last, (first, last)


def test_an_agent_without_memory_does_not(one_thread):
    """Negative control: the same learner, which sees no earlier episode."""
    success = train(episodes=1, seed=0, iterations=35)
    assert success.max() < CEILING, success.tolist()
