"""Windows that each strategy would draw from the same trial, and the network's attention on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from htrmrl_torchrl.encoders.hierarchical import HierarchicalEncoder
from htrmrl_torchrl.inspection.recording import Recording
from htrmrl_torchrl.memory.past import Array, PastEpisodes, Window
from htrmrl_torchrl.memory.strategies import STRATEGIES, make_strategy
from htrmrl_torchrl.memory.windows import window_at


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """The ``windows`` that one strategy draws, sorted, as (episode of the trial, first token), and the ``attention`` of
    the episode's last decision: ``[len(windows) + 1]``, the present last, mean over the heads of the last layer.
    """

    windows: list[Window]
    attention: Tensor


def retrieve(
    encoder: HierarchicalEncoder, recording: Recording, *, trial: int, episode: int, seed: int = 0
) -> dict[str, Retrieved]:
    """By strategy name: what ``episode`` of a recorded ``trial`` would see of the earlier ones. ``seed`` is of the
    draws. Raises ValueError if the encoder sees one window only.
    """
    if not encoder.remembers:
        raise ValueError("This encoder sees only the current window, so nothing is retrieved; it needs episodes >= 2.")
    tokens = recording.tokens[trial].to(encoder.tokens.mean.device)  # [K, H + 1, x]
    shown = {}
    for name in STRATEGIES:
        drawn = sorted(
            make_strategy(name)(
                _past(encoder, tokens, episode), slots=encoder.episodes - 1, window=encoder.window,
                rng=np.random.default_rng(seed),
            )
        )  # fmt: skip
        context = _context(encoder, tokens, episode, drawn)
        attention = encoder.inspect(context).slot_attention
        assert attention is not None
        newest = attention[0, -1, :, -1].mean(0).cpu()  # [E]
        shown[name] = Retrieved(windows=drawn, attention=newest[encoder.episodes - 1 - len(drawn) :])
    return shown


def _past(encoder: HierarchicalEncoder, tokens: Tensor, episode: int) -> PastEpisodes:
    """Input of a strategy for a trial ``[K, H + 1, x]`` at the start of its ``episode``."""

    @torch.no_grad()
    def embed(windows: Sequence[Window]) -> Array:
        return encoder.embed_windows(*_windows(encoder, tokens, windows)).cpu().numpy()

    @torch.no_grad()
    def present() -> Array:
        newest = torch.tensor([episode * tokens.shape[1]], device=tokens.device)  # the episode's first token
        return encoder.embed_windows(*window_at(tokens.flatten(0, 1), newest, newest, encoder.window))[0].cpu().numpy()

    return PastEpisodes(
        [tokens.shape[1]] * episode,
        tokens=lambda index: tokens[index].cpu().numpy(),
        observation_dim=encoder.observation_dim,
        embed=embed,
        present=present,
    )


def _windows(encoder: HierarchicalEncoder, tokens: Tensor, windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
    """Tokens ``[n, T, x]`` and mask ``[n, T]``, cut as in the memory."""
    length = tokens.shape[1]
    first = [e * length + start for e, start in windows]
    newest = [e * length + min(start + encoder.window, length) - 1 for e, start in windows]
    index = torch.tensor([newest, first], device=tokens.device)
    return window_at(tokens.flatten(0, 1), index[0], index[1], encoder.window)


def _context(encoder: HierarchicalEncoder, tokens: Tensor, episode: int, drawn: Sequence[Window]) -> TensorDict:
    """Context ``[1]`` of an episode's last decision that sees the windows ``drawn``."""
    length, slots = tokens.shape[1], encoder.episodes - 1
    # The last decision sees the last token but one.
    first = torch.tensor([episode * length], device=tokens.device)
    current, current_mask = window_at(tokens.flatten(0, 1), first + length - 2, first, encoder.window)
    shown, shown_mask = _windows(encoder, tokens, drawn)
    past = tokens.new_zeros(slots, encoder.window, tokens.shape[-1])
    past_mask = torch.zeros(slots, encoder.window, dtype=torch.bool, device=tokens.device)
    if drawn:
        past[-len(drawn) :], past_mask[-len(drawn) :] = shown, shown_mask
    held = torch.arange(slots, device=tokens.device) >= slots - len(drawn)
    return TensorDict(
        current=current[0],
        current_mask=current_mask[0],
        past=past,
        past_mask=past_mask,
        past_id=torch.where(held, torch.arange(slots, device=tokens.device), -1),
        slot_mask=held,
        batch_size=[],
    ).unsqueeze(0)
