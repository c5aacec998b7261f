"""Material for tests: recorded lanes, a small environment whose episodes end early, comparisons."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, SerialEnv, TransformedEnv

from htrmrl_torchrl import TrialTransform, keys
from htrmrl_torchrl.agent.networks import Networks, build_networks
from htrmrl_torchrl.envs.opengl import RenderingError, choose_backend
from htrmrl_torchrl.evaluation.protocols import Protocol
from htrmrl_torchrl.memory.past import PastEpisodes
from tests.reference import Context, Episode, make_context

OBSERVATION, ACTION = 2, 1  # sizes
TOKEN = OBSERVATION + ACTION + 2
Trial = list[Episode]
RAW = (
    keys.OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.IS_INIT, keys.TRIAL_INIT, keys.EPISODE,
    keys.FINAL_OBSERVATION, keys.FINAL_ACTION, keys.FINAL_REWARD,
)  # fmt: skip


def assert_same(received: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """|difference| <= tolerance * max(1, |expected|), element by element."""
    assert received.shape == expected.shape, (received.shape, expected.shape)
    if received.numel():
        worst = ((received - expected).abs() / expected.abs().clamp(min=1)).max().item()
        assert worst <= tolerance, f"differs by {worst}"


def differ(received: Tensor, expected: Tensor) -> bool:
    return (received - expected).abs().max().item() > 1e-4


def skip_without_opengl() -> None:
    """For tests that draw with MuJoCo: which OpenGL backend there is depends on the machine."""
    try:
        choose_backend()
    except RenderingError as error:
        pytest.skip(str(error))


def networks_for_toy(*, observation_dim: int = 3, **choices: Any) -> Networks:
    """Small ones, always with the same weights."""
    torch.manual_seed(0)
    sizes = {"window": 2, "episodes": 3, "d_model": 8, "num_heads": 2, "intra_layers": 1, "inter_layers": 1}
    return build_networks(
        observation_dim=observation_dim, action_low=[-1.0] * 2, action_high=[1.0] * 2, **(sizes | choices)
    )


def rules(
    adaptation_episodes: int, evaluation_episodes: int = 1, *, mean_action: bool = True, separate: bool = False
) -> Protocol:
    """A protocol that no report compares."""
    return Protocol(
        name="test", adaptation_episodes=adaptation_episodes, evaluation_episodes=evaluation_episodes,
        evaluation_actions="mean" if mean_action else "sampled", goals_per_task=1, separate=separate,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- recorded lanes


@dataclass
class Step:
    """Step t of episode k of trial number n of a lane."""

    n: int
    k: int
    t: int


@dataclass
class Recording:
    """What the lanes lived through, and for each episode the windows that it saw."""

    trials: list[list[Trial]]  # [lane][trial][episode]
    steps: list[list[Step]]  # [lane][frame]
    drawn: dict[tuple[int, int, int], list[tuple[int, int]]]  # (lane, trial, episode) -> windows of `visible` ones
    window: int
    episodes: int
    scope: str = "trial"
    max_episodes: int | None = None

    def visible(self, lane: int, n: int, k: int) -> list[Episode]:
        """The ended episodes that the trial's k-th one may be shown, oldest first."""
        past = self.trials[lane][n][:k]
        if self.scope == "lane":
            past = [episode for trial in self.trials[lane][:n] for episode in trial] + past
        return past if self.max_episodes is None else past[-self.max_episodes :]

    def context(self, lane: int, frame: int, after: bool = False) -> Context:
        """Of the decision at a frame, or ``after`` it: of what its step led to."""
        return self.context_of(self.steps[lane][frame], lane, self.drawn, after)

    def context_of(
        self, at: Step, lane: int, drawn: dict[tuple[int, int, int], list[tuple[int, int]]], after: bool = False
    ) -> Context:
        past = self.visible(lane, at.n, at.k)
        episodes = [*past, self.trials[lane][at.n][at.k]]
        return make_context(episodes, len(past), at.t + after, drawn[lane, at.n, at.k], self.window, self.episodes)

    def running(self, lane: int, step: Step) -> int:
        """The lane's running episode counter."""
        return sum(len(trial) for trial in self.trials[lane][: step.n]) + step.k


def record(
    lengths: Sequence[Sequence[Sequence[int]]],
    *,
    window: int,
    episodes: int,
    seed: int = 0,
    draw: Callable[[list[int]], list[tuple[int, int]]] | None = None,
    scope: str = "trial",
    max_episodes: int | None = None,
) -> Recording:
    """Random steps for ``lengths[lane][trial][episode]`` and random windows for each episode."""
    rng = random.Random(seed)

    def vector(size: int) -> list[float]:
        return [rng.gauss(0, 1) for _ in range(size)]

    def any_windows(tokens: list[int]) -> list[tuple[int, int]]:
        count = rng.randint(0, episodes - 1) if tokens else 0
        pairs = [(e, s) for e, n in enumerate(tokens) for s in range(max(1, n - window + 1))]
        return [rng.choice(pairs) for _ in range(count)]

    trials, steps, drawn = [], [], {}
    recording = Recording(trials, steps, drawn, window, episodes, scope, max_episodes)
    for lane, of_lane in enumerate(lengths):
        trials.append([])
        steps.append([])
        for n, of_trial in enumerate(of_lane):
            trials[lane].append([])
            for k, h in enumerate(of_trial):
                tokens = [len(episode.tokens) for episode in recording.visible(lane, n, k)]
                drawn[lane, n, k] = sorted((draw or any_windows)(tokens))
                trials[lane][n].append(
                    Episode([vector(OBSERVATION) for _ in range(h + 1)], [vector(ACTION) for _ in range(h)], vector(h))
                )
                steps[lane] += [Step(n, k, t) for t in range(h)]
    return recording


def past_of(episodes: Sequence[Episode], **others: object) -> PastEpisodes:
    """What a strategy is shown of these episodes."""
    return PastEpisodes(
        [len(episode.tokens) for episode in episodes],
        tokens=lambda index: np.array(episodes[index].tokens, dtype=np.float32),
        observation_dim=OBSERVATION,
        **others,
    )


def as_batch(
    recording: Recording, begin: int = 0, end: int | None = None, *, tasks: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> TensorDict:  # fmt: skip
    """Frames ``begin`` to ``end`` of all lanes as a collector returns them, ``[N, T]``."""
    end = min(len(steps) for steps in recording.steps) if end is None else end
    rows = [
        [_row(recording, lane, frame, dtype) for frame in range(begin, end)] for lane in range(len(recording.steps))
    ]
    batch = torch.stack([torch.stack(of_lane) for of_lane in rows])
    if tasks is not None:
        batch[keys.TASK] = torch.tensor(tasks).view(-1, 1, 1).expand(*batch.shape, 1).clone()
    return batch


def steps(batch: TensorDictBase) -> list[TensorDictBase]:
    """What the environment gives at each step, ``[N]``."""
    return [row.clone() for row in batch.select(*RAW, strict=False).unbind(1)]


def _row(recording: Recording, lane: int, frame: int, dtype: torch.dtype) -> TensorDict:
    step = recording.steps[lane][frame]
    trial = recording.trials[lane][step.n]
    episode = trial[step.k]
    done = step.t + 1 == len(episode.rewards)
    running = recording.running(lane, step)
    empty = [-1] * (recording.episodes - 1 - len(recording.drawn[lane, step.n, step.k]))
    drawn = recording.drawn[lane, step.n, step.k]
    oldest = running - len(recording.visible(lane, step.n, step.k))

    def token_keys(t: int) -> dict[str, Tensor]:
        token = episode.tokens[t]
        return {
            keys.OBSERVATION: torch.tensor(token[:OBSERVATION], dtype=dtype),
            keys.PREV_ACTION: torch.tensor(token[OBSERVATION:-2], dtype=dtype),
            keys.PREV_REWARD: torch.tensor(token[-2:-1], dtype=dtype),
            keys.IS_INIT: torch.tensor([t == 0]),
            keys.TRIAL_INIT: torch.tensor([t == 0 and step.k == 0]),
            keys.EPISODE: torch.tensor([step.k]),
        }

    # The final token of the lane's episode before, also across trials.
    final = [0.0] * TOKEN
    if step.t == 0 and frame:
        before = recording.steps[lane][frame - 1]
        final = recording.trials[lane][before.n][before.k].tokens[-1]
    return TensorDict(
        {
            **token_keys(step.t),
            "final": {
                "observation": torch.tensor(final[:OBSERVATION], dtype=dtype),
                "action": torch.tensor(final[OBSERVATION:-2], dtype=dtype),
                "reward": torch.tensor(final[-2:-1], dtype=dtype),
            },
            keys.ACTION: torch.tensor(episode.actions[step.t], dtype=dtype),
            "window": {
                "episode": torch.tensor([*empty, *(oldest + e for e, _ in drawn)], dtype=torch.long),
                "start": torch.tensor([*empty, *(s for _, s in drawn)], dtype=torch.long),
                "current": torch.tensor([running]),
            },
            "frame": torch.tensor([1000 * lane + frame]),  # so that tests recognise it
            "next": {
                **token_keys(step.t + 1),
                keys.REWARD: torch.tensor([episode.rewards[step.t]], dtype=dtype),
                keys.DONE: torch.tensor([done]),
                keys.TERMINATED: torch.tensor([done]),
                keys.TRUNCATED: torch.tensor([False]),
            },
        }
    )


def assert_context(received: TensorDictBase, expected: Context) -> None:
    """One context of the package, batch size [], equals the reference's exactly."""
    tokens, mask = expected.current.padded(TOKEN)
    dtype = received["current"].dtype
    assert torch.equal(received["current"], torch.tensor(tokens, dtype=dtype))
    assert received["current_mask"].tolist() == mask
    empty = expected.episodes - 1 - len(expected.past)
    assert received["slot_mask"].tolist() == [False] * empty + [True] * len(expected.past)
    ids = received["past_id"].tolist()
    assert ids[:empty] == [-1] * empty
    for slot in range(empty):
        assert not received["past"][slot].any() and not received["past_mask"][slot].any()
    for slot, window in enumerate(expected.past, start=empty):
        tokens, mask = window.padded(TOKEN)
        assert torch.equal(received["past"][slot], torch.tensor(tokens, dtype=dtype))
        assert received["past_mask"][slot].tolist() == mask
        for other in range(empty, slot):
            assert (ids[slot] == ids[other]) == (expected.drawn[slot - empty] == expected.drawn[other - empty])


def stack_contexts(contexts: Sequence[Context], dtype: torch.dtype = torch.float64) -> TensorDict:
    """Reference contexts ``[n]`` in the package's form, every window with an id of its own."""
    rows = []
    for context in contexts:
        empty = context.episodes - 1 - len(context.past)
        current, current_mask = context.current.padded(TOKEN)
        past = [([[0.0] * TOKEN] * context.current.length, [False] * context.current.length)] * empty
        past += [window.padded(TOKEN) for window in context.past]
        shape = (context.episodes - 1, context.current.length)
        rows.append(
            TensorDict(
                current=torch.tensor(current, dtype=dtype),
                current_mask=torch.tensor(current_mask),
                past=torch.tensor([tokens for tokens, _ in past], dtype=dtype).view(*shape, TOKEN),
                past_mask=torch.tensor([mask for _, mask in past], dtype=torch.bool).view(*shape),
                slot_mask=torch.tensor([False] * empty + [True] * len(context.past), dtype=torch.bool),
            )
        )
    stacked = torch.stack(rows)
    ids = torch.arange(stacked["slot_mask"].numel()).view(stacked["slot_mask"].shape)
    return stacked.set("past_id", torch.where(stacked["slot_mask"], ids, -1))


# ------------------------------------------------------------------------------------- an environment that ends early


class Walk(EnvBase):
    """A random-looking walk whose episodes end after ``lengths[i % len(lengths)]`` steps, terminated or truncated."""

    def __init__(self, lengths: Sequence[int], offset: float) -> None:
        super().__init__(batch_size=[])
        self.lengths, self.offset = list(lengths), offset
        self.episode, self.t = -1, 0
        self.observation_spec = Composite({keys.OBSERVATION: Unbounded((OBSERVATION,))})
        self.action_spec = Bounded(-1, 1, (ACTION,))
        self.reward_spec = Unbounded((1,))
        flag = Categorical(2, shape=(1,), dtype=torch.bool)
        self.done_spec = Composite({key: flag.clone() for key in (keys.DONE, keys.TERMINATED, keys.TRUNCATED)})

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDictBase:
        self.episode, self.t = self.episode + 1, 0
        self.state = torch.tensor([self.offset, 0.1 * (self.episode % 5)])
        return TensorDict({keys.OBSERVATION: self.state.clone()})

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.t += 1
        action = tensordict[keys.ACTION]
        self.state = torch.sin(2.3 * self.state + torch.cat([action, -action]) + self.t)
        over = self.t >= self.lengths[self.episode % len(self.lengths)]
        terminated = over and self.episode % 2 == 0
        return TensorDict(
            {
                keys.OBSERVATION: self.state.clone(),
                keys.REWARD: self.state.sum().view(1) + self.offset,
                keys.TERMINATED: torch.tensor([terminated]),
                keys.TRUNCATED: torch.tensor([over and not terminated]),
                keys.DONE: torch.tensor([over]),
            }
        )

    def _set_seed(self, seed: int | None) -> None:
        """Nothing is random."""


WALKS = ([4, 7, 3], [5, 2, 6, 1], [9, 3])


def walking_trials(episodes_per_trial: int = 3) -> EnvBase:
    """Three lanes whose episodes and trials end at different times."""
    lanes = [lambda i=i: Walk(WALKS[i], 0.3 * i) for i in range(3)]
    return TransformedEnv(SerialEnv(3, lanes), TrialTransform(episodes_per_trial=episodes_per_trial))
