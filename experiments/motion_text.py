"""A text encoder for motions of your own: a small CLIP that tells the words of their captions.

python -m experiments.motion_text --data data/motions/HumanML3D --out encoders/motions
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from domains.humanml3d import read_clips
from domains.texts import WORDS
from runtime.config import at_least, checked
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.random import generator

WIDTH, LAYERS, HEADS = 64, 2, 4
BATCH, LEARNING_RATE = 64, 1e-3
START, END, PAD, UNKNOWN = "<start>", "<end>", "<pad>", "<unknown>"


@dataclass(frozen=True)
class Flags:
    """Train a CLIP of text so that a linear map reads the caption off its vector, place by place.

    One of random weights would not do: its vectors of "walks forward" and "walks backward" agree
    to two digits."""

    data: str  # a folder in HumanML3D's layout
    out: Path  # the folder for train.py --text-encoder
    steps: int = 400  # of the optimizer
    seed: int = 0  # of the weights and captions


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    at_least(flags, steps=1)
    texts = [caption.text for caption in read_clips(flags.data, "train").captions]
    words = sorted({word for text in texts for word in re.findall(r"\w+", text)})
    tokenizer, model = untrained(words, flags.seed)
    found = trained(model, tokenizer, texts, flags)
    try:
        tokenizer.save_pretrained(flags.out)
        model.save_pretrained(flags.out)
    except OSError as error:
        raise InputError(f"--out {flags.out} cannot be written ({error})") from error
    print(f"{flags.out}: {found:.1%} of the captions' words can be read off its vectors")


def untrained(words: list[str], seed: int):
    """transformers' tokenizer of whole words, and its CLIP of text.

    Raises:
        InputError: no transformers here.
    """
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import (
            CLIPTextConfig,
            CLIPTextModelWithProjection,
            PreTrainedTokenizerFast,
        )
    except ImportError as error:
        raise InputError(f"this needs transformers ({error}): pip install '.[motion]'") from error
    special = {START: 0, END: 1, PAD: 2, UNKNOWN: 3}
    vocabulary = special | {word: number for number, word in enumerate(words, start=len(special))}
    rules = Tokenizer(models.WordLevel(vocabulary, UNKNOWN))
    rules.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("removed")]
    )
    rules.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 0), (END, 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules, bos_token=START, eos_token=END, pad_token=PAD, unk_token=UNKNOWN
    )
    torch.manual_seed(seed)
    model = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            bos_token_id=special[START],
            eos_token_id=special[END],
            pad_token_id=special[PAD],
        )  # fmt: skip
    )
    return tokenizer, model


def trained(model, tokenizer, texts: list[str], flags: Flags) -> float:
    """Train in place; the share of words that the last batches' vectors tell."""
    vocabulary = model.config.vocab_size
    heads = nn.ModuleList(nn.Linear(WIDTH, vocabulary) for _ in range(WORDS))
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=LEARNING_RATE)
    random = generator("cpu", flags.seed, "captions")
    right = 0.0
    for _ in tqdm(range(flags.steps), unit="step", disable=not speaks()):
        chosen = torch.randint(len(texts), (BATCH,), generator=random).tolist()
        batch = tokenizer(
            [texts[i] for i in chosen], padding=True, truncation=True, max_length=WORDS + 2,
            return_tensors="pt",
        )  # fmt: skip
        vectors = model(**batch).text_embeds
        loss, share = told(heads, vectors, batch["input_ids"][:, 1:-1], model.config.pad_token_id)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right = 0.9 * right + 0.1 * share
    return right


def told(heads: nn.ModuleList, vectors: Tensor, words: Tensor, pad: int) -> tuple[Tensor, float]:
    """How well the word at every place is read off the vectors: a loss, and a share."""
    logits = torch.stack([head(vectors) for head in heads[: words.shape[1]]], dim=1)
    loss = F.cross_entropy(logits.flatten(0, 1), words.flatten(), ignore_index=pad)
    counted = words != pad
    right = (logits.argmax(-1) == words)[counted].float().mean()
    return loss, right.item()


if __name__ == "__main__":
    run(main)
