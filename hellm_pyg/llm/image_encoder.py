"""Images to vectors by a frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
)

from hellm_pyg.llm.loading import (
    check_finite,
    config_hash,
    explained,
    load_frozen,
    usable_device,
    whole_name,
)
from hellm_pyg.llm.text_encoder import projected
from hellm_pyg.precision import DTYPES, Precision, resolve_precision

if TYPE_CHECKING:
    from PIL import Image

Pooling = Literal['cls', 'mean', 'projection']

PRESETS = {'clip': 'openai/clip-vit-base-patch32'}
CLASS_TOKENS = ('cls_token', 'class_embedding')


class ImageEncoder:
    r"""A frozen image encoder from a hub or a folder.

    The result is the projection of a model of texts and images, such as
    `CLIP <https://arxiv.org/abs/2103.00020>`_, without its text half if it is
    CLIP; of other models it is the state of the class token or the mean over
    all places. It is not normalised.

    .. csv-table:: Presets
        :header: Name, Encoder, Width, Pooling

        clip, "openai/clip-vit-base-patch32, as in HeLLM", 512, projection

    Args:
        name: Preset, folder (which goes before a preset) or hub name.
        pooling: ``'projection'``, ``'cls'`` or ``'mean'``; the first of them
            that the model has if :obj:`None`.
        batch_size: Images to a batch.
        precision: ``'bf16'``, ``'fp32'``, or ``'auto'``: bf16 on devices that are
            built for it.
        device: Device; an accelerator if :obj:`None` and there is one.

    Raises:
        ValueError: If the encoder cannot be loaded or a setting does not fit it.
    """

    def __init__(
        self,
        name: str = 'clip',
        pooling: Pooling | None = None,
        batch_size: int = 32,
        precision: Precision = 'auto',
        device: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"'batch_size' needs to be at least 1 (got {batch_size})")
        self.name = name
        self.batch_size = batch_size
        self.device = usable_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.dtype = DTYPES[self.precision]
        source = name if Path(name).is_dir() else PRESETS.get(name, name)
        with explained('encoder', name, tuple(PRESETS)):
            # Torchvision resizes a little differently, and is not everywhere.
            self.processor = AutoImageProcessor.from_pretrained(
                source, backend='pil', trust_remote_code=False
            )
            model, self.weights = _model(source)
        self.pooling = _pooling(pooling, model, name)
        self.model = model.to(self.device, self.dtype)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that the vectors depend on, beside the images."""
        return {
            'encoder': whole_name(self.name),
            'weights': self.weights,
            'config': config_hash(
                self.model.config.to_dict(), self.processor.to_dict()
            ),
            'pooling': self.pooling,
            'precision': self.precision,
        }

    def pixels(self, image: Image.Image) -> Tensor:
        """An RGB image as the model reads it, of shape :math:`[3, H, W]`."""
        return self.processor(image, return_tensors='pt')['pixel_values'][0]

    @cached_property
    def dim(self) -> int:
        """Width :math:`F` of the vectors."""
        from PIL import Image

        return self.encode([self.pixels(Image.new('RGB', (64, 64)))]).size(1)

    @torch.inference_mode()
    def encode(self, pixels: Sequence[Tensor]) -> Tensor:
        r"""Encodes a batch of images.

        Args:
            pixels: Of :math:`B` images, see :meth:`pixels`.

        Returns:
            float32 of shape :math:`[B, F]`.

        Raises:
            ValueError: If a vector is not finite, or the encoder reads images in
                sizes of their own.
        """
        if len({image.shape for image in pixels}) > 1:
            raise ValueError(
                f"'encoder' needs to bring its images to one size (got '{self.name}')"
            )
        batch = torch.stack(list(pixels)).to(self.device, self.dtype)
        x = self._pooled(batch).float().cpu()
        check_finite(x, self.name, self.precision)
        return x

    def _pooled(self, pixels: Tensor) -> Tensor:
        if self.pooling == 'projection':
            if isinstance(self.model, CLIPVisionModelWithProjection):
                return self.model(pixels).image_embeds
            return projected(self.model.get_image_features(pixels))
        state = self.model(pixels).last_hidden_state
        if self.pooling == 'cls':
            return state[:, 0]
        # Convolutional networks keep their places in two dimensions.
        places = (2, 3) if state.dim() == 4 else 1
        return state.float().mean(dim=places)


def _model(source: str) -> tuple[Any, str]:
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if config.model_type == 'clip':
        vision = config.vision_config
        vision.projection_dim = config.projection_dim
        return load_frozen(CLIPVisionModelWithProjection, source, vision)
    if config.model_type == 'clip_vision_model':
        return load_frozen(CLIPVisionModelWithProjection, source)
    return load_frozen(AutoModel, source)


def _pooling(pooling: Pooling | None, model: PreTrainedModel, name: str) -> Pooling:
    known: tuple[Pooling, ...] = ('mean',)
    if isinstance(model, CLIPVisionModelWithProjection) or hasattr(
        model, 'get_image_features'
    ):
        known = ('projection',)
    elif any(key.endswith(CLASS_TOKENS) for key, _ in model.named_parameters()):
        known = ('cls', 'mean')
    if pooling is not None and pooling not in known:
        raise ValueError(
            f"'pooling' needs to be {' or '.join(map(repr, known))} for the encoder "
            f"'{name}' (got {pooling!r})"
        )
    return pooling or known[0]
