"""A small shop's files and a tiny language model, for tests of whole runs."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

NUM_USERS, NUM_ITEMS = 30, 24


def write_shop(folder: Path) -> list[str]:
    """Writes interactions, items and features; returns the overrides for them.

    Users and items form three clusters. Ids are text; the log is not in order.
    """
    generator = random.Random(0)
    lines = []
    for user in range(NUM_USERS):
        own = [i for i in range(NUM_ITEMS) if i % 3 == user % 3]
        items = generator.sample(own, 5) + generator.sample(range(NUM_ITEMS), 1)
        for time, item in enumerate(dict.fromkeys(items)):
            lines.append(f'u{user:02d},p{item:03d},{100 * user + time}\n')
    generator.shuffle(lines)
    log, items_file = folder / 'log.csv', folder / 'items.csv'
    log.write_text('customer,sku,when\n' + ''.join(lines))
    items_file.write_text(
        'sku,title\n' + ''.join(f'p{i:03d},"Thing, {i}"\n' for i in range(NUM_ITEMS))
    )
    text = np.eye(3)[[i % 3 for i in range(NUM_ITEMS)]]
    text += 0.1 * np.random.default_rng(0).normal(size=text.shape)
    np.save(folder / 'text.npy', text.astype('float32'))
    return [
        f'data.interactions={log}',
        f'data.root={folder / "cache"}',
        'data.user=customer',
        'data.item=sku',
        'data.time=when',
        f'data.items={items_file}',
        'data.item_id=sku',
        f'data.features={{text: {folder / "text.npy"}}}',
        'data.knn=4',
        'train.max_len=8',
        'train.batch_size=8',
        'train.epochs=1',
        'train.distill=null',  # no runs of a recipe teach here
    ]


def turn_around(folder: Path) -> None:
    """Turns the order of all interactions that :func:`write_shop` has written."""
    first, *rows = (folder / 'log.csv').read_text().splitlines()
    for index, row in enumerate(rows):
        start, _, time = row.rpartition(',')
        rows[index] = f'{start},{100 * NUM_USERS - int(time)}'
    (folder / 'log.csv').write_text('\n'.join([first, *rows, '']))


def write_llm(folder: Path) -> Path:
    """Writes a LLaMA of two layers with a tokenizer of seven words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    words = ['<s>', '<unk>', 'You', 'get', 'an', 'instruction', 'items']
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token='<s>', unk_token='<unk>'
    ).save_pretrained(folder)
    torch.manual_seed(0)
    LlamaModel(
        LlamaConfig(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).save_pretrained(folder)
    return folder
