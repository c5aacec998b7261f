"""Agents to take away: a folder acts as its agent, and damaged or foreign content is refused before any of it runs."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from htrmrl_torchrl import HTrMRLAgent, evaluate
from htrmrl_torchrl.agent.networks import build_networks, load_networks
from htrmrl_torchrl.checkpoints.checkpoint import export_agent, read_component, read_environment
from htrmrl_torchrl.checkpoints.folder import is_agent_folder
from tests.evaluation.reports import believable, hand_made, two_runs

RESULTS = Path(__file__).resolve().parents[2] / "results"
COMMITTED = {
    "htrmrl": RESULTS / "baselines_ml1" / "htrmrl_seed1.torchrl",
    "trmrl": RESULTS / "ml10" / "trmrl_20m_seed1.torchrl",  # its critic shares the normaliser of the actor
    "rl2": RESULTS / "ml10" / "rl2_20m_seed1.torchrl",
}


def small(**choices):
    sizes = {"observation_dim": 3, "action_low": [-1.0, -2.0], "action_high": [1.0, 2.0], "d_model": 8}
    return HTrMRLAgent(build_networks(**(sizes | choices)))


def actions(agent, *, steps=25):
    """Sampled actions of two trials of short episodes, with rewards; and the values of the critic's weights."""
    generator, taken = torch.Generator().manual_seed(3), []
    torch.manual_seed(5)
    for _ in range(2):
        agent.reset()
        for step in range(steps):
            observation = torch.randn(agent.num_envs, agent.observation_dim, generator=generator)
            taken.append(agent.act(observation))
            ended = torch.full((agent.num_envs,), step % 8 == 7)
            agent.observe(torch.randn(agent.num_envs, generator=generator), ended, ended)
    return torch.stack(taken)


@pytest.mark.parametrize("kind", COMMITTED)
def test_a_folder_acts_bit_for_bit_as_the_committed_checkpoint(kind, tmp_path):
    original = HTrMRLAgent.from_checkpoint(COMMITTED[kind], num_envs=2, seed=4)
    folder = original.save_pretrained(tmp_path / "agent")
    again = HTrMRLAgent.from_pretrained(folder, num_envs=2, seed=4)
    expected = actions(original)
    assert torch.equal(actions(again), expected)
    for part in ("actor", "critic"):
        before, after = (getattr(agent.networks, part).state_dict() for agent in (original, again))
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert again.networks.description == original.networks.description
    with torch.no_grad():  # the control: the least change of one weight shows
        next(again.networks.actor.parameters()).view(-1)[0] += 1e-3
    assert not torch.equal(actions(again), expected)
    assert read_environment(folder) == read_environment(COMMITTED[kind])
    assert read_component(folder, "progress") == read_component(COMMITTED[kind], "progress")


def test_what_was_learned_after_loading_is_saved(tmp_path):
    """The folder holds the present weights, not those of the file that the agent came from."""
    agent = small()
    first = actions(HTrMRLAgent.from_pretrained(agent.save_pretrained(tmp_path)))
    with torch.no_grad():
        for parameter in agent.networks.actor.parameters():
            parameter += 0.1
    assert torch.equal(actions(HTrMRLAgent.from_pretrained(tmp_path)), first)
    agent.save_pretrained(tmp_path)  # in place of the first
    second = actions(HTrMRLAgent.from_pretrained(tmp_path))
    assert torch.equal(second, actions(agent)) and not torch.equal(second, first)


@pytest.mark.parametrize(
    "choices",
    [
        {"critic_kind": "separate"},
        {"encoder_kind": "rl2", "critic_kind": "separate"},
        {"encoder_kind": "mlp"},
        {"std": "dependent", "value_norm": True, "strategy": "recent", "episodes": 3, "max_episodes": 4},
    ],
)
def test_every_kind_of_networks_comes_back(choices, tmp_path):
    agent = small(**choices)
    again = HTrMRLAgent.from_pretrained(agent.save_pretrained(tmp_path))
    assert torch.equal(actions(again), actions(agent))
    assert again.networks.description["agent"] == agent.networks.description["agent"]


def test_a_folder_is_evaluated_and_exported_like_its_checkpoint(tmp_path):
    agent = HTrMRLAgent.from_checkpoint(RESULTS / "trial_length" / "recent_seed1.torchrl")
    folder = agent.save_pretrained(tmp_path / "agent")
    export_agent(folder, tmp_path / "agent.torchrl")
    reports = [evaluate(one, "toy", adaptation_episodes=2) for one in (agent, folder, tmp_path / "agent.torchrl")]
    assert len({(str(report.success.tolist()), str(report.returns.tolist())) for report in reports}) == 1
    (run,) = reports[1].runs
    assert run["checkpoint"] == str(folder) and run["frames"] == read_component(folder, "progress")["frames"]


# ---------------------------------------------------------------------------------------------------------- the card


def front_matter(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_card_says_how_the_agent_was_trained_and_evaluated(tmp_path):
    report = believable(["alpha", "beta"])
    agent = HTrMRLAgent.from_checkpoint(COMMITTED["htrmrl"])
    command = "htrmrl run ml1 seed=1 env.name='ML1:reach-v3'"
    metadata, body = front_matter(agent.save_pretrained(tmp_path, report=report, training_command=command))
    low, high = report.interval()
    headline = f"**success rate {report.headline:.2f} (95% interval over goals: {low:.2f} to {high:.2f})**"
    assert f"ML10, split test, protocol `strict`: {headline}." in body
    assert str(report) in body and report.command in body and command in body
    assert "# HTrMRL agent for ML1:reach-v3" in body and "700,000 frames of ML1:reach-v3" in body
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"] == {"type": "ML10", "name": "ML10 test"}
    assert result["metrics"][0]["value"] == round(report.headline, 4)


def test_the_hubs_own_reader_understands_the_card(tmp_path):
    from huggingface_hub import ModelCard

    card = ModelCard.load(small().save_pretrained(tmp_path, report=two_runs()) / "README.md")
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_type) == ("ML10", "success_rate")
    assert card.data.library_name == "htrmrl_torchrl"


def test_a_card_invents_nothing(tmp_path):
    metadata, body = front_matter(small().save_pretrained(tmp_path))
    assert "model-index" not in metadata and "# HTrMRL agent\n" in body
    assert "saved without an evaluation" in body and "Nothing is recorded of the training" in body
    one_goal = hand_made([[[1.0], [0.0]]])
    _, body = front_matter(small().save_pretrained(tmp_path, report=one_goal))
    assert one_goal.interval() is None and "**success rate 0.50**." in body
    returns = hand_made([[[0.0], [0.0]]], benchmark="HalfCheetah-Vel", returns=[[[-3.0], [-5.0]]])
    _, body = front_matter(small().save_pretrained(tmp_path, report=returns))
    assert "**return -4.0**." in body and "success" not in body.partition("## Evaluation")[2]


def test_the_cards_example_runs(tmp_path):
    folder = small().save_pretrained(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    played = {"observation": torch.zeros(3), "reward": 0.0, "terminated": False, "truncated": False}
    exec(code.replace("FOLDER_OR_HUB_ID", str(folder)), played)
    assert played["action"].shape == (2,)


# --------------------------------------------------------------------------------------------------- what is refused


def refusal(folder):
    """The one sentence, by every way to load it."""
    sentences = set()
    for load in (HTrMRLAgent.from_pretrained, HTrMRLAgent.from_checkpoint, load_networks):
        with pytest.raises(ValueError) as raised:
            load(folder)
        sentences.add(str(raised.value))
    (sentence,) = sentences
    assert "\n" not in sentence
    return sentence


def config_of(folder, **changed):
    """Rewrites ``config.json`` with other entries of the agent."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["agent"] |= changed
    path.write_text(json.dumps(content))


def _flip(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def _cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def _with_checksum(change):
    """Damage that the checksum does not show."""

    def spoil(folder):
        change(folder / "model.safetensors")
        path = folder / "config.json"
        content = json.loads(path.read_text())
        content["model_sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        path.write_text(json.dumps(content))

    return spoil


def _other_tensors(change):
    return _with_checksum(lambda path: save_file(change(load_file(path)), path))


DAMAGE = {
    "a flipped byte": (_flip, "the checksum of its model.safetensors is not the one in config.json"),
    "a cut file of weights": (_cut("model.safetensors"), "checksum"),
    "a cut configuration": (_cut("config.json"), "is not a checkpoint"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "it has no file model.safetensors"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "it has no file config.json"),
    "a folder of something else": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
        "has no {'format': 'htrmrl_torchrl.agent'",
    ),
    "no object": (lambda folder: (folder / "config.json").write_text("[]"), "has no {'format'"),
    "a repeated key": (lambda folder: (folder / "config.json").write_text('{"a": 1, "a": 2}'), "is there twice"),
    "no safetensors": (
        _with_checksum(lambda path: path.write_bytes(b"\x80\x04nothing")),
        "model.safetensors cannot be read",
    ),
    "a tensor more": (
        _other_tensors(lambda found: found | {"actor.more": torch.ones(1)}),
        "more has shape [1]",
    ),
    "a tensor less": (_other_tensors(lambda found: dict([*found.items()][1:])), "in the file"),
    "a tensor of no part": (
        _other_tensors(lambda found: found | {"optimizer.x": torch.ones(1)}),
        "neither of the",
    ),
    "other sizes": (lambda folder: config_of(folder, d_model=4096), "has shape"),
    "an unknown argument": (lambda folder: config_of(folder, colour="red"), "has no argument 'colour'"),
    "a word for a number": (lambda folder: config_of(folder, d_model="8"), "d_model='8' is not of"),
    "another kind": (lambda folder: config_of(folder, encoder_kind="bert"), "encoder_kind='bert' is unknown"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_sentence(damage, tmp_path):
    spoil, said = DAMAGE[damage]
    spoil(small().save_pretrained(tmp_path))
    assert said in refusal(tmp_path)


@pytest.mark.parametrize("key", ["encoder_kind", "strategy"])
def test_foreign_code_is_not_imported(key, tmp_path, monkeypatch):
    (tmp_path / "foreign_to_us.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = small().save_pretrained(tmp_path / "agent")
    config_of(folder, **{key: "foreign_to_us:Thing"})
    assert "does not import it unless you trust that code: pass trust=['foreign_to_us:Thing']" in refusal(folder)
    assert "foreign_to_us" not in sys.modules
    with pytest.raises(SystemExit, match="imported"):  # the control
        HTrMRLAgent.from_pretrained(folder, trust=["foreign_to_us:Thing"])


def test_pickles_are_never_read(tmp_path):
    folder = small().save_pretrained(tmp_path)
    torch.save({"x": torch.ones(1)}, folder / "pytorch_model.bin")
    HTrMRLAgent.from_pretrained(folder)  # it is no file of ours
    _with_checksum(lambda path: shutil.copy(folder / "pytorch_model.bin", path))(folder)
    assert "model.safetensors cannot be read" in refusal(folder)


def test_an_object_in_place_of_its_path_is_refused_before_anything_is_written(tmp_path):
    from htrmrl_torchrl.memory.strategies import make_strategy

    agent = small(strategy=make_strategy("recent"))
    with pytest.raises(ValueError, match="name code of your own by its path"):
        agent.save_pretrained(tmp_path / "agent")
    assert not (tmp_path / "agent").exists()


# ----------------------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
    """A cache of the hub as a download leaves it, and no network: ``user/agent`` is in it."""
    from huggingface_hub import constants

    repository, commit = tmp_path / "hub" / "models--user--agent", "0" * 40
    folder = small().save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def test_an_id_of_the_hub_is_loaded_where_no_folder_has_that_name(offline_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    agent = HTrMRLAgent.from_pretrained("user/agent", num_envs=2)
    assert torch.equal(actions(agent), actions(HTrMRLAgent.from_pretrained(offline_hub, num_envs=2)))
    own = small(d_model=16).save_pretrained("user/agent")  # a folder goes first
    assert is_agent_folder(own) and HTrMRLAgent.from_pretrained("user/agent").networks.encoder.d_model == 16


def test_what_the_hub_does_not_have_is_one_sentence(offline_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder user/other, and the Hugging Face Hub does") as error:
        HTrMRLAgent.from_pretrained("user/other")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["agent", "runs/ml10/agent", "/no/such", "user/a b", "x" * 300, "a\0b"])
def test_what_is_no_id_is_not_looked_for(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="an agent of the Hugging Face Hub is called user/name"):
        HTrMRLAgent.from_pretrained(name)


def test_a_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is a file, not a folder: load a checkpoint with .*from_checkpoint"):
        HTrMRLAgent.from_pretrained(COMMITTED["rl2"])


def test_without_the_extra_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError) as error:
        HTrMRLAgent.from_pretrained("user/agent")
    assert str(error.value) == (
        "There is no folder user/agent, and for the Hugging Face Hub huggingface_hub is not installed: "
        "pip install 'htrmrl_torchrl[hub]'"
    )
