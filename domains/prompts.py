"""Captions as sequences of vectors, on disk: made once by the text encoder of Wan or CogVideoX."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from runtime.errors import InputError
from runtime.files import atomic_write, locked, retried
from runtime.hub import FINETUNE
from runtime.untrusted import shown

from .codecs import is_path, looked_up
from .decoding import Unreadable
from .texts import WIDEST

TOKENS = {"WanPipeline": 512, "CogVideoXPipeline": 226}  # that a prompt is padded or cut to
SHARD = 256  # captions per file
BATCH = 16
HEAD = 1 << 20  # bytes of a file of weights that tell it from others


def width_of(name: str, cache_dir: str | None) -> int:
    """The width of an encoder's vectors, from its config.

    Raises:
        InputError: no such encoder here.
    """
    try:
        from transformers import AutoConfig

        config = looked_up(
            AutoConfig.from_pretrained, name, cache_dir, subfolder="text_encoder",
            trust_remote_code=False,
        )  # fmt: skip
        if type(config.d_model) is not int or not 0 < config.d_model <= WIDEST:
            raise ValueError(f"d_model is {shown(config.d_model)}")
        return config.d_model
    except ImportError as error:
        raise InputError(
            f"--text-encoder {name} needs transformers ({error}): {FINETUNE}"
        ) from error
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise absent(name, error) from error


def absent(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:160]
    return InputError(
        f"--text-encoder {name}: no pipeline of Wan or CogVideoX with its tokenizer and text "
        f"encoder can be read here or be had from the hub ({reason}): give a hub id or a folder"
    )


def check_parts(config: dict) -> None:
    """A pipeline's file says of which libraries its parts are, and one of its own folder would be
    imported.

    Raises:
        ValueError: other libraries than diffusers and transformers.
    """
    for part, of in config.items():
        if not part.startswith("_") and isinstance(of, (list, tuple)):
            if len(of) != 2 or of[0] not in (None, "diffusers", "transformers"):
                raise ValueError(f"its {part} is {shown(of)}")


class PromptEncoder:
    """A pipeline's own `encode_prompt`."""

    def __init__(self, pipeline, tokens: int) -> None:
        self.pipeline, self.tokens = pipeline, tokens

    @classmethod
    def load(cls, name: str, cache_dir: str | None, device: torch.device | str) -> "PromptEncoder":
        """
        Raises:
            InputError: not to be had here, or another pipeline's.
        """
        try:
            import diffusers
        except ImportError as error:
            raise InputError(
                f"--text-encoder {name} needs diffusers ({error}): {FINETUNE}"
            ) from error
        load = diffusers.DiffusionPipeline.load_config
        try:
            config = looked_up(load, name, cache_dir)
            kind = config["_class_name"]
            tokens = TOKENS[kind]
            check_parts(config)
            pipeline = looked_up(
                getattr(diffusers, kind).from_pretrained, name, cache_dir, transformer=None,
                vae=None, torch_dtype=torch.bfloat16, use_safetensors=True,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
            raise absent(name, error) from error
        return cls(pipeline.to(device), tokens)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> list[Tensor]:
        """(L, W) each, bfloat16, on the CPU. Wan pads by zeros, which are cut; what CogVideoX sees
        behind a text is its encoder's view of padding, which differs from text to text."""
        found = []
        for first in range(0, len(texts), BATCH):
            with torch.autocast(self.pipeline.device.type, enabled=False):
                vectors, _ = self.pipeline.encode_prompt(
                    list(texts[first : first + BATCH]), do_classifier_free_guidance=False,
                    max_sequence_length=self.tokens,
                )  # fmt: skip
            for one in vectors.bfloat16().cpu():
                last = one.any(dim=1).nonzero().max()
                found.append(one[: last + 1].clone())
        return found


class Prompts:
    """Vectors of texts in files of SHARD texts each, read as they are asked for."""

    def __init__(self, folder: Path, texts: Sequence[str]) -> None:
        self.folder = folder
        self.texts = sorted(set(texts))
        self.place = {text: number for number, text in enumerate(self.texts)}

    def paths(self) -> list[Path]:
        return [
            self.folder / f"{number:05d}.safetensors"
            for number in range(-(-len(self.texts) // SHARD))
        ]

    def __getitem__(self, text: str) -> Tensor:
        """(L, W), bfloat16.

        Raises:
            Unreadable: the file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        number, row = divmod(self.place[text], SHARD)
        path = self.folder / f"{number:05d}.safetensors"
        try:
            with retried(lambda: safe_open(path, "pt"), path) as file:
                start, stop = file.get_slice("starts")[row : row + 2].tolist()
                return file.get_slice("vectors")[start:stop]
        except (SafetensorError, OSError, ValueError, IndexError, TypeError) as error:
            raise Unreadable(
                f"{path} is damaged ({error}): delete it, and it is made anew"
            ) from error

    def write(self, path: Path, encoder: PromptEncoder) -> None:
        from safetensors.torch import save

        first = int(path.stem) * SHARD
        vectors = encoder(self.texts[first : first + SHARD])
        starts = torch.tensor([0, *(len(one) for one in vectors)]).cumsum(0)
        with atomic_write(path) as file:
            file.write(save({"vectors": torch.cat(vectors), "starts": starts}))


def embedded(
    texts: Sequence[str], name: str, cache_dir: str | None, device: torch.device | str
) -> Prompts:
    """The vectors of captions, encoded once on `device` and kept in `cache_dir`; of several
    processes each encodes what no other is at.

    Raises:
        InputError: no such encoder here.
    """
    key = hashlib.sha256("\0".join([fingerprint(name), *sorted(set(texts))]).encode())
    found = Prompts(Path(cache_dir or ".") / f"prompts-{key.hexdigest()[:16]}", texts)
    missing = [path for path in found.paths() if not path.exists()]
    if not missing:
        return found
    found.folder.mkdir(parents=True, exist_ok=True)
    encoder = None
    for waits in (False, True):  # last for those that others have begun
        for path in tqdm(missing, unit="file", desc="captions", disable=waits or len(missing) < 2):
            with locked(path.with_suffix(".lock"), f"--cache-dir {cache_dir}", waits=waits) as mine:
                if mine and not path.exists():
                    encoder = encoder or PromptEncoder.load(name, cache_dir, device)
                    found.write(path, encoder)
    return found


def fingerprint(name: str) -> str:
    """Of an encoder: its hub id; of a folder, sizes and beginnings of its files."""
    if not is_path(name):
        return name
    digest = hashlib.sha256()
    for part in ("tokenizer", "text_encoder"):
        for path in sorted((Path(name) / part).glob("*")):
            with open(path, "rb") as file:
                digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(HEAD))
    return digest.hexdigest()
