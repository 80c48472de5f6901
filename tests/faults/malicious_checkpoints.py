"""Checkpoints made to harm: none may run anything, take memory, or end in more than one sentence.

python -m tests.faults.malicious_checkpoints
"""

import io
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.commands import ROOT, Result, succeed

TINY = (
    "--preset", "digits", "--max-steps", 1, "--depth", 2, "--hidden-size", 16, "--num-heads", 2,
    "--global-batch-size", 8, "--num-workers", 0, "--sample-every", 0, "--no-tensorboard",
    "--encoder-depth", 1, "--gt-encoder-depth", 2,
)  # fmt: skip
ROOM = 2**30  # bytes that a reader may take beyond what its libraries took
HUGE = 2**40
MOST_SECONDS = 120.0  # for one file, on a busy machine
TAMPERED = ("os.system", "nested", "huge claim", "zip bomb", "deep tuple", "strides", "laughs")


class Call:
    """Unpickled, it calls something."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


@dataclass(frozen=True)
class Maker:
    """Writes bad files into a folder, beside a good one."""

    good: Path  # a checkpoint of train.py
    folder: Path
    canary: Path  # what a file that runs would leave

    @property
    def content(self) -> dict[str, Any]:
        return torch.load(self.good, weights_only=True)

    def path(self, name: str, suffix: str = ".pt") -> Path:
        return self.folder / f"{name}{suffix}"

    def saved(self, name: str, content: Any, **how: Any) -> None:
        torch.save(content, self.path(name), **how)

    def changed(self, name: str, **parts: Any) -> None:
        self.saved(name, self.content | parts)

    def weights(self, name: str, **tensors: Any) -> None:
        """The good file, with other tensors in the place of some of its EMA weights."""
        self.changed(name, ema=self.content["ema"] | tensors)

    def repacked(
        self, name: str, change: Callable[[str, bytes], tuple[str, bytes]], compression: int = 0
    ) -> None:
        """The good file with other members."""
        with zipfile.ZipFile(self.good) as old, zipfile.ZipFile(self.path(name), "w") as new:
            for member in old.namelist():
                new.writestr(*change(member, old.read(member)), compress_type=compression)

    def programmed(self, name: str, program: bytes) -> None:
        """The good file with another pickle."""
        self.repacked(name, lambda m, c: (m, program if m.endswith("data.pkl") else c))

    @property
    def shell(self) -> Call:
        return Call(os.system, f"touch {self.canary}")

    @property
    def source(self) -> str:
        return f"open({str(self.canary)!r}, 'w')"


def calls(make: Maker) -> None:
    """Pickled calls, where a reader would look first and where it would look last."""
    make.saved("os.system", make.shell)
    make.saved("eval", {"model": Call(eval, make.source), "train_steps": 1})
    make.saved("exec", {"ema": {"w": Call(exec, make.source)}})
    make.changed("nested", opt={"state": {0: [{"deep": [(1, make.shell)]}]}})
    make.changed("in args", args={"model": make.shell})
    make.changed("subprocess", codec={"name": Call(subprocess.call, ["touch", str(make.canary)])})
    make.changed("in targets", targets={"target 1": make.shell})
    make.saved("import", Call(__import__, "this"))
    make.saved("protocol 4", {"ema": {"w": make.shell}}, pickle_protocol=4)
    make.programmed("text pickle", pickle.dumps({"ema": make.shell}, protocol=0))
    make.path("bare pickle").write_bytes(pickle.dumps({"ema": make.shell}))
    make.path("bare pickle of protocol 2").write_bytes(pickle.dumps({"ema": make.shell}, 2))
    make.saved("legacy", {"ema": make.shell}, _use_new_zipfile_serialization=False)
    with tarfile.open(make.path("legacy tar"), "w") as tar:
        for member in ("storages", "tensors", "pickle"):
            program = pickle.dumps(make.shell, 2)
            about = tarfile.TarInfo(member)
            about.size = len(program)
            tar.addfile(about, io.BytesIO(program))

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.save(torch.jit.script(Module()), make.path("TorchScript"))


def claims(make: Maker) -> None:
    """Small files of enormous tensors."""
    small = torch.zeros(4)
    make.weights("strides", pos_embed=small[:1].expand(HUGE))
    make.weights("strides of many", pos_embed=small[:1].expand(2**20, 2**20))
    sparse = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1), (HUGE,))
    make.weights("sparse", pos_embed=sparse)
    make.weights("meta", pos_embed=torch.empty(HUGE, device="meta"))
    make.weights("quantized", pos_embed=torch.quantize_per_tensor(small, 1.0, 0, torch.qint8))
    shared = torch.zeros(2**18)
    make.changed("shown again and again", ema={f"w{n}": shared[:] for n in range(5000)})

    torch.save({"w": small}, make.path("one"))
    with zipfile.ZipFile(make.path("one")) as archive:
        program = archive.read("one/data.pkl")
    make.path("one").unlink()
    for name, four in (("huge claim", b"\x8a\6" + HUGE.to_bytes(6, "little")), ("claim", b"K\5")):
        claimed = program.replace(b"K\4t", four + b"t", 1).replace(b"K\0K\4", b"K\0" + four, 1)
        make.programmed(name, claimed)
    beyond = program.replace(b"K\0K\4", b"K\2K\4", 1)  # begins two numbers later
    make.programmed("view beyond its storage", beyond)
    make.saved("legacy claim", {"w": small}, _use_new_zipfile_serialization=False)
    legacy = make.path("legacy claim").read_bytes()
    four = b"\x8a\6" + HUGE.to_bytes(6, "little")
    make.path("legacy claim").write_bytes(legacy.replace(b"K\4N", four + b"N", 1))
    make.programmed("bytearray", b"\x80\2c__builtin__\nbytearray\n" + four + b"\x85R.")
    make.programmed("empty tensor", b"\x80\2ctorch\nFloatTensor\n" + four + b"\x85R.")


def archives(make: Maker) -> None:
    """Zip files that torch.save would not write."""
    make.repacked("compressed", lambda m, c: (m, c), zipfile.ZIP_DEFLATED)
    zeros = bytes(2**28)
    make.repacked(
        "zip bomb", lambda m, c: (m, zeros if m.endswith("data/0") else c), zipfile.ZIP_DEFLATED
    )
    make.repacked("leads out", lambda m, c: (m.replace("/data/", "/../../data/"), c))
    make.repacked("absolute", lambda m, c: (f"/{m}", c))
    make.repacked("no pickle", lambda m, c: (m.replace("data.pkl", "other.pkl"), c))
    make.repacked("huge pickle", lambda m, c: (m, c + bytes(2**27) if "data.pkl" in m else c))
    make.repacked("two pickles", lambda m, c: (m, c))
    with zipfile.ZipFile(make.path("two pickles"), "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        other = name.replace("data.pkl", "DATA.pkl")
        archive.writestr(other, pickle.dumps(make.shell, 2))
    content = make.path("two pickles").read_bytes()
    make.path("two pickles").write_bytes(content.replace(other.encode(), name.encode()))
    with zipfile.ZipFile(make.path("overlapping"), "w") as archive:
        archive.writestr("a/data.pkl", bytes(2**20))
        first = archive.infolist()[0]
        for number in range(1000):
            copy = zipfile.ZipInfo(f"a/data/{number}")
            copy.header_offset, copy.file_size = first.header_offset, first.file_size
            copy.compress_size, copy.CRC = first.compress_size, first.CRC
            archive.filelist.append(copy)
    make.path("no content").write_bytes(b"")
    make.path("zeros").write_bytes(bytes(2**20))
    with zipfile.ZipFile(make.path("no members"), "w"):
        pass


def shapes(make: Maker) -> None:
    """Plain values that are no checkpoint of ours."""
    make.saved("a list", [1, 2])
    make.saved("nothing", {})
    make.saved("a number", 3.5)
    make.weights("complex", pos_embed=torch.zeros(1, 16, 16, dtype=torch.complex64))
    make.weights("text for a tensor", pos_embed="pos_embed")
    make.weights("other shape", pos_embed=torch.zeros(3, 3, 3))
    make.weights("no shape", **{"x_embedder.proj.weight": torch.zeros(())})
    make.weights("one too many", other=torch.zeros(1))
    make.changed("one too few", ema=OrderedDict(list(make.content["ema"].items())[:-1]))
    make.saved("public, of no known size", {"ema": {"pos_embed": torch.zeros(1, 4, 4)}})
    make.saved("MDM of nothing", {"input_process.poseEmbedding.weight": torch.zeros(())})
    make.saved(
        "REPA of nothing", {"ema": {"blocks.0.w": torch.zeros(1), "projectors.0": torch.zeros(1)}}
    )  # noqa: E501
    good = make.content["architecture"]
    for name, size in (
        ("depth", 10**9),
        ("hidden_size", HUGE),
        ("num_heads", 0),
        ("patch_size", 0),
    ):
        make.changed(f"architecture of {name} {size}", architecture=good | {name: size})
    make.changed("architecture of text", architecture="SiT")
    make.changed("architecture of others", architecture={"a": 1})
    for name, value in (
        ("image_size", "8"), ("dataset_name", 3), ("vae", ["x"]), ("path_type", {}),
        ("sample_eps", "0"), ("model", "a\nb"), ("dataset_name", "\u202ed"), ("vae", "\x1b[2J"),
        ("num_frames", 1.5), ("dataset_name", "/nowhere/../etc"), ("prediction", "\ud800"),
    ):  # fmt: skip
        number = len(list(make.folder.glob("flag*")))
        make.changed(f"flag {number} {name}", args=make.content["args"] | {name: value})
    make.changed("args of text", args="--model")
    make.changed("args of tensors", args=make.content["args"] | {"lr": [torch.zeros(2)]})
    make.changed("codec of tensors", codec={"scale": torch.zeros(2)})
    make.changed("step below 0", train_steps=-5)
    make.changed("numbers for names", ema={3: torch.zeros(1)})
    make.changed("targets of numbers", targets={"target 1": 5}, ema={"w": torch.zeros(1)})


def nested(make: Maker) -> None:
    """Deep, endless and self-similar."""
    make.programmed("deep list", b"\x80\2" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".")
    make.programmed("deep tuple", b"\x80\2})" + b"\x85" * 10**6 + b"K\1s.")
    by_name = b"".join(b"h%cq%c\x85q\0" % (0, 1) + b"0" for _ in range(2))
    make.programmed("deep tuple by its name", b"\x80\2})q\0" + b"\x85q\0h\0" * 200_000 + b"K\1s.")
    make.programmed("odd stack", b"\x80\2" + by_name)
    make.programmed("in itself", b"\x80\2}q\0X\3\0\0\0emah\0s.")
    make.programmed("list in itself", b"\x80\2}X\4\0\0\0args]q\1h\1as.")
    double = b"".join(b"]q%c(h%ch%ce" % (n + 1, n, n) for n in range(1, 60))
    make.programmed("laughs", b"\x80\2}X\4\0\0\0args]q\1" + double.replace(b"]", b"]") + b"s.")
    make.programmed("endless", b"\x80\2" + b"(" * 10**6)
    make.programmed("no end", b"\x80\2}")


def safetensors(make: Maker) -> None:
    """Headers that lie."""

    def write(name: str, header: Any, data: bytes = bytes(64), size: int | None = None) -> None:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        length = (len(text) if size is None else size).to_bytes(8, "little")
        make.path(name, ".safetensors").write_bytes(length + text + data)

    def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}

    write("st overlapping", {"a": entry(0, 64, [16]), "b": entry(0, 64, [16])})
    write("st hole", {"a": entry(0, 16, [4]), "b": entry(48, 64, [4])})
    write("st beyond", {"a": entry(0, HUGE, [HUGE // 4])})
    write("st overflow", {"a": entry(0, 64, [2**62, 2**62, 16])})
    write("st negative", {"a": entry(64, 0, [-4])})
    write("st header of 2^63", {"a": entry(0, 64, [16])}, size=2**63)
    write("st header of 1 GiB", {"a": entry(0, 64, [16])}, size=2**30)
    write("st no header", b"", size=0)
    write("st deep", b"[" * 10**6)
    write("st no text", b"\xff" * 100)
    write("st twice", b'{"a":%b,"a":%b}' % (2 * (json.dumps(entry(0, 64, [16])).encode(),)))
    write("st dtype", {"a": entry(0, 64, [16], "object")})
    write("st complex", {"a": entry(0, 64, [8], "C64")})
    write("st no weights of ours", {"a": entry(0, 64, [16])})
    write("st pickle", pickle.dumps(make.shell, 2))
    make.path("st empty", ".safetensors").write_bytes(b"")


KINDS = (calls, claims, archives, shapes, nested, safetensors)


def truncated(make: Maker, count: int) -> None:
    content = make.good.read_bytes()
    for number in range(count):
        cut = content[: number * len(content) // count]
        make.path(f"truncated {number:03d}").write_bytes(cut)


def flipped(make: Maker, count: int) -> None:
    """Half of the bits are in the pickle and the directory, which are small, half anywhere."""
    content, draw = make.good.read_bytes(), random.Random(0)
    with zipfile.ZipFile(make.good) as archive:
        (info,) = (one for one in archive.infolist() if one.filename.endswith("data.pkl"))
        pickled = range(info.header_offset, info.header_offset + info.file_size)
        directory = range(archive.start_dir, len(content))
    for number in range(count):
        place = draw.choice((pickled, directory, range(len(content)), range(len(content))))
        changed = bytearray(content)
        changed[draw.choice(place)] ^= 1 << draw.randrange(8)
        make.path(f"flipped {number:03d}").write_bytes(changed)


class Outcome(NamedTuple):
    name: str
    said: str | None  # its sentence; None: it was read, and fits a network
    seconds: float
    ran: bool


def outcomes(folder: Path, canary: Path) -> Iterator[Outcome]:
    """Every file of a folder, read as sample.py reads it, in a process that may take ROOM.

    Raises:
        RuntimeError: the process ended before it had read all of them.
    """
    words = [sys.executable, "-m", "tests.faults.malicious_checkpoints", "--read", folder, canary]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        last = None
        for line in process.stdout:
            last = Outcome(**json.loads(line))
            yield last
    if process.returncode:
        raise RuntimeError(f"reading ended with {process.returncode} after {last}")


def read_all(folder: Path, canary: Path) -> None:
    """What the process of `outcomes` does."""
    import models
    from runtime import checkpoint
    from runtime.errors import one_line

    with limited_memory(ROOM):
        for path in sorted(folder.iterdir()):
            begin, said = time.perf_counter(), None
            try:
                found = checkpoint.read(path)
                models.load(found.ema, found.architecture, args=found.args)
            except ValueError as error:  # sample.py says this one behind the file's name
                said = one_line(str(error))
            seconds = time.perf_counter() - begin
            outcome = Outcome(path.name, said, seconds, canary.exists())
            print(json.dumps(outcome._asdict()), flush=True)


@contextmanager
def limited_memory(room: int) -> Iterator[None]:
    """Within, this process is refused more than so many bytes beyond those that it has."""
    status = Path("/proc/self/status").read_text()
    (taken,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize"))
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken * 1024 + room, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))


def command(script: str, *arguments: Any) -> Result:
    """As a person runs it."""
    words = [sys.executable, str(ROOT / f"{script}.py"), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=600)
    return Result(done.returncode, done.stdout, done.stderr)


def check(cuts: int = 100, flips: int = 200, commands: int = len(TAMPERED)) -> Counter:
    """Make all files, read them, and give some of them to real commands.

    Returns:
        How many of each kind were refused or read.
    """
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        succeed("train", *TINY, "--results-dir", root / "good")
        (good,) = (root / "good").glob("*/checkpoints/*.pt")
        bad, canary = root / "bad", root / "canary"
        bad.mkdir()
        make = Maker(good, bad, canary)
        for kind in KINDS:
            kind(make)
        truncated(make, cuts)
        flipped(make, flips)
        for outcome in outcomes(bad, canary):
            counts[judged(outcome)] += 1
        assert counts.total() == len(list(bad.iterdir()))
        for name in TAMPERED[:commands]:
            path = make.path(name)
            for script, *flags in (
                ("sample", "ODE", "--ckpt", path, "--out", root / "out.png"),
                ("train", *TINY, "--fine-tune", "--ckpt", path, "--results-dir", root / "runs"),
            ):
                result = command(script, *flags)
                said = result.err.strip()
                assert result.code == 2 and said.startswith("error: "), (name, result)
                assert "\n" not in said and str(path) in said, (name, said)
                counts["refused by a command: exit 2, one sentence"] += 1
        assert not canary.exists() and not (root / "out.png").exists()
        assert not (root / "runs").exists()
    return counts


def judged(outcome: Outcome) -> str:
    """The row of the table that a file counts in."""
    kind = outcome.name.split()[0]
    sweep = kind if kind in ("truncated", "flipped") else "made to harm"
    assert not outcome.ran, f"{outcome.name} ran"
    assert outcome.seconds < MOST_SECONDS, outcome
    if outcome.said is None:
        assert sweep == "flipped" or outcome.name.startswith("flag"), f"{outcome.name} was read"
        return f"{sweep}: read, all its tensors fit" if sweep == "flipped" else f"{sweep}: read"
    assert outcome.said and "\n" not in outcome.said, outcome
    assert "allocate" not in outcome.said and "MemoryError" not in outcome.said, outcome
    return f"{sweep}: refused in one sentence"


def main() -> None:
    if sys.argv[1:2] == ["--read"]:
        return read_all(Path(sys.argv[2]), Path(sys.argv[3]))
    begin = time.perf_counter()
    counts = check()
    for row, count in sorted(counts.items()):
        print(f"{count:5}  {row}")
    print(f"{time.perf_counter() - begin:.0f} s; nothing was executed")


if __name__ == "__main__":
    main()
