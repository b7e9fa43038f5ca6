from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from torch_geometric.data import HeteroData

from hellm_pyg import assembly, checkpoint
from hellm_pyg.assembly.neighbors import item_neighbors
from hellm_pyg.config import Config, LLMConfig, load_config
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.evaluation import evaluate
from hellm_pyg.llm.prefix import GraphPrefix
from hellm_pyg.memory import estimate_run
from tests.devices import pretended_cpu
from tests.shop import write_llm

WITH_PREFIX = [f'finetune_{profile}' for profile in ('released', 'paper', 'best')]


def ids_of(data: HeteroData, first: int = 0) -> IdMap:
    users, items = data['user'].num_nodes, data['item'].num_nodes
    return IdMap(list(range(first, first + users)), list(range(items)))


def run_folder(folder: Path, ids: IdMap, width: int = 4) -> str:
    table = torch.arange(ids.num_items * width).float().view(-1, width)
    checkpoint.save_tensors(folder / 'embeddings.safetensors', {'item': table})
    ids.save(folder / 'ids.json')
    return str(folder)


@pytest.mark.parametrize('name', WITH_PREFIX)
def test_recipes_name_every_argument_of_the_prefix(name: str) -> None:
    llm = load_config(name).llm
    assert llm is not None
    assert llm.prefix is not None
    given = {'channels', 'hidden_size', 'num_layers', 'scope', 'return'}
    hints = set(get_type_hints(GraphPrefix.__init__)) - given
    assert set(llm.prefix) == {'embedding', *hints}


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


@pytest.mark.parametrize('damage', ['cut', 'without', 'vector'])
def test_a_table_that_is_damaged(data: HeteroData, tmp_path: Path, damage: str) -> None:
    folder = run_folder(tmp_path / 'graph', ids_of(data))
    path = Path(folder) / 'embeddings.safetensors'
    match damage:
        case 'cut':
            path.write_bytes(path.read_bytes()[:-10])
        case 'without':
            checkpoint.save_tensors(path, {'user': torch.zeros(3, 4)})
        case _:
            checkpoint.save_tensors(path, {'item': torch.zeros(3)})
    with pytest.raises(ValueError, match=r"'llm.tables.x' needs .* a matrix 'item'"):
        assembly.item_table('x', folder, data, ids_of(data))


def test_a_table_of_data_without_features() -> None:
    with pytest.raises(ValueError, match='there are none: leave it out'):
        assembly.table_width('features:text', {})


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
            'llm.num_layers=null',
            'llm.tables={graph: random:4, seq: random:6, text: features:text}',
            'train.precision=fp32',
            *overrides,
        ],
    )


def test_loss_and_tables_are_as_configured(data: HeteroData, tmp_path: Path) -> None:
    for candidates, scale in (('all', 'none'), ('unseen', 'rms')):
        config = llm_config(
            tmp_path / scale,
            f'llm.candidates={candidates}',
            f'llm.table_scale={scale}',
            'llm.smoothing=null',
        )
        model = assembly.build_llm(config, data, ids_of(data))
        assert (model.candidates, model.tables.scale) == (candidates, scale)


def test_neighbors_of_the_named_table(data: HeteroData, tmp_path: Path) -> None:
    smoothing = 'llm.smoothing={embedding: seq, k: 4, weight: 0.3}'
    config = llm_config(tmp_path, smoothing)
    model = assembly.build_llm(config, data, ids_of(data))
    assert model.smoothing is not None
    assert model.smoothing.weight == 0.3
    seq = assembly.item_table('seq', 'random:6', data, ids_of(data), config.train.seed)
    text = item_neighbors('text', data['item'].x_text, 4)
    own = item_neighbors('seq', seq, 4)
    assert torch.equal(model.smoothing.neighbor, torch.cat([text, own], dim=1))
    for override, expected in (
        ('llm.smoothing.modalities=false', own),
        ('llm.smoothing.embedding=null', text),
    ):
        config = llm_config(tmp_path / 'one', smoothing, override)
        one = assembly.build_llm(config, data, ids_of(data)).smoothing
        assert one is not None
        assert torch.equal(one.neighbor, expected)
    off = llm_config(tmp_path / 'off', 'llm.smoothing=null')
    assert assembly.build_llm(off, data, ids_of(data)).smoothing is None


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


def test_a_table_that_nothing_reads_is_named(
    data: HeteroData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for overrides, unread in (
        (['llm.token=[seq, text]'], None),  # the prefix reads the graph's
        (['llm.token=[seq, text]', 'llm.prefix.pool=false'], "['graph']"),
        (['llm.token=[seq]', 'llm.prefix=null'], "['graph', 'text']"),
        (['llm.token=[graph]', 'llm.prefix.embedding=text'], "['seq']"),
        (['llm.token=[graph, seq]', 'llm.smoothing={embedding: text}'], None),
    ):
        caplog.clear()
        config = llm_config(
            tmp_path, 'llm.smoothing=null', *overrides, 'llm.train_tables=[]'
        )
        assembly.build_llm(config, data, ids_of(data))
        said = [r.message for r in caplog.records if 'llm.tables' in r.message]
        assert [unread in message for message in said] == [True] * (unread is not None)


def test_smoothing_along_noise_is_noted(
    data: HeteroData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for embedding, noted in (('graph', True), ('text', False), (None, False)):
        caplog.clear()
        smoothing = f'llm.smoothing={{embedding: {embedding or "null"}}}'
        config = llm_config(tmp_path, smoothing)
        assembly.build_llm(config, data, ids_of(data))
        assert any('near items are not alike' in r.message for r in caplog.records) == (
            noted
        )


def test_a_static_prefix_reads_no_table(data: HeteroData, tmp_path: Path) -> None:
    config = llm_config(
        tmp_path,
        'llm.tables={seq: random:6}',
        'llm.token=[seq]',
        'llm.train_tables=[]',
        'llm.smoothing=null',
        'llm.prefix={pool: false}',
    )
    built = assembly.build_llm(config, data, ids_of(data))
    assert built.prefix is not None
    assert not built.prefix.pool
    assert list(built.tables.channels) == ['seq']


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('llm.prefix.rnak=3', "unknown argument 'llm.prefix.rnak' of GraphPrefix"),
        ('llm.prefix.rank=wide', "'llm.prefix.rank' in GraphPrefix needs"),
        ('llm.prefix.scale=max', "'llm.prefix.scale' in GraphPrefix needs to be one"),
        ('llm.prefix.embedding=grahp', "'llm.prefix.embedding'.*got 'grahp'"),
        ('llm.smoothing={embedding: grahp}', "'llm.smoothing.embedding'.*got 'grahp'"),
        (
            'llm.smoothing={embedding: null, modalities: false}',
            "'llm.smoothing' needs neighbours .*set llm.smoothing=null",
        ),
        ('llm.token=[picture]', "got 'picture'"),
        ('llm.scope=user', r"'train.targets' needs to be 'last'.*\(got 'all'\)"),
        ('llm.candidates=unseen', "'smoothing' gives weight .*set llm.smoothing=null"),
        ('llm.lora.rnak=3', "'llm.lora' does not fit .*'rnak'"),
        ('llm.lora.lora_dropout=1.5', "'llm.lora' does not fit .*between 0 and 1"),
        ('llm.lora.target_modules=[nowhere]', "'llm.lora' does not fit .*nowhere"),
        ('llm.projector_layers=0', "'llm.projector_layers' needs to be at least 1"),
        ('llm.num_layers=9', "'llm.num_layers' needs to lie between 1 and 2"),
    ],
)
def test_language_models_that_cannot_be_built(
    data: HeteroData, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        assembly.build_llm(llm_config(tmp_path, override), data, ids_of(data))


@pytest.mark.parametrize(
    ('precision', 'dtype'),
    [('fp32', torch.float32), ('bf16', torch.bfloat16), ('auto', torch.bfloat16)],
)
def test_what_of_the_backbone_is_trained(
    data: HeteroData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    dtype: torch.dtype,
) -> None:
    pretended_cpu(monkeypatch, bf16=precision == 'auto')
    built = {}
    for name, overrides in {
        'lora': [],
        'frozen': ['llm.lora=null'],
        'trained': ['llm.lora=null', 'llm.weights=trained'],
        'random': ['llm.lora=null', 'llm.weights=random'],
        'again': ['llm.lora=null', 'llm.weights=random'],
        'other': ['llm.lora=null', 'llm.weights=random', 'train.seed=7'],
    }.items():
        own = [f'train.precision={precision}', *overrides]
        config = llm_config(tmp_path, *own)
        built[name] = assembly.build_llm(config, data, ids_of(data))
    assert {model.dtype for model in built.values()} == {dtype}
    for name, model in built.items():
        whole = name not in ('lora', 'frozen')
        own = {p.requires_grad for p in model.backbone.parameters()}
        assert own == ({True, False} if name == 'lora' else {whole})
        assert model.backbone.dtype == (torch.float32 if whole else dtype)
    weight = {
        name: model.backbone.get_parameter('layers.1.mlp.up_proj.weight').float()
        for name, model in built.items()
        if name != 'lora'
    }
    assert torch.equal(weight['frozen'], weight['trained'])
    assert torch.equal(weight['random'], weight['again'])
    assert not torch.equal(weight['random'], weight['trained'])
    assert not torch.equal(weight['random'], weight['other'])


def test_a_small_transformer_without_text(data: HeteroData, tmp_path: Path) -> None:
    config = llm_config(
        tmp_path,
        'llm.lora=null',
        'llm.weights=random',
        'llm.shape={hidden_size: 24, intermediate_size: 40, num_attention_heads: 3}',
        'llm.shape.vocab_size=1',
        'llm.num_layers=1',
        "llm.instruction=''",
    )
    model = assembly.build_llm(config, data, ids_of(data))
    assert model.prompt.before == (0,)
    assert model.prefix is not None
    assert (model.prefix.hidden_size, model.prefix.num_layers) == (24, 1)
    loader = assembly.build_loader(config, data, model)
    loss = model.loss(data, next(iter(loader)))
    loss.backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
    found = evaluate(model, data, 'val', max_len=8)
    assert 0 <= found.metrics['N@10'] <= 1


CONTRADICTIONS = [
    ('llm.weights=trained', r"'llm.lora' .*llm.weights=trained.*set llm.lora=null, or"),
    ('llm.weights=random', r"'llm.lora' .*llm.weights=random.*or llm.weights=frozen"),
    ('llm.shape={hidden_size: 8}', r"'llm.shape' .*set llm.weights=random, or"),
    (
        'llm.weights=trained llm.lora=null llm.load_in_4bit=true',
        r"'llm.load_in_4bit' .*set llm.load_in_4bit=false, or llm.weights=frozen",
    ),
    (
        'llm.weights=random llm.lora=null llm.shape.hidden_size=8',
        r"'llm.shape' needs hidden_size, .*\(got hidden_size\)",
    ),
]


@pytest.mark.parametrize(('overrides', 'message'), CONTRADICTIONS)
def test_settings_of_the_backbone_that_contradict(
    data: HeteroData, tmp_path: Path, overrides: str, message: str
) -> None:
    config = llm_config(tmp_path, *re.split(r' (?=llm\.)', overrides))
    with pytest.raises(ValueError, match=f'^{message}'):
        assembly.build_llm(config, data, ids_of(data))
    with pytest.raises(ValueError, match=f'^{message}'):
        estimate_run(config, 10, 10)


def test_text_without_embeddings(data: HeteroData, tmp_path: Path) -> None:
    config = llm_config(
        tmp_path,
        'llm.lora=null',
        'llm.weights=random',
        'llm.shape={hidden_size: 8, intermediate_size: 8, num_attention_heads: 2}',
        'llm.shape.vocab_size=1',
    )
    with pytest.raises(ValueError, match=r"^'llm.instruction' .*'vocab_size', 1 "):
        assembly.build_llm(config, data, ids_of(data))
