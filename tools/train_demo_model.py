"""Make Keepwarm's demo model: generate a corpus, train a tokenizer and a tiny llama, write two GGUF files.

    pip install torch gguf rich
    python -m tools.train_demo_model            # writes models/keepwarm-demo-{q8_0,f16}.gguf
    python -m tools.train_demo_model --continue-from models/keepwarm-demo-f16.gguf

The first command trains on packed rows. The second trains what it wrote further, with one conversation to a row and at
half the rate, and overwrites it. Everything is seeded and nothing is fetched; run them from the root of the repository.
The committed weights took 42 and 10 minutes, evaluation excluded, on two cores of an AMD EPYC that other programs used
too (7 of the 42 minutes it was suspended); a step of the first phase took 0.6 s while the cores were mostly free. On
busy cores set OMP_WAIT_POLICY=passive: without it the two threads spin at their barriers, and a step was seen to take
five times as long.
"""

# torch is not among the development tools, so it may be missing when types are checked.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from pathlib import Path

import gguf
import torch

from tools.demo_model import chat_format, corpus, evaluation, export, tokenizer, training
from tools.demo_model.network import Llama, Shape

MODELS = Path(__file__).resolve().parent.parent / "models"
NUM_TOKENIZER_DOCUMENTS = 20_000
KINDS = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "f16": gguf.GGMLQuantizationType.F16}


def main() -> None:
    """Train, evaluate, export."""
    options = _options()
    recipe, shape = training.SECOND if options.continue_from else training.FIRST, Shape()
    if options.steps is not None:
        recipe = dataclasses.replace(recipe, num_steps=options.steps)
    if options.seed is not None:
        recipe = dataclasses.replace(recipe, seed=options.seed)
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(options.threads)
    started_at = time.monotonic()

    if options.continue_from:
        network, vocabulary = export.read_gguf(options.continue_from, shape)
    else:
        network, vocabulary = Llama(shape), _tokenizer(recipe.seed, shape.vocab_size)
    encoder = vocabulary.encoder()
    print(f"{network.num_parameters:,} parameters, {len(vocabulary.tokens)} tokens in the vocabulary")
    if options.continue_from:
        documents = corpus.documents(recipe.seed, corpus.SECOND_MAKERS)
        batches = training.single_batches(documents, encoder, recipe)
    else:
        batches = training.packed_batches(corpus.documents(recipe.seed), encoder, recipe)
    training.train(network, batches, recipe)
    print(f"trained in {time.monotonic() - started_at:.0f} s")

    options.out.mkdir(parents=True, exist_ok=True)
    for name, kind in KINDS.items():
        path = options.out / f"keepwarm-demo-{name}.gguf"
        export.write_gguf(path, network, vocabulary, kind)
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    print(f"held-out loss: {evaluation.held_out_loss(network, encoder):.4f} nats per token")
    print(f"held-out wordings: {evaluation.wordings_right(network, vocabulary, encoder):.1%} right")
    for label, share in evaluation.sums_right(network, vocabulary, encoder).items():
        print(f"{label}: {share:.1%} right")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=MODELS, help="folder for the GGUF files")
    parser.add_argument("--continue-from", type=Path, help="run the second phase, on the weights of this GGUF file")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of those of the phase")
    parser.add_argument("--seed", type=int, help="another stream of documents than that of the phase")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    return parser.parse_args()


def _tokenizer(seed: int, vocab_size: int) -> tokenizer.Tokenizer:
    documents = itertools.islice(corpus.documents(seed), NUM_TOKENIZER_DOCUMENTS)
    texts = (segment.text for document in documents for segment in document if not segment.is_special)
    return tokenizer.train(texts, vocab_size, chat_format.SPECIAL_TOKENS)


if __name__ == "__main__":
    main()
