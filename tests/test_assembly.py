from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.transforms import Compose

from hellm_pyg import assembly, checkpoint
from hellm_pyg.config import Config, DataConfig, LLMConfig, load_config, recipes
from hellm_pyg.data import PairLoader, SequenceLoader
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.llm.prefix import GraphPrefix
from hellm_pyg.nn.models import HeLLMPre, SASRec
from hellm_pyg.transforms import KNNHyperedges, LeaveOneOut, UserItemGraph
from tests.builders import rec_data
from tests.shop import NUM_ITEMS, NUM_USERS, write_llm, write_shop

PHASE_ONE = [name for name in recipes() if load_config(name).model]
WITH_PREFIX = [f'finetune_{profile}' for profile in ('released', 'paper', 'best')]


@pytest.fixture
def data() -> HeteroData:
    transforms = [LeaveOneOut(), UserItemGraph(), KNNHyperedges(k=3)]
    return Compose(transforms)(rec_data())


def model(**arguments: object) -> Config:
    return Config(model=dict(arguments))


def test_data_of_a_shop(tmp_path: Path) -> None:
    config = load_config(None, write_shop(tmp_path)).data
    data, ids = assembly.build_data(config)
    assert (ids.num_users, ids.num_items) == (NUM_USERS, NUM_ITEMS)
    assert data['item'].title[3] == 'Thing, 3'
    edges = data['item', 'member_of', 'text_hyperedge'].edge_index
    assert edges.size(1) == 4 * NUM_ITEMS
    assert 'ui_adj' in data
    rows = assembly.statistics(data)
    assert rows['users'] == rows['users with a target'] == NUM_USERS
    train = data['user', 'interacts', 'item'].edge_index.size(1)
    assert rows['interactions'] == train + 2 * NUM_USERS
    assert rows['training + test (as the article counts)'] == train + NUM_USERS
    assert rows['text features'] == '3 wide, 0 items without'
    assert rows['items without training'] == NUM_ITEMS - len(
        set(data['user', 'interacts', 'item'].edge_index[1].tolist())
    )


def test_other_graphs_are_other_caches(tmp_path: Path) -> None:
    overrides = write_shop(tmp_path)
    for extra in ([], ['data.knn=5'], ['data.knn_direction=col'], []):
        assembly.build_data(load_config(None, [*overrides, *extra]).data)
    assert len(list((tmp_path / 'cache' / 'processed').iterdir())) == 3


def test_paths_read_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('SHOP', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'llm').mkdir()
    data = DataConfig('${SHOP}/a.txt', 'cache', features={'text': '$SHOP/t.npy'})
    tables = {'graph': 'runs/a', 'text': 'features:text', 'own': 'random:8'}
    config = assembly.resolve_paths(Config(data, llm=LLMConfig('llm', tables=tables)))
    assert config.data.interactions == f'{tmp_path}/a.txt'
    assert config.data.root == f'{tmp_path}/cache'
    assert config.data.features == {'text': f'{tmp_path}/t.npy'}
    assert config.data.items is None
    assert config.llm is not None
    assert config.llm.name == f'{tmp_path}/llm'
    assert config.llm.tables == {**tables, 'graph': f'{tmp_path}/runs/a'}
    assert assembly.resolve_paths(config) == config
    hub = Config(data, llm=LLMConfig('org/model'))
    resolved = assembly.resolve_paths(hub).llm
    assert resolved is not None
    assert resolved.name == 'org/model'


def test_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('HELLM_DATA', raising=False)
    with pytest.raises(ValueError, match=r"'data.interactions'.*'HELLM_DATA'.*not set"):
        assembly.build_data(load_config('sasrec').data)
    with pytest.raises(ValueError, match=r"'data.interactions' needs a file"):
        assembly.build_data(DataConfig())


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('data.user=custmer', "'data.user' names the column 'custmer'"),
        ('data.item_id=id', "'data.item_id' names the column 'id'"),
        ('data.min_count=-1', "'data.min_count' needs to be at least 0"),
        ('data.min_rating=3', "'data.min_rating' needs"),
        ('data.items=none.csv', "'data.items' is not a file"),
        ('data.features={text: no.npy}', "'data.features' is not a file"),
        ('data.knn=24', r"'data.knn' needs .*\(got k=24 and 24 such items\)"),
        ('data.knn=0', "'data.knn' needs to be at least 1"),
    ],
)
def test_errors_about_data_name_the_key_of_the_recipe(
    tmp_path: Path, override: str, message: str
) -> None:
    config = load_config(None, [*write_shop(tmp_path), override])
    with pytest.raises(ValueError, match=f'^{message}'):
        assembly.build_data(config.data)


@pytest.mark.parametrize('name', PHASE_ONE)
def test_recipes_name_every_argument_of_their_model(
    name: str, data: HeteroData
) -> None:
    config = load_config(name, ['dataset=toys'])
    cls = assembly.model_class(config.model['name'])
    hints = set(get_type_hints(cls.__init__)) - {*assembly.FROM_DATA, 'return'}
    assert set(config.model) == {'name', *hints}
    assert isinstance(assembly.build_model(config, data), cls)


@pytest.mark.parametrize('name', WITH_PREFIX)
def test_recipes_name_every_argument_of_the_prefix(name: str) -> None:
    llm = load_config(name).llm
    assert llm is not None
    assert llm.prefix is not None
    given = {'channels', 'hidden_size', 'num_layers', 'scope', 'return'}
    hints = set(get_type_hints(GraphPrefix.__init__)) - given
    assert set(llm.prefix) == {'embedding', *hints}


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


def ids_of(data: HeteroData, first: int = 0) -> IdMap:
    users, items = data['user'].num_nodes, data['item'].num_nodes
    return IdMap(list(range(first, first + users)), list(range(items)))


def run_folder(folder: Path, ids: IdMap, width: int = 4) -> str:
    table = torch.arange(ids.num_items * width).float().view(-1, width)
    checkpoint.save_tensors(folder / 'embeddings.safetensors', {'item': table})
    ids.save(folder / 'ids.json')
    return str(folder)


def test_item_tables(data: HeteroData, tmp_path: Path) -> None:
    ids = ids_of(data)
    folder = run_folder(tmp_path / 'graph', ids)
    items = ids.num_items
    graph = assembly.item_table('graph', folder, data, ids)
    assert torch.equal(graph, torch.arange(items * 4).float().view(-1, 4))
    text = assembly.item_table('text', 'features:text', data, ids)
    assert torch.equal(text, data['item'].x_text)
    own = assembly.item_table('own', 'random:16', data, ids, seed=3)
    assert own.shape == (items, 16)
    assert torch.equal(own, assembly.item_table('own', 'random:16', data, ids, seed=3))
    assert not torch.equal(own, assembly.item_table('own', 'random:16', data, ids))


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('features:test', r"'llm.tables.x'.*lack.*nearest is 'text'"),
        ('random:wide', r"'llm.tables.x' needs a width, .*got 'random:wide'"),
        ('random:0', 'needs a width'),
        ('no/run', r"'llm.tables.x' needs the folder of a finished phase-1 run"),
    ],
)
def test_tables_that_are_not_there(data: HeteroData, source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assembly.item_table('x', source, data, ids_of(data))


def test_table_of_other_data_is_refused(data: HeteroData, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / 'graph', ids_of(data, first=1))
    with pytest.raises(ValueError, match='trained on other data'):
        assembly.item_table('graph', folder, data, ids_of(data))


def llm_config(tmp_path: Path, *overrides: str) -> Config:
    return load_config(
        'finetune_best',
        [
            f'data.interactions={tmp_path}/unused',
            f'llm.name={write_llm(tmp_path / "llm")}',
            'llm.tables={graph: random:4, seq: random:6, text: features:text}',
            'train.precision=fp32',
            *overrides,
        ],
    )


def test_loss_and_tables_are_as_configured(data: HeteroData, tmp_path: Path) -> None:
    for candidates, scale in (('all', 'none'), ('unseen', 'rms')):
        config = llm_config(
            tmp_path / scale, f'llm.candidates={candidates}', f'llm.table_scale={scale}'
        )
        model = assembly.build_llm(config, data, ids_of(data))
        assert (model.candidates, model.tables.scale) == (candidates, scale)


@pytest.mark.parametrize('head', ['linear', 'tied', 'frozen_random'])
@pytest.mark.parametrize('scope', get_args(get_type_hints(LLMConfig)['scope']))
def test_language_model_has_the_named_parts(
    data: HeteroData, tmp_path: Path, head: str, scope: str
) -> None:
    targets = 'last' if scope == 'user' else 'all'
    config = llm_config(
        tmp_path,
        f'llm.scope={scope}',
        f'llm.head={head}',
        f'llm.head_channels={16 if head == "tied" else "null"}',
        f'train.targets={targets}',
        'train.max_len=9',
        'llm.token=[seq, text]',
        'llm.projector_layers=1',
        'llm.prefix.num_tokens=3',
        'llm.prefix.rotary=true',
        'llm.train_tables=[seq]',
        'llm.num_layers=1',
    )
    built = assembly.build_llm(config, data, ids_of(data))
    assert built.head.kind == head
    assert built.scope == scope
    assert built.max_len == 9
    assert built.dropout == 0.3
    assert built.projector.mlp.channel_list == [6 + 8, 16]
    assert built.prefix is not None
    assert (built.prefix.num_tokens, built.prefix.gate) == (3, 'tanh')
    assert (built.prefix.num_layers, built.prefix.scope) == (1, scope)
    assert built.prefix.rotary
    trained = [n for n, p in built.tables.named_parameters() if p.requires_grad]
    assert trained == ['weights.seq']
    bare = llm_config(tmp_path, 'llm.prefix=null', 'llm.lora=null')
    assert assembly.build_llm(bare, data, ids_of(data)).prefix is None


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('llm.prefix.rnak=3', "unknown argument 'llm.prefix.rnak' of GraphPrefix"),
        ('llm.prefix.rank=wide', "'llm.prefix.rank' in GraphPrefix needs"),
        ('llm.prefix.scale=max', "'llm.prefix.scale' in GraphPrefix needs to be one"),
        ('llm.prefix.embedding=grahp', "'llm.prefix.embedding'.*got 'grahp'"),
        ('llm.token=[picture]', "got 'picture'"),
        ('llm.scope=user', r"'train.targets' needs to be 'last'.*\(got 'all'\)"),
        ('llm.lora.rnak=3', "'llm.lora' does not fit .*'rnak'"),
        ('llm.projector_layers=0', "'llm.projector_layers' needs to be at least 1"),
        ('llm.num_layers=9', "'llm.num_layers' needs to lie between 1 and 2"),
    ],
)
def test_language_models_that_cannot_be_built(
    data: HeteroData, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        assembly.build_llm(llm_config(tmp_path, override), data, ids_of(data))
