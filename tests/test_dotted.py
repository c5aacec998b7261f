"""Paths of code of one's own: what is one, what it names, and who may have it imported."""

import pytest

from htrmrl_torchrl.dotted import check_trusted, is_dotted_path, resolve


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a:b", True), ("a.b:C", True), ("a.b", True), ("ML1:push", False), ("ML1:push-v3", False), ("ML10", False),
        ("custom:[a]/[b]", False), ("uniform_last", False), ("a:", False), (":b", False), ("a..b:c", False),
        ("a b:c", False), ("${oc.env:HOME}", False), ("", False), (None, False), (["a:b"], False),
    ],
)  # fmt: skip
def test_what_is_a_path(name, expected):
    assert is_dotted_path(name) is expected


def test_it_names_something_in_a_module():
    assert resolve("math:floor") is resolve("math.floor") is __import__("math").floor
    for path, said in (("no_such_lab.envs:x", "there is no module 'no_such_lab.envs'"), ("math:x", "math has no 'x'")):
        with pytest.raises(ValueError, match=said):
            resolve(path)


def test_a_module_that_lacks_another_says_so_itself(tmp_path, monkeypatch):
    (tmp_path / "lacking_module.py").write_text("import no_such_lab\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_lab'"):
        resolve("lacking_module:x")


def test_only_what_is_trusted_passes():
    check_trusted("file", ["uniform", None, "a:b"], ["a:b"])
    for trust in ([], ["a"], ["a:c"], ["a.b"]):
        with pytest.raises(ValueError, match=r"^file names code .* a:b, .* trust=\['a:b'\], .* trust=\[a:b\]\.$"):
            check_trusted("file", ["uniform", None, "a:b"], trust)
