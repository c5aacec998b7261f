"""The hierarchical encoder: windows -> embeddings -> context vector (HTrMRL, arXiv 2402.06402).

::

    tokens of a window  --intra-->  e            one embedding for each window, shared weights
    e_1 .. e_{E-1}, e_current  --inter-->  z     one context vector for each decision

Three shortcuts make it cheap without changing its output. Equal past windows are encoded once. The last layer of a
level computes only the newest position. With causal attention the past's keys and values do not depend on the present,
so they are computed once for all decisions of an episode.
"""

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from htrmrl_torchrl import keys
from htrmrl_torchrl.encoders.contract import ContextEncoder, Inside, check_sizes
from htrmrl_torchrl.encoders.inter import AttentionMode, InterEpisodeEncoder
from htrmrl_torchrl.encoders.intra import IntraEpisodeEncoder
from htrmrl_torchrl.encoders.transformer import Norm
from htrmrl_torchrl.envs.lanes import check_choice


class HierarchicalEncoder(ContextEncoder):
    """TensorDict module from ``"context"`` to ``"_hidden"``: the windows of a decision -> one vector.

    It is a pure function of its input: the episodic memory (rollouts) or the replay buffer (updates) writes the
    context. If the memory has stored the encoded past under `cache_key`, this is used instead of the windows. If the
    past is constant along a time axis of the context (segments of one episode), it is encoded once per segment. Equal
    windows (equal ``past_id``) are encoded once.

    Args:
        observation_dim: size o of an observation.
        action_dim: size a of an action. A token is [observation, previous action, previous reward, first], o + a + 2.
        window: number of tokens T in a window, >= 1. With longer windows the agent can react to more of the running
            episode, at proportionally more cost per frame.
        episodes: number of windows E that a decision sees, including the current one, >= 1. ``1``: no memory of earlier
            episodes.
        d_model: channels D of both levels; a multiple of `num_heads`.
        num_heads: attention heads of both levels.
        intra_layers: transformer layers within a window, >= 1.
        inter_layers: transformer layers over windows; ``0`` ignores the past (the flat TrMRL).
        d_feedforward: hidden channels of feed-forward blocks; default: 4 D.
        attention: ``"causal"``: a slot attends to earlier slots only, and the past is encoded once per episode.
            ``"full"``: every slot attends to all slots, at E times the cost per decision.
        norm: ``"pre_ln"`` or ``"tfixup"``.
        reward_scale: factor on the previous reward inside the token.
        hidden_key: output key of the context vector.
        cache_key: key of this encoder's encoded past, inside ``"context"``.

    Shapes:
        ``("context", "current")`` ``[*batch, T, x]``, ``current_mask`` ``[*batch, T]``, ``past`` ``[*batch, E-1, T,
        x]``, ``past_mask`` ``[*batch, E-1, T]``, ``past_id`` and ``slot_mask`` ``[*batch, E-1]`` -> ``_hidden``
        ``[*batch, D]``.

    Raises:
        ValueError: for sizes below the bounds above, unknown modes, or a context of other sizes.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> encoder = HierarchicalEncoder(observation_dim=3, action_dim=1, window=2, episodes=3, d_model=8, num_heads=2)
        >>> context = TensorDict(current=torch.randn(4, 2, 6), current_mask=torch.ones(4, 2, dtype=torch.bool),
        ...     past=torch.randn(4, 2, 2, 6), past_mask=torch.ones(4, 2, 2, dtype=torch.bool),
        ...     past_id=torch.arange(8).view(4, 2), slot_mask=torch.ones(4, 2, dtype=torch.bool), batch_size=[4])
        >>> encoder(TensorDict(context=context, batch_size=[4]))["_hidden"].shape
        torch.Size([4, 8])
    """

    def __init__(
        self,
        *,
        observation_dim: int,
        action_dim: int,
        window: int = 5,
        episodes: int = 10,
        d_model: int = 64,
        num_heads: int = 4,
        intra_layers: int = 2,
        inter_layers: int = 2,
        d_feedforward: int | None = None,
        attention: AttentionMode = "causal",
        norm: Norm = "pre_ln",
        reward_scale: float = 1.0,
        hidden_key: NestedKey = keys.HIDDEN,
        cache_key: tuple[str, str] = keys.PAST_CACHE,
    ) -> None:
        check_sizes(window=window, episodes=episodes, intra_layers=intra_layers)
        check_sizes(least=0, inter_layers=inter_layers)
        check_choice(AttentionMode, attention=attention)
        super().__init__(
            observation_dim=observation_dim,
            action_dim=action_dim,
            window=window,
            episodes=episodes,
            d_model=d_model,
            reward_scale=reward_scale,
            hidden_key=hidden_key,
        )
        self.attention: AttentionMode = attention
        self.cache_key = cache_key
        d_feedforward = 4 * d_model if d_feedforward is None else d_feedforward
        self.intra = IntraEpisodeEncoder(
            token_dim=self.token_dim,
            window=window,
            num_layers=intra_layers,
            d_model=d_model,
            num_heads=num_heads,
            d_feedforward=d_feedforward,
            norm=norm,
        )
        self.inter = InterEpisodeEncoder(
            episodes=episodes,
            num_layers=inter_layers,
            d_model=d_model,
            num_heads=num_heads,
            d_feedforward=d_feedforward,
            norm=norm,
        )

    @property
    def own_key(self) -> str | None:
        return self.cache_key[1]

    @property
    def remembers(self) -> bool:
        return self.episodes > 1 and len(self.inter.layers) > 0

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        context = tensordict.get(keys.CONTEXT)
        current = self._embed_current(context)  # [F, D]
        if len(self.inter.layers):
            current = self._relate(context, current)
        return tensordict.set(self.out_keys[0], current.view(*context.batch_size, -1))

    def _relate(self, context: TensorDictBase, current: Tensor) -> Tensor:
        """Context vectors ``[F, D]`` of current embeddings ``[F, D]``."""
        cache, slot_mask = self._past(context)  # G pasts, each shared by S = F / G decisions
        shared_by = len(current) // len(slot_mask)
        if self.attention == "causal":
            return self.inter.decode(current.view(-1, shared_by, self.d_model), cache, slot_mask).flatten(0, 1)
        cache, slot_mask = cache.repeat_interleave(shared_by, 0), slot_mask.repeat_interleave(shared_by, 0)
        return self.inter(current, cache, slot_mask, mode="full")

    def encode_past(self, past: Tensor, past_mask: Tensor, past_id: Tensor, slot_mask: Tensor) -> Tensor:
        """Encoding of the past for later decisions; the memory keeps it for one episode.

        Args:
            past, past_mask, past_id, slot_mask: ``[G, E-1, T, x]``, ``[G, E-1, T]``, ``[G, E-1]``, ``[G, E-1]``.

        Returns:
            Causal attention: keys and values ``[G, L2, 2, E-1, D]``; full attention: embeddings ``[G, E-1, D]``.
        """
        embeddings = self._embed_distinct(past, past_mask, past_id, slot_mask)
        return self.inter.encode_past(embeddings, slot_mask) if self.attention == "causal" else embeddings

    def attention_weights(self, context: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Attention of the last layer of each level, for inspection; changes nothing.

        Returns:
            ``[F, H, T]`` over the current window and ``[F, H, E]`` over the slots (the present last), F decisions.
            Without inter-episode layers the second is empty, ``[F, H, 0]``.
        """
        tokens, mask = self._flat_current(context)
        intra = self.intra.attention(self.tokens(tokens), mask)
        if not len(self.inter.layers):
            return intra, intra[..., :0]
        current = self.intra(self.tokens(tokens), mask)
        flat = context.reshape(-1)
        slot_mask = flat["slot_mask"]
        past = self._embed_distinct(flat["past"], flat["past_mask"], flat["past_id"], slot_mask)
        return intra, self.inter.attention(current, past, slot_mask, mode=self.attention)

    @torch.no_grad()
    def inspect(self, context: TensorDictBase) -> Inside:
        """Attention of all layers and heads of both levels, and all embeddings, for inspection; changes nothing.

        Everything is computed without cache, sharing and shortcuts, and ``hidden`` equals the output of `forward` up to
        float rounding. It costs about E forward passes. With one level (TrMRL) the upper one is ``None``.

        Args:
            context: ``[*batch]`` with the raw windows ``past``; F decisions in total.

        Raises:
            ValueError: if the context holds only the encoded past.

        Example:
            >>> from tensordict import TensorDict
            >>> encoder = HierarchicalEncoder(observation_dim=3, action_dim=1, window=2, episodes=3, d_model=8)
            >>> context = TensorDict(current=torch.randn(4, 2, 6), current_mask=torch.ones(4, 2, dtype=torch.bool),
            ...     past=torch.randn(4, 2, 2, 6), past_mask=torch.ones(4, 2, 2, dtype=torch.bool),
            ...     past_id=torch.arange(8).view(4, 2), slot_mask=torch.ones(4, 2, dtype=torch.bool), batch_size=[4])
            >>> encoder.inspect(context).slot_attention.shape  # decisions, layers, heads, queries, keys
            torch.Size([4, 2, 4, 3, 3])
        """
        tokens, mask = self._flat_current(context)
        embedding, window_attention = self.intra.attend(self.tokens(tokens), mask)
        own = {"embedding": embedding, "window_attention": window_attention}
        if not len(self.inter.layers):
            return Inside(hidden=embedding, **own)
        rows = context.select("past", "past_mask", "slot_mask", strict=False).reshape(-1)
        slot_mask, past = rows.get("slot_mask"), rows.get("past", None)  # [F, E-1], [F, E-1, T, x]
        if past is None:
            raise ValueError(
                f"The context holds only the encoded past ({self.cache_key[1]}); inspection needs the windows past and "
                "past_mask, as the memory and the replay buffer write them."
            )
        windows, held = self.tokens(past.flatten(0, 1)), rows.get("past_mask").flatten(0, 1)  # [F * (E-1), T, x]
        embedded, attention = self.intra.attend(windows, held)
        embedded = embedded.view(*slot_mask.shape, self.d_model) * slot_mask.unsqueeze(-1)
        attention = attention.view(*slot_mask.shape, *attention.shape[1:]) * slot_mask[..., None, None, None, None]
        hidden, slot_attention = self.inter.attend(embedding, embedded, slot_mask, mode=self.attention)
        return Inside(
            hidden=hidden, past_embedding=embedded, past_attention=attention, slot_attention=slot_attention, **own
        )

    def embed_windows(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Embeddings ``[W, D]`` of windows ``[W, T, x]`` with masks ``[W, T]``, from the lower level."""
        return self.intra(self.tokens(tokens), mask)

    def _flat_current(self, context: TensorDictBase) -> tuple[Tensor, Tensor]:
        tokens, mask = context.get("current"), context.get("current_mask")
        if tokens.shape[-2:] != (self.window, self.token_dim):
            raise ValueError(
                f"The context's current window is {list(tokens.shape[-2:])} [T, x]; this encoder was built for "
                f"[{self.window}, {self.token_dim}]. Use the same window and specs for memory, buffer and encoder."
            )
        return tokens.reshape(-1, *tokens.shape[-2:]), mask.reshape(-1, self.window)

    def _embed_current(self, context: TensorDictBase) -> Tensor:
        tokens, mask = self._flat_current(context)
        return self.intra(self.tokens(tokens), mask)

    def _past(self, context: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The encoded past of G rows: one per decision, or one per segment if its decisions share their past."""
        slot_mask = context.get("slot_mask")
        if slot_mask.shape[-1] != self.episodes - 1:
            raise ValueError(
                f"The context has {slot_mask.shape[-1]} slots for past windows; this encoder was built for episodes="
                f"{self.episodes}, {self.episodes - 1} slots. Use the same episodes for memory, buffer and encoder."
            )
        cache = context.get(self.cache_key[1:], None)
        if cache is not None:
            rows = slot_mask.shape[:-1].numel()
            return cache.reshape(rows, *cache.shape[slot_mask.ndim - 1 :]), slot_mask.reshape(rows, -1)
        past_id = context.get("past_id")
        shared = past_id.ndim > 2 and bool((past_id == past_id[..., :1, :]).all())
        rows = context[..., 0].reshape(-1) if shared else context.reshape(-1)
        slot_mask = rows.get("slot_mask")
        return self.encode_past(rows.get("past"), rows.get("past_mask"), rows.get("past_id"), slot_mask), slot_mask

    def _embed_distinct(self, past: Tensor, past_mask: Tensor, past_id: Tensor, slot_mask: Tensor) -> Tensor:
        """Embeddings ``[G, E-1, D]`` of past windows, each distinct one encoded once; zero for empty slots."""
        slots = slot_mask.flatten().nonzero().squeeze(-1)  # [n] of G * (E-1)
        distinct, inverse = past_id.flatten().index_select(0, slots).unique(return_inverse=True)
        first = torch.full_like(distinct, len(slots)).scatter_reduce_(
            0, inverse, torch.arange(len(slots), device=slots.device), "amin"
        )
        row, slot = (index := slots[first]) // past.shape[1], index % past.shape[1]
        embedded = self.intra(self.tokens(past[row, slot]), past_mask[row, slot])  # [distinct, D]
        # index_select, not embedded[inverse]: the backward pass of the latter is not deterministic on CPU threads.
        spread = embedded.index_select(0, inverse)
        out = spread.new_zeros(past.shape[0] * past.shape[1], self.d_model).index_copy(0, slots, spread)
        return out.view(*past.shape[:2], self.d_model)
