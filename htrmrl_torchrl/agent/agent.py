"""A trained agent for loops outside TorchRL.

::

    agent.reset()                        start a new trial: clear the memory (unless scope="lane")
    action = agent.act(observation)      decide
    agent.observe(reward, ...)           close the step; at an episode's end it enters the memory
    action = agent.act(observation)      decide again, perhaps in the next episode of the trial
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Self, TypeVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.card import Report, model_card
from htrmrl_torchrl.agent.hub import local_folder
from htrmrl_torchrl.agent.networks import Networks, acting_policy, load_networks
from htrmrl_torchrl.checkpoints.folder import write_agent_folder
from htrmrl_torchrl.envs.lanes import check_positive
from htrmrl_torchrl.envs.trial import TrialCounter
from htrmrl_torchrl.memory.contract import memories_of
from htrmrl_torchrl.memory.past import Scope

ArrayOrTensor = TypeVar("ArrayOrTensor", npt.NDArray[Any], Tensor)
Number = npt.ArrayLike | Tensor


class HTrMRLAgent:
    """Acts in N environments at once, each in its own trial, with numpy arrays or torch tensors and any encoder.

    A copy (``copy.deepcopy``, ``pickle``, ``torch.save``) continues like the original, with its own networks. All
    methods raise ValueError for a wrong shape or a value that is not finite, and RuntimeError for calls out of order.

    Args:
        networks: from `htrmrl_torchrl.agent.build_networks` or `load_networks`; used, not copied.
        num_envs: environments N. For N = 1, shapes may lack the first axis: ``[o]`` as well as ``[1, o]``.
        device: where the networks are moved to; default: where they are.
        seed: of the memory's random streams. Action noise comes from torch's global generator.
        scope: ``"trial"``, however the networks were trained: `reset` clears the memory. ``"lane"``: episodes of
            earlier trials stay visible, up to the networks' ``max_episodes``.

    Example:
        >>> import gymnasium as gym
        >>> from htrmrl_torchrl.agent.networks import build_networks
        >>> env = gym.make("Pendulum-v1")
        >>> agent = HTrMRLAgent(build_networks(observation_dim=3, action_low=[-2.0], action_high=[2.0]))
        >>> agent.check_env(env)
        >>> observation, _ = env.reset()
        >>> agent.reset()
        >>> observation, reward, terminated, truncated, info = env.step(agent.act(observation))
        >>> agent.observe(reward, terminated, truncated, final_observation=observation)
    """

    def __init__(
        self,
        networks: Networks,
        *,
        num_envs: int = 1,
        device: str | torch.device | None = None,
        seed: int = 0,
        scope: Scope = "trial",
    ) -> None:
        check_positive(num_envs=num_envs)
        self.networks, self.num_envs = networks, num_envs
        self._policy = acting_policy(networks, scope=scope, seed=seed).to(device)
        (self._memory,) = memories_of(self._policy)
        self.device = next(self._policy.parameters()).device
        space = networks.action_spec.space
        self.action_low, self.action_high = space.low.to(self.device), space.high.to(self.device)
        self.observation_dim, self.action_dim = networks.encoder.observation_dim, networks.encoder.action_dim
        self._counter = TrialCounter(
            [num_envs],
            observation_shape=[self.observation_dim],
            action_shape=[self.action_dim],
            episodes_per_trial=2**62,  # only `reset` ends a trial
            device=self.device,
        )
        self._acted: tuple[Tensor, Tensor] | None = None  # observation and action of the step that is not closed yet

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        num_envs: int = 1,
        device: str | torch.device = "cpu",
        *,
        seed: int = 0,
        scope: Scope = "trial",
        trust: Collection[str] = (),
    ) -> Self:
        """The agent of a checkpoint, for instance ``runs/ml10_ppo_seed1/checkpoints/best-....torchrl``.

        No other file is needed, and nothing in the file is executed. `trust` and errors are those of `load_networks`.
        """
        return cls(load_networks(path, trust=trust), num_envs=num_envs, device=device, seed=seed, scope=scope)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path,
        num_envs: int = 1,
        device: str | torch.device = "cpu",
        *,
        seed: int = 0,
        scope: Scope = "trial",
        trust: Collection[str] = (),
    ) -> Self:
        """The agent of a folder that `save_pretrained` wrote; it acts bit for bit as the saved one.

        Args:
            folder_or_hub_id: an existing folder, or ``user/name`` on the Hugging Face Hub. A download needs
                ``pip install 'htrmrl_torchrl[hub]'``, and is tried only if there is no such folder.
            num_envs, device, seed, scope: see the class.
            trust: dotted paths of encoders and strategies outside this package that may be imported; default none.

        Raises FileNotFoundError if there is neither a folder nor a download, and ValueError if the folder is damaged or
        names code that is not trusted. Nothing in the folder is executed.

        Example:
            >>> import tempfile
            >>> from htrmrl_torchrl.agent.networks import build_networks
            >>> agent = HTrMRLAgent(build_networks(observation_dim=3, action_low=[-2.0], action_high=[2.0]))
            >>> folder = agent.save_pretrained(tempfile.mkdtemp())
            >>> sorted(path.name for path in folder.iterdir())
            ['README.md', 'config.json', 'model.safetensors']
            >>> HTrMRLAgent.from_pretrained(folder, num_envs=4).observation_dim
            3
        """
        networks = load_networks(local_folder(folder_or_hub_id), trust=trust)
        return cls(networks, num_envs=num_envs, device=device, seed=seed, scope=scope)

    def save_pretrained(self, folder: str | Path, *, report: Report | None = None, training_command: str = "") -> Path:
        """Writes the agent as a folder to share, and returns it: ``model.safetensors``, ``config.json`` and a model
        card, ``README.md``. Files of these names are replaced. Neither memory nor random streams are saved.

        To publish it: ``hf upload user/name folder``. `htrmrl_torchrl.evaluate` and the recipes also take the folder's
        path instead of a checkpoint's, if the agent comes from a checkpoint of a recipe.

        Args:
            folder: created if missing.
            report: an `EvaluationReport` of this agent; the card shows its headline, protocol, 95% interval over goals,
                results by task and command.
            training_command: the command that trained the agent, for the card.

        Raises ValueError if the networks were built with an object of your own instead of its dotted path, and OSError
        if a file cannot be written.
        """
        networks = self.networks
        card = model_card(networks.description, report=report, training_command=training_command)
        weights = {"actor": networks.actor.state_dict(), "critic": networks.critic.state_dict()}
        return write_agent_folder(folder, networks.description | weights, card=card)

    def check_env(self, env: Any) -> None:
        """Raise ValueError unless this agent can play a gymnasium environment, vectorised or not.

        The number of environments and the sizes of observation and action must match. Next-step autoreset is refused,
        because its resetting steps have no action and no reward.
        """
        lanes = getattr(env, "num_envs", 1)
        if lanes != self.num_envs:
            raise ValueError(
                f"The environment has num_envs={lanes}, the agent {self.num_envs}; build the agent with {lanes}."
            )
        mode = str(getattr(env.metadata.get("autoreset_mode"), "name", ""))
        if mode == "NEXT_STEP" or _is_wrapped_in(env, gym.wrappers.Autoreset):
            raise ValueError(
                "The environment resets in the step after an episode's end (AutoresetMode.NEXT_STEP), a step without "
                "action and reward; build it with autoreset_mode=AutoresetMode.SAME_STEP or DISABLED, and a single "
                "environment without the wrapper Autoreset."
            )
        single = "single_" if hasattr(env, "single_observation_space") else ""
        for name, size in (("observation", self.observation_dim), ("action", self.action_dim)):
            shape = getattr(env, f"{single}{name}_space").shape
            if shape != (size,):
                raise ValueError(f"The environment's {name}s have shape {shape}; the agent was trained with ({size},).")

    def reset(self, mask: npt.ArrayLike | Tensor | None = None) -> None:
        """Starts a new trial: the memory is cleared, except with ``scope="lane"``.

        ``mask`` ``[N]`` bool selects environments; default all. A running episode there is dropped. RuntimeError with a
        mask of some environments between `act` and `observe`.
        """
        lanes = torch.ones(self.num_envs, dtype=torch.bool) if mask is None else torch.as_tensor(mask, dtype=torch.bool)
        if lanes.shape != (self.num_envs,):
            raise ValueError(f"mask has shape {list(lanes.shape)} but must be [{self.num_envs}], one flag each.")
        if self._acted is not None and not lanes.all():
            raise RuntimeError("reset(mask) was called between act and observe; close the step with observe first.")
        lanes = lanes.to(self.device)
        if self._memory.remembers_trials:  # otherwise the new trial clears it anyway
            runs = ~self._counter.is_init.squeeze(-1) | (self._acted is not None)
            self._memory.drop_running((lanes & runs).nonzero().squeeze(-1))
        self._acted = None
        self._counter.reset(lanes.unsqueeze(-1), new_trial=True)

    @torch.no_grad()
    def act(self, observation: ArrayOrTensor, *, deterministic: bool = False) -> ArrayOrTensor:
        """Returns actions ``[N, a]`` within the bounds, numpy or torch like the observation.

        Args:
            observation: ``[N, o]``, numpy or torch. After an episode's end, the first one of the next episode.
            deterministic: the mean action instead of a sampled one. The protocol ``strict`` samples during adaptation.
        """
        if bool((self._counter.episode < 0).any()):
            lanes = (self._counter.episode < 0).flatten().nonzero().flatten().tolist()
            raise RuntimeError(f"act was called before reset: environments {lanes} have no trial; call reset() first.")
        if self._acted is not None:
            raise RuntimeError("act was called twice in a step; close the step with observe(reward, ...) first.")
        tensor = self._checked(observation, "observation", self.observation_dim)
        step = self._counter.write(TensorDict({keys.OBSERVATION: tensor}, batch_size=[self.num_envs]))
        with set_exploration_type(ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM):
            action = self._policy(step)[keys.ACTION].clamp(self.action_low, self.action_high)
        self._acted = tensor.clone(), action.clone()  # the caller may write into both
        if observation.ndim == 1:
            action = action.squeeze(0)
        if isinstance(observation, Tensor):
            return action.to(observation.device)
        return action.cpu().numpy()

    def observe(
        self,
        reward: Number,
        terminated: Number,
        truncated: Number,
        *,
        final_observation: npt.NDArray[Any] | Tensor | None = None,
        action: npt.NDArray[Any] | Tensor | None = None,
    ) -> None:
        """Closes the step with the result of the last action. Where an episode ended, the next one begins.

        Args:
            reward, terminated, truncated: ``[N]``, or plain numbers for one environment.
            final_observation: ``[N, o]``, the observation after an ended episode's last step: the step's own without
                autoreset, ``info["final_obs"]`` under same-step autoreset. Read only where an episode ended. Without it
                the observation before is used, and memory is slightly less exact.
            action: ``[N, a]``, what was executed instead of the result of `act`; read in every environment.
        """
        if self._acted is None:
            raise RuntimeError("observe was called without an action before it; call act(observation) first.")
        observation, acted = self._acted
        rewards = self._checked(reward, "reward", None)
        ended = self._flags(terminated, "terminated") | self._flags(truncated, "truncated")
        if ended.any() and final_observation is not None:
            final = self._checked(_of_ended(final_observation, ended), "final_observation", self.observation_dim)
            observation = torch.where(ended, final, observation)
        if action is not None:
            acted = self._checked(action, "action", self.action_dim)
        self._counter.step(observation, acted, rewards)
        self._counter.reset(ended)
        self._acted = None

    def _checked(self, value: Any, name: str, size: int | None) -> Tensor:
        """``value`` as float32 ``[N, size]`` on our device, or ``[N, 1]`` from ``[N]`` if ``size`` is None."""
        tensor = torch.as_tensor(value, dtype=torch.float32, device=self.device)
        shape = [self.num_envs] if size is None else [self.num_envs, size]
        one = self.num_envs == 1 and list(tensor.shape) == shape[1:]
        if list(tensor.shape) != shape and not one:
            allowed = f"{shape} or {shape[1:]}" if self.num_envs == 1 else f"{shape}"
            raise ValueError(f"{name} has shape {list(tensor.shape)} but must be {allowed}.")
        tensor = tensor.reshape(self.num_envs, -1)
        if not tensor.isfinite().all():
            lanes = (~tensor.isfinite().all(-1)).nonzero().flatten().tolist()
            raise ValueError(f"{name} is not finite in environments {lanes}: {tensor[lanes].tolist()}.")
        return tensor

    def _flags(self, value: Any, name: str) -> Tensor:
        return self._checked(value, name, None).bool()


def _is_wrapped_in(env: Any, wrapper: type) -> bool:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, wrapper):
            return True
        env = env.env
    return False


def _of_ended(final: Any, ended: Tensor) -> Any:
    """Final observations where an episode ended, zero elsewhere, where gymnasium has None or arbitrary values."""
    if isinstance(final, np.ndarray) and final.dtype == object:  # one array or None per environment
        flags = ended.flatten().tolist()
        if any(flag and row is None for row, flag in zip(final, flags, strict=True)):
            raise ValueError("final_observation is None where an episode has ended; give it or leave all out.")
        some = np.asarray(final[flags.index(True)])
        return np.stack([np.asarray(row) if flag else 0 * some for row, flag in zip(final, flags, strict=True)])
    tensor = torch.as_tensor(final, dtype=torch.float32, device=ended.device)
    return torch.where(ended if tensor.ndim == 2 else ended.squeeze(0), tensor, 0)
