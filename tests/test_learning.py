"""The thing learns: on the toy, an agent with memory finds the hidden goal and one without cannot."""

from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, TransformedEnv

from htrmrl_torchrl import (
    EpisodicReplayBuffer,
    EpisodicStorage,
    NormalizedClipPPOLoss,
    TrialGAE,
    TrialTransform,
    keys,
    make_env,
)
from htrmrl_torchrl.agent.heads import value_head
from htrmrl_torchrl.agent.networks import acting_policy, build_networks, load_networks
from htrmrl_torchrl.evaluation import ExactPolicy, play_trials
from tests.helpers import rules
from tests.recipes.runs import train_here

AGENTS = Path(__file__).resolve().parents[1] / "results" / "trial_length"
LANES, K, H = 128, 4, 3


def train(*, seed, iterations, env=None, lr=2e-3, segment_frames=H, **choices):
    """A short PPO run; yields each batch."""
    torch.manual_seed(seed)
    env = env or make_env("toy", num_envs=LANES, episodes_per_trial=K, horizon=H, seed=seed)
    sizes = {"observation_dim": env.observation_spec[keys.OBSERVATION].shape[-1]}
    actions = env.action_spec.shape[-1]
    small = {"window": 3, "d_model": 32, "intra_layers": 1, "inter_layers": 1, "strategy": "recent", "init_std": 0.6}
    networks = build_networks(
        **sizes, action_low=[-1.0] * actions, action_high=[1.0] * actions, seed=seed, **(small | choices)
    )
    loss = NormalizedClipPPOLoss(
        networks.actor, networks.critic, entropy_coeff=0.005, critic_coeff=0.5, loss_critic_type="l2"
    )
    optimizer = torch.optim.Adam(loss.parameters(), lr=lr)
    gae = TrialGAE(advantage_norm="batch")
    storage = EpisodicStorage(LANES * K * H, window=networks.encoder.window, episodes=networks.encoder.episodes)
    buffer = EpisodicReplayBuffer(storage=storage, batch_size=384, segment_frames=segment_frames)
    collector = Collector(
        env, networks.policy, frames_per_batch=LANES * K * H, total_frames=-1, auto_register_policy_transforms=False
    )
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
        yield batch
    collector.shutdown()


def success_by_episode(batches):
    """``[K]``, mean over the last ten batches."""
    last = list(batches)[-10:]
    return torch.stack([b["next", keys.SUCCESS].view(LANES, K, H).any(-1).float().mean(0) for b in last]).mean(0)


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
    first, *_, last = success_by_episode(train(episodes=K, seed=0, iterations=35)).tolist()
    assert first < CEILING < 0.45 < last, (first, last)


@pytest.mark.slow
def test_an_agent_without_memory_does_not(one_thread):
    """Negative control: the same learner, which sees no earlier episode."""
    success = success_by_episode(train(episodes=1, seed=0, iterations=35))
    assert success.max() < CEILING, success.tolist()


# ------------------------------------------------------------------------------- trials longer than those of training


def success_in_long_trials(checkpoint, *, lanes=400, episodes=8):
    """``[episodes]``, sampled actions, on as many lanes of each of the toy's four goals."""
    pairs = [(0, lane % 4) for lane in range(lanes)]
    env = make_env("toy", split="test", num_envs=lanes, episodes_per_trial=episodes, pairs=pairs)
    policy = ExactPolicy(acting_policy(load_networks(checkpoint), seed=0))
    outcomes = play_trials(policy, env, rules(episodes - 1, mean_action=False))
    return outcomes["success"].double().mean(0)


def test_the_toys_agent_keeps_its_success_in_trials_longer_than_those_of_training():
    """Of the same seed, trained on four episodes a trial; the one that saw the latest episodes is the negative control.

    A share of 400 lanes has a standard deviation of at most 0.025.
    """
    success = success_in_long_trials(AGENTS / "uniform_last_seed1.torchrl")
    assert success[0] < 0.35 and success[2:].min() > 0.9, success.tolist()
    falls = success_in_long_trials(AGENTS / "recent_seed1.torchrl")
    assert falls[3] > 0.9 and falls[4:].max() < 0.85, falls.tolist()


@pytest.mark.slow
def test_so_does_the_agent_that_the_recipe_trains(tmp_path):
    """The whole quickstart: nothing falls beyond the fourth episode, see results/trial_length for five seeds."""
    train_here(tmp_path / "run", "seed=1")
    success = success_in_long_trials(max((tmp_path / "run" / "checkpoints").glob("step-*")))
    within, beyond = success[2:4].mean(), success[4:].min()
    assert within > 0.6 and beyond > within - 0.1, success.tolist()


# --------------------------------------------------------------------------- baselines, to the degree of their memory

# The sizes of configs/encoder/*.yaml. RL2's gradients may pass through the whole trial.
TRMRL = {"encoder_kind": "trmrl", "window": 5, "d_model": 32, "intra_layers": 4, "norm": "tfixup",
         "critic_kind": "single_step"}  # fmt: skip
RL2 = {"encoder_kind": "rl2", "d_model": 256, "mlp_layers": 2, "segment_frames": K * H}
MLP = {"encoder_kind": "mlp", "d_model": 400, "mlp_layers": 3}


class Cue(EnvBase):
    """Shows +1 or -1 in an episode's first step only, and pays the last step's action times it, in [-1, 1].

    Without memory every action is right and wrong equally often: the expected return is 0 whatever is played. With a
    memory of the episode it is up to 1. Earlier episodes tell nothing.
    """

    def __init__(self, *, seed):
        super().__init__(batch_size=[LANES])
        self.generator = torch.Generator().manual_seed(seed)
        self.observation_spec = Composite({keys.OBSERVATION: Unbounded((LANES, 2))}, shape=[LANES])
        self.action_spec, self.reward_spec = Bounded(-1, 1, (LANES, 1)), Unbounded((LANES, 1))
        flag = Categorical(2, shape=(LANES, 1), dtype=torch.bool)
        self.done_spec = Composite({key: flag.clone() for key in (keys.DONE, keys.TERMINATED)}, shape=[LANES])

    def _reset(self, tensordict=None, **_):
        self.t = 0
        self.cue = torch.randint(2, (LANES, 1), generator=self.generator) * 2.0 - 1
        return self._show(self.cue)

    def _step(self, tensordict):
        self.t += 1
        last = torch.full((LANES, 1), self.t == H)
        reward = torch.where(last, tensordict[keys.ACTION] * self.cue, 0.0)
        out = {keys.REWARD: reward, keys.TERMINATED: last, keys.DONE: last.clone()}
        return self._show(0 * self.cue).update(out)

    def _show(self, cue):
        left = torch.full((LANES, 1), 1 - self.t / H)
        return TensorDict({keys.OBSERVATION: torch.cat([cue, left], -1)}, batch_size=[LANES])

    def _set_seed(self, seed):
        """It has a generator of its own."""


def return_on_cues(*, seed, **choices):
    """Mean return of the last ten batches, 5,120 episodes."""
    env = TransformedEnv(Cue(seed=seed), TrialTransform(episodes_per_trial=K))
    batches = list(train(env=env, seed=seed, iterations=25, **choices))[-10:]
    return torch.stack([b["next", keys.REWARD].view(LANES, K, H).sum(-1).mean() for b in batches]).mean().item()


# A return in [-1, 1] whose expectation is 0 has a standard deviation of at most 1.
CHANCE = 5 / (10 * LANES * K) ** 0.5


@pytest.mark.slow
def test_rl2_learns_across_episodes(one_thread):
    """Its learning rate was chosen on seeds 0 and 1 out of 5e-4, 1e-3 and 2e-3; it needs more batches than HTrMRL.

    Seeds 2 and 3 end at 0.50 and 0.78. The bound is what no player without memory of earlier episodes can exceed.
    """
    first, *_, last = success_by_episode(train(seed=2, iterations=50, **RL2)).tolist()
    assert first < CEILING < last, (first, last)


@pytest.mark.slow
@pytest.mark.parametrize("choices", [TRMRL, MLP], ids=["trmrl", "mlp"])
def test_without_memory_of_earlier_episodes_nobody_finds_the_goal(choices, one_thread):
    """The toy pays in an episode's last step, so a memory of the running episode is worth nothing there."""
    success = success_by_episode(train(seed=2, iterations=50, **choices))
    assert success.max() < CEILING, success.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("choices,learns", [(TRMRL, True), (RL2, True), (MLP, False)], ids=["trmrl", "rl2", "mlp"])
def test_a_memory_of_the_running_episode_is_enough_for_a_cue(choices, learns, one_thread):
    """Of the optimum 1, TrMRL earns 0.75 and 1.00 on seeds 2 and 3, RL2 1.00 and 1.00, the MLP 0.01 and 0.01."""
    mean = return_on_cues(seed=2, **choices)
    assert (mean > 0.5) if learns else (abs(mean) < CHANCE), mean
