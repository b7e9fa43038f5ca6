from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, LlamaConfig

from hellm_pyg.activations import ranking_bytes
from hellm_pyg.assembly import build_data, build_llm, build_loader, build_model
from hellm_pyg.backbone_shape import backbone_shape
from hellm_pyg.config import load_config, load_run_config, save_config
from hellm_pyg.llm import backbone
from hellm_pyg.llm.prefix_attention import NAME
from hellm_pyg.memory import estimate_run
from tests.shop import write_llm, write_shop


def test_released_profile_trains_what_the_logs_say() -> None:
    whole = ['train.activation_checkpointing=false']
    config = load_config('finetune_released', whole)
    rows = estimate_run(config, users=22363, items=12101)
    trained = 110_272_512
    assert rows['gradients'] == 4 * trained
    assert rows['Adam moments'] == 8 * trained
    assert rows['LoRA'] == 4 * 23_199_744
    assert rows['projector'] == 4 * 17_309_696
    assert rows['item head'] == 4 * 12101 * 4096
    assert rows['backbone'] == 2 * 6_607_343_616
    # The article's claim: a batch of 7 fits into 24 GB.
    assert sum(rows.values()) < 24 * 2**30
    assert rows['validation beyond these (at most)'] == 0
    recomputed = estimate_run(load_config('finetune_released'), 22363, 12101)
    assert sum(recomputed.values()) < 20 * 2**30
    config = load_config('finetune_released', [*whole, 'eval.batch_size=512'])
    assert estimate_run(config, 22363, 12101)['validation beyond these (at most)'] > 0


def test_four_bits_shrink_the_linear_maps_alone() -> None:
    full, small = (
        estimate_run(
            load_config('finetune_released', [f'llm.load_in_4bit={flag}']), 100, 100
        )
        for flag in ('false', 'true')
    )
    assert small['backbone'] == pytest.approx(3.6 * 2**30, rel=0.1)
    unpacked = 2 * 2 * 4096 * 11008  # the largest of them, in bf16, twice
    assert small['activations (at most)'] == full['activations (at most)'] + unpacked
    rest = set(full) - {'backbone', *(key for key in full if 'at most' in key)}
    assert {key: full[key] for key in rest} == {key: small[key] for key in rest}


LLAMA2_7B = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
)
LLAMA32_1B = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    tie_word_embeddings=True,
    max_position_embeddings=131072,
    rope_parameters={
        'rope_type': 'llama3',
        'rope_theta': 500000.0,
        'factor': 32.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 8192,
    },
)
RECIPES_FOR_24_GB = [
    ('finetune_llama2_7b', LLAMA2_7B, 6_607_343_616),
    ('finetune_llama32_1b', LLAMA32_1B, 1_235_814_400),
]


def stored_bytes(llm: nn.Module, four_bits: bool) -> float:
    """Bytes of a backbone whose linear maps are held in 4 bits, or none."""
    total = 0.0
    for module in llm.modules():
        for name, weight in module.named_parameters(recurse=False):
            if 'lora' in name or weight.requires_grad:
                continue
            size = float(weight.element_size())
            if four_bits and isinstance(module, nn.Linear):
                # Half a byte; a byte for each 64 weights; fp32 for 256 of those.
                size = 1 / 2 + 1 / 64 + 4 / (64 * 256)
            total += weight.numel() * size
    return total


@pytest.mark.parametrize(('recipe', 'public', 'number'), RECIPES_FOR_24_GB)
def test_recipes_for_one_device_of_24_gb(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    public: LlamaConfig,
    number: int,
) -> None:
    def offline(*args: Any) -> None:
        raise OSError('no route')

    def on_meta(*args: Any) -> tuple[Any, Any]:
        with torch.device('meta'):
            llm = AutoModel.from_config(
                public, attn_implementation=NAME, dtype=torch.bfloat16
            )
        return llm, AutoTokenizer.from_pretrained(write_llm(tmp_path / 'tokenizer'))

    monkeypatch.setattr('huggingface_hub.hf_hub_download', offline)
    monkeypatch.setattr(backbone, 'load_backbone', on_meta)
    tables = '{graph: random:64, seq: random:64}'
    shop = [*write_shop(tmp_path), f'llm.tables={tables}']
    config = load_config(recipe, [one for one in shop if 'train.' not in one])
    data, ids = build_data(config.data)
    model = build_llm(config, data, ids)
    rows = estimate_run(config)

    assert config.llm is not None
    frozen = [p for n, p in model.llm.named_parameters() if 'lora' not in n]
    assert sum(p.numel() for p in frozen) == number
    expected = stored_bytes(model.llm, config.llm.load_in_4bit)
    assert rows['backbone'] == pytest.approx(expected, rel=0.001)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    number = sum(p.numel() for p in trained)
    assert rows['gradients'] == 4 * number
    assert rows['Adam moments'] == 8 * number
    parts = ('LoRA', 'prefix', 'projector', 'item head', 'item tables')
    held = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in frozen)
    factors = len(model.tables.factors)  # a number a table
    assert sum(rows[part] for part in parts) == 4 * (held - factors)

    # A catalogue of Amazon's size; a device has less to give than its name says.
    for users, items in ((22363, 12101), (35598, 18357), (200_000, 100_000)):
        assert sum(estimate_run(config, users, items).values()) < 20e9


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('head', ['linear', 'tied', 'frozen_random'])
@pytest.mark.parametrize('projector_layers', [1, 2])
def test_weights_of_phase_two_are_exact(
    tmp_path: Path, precision: str, head: str, projector_layers: int
) -> None:
    llm = write_llm(tmp_path / 'llm')
    config = load_config(
        'finetune_best',
        [
            *write_shop(tmp_path),
            f'llm.name={llm}',
            'llm.num_layers=null',
            'llm.tables={graph: random:6, text: features:text}',
            'llm.token=[text, graph]',
            'llm.train_tables=[graph]',
            f'llm.head={head}',
            f'llm.head_channels={16 if head == "tied" else "null"}',
            f'llm.projector_layers={projector_layers}',
            f'train.precision={precision}',
        ],
    )
    data, ids = build_data(config.data)
    model = build_llm(config, data, ids)
    rows = estimate_run(config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert rows['gradients'] == 4 * trained
    backbone = [p for n, p in model.llm.named_parameters() if 'lora' not in n]
    assert rows['backbone'] == sum(p.numel() * p.element_size() for p in backbone)
    codes = [*model.head.parameters(), *model.head.buffers()]
    assert rows['item head'] == sum(p.numel() * p.element_size() for p in codes)


def test_a_static_prefix_reads_no_table(tmp_path: Path) -> None:
    overrides = [
        *write_shop(tmp_path),
        f'llm.name={write_llm(tmp_path / "llm")}',
        'llm.num_layers=null',
        'llm.tables={text: features:text}',
        'llm.token=[text]',
        'llm.train_tables=[]',
        'llm.smoothing=null',
        'llm.prefix={pool: false}',
    ]
    config = load_config('finetune_best', overrides)
    model = build_llm(config, *build_data(config.data))
    assert model.prefix is not None
    number = sum(p.numel() for p in model.prefix.parameters())
    assert estimate_run(config)['prefix'] == 4 * number


@pytest.mark.parametrize('recipe', ['pretrain_paper', 'sasrec', 'lightgcn'])
def test_weights_of_phase_one_are_exact(tmp_path: Path, recipe: str) -> None:
    config = load_config(recipe, write_shop(tmp_path))
    data, _ = build_data(config.data)
    trained = sum(p.numel() for p in build_model(config, data).parameters())
    assert estimate_run(config)['parameters'] == 4 * trained


def test_unread_data_say_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'runs/beauty/sasrec').mkdir(parents=True)  # has just begun
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('HELLM_DATA', raising=False)
    config = load_config('finetune_best')
    for sizes in ((None, None), (100, None)):
        with pytest.raises(
            ValueError, match=r'export HELLM_DATA=.* --users \d+ --items \d+'
        ):
            estimate_run(config, *sizes)
    assert estimate_run(config, 100, 50)['LoRA'] > 0


def test_a_size_that_is_given_alone_stands_in_for_the_data(tmp_path: Path) -> None:
    config = load_config('lightgcn', write_shop(tmp_path))
    data, _ = build_data(config.data)
    users, items = int(data['user'].num_nodes), int(data['item'].num_nodes)
    rows = estimate_run(config)
    assert rows['parameters'] == 4 * 64 * (users + items)
    more = estimate_run(config, items=10 * items)
    assert more['parameters'] == 4 * 64 * (users + 10 * items)
    assert more['scores of a validation batch'] == 8 * 512 * 10 * items
    more = estimate_run(config, users=3 * users)
    assert more['parameters'] == 4 * 64 * (3 * users + items)
    # As many interactions a user as the data have.
    near = 7 * 8 * items * config.data.knn
    assert more['graphs'] - near == 3 * (rows['graphs'] - near)


class Kept:
    """Bytes that an autograd graph keeps beside leaves, each tensor once."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_leaf and tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor


@pytest.mark.parametrize(
    ('name', 'own'),
    [
        ('LightGCN', ['train.num_neg=20', 'train.batch_size=60']),
        ('HeLLMPre', ['train.num_neg=20', 'train.batch_size=60']),
        ('VBPR', ['train.num_neg=20', 'train.batch_size=60']),
        ('GRCN', ['train.num_neg=20', 'train.batch_size=60']),
        ('FREEDOM', ['train.num_neg=20', 'train.batch_size=60']),
        ('SLMRec', ['train.batch_size=100', 'model.embedding_dim=4']),
    ],
)
def test_what_a_batch_holds_is_counted(
    tmp_path: Path, name: str, own: list[str]
) -> None:
    own = [f'model.name={name}', 'train.sampling=interaction', *own]
    config = load_config('lightgcn', [*write_shop(tmp_path), *own])
    data, _ = build_data(config.data)
    model: Any = build_model(config, data)
    model.on_epoch_start(data)
    batch = next(iter(build_loader(config, data, model)))
    kept = Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda x: x):
        model.loss(data, batch)
    held = sum(kept.sizes.values())
    assert 0 < held < estimate_run(config)['activations (at most)'] < 10 * held


def test_layers_that_a_recipe_leaves_out_are_counted(tmp_path: Path) -> None:
    shop = write_shop(tmp_path)
    for name, layers in (('LightGCN', 3), ('GRU4Rec', 1)):
        own = [
            f'model={{name: {name}}}',
            f'model={{name: {name}, num_layers: {layers}}}',
        ]
        plain, explicit = (
            estimate_run(load_config('sasrec', [*shop, model])) for model in own
        )
        assert plain == explicit


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('llm.tables={text: "features:text"}', r"'llm.token' .*\['text'\].*'graph'"),
        ('llm.token=[picture]', "'llm.token' .*got 'picture'"),
        ('llm.train_tables=[picture]', "'llm.train_tables' .*got 'picture'"),
        ('llm.prefix.embedding=picture', "'llm.prefix.embedding' .*got 'picture'"),
        ('llm.projector_layers=0', r"^'llm.projector_layers' .*\(got 0\)"),
        ('llm.head_channels=0', r"^'llm.head_channels' .*\(got 0\)"),
        ('llm.prefix.num_tokens=0', r"^'llm.prefix.num_tokens' .*\(got 0\)"),
        ('llm.num_layers=0', r"^'llm.num_layers' .*\(got 0\)"),
        ('llm.prefix.rnak=3', "'llm.prefix.rnak' of GraphPrefix"),
        ('llm.lora.r=abc', r"'llm.lora.r' .* an integer \(got 'abc'\)"),
        ('llm.lora.r=null', r"'llm.lora.r' .* an integer \(got None\)"),
        ('llm.lora.r=[4]', r"'llm.lora.r' .* an integer \(got \[4\]\)"),
        ('llm.lora.r=0', r"'llm.lora.r' .* at least 1 \(got 0\)"),
        ('llm.lora.target_modules=3', r"'llm.lora.target_modules' .*\(got 3\)"),
        ('llm.lora.target_modules="("', r"'llm.lora.target_modules' .*\(got '\('\)"),
    ],
)
def test_parts_that_do_not_fit(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_run(load_config('finetune_best', [override]), 100, 50)


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize(
    'overrides',
    [
        ['llm.weights=frozen'],
        ['llm.weights=trained', 'llm.num_layers=1'],
        ['llm.weights=random'],
        [
            'llm.weights=random',
            'llm.shape={hidden_size: 24, intermediate_size: 40}',
            'llm.shape.num_attention_heads=3',
            'llm.shape.vocab_size=7',
        ],
    ],
)
def test_a_backbone_that_is_trained_is_counted_as_such(
    tmp_path: Path, overrides: list[str], precision: str
) -> None:
    config = load_config(
        'finetune_best',
        [
            *write_shop(tmp_path),
            f'llm.name={write_llm(tmp_path / "llm")}',
            'llm.num_layers=null',
            'llm.tables={graph: random:6, seq: random:4, text: features:text}',
            'llm.lora=null',
            f'train.precision={precision}',
            *overrides,
        ],
    )
    data, ids = build_data(config.data)
    model = build_llm(config, data, ids)
    rows = estimate_run(config)
    backbone = list(model.backbone.parameters())
    assert rows['backbone'] == sum(p.numel() * p.element_size() for p in backbone)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert rows['gradients'] == sum(p.numel() * p.element_size() for p in trained)
    assert rows['Adam moments'] == 2 * rows['gradients']
    assert rows['LoRA'] == 0


def test_teachers_are_held_beside_a_training(tmp_path: Path) -> None:
    shop = write_shop(tmp_path)
    for name, recipe in (('seq', 'sasrec'), ('gru', 'gru4rec')):
        save_config(load_config(recipe, shop), tmp_path / name / 'config.yaml')

    def rows(*names: str) -> dict[str, int]:
        folders = ', '.join(f'{name}: {tmp_path / name}' for name in names)
        runs = f'train.distill.runs={{{folders}}}'
        config = load_config('sasrec', [*shop, *([runs] if names else [])])
        return estimate_run(config, users=100, items=50)

    plain, taught, both = rows(), rows('seq'), rows('seq', 'gru')
    assert 'teachers' not in plain
    assert plain.items() < taught.items()
    assert taught['teachers'] == plain['parameters'] + 4 * 64 * 50
    assert both['teachers'] > taught['teachers'] + 4 * 64 * 50  # and what it encodes
    items = 8 * 8  # of a batch of rows as long as they may be
    states = 4 * items * (64 * (24 * 1 + 6) + 3 * 1 * 2 * 8)
    found = taught['what they tell of a batch (at most)']
    assert found == 6 * 4 * items * 50 + states
    to_come = rows('to_come')
    assert to_come['teachers'] == 0
    assert to_come['teachers still to come, if as a SASRec'] == 4 * 64 * 50
    save_config(load_config('ensemble'), tmp_path / 'all' / 'config.yaml')
    with pytest.raises(ValueError, match=r"'train.distill.runs.all' needs .* no ens"):
        rows('all')


def test_an_ensemble_holds_ranks_and_encoded_catalogues(tmp_path: Path) -> None:
    members = {'seq': 'sasrec', 'graph': 'lightgcn', 'hellm': 'finetune_best'}
    llm = [f'llm.name={write_llm(tmp_path / "llm")}', 'llm.num_layers=null']
    llm += ['llm.tables.seq=random:4']
    for name, recipe in members.items():
        own = [*llm, 'llm.tables.graph=random:4'] if name == 'hellm' else []
        config = load_config(recipe, [*write_shop(tmp_path), *own])
        save_config(config, tmp_path / name / 'config.yaml')
    folders = [f'ensemble.members.{name}={tmp_path / name}' for name in members]
    more = ['ensemble.grid=[0, 0.5, 1]', 'eval.batch_size=7', *folders]
    config = load_config('ensemble', ['ensemble.members={}', *more])
    rows = estimate_run(config, users=100, items=50)
    assert rows['ranks of all combinations'] == 2 * 4 * 100 * (3**2 + 3)
    assert rows['scores of a validation batch'] == 4 * 7 * 50 * (2 * 3 + 9)
    widths = {'seq': 64 * 50, 'graph': 64 * 150 * 2, 'hellm': 2 * 16 * 50}
    assert rows['encoded catalogues (at most)'] == 4 * sum(widths.values())
    own = load_run_config(tmp_path / 'hellm' / 'config.yaml')
    assert own.llm is not None
    shape = backbone_shape(own.llm.name, own.llm.num_layers)
    most = ranking_bytes(7, 50, own.train, own.llm, shape)
    assert rows['activations of a language model (at most)'] == most
