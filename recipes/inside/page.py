"""Figures, numbers and page of an inspection, from its recordings."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from htrmrl_torchrl.encoders.hierarchical import HierarchicalEncoder
from htrmrl_torchrl.inspection import attention
from htrmrl_torchrl.inspection import attention_figures as looks
from htrmrl_torchrl.inspection import embedding_figures as points
from htrmrl_torchrl.inspection.embeddings import Separation, separation
from htrmrl_torchrl.inspection.page import Picture, Section, Table, write_page
from htrmrl_torchrl.inspection.recording import Recording
from htrmrl_torchrl.inspection.retrieval import retrieve
from htrmrl_torchrl.media import write_figure
from htrmrl_torchrl.memory.strategies import STRATEGIES
from recipes.inside.play import TRAINED, Inspected

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Recordings = Mapping[str, Mapping[str, Recording]]  # by split, then by network
MOMENTS = {"first decision": 0, "last decision": -1}


def write_inspection(folder: Path, inspected: Inspected, recordings: Recordings) -> dict[str, Any]:
    """Writes ``index.html`` and its figures into ``folder``; returns the numbers on the page."""
    folder.mkdir(parents=True, exist_ok=True)
    looked = list(recordings)[-1]  # the split that was asked for
    told = {split: _separations(by_network) for split, by_network in recordings.items()}
    sections = [_adaptation(folder, recordings)]
    networks = inspected.networks[TRAINED]
    if isinstance(networks.encoder, HierarchicalEncoder):
        sections += list(_attention(folder, inspected, recordings[looked], looked))
    sections.append(_embeddings(folder, inspected, recordings, told))
    trials = {split: len(by_network[TRAINED].task) for split, by_network in recordings.items()}
    facts = [
        ("checkpoint", f"{inspected.checkpoint}, {inspected.frames:,} frames"),
        ("benchmark", f"{inspected.benchmark}, goals of benchmark seed {inspected.benchmark_seed}"),
        ("played", f"{trials} trials of {inspected.episodes} episodes of {inspected.horizon} steps, sampled actions"),
        ("control", f"an untrained network of the same sizes, seed {inspected.seed}, on the same tasks and goals"),
        ("command", inspected.command),
        ("versions", ", ".join(f"{name} {number}" for name, number in inspected.versions.items())),
    ]
    write_page(folder / "index.html", title=f"Inside {inspected.benchmark}", facts=facts, sections=sections)
    return {
        **{name: value for name, value in vars(inspected).items() if name != "networks"},
        "trials": trials,
        "success_by_episode": {
            split: {label: recording.success.double().mean(0).tolist() for label, recording in by_network.items()}
            for split, by_network in recordings.items()
        },
        "attention": {
            split: {label: _attention_numbers(recording) for label, recording in by_network.items()}
            for split, by_network in recordings.items()
        },
        "separation": {
            split: {
                moment: {label: [one and asdict(one) for one in of] for label, of in by_label.items()}
                for moment, by_label in by_moment.items()
            }
            for split, by_moment in told.items()
        },
    }


def _adaptation(folder: Path, recordings: Recordings) -> Section:
    curves = {f"{split}, {label}": one for split, of in recordings.items() for label, one in of.items()}
    return Section(
        title="Adaptation",
        text="Success by episode of the trial. A gain from memory shows as higher success in later episodes.",
        pictures=[
            _save(points.plot_success(curves), folder / "adaptation.png", "Success at any step of an episode; band: "
                  "95% over goals, within tasks. Sampled actions in all episodes.")
        ],
    )  # fmt: skip


def _attention(
    folder: Path, inspected: Inspected, recordings: Mapping[str, Recording], split: str
) -> Iterator[Section]:
    trained = recordings[TRAINED]
    names = {label: _names(inspected, recording, split) for label, recording in recordings.items()}
    (trial, *_) = looks.telling_trials(trained, count=1)
    numbers = {label: _attention_numbers(recording) for label, recording in recordings.items()}
    rows: list[list[str | float]] = [
        [name, *(of.get(name, math.nan) for of in numbers.values())] for name in numbers[TRAINED]
    ]
    upper = trained.slot_attention is not None
    pictures = [
        _save(looks.plot_heads(recordings), folder / "heads.png", "Relative entropy of each head, in decisions with "
              "more than one valid position: 1 is uniform attention, 0 is all on one position.")
    ]  # fmt: skip
    for label, recording in recordings.items():
        pictures.append(
            _save(looks.plot_maps(recording, trial=trial), folder / f"maps_{label}.png", f"{label.capitalize()}: all "
                  "of the attention in a trial's last decision, by layer and head; the last row is the present's.")
        )  # fmt: skip
    yield Section(
        title="Attention by head",
        text="Relative entropy is entropy over that of uniform attention. A head at 1 attends uniformly, a head at 0 "
        "to one position; the untrained network shows where training began."
        + ("" if upper else " This encoder has one level: it attends within the running episode's window alone."),
        tables=[Table(head=[f"split {split}", *numbers], rows=rows)],
        pictures=pictures,
    )
    if not upper or trained.slot_episode.shape[-1] == 0:
        return
    yield Section(
        title="Attention through a trial",
        text="Attention of each decision on the episodes of its trial, before and after the first success (green).",
        pictures=[
            _save(looks.plot_trials(recordings, titles=names), folder / "trials.png", "Columns: decisions in the "
                  "order of time; rows: the episode of the attended windows, 'now' is the running one. Last layer "
                  "of the upper level, mean over heads. Green: success."),
            _save(looks.plot_around_success(recordings), folder / "around_success.png", "Attention before "
                  "and after the first success, over all trials that have one. Dashed: uniform attention. The "
                  "distance of trained lines from their dashed ones is learned."),
        ],
    )  # fmt: skip
    encoder, last = inspected.networks[TRAINED].encoder, trained.tokens.shape[1] - 1
    if not last:
        return
    shown = retrieve(encoder, trained, trial=trial, episode=last, seed=inspected.seed)
    yield Section(
        title="Retrieval",
        text=f"What each window strategy shows of the same trial ({names[TRAINED][trial]}) to its episode {last + 1}, "
        "and where that episode's last decision would attend. The network was trained with "
        f"'{_strategy_of(inspected)}'; with another strategy it sees what it was not trained on.",
        pictures=[
            _save(looks.plot_retrieval(trained, shown, trial=trial, window=encoder.window),
                  folder / "retrieval.png", "Boxes are windows, their colour the attention on them (in the title: on "
                  "the present); blue: rewards; green: first success.")
        ],
    )  # fmt: skip


def _embeddings(folder: Path, inspected: Inspected, recordings: Recordings, told: Mapping[str, Any]) -> Section:
    pictures, tables = [], []
    for split, by_network in recordings.items():
        names = {label: _names(inspected, recording, split) for label, recording in by_network.items()}
        kinds = "goals" if len(inspected.tasks[split]) == 1 else "tasks"
        pictures.append(
            _save(points.plot_embeddings(by_network, names=names), folder / f"embeddings_{split}.png",
                  f"{split}: context vectors of each episode's last decision, principal components of each network's "
                  f"own vectors; left by {kinds}, right by episode of the trial.")
        )  # fmt: skip
        pictures.append(
            _save(points.plot_separation(told[split]), folder / f"separation_{split}.png",
                  f"{split}: share of context vectors whose nearest other one (of the same episode of other trials) is "
                  f"of the same of {kinds}. At the first decision only the episode's start is known, so any separation "
                  "beyond the first episode's comes from memory.")
        )  # fmt: skip
        tables += [_separation_table(split, moment, by_label) for moment, by_label in told[split].items()]
    return Section(
        title="Embeddings",
        text="How well the context vectors separate tasks (or goals of one task): nearest-neighbour purity and mean "
        "silhouette by episode. If tasks start from different observations, an untrained network separates them too, "
        "so compare with it, and look for a rise over episodes.",
        tables=tables,
        pictures=pictures,
    )


def _separations(recordings: Mapping[str, Recording]) -> dict[str, dict[str, list[Separation | None]]]:
    """By moment, then by network: one per episode."""
    return {
        moment: {
            label: [
                separation(recording.hidden[:, k, look].double().numpy(), points.labels_of(recording))
                for k in range(recording.hidden.shape[1])
            ]
            for label, recording in recordings.items()
        }
        for moment, look in MOMENTS.items()
    }


def _separation_table(split: str, moment: str, told: Mapping[str, list[Separation | None]]) -> Table:
    episodes = [k for k, one in enumerate(told[TRAINED]) if one is not None]
    head = [f"{split}, {moment}: episode", *(str(k + 1) for k in episodes)]
    rows: list[list[str | float]] = []
    for name in ("purity", "silhouette"):
        for label, separations in told.items():
            rows.append([f"{name}, {label}", *(getattr(separations[k], name) for k in episodes)])
    for name, meaning in (("chance", "purity by chance"), ("high", "purity that 97.5% of shuffled labels stay below")):
        rows.append([meaning, *(getattr(told[TRAINED][k], name) for k in episodes)])
    return Table(head=head, rows=rows)


def _attention_numbers(recording: Recording) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, entropies in (
        ("relative entropy within the window", attention.window_entropy(recording)),
        ("relative entropy over windows", attention.slot_entropy(recording)),
    ):
        if entropies is not None:
            numbers[f"{name}, mean over heads"] = entropies.mean().item()
            numbers[f"{name}, lowest head"] = entropies.min().item()
    if recording.slot_attention is not None and recording.slot_episode.shape[-1]:
        share = attention.attention_by_episode(recording)[..., :-1].sum(-1)  # [N, K, S]
        held = (recording.slot_episode >= 0).sum(-1, keepdim=True)  # [N, K, 1]
        some = (held > 0).expand_as(share)
        numbers["share of attention on past episodes, once there are some"] = share[some].mean().item()
        numbers["the same, if all windows were looked at alike"] = (
            (held / (held + 1)).expand_as(share)[some].mean().item()
        )
        numbers["attention on a successful window over that on a failed one"] = attention.success_preference(recording)
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _names(inspected: Inspected, recording: Recording, split: str) -> list[str]:
    tasks = inspected.tasks[split]
    if len(tasks) == 1:
        return [f"goal {goal}" for goal in recording.goal.tolist()]
    return [tasks[task] for task in recording.task.tolist()]


def _strategy_of(inspected: Inspected) -> str:
    memory: Any = inspected.networks[TRAINED].memory  # an EpisodicMemory, where windows are retrieved
    kind = type(memory.strategy)
    return next((name for name, known in STRATEGIES.items() if known is kind), kind.__name__)


def _save(figure: "Figure", path: Path, caption: str) -> Picture:
    write_figure(figure, path)
    write_figure(figure, path.with_suffix(".pdf"))
    return Picture(path=path, caption=caption)
