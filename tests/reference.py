"""The oracle: the method of the paper as plain loops over episodes, windows, heads and positions.

Nothing here is fast, batched, masked, cached or deduplicated, and nothing is imported from the package. Padding does
not exist: a sequence is a Python list of what is there, and each element knows its position.
"""

import math
from dataclasses import dataclass, field

import torch


@dataclass
class Episode:
    """Raw steps: H + 1 observations ``[o]``, H executed actions ``[a]`` and H rewards."""

    observations: list[list[float]] = field(default_factory=list)
    actions: list[list[float]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    @property
    def tokens(self) -> list[list[float]]:
        """x_t = [o_t, a_{t-1}, r_{t-1}, first_t], t = 0 .. H."""
        tokens = []
        for t, observation in enumerate(self.observations):
            action = self.actions[t - 1] if t else [0.0] * len(self.actions[0])
            reward = self.rewards[t - 1] if t else 0.0
            tokens.append([*observation, *action, reward, 0.0 if t else 1.0])
        return tokens


@dataclass
class Window:
    """Right-aligned: token i of n stands at position T - n + i."""

    tokens: list[list[float]]
    length: int

    def position(self, i: int) -> int:
        return self.length - len(self.tokens) + i

    def padded(self, size: int) -> tuple[list[list[float]], list[bool]]:
        """Tokens and mask as the package stores them, ``[T, size]`` and ``[T]``."""
        missing = self.length - len(self.tokens)
        return [[0.0] * size] * missing + self.tokens, [False] * missing + [True] * len(self.tokens)


@dataclass
class Context:
    """The window of the present and those of the past, oldest first; slot i of n stands at E - 1 - n + i."""

    current: Window
    past: list[Window]
    drawn: list[tuple[int, int]]  # (episode of the trial, start) of each past window
    episodes: int


def newest_window(episode: Episode, t: int, length: int) -> Window:
    """The T newest tokens when token t has just arrived."""
    return Window([episode.tokens[i] for i in range(len(episode.tokens)) if t - length < i <= t], length)


def window_from(episode: Episode, start: int, length: int) -> Window:
    """At most T tokens of an ended episode from token ``start`` on."""
    return Window([episode.tokens[i] for i in range(len(episode.tokens)) if start <= i < start + length], length)


def make_context(
    trial: list[Episode], k: int, t: int, drawn: list[tuple[int, int]], length: int, episodes: int
) -> Context:
    """What the decision at token ``t`` of the trial's ``k``-th episode sees, given that episode's draws."""
    drawn = sorted(drawn)
    assert len(drawn) < episodes and all(e < k for e, _ in drawn)
    past = [window_from(trial[e], start, length) for e, start in drawn]
    return Context(newest_window(trial[k], t, length), past, drawn, episodes)


# ------------------------------------------------------------------------------------------------------ the network


def affine(linear: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    out = linear.weight @ x
    return out if linear.bias is None else out + linear.bias


def normalise(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    if not isinstance(norm, torch.nn.LayerNorm):
        return x
    centred = x - sum(x) / len(x)
    return centred / torch.sqrt(sum(centred * centred) / len(x) + norm.eps) * norm.weight + norm.bias


def attend(attention: torch.nn.Module, xs: list[torch.Tensor], *, causal: bool) -> list[torch.Tensor]:
    outs = []
    heads = attention.num_heads
    size = len(xs[0]) // heads
    for i, x in enumerate(xs):
        parts = []
        for h in range(heads):
            channels = slice(h * size, (h + 1) * size)
            query = affine(attention.query, x)[channels]
            seen = xs[: i + 1] if causal else xs
            logits = [query @ affine(attention.key, y)[channels] / math.sqrt(size) for y in seen]
            largest = max(logits)
            exponentials = [torch.exp(logit - largest) for logit in logits]
            total = sum(exponentials)
            parts.append(
                sum(e / total * affine(attention.value, y)[channels] for e, y in zip(exponentials, seen, strict=True))
            )
        outs.append(affine(attention.output, torch.cat(parts)))
    return outs


def transform(layer: torch.nn.Module, xs: list[torch.Tensor], *, causal: bool) -> list[torch.Tensor]:
    attended = attend(layer.attention, [normalise(layer.norm_attention, x) for x in xs], causal=causal)
    xs = [x + a for x, a in zip(xs, attended, strict=True)]
    hidden = [affine(layer.widen, normalise(layer.norm_feedforward, x)).clamp(min=0) for x in xs]
    return [x + affine(layer.narrow, h) for x, h in zip(xs, hidden, strict=True)]


def embed_window(encoder: torch.nn.Module, window: Window, reward_scale: float = 1.0) -> torch.Tensor:
    intra, xs = encoder.intra, []
    for i, token in enumerate(window.tokens):
        scaled = [*token[:-2], token[-2] * reward_scale, token[-1]]
        x = affine(intra.embed, torch.tensor(scaled, dtype=intra.position.dtype))
        xs.append(x + intra.position[window.position(i)])
    for layer in intra.layers:
        xs = transform(layer, xs, causal=True)
    return normalise(intra.norm, xs[-1])


def encode(encoder: torch.nn.Module, context: Context, reward_scale: float = 1.0) -> torch.Tensor:
    """The context vector z of one decision, ``[D]``."""
    inter = encoder.inter
    xs = [embed_window(encoder, window, reward_scale) for window in [*context.past, context.current]]
    if not len(inter.layers):
        return xs[-1]
    xs = [x + inter.position[context.episodes - len(xs) + i] for i, x in enumerate(xs)]
    for layer in inter.layers:
        xs = transform(layer, xs, causal=encoder.attention == "causal")
    return normalise(inter.norm, xs[-1])


# ------------------------------------------------------------------------------------------------------------- RL2


def recurrent_tokens(trial: list[Episode]) -> list[list[list[float]]]:
    """By episode what RL2 reads: x_0 .. x_H, but x_0 of a later episode has the last action and reward before it."""
    tokens = [list(episode.tokens) for episode in trial]
    for k in range(1, len(trial)):
        before = trial[k - 1]
        tokens[k][0] = [*trial[k].observations[0], *before.actions[-1], before.rewards[-1], 1.0]
    return tokens


def recurrent_states(
    encoder: torch.nn.Module, trial: list[Episode], reward_scale: float = 1.0
) -> list[list[torch.Tensor]]:
    """By episode the states after x_0 .. x_H; that after x_H goes nowhere, the next episode starts from x_H-1's."""
    gru = encoder.gru.gru
    cell = torch.nn.GRUCell(gru.input_size, gru.hidden_size, dtype=gru.weight_ih_l0.dtype)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in gru.state_dict().items()})
    state, states = gru.weight_hh_l0.new_zeros(gru.hidden_size), []
    for tokens in recurrent_tokens(trial):
        states.append([])
        for t, token in enumerate(tokens):
            x = state.new_tensor([*token[:-2], token[-2] * reward_scale, token[-1]])
            for module in encoder.mlp:
                x = affine(module, x) if isinstance(module, torch.nn.Linear) else torch.tanh(x)
            after = cell(x, state)
            states[-1].append(after)
            if t < len(tokens) - 1:
                state = after
    return states
