"""What is saved is what is restored, bit for bit; a resumed run equals one that was never interrupted."""

import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from torchrl.checkpoint import Checkpoint
from torchrl.collectors import Collector

from htrmrl_torchrl import (
    EpisodicReplayBuffer,
    EpisodicStorage,
    HTrMRLAgent,
    NormalizedClipPPOLoss,
    TrialGAE,
    keys,
    make_env,
)
from htrmrl_torchrl.checkpoint import RunCheckpoints, latest_checkpoint, read_component
from htrmrl_torchrl.data.strategies import STRATEGIES
from htrmrl_torchrl.evaluation import play_trials
from htrmrl_torchrl.modules.heads import value_head
from htrmrl_torchrl.networks import acting_policy, build_networks, load_networks
from htrmrl_torchrl.versions import versions

LANES, K, H = 3, 3, 6


class Run:
    """A small training run; `seed` decides everything."""

    def __init__(
        self, folder, *, seed=0, value_norm=True, critic_kind="shared", encoder_kind="htrmrl", strategy="uniform",
        scope="trial", max_episodes=None,
    ):  # fmt: skip
        torch.manual_seed(seed)
        self.env = make_env("toy", num_envs=LANES, episodes_per_trial=K, seed=seed)
        self.arguments = {
            "observation_dim": 3, "action_low": [-1.0] * 2, "action_high": [1.0] * 2, "window": 2, "episodes": 3,
            "d_model": 8, "num_heads": 2, "intra_layers": 1, "inter_layers": 1, "value_norm": value_norm,
            "critic_kind": critic_kind, "encoder_kind": encoder_kind, "strategy": strategy, "scope": scope,
            "max_episodes": max_episodes, "seed": seed,
        }  # fmt: skip
        self.networks = build_networks(**self.arguments)
        self.loss = NormalizedClipPPOLoss(self.networks.actor, self.networks.critic, loss_critic_type="l2")
        self.optimizer = torch.optim.Adam(self.loss.parameters(), lr=0.01)
        encoder = self.networks.encoder
        remembered = LANES * H * max_episodes if scope == "lane" else 0
        storage = EpisodicStorage(
            LANES * K * H + remembered, window=encoder.window, episodes=encoder.episodes, scope=scope,
            max_episodes=max_episodes,
        )  # fmt: skip
        self.buffer = EpisodicReplayBuffer(storage=storage, batch_size=18, segment_frames=H)
        self.collector = Collector(
            self.env, self.networks.policy, frames_per_batch=LANES * K * H, total_frames=-1,
            auto_register_policy_transforms=False,
        )  # fmt: skip
        self.progress = {"frames": 0, "best": -1.0}
        self.checkpoints = RunCheckpoints(
            folder, keep=2, agent=self.arguments, config={"seed": seed}, progress=self.progress,
            actor=self.networks.actor, critic=self.networks.critic, optimizer=self.optimizer, env=self.env,
            memory=self.networks.memory, storage=storage if scope == "lane" else None,
        )  # fmt: skip
        self.batches = None

    def restore(self, path):
        self.checkpoints.restore(path)
        self.collector.reset()

    def iterate(self, count=1):
        self.batches = self.batches or iter(self.collector)
        gae, collected = TrialGAE(), []
        for _ in range(count):
            batch = next(self.batches)
            self.buffer.empty()
            targets = gae(batch)
            self.buffer.assign(self.buffer.extend(batch), targets)
            value_head(self.networks.critic).adapt(targets[keys.VALUE_TARGET])
            for minibatch in self.buffer:
                losses = self.loss(minibatch)
                self.optimizer.zero_grad()
                (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
                self.optimizer.step()
            self.progress["frames"] += batch.numel()
            collected.append(batch.clone())
        return collected

    def state(self):
        """All that is saved, flat and comparable."""
        optimizer = self.optimizer.state_dict()
        return {
            "weights": {**self.networks.policy.state_dict()},
            "moments": {(i, k): v for i, of in optimizer["state"].items() for k, v in of.items()},
            "groups": str(optimizer["param_groups"]),
            "memory": str(self.networks.memory.checkpoint_state()),
            "storage": str(self.buffer.storage.checkpoint_state()),
            "deck": self.env.checkpoint_state()["deck"],
            "progress": dict(self.progress),
        }


def assert_equal(received, expected):
    for part in ("weights", "moments"):
        assert received[part].keys() == expected[part].keys()
        for name, value in expected[part].items():
            assert torch.equal(received[part][name], value), name
    for part in ("groups", "memory", "storage", "deck", "progress"):
        assert received[part] == expected[part], part


@pytest.mark.parametrize("critic_kind", ["shared", "separate"])
def test_everything_is_restored_bit_for_bit_into_new_objects(tmp_path, critic_kind):
    run = Run(tmp_path, critic_kind=critic_kind)
    run.iterate(2)
    path = run.checkpoints.save()
    expected, rng = run.state(), torch.get_rng_state()
    other = Run(tmp_path, seed=9, critic_kind=critic_kind)
    with pytest.raises(AssertionError):
        assert_equal(other.state(), expected)
    other.checkpoints.restore(path)
    assert torch.equal(torch.get_rng_state(), rng)
    assert_equal(other.state(), expected)


REMEMBER = [
    {},
    {"encoder_kind": "rl2"},
    {"strategy": "similar", "max_episodes": 2},
    *({"strategy": strategy, "scope": "lane", "max_episodes": 5} for strategy in STRATEGIES),
]


@pytest.mark.parametrize("remember", REMEMBER, ids=str)
def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path, remember):
    torch.set_printoptions(threshold=1_000_000, precision=10)  # states are compared as text
    straight = Run(tmp_path / "a", **remember)
    expected = straight.iterate(4)[2:]
    interrupted = Run(tmp_path / "b", **remember)
    interrupted.iterate(2)
    path = interrupted.checkpoints.save()
    interrupted.iterate(1)  # what was not saved is lost
    resumed = Run(tmp_path / "c", seed=3, **remember)
    resumed.restore(path)
    for batch, other in zip(resumed.iterate(2), expected, strict=True):
        for key in (keys.ACTION, keys.OBSERVATION, keys.GOAL, keys.LOG_PROB, keys.STATE_VALUE, keys.WINDOW_START,
                    keys.WINDOW_EPISODE, keys.WINDOW_CURRENT):  # fmt: skip
            assert torch.equal(batch[key], other[key]), key
    assert_equal(resumed.state(), straight.state())


@pytest.mark.parametrize("forgets", ["memory", "storage"])
def test_with_scope_lane_memory_and_storage_must_both_go_on(tmp_path, forgets):
    """Negative control: without either, a resumed run is another one, or ends."""
    remember = {"strategy": "recent", "scope": "lane", "max_episodes": 5}
    run = Run(tmp_path / "a", **remember)
    run.iterate(2)
    resumed = Run(tmp_path / "b", **remember)
    resumed.restore(run.checkpoints.save())
    if forgets == "memory":
        resumed.networks.memory.forget()
        assert not (resumed.iterate()[0][:, 0] == run.iterate()[0][:, 0])[keys.WINDOW_EPISODE].all()
    else:
        resumed.buffer.storage.load_checkpoint_state({})
        frames = resumed.buffer.extend(next(iter(resumed.collector)))
        with pytest.raises(ValueError, match="not in the storage"):
            resumed.buffer.storage.contexts(frames)


@pytest.mark.parametrize("encoder_kind", ["htrmrl", "trmrl", "rl2", "mlp"])
def test_a_checkpoint_is_an_agent(tmp_path, encoder_kind):
    """Without the run's code or configuration, and without changing what the run goes on with."""
    run = Run(tmp_path, encoder_kind=encoder_kind)
    run.iterate(2)
    path = run.checkpoints.save()
    loaded = load_networks(path)
    for part in ("actor", "critic"):
        ours, theirs = (getattr(networks, part).state_dict() for networks in (loaded, run.networks))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    env = make_env("toy", num_envs=4, pairs=[(0, goal) for goal in range(4)], episodes_per_trial=K + 1)
    outcomes = [play_trials(acting_policy(n, seed=2), env, adaptation_episodes=K) for n in (loaded, run.networks)]
    assert (outcomes[0] == outcomes[1]).all()
    untrained = play_trials(acting_policy(Run(tmp_path, seed=5).networks, seed=2), env, adaptation_episodes=K)
    assert not torch.equal(untrained["return"], outcomes[0]["return"])


def test_a_checkpoint_from_before_there_were_baselines_is_htrmrl(tmp_path):
    run = Run(tmp_path)
    del run.arguments["encoder_kind"]
    loaded = load_networks(run.checkpoints.save())
    assert type(loaded.encoder) is type(run.networks.encoder)


def test_the_latest_and_the_best_are_kept(tmp_path):
    run = Run(tmp_path)
    paths = []
    for val_success in (0.1, 0.5, 0.3):
        run.iterate()
        paths.append(run.checkpoints.save())
        run.checkpoints.save_best(val_success)
    assert latest_checkpoint(tmp_path) == paths[-1]
    assert [path.exists() for path in paths] == [False, True, True]
    best = [path for path in tmp_path.iterdir() if path.name.startswith("best")]
    second = 2 * LANES * K * H
    # The newest stays beside the best one, as the rotation keeps one of the last.
    assert any(str(second) in path.name for path in best) and len(best) <= 2
    loaded = load_networks(next(path for path in best if str(second) in path.name))
    assert loaded.encoder.window == 2


def test_no_folder_and_an_empty_one_have_no_latest(tmp_path):
    assert latest_checkpoint(tmp_path / "none") is None
    assert latest_checkpoint(tmp_path) is None


def test_other_shapes_are_refused(tmp_path):
    run = Run(tmp_path)
    path = run.checkpoints.save()
    other = Run(tmp_path, critic_kind="separate")
    before = {name: value.clone() for name, value in other.networks.actor.state_dict().items()}
    with pytest.raises(Exception, match=r"(?s)critic"):
        other.checkpoints.restore(path)
    assert before.keys() == other.networks.actor.state_dict().keys()


def test_in_the_middle_of_a_trial_nothing_can_be_saved(tmp_path):
    run = Run(tmp_path)
    with torch.no_grad():
        now = run.env.reset()
        for _ in range(4):
            _, now = run.env.step_and_maybe_reset(run.networks.policy(now))
    with pytest.raises(RuntimeError, match=r"at trial boundaries only"):
        run.checkpoints.save()
    assert latest_checkpoint(tmp_path) is None


# ----------------------------------------------------------------------------------------------------- self-contained


def test_versions_configuration_and_frames_are_inside(tmp_path):
    run = Run(tmp_path)
    run.iterate()
    path = run.checkpoints.save()
    assert read_component(path, "versions") == versions()
    assert set(versions()) >= {"python", "torch", "torchrl", "tensordict", "metaworld", "mujoco", "htrmrl_torchrl"}
    assert read_component(path, "config") == {"seed": 0}
    assert read_component(path, "agent") == run.arguments
    assert read_component(path, "progress") == {"frames": LANES * K * H, "best": -1.0}


ELSEWHERE = """
import sys
for absent in ("hydra", "omegaconf", "recipes"):
    sys.modules[absent] = None  # importing it raises ModuleNotFoundError
import json
import numpy as np
from htrmrl_torchrl import HTrMRLAgent
agent = HTrMRLAgent.from_checkpoint(sys.argv[1])
agent.reset()
json.dump(agent.act(np.ones(3, dtype=np.float32), deterministic=True).tolist(), sys.stdout)
"""


def test_a_checkpoint_acts_in_a_process_without_clone_or_configuration(tmp_path):
    run = Run(tmp_path / "run")
    run.iterate()
    path = run.checkpoints.save()
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(path)],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    agent = HTrMRLAgent(run.networks)
    agent.reset()
    assert json.loads(done.stdout) == agent.act(np.ones(3, dtype=np.float32), deterministic=True).tolist()


# ------------------------------------------------------------------------------------------------------------ foreign


class Attack:
    """Unpickling it creates a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def rewritten(path, target, *, files=None, without=(), damage=None):
    """A copy of a checkpoint with other files in it, which its manifest knows, or fewer."""
    files = files or {}
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        manifest = json.loads(source.read("manifest.json"))
        for name in files:
            component = next(c for c in manifest["components"].values() if name.startswith(c["path"] + "/"))
            component["files"] = [*{*component["files"], name.removeprefix(component["path"] + "/")}]
        files = {**files, "manifest.json": json.dumps(manifest).encode()}
        for name in [n for n in source.namelist() if n not in files and n not in without]:
            archive.writestr(name, source.read(name))
        for name, content in files.items():
            archive.writestr(name, content)
    return target


def in_a_non_tensor(path, attack):
    """Tensordict keeps what is no tensor in a pickle beside its metadata, and loads it unasked."""
    folder = "components/0000-actor/state"
    with zipfile.ZipFile(path) as archive:
        metadata = json.loads(archive.read(f"{folder}/meta.json"))
    kind = "<class 'tensordict.tensorclass.NonTensorData'>"
    return {
        f"{folder}/meta.json": json.dumps({**metadata, "extra": {"type": kind}}),
        f"{folder}/extra/meta.json": json.dumps({"_type": kind}),
        f"{folder}/extra/other.pickle": pickle.dumps({"data": attack}),
    }


def in_a_torch_file(path, attack):
    return {"components/0000-actor/state.pt": pickle.dumps(attack)}


@pytest.mark.parametrize("hide", [in_a_non_tensor, in_a_torch_file])
def test_nothing_in_a_checkpoint_is_executed(hide, tmp_path):
    run = Run(tmp_path / "run")
    path, mark = run.checkpoints.save(), tmp_path / "executed"
    evil = rewritten(path, tmp_path / "evil.torchrl", files=hide(path, Attack(mark)))
    victim = Run(tmp_path / "victim")
    for load in (load_networks, HTrMRLAgent.from_checkpoint, victim.checkpoints.restore):
        with pytest.raises(ValueError, match=r"evil\.torchrl holds .*, but tensors and JSON are all that is read"):
            load(evil)
        assert not mark.exists()
    load_networks(rewritten(path, tmp_path / "benign.torchrl"))  # rewriting alone is no fault


@pytest.mark.filterwarnings("ignore:TensorDict.load_memmap is loading a pickled:FutureWarning")
def test_the_attack_works_where_nobody_looks(tmp_path):
    """Negative control: torchrl alone executes what is hidden in a non-tensor."""
    run = Run(tmp_path / "run")
    path, mark = run.checkpoints.save(), tmp_path / "executed"
    evil = rewritten(path, tmp_path / "evil.torchrl", files=in_a_non_tensor(path, Attack(mark)))
    Checkpoint(actor=run.networks.actor).load(evil, components=["actor"])
    assert mark.is_dir()


def truncated(path, target):
    target.write_bytes(path.read_bytes()[:-5000])


def with_a_flipped_bit(path, target):
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("components/0000-actor/state/tensor_00000042.memmap").header_offset
    content[start + 1000] ^= 1
    target.write_bytes(content)


def without_a_tensor(path, target):
    rewritten(path, target, without=["components/0000-actor/state/tensor_00000042.memmap"])


def with_other_sizes(path, target):
    with zipfile.ZipFile(path) as archive:
        agent = json.loads(archive.read("components/0001-agent/value.json"))
    rewritten(path, target, files={"components/0001-agent/value.json": json.dumps({**agent, "d_model": 16})})


def with_an_unknown_argument(path, target):
    rewritten(path, target, files={"components/0001-agent/value.json": json.dumps({"layers": 3})})


def with_a_list_for_a_manifest(path, target):
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("manifest.json", "[]")


@pytest.mark.parametrize(
    "spoil",
    [
        truncated,
        with_a_flipped_bit,
        without_a_tensor,
        with_other_sizes,
        with_an_unknown_argument,
        with_a_list_for_a_manifest,
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(spoil, tmp_path):
    path = Run(tmp_path / "run").checkpoints.save()
    target = tmp_path / "damaged.torchrl"
    spoil(path, target)
    with pytest.raises(ValueError, match=r"damaged\.torchrl is not a checkpoint of this package, or damaged"):
        load_networks(target)


def test_a_component_that_is_not_inside_is_refused_by_name(tmp_path):
    path = Run(tmp_path).checkpoints.save()
    with pytest.raises(ValueError, match=rf"{path.name} is not a checkpoint"):
        read_component(path, "colours")
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint at .*nowhere"):
        read_component(tmp_path / "nowhere", "config")
