from __future__ import annotations

from typing import get_type_hints

import pytest
import torch
from torch_geometric.data import HeteroData

from hellm_pyg import assembly
from hellm_pyg.config import Config, load_config, recipes
from hellm_pyg.data import PairLoader, SequenceLoader
from hellm_pyg.nn.models import HeLLMPre, SASRec

PHASE_ONE = [name for name in recipes() if load_config(name).model]


def model(**arguments: object) -> Config:
    return Config(model=dict(arguments))


@pytest.mark.parametrize('name', PHASE_ONE)
def test_recipes_name_every_argument_of_their_model(
    name: str, data: HeteroData
) -> None:
    config = load_config(name, ['dataset=toys'])
    cls = assembly.model_class(config.model['name'])
    hints = set(get_type_hints(cls.__init__)) - {*assembly.FROM_DATA, 'return'}
    assert set(config.model) == {'name', *hints}
    assert isinstance(assembly.build_model(config, data), cls)


def test_arguments_reach_the_model(data: HeteroData) -> None:
    built = assembly.build_model(
        model(name='HeLLMPre', embedding_dim=8, alpha=1, scope=5, u2u=False), data
    )
    assert isinstance(built, HeLLMPre)
    assert (built.alpha, built.contrast.scope) == (1.0, 5)
    assert built.user_embedding is None
    assert built.modalities == ('text',)
    sasrec = assembly.build_model(model(name='SASRec'), data)
    assert isinstance(sasrec, SASRec)
    assert sasrec.max_len == 50


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({}, r"'model.name' needs to be one of .*SASRec.* \(got None\)"),
        ({'name': 'Sasrec'}, r"\(got 'Sasrec'\); the nearest is 'SASRec'"),
        ({'name': 'GraphRecommender'}, "'model.name' needs"),
        ({'name': 'SequenceRecommender'}, "'model.name' needs"),
        ({'name': ['SASRec']}, r"'model.name' needs .*\(got \['SASRec'\]\)"),
        ({'name': 'SASRec', 5: 6}, "unknown argument 'model.5' of SASRec"),
        (
            {'name': 'HeLLMPre', 'modalities': 3},
            r"'model.modalities' .* a list of text or null \(got 3\)",
        ),
        (
            {'name': 'HeLLMPre', 'aplha': 1},
            "'model.aplha' of HeLLMPre; the nearest is 'model.alpha'",
        ),
        ({'name': 'LightGCN', 'num_users': 3}, "unknown argument 'model.num_users'"),
        (
            {'name': 'HeLLMPre', 'alpha': 'much'},
            r"'model.alpha' in HeLLMPre needs to be a number \(got 'much'\)",
        ),
        ({'name': 'HeLLMPre', 'u2u': 1}, 'true or false'),
        ({'name': 'SASRec', 'max_len': 20}, r"at least 'train.max_len', 50 \(got 20\)"),
        ({'name': 'SASRec', 'loss': 'hinge'}, "'model.loss' must be one of"),
    ],
)
def test_models_that_cannot_be_built(
    data: HeteroData, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        assembly.build_model(Config(model=arguments), data)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('u2u', False),
        ('i2i', False),
        ('contrastive', False),
        ('symmetric', True),
        ('intra_view', False),
        ('contrast_anchor', 'bipartite'),
        ('scope', 'full'),
        ('scope', 3),
        ('normalization_user', 'hgnn'),
        ('normalization_item', 'rw'),
        ('temperature', 0.1),
        ('alpha', 0.5),
        ('beta', 0.5),
        ('lambda_reg', 1.0),
        ('num_layers', 1),
        ('num_user_layers', 1),
        ('num_item_layers', 1),
    ],
)
def test_every_switch_of_the_pretraining_model_is_connected(
    data: HeteroData, name: str, value: object
) -> None:
    batch = next(iter(PairLoader(data, batch_size=6)))
    losses = []
    for arguments in ({}, {name: value}):
        torch.manual_seed(0)
        built = assembly.build_model(
            model(name='HeLLMPre', embedding_dim=8, **arguments), data
        )
        torch.manual_seed(0)
        losses.append(built.loss(data, batch).item())  # type: ignore[operator]
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


def test_loader_follows_the_model(data: HeteroData) -> None:
    config = load_config(
        None, ['train.batch_size=5', 'train.num_neg=3', 'train.targets=last']
    )
    kinds = {'LightGCN': PairLoader, 'SASRec': SequenceLoader}
    for name, kind in kinds.items():
        built = assembly.build_model(model(name=name, embedding_dim=8), data)
        loader = assembly.build_loader(config, data, built)
        assert isinstance(loader, kind)
        batch = next(iter(loader))
        assert batch.user.numel() <= 5
        assert batch.neg_item is not None
        assert batch.neg_item.shape == (batch.num_targets, 3)
    floor = assembly.build_model(model(name='Popularity'), data)
    assert assembly.build_loader(config, data, floor) is None
