"""What a request is said to need is less than what it takes, and not much less."""

import pytest

from htrmrl_torchrl.agent.networks import build_networks
from recipes.configuration.compose import load_config
from recipes.configuration.environment import training_environment
from recipes.configuration.parts import agent_arguments, collector_of, replay_buffer
from recipes.configuration.sizes import fits_memory, parameters, training_needs


@pytest.mark.parametrize("kind", ["htrmrl", "trmrl", "rl2", "mlp"])
def test_parameters_are_fewer_than_there_are_and_more_than_a_third(kind):
    config = load_config("toy_ppo", [f"encoder={kind}", "encoder.d_model=128"])
    env = training_environment(config)
    built = sum(p.numel() for p in build_networks(**agent_arguments(config, env)).encoder.parameters())
    env.close()
    assert built / 3 < parameters(config.encoder) <= built


def test_stored_frames_are_smaller_than_they_are_and_larger_than_a_tenth():
    config = load_config("toy_ppo", ["env.num_envs=8", "loss.minibatch_frames=96"])
    env = training_environment(config)
    networks = build_networks(**agent_arguments(config, env))
    buffer, collector = replay_buffer(config, networks), collector_of(config, env, networks)
    buffer.extend(next(iter(collector)))
    collector.shutdown()
    stored = buffer.storage._storage
    taken = sum(value.numel() * value.element_size() for value in stored.values(True, True))
    (said,) = (size for name, size in training_needs(config).items() if "stored frames" in name)
    assert taken / 10 < said <= taken


def test_each_process_has_its_own_copy():
    needs = [training_needs(load_config("toy_ppo", [f"workers={workers}"])) for workers in (1, 3)]
    one, three = (
        [size for name, size in n.items() if name.startswith("the network") or "stored" in name] for n in needs
    )
    assert len(one) == 2 and three == [3 * size for size in one]


def test_the_sentence_says_how_much_is_needed_and_how_much_there_is():
    holds, _ = fits_memory({"little": 1})
    assert holds
    holds, fault = fits_memory({"little": 1, "all": 10**15})
    assert not holds and "at least 1 PB" in fault and "1 PB are for all" in fault and "there are " in fault
