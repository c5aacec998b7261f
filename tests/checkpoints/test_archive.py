"""Checkpoint files: damage is noticed, and what a stranger puts into one is refused before any of it is read."""

import hashlib
import json
import os
import pickle
import random
import resource
import stat
import struct
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from torchrl.checkpoint import Checkpoint

from htrmrl_torchrl import HTrMRLAgent
from htrmrl_torchrl.agent.networks import build_networks, load_networks
from htrmrl_torchrl.checkpoints.archive import NotACheckpoint, TensorFiles, check_archive, seal
from htrmrl_torchrl.checkpoints.checkpoint import (
    export_agent,
    latest_checkpoint,
    read_component,
    read_environment,
)
from htrmrl_torchrl.checkpoints.files import set_aside
from tests.checkpoints.test_checkpoint import Run

TENSORS = "components/0000-actor/tensors.bin"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run and a checkpoint of it."""
    run = Run(tmp_path_factory.mktemp("run"))
    run.iterate()
    return run, run.save()


def forged(path, target, *, files=None, without=(), add=None):
    """A sealed copy of a checkpoint with other files in it, which its manifest knows, or fewer; ``add(archive)``."""
    files = dict(files or {})
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        manifest = json.loads(source.read("manifest.json"))
        for name in files:
            component = next(c for c in manifest["components"].values() if name.startswith(c["path"] + "/"))
            component["files"] = sorted({*component["files"], name.removeprefix(component["path"] + "/")})
        files["manifest.json"] = json.dumps(manifest).encode()
        for name in [n for n in source.namelist() if n not in files and n not in without]:
            archive.writestr(name, source.read(name))
        for name, content in files.items():
            archive.writestr(name, content)
        if add is not None:
            add(archive)
    seal(target)
    return target


def refusal(path):
    """What is said of a file, by every way to load it; nothing of it is extracted."""
    sentences = set()
    for load in (check_archive, load_networks, HTrMRLAgent.from_checkpoint, lambda p: read_component(p, "config")):
        with pytest.raises(ValueError) as raised:
            load(path)
        sentences.add(str(raised.value))
    (sentence,) = sentences
    assert sentence.startswith(f"{path} is not a checkpoint of this package, or damaged (")
    return sentence


# ------------------------------------------------------------------------------------------------------------- damage


def test_a_whole_file_is_accepted(saved, tmp_path):
    _, path = saved
    assert {"actor", "critic", "optimizer", "env", "memory", "rng", "progress", "config"} <= set(check_archive(path))
    load_networks(forged(path, tmp_path / "copy.torchrl"))  # forging alone is no fault
    assert zipfile.ZipFile(path).testzip() is None  # and a zip file for everyone else


def test_every_flipped_byte_is_noticed(saved, tmp_path):
    """In the file's first and last 2,000 bytes, where zip keeps names and offsets, and at 500 places between."""
    _, path = saved
    content, target = bytearray(path.read_bytes()), tmp_path / "flipped.torchrl"
    places = {*range(2000), *range(len(content) - 2000, len(content)), *range(0, len(content), len(content) // 500)}
    target.write_bytes(content)
    with target.open("r+b", buffering=0) as file:
        for place in sorted(places):
            os.pwrite(file.fileno(), bytes([content[place] ^ 1]), place)
            with pytest.raises(NotACheckpoint, match=r"checksum"):
                check_archive(target)
            os.pwrite(file.fileno(), bytes([content[place]]), place)
    check_archive(target)


def test_zip_alone_misses_some_of_them(saved, tmp_path):
    """Negative control: torchrl loads a file whose time stamps, version or local names were flipped."""
    _, path = saved
    content = bytearray(path.read_bytes())
    content[10] ^= 1  # of the first entry's time
    (tmp_path / "flipped.torchrl").write_bytes(content)
    assert zipfile.ZipFile(tmp_path / "flipped.torchrl").testzip() is None
    assert Checkpoint.is_checkpoint(tmp_path / "flipped.torchrl")


@pytest.mark.parametrize("missing", [1, 64, 71, 5000])
def test_a_truncated_file_is_noticed(missing, saved, tmp_path):
    _, path = saved
    (tmp_path / "cut.torchrl").write_bytes(path.read_bytes()[:-missing])
    assert "checksum" in refusal(tmp_path / "cut.torchrl")


def test_an_empty_file_and_a_longer_one_are_noticed(saved, tmp_path):
    _, path = saved
    for content in (b"", b"x", path.read_bytes() + b"x"):
        (tmp_path / "other.torchrl").write_bytes(content)
        assert "checksum" in refusal(tmp_path / "other.torchrl")


def test_damaged_files_are_passed_over_and_set_aside(tmp_path):
    run = Run(tmp_path)
    paths = []
    for _ in range(2):
        run.iterate()
        paths.append(run.save())
    with paths[1].open("r+b") as file:
        file.truncate(1000)
    assert latest_checkpoint(tmp_path) == (paths[0], {paths[1]: "no checksum at its end"})
    aside = set_aside(paths[1])
    assert latest_checkpoint(tmp_path) == (paths[0], {}) and aside.stat().st_size == 1000
    run.iterate()
    run.save()
    assert aside.exists()  # whoever wants to look at it can


# --------------------------------------------------------------------------------------------------------- unfriendly


class Attack:
    """Unpickling it creates a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def stock_checkpoint(run, target, files):
    """An actor as torchrl saves it by default, and ``files`` in its state's folder; sealed."""
    Checkpoint(actor=run.networks.actor, format="archive").save(target)
    folder = "components/0000-actor"
    with zipfile.ZipFile(target) as archive:
        metadata = json.loads(archive.read(f"{folder}/state/meta.json"))
    made = files(metadata)
    content = {f"{folder}/{name}": value for name, value in made.items()}
    return forged(target, target.with_suffix(".forged"), files=content)


def in_a_non_tensor(attack):
    """Tensordict keeps what is no tensor in a pickle beside its metadata, and loads it unasked."""
    kind = "<class 'tensordict.tensorclass.NonTensorData'>"
    return lambda metadata: {
        "state/meta.json": json.dumps({**metadata, "extra": {"type": kind}}),
        "state/extra/meta.json": json.dumps({"_type": kind}),
        "state/extra/other.pickle": pickle.dumps({"data": attack}),
    }


def in_a_torch_file(attack):
    return lambda metadata: {"state.pt": pickle.dumps(attack)}


@pytest.mark.parametrize("hide", [in_a_non_tensor, in_a_torch_file])
def test_nothing_in_a_checkpoint_is_executed(hide, saved, tmp_path):
    run, _ = saved
    mark = tmp_path / "executed"
    evil = stock_checkpoint(run, tmp_path / "stock.torchrl", hide(Attack(mark)))
    assert "but tensors and JSON are all that is read" in refusal(evil)
    with pytest.raises(ValueError):
        Run(tmp_path / "victim").checkpoints.restore(evil)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:TensorDict.load_memmap is loading a pickled:FutureWarning")
def test_the_attack_works_where_nobody_looks(saved, tmp_path):
    """Negative control: torchrl alone executes what is hidden in a non-tensor."""
    run, _ = saved
    mark = tmp_path / "executed"
    evil = stock_checkpoint(run, tmp_path / "stock.torchrl", in_a_non_tensor(Attack(mark)))
    Checkpoint(actor=run.networks.actor).load(evil, components=["actor"])
    assert mark.is_dir()


@pytest.mark.parametrize(
    "name",
    ["../x.json", "/tmp/x.json", "components/../../x.json", "..\\x.json", "C:\\x.json", "C:/x.json", "\\\\host\\x.json",
     "a//x.json",],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(name, saved, tmp_path):
    _, path = saved

    def add(archive):
        archive.writestr("later", "{}")
        archive.filelist[-1].filename = name  # as it is: ZipInfo would cut and clean it

    evil = forged(path, tmp_path / "evil.torchrl", add=add)
    with zipfile.ZipFile(evil) as archive:
        assert name in [entry.orig_filename for entry in archive.infolist()]
    assert "could lead out of the folder" in refusal(evil)


def test_links_are_refused(saved, tmp_path):
    _, path = saved

    def add(archive):
        link = zipfile.ZipInfo("components/0000-actor/value.json")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")

    assert "which is a link or not a regular file" in refusal(forged(path, tmp_path / "evil.torchrl", add=add))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_name_that_is_there_twice_is_refused(saved, tmp_path):
    """Which of the two is read would depend on the reader."""
    _, path = saved
    evil = forged(path, tmp_path / "evil.torchrl", add=lambda archive: archive.writestr(TENSORS, b"other"))
    assert "twice" in refusal(evil)


def test_what_the_manifest_does_not_list_is_refused(saved, tmp_path):
    _, path = saved
    evil = forged(path, tmp_path / "evil.torchrl", add=lambda archive: archive.writestr("more/value.json", "{}"))
    assert "only in its manifest or only in the archive" in refusal(evil)


def bomb(path, target):
    """A checkpoint in which 64 MiB of zeros take 64 KiB."""
    return forged(
        path, target, without=[TENSORS],
        add=lambda archive: archive.writestr(TENSORS, bytes(1 << 26), compress_type=zipfile.ZIP_DEFLATED),
    )  # fmt: skip


def test_bombs_are_refused(saved, tmp_path):
    _, path = saved
    evil = bomb(path, tmp_path / "evil.torchrl")
    assert evil.stat().st_size < 1 << 20
    assert f"'{TENSORS}' compressed" in refusal(evil)


def test_entries_that_share_their_bytes_are_refused(saved, tmp_path):
    """The other kind of bomb needs no compression: many entries of the directory point to the same bytes."""
    _, path = saved

    def add(archive):
        (kernel,) = (entry for entry in archive.filelist if entry.filename == TENSORS)
        for number in range(50):
            other = zipfile.ZipInfo(f"components/{number:04d}-more/tensors.bin")
            for slot in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(other, slot, getattr(kernel, slot))
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other

    evil = forged(path, tmp_path / "evil.torchrl", add=add)
    assert "more bytes inside than the file has" in refusal(evil)


def test_torchrl_alone_unpacks_the_bomb(saved, tmp_path):
    """Negative control: all 64 MiB of it, into the folder for temporary files, before anything is found wrong."""
    _, path = saved
    evil = bomb(path, tmp_path / "evil.torchrl")
    sizes = []

    class Watching(TensorFiles):
        def load(self, component, path, **options):
            sizes.append((path / "tensors.bin").stat().st_size)

    checkpoint = Checkpoint().register("actor", torch.nn.Linear(1, 1), adapter=Watching())
    checkpoint.load(evil)
    assert sizes == [1 << 26]


def changed(path, target, name, change, file="value.json"):
    """A forged copy in which ``change(content)`` of one component's JSON is JSON again, or bytes."""
    with zipfile.ZipFile(path) as archive:
        place = json.loads(archive.read("manifest.json"))["components"][name]["path"]
        made = change(json.loads(archive.read(f"{place}/{file}")))
    return forged(path, target, files={f"{place}/{file}": made if isinstance(made, bytes) else json.dumps(made)})


def nested(levels):
    return b"[" * levels + b"]" * levels


TENSOR = {"tensor": "int64", "shape": [], "offset": 0}  # the actor's first, how many observations it has seen
STRANGE = {
    **{f"of {kind}": {**TENSOR, "tensor": kind} for kind in (
        "quint8", "qint8", "qint32", "quint4x2", "quint2x4", "complex64", "float8_e4m3fn", "bits8", "uint16", "save",
        "Tensor", "os.system", 3, None, ["int64"],
    )},
    **{f"shaped {shape}": {**TENSOR, "shape": shape} for shape in (
        [1 << 40], [-1], [1 << 32, 1 << 32], [-1, -1], [0.5], ["1"], [True], [1] * 100, 5, None, [[1]], [10**30],
    )},
    **{f"at {at}": {**TENSOR, "offset": at} for at in (-8, 8, 4, "0", False, 0.0, 10**30, None)},
    "nowhere": {"tensor": "int64", "shape": []},
    "with more": {**TENSOR, "device": "cuda"},
    "a function": {"function": ["x"]},
    "a list of no kind": [1],
    "two kinds": {"list": [], "tuple": []},
    "no kind": {},
    "pairs of three": {"dict": [["a", 1, 2]]},
    "a key twice": {"dict": [["a", 1], ["a", 2]]},
    "a key of truth": {"dict": [[True, 1]]},
    "a key of a list": {"dict": [[[1], 2]]},
    "a number": 3,
}  # fmt: skip


@pytest.mark.parametrize("case", STRANGE)
def test_a_strange_tensor_is_refused(case, saved, tmp_path):
    """Quantised types crash the interpreter in a third of loads; others would take what the file does not hold."""

    def spoil(tree):
        tree["dict"][0][1] = STRANGE[case]
        return tree

    _, path = saved
    assert one_sentence(lambda: load_networks(changed(path, tmp_path / "x.torchrl", "actor", spoil, "tree.json")))


def test_truth_values_are_0_and_1(tmp_path):
    tree = json.dumps({"dict": [["seen", {"tensor": "bool", "shape": [3], "offset": 0}]]})
    folder, holder = tmp_path / "component", Holder(None)
    folder.mkdir()
    (folder / "tree.json").write_text(tree)
    for numbers, fits in ((b"\0\1\1", True), (b"\0\2\1", False), (b"\0\1", False), (b"\0\1\1\0", False)):
        (folder / "tensors.bin").write_bytes(numbers)
        if fits:
            TensorFiles().load(holder, folder)
            assert holder.state["seen"].tolist() == [False, True, True]
        else:
            with pytest.raises(ValueError):
                TensorFiles().load(holder, folder)


def one_sentence(load):
    """What the refusal of a forged file says."""
    with pytest.raises(ValueError) as raised:
        load()
    said = str(raised.value)
    assert "is not a checkpoint of this package, or damaged (" in said and "\n" not in said and len(said) < 1000, said
    return said


TEXTS = {  # in place of any JSON
    "nothing": b"",
    "no JSON": b"{'a': 1}",
    "not UTF-8": b'{"name": "\xff\xfe"}',
    "a key twice": b'{"frames": 1, "frames": 2}',
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "100 levels": b'{"a": ' + nested(100) + b"}",
    "100,000 levels": nested(100_000),
    "10,000 digits": b'{"frames": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("text", TEXTS)
def test_json_that_is_not_what_it_should_be_is_refused(text, saved, tmp_path):
    _, path = saved
    for name, file in (("agent", "value.json"), ("progress", "value.json"), ("config", "value.json"),
                       ("actor", "tree.json")):  # fmt: skip
        evil = changed(path, tmp_path / f"{name}.torchrl", name, lambda _: TEXTS[text], file)
        one_sentence(partial(load_networks, evil) if name == "actor" else partial(read_component, evil, name))
        with pytest.raises(ValueError):
            export_agent(evil, tmp_path / "out.torchrl")
    with zipfile.ZipFile(tmp_path / "manifest.torchrl", "w") as archive:
        archive.writestr("manifest.json", TEXTS[text])
    seal(tmp_path / "manifest.torchrl")
    refusal(tmp_path / "manifest.torchrl")


AGENTS = {
    **{f"{name}={value!r}": {name: value} for name, value in (
        ("d_model", 16), ("d_model", 10**7), ("d_model", 8192), ("d_model", 10**30), ("d_model", -8), ("d_model", 0),
        ("d_model", "8"), ("d_model", 8.0), ("d_model", True), ("d_model", None), ("d_model", [8]),
        ("window", 10**9), ("window", 3), ("episodes", 10**9), ("num_heads", 0), ("num_heads", -2), ("num_heads", 3),
        ("intra_layers", 10**9), ("inter_layers", 10**9), ("mlp_layers", 10**9), ("intra_layers", 2),
        ("observation_dim", 10**9), ("observation_dim", 4), ("action_low", [-1.0] * 10**5), ("action_low", "ab"),
        ("action_low", [None, None]), ("action_low", [float("nan")] * 2), ("action_low", [-1.0]), ("action_low", []),
        ("action_high", [[1.0], [1.0]]), ("reward_scale", float("nan")), ("reward_scale", float("inf")),
        ("reward_scale", "1"), ("init_std", float("inf")), ("init_std", -1.0), ("min_std", 2.0),
        ("strategy", ["uniform"]), ("strategy", "${oc.env:HOME}"), ("scope", "lane"),
        ("scope", "all"), ("encoder_kind", ["mlp"]), ("encoder_kind", "rl2"),
        ("critic_kind", "separate"), ("norm", "tfixup"), ("value_norm", False), ("value_norm", 1),
        ("seed", "x"), ("seed", 2**70), ("max_episodes", "2"), ("max_episodes", -1), ("layers", 3), ("return", 3),
    )},
    "nothing": None,
}  # fmt: skip


@pytest.mark.parametrize("case", AGENTS)
def test_an_agent_of_other_sizes_or_types_is_refused(case, saved, tmp_path):
    _, path = saved
    change = AGENTS[case]
    evil = changed(path, tmp_path / "x.torchrl", "agent", lambda agent: {} if change is None else {**agent, **change})
    one_sentence(lambda: load_networks(evil))


@pytest.mark.parametrize(("name", "path"), [("strategy", "os.path:join"), ("encoder_kind", "os.system")])
def test_an_agent_names_no_code_that_is_not_trusted(name, path, saved, tmp_path):
    _, checkpoint = saved
    evil = changed(checkpoint, tmp_path / "x.torchrl", "agent", lambda agent: {**agent, name: path})
    for trust in ((), ("os",), ("os.path:split",)):
        with pytest.raises(ValueError, match=rf"^\S+ names code .* {path}, and does not import it .*trust=\[{path}\]"):
            load_networks(evil, trust=trust)


def test_no_memory_is_asked_for_that_the_file_does_not_fill(saved, tmp_path):
    """With 512 MB to spare: networks of these sizes take gigabytes, and so does the attempt to build them first."""
    _, path = saved
    sizes = {"d_model": 16384, "num_heads": 2}
    evil = changed(path, tmp_path / "x.torchrl", "agent", lambda agent: {**agent, **sizes})
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (512 << 20), before[1]))
    try:
        said = one_sentence(lambda: load_networks(evil))
        with pytest.raises((RuntimeError, MemoryError), match=r"memory|alloc"):  # negative control
            build_networks(**read_component(evil, "agent"))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "in the file and [" in said and "16384" in said, said


def test_tensors_do_not_share_their_bytes(saved, tmp_path):
    """Or a tree of a megabyte would make terabytes of one tensor."""

    def repeat(tree):
        tree["dict"] += [[f"more{number}", tree["dict"][1][1]] for number in range(1000)]
        return tree

    _, path = saved
    said = one_sentence(lambda: load_networks(changed(path, tmp_path / "x.torchrl", "actor", repeat, "tree.json")))
    assert "bytes of numbers" in said


PROGRESS = {
    **{f"frames={value!r}": {"frames": value} for value in (
        "many", "54", -1, 1.5, 2**64, 10**400, None, True, [54], {"a": 54}, float("nan"),
    )},
    "no frames": None,
    "best=word": {"best_val_success": "word"},
    "best=inf": {"best_val_success": float("inf")},
    "best=truth": {"best_val_success": True},
    "a number of objects": {"faults": {"a": {}}},
    "a list of numbers": {"commits": [1, 2]},
}  # fmt: skip


@pytest.mark.parametrize("case", PROGRESS)
def test_progress_of_another_kind_is_refused(case, saved, tmp_path):
    run, path = saved
    change = PROGRESS[case]
    evil = changed(
        path,
        tmp_path / "x.torchrl",
        "progress",
        lambda now: {"best_val_success": 0.1} if change is None else {**now, **change},
    )
    if "best" not in case:  # which the run knows, and a reader does not
        one_sentence(lambda: read_component(evil, "progress"))
    before = run.state()
    one_sentence(lambda: run.checkpoints.restore(evil))
    assert str(run.state()) == str(before)


OPTIMIZERS = {
    "a text for a rate": lambda tree: entry(entry(tree, "param_groups")["list"][0], "betas").update(tuple=["x", 0.9]),
    "fewer parameters": lambda tree: entry(entry(tree, "param_groups")["list"][0], "params")["list"].pop(),
    "no groups": lambda tree: entry(tree, "param_groups")["list"].clear(),
    "moments of another shape": lambda tree: entry(entry(entry(tree, "state"), 0), "exp_avg")["shape"].reverse(),
    "a number for moments": lambda tree: entry(entry(tree, "state"), 0)["dict"].append(["more", 3]),
    "a parameter that is not there": lambda tree: entry(tree, "state")["dict"].append([999, {"dict": []}]),
}


def entry(tree, name):
    return dict(tree["dict"])[name]


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_an_optimizer_that_would_fail_in_its_first_step_is_refused(case, saved, tmp_path):
    def spoil(tree):
        OPTIMIZERS[case](tree)
        return tree

    run, path = saved
    evil = changed(path, tmp_path / "x.torchrl", "optimizer", spoil, "tree.json")
    before = str(run.state())
    assert "its optimizer does not fit" in one_sentence(lambda: run.checkpoints.restore(evil))
    assert str(run.state()) == before


ENVIRONMENT = {"name": "no_such_module:factory", "benchmark_seed": 3, "episodes_per_trial": 2, "horizon": None}
ENVIRONMENTS = {
    **{f"{name}={value!r}": {"env": {**ENVIRONMENT, name: value}} for name, value in (
        ("name", 5), ("name", ""), ("name", None), ("name", ["toy"]), ("name", "x" * 10_000), ("benchmark_seed", "3"),
        ("benchmark_seed", -1), ("benchmark_seed", None), ("benchmark_seed", 2**64), ("episodes_per_trial", 0),
        ("episodes_per_trial", None), ("episodes_per_trial", 1.5), ("horizon", 0), ("horizon", "6"), ("horizon", True),
    )},
    **{f"without {name}": {"env": {k: v for k, v in ENVIRONMENT.items() if k != name}} for name in ENVIRONMENT},
    "no environment": {}, "a list": {"env": [1]}, "a word": {"env": "toy"}, "null": {"env": None},
}  # fmt: skip


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_an_environment_that_is_none_is_refused(case, saved, tmp_path):
    _, path = saved
    evil = changed(path, tmp_path / "x.torchrl", "config", lambda _: ENVIRONMENTS[case])
    one_sentence(lambda: read_environment(evil))


def test_what_an_environment_is_called_is_only_said(saved, tmp_path):
    _, path = saved
    for name in ("no_such_module:factory", "${oc.env:HOME}"):
        made = changed(
            path, tmp_path / "x.torchrl", "config", lambda _, name=name: {"env": {**ENVIRONMENT, "name": name}}
        )
        assert read_environment(made) == (name, 3, 2, None)
        assert read_component(made, "config")["env"]["name"] == name


# --------------------------------------------------------------------------------------------- sizes of the archive


def test_entries_and_their_list_are_limited(saved, tmp_path):
    """A list of two million entries is 90 MB in a file and 2 GB in Python."""
    _, path = saved

    def add(archive):
        for number in range(300):
            archive.writestr(f"components/{number:04d}-more/value.json", "{}")

    def comment(archive):
        archive.filelist[-1].comment = bytes(60_000)
        archive.filelist[-2].comment = bytes(60_000)

    assert "lists 3" in refusal(forged(path, tmp_path / "many.torchrl", add=add))
    assert "bytes, and no checkpoint has more" in refusal(forged(path, tmp_path / "long.torchrl", add=comment))


def test_a_second_list_of_entries_is_refused(saved, tmp_path):
    """zipfile prefers the one of 64 bits, whose size nobody has looked at."""
    _, path = saved
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\5\6")
    content[end:end] = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    (tmp_path / "x.torchrl").write_bytes(content)
    reseal(tmp_path / "x.torchrl")
    assert "second list of entries" in refusal(tmp_path / "x.torchrl")


def test_json_is_limited(saved, tmp_path):
    _, path = saved
    evil = changed(path, tmp_path / "x.torchrl", "config", lambda _: b"[" + b"0," * (1 << 23) + b"0]")
    assert "bytes of JSON, and at most 16,777,216 are read" in refusal(evil)
    with pytest.raises(ValueError, match=r"A state without its tensors takes"):  # nor written
        TensorFiles().save(Holder({"x": "0" * (1 << 24)}), tmp_path / "component", args=(), kwargs={})


def test_entries_that_lie_in_others_are_refused(saved, tmp_path):
    """Each of them fits the file, and both together do."""
    _, path = saved
    inner = zipfile.ZipInfo("components/0099-more/value.json")
    inner.CRC = 0

    def add(archive):
        archive.writestr("components/0098-more/value.json", inner.FileHeader() + b"{}" + bytes(100))
        outer = archive.filelist[-1]
        inner.header_offset = outer.header_offset + len(outer.FileHeader())
        archive.filelist.append(inner)
        archive.NameToInfo[inner.filename] = inner

    assert "in the bytes of another entry" in refusal(forged(path, tmp_path / "x.torchrl", add=add))


@pytest.mark.parametrize("kind", [stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_entries_that_are_no_files_are_refused(kind, saved, tmp_path):
    _, path = saved

    def add(archive):
        entry = zipfile.ZipInfo("components/0000-actor/value.json")
        entry.external_attr = (kind | 0o600) << 16
        archive.writestr(entry, "{}")

    assert "a link or not a regular file" in refusal(forged(path, tmp_path / "x.torchrl", add=add))


def test_what_is_no_file_is_refused_without_being_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        assert "not a file" in refusal(path)
    with pytest.raises(NotACheckpoint, match="not a file"):  # folders of agents: tests/agent/test_pretrained.py
        check_archive(tmp_path)
    assert "File name too long" in refusal(tmp_path / ("x" * 300))


# --------------------------------------------------------------------------------------------------- whatever it is


def reseal(path):
    """Writes the checksum of a changed file whose comment is still there."""
    content = path.read_bytes()[:-64]
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())


JUNK = [
    None,
    True,
    -1,
    0,
    3,
    10**30,
    1e999,
    0.5,
    "quint8",
    "float64",
    "x" * 1000,
    "../x",
    [],
    {},
    [[[]]],
    {"list": [1]},
]


def mutate(tree, rng):
    """The same JSON with one random node replaced, removed or there twice."""
    node, places = tree, []
    while isinstance(node, dict | list) and node and (not places or rng.random() < 0.9):
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        places.append((node, key))
        node = node[key]
    if not places:
        return rng.choice(JUNK)
    owner, key = places[-1]
    if rng.random() < 0.2:
        del owner[key]
    elif isinstance(owner, list) and rng.random() < 0.3:
        owner.append(owner[key])
    else:
        owner[key] = rng.choice(JUNK)
    return tree


def test_random_changes_end_in_the_same_networks_or_a_refusal(saved, tmp_path):
    """300 sealed files: of JSON with a changed node, and of bytes with flips anywhere but in tensors."""
    _, path = saved
    rng, target, outcomes = random.Random(0), tmp_path / "x.torchrl", {"same": 0, "refused": 0}
    expected = load_networks(path).actor.state_dict()
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        numbers = [  # where tensors are
            range(entry.header_offset, entry.header_offset + 100 + entry.file_size)
            for entry in archive.infolist() if entry.filename.endswith(".bin")
        ]  # fmt: skip
        files = [name for name in archive.namelist() if name.endswith(".json")]
        texts = {name: archive.read(name) for name in files}
    wanted = [
        name for name in files if name.split("/")[-2:-1] and name.split("-")[-1].split("/")[0] in ("actor", "agent")
    ]
    for turn in range(300):
        if turn % 3:
            name = rng.choice([*wanted, "manifest.json"])
            changed_tree = json.dumps(mutate(json.loads(texts[name]), rng)).encode()
            with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
                for entry in source.namelist():
                    archive.writestr(entry, changed_tree if entry == name else source.read(entry))
            seal(target)
        else:
            flipped = bytearray(content)
            for _ in range(rng.choice([1, 1, 5])):
                place = rng.randrange(len(content) - 64)
                if not any(place in taken for taken in numbers):
                    flipped[place] ^= 1 << rng.randrange(8)
            target.write_bytes(flipped)
            reseal(target)
        try:
            found = load_networks(target).actor.state_dict()
        except ValueError as error:
            outcomes["refused"] += 1
            assert str(error).startswith(f"{target} is not a checkpoint") and "\n" not in str(error)
        else:
            outcomes["same"] += 1
            assert {n: (v.shape, v.dtype) for n, v in found.items()} == {
                n: (v.shape, v.dtype) for n, v in expected.items()
            }
            assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert outcomes["same"] > 20 and outcomes["refused"] > 100, outcomes


def test_a_component_without_one_of_its_files_is_refused(saved, tmp_path):
    _, path = saved
    assert "only in its manifest" in refusal(forged(path, tmp_path / "x.torchrl", without=[TENSORS]))


def test_a_component_that_is_not_inside_is_refused_by_name(saved, tmp_path):
    _, path = saved
    with pytest.raises(ValueError, match=rf"{path.name} is not a checkpoint"):
        read_component(path, "colours")
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint at .*nowhere"):
        read_component(tmp_path / "nowhere", "config")


# -------------------------------------------------------------------------------------------------------------- bytes


class Holder:
    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_states_come_back_as_they_were(tmp_path):
    state = {
        "numbers": [1, -2.5, float("inf"), 0.1 + 0.2, True, None, "text", 1 << 80],
        "nested": {0: (1, (2, [3])), "x": {"y": ()}},
        "tensors": [torch.tensor(7), torch.randn(3, 0), torch.randn(4, 3).T, torch.arange(5, dtype=torch.uint8)],
        "more": (torch.randn(3, dtype=torch.float64), torch.randn(2).bfloat16(), torch.tensor([True, False])),
    }
    holder = Holder(None)
    TensorFiles().save(Holder(state), tmp_path / "component", args=(), kwargs={})
    TensorFiles().load(holder, tmp_path / "component")

    def compare(received, expected):
        assert type(received) is type(expected)
        if isinstance(expected, torch.Tensor):
            assert received.dtype == expected.dtype and torch.equal(received, expected)
        elif isinstance(expected, dict):
            assert list(received) == list(expected)
            for key in expected:
                compare(received[key], expected[key])
        elif isinstance(expected, list | tuple):
            assert len(received) == len(expected)
            for one, other in zip(received, expected, strict=True):
                compare(one, other)
        else:
            assert received == expected

    compare(holder.state, state)


def test_other_objects_are_refused_when_saving(tmp_path):
    with pytest.raises(TypeError, match=r"not <class 'object'>"):
        TensorFiles().save(Holder({"x": object()}), tmp_path / "component", args=(), kwargs={})
