"""Checkpoint files: damage is noticed, and what a stranger puts into one is refused before any of it is read."""

import json
import os
import pickle
import stat
import zipfile

import pytest
import torch
from torchrl.checkpoint import Checkpoint

from htrmrl_torchrl import HTrMRLAgent
from htrmrl_torchrl.archive import NotACheckpoint, TensorFiles, check_archive, seal
from htrmrl_torchrl.checkpoint import latest_checkpoint, read_component, set_aside
from htrmrl_torchrl.networks import load_networks
from tests.test_checkpoint import Run

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

    assert "a link to somewhere else" in refusal(forged(path, tmp_path / "evil.torchrl", add=add))


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


def without_a_tensor_file(path, target):
    forged(path, target, without=[TENSORS])


def with_other_sizes(path, target):
    agent = read_component(path, "agent")
    forged(path, target, files={"components/0001-agent/value.json": json.dumps({**agent, "d_model": 16})})


def with_an_unknown_argument(path, target):
    forged(path, target, files={"components/0001-agent/value.json": json.dumps({"layers": 3})})


def with_a_strange_tensor(tree):
    def spoil(path, target):
        with zipfile.ZipFile(path) as archive:
            actor = json.loads(archive.read("components/0000-actor/tree.json"))
        actor["dict"][0][1] = tree
        forged(path, target, files={"components/0000-actor/tree.json": json.dumps(actor)})

    return spoil


def with_a_list_for_a_manifest(path, target):
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("manifest.json", "[]")
    seal(target)


@pytest.mark.parametrize(
    "spoil",
    [
        without_a_tensor_file,
        with_other_sizes,
        with_an_unknown_argument,
        with_a_list_for_a_manifest,
        with_a_strange_tensor({"tensor": "save", "shape": [1], "offset": 0}),  # torch.save is no type
        with_a_strange_tensor({"tensor": "float32", "shape": [1 << 40], "offset": 0}),  # 4 TB are not there
        with_a_strange_tensor({"tensor": "float32", "shape": [-1], "offset": 0}),
        with_a_strange_tensor({"function": ["x"]}),
    ],
)
def test_a_forged_checkpoint_that_fits_nothing_is_refused_by_name(spoil, saved, tmp_path):
    _, path = saved
    target = tmp_path / "damaged.torchrl"
    spoil(path, target)
    with pytest.raises(ValueError, match=r"damaged\.torchrl is not a checkpoint of this package, or damaged"):
        load_networks(target)


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
