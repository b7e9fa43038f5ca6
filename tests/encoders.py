"""Tiny random encoders of the real classes, for tests of features."""

from __future__ import annotations

from pathlib import Path


def write_text_encoder(folder: Path) -> Path:
    """Writes a BERT of one layer, 16 wide, that knows eight words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True)
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'red', 'blue', 'thing']
    (folder / 'vocab.txt').write_text('\n'.join(words))
    BertTokenizer(str(folder / 'vocab.txt')).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    ).save_pretrained(folder)
    return folder


def write_image_encoder(folder: Path) -> Path:
    """Writes a CLIP of one layer that projects to 12."""
    import torch
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    torch.manual_seed(0)
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            image_size=16,
            patch_size=8,
            projection_dim=12,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    ).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={'shortest_edge': 16}, crop_size={'height': 16, 'width': 16}
    ).save_pretrained(folder)
    return folder
