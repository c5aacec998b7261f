"""What a training run of several processes does together before it begins; nothing of it changes a run of one."""

from omegaconf import DictConfig
from torch import Tensor, nn
from torchrl.envs import EnvBase

from htrmrl_torchrl.agent.networks import Networks
from htrmrl_torchrl.checkpoints.archive import read_states
from htrmrl_torchrl.envs import TrialEnv
from htrmrl_torchrl.envs import shares as env_shares
from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.memory import shares as memory_shares
from htrmrl_torchrl.memory.contract import Memory
from htrmrl_torchrl.memory.episodic import EpisodicMemory
from htrmrl_torchrl.memory.recurrent import RecurrentMemory
from htrmrl_torchrl.parallel.ranks import Ranks
from htrmrl_torchrl.parallel.states import Joined
from htrmrl_torchrl.runs.checkpoint import Resumable, RunCheckpoints
from recipes.configuration.rules import flatten
from recipes.configuration.run_folder import Start

_OF_A_MACHINE = ("run_dir", "resume")


def check_alike(config: DictConfig, ranks: Ranks) -> None:
    """Raise UserError unless all ranks were started with the same settings and have a lane to play."""
    first, own = ranks.broadcast(flatten(config)), flatten(config)
    wrong = [key for key in own if key not in _OF_A_MACHINE and own[key] != first.get(key)]
    differing = [(rank, keys[0]) for rank, keys in enumerate(ranks.gather(wrong)) if keys]
    if differing:
        rank, key = differing[0]
        raise UserError(f"{key} differs between ranks 0 and {rank}: start all with the same settings")
    if ranks.size > config.env.num_envs:
        raise UserError(f"there are {ranks.size} ranks but must be at most env.num_envs, {config.env.num_envs}")


def restored(checkpoints: RunCheckpoints, start: Start | None, ranks: Ranks) -> bool:
    """Continues from the checkpoint that the first rank has found (``start``, ``None`` in the others) and reads for
    all; whether there is one. Raises UserError if it is damaged.
    """
    path = None if start is None else start.checkpoint
    try:
        path, states = ranks.broadcast((path, None if path is None else read_states(path)))
        if path is not None:
            checkpoints.restore(path, states)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot continue: {error}") from error
    return path is not None


def joined(env: EnvBase, networks: Networks, ranks: Ranks, *, lanes: int) -> tuple[Resumable | None, Resumable]:
    """Environment and memory for `RunCheckpoints`, of all ``lanes``; a foreign environment, ``None``, is not saved.

    Raises UserError for a memory of the user's own in several ranks.
    """
    own_env, memory = env if isinstance(env, TrialEnv) else None, networks.memory
    share = ranks.share(lanes)
    if share is None:
        return own_env, memory
    assert own_env is not None
    _begin_at(memory, share.first)
    return (
        Joined(own_env, ranks=ranks, share=share, join=env_shares.join_states, split=env_shares.share_of_state),
        Joined(memory, ranks=ranks, share=share, join=memory_shares.join_states, split=memory_shares.share_of_state),
    )


def tensors_of(*parts: nn.Module) -> list[Tensor]:
    """All tensors of modules, which `Ranks.follow` keeps alike: processors of several kinds round differently."""
    return [tensor for part in parts for tensor in part.state_dict().values()]


def _begin_at(memory: Memory, lane: int) -> None:
    if isinstance(memory, EpisodicMemory):
        memory.first_lane = lane
    elif not isinstance(memory, RecurrentMemory):
        raise UserError(f"workers must be 1 with a memory of your own, which is {type(memory).__name__}")
