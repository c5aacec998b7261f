"""Invariant 1: what the rollout recorded is what the update recomputes, before any optimizer step of the update."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.collectors import Collector
from torchrl.envs.utils import ExplorationType, set_exploration_type

from htrmrl_torchrl import (
    EpisodicReplayBuffer,
    EpisodicStorage,
    NormalizedClipPPOLoss,
    TaskRewardNormalizer,
    TrialGAE,
    final_values,
    keys,
    make_env,
)  # fmt: skip
from htrmrl_torchrl.agent.heads import value_head
from htrmrl_torchrl.agent.networks import build_networks
from tests.helpers import assert_same, walking_trials

SMALL = {"window": 3, "episodes": 3, "d_model": 8, "num_heads": 2, "intra_layers": 1, "inter_layers": 2}
CHOICES = {
    "default": {},
    "recent": {"strategy": "recent"},
    "uniform last": {"strategy": "uniform_last", "episodes": 4},
    "best return": {"strategy": "best_return"},
    "best and uniform": {"strategy": "best_and_uniform", "episodes": 4},
    "dropout": {"strategy": "recent", "dropout": 0.5},
    "diverse": {"strategy": "diverse"},
    "similar": {"strategy": "similar"},
    "two episodes": {"strategy": "similar", "max_episodes": 2},
    "lane, recent": {"strategy": "recent", "scope": "lane", "max_episodes": 4},
    "lane, uniform": {"scope": "lane", "max_episodes": 7},
    "lane, uniform last": {"strategy": "uniform_last", "scope": "lane", "max_episodes": 4},
    "lane, best return": {"strategy": "best_return", "scope": "lane", "max_episodes": 4},
    "lane, diverse": {"strategy": "diverse", "scope": "lane", "max_episodes": 1},
    "lane, similar": {"strategy": "similar", "scope": "lane", "max_episodes": 4},
    "lane, separate critic, full": {"critic_kind": "separate", "attention": "full", "scope": "lane", "max_episodes": 4},
    "full attention": {"attention": "full"},
    "tfixup": {"norm": "tfixup"},
    "full tfixup recent": {"attention": "full", "norm": "tfixup", "strategy": "recent"},
    "separate critic": {"critic_kind": "separate"},
    "separate critic, full": {"critic_kind": "separate", "attention": "full"},
    "single-step critic": {"critic_kind": "single_step"},
    "dependent std": {"std": "dependent", "init_std": 0.5},
    "observes the token": {"observe_token": True},
    "film": {"observe_token": True, "film": True},
    "film, dependent std": {"observe_token": True, "film": True, "std": "dependent"},
    "no value norm": {"value_norm": False},
    "scaled reward": {"reward_scale": 0.1},
    "E=1": {"episodes": 1},
    "T=1": {"window": 1},
    "L2=0": {"inter_layers": 0},
    "TrMRL": {"episodes": 1, "inter_layers": 0, "critic_kind": "single_step", "norm": "tfixup"},
    "memoryless": {"episodes": 1, "inter_layers": 0, "window": 1},
    "trmrl": {"encoder_kind": "trmrl", "intra_layers": 2, "critic_kind": "single_step", "norm": "tfixup"},
    "trmrl, separate critic": {"encoder_kind": "trmrl", "critic_kind": "separate"},
    "rl2": {"encoder_kind": "rl2"},
    "rl2, separate critic": {"encoder_kind": "rl2", "critic_kind": "separate", "reward_scale": 0.1},
    "rl2, tokens beside it": {"encoder_kind": "rl2", "critic_kind": "single_step", "observe_token": True},
    "mlp": {"encoder_kind": "mlp"},
    "mlp, separate critic": {"encoder_kind": "mlp", "critic_kind": "separate"},
}
ENVIRONMENTS = {
    # whole trials: 3 lanes, 3 episodes of 6 steps
    "toy": (lambda: make_env("toy", num_envs=3, episodes_per_trial=3), 3 * 18),
    # trials of 1 to 3 episodes
    "split": (lambda: make_env("toy", num_envs=3, episodes_per_trial=3, shortest_trial=1), 3 * 18),
    # episodes of 1 to 9 steps; lanes end at different times; batches cut episodes and trials
    "walks": (lambda: walking_trials(3), 3 * 25),
}


class Pipeline:
    """Collector, buffer and loss around small networks."""

    def __init__(self, environment, choices, *, seed=0, segment_frames=3):
        torch.manual_seed(seed)
        build, frames = ENVIRONMENTS[environment]
        env = build()
        arguments = SMALL | choices
        sizes = {"observation_dim": env.observation_spec[keys.OBSERVATION].shape[-1]}
        actions = env.action_spec.shape[-1]
        self.networks = build_networks(**sizes, action_low=[-1.0] * actions, action_high=[1.0] * actions, **arguments)
        # Away from the initial weights, whose actor hardly depends on anything.
        for parameter in self.networks.actor.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        self.loss = NormalizedClipPPOLoss(
            self.networks.actor, self.networks.critic, clip_epsilon=0.2, entropy_coeff=0.01, loss_critic_type="l2"
        )
        # Not so fast that a state-dependent std collapses: it is the unit that rounding errors are magnified by.
        self.optimizer = torch.optim.Adam(self.loss.parameters(), lr=0.003)
        self.rewards = TaskRewardNormalizer(num_tasks=4, gamma=0.99)
        self.gae = TrialGAE(credit="trial", bootstrap=True, advantage_norm="batch")
        encoder = self.networks.encoder
        remembers = {name: arguments[name] for name in ("scope", "max_episodes") if name in arguments}
        storage = EpisodicStorage(4 * frames, window=encoder.window, episodes=encoder.episodes, **remembers)
        batch_size = 12 if 12 % segment_frames == 0 else 2 * segment_frames
        self.buffer = EpisodicReplayBuffer(storage=storage, batch_size=batch_size, segment_frames=segment_frames)
        self.collector = Collector(
            env, self.networks.policy, frames_per_batch=frames, total_frames=-1, auto_register_policy_transforms=False
        )

    def batches(self, count):
        """Batches with their storage rows, the update of each (adapt, then optimizer steps) after its use."""
        try:
            for _, batch in zip(range(count), self.collector, strict=False):
                self.buffer.empty()
                frames = self.buffer.extend(batch)
                value = TensorDictSequential(self.networks.encoder, self.networks.critic)
                ends = final_values(self.buffer, frames, value)
                targets = self.gae(batch, final_values=ends)
                self.buffer.assign(frames, targets)
                value_head(self.networks.critic).adapt(targets[keys.VALUE_TARGET])
                yield batch, frames
                for minibatch in self.buffer:
                    losses = self.loss(minibatch)
                    self.optimizer.zero_grad()
                    (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
                    self.optimizer.step()
                self.networks.encoder.tokens.adapt(batch[keys.OBSERVATION])
                self.collector.update_policy_weights_()
        finally:
            self.collector.shutdown()

    @torch.no_grad()
    def recompute(self, batch, frames, *, alone=False):
        """Log-prob and value of all frames ``[N, T]`` from the stored windows, or each from its stored state."""
        starts = torch.ones(frames.numel(), dtype=torch.bool) if alone else None
        contexts = self.buffer.storage.contexts(frames.flatten(), starts)
        contexts = TensorDict(context=contexts, batch_size=[frames.numel()])
        dist = self.networks.actor.get_dist(contexts)
        self.networks.encoder(contexts)
        value = self.networks.critic(contexts)[keys.STATE_VALUE]
        return dist.log_prob(batch[keys.ACTION].flatten(0, 1)).view(frames.shape), value.view(*frames.shape, 1)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
def test_rollout_equals_recomputation_over_updates(choices, environment):
    pipeline = Pipeline(environment, choices)
    previous = None
    for batch, frames in pipeline.batches(3):
        log_prob, value = pipeline.recompute(batch, frames)
        assert_same(batch[keys.LOG_PROB], log_prob)
        assert_same(batch[keys.STATE_VALUE], value)
        minibatch = next(iter(pipeline.buffer))
        losses = pipeline.loss(minibatch)
        assert_same(losses["mean_ratio"], torch.tensor(1.0))
        assert_same(losses["max_ratio"], torch.tensor(1.0))
        assert losses["clip_fraction"] == 0
        # The updates between batches are not negligible.
        weights = torch.cat([p.detach().flatten().clone() for p in pipeline.loss.parameters()])
        assert previous is None or (weights - previous).abs().mean() > 1e-3
        previous = weights
        pipeline.buffer._sampler._empty()


@pytest.mark.parametrize("segment_frames", [1, 4, 18])
@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("critic_kind", ["shared", "separate"])
def test_recurrent_segments_of_any_length_have_ratio_one_in_every_minibatch(environment, segment_frames, critic_kind):
    """Equal segments and, on the walks, flat samples of unequal ones; segments within an episode, and over several."""
    choices = {"encoder_kind": "rl2", "critic_kind": critic_kind}
    pipeline = Pipeline(environment, choices, segment_frames=segment_frames)
    shapes = set()
    for _ in pipeline.batches(3):
        for minibatch in pipeline.buffer:
            shapes.add(minibatch.ndim)
            losses = pipeline.loss(minibatch)
            assert_same(losses["max_ratio"], torch.tensor(1.0))
            assert losses["clip_fraction"] == 0
            recorded = minibatch[keys.STATE_VALUE].clone()
            assert_same(pipeline.networks.critic(pipeline.networks.encoder(minibatch))[keys.STATE_VALUE], recorded)
    equal = segment_frames == 1 or (environment == "toy" and segment_frames == 18)  # a frame, or a whole trial
    assert (1 in shapes) == (not equal)


def test_the_walks_are_what_they_should_be():
    """Staggered resets, cut episodes and trials, terminated and truncated ends, short episodes."""
    pipeline = Pipeline("walks", {})
    batches = [batch for batch, _ in pipeline.batches(3)]
    whole = torch.cat(batches, 1)
    init, trial = whole[keys.IS_INIT].squeeze(-1), whole[keys.TRIAL_INIT].squeeze(-1)
    assert (init.any(0) & ~init.all(0)).sum() > 20  # some lanes reset, others do not
    assert all((~batch[keys.IS_INIT][:, 0]).any() for batch in batches[1:])  # episodes are cut
    assert all((~batch[keys.TRIAL_INIT][:, 0]).any() for batch in batches[1:])
    assert (trial.sum(1) >= 3).all()
    assert whole["next", keys.TERMINATED].any() and whole["next", keys.TRUNCATED].any()
    assert (whole[keys.WINDOW_EPISODE] >= 0).any()


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_other_trials_are_seen_with_scope_lane_only(environment):
    """Windows of episodes before the running trial's first one, as often as there are any to draw from."""

    def shares(choices):
        begun = torch.zeros(3, dtype=torch.long)
        seen = of_earlier = 0
        collector = Pipeline(environment, choices).collector
        for _, batch in zip(range(3), collector, strict=False):
            for t in range(batch.shape[1]):
                step = batch[:, t]
                begun = torch.where(step[keys.TRIAL_INIT].squeeze(-1), step[keys.WINDOW_CURRENT].squeeze(-1), begun)
                drawn = step[keys.WINDOW_EPISODE]
                seen += (drawn >= 0).sum().item()
                of_earlier += ((drawn >= 0) & (drawn < begun.unsqueeze(-1))).sum().item()
        collector.shutdown()
        return of_earlier / seen

    assert shares({"strategy": "uniform"}) == 0
    assert shares({"strategy": "uniform", "scope": "lane", "max_episodes": 7}) > 0.4


# ------------------------------------------------------------------------------------------- negative controls


def spoiled(change, environment="walks", choices=None, alone=False):
    """Largest error of log-prob and value after ``change`` spoiled the stored batch."""
    pipeline = Pipeline(environment, choices or {})
    for batch, frames in pipeline.batches(1):
        change(pipeline, batch, frames)
        log_prob, value = pipeline.recompute(batch, frames, alone=alone)
        return max((batch[keys.LOG_PROB] - log_prob).abs().max(), (batch[keys.STATE_VALUE] - value).abs().max())


def move_starts(pipeline, batch, frames):
    stored = pipeline.buffer.storage._storage[keys.WINDOW_START]
    stored.copy_(torch.where(stored > 0, stored - 1, stored))


def swap_slots(pipeline, batch, frames):
    full = (pipeline.buffer.storage._storage[keys.WINDOW_EPISODE] >= 0).all(-1, keepdim=True)
    for key in (keys.WINDOW_EPISODE, keys.WINDOW_START):
        stored = pipeline.buffer.storage._storage[key]
        stored.copy_(torch.where(full, stored.flip(-1), stored))


def forget_the_final_tokens(pipeline, batch, frames):
    table = pipeline.buffer.storage.table
    pipeline.buffer.storage.tokens[table["first_token"] + table["frames"]] = 0


def shift_the_tokens(pipeline, batch, frames):
    pipeline.buffer.storage.tokens = pipeline.buffer.storage.tokens.roll(1, 0)


def zero_the_states(pipeline, batch, frames):
    pipeline.buffer.storage._storage[keys.RECURRENT, "state"].zero_()


def shift_the_states(pipeline, batch, frames):
    stored = pipeline.buffer.storage._storage[keys.RECURRENT, "state"]
    stored.copy_(stored.roll(1, 0))


def forget_the_last_rewards(pipeline, batch, frames):
    table = pipeline.buffer.storage.table
    pipeline.buffer.storage.tokens[table["first_token"] + table["frames"], -2] = 0


@pytest.mark.parametrize("change", [zero_the_states, shift_the_states, forget_the_last_rewards])
def test_wrong_states_are_noticed(change):
    """Frame by frame, so that each starts from its stored state."""
    assert spoiled(change, choices={"encoder_kind": "rl2"}, alone=True) > 1e-4
    assert spoiled(lambda *_: None, choices={"encoder_kind": "rl2"}, alone=True) < 1e-5


@pytest.mark.parametrize("change", [move_starts, forget_the_final_tokens, shift_the_tokens, swap_slots])
def test_wrong_windows_are_noticed(change):
    assert spoiled(change) > 1e-4
    assert spoiled(lambda *_: None) < 1e-5


def test_another_draw_of_windows_is_noticed():
    """The update must not draw again: other windows from the same strategy give another log-prob."""
    pipeline = Pipeline("toy", {"strategy": "uniform"})
    for batch, frames in pipeline.batches(1):
        stored = pipeline.buffer.storage._storage[keys.WINDOW_START]
        drawn = pipeline.buffer.storage._storage[keys.WINDOW_EPISODE]
        stored.copy_(torch.where(drawn >= 0, torch.randint_like(stored, 5), -1))
        log_prob, _ = pipeline.recompute(batch, frames)
        assert (batch[keys.LOG_PROB] - log_prob).abs().max() > 1e-4


def test_without_correction_a_moved_value_scale_is_noticed():
    """`adapt` between rollout and update changes no prediction; moving the statistics alone would."""
    pipeline = Pipeline("toy", {"value_norm": True})
    for batch, frames in pipeline.batches(1):
        value_head(pipeline.networks.critic).norm.update(torch.tensor([[50.0], [-50.0]]))
        _, value = pipeline.recompute(batch, frames)
        assert (batch[keys.STATE_VALUE] - value).abs().max() > 1e-4


def test_the_mean_action_does_not_depend_on_how_actions_are_explored():
    pipeline = Pipeline("toy", {})
    for _, frames in pipeline.batches(1):
        contexts = TensorDict(context=pipeline.buffer.storage.contexts(frames[0]), batch_size=[18])
        means = []
        for kind in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC):
            with set_exploration_type(kind), torch.no_grad():
                means.append(pipeline.networks.actor(contexts.clone())[keys.LOC])
        assert torch.equal(*means)
