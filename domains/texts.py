"""Captions as vectors: CLIP's text encoder, and its vectors of a data set's captions on disk."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from runtime.errors import InputError
from runtime.files import atomic_write, locked, retried, sha256_of
from runtime.untrusted import json_of, shown

from .codecs import is_path, looked_up

CLIP = "openai/clip-vit-base-patch32"
NONE = "none"  # --text-encoder none: without condition
WIDTHS = {CLIP: 512, NONE: 0}
WIDEST = 65_536  # numbers of a caption's vector
WORDS = 20  # MDM shows CLIP no more, and a token at either end
BATCH = 256


def width_of(name: str) -> int:
    """The width of an encoder's vectors, from its config; CLIP's own needs no look-up.

    Raises:
        InputError: a folder without the config of a CLIP.
    """
    if name in WIDTHS:
        return WIDTHS[name]
    try:
        width = json_of(Path(name) / "config.json")["projection_dim"]
        if type(width) is not int or not 0 < width <= WIDEST:
            raise ValueError(f"projection_dim is {shown(width)}")
        return width
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--text-encoder {name} is no folder of transformers' CLIPTextModelWithProjection "
            f"({error}): give one, or {CLIP}, or {NONE}"
        ) from error


def identity_of(name: str) -> str:
    """The hash of a folder's weights; of the hub's, their name."""
    weights = Path(name) / "model.safetensors"
    return sha256_of(weights) if is_path(name) and weights.is_file() else name


class TextEncoder:
    """CLIP's projected text features, not normalized: what MDM is conditioned on."""

    def __init__(self, tokenizer, model) -> None:
        self.tokenizer, self.model = tokenizer, model.eval().requires_grad_(False)

    @classmethod
    def load(cls, name: str, cache_dir: str | None, device: torch.device | str) -> "TextEncoder":
        """
        Raises:
            InputError: not to be had here, or no CLIP.
        """
        try:
            from transformers import AutoTokenizer, CLIPTextModelWithProjection
            from transformers.utils import logging
        except ImportError as error:
            raise InputError(
                f"--text-encoder {name} needs transformers ({error}): pip install '.[motion]'"
            ) from error
        logging.disable_progress_bar()  # of a second's work, and it would stand before errors
        try:
            # False said, or transformers asks the terminal whether to run what came with a file.
            tokenizer = looked_up(
                AutoTokenizer.from_pretrained, name, cache_dir, trust_remote_code=False
            )
            model = looked_up(
                CLIPTextModelWithProjection.from_pretrained, name, cache_dir, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(
                f"--text-encoder {name} can neither be read here nor be had from the hub "
                f"({reason}): give the folder of a saved CLIPTextModelWithProjection and its "
                "tokenizer, or set HF_HOME to the cache that has it"
            ) from error
        return cls(tokenizer, model.to(device))

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(N, W), float32, on the CPU."""
        found = []
        for first in tqdm(
            range(0, len(texts), BATCH), unit="batch", desc="captions", disable=len(texts) <= BATCH
        ):
            words = self.tokenizer(
                list(texts[first : first + BATCH]), padding=True, truncation=True,
                max_length=WORDS + 2, return_tensors="pt",
            ).to(self.model.device)  # fmt: skip
            with torch.autocast(self.model.device.type, enabled=False):
                found.append(self.model(**words).text_embeds.float().cpu())
        return torch.cat(found)


def embedded(
    texts: Sequence[str], name: str, cache_dir: str | None, device: torch.device | str
) -> Tensor:
    """The vectors of captions (N, W), encoded once on `device` and kept in `cache_dir`.

    Of several processes the first encodes, and the others wait for its file.

    Raises:
        InputError: no such encoder here, or the file of the vectors is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    key = hashlib.sha256("\0".join([identity_of(name), *texts]).encode()).hexdigest()[:16]
    path = Path(cache_dir or ".") / f"captions-{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock"), f"--cache-dir {cache_dir}", waits=True):
        if not path.exists():
            vectors = TextEncoder.load(name, cache_dir, device)(texts)
            with atomic_write(path) as file:
                file.write(save({"vectors": vectors.contiguous()}))
    try:
        vectors = retried(lambda: load_file(path), path)["vectors"]
        if len(vectors) != len(texts):
            raise ValueError(f"{len(vectors)} vectors of {len(texts)} captions")
        return vectors
    except (SafetensorError, KeyError, OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it, and it is made anew") from error
