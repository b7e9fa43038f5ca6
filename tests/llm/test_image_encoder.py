import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    ConvNextConfig,
    ConvNextModel,
    ViTConfig,
    ViTModel,
)

from hellm_pyg.datasets.image_file import read_image
from hellm_pyg.llm.image_encoder import ImageEncoder
from tests.llm.encoders import (
    PROJECTION,
    WIDTH,
    clip_config,
    picture,
    randomised,
    save_bert,
    save_clip,
    save_processor,
)


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp('clip')
    return str(folder), save_clip(folder)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    return [
        read_image(picture(folder / name, colour, size))
        for name, colour, size in [
            ('a.jpg', 'red', (40, 30)),
            ('b.png', 'blue', (24, 90)),
            ('c.jpeg', 'green', (300, 300)),
        ]
    ]


@pytest.mark.parametrize('batch_size', [1, 3])
def test_projection_of_clip(clip, images, batch_size):
    folder, model = clip
    encoder = ImageEncoder(folder, batch_size=batch_size, precision='fp32')
    assert isinstance(encoder.model, CLIPVisionModelWithProjection)
    assert encoder.pooling == 'projection'
    pixels = [encoder.pixels(image) for image in images]
    assert {tuple(image.shape) for image in pixels} == {(3, 24, 24)}
    with torch.no_grad():
        oracle = model.get_image_features(torch.stack(pixels)).pooler_output
    assert encoder.dim == PROJECTION
    batches = [
        encoder.encode(pixels[i : i + batch_size]) for i in range(0, 3, batch_size)
    ]
    torch.testing.assert_close(torch.cat(batches), oracle, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(oracle[0], oracle[1], atol=1e-3)


def test_pixels_are_normalised_as_for_clip(clip):
    encoder = ImageEncoder(clip[0])
    white = encoder.pixels(Image.new('RGB', (40, 30), 'white'))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    oracle = ((1 - mean) / std)[:, None, None].expand(3, 24, 24)
    torch.testing.assert_close(white, oracle, rtol=1e-4, atol=1e-4)


def test_vision_half_alone(clip, images, tmp_path):
    config = clip_config()
    config.vision_config.projection_dim = PROJECTION
    half = randomised(CLIPVisionModelWithProjection(config.vision_config))
    half.save_pretrained(tmp_path)
    save_processor(tmp_path)
    encoder = ImageEncoder(str(tmp_path), precision='fp32')
    pixels = [encoder.pixels(image) for image in images]
    with torch.no_grad():
        oracle = half(torch.stack(pixels)).image_embeds
    torch.testing.assert_close(encoder.encode(pixels), oracle, rtol=1e-4, atol=1e-5)


def test_a_clip_without_projection_is_refused(tmp_path):
    CLIPVisionModel(clip_config().vision_config).save_pretrained(tmp_path)
    save_processor(tmp_path)
    with pytest.raises(ValueError, match=r'it lacks 1 of the weights.*projection'):
        ImageEncoder(str(tmp_path))


def test_class_token_or_mean_of_a_vision_transformer(images, tmp_path):
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=24,
        patch_size=8,
    )
    model = randomised(ViTModel(config, add_pooling_layer=False))
    model.save_pretrained(tmp_path)
    save_processor(tmp_path)
    first = ImageEncoder(str(tmp_path), precision='fp32')
    mean = ImageEncoder(str(tmp_path), 'mean', precision='fp32')
    assert first.pooling == 'cls'
    pixels = [first.pixels(image) for image in images]
    with torch.no_grad():
        state = model(torch.stack(pixels)).last_hidden_state
    torch.testing.assert_close(first.encode(pixels), state[:, 0])
    torch.testing.assert_close(mean.encode(pixels), state.mean(dim=1))
    assert first.settings != mean.settings
    assert first.settings['weights'] == mean.settings['weights']


def test_mean_of_a_convolutional_network(images, tmp_path):
    config = ConvNextConfig(hidden_sizes=[8, 8, 8, WIDTH], depths=[1, 1, 1, 1])
    model = randomised(ConvNextModel(config))
    model.save_pretrained(tmp_path)
    save_processor(tmp_path)
    encoder = ImageEncoder(str(tmp_path), precision='fp32')
    assert encoder.pooling == 'mean'
    pixels = [torch.randn(3, 64, 64) for _ in range(2)]
    with torch.no_grad():
        state = model(torch.stack(pixels)).last_hidden_state
    torch.testing.assert_close(encoder.encode(pixels), state.mean(dim=(2, 3)))
    with pytest.raises(ValueError, match=r"'pooling' needs to be 'mean' .*'cls'"):
        ImageEncoder(str(tmp_path), 'cls')


def test_bf16_is_close(clip, images):
    exact = ImageEncoder(clip[0], precision='fp32')
    rounded = ImageEncoder(clip[0], precision='bf16')
    pixels = [exact.pixels(image) for image in images]
    x, y = exact.encode(pixels), rounded.encode(pixels)
    assert y.dtype == torch.float32
    assert torch.cosine_similarity(x, y).min() > 0.99
    assert exact.settings | {'precision': 'bf16'} == rounded.settings


def test_errors(clip, tmp_path):
    with pytest.raises(ValueError, match=r"'encoder' needs 'clip', a folder"):
        ImageEncoder(str(tmp_path / 'nowhere'))
    with pytest.raises(ValueError, match=r"'batch_size'.*\(got 0\)"):
        ImageEncoder(clip[0], batch_size=0)
    with pytest.raises(ValueError, match=r"'pooling' needs to be 'projection'.*'mean'"):
        ImageEncoder(clip[0], 'mean')
    save_bert(tmp_path / 'bert')
    with pytest.raises(ValueError, match=r"'encoder' needs 'clip', a folder.*bert"):
        ImageEncoder(str(tmp_path / 'bert'))
    encoder = ImageEncoder(clip[0])
    with pytest.raises(ValueError, match="'encoder' needs to bring its images to one"):
        encoder.encode([torch.zeros(3, 24, 24), torch.zeros(3, 24, 32)])
    encoder.model.visual_projection.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="'encoder' gives NaN or Inf"):
        encoder.encode([torch.zeros(3, 24, 24)])
