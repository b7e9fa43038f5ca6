"""Language models as recommenders; the only part that knows transformers."""

from hellm_pyg.llm.backbone import (
    backbone_label,
    load_backbone,
    load_model,
    quantization_config,
)
from hellm_pyg.llm.feature_files import encode_features
from hellm_pyg.llm.features import ImageFeatures, TextFeatures, encode_texts
from hellm_pyg.llm.head import ItemHead
from hellm_pyg.llm.prefix import GraphPrefix
from hellm_pyg.llm.prefix_states import PrefixStates
from hellm_pyg.llm.presets import collm, e4srec, hellm, llara
from hellm_pyg.llm.projector import FusedProjector
from hellm_pyg.llm.prompt import Prompt
from hellm_pyg.llm.random_backbone import random_backbone
from hellm_pyg.llm.recommender import LLMRecommender

__all__ = [
    'FusedProjector',
    'GraphPrefix',
    'ImageFeatures',
    'ItemHead',
    'LLMRecommender',
    'PrefixStates',
    'Prompt',
    'TextFeatures',
    'backbone_label',
    'collm',
    'e4srec',
    'encode_features',
    'encode_texts',
    'hellm',
    'llara',
    'load_backbone',
    'load_model',
    'quantization_config',
    'random_backbone',
]
