"""One iteration of the recipe, a real process, against the algorithm written out here: the same weights, bit by bit."""

import pytest
import torch
from tensordict.nn import TensorDictSequential

from htrmrl_torchrl import final_values, keys
from htrmrl_torchrl.agent.heads import value_head
from htrmrl_torchrl.agent.networks import build_networks, load_networks
from recipes.configuration.compose import load_config
from recipes.configuration.environment import training_environment
from recipes.configuration.parts import (
    advantages,
    agent_arguments,
    collector_of,
    ppo_loss,
    replay_buffer,
    reward_normalizer,
)
from tests.recipes.runs import FRAMES, TINY, run

# Where each part of the update shows: sums of losses, targets with and without what follows the end, all normalisers.
CHOICES = {
    "as shipped": [],
    "all terms": [
        "loss.entropy_coeff=0.01",
        "loss.bootstrap=true",
        "loss.reward_norm=true",
        "loss.advantage_norm=task",
    ],
    "across episodes": ["loss.credit=trial", "loss.value_norm=false", "critic.kind=separate", "loss.max_grad_norm=0.1"],
}


def updated(config):
    """Networks after one batch and the update on it, in the order of the algorithm."""
    torch.manual_seed(config.seed)
    env = training_environment(config)
    networks = build_networks(**agent_arguments(config, env))
    loss = ppo_loss(config, networks)
    optimizer = torch.optim.Adam(loss.parameters(), lr=config.optim.lr)
    rewards, buffer = reward_normalizer(config), replay_buffer(config, networks)
    collector = collector_of(config, env, networks)
    batch = next(collector.iterator())
    frames = buffer.extend(batch)
    scaled, ends = batch, None
    if config.loss.reward_norm:
        rewards.adapt(batch)
        scaled = rewards(batch)
    if config.loss.bootstrap:
        ends = final_values(buffer, frames, TensorDictSequential(networks.encoder, networks.critic))
    targets = advantages(config)(scaled, final_values=ends)
    buffer.assign(frames, targets)
    value_head(networks.critic).adapt(targets[keys.VALUE_TARGET])
    for _ in range(config.loss.epochs):
        for minibatch in buffer:
            losses = loss(minibatch)
            optimizer.zero_grad()
            (losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]).backward()
            torch.nn.utils.clip_grad_norm_(loss.parameters(), config.loss.max_grad_norm)
            optimizer.step()
    networks.encoder.tokens.adapt(batch[keys.OBSERVATION])
    collector.shutdown()
    return networks


def weights(networks):
    return {
        f"{part}.{name}": value
        for part in ("actor", "critic")
        for name, value in getattr(networks, part).state_dict().items()
    }


@pytest.fixture
def one_thread(monkeypatch):
    """Sums depend on how they are shared among threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # of the recipe's process, where torch takes MKL's
        monkeypatch.setenv(name, "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "choice", ["all terms", *(pytest.param(c, marks=pytest.mark.slow) for c in CHOICES if c != "all terms")]
)
def test_an_iteration_is_what_the_algorithm_says(choice, one_thread, tmp_path):
    overrides = [*TINY, "env.num_workers=0", f"total_frames={FRAMES}", *CHOICES[choice]]
    run(tmp_path / "run", *overrides)
    checkpoint = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    received = weights(load_networks(checkpoint))
    expected = weights(updated(load_config("toy_ppo", overrides)))
    assert received.keys() == expected.keys()
    differing = [name for name, value in expected.items() if not torch.equal(received[name], value)]
    assert not differing
    fresh = load_config("toy_ppo", overrides)
    torch.manual_seed(fresh.seed)
    untouched = weights(build_networks(**agent_arguments(fresh, training_environment(fresh))))
    moved = [name for name, value in expected.items() if not torch.equal(untouched[name], value)]
    assert any(name.startswith("critic") for name in moved) and any(name.startswith("actor") for name in moved)
