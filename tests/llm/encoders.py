"""Encoders of a few thousand weights, saved to folders, and pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
)

WORDS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'red', 'blue', 'shoe', 'hat')
WIDTH, PROJECTION = 16, 12


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """Every weight does something, biases and gains too."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model.eval()


def save_tokenizer(folder: Path) -> BertTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'vocab.txt').write_text('\n'.join(WORDS))
    tokenizer = BertTokenizer(str(folder / 'vocab.txt'), model_max_length=32)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_bert(folder: Path) -> BertModel:
    save_tokenizer(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    model = randomised(BertModel(config))
    model.save_pretrained(folder)
    return model


def clip_config() -> CLIPConfig:
    sizes = {
        'hidden_size': WIDTH,
        'intermediate_size': 24,
        'num_hidden_layers': 2,
        'num_attention_heads': 2,
    }
    vision = CLIPVisionConfig(**sizes, image_size=24, patch_size=8)
    text = CLIPTextConfig(
        **sizes,
        vocab_size=len(WORDS),
        max_position_embeddings=32,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    # As in old files, the halves do not know the width of the projection.
    return CLIPConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=PROJECTION,
    )


def save_processor(folder: Path) -> None:
    CLIPImageProcessorPil(
        size={'shortest_edge': 24}, crop_size={'height': 24, 'width': 24}
    ).save_pretrained(folder)


def save_clip(folder: Path) -> CLIPModel:
    save_tokenizer(folder)
    save_processor(folder)
    model = randomised(CLIPModel(clip_config()))
    model.save_pretrained(folder)
    return model


def save_siglip(folder: Path) -> SiglipModel:
    """A model of texts and images that reads the last position of a text."""
    save_tokenizer(folder)
    sizes = {
        'hidden_size': WIDTH,
        'intermediate_size': 24,
        'num_hidden_layers': 2,
        'num_attention_heads': 2,
    }
    text = {
        'vocab_size': len(WORDS),
        'max_position_embeddings': 12,
        'projection_size': PROJECTION,
        'bos_token_id': 2,
        'eos_token_id': 3,
        'pad_token_id': 0,
    }
    config = SiglipConfig(
        text_config={**sizes, **text},
        vision_config={**sizes, 'image_size': 24, 'patch_size': 8},
    )
    model = randomised(SiglipModel(config))
    model.save_pretrained(folder)
    return model


def picture(path: Path, colour: str, size: tuple[int, int] = (40, 30)) -> Path:
    """A picture that is not the same everywhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new('RGB', size, 'white')
    image.paste(Image.new('RGB', (size[0] // 2, size[1]), colour), (0, 0))
    image.save(path)
    return path
