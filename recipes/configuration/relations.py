"""Relations between the keys of a training recipe, and quantities that follow from several keys."""

from collections.abc import Iterator, Sequence

from omegaconf import DictConfig

from htrmrl_torchrl.dotted import is_dotted_path
from htrmrl_torchrl.memory.strategies import find_strategy

Relation = tuple[bool, str]  # whether it holds, and the error message if not


def frames_per_trial_batch(config: DictConfig) -> int:
    """Frames of one trial in every environment: ``num_envs * episodes_per_trial * horizon``."""
    return int(config.env.num_envs * config.env.episodes_per_trial * config.env.horizon)


def frames_per_batch(config: DictConfig) -> int:
    """Frames of a collector batch: ``collector.frames_per_batch``, by default one trial per environment."""
    return int(config.collector.frames_per_batch or frames_per_trial_batch(config))


def batches_per_update(config: DictConfig, *, frames: int) -> int:
    """Batches of the update that begins to collect at ``frames``; from 1 to ``collector.grow_to``."""
    progress = min(frames / config.collector.grow_over, 1.0)
    return 1 + int((config.collector.grow_to - 1) * progress)


def frames_of_context(config: DictConfig) -> int:
    """Most earlier frames that are kept beside a batch for its contexts."""
    if config.memory.scope == "trial":
        return frames_per_batch(config)  # the beginnings of trials that the batch cuts
    # One episode more: a batch may cut the running one.
    return int(config.env.num_envs * (config.memory.max_episodes + 1) * config.env.horizon)


def relations(config: DictConfig) -> Iterator[Relation]:
    """All relations between the keys of a training recipe."""
    yield from _network_relations(config)
    yield from _collection_relations(config)
    yield from _memory_relations(config)
    yield from _update_relations(config)
    adaptation = config.eval.adaptation_episodes
    adaptation = config.env.episodes_per_trial if adaptation is None else adaptation
    yield (
        not config.eval.memory_gain or adaptation >= 2,
        f"eval.memory_gain is True but must be false with fewer than two adaptation episodes, which are {adaptation} "
        "(eval.adaptation_episodes, or env.episodes_per_trial)",
    )


def warnings(config: DictConfig) -> Iterator[str]:
    """One sentence for each setting that is allowed and may give poor results."""
    env, encoder, memory = config.env, config.encoder, config.memory
    # The relations keep the number and positions of slots in distribution; this is about their content.
    if memory.strategy == "recent" and encoder.get("episodes", 1) >= env.episodes_per_trial > 1:
        yield (
            f"memory.strategy is recent and encoder.episodes is {encoder.episodes}, not below env.episodes_per_trial, "
            f"which is {env.episodes_per_trial}: every context of training holds the trial's first episode, and "
            "success may fall in longer trials, which drop it; memory.strategy=uniform_last draws earlier episodes at "
            "random (in trials of three and more)"
        )


def longer_trials(length: int, *, trained: Sequence[int]) -> Iterator[str]:
    """A note if trials of ``length`` episodes are longer than the shortest ones of training."""
    if length > min(trained):
        yield f"note: a trial has {length} episodes here; in training it had {' or '.join(map(str, trained))}"


def _network_relations(config: DictConfig) -> Iterator[Relation]:
    encoder, policy = config.encoder, config.policy
    if "num_heads" in encoder and "d_model" in encoder:
        yield (
            encoder.d_model % encoder.num_heads == 0,
            f"encoder.d_model is {encoder.d_model} but must be a multiple of encoder.num_heads, which is "
            f"{encoder.num_heads}",
        )
    yield (
        not (encoder.kind == "mlp" and policy.observe_token),
        "policy.observe_token is True but must be false with encoder=mlp: the token holds the previous action and "
        "reward, a memory of one step",
    )
    yield (
        policy.observe_token or not policy.film,
        "policy.observe_token is False but must be true with policy.film, whose head reads the current token",
    )
    yield (
        policy.min_std <= policy.init_std,
        f"policy.min_std is {policy.min_std} but must be at most policy.init_std, which is {policy.init_std}",
    )


def _collection_relations(config: DictConfig) -> Iterator[Relation]:
    env = config.env
    trial_batch, batch = frames_per_trial_batch(config), frames_per_batch(config)
    yield (
        env.num_workers <= env.num_envs,
        f"env.num_workers is {env.num_workers} but must be at most env.num_envs, which is {env.num_envs}",
    )
    shortest = env.episodes_per_trial if env.shortest_trial is None else env.shortest_trial
    yield (
        shortest <= env.episodes_per_trial,
        f"env.shortest_trial is {shortest} but must be at most env.episodes_per_trial, which is "
        f"{env.episodes_per_trial}",
    )
    yield (
        config.workers <= env.num_envs,
        f"workers is {config.workers} but must be at most env.num_envs, which is {env.num_envs}: each process plays "
        "at least one environment",
    )
    split = env.shortest_trial is not None
    yield (
        config.workers == 1 or not (split or env.disguises),
        f"workers is {config.workers} but must be 1 with env.{'shortest_trial' if split else 'disguises'}",
    )
    yield (
        batch % trial_batch == 0,
        f"collector.frames_per_batch is {batch}, which doesn't fill whole trials, but must be a multiple of "
        f"env.num_envs * env.episodes_per_trial * env.horizon = {env.num_envs} * {env.episodes_per_trial} * "
        f"{env.horizon} = {trial_batch}",
    )
    yield (
        config.total_frames >= batch,
        f"total_frames is {config.total_frames} but must be at least one batch, which is {batch} frames (env.num_envs "
        "* env.episodes_per_trial * env.horizon, or collector.frames_per_batch)",
    )


def _memory_relations(config: DictConfig) -> Iterator[Relation]:
    env, encoder = config.env, config.encoder
    episodes = encoder.get("episodes", 1)
    yield (
        config.memory.scope != "lane" or config.memory.max_episodes is not None,
        "memory.max_episodes is null but must be a number with memory.scope=lane, which remembers across trials, for "
        f"instance 2 * env.episodes_per_trial = {2 * env.episodes_per_trial}",
    )
    yield (
        config.memory.scope != "lane" or episodes > 1,
        f"memory.scope is lane but must be trial with encoder={encoder.kind}, which sees no windows of other episodes",
    )
    past = [env.episodes_per_trial - 1] if config.memory.scope != "lane" else []
    past += [config.memory.max_episodes] if config.memory.max_episodes is not None else []
    if episodes > 1 and getattr(find_strategy(config.memory.strategy), "one_per_episode", False):
        yield (
            episodes <= min(past) + 1,
            f"encoder.episodes is {episodes} but must be at most {min(past) + 1} with memory.strategy="
            f"{config.memory.strategy}, which shows one window of each earlier episode, and training remembers at most "
            f"{min(past)}: slots beyond would stay untrained, and evaluation with more episodes would fill them",
        )


def _update_relations(config: DictConfig) -> Iterator[Relation]:
    env, loss, batch = config.env, config.loss, frames_per_batch(config)
    if config.encoder.kind == "rl2" or is_dotted_path(config.encoder.kind):  # gradients may cross episodes
        yield (
            loss.segment_frames <= env.episodes_per_trial * env.horizon,
            f"loss.segment_frames is {loss.segment_frames} but must be at most a trial, env.episodes_per_trial * "
            f"env.horizon, which is {env.episodes_per_trial * env.horizon}",
        )
    else:
        yield (
            loss.segment_frames <= env.horizon,
            f"loss.segment_frames is {loss.segment_frames} but must be at most env.horizon, which is {env.horizon}",
        )
    yield (
        loss.minibatch_frames % loss.segment_frames == 0,
        f"loss.minibatch_frames is {loss.minibatch_frames} but must be a multiple of loss.segment_frames, which is "
        f"{loss.segment_frames}",
    )
    yield (
        loss.minibatch_frames <= batch,
        f"loss.minibatch_frames is {loss.minibatch_frames} but must be at most one batch, which is {batch} frames",
    )
