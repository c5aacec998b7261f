"""What is saved is what is restored, bit for bit; a resumed run equals one that was never interrupted."""

import copy
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torchrl import torchrl_logger
from torchrl.checkpoint import GlobalRNGState
from torchrl.collectors import Collector

from htrmrl_torchrl import (
    EpisodicReplayBuffer,
    EpisodicStorage,
    HTrMRLAgent,
    NormalizedClipPPOLoss,
    TaskRewardNormalizer,
    TrialGAE,
    keys,
    make_env,
)
from htrmrl_torchrl.agent.heads import value_head
from htrmrl_torchrl.agent.networks import acting_policy, build_networks, load_networks
from htrmrl_torchrl.checkpoints.archive import check_archive
from htrmrl_torchrl.checkpoints.checkpoint import (
    checkpoints_of,
    export_agent,
    latest_checkpoint,
    read_component,
)
from htrmrl_torchrl.checkpoints.files import set_aside
from htrmrl_torchrl.checkpoints.versions import versions
from htrmrl_torchrl.evaluation import play_trials
from htrmrl_torchrl.memory.strategies import STRATEGIES
from htrmrl_torchrl.runs.checkpoint import RunCheckpoints
from htrmrl_torchrl.runs.progress import Progress
from tests.helpers import rules

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
        self.rewards = TaskRewardNormalizer(num_tasks=1, gamma=0.99)
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
        self.progress = Progress(best_val_success=-1.0)
        self.checkpoints = RunCheckpoints(
            folder, keep=2, agent=self.arguments, config={"seed": seed}, progress=self.progress,
            actor=self.networks.actor, critic=self.networks.critic, optimizer=self.optimizer,
            rewards=self.rewards, env=self.env, memory=self.networks.memory,
            storage=storage if scope == "lane" else None,
        )  # fmt: skip
        self.batches = None

    def restore(self, path):
        self.checkpoints.restore(path)
        self.collector.reset()

    def save(self):
        self.checkpoints.mark()
        return self.checkpoints.save()

    def iterate(self, count=1):
        self.batches = self.batches or iter(self.collector)
        gae, collected = TrialGAE(), []
        for _ in range(count):
            batch = next(self.batches)
            self.buffer.empty()
            self.rewards.adapt(batch)
            targets = gae(self.rewards(batch))
            self.buffer.assign(self.buffer.extend(batch), targets)
            value_head(self.networks.critic).adapt(targets[keys.VALUE_TARGET])
            for minibatch in self.buffer:
                losses = self.loss(minibatch)
                self.optimizer.zero_grad()
                (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
                self.optimizer.step()
            self.networks.encoder.tokens.adapt(batch[keys.OBSERVATION])
            self.progress.frames += batch.numel()
            collected.append(batch.clone())
        return collected

    def state(self):
        """All that is saved, flat and comparable."""
        optimizer = self.optimizer.state_dict()
        return {
            "weights": {**self.networks.policy.state_dict(), **self.rewards.state_dict()},
            "moments": {(i, k): v for i, of in optimizer["state"].items() for k, v in of.items()},
            "groups": str(optimizer["param_groups"]),
            "memory": str(self.networks.memory.checkpoint_state()),
            "storage": str(self.buffer.storage.checkpoint_state()),
            "deck": self.env.checkpoint_state()["deck"],
            "progress": asdict(self.progress),
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
    path = run.save()
    expected, rng = run.state(), torch.get_rng_state()
    other = Run(tmp_path, seed=9, critic_kind=critic_kind)
    with pytest.raises(AssertionError):
        assert_equal(other.state(), expected)
    other.checkpoints.restore(path)
    assert torch.equal(torch.get_rng_state(), rng)
    assert_equal(other.state(), expected)


def test_a_run_of_a_machine_with_more_gpus_goes_on_without_their_streams(tmp_path, monkeypatch):
    of_this_machine = GlobalRNGState.state_dict
    streams = [torch.zeros(16, dtype=torch.uint8)] * (torch.cuda.device_count() + 1)
    monkeypatch.setattr(GlobalRNGState, "state_dict", lambda self: of_this_machine(self) | {"torch_cuda": streams})
    run = Run(tmp_path)
    run.iterate()
    path = run.save()
    expected = run.iterate()[0]
    resumed = Run(tmp_path, seed=9)
    resumed.restore(path)
    assert torch.equal(resumed.iterate()[0][keys.ACTION], expected[keys.ACTION])


def test_other_versions_are_said_once_and_only_where_a_run_goes_on(tmp_path, monkeypatch, caplog):
    run = Run(tmp_path)
    path = run.save()
    monkeypatch.setattr("htrmrl_torchrl.runs.checkpoint.versions", lambda: versions() | {"torchrl": "9.0"})
    torchrl_logger.addHandler(caplog.handler)
    try:
        load_networks(path)
        read_component(path, "config")
        export_agent(path, tmp_path / "agent.torchrl")
        assert not caplog.records
        run.checkpoints.restore(path)
    finally:
        torchrl_logger.removeHandler(caplog.handler)
    (record,) = caplog.records
    assert record.getMessage().endswith(f"other versions: torchrl {versions()['torchrl']} then and 9.0 now.")


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
    path = interrupted.save()
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
    resumed.restore(run.save())
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
    path = run.save()
    loaded = load_networks(path)
    for part in ("actor", "critic"):
        ours, theirs = (getattr(networks, part).state_dict() for networks in (loaded, run.networks))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    env = make_env("toy", num_envs=4, pairs=[(0, goal) for goal in range(4)], episodes_per_trial=K + 1)
    outcomes = [play_trials(acting_policy(n, seed=2), env, rules(K)) for n in (loaded, run.networks)]
    assert (outcomes[0] == outcomes[1]).all()
    untrained = play_trials(acting_policy(Run(tmp_path, seed=5).networks, seed=2), env, rules(K))
    assert not torch.equal(untrained["return"], outcomes[0]["return"])


def test_a_checkpoint_from_before_there_were_baselines_is_htrmrl(tmp_path):
    run = Run(tmp_path)
    del run.arguments["encoder_kind"]
    loaded = load_networks(run.save())
    assert type(loaded.encoder) is type(run.networks.encoder)


def test_the_latest_and_the_best_are_kept(tmp_path):
    run = Run(tmp_path)
    paths = []
    for best in (0.1, 0.5, None):  # whether it is the best one is the caller's to say
        run.iterate()
        paths.append(run.save())
        if best is not None:
            run.checkpoints.save_best(best)
    assert latest_checkpoint(tmp_path) == (paths[-1], {})
    assert [path.exists() for path in paths] == [False, True, True]
    best = [path for path in tmp_path.iterdir() if path.name.startswith("best")]
    second = 2 * LANES * K * H
    assert [path.stem for path in best] == [f"best-{second:012d}"]
    assert load_networks(best[0]).encoder.window == 2


def test_no_folder_and_an_empty_one_have_no_latest(tmp_path):
    assert latest_checkpoint(tmp_path / "none") == (None, {})
    assert latest_checkpoint(tmp_path) == (None, {})


def test_other_shapes_are_refused(tmp_path):
    run = Run(tmp_path)
    path = run.save()
    other = Run(tmp_path, critic_kind="separate")
    with pytest.raises(ValueError, match=r"its optimizer does not fit: it is of other parameters"):
        other.checkpoints.restore(path)


def test_in_the_middle_of_a_trial_nothing_can_be_saved(tmp_path):
    run = Run(tmp_path)
    with torch.no_grad():
        now = run.env.reset()
        for _ in range(4):
            _, now = run.env.step_and_maybe_reset(run.networks.policy(now))
    with pytest.raises(RuntimeError, match=r"at trial boundaries only"):
        run.save()
    assert latest_checkpoint(tmp_path) == (None, {})


# ----------------------------------------------------------------------------------------------------- self-contained


def test_versions_configuration_and_frames_are_inside(tmp_path):
    run = Run(tmp_path)
    run.iterate()
    path = run.save()
    assert read_component(path, "versions") == versions()
    assert set(versions()) >= {"python", "torch", "torchrl", "tensordict", "metaworld", "mujoco", "htrmrl_torchrl"}
    assert read_component(path, "config") == {"seed": 0}
    assert read_component(path, "agent") == run.arguments
    assert read_component(path, "progress") == asdict(Progress(frames=LANES * K * H, best_val_success=-1.0))


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
    path = run.save()
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(path)],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    agent = HTrMRLAgent(run.networks)
    agent.reset()
    assert json.loads(done.stdout) == agent.act(np.ones(3, dtype=np.float32), deterministic=True).tolist()


@pytest.mark.parametrize("settings", [{}, {"encoder_kind": "rl2"}, {"critic_kind": "separate"}], ids=str)
def test_an_exported_agent_is_the_same_agent_and_nothing_else(tmp_path, settings):
    run = Run(tmp_path / "run", **settings)
    run.iterate()
    path = run.save()
    before = path.read_bytes()
    out = export_agent(path, tmp_path / "new" / "agent.torchrl")
    assert out == tmp_path / "new" / "agent.torchrl" and [*out.parent.iterdir()] == [out]
    assert path.read_bytes() == before
    described = {"agent", "config", "versions", "progress"}
    assert set(check_archive(out)) == described | {"actor", "critic"}
    assert all(read_component(out, name) == read_component(path, name) for name in described)
    for _ in range(2):
        for part in ("actor", "critic"):
            expected, found = (getattr(load_networks(file), part).state_dict() for file in (path, out))
            assert expected.keys() == found.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        export_agent(out, out)  # over the file that is there, from the exported agent itself
    assert out.stat().st_size < path.stat().st_size


def test_a_run_does_not_go_on_from_an_exported_agent(tmp_path):
    run = Run(tmp_path / "run")
    out = export_agent(run.save(), tmp_path / "agent.torchrl")
    before = run.state()
    with pytest.raises(ValueError, match=r"agent\.torchrl has no env, .*continue from a checkpoint of a run's"):
        run.checkpoints.restore(out)
    assert_equal(run.state(), before)


def test_what_is_no_checkpoint_is_not_exported(tmp_path):
    (tmp_path / "text").write_text("text")
    for path, error in (("text", ValueError), ("nowhere", FileNotFoundError)):
        with pytest.raises(error, match=path):
            export_agent(tmp_path / path, tmp_path / "agent.torchrl")
    assert [*tmp_path.iterdir()] == [tmp_path / "text"]


# ---------------------------------------------------------------------------------------------------------- boundaries


def test_the_marked_boundary_is_what_is_saved(tmp_path):
    """Whatever happens after it was marked: here an iteration, and another one that was not finished."""
    run = Run(tmp_path)
    run.iterate()
    run.checkpoints.mark()
    expected, rng = run.state(), torch.get_rng_state()
    weights = {name: value.clone() for name, value in expected["weights"].items()}
    moments = {key: value.clone() for key, value in expected["moments"].items()}
    run.iterate()
    run.networks.policy(run.env.reset())  # somewhere in the middle of a trial, where the present cannot be saved
    path = run.checkpoints.save()
    assert path == run.checkpoints.save()  # once is enough
    other = Run(tmp_path, seed=9)
    other.checkpoints.restore(path)
    assert_equal(other.state(), {**expected, "weights": weights, "moments": moments})
    assert torch.equal(torch.get_rng_state(), rng)
    now = run.state()["weights"]
    moved = {name.rpartition(".")[2] for name, value in weights.items() if not torch.equal(now[name], value)}
    assert moved >= {"weight", "bias", "count"}  # parameters, and the statistics of the tokens


def test_a_restored_boundary_is_saved_as_it_was(tmp_path):
    run = Run(tmp_path / "a")
    run.iterate(2)
    path = run.save()
    other = Run(tmp_path / "b", seed=9)
    other.restore(path)
    with zipfile.ZipFile(path) as one, zipfile.ZipFile(other.save()) as two:
        names = [name for name in one.namelist() if name.endswith(("tree.json", "tensors.bin", "value.json"))]
        assert len(names) == 18  # seven states of two files each, four of plain JSON
        differing = {name.split("/")[1] for name in names if one.read(name) != two.read(name)}
    assert differing == {"0001-agent", "0002-config"}  # which hold the seed that the other run was built with


@pytest.mark.parametrize("value_norm", [True, False])
def test_all_kinds_of_state_are_inside(value_norm, tmp_path):
    """Weights, optimizer, normalisers, counters, decks and draws, streams, global generators, the best so far."""
    run = Run(tmp_path, value_norm=value_norm)
    run.iterate(2)
    with zipfile.ZipFile(run.save()) as archive:
        trees = {
            name.split("/")[1].split("-")[1]: json.loads(archive.read(name))
            for name in archive.namelist()
            if name.endswith(("tree.json", "value.json"))
        }

    def entries(tree):
        return dict(tree["dict"])

    statistics = {"module.norm.running_mean", "module.norm.running_mean_sq", "module.norm.debiasing_term"}
    assert statistics & set(entries(trees["critic"])) == (statistics if value_norm else set())
    assert set(entries(trees["rewards"])) == {"square", "weight"}
    first_moments = entries(entries(entries(trees["optimizer"])["state"])[0])
    assert set(first_moments) == {"step", "exp_avg", "exp_avg_sq"}
    deck = entries(entries(trees["env"])["deck"])
    assert set(deck) == {"rng", "lane_task", "dealt", "goals"}
    assert entries(trees["env"])["pending"] is not None
    assert len(entries(trees["memory"])["streams"]["list"]) == LANES
    assert set(entries(trees["rng"])) >= {"python", "numpy", "torch_cpu"}
    assert trees["progress"] == asdict(run.progress)


def test_litter_is_swept(tmp_path):
    """And nothing else, nor what a link among it leads to."""
    (tmp_path / "kept").mkdir()
    tmp_path, elsewhere = tmp_path / "run", tmp_path / "kept"
    (elsewhere / "file").touch()
    run = Run(tmp_path)
    path = run.save()
    (tmp_path / ".step-1.torchrl").symlink_to(elsewhere)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".stage" / "components").mkdir(parents=True)
    (tmp_path / ".stage" / "components" / "tensors.bin").touch()
    again = Run(tmp_path)
    assert (tmp_path / ".stage").exists()  # until something is saved: a start that is refused later has changed nothing
    again.save()
    assert sorted(tmp_path.iterdir()) == [tmp_path / ".git", tmp_path / ".step-1.torchrl", path]
    assert (elsewhere / "file").exists()


# names in a folder of checkpoints that are not ours, or not files -> what is there
ODD_ENTRIES = {
    "step-abc.torchrl": "file", "step-000000000018 (copy).torchrl": "file", "best-.torchrl": "file",
    "step-\u00b2.torchrl": "file", "step-9.torchrl.tmp": "file", "step-000000000001.torchrl": "link to a folder",
    "step-000000000002.torchrl": "folder", "best-000000000003.torchrl": "link to nothing", ".DS_Store": "file",
    "step-000000000004.torchrl": "pipe",
}  # fmt: skip


def test_odd_entries_harm_nothing(tmp_path):
    """Neither finding the newest one nor saving and removing old ones opens, follows or deletes what is not theirs."""
    run = Run(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    for name, kind in ODD_ENTRIES.items():
        path = tmp_path / name
        if kind == "file":
            path.touch()
        elif kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(tmp_path / ("elsewhere" if kind == "link to a folder" else "nothing"))
    for _ in range(4):
        run.iterate()
        path = run.save()
        run.checkpoints.save_best(0.5)
    assert latest_checkpoint(tmp_path) == (path, {})
    assert (tmp_path / "elsewhere" / "precious").exists()
    names = {entry.name for entry in tmp_path.iterdir()}
    assert {name for name, kind in ODD_ENTRIES.items() if kind == "file"} <= names


@pytest.mark.parametrize("kind", ["a link to nothing", "a folder", "a link to a folder"])
def test_what_cannot_be_read_is_named_and_an_older_one_is_found(kind, tmp_path):
    older = Run(tmp_path).save()
    newest = tmp_path / "step-000000000099.torchrl"
    if kind == "a folder":
        newest.mkdir()
    else:
        newest.symlink_to(tmp_path / ("nothing" if kind == "a link to nothing" else "."))
    path, damaged = latest_checkpoint(tmp_path)
    assert path == older and list(damaged) == [newest]
    set_aside(newest)
    set_aside_too = tmp_path / "damaged-step-000000000099.torchrl"
    assert latest_checkpoint(tmp_path) == (older, {}) and os.path.lexists(set_aside_too)
    newest.touch()
    assert set_aside(newest).name == "damaged-2-step-000000000099.torchrl"  # the first one is still there


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "not_mounted")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(OSError):
            latest_checkpoint(tmp_path / name)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_was_moved_away_is_not_made_anew(replaced, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    run = Run(folder)
    run.save()
    (tmp_path / "run").rename(tmp_path / "moved")
    if replaced:  # by another run, which has begun meanwhile
        folder.mkdir(parents=True)
    run.iterate()
    with pytest.raises(FileNotFoundError, match="its folder was moved"):
        run.save()
    assert list(tmp_path.glob("run/checkpoints/*")) == []
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    (tmp_path / "moved").rename(tmp_path / "run")
    assert run.save().exists()


def test_rewinding_removes_another_future(tmp_path):
    """Of which there are as many as are kept, so that none of the past is left but the file it goes back to."""
    run = Run(tmp_path / "run")
    for number in range(3):
        run.iterate()
        path = run.save()
        run.checkpoints.save_best(0.1 * number)
        if number == 0:
            first = shutil.copy(path, tmp_path / "first.torchrl")
    assert not (tmp_path / "run" / f"step-{LANES * K * H:012d}.torchrl").exists()
    other = Run(tmp_path / "run", seed=3)
    other.restore(first)
    other.checkpoints.mark()
    other.checkpoints.rewind()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [f"step-{LANES * K * H:012d}.torchrl"]


# ----------------------------------------------------------------------------------- what else is in such a folder

THINGS = {  # by what is wrong with them
    "a link to a folder": (lambda path: path.symlink_to(path.parent), "not a file"),
    "a link to nothing": (lambda path: path.symlink_to(path.parent / "nothing"), "cannot be read: a link to nothing"),
    "a link to itself": (lambda path: path.symlink_to(path), "it cannot be read: Too many levels of symbolic links"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "not a file"),
    "a folder": (lambda path: (path / "inside").mkdir(parents=True), "not a file"),
    "a pipe": (os.mkfifo, "not a file"),  # whoever opens it waits for ever
    "an empty file": (lambda path: path.touch(), "no checksum at its end"),
    "a zip file of something else": (
        lambda path: zipfile.ZipFile(path, "w").writestr("manifest.json", "[]"), "no checksum at its end",
    ),
}  # fmt: skip
ODD = [
    "step-.torchrl", "step-12.torchrl", "step-x00000000000.torchrl", "step-000000000999",
    "step-000000000999.torchrl.bak",
    "best-000000000999.zip", "step-\u0663\u0663\u0663\u0663\u0663\u0663\u0663\u0663\u0663\u0663\u0663\u0663.torchrl",
    f"step-{'9' * 240}.torchrl", os.fsdecode(b"best-\xff\xfe.torchrl"), "step-\n.torchrl", "step-*.torchrl",
]  # fmt: skip


@pytest.mark.parametrize("thing", THINGS)
def test_other_things_among_the_checkpoints_are_named_and_left(thing, tmp_path):
    """A run goes on from what is whole, saves and prunes, and removes nothing that it has not written."""
    make, why = THINGS[thing]
    run = Run(tmp_path)
    run.iterate()
    path = run.save()
    run.checkpoints.save_best(0.1)
    things = [tmp_path / f"{kind}-999999999999.torchrl" for kind in ("step", "best")]
    for other in things:
        make(other)
    assert latest_checkpoint(tmp_path) == (path, {things[0]: why})
    resumed = Run(tmp_path, seed=9)
    resumed.restore(path)
    resumed.iterate()
    saved = resumed.save()
    for score in (0.5, 0.3):
        resumed.checkpoints.save_best(score)
    assert all(os.path.lexists(other) for other in things)
    resumed.checkpoints.rewind()  # only here do files of that name go: they are of another future
    assert latest_checkpoint(tmp_path)[0] == saved
    for other in [other for other in things if os.path.lexists(other)]:
        aside = set_aside(other)
        assert os.path.lexists(aside) and not os.path.lexists(other)
    assert latest_checkpoint(tmp_path) == (saved, {})


def test_other_names_are_passed_over(tmp_path):
    run = Run(tmp_path)
    path = run.save()
    for name in ODD:
        (tmp_path / name).touch()
    assert checkpoints_of(tmp_path, "step") == [path] and checkpoints_of(tmp_path, "best") == []
    assert latest_checkpoint(tmp_path) == (path, {})
    run.iterate()
    run.save()
    run.checkpoints.rewind()
    assert all((tmp_path / name).exists() for name in ODD)


# what a forged file says instead -> of which component
WRONG = {
    "a text for a random stream": ("memory", lambda state: state["streams"].__setitem__(0, "{}")),
    "no random stream": ("memory", lambda state: state["streams"].pop()),
    "no counters": ("memory", lambda state: state.pop("episode")),
    "a text for a counter": ("memory", lambda state: state["episode"].__setitem__(0, "1")),
    "a negative number of lanes": ("memory", lambda state: state.__setitem__("lanes", -1)),
    "a goal that is not there": ("env", lambda state: state["deck"]["goals"][0].append(4)),
    "a task that is not there": ("env", lambda state: state["deck"]["lane_task"].__setitem__(0, 9)),
    "a pair that is not there": ("env", lambda state: state["pending"].__setitem__(0, [0, 77])),
    "too few pairs": ("env", lambda state: state["pending"].pop()),
    "a text for a deal": ("env", lambda state: state["deck"]["dealt"].__setitem__(0, "1")),
    "no random state of the deck": ("env", lambda state: state["deck"].__setitem__("rng", "[]")),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_states_that_would_fail_in_the_first_step_are_refused(wrong, tmp_path):
    run = Run(tmp_path)
    run.iterate()
    part, change = WRONG[wrong]
    component = {"memory": run.networks.memory, "env": run.env}[part]
    state = copy.deepcopy(component.checkpoint_state())
    component.load_checkpoint_state(copy.deepcopy(state))  # as it is, it is taken
    change(state)
    with pytest.raises((ValueError, LookupError, TypeError)):  # all of these name the file when one is read
        component.load_checkpoint_state(state)
