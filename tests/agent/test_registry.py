"""What can be set of a kind is what the signatures of its parts say; a kind may be one's own."""

import inspect
import pickle
from functools import partial
from typing import Literal

import pytest
from tensordict.nn import TensorDictSequential

from htrmrl_torchrl import (
    EpisodicMemory,
    HierarchicalEncoder,
    MemorylessEncoder,
    RecurrentEncoder,
    RecurrentMemory,
    keys,
    make_actor_critic,
)
from htrmrl_torchrl.agent import registry
from htrmrl_torchrl.agent.networks import acting_policy, build_networks
from htrmrl_torchrl.agent.registry import EncoderKind, choices_of, find_kind, is_of, settings_of
from htrmrl_torchrl.specs import MismatchError
from recipes.configuration.compose import load_config
from recipes.configuration.parts import network_settings
from tests.helpers import as_batch, record, steps

SIZES = {"observation_dim": 2, "action_low": [-1.0], "action_high": [1.0]}


class Scaled(HierarchicalEncoder):
    """With a setting of its own, and all of its parent's."""

    def __init__(self, *, gain: float = 1.0, mode: Literal["a", "b"] | None = None, **others) -> None:
        super().__init__(**others)
        self.gain, self.mode = gain, mode


def carried(encoders, *, seed: int = 0, fade: float = 0.5):
    """A memory of one's own, with a setting."""
    memory = RecurrentMemory(encoders)
    memory.fade = fade
    return memory


OWN = EncoderKind(RecurrentEncoder, carried)
PATH = f"{__name__}:"


def test_the_signatures_say_what_can_be_set():
    """All arguments of the parts but those that name other parts."""
    parts = (HierarchicalEncoder, EpisodicMemory, make_actor_critic)
    everything = {name for part in parts for name in inspect.signature(part).parameters}
    objects = {
        "encoder", "memory", "critic_encoder", "action_spec", "hidden", "action_dim", "observation_dim", "hidden_key",
        "cache_key",
    }  # fmt: skip
    assert {*settings_of(find_kind("htrmrl"))} == everything - objects
    flat, rl2 = settings_of(find_kind("trmrl")), settings_of(find_kind("rl2"))
    assert everything - objects - {*flat} == {"inter_layers", "episodes"}
    assert "mlp_layers" in rl2 and not {"window", "strategy", "seed", "state_key"} & {*rl2}


def test_a_subclass_has_the_settings_of_its_parents():
    own, parents = settings_of(EncoderKind(Scaled)), settings_of(find_kind("htrmrl"))
    assert {*own} - {*parents} == {"gain", "mode"} and {*parents} <= {*own}
    assert own["gain"].annotation is float and own["window"].default == 5
    networks = build_networks(**SIZES, encoder_kind=f"{PATH}Scaled", gain=0.5, window=3, critic_kind="separate")
    _, _, critic = networks.policy.module
    assert [e.gain for e in (networks.encoder, critic.module[0])] == [0.5, 0.5]
    assert networks.encoder.window == 3 and critic.module[0].cache_key == keys.CRITIC_CACHE


def test_a_kind_may_have_a_memory_of_its_own():
    networks = build_networks(**SIZES, encoder_kind=f"{PATH}OWN", fade=0.25)
    assert networks.memory.fade == 0.25 and isinstance(networks.memory, RecurrentMemory)
    (memory, *_) = acting_policy(networks).module
    assert memory.fade == 0.25 and memory is not networks.memory
    with pytest.raises(ValueError, match="scope='lane' must be 'trial'"):
        acting_policy(networks, scope="lane")


@pytest.mark.parametrize("kind", registry.ENCODERS)
def test_the_defaults_are_those_of_the_recipes(kind):
    """Of what no benchmark changes: the same network whether it is built from YAML or from nothing."""
    shipped = network_settings(load_config("base", [f"encoder={kind}"]))
    changed = {"trmrl": {"d_model", "intra_layers", "norm", "critic_kind"}}.get(kind, set())  # its paper's sizes
    for name, parameter in settings_of(find_kind(kind)).items():
        if name in shipped and name not in {"reward_scale", "seed", "episodes"} | changed:
            assert shipped[name] == parameter.default, name


def test_unknown_settings_are_refused_and_those_of_other_kinds_not_read():
    networks = build_networks(**SIZES, mlp_layers=7, window=2)
    assert networks.encoder.window == 2
    with pytest.raises(TypeError, match=r"'widow' is no setting of the networks; they have .*strategy.*window"):
        build_networks(**SIZES, widow=2)
    with pytest.raises(TypeError, match="'cache_key' is no setting"):
        build_networks(**SIZES, cache_key=("context", "x"))
    for path, said in (("nothing", "no 'nothing'"), ("SIZES", "neither a ContextEncoder")):
        with pytest.raises(ValueError, match=said):
            build_networks(**SIZES, encoder_kind=PATH + path)
    with pytest.raises(ValueError, match="made RecurrentMemory, which is no ContextEncoder"):
        registry.build_encoder(EncoderKind(partial(RecurrentMemory, [])), settings={})


@pytest.mark.parametrize("kind", registry.ENCODERS)
def test_networks_can_be_pickled_with_what_makes_another_memory(kind):
    networks = build_networks(**SIZES, encoder_kind=kind, seed=3)
    policy = acting_policy(pickle.loads(pickle.dumps(networks)), seed=4)
    assert isinstance(policy, TensorDictSequential) and type(policy.module[0]) is type(networks.memory)
    assert getattr(policy.module[0], "seed", 4) == 4


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [1, 0], [1.0, True, "1", None, 2**63]),
        (float, [1, 0.5], [True, "1", float("inf"), None]),
        (bool, [True], [1, "true"]),
        (str, ["a"], [1, None]),
        (Literal["a", "b"], ["a"], ["c", 1, ["a"]]),
        (Literal["a", "b"] | None, ["a", None], ["c", 1]),
        (int | None, [1, None], [1.5, "x"]),
        (list[float], [[1, 2.5], []], [1, [True], [float("nan")], ["a"]]),
        (inspect.Parameter.empty, [1, "a", None, [1]], []),
    ],
)
def test_values_from_files_are_of_the_annotated_types(hint, right, wrong):
    assert all(is_of(hint, value) for value in right) and not any(is_of(hint, value) for value in wrong)


def test_words_of_annotations():
    assert choices_of(Literal["a", "b"] | None) == choices_of(Literal["a", "b"]) == ("a", "b")
    assert choices_of(int | None) == () == choices_of(str)


def test_the_memoryless_kind_is_checked_like_the_others():
    """Its memory knows the encoder, so another environment's sizes show at the first step."""
    networks = build_networks(**SIZES | {"observation_dim": 3}, encoder_kind="mlp")
    assert isinstance(networks.encoder, MemorylessEncoder) and networks.memory.window == 1
    step = steps(as_batch(record([[[2]]], window=1, episodes=1)))[0]
    with pytest.raises(MismatchError, match="'observation' has size 2 and the encoder was built for 3"):
        networks.memory(step)
