"""A trial as a video: the adaptation and evaluation episodes of one (task, goal)."""

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from htrmrl_torchrl import keys
from htrmrl_torchrl.envs import check_name, make_env, task_names
from htrmrl_torchrl.envs.benchmarks import find_benchmark
from htrmrl_torchrl.envs.lanes import Picture, check_positive
from htrmrl_torchrl.envs.opengl import choose_backend
from htrmrl_torchrl.evaluation.overlay import MIN_SIZE, Caption, draw_caption
from htrmrl_torchrl.evaluation.protocols import Protocol
from htrmrl_torchrl.evaluation.trials import play_trials
from htrmrl_torchrl.media import Frames, write_frames


@dataclass(frozen=True, eq=False)
class Video:
    """A played trial: ``frames``, uint8 ``[n, size, size, 3]`` RGB; ``fps``, pictures per second (Meta-World's play in
    real time); ``success``, for each of the K + M episodes, at any step.
    """

    frames: Frames
    fps: float
    success: tuple[bool, ...]


def record_trial(
    policy: TensorDictModuleBase,
    benchmark: str,
    protocol: Protocol,
    *,
    split: str,
    task: int,
    goal: int,
    horizon: int | None = None,
    seed: int = 0,
    benchmark_seed: int = 0,
    every: int = 5,
    size: int = 256,
) -> Video:
    """Play one trial as `play_trials` does, with pictures of each episode's first, every ``every``-th and last step.

    Args:
        policy, protocol: see `play_trials`.
        benchmark: a name that `make_env` knows, no factory.
        split: ``train``, ``val`` or ``test``.
        task: index in the split's `task_names`.
        goal: index in the benchmark's goals.
        horizon, benchmark_seed: as in `make_env`.
        seed: of the action noise.
        every: steps between pictures.
        size: width and height in pixels, at least 128. All pictures stay in memory: 0.2 MB each at 256.

    Raises, before anything is played, ValueError for unknown names and numbers out of range, and RenderingError if
    MuJoCo draws the benchmark and no OpenGL backend works.

    Example:
        >>> from htrmrl_torchrl.agent.networks import acting_policy, build_networks
        >>> networks = build_networks(observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2)
        >>> from htrmrl_torchrl.evaluation import PROTOCOLS
        >>> protocol = PROTOCOLS["strict"].changed(adaptation_episodes=2)
        >>> video = record_trial(acting_policy(networks), "toy", protocol, split="train", task=0, goal=2, size=128)
        >>> video.frames.shape, len(video.success)  # 3 episodes of 6 steps: pictures of steps 0, 5 and 6
        ((9, 128, 128, 3), 3)
    """
    check_positive(every=every, size=size)
    if size < MIN_SIZE:
        raise ValueError(f"size must be at least {MIN_SIZE} for the caption to be legible, received {size}.")
    check_name(benchmark)
    known = find_benchmark(benchmark)
    if known.needs_opengl:
        choose_backend()  # before anything is built
    env = make_env(
        benchmark,
        split=split,
        num_envs=1,
        episodes_per_trial=protocol.episodes,
        horizon=horizon,
        benchmark_seed=benchmark_seed,
        pairs=[(task, goal)],
    )
    with closing(env):
        camera = _Camera(env, task_names(benchmark, split)[task], protocol, every=every, size=size)
        play_trials(policy, env, protocol, seed=seed, on_step=camera.on_step)
    return Video(np.stack(camera.frames), known.steps_per_second / every, tuple(camera.success))


def write_video(video: Video, path: str | os.PathLike[str]) -> Path:
    """Write the video as ``.mp4`` (H.264) or ``.gif``; returns the path. Raises ValueError for another suffix."""
    return write_frames(video.frames, path, fps=video.fps)


class _Camera:
    """Takes pictures of the first environment and tracks success for their captions."""

    def __init__(self, env: EnvBase, task: str, protocol: Protocol, *, every: int, size: int) -> None:
        self.frames: list[Picture] = []
        self.success: list[bool] = []
        self._env, self._task, self._protocol, self._every, self._size = env, task, protocol, every, size

    def on_step(self, step: int, seen: TensorDictBase) -> None:
        if step == 0:
            self.success.append(False)
        self.success[-1] |= keys.SUCCESS in seen and bool(seen[keys.SUCCESS].item())
        if step % self._every and step < self._env.horizon:
            return
        caption = Caption(
            task=self._task,
            step=step,
            horizon=self._env.horizon,
            adaptation_episodes=self._protocol.adaptation_episodes,
            evaluation_episodes=self._protocol.evaluation_episodes,
            success=tuple(self.success),
        )
        self.frames.append(draw_caption(self._env.render_lane(0, size=self._size), caption))
