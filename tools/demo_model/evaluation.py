"""Held-out figures: loss on conversations of another seed, sums never shown, wordings that the corpus never makes."""

# torch is not among the development tools, so it may be missing when types are checked.
# mypy: disable-error-code="import-not-found", allow-subclassing-any

from __future__ import annotations

import itertools
import random

import torch

from tools.demo_model import corpus, sums, texts
from tools.demo_model.chat_format import BEGIN, END
from tools.demo_model.network import Llama
from tools.demo_model.tokenizer import Encoder, Tokenizer
from tools.demo_model.training import SECOND, loss_of, single_batches

HELD_OUT_SEED = 1_000_003


def held_out_loss(network: Llama, encoder: Encoder, *, num_batches: int = 40) -> float:
    """Mean weighted loss in nats per token, on documents of another seed, one to a row."""
    batches = single_batches(corpus.documents(HELD_OUT_SEED), encoder, SECOND)
    with torch.no_grad():
        losses = [float(loss_of(network, *batch)) for batch in itertools.islice(batches, num_batches)]
    return sum(losses) / len(losses)


def answer(network: Llama, tokenizer: Tokenizer, encoder: Encoder, question: str, max_tokens: int = 64) -> str:
    """The greedy answer to one question, without a cache."""
    special = encoder.special
    ids = special(BEGIN) + special("<|user|>") + encoder.encode(question) + special(END) + special("<|assistant|>")
    said: list[int] = []
    (end,) = special(END)
    with torch.no_grad():
        while len(said) < max_tokens:
            best = int(network(torch.tensor([ids + said]))[0, -1].argmax())
            if best == end:
                break
            said.append(best)
    return tokenizer.decode(said)


def sums_right(network: Llama, tokenizer: Tokenizer, encoder: Encoder, *, num_sums: int = 300) -> dict[str, float]:
    """Share of held-out two-digit sums, and of single-digit ones that training shows, answered exactly."""
    rng = random.Random(HELD_OUT_SEED)
    right = {}
    for label, draw in (("held-out two-digit sums", sums.draw_held_out), ("single-digit sums", _draw_small)):
        drawn = [draw(rng) for _ in range(num_sums)]
        answers = [answer(network, tokenizer, encoder, sums.question(rng, a_sum), 24) for a_sum in drawn]
        hits = sum(said == sums.answer(a_sum) for said, a_sum in zip(answers, drawn, strict=True))
        right[label] = hits / num_sums
    return right


def wordings_right(network: Llama, tokenizer: Tokenizer, encoder: Encoder) -> float:
    """Share of the held-out questions whose greedy answer contains what it must."""
    topics = texts.topics("held_out")
    hits = 0
    for topic in topics:
        said = answer(network, tokenizer, encoder, topic.questions[0])
        hits += any(wanted in said for wanted in topic.answers)
    return hits / len(topics)


def _draw_small(rng: random.Random) -> sums.Sum:
    sign = rng.choice("+-*")
    left = rng.randint(0, 9)
    return sums.Sum(left, sign, rng.randint(0, left if sign == "-" else 9))
