"""The memoryless baseline: an MLP on what is observed now."""

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import nn
from torchrl.modules import MLP

from htrmrl_torchrl import keys
from htrmrl_torchrl.encoders.contract import ContextEncoder, check_sizes


class MemorylessEncoder(ContextEncoder):
    """An MLP on the newest observation: the control without memory, which cannot adapt.

    The rest of the token (previous action and reward, the flag of an episode's first step) is not read.

    Args:
        observation_dim: size o of an observation.
        action_dim: size a of an action, for the layout of a token.
        d_model: channels D of every layer.
        mlp_layers: layers, each with a ReLU.
        reward_scale: only for heads that read the token, see `ContextEncoder`.
        hidden_key: where the vector goes.

    Shapes:
        ``("context", "current")`` ``[*batch, 1, x]`` -> ``_hidden`` ``[*batch, D]``.

    Raises:
        ValueError: for sizes below 1.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> encoder = MemorylessEncoder(observation_dim=3, action_dim=1, d_model=8)
        >>> context = TensorDict(current=torch.randn(4, 1, 6), batch_size=[4])
        >>> encoder(TensorDict(context=context, batch_size=[4]))["_hidden"].shape
        torch.Size([4, 8])
    """

    def __init__(
        self,
        *,
        observation_dim: int,
        action_dim: int,
        d_model: int = 400,
        mlp_layers: int = 3,
        reward_scale: float = 1.0,
        hidden_key: NestedKey = keys.HIDDEN,
    ) -> None:
        check_sizes(mlp_layers=mlp_layers)
        super().__init__(
            observation_dim=observation_dim,
            action_dim=action_dim,
            d_model=d_model,
            reward_scale=reward_scale,
            hidden_key=hidden_key,
        )
        self.mlp = feature_mlp(observation_dim, d_model, mlp_layers, nn.ReLU)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        observation = self.tokens(tensordict.get(keys.CURRENT)[..., -1, :])[..., : self.observation_dim]
        return tensordict.set(self.out_keys[0], self.mlp(observation))


def feature_mlp(in_features: int, width: int, layers: int, activation: type[nn.Module]) -> MLP:
    """Equally wide layers, each with an activation: He's initialisation for ReLU, Xavier's for others, biases zero."""
    mlp = MLP(
        in_features=in_features,
        out_features=width,
        num_cells=[width] * (layers - 1),
        activation_class=activation,
        activate_last_layer=True,
    )
    for linear in (module for module in mlp if isinstance(module, nn.Linear)):
        if activation is nn.ReLU:
            nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu")
        else:
            nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    return mlp
