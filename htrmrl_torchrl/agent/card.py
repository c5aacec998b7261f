"""The model card of a shared agent: Markdown behind the YAML that model hubs read."""

from typing import Any, Protocol

import yaml

from htrmrl_torchrl.checkpoints.checkpoint import environment_of

_METHODS = {"htrmrl": "HTrMRL", "trmrl": "TrMRL", "rl2": "RL2", "mlp": "memoryless"}
_USE = """\
## Use

```python
from htrmrl_torchrl import HTrMRLAgent

agent = HTrMRLAgent.from_pretrained("FOLDER_OR_HUB_ID", num_envs=1)
agent.reset()                                      # a new trial: the memory is empty
action = agent.act(observation)                    # observation: {observation} numbers; action: {action}
agent.observe(reward, terminated, truncated)       # at an episode's end it enters the memory
```

No weight changes while the agent plays: what it finds out is in its memory, until the next `reset`.
"""


class _Protocol(Protocol):
    @property
    def name(self) -> str: ...


class Report(Protocol):
    """What a card says of an `htrmrl_torchrl.evaluation.EvaluationReport`; its text is a table with the protocol."""

    @property
    def benchmark(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def protocol(self) -> _Protocol: ...
    @property
    def command(self) -> str: ...
    @property
    def has_success(self) -> bool: ...
    @property
    def headline(self) -> float: ...
    def interval(self) -> tuple[float, float] | None: ...


def model_card(description: dict[str, Any], *, report: Report | None = None, training_command: str = "") -> str:
    """The card of networks with this `Networks.description`.

    Args:
        description: says what the agent is and, if a recipe trained it, on what and for how many frames.
        report: an evaluation, for headline, protocol, interval, table and command; default: the card says that there
            is none.
        training_command: the command that trained the agent; default: the card refers to ``config.json``.
    """
    agent = description["agent"]
    use = _USE.format(observation=agent["observation_dim"], action=len(agent["action_low"]))
    parts = [
        f"---\n{yaml.safe_dump(_metadata(description, report), sort_keys=False, allow_unicode=True)}---",
        f"# {_title(description)}",
        "An agent for in-context meta-reinforcement learning, saved by `htrmrl_torchrl`: it plays several episodes of "
        "an unknown task, and its memory of the earlier ones informs the later ones.",
        use,
        _evaluation(report),
        _training(description, training_command),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _title(description: dict[str, Any]) -> str:
    kind = description["agent"].get("encoder_kind", "htrmrl")  # as `build_networks` says
    method = _METHODS.get(kind, f"`{kind}`")
    return f"{method} agent" + (f" for {environment_of(description['config']).name}" if "config" in description else "")


def _metadata(description: dict[str, Any], report: Report | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "library_name": "htrmrl_torchrl",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["meta-reinforcement-learning", "in-context-reinforcement-learning", "torchrl"],
    }
    if report is not None:
        measure = "success rate" if report.has_success else "return"
        result = {
            "task": {"type": "reinforcement-learning", "name": "meta-reinforcement learning"},
            "dataset": {"type": report.benchmark, "name": f"{report.benchmark} {report.split}"},
            "metrics": [
                {
                    "type": measure.replace(" ", "_"),
                    "name": f"{measure}, protocol {report.protocol.name}",
                    "value": round(report.headline, 4),
                }
            ],
        }
        metadata["model-index"] = [{"name": _title(description), "results": [result]}]
    return metadata


def _evaluation(report: Report | None) -> str:
    if report is None:
        return "## Evaluation\n\nThe agent was saved without an evaluation."
    measure, shown = ("success rate", ".2f") if report.has_success else ("return", ".1f")
    headline = f"{measure} {report.headline:{shown}}"
    if (interval := report.interval()) is not None:
        headline += f" (95% interval over goals: {interval[0]:{shown}} to {interval[1]:{shown}})"
    text = (
        f"## Evaluation\n\n{report.benchmark}, split {report.split}, protocol `{report.protocol.name}`: **{headline}**."
        f"\n\n```\n{report}\n```"
    )
    return text + (f"\n\nCommand:\n\n```\n{report.command}\n```" if report.command else "")


def _training(description: dict[str, Any], command: str) -> str:
    lines = ["## Training"]
    if "config" in description:
        env = environment_of(description["config"])
        frames = description["progress"]["frames"]
        length = "" if env.horizon is None else f" of {env.horizon} steps"
        lines.append(
            f"{frames:,} frames of {env.name} (split `train`), in trials of {env.episodes_per_trial} episodes{length}."
        )
        lines.append("`config.json` has every setting, under `config`, and the package versions.")
    if command:
        lines.append(f"Command:\n\n```\n{command}\n```")
    if len(lines) == 1:
        lines.append("Nothing is recorded of the training.")
    return "\n\n".join(lines)
