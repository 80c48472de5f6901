"""Tensors of strangers: files of torch.save and safetensors, of which nothing is executed and no
more is allocated than they have."""

import argparse
import os
import pickle
import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from .files import open_patiently, refusal_of
from .untrusted import is_archive, open_archive, shown

# torch allows more, some of which takes memory by the number: bytearray, sparse tensors.
KINDS = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip
KNOWN = {
    "collections OrderedDict", "argparse Namespace", "torch Size", "torch device",
    "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter",
    "torch.storage UntypedStorage",
    *(f"torch {kind}Storage" for kind in KINDS), *(f"torch {dtype}" for dtype in DTYPES),
}  # fmt: skip
PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)
MOST_PROGRAM = 2**26  # bytes of a file's pickle; that of 675M parameters with Adam has 400 kB
DEEPEST = 100  # tuples in tuples: their hash recurses in C, and 200,000 overflow its stack
MOST_NODES = 2_000_000  # values; counted again wherever they are shared, as whoever walks them does
SHARED, SPARE = 4, 2**24  # how often tensors may show the bytes of their file, and how many more
LEGACY = 5  # pickles in a row at the start of what torch wrote before 1.6
CONTAINERS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}  # they cannot be hashed
PUTS = {"BINPUT", "LONG_BINPUT"}
GETS = {"BINGET", "LONG_BINGET"}


def read_tensors(path: Path) -> Any:
    """What a file of safetensors (by its ending) or of torch.save holds, on the CPU.

    Raises:
        OSError: there is no such file.
        pickle.UnpicklingError: it asks for something to be executed.
        ValueError: damaged, or more than tensors, numbers and text.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            check_pickles(path)
            with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
                warnings.simplefilter("ignore")  # of pickles that are not as torch writes them
                mapped = is_archive(path)  # files of torch before 1.6 are none
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, ValueError):
        raise
    except OSError as error:
        if refusal_of(error, path):
            raise
        raise ValueError(str(error)) from error
    except Exception as error:  # bytes lead torch's reader to whatever its parts raise
        if refusal := refusal_of(error, path):
            raise refusal from error
        reason = str(error).split("\n")[0].split(". ")[0]
        raise ValueError(reason or type(error).__name__) from error
    check_content(content, os.path.getsize(path))
    return content


def check_pickles(path: Path) -> None:
    """Look through the programs of a file of torch.save before torch runs them.

    Raises:
        pickle.UnpicklingError: one asks for something to be executed.
        ValueError: it is no such file, or an archive that torch does not write.
    """
    if is_archive(path):
        with open_archive(path) as archive:
            tops = {name.partition("/")[0] for name in archive.namelist()}
            if len(tops) != 1:
                raise ValueError(
                    f"its members are in {len(tops)} folders, those of torch.save in 1"
                )
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{member.filename} is compressed, and torch.save does not")
            name = f"{tops.pop()}/data.pkl"
            if name not in archive.namelist():
                raise ValueError("it is an archive without data.pkl")
            if (size := archive.getinfo(name).file_size) > MOST_PROGRAM:
                raise ValueError(f"its pickle has {size:,} bytes")
            with archive.open(name) as file:
                check_program(file)
        return
    with open_patiently(path) as file:
        if file.read(2) != pickle.PROTO + b"\2":
            raise ValueError("it is no file of torch.save")
        file.seek(0)
        for _ in range(LEGACY):
            check_program(file)


def check_program(file: IO[bytes]) -> None:
    """Follow a pickle up to its end, on a stack of how deeply its tuples are nested.

    Raises:
        pickle.UnpicklingError: it asks for something that no tensor needs.
        ValueError: damaged, too long or too deep.
    """
    stack: list[int | None] = []  # None: a mark
    memo: dict[int, int] = {}
    begin = file.tell()
    try:
        for operation, value, position in pickletools.genops(file):
            name = operation.name
            if position - begin > MOST_PROGRAM:
                raise ValueError(f"its pickle has more than {MOST_PROGRAM:,} bytes")
            if name == "GLOBAL" and value not in KNOWN:
                raise pickle.UnpicklingError(f"GLOBAL {value.replace(' ', '.')}")
            if name in PUTS:
                memo[value] = stack[-1] or 0
            elif name in GETS:
                stack.append(memo[value])
            elif name == "MARK":
                stack.append(None)
            else:
                deepest = popped(stack, operation)
                if deepest >= DEEPEST:
                    raise ValueError(f"its tuples are nested more than {DEEPEST} times")
                depth = 0 if name in CONTAINERS or deepest < 0 else deepest + 1
                stack += [depth] * len(operation.stack_after)
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError("its pickle is damaged") from error


def popped(stack: list[int | None], operation: pickletools.OpcodeInfo) -> int:
    """Take what an operation takes off the stack: the depth of the deepest, -1 of nothing."""
    before, deepest = operation.stack_before, -1
    if pickletools.markobject in before:
        while (depth := stack.pop()) is not None:
            deepest = max(deepest, depth)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        deepest = max(deepest, stack.pop())
    return deepest


def check_content(content: Any, size: int) -> None:
    """
    Args:
        size: bytes of the file.

    Raises:
        ValueError: there is something besides plain tensors, numbers, text, lists and dictionaries,
            or more of it than the file has.
    """
    left, seen, shows = [(content, 0)], 0, 0
    while left:
        value, depth = left.pop()
        seen += 1
        if seen > MOST_NODES or depth > DEEPEST:
            raise ValueError("it is nested too deeply, or in itself")
        if type(value) in (Tensor, nn.Parameter):
            shows += shown_bytes(value)
        elif isinstance(value, (dict, argparse.Namespace)):
            items = value if isinstance(value, dict) else vars(value)
            if strange := [key for key in items if type(key) not in (str, int)]:
                raise ValueError(f"it has {shown(strange[0])} as a name")
            left += [(item, depth + 1) for item in items.values()]
        elif type(value) in (list, tuple):
            left += [(item, depth + 1) for item in value]
        elif type(value) not in PLAIN:
            raise ValueError(f"it holds a {type(value).__name__}")
    if shows > SHARED * size + SPARE:
        raise ValueError(f"its tensors show {shows:,} bytes, and it has {size:,}")


def shown_bytes(tensor: Tensor) -> int:
    """What a tensor would take if it were copied: more than its storage, where strides are 0.

    Raises:
        ValueError: it is not plain.
    """
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ValueError(f"it holds a tensor that is not plain: {tensor.layout}, {tensor.device}")
    if tensor.is_complex():
        raise ValueError("it holds a tensor of complex numbers")
    return tensor.numel() * tensor.element_size()
