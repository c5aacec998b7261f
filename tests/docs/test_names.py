"""Whatever a user can choose by name is explained on its page."""

import pytest

from htrmrl_torchrl.agent.registry import ENCODERS
from htrmrl_torchrl.evaluation import PROTOCOLS
from htrmrl_torchrl.memory.strategies import STRATEGIES
from tests.docs.pages import ROOT


@pytest.mark.parametrize(("page", "names"), [("memory", STRATEGIES), ("protocols", PROTOCOLS), ("baselines", ENCODERS)])
def test_every_name_has_a_row(page, names):
    text = (ROOT / f"docs/concepts/{page}.md").read_text(encoding="utf-8")
    assert not [name for name in names if f"| `{name}`" not in text]
