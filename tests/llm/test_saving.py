from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel

from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.llm import LLMRecommender, saving
from hellm_pyg.llm.backbone import load_model
from tests.devices import DEVICES, pretended_cpu
from tests.llm.tiny import LORA, NUM_ITEMS, batch_of, recommender, tiny_llm

BATCH = batch_of([1, 2, 3], [4], [])
IDS = IdMap(['ann', 'bob'], list(range(100, 100 + NUM_ITEMS)))
METRICS = {
    'protocol': {'history': 'train+val', 'mask': 'seen'},
    'test': {'R@10': 0.12345678, 'N@10': 0.05},
}
FORMS = [
    {'prefix': {}, 'scope': 'causal'},
    {
        'prefix': {'rank': 2, 'hidden_channels': 5, 'gate': 'tanh', 'dropout': 0.1},
        'scope': 'user',
        'head': 'tied',
        'head_channels': 5,
        'head_dropout': 0.4,
        'train_embeddings': ['seq'],
        'max_len': 3,
        'dropout': 0.2,
        'projector_layers': 1,
        'table_scale': 'rms',
    },
    {'prefix': {'pool': False}, 'scope': 'user', 'head': 'frozen_random'},
    {'lora': None, 'scope': 'causal', 'token_embeddings': ['seq']},
    {'lora': None, 'prefix': {'gate': 'tanh'}, 'train_backbone': True},
]


def stored(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The tiny backbone as read from a folder, as fine-tuning gets it."""
    tiny_llm(dtype=dtype).save_pretrained(folder)
    return load_model(str(folder), dtype=dtype)


def scores(model: LLMRecommender) -> torch.Tensor:
    return model.score(model.encode(), BATCH)


@pytest.mark.parametrize('device', DEVICES)
def test_a_loaded_model_lies_where_its_backbone_does(tmp_path, device):
    model = recommender(llm=stored(tmp_path / 'backbone'), **FORMS[-2]).to(device)
    model.save_pretrained(tmp_path / 'saved')
    llm = load_model(str(tmp_path / 'backbone'), dtype=torch.float32).to(device)
    again = LLMRecommender.from_pretrained(tmp_path / 'saved', llm)
    held = [*again.parameters(), *again.buffers()]
    assert {tensor.device.type for tensor in held} == {device}
    batch = BATCH.to(device)
    found, expected = (m.eval().score(m.encode(), batch) for m in (again, model))
    torch.testing.assert_close(found.cpu(), expected.cpu())


@pytest.mark.parametrize('form', FORMS)
def test_round_trip(tmp_path, form):
    model = recommender(llm=stored(tmp_path / 'backbone'), **form)
    model.save_pretrained(tmp_path / 'saved', IDS, METRICS)
    again = LLMRecommender.from_pretrained(tmp_path / 'saved', None, IDS.fingerprint)
    assert not again.training
    assert again.ids == IDS
    torch.testing.assert_close(scores(again), scores(model), rtol=0, atol=0)
    for name in ('scope', 'max_len', 'dropout', 'token_embeddings', 'prompt'):
        assert getattr(again, name) == getattr(model, name)
    assert again.head.dropout == model.head.dropout
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in again.named_parameters() if p.requires_grad} == trained
    assert str(again.prefix) == str(model.prefix)
    # Saving what was loaded gives the same folder.
    again.save_pretrained(tmp_path / 'again', metrics=METRICS)
    for file in (tmp_path / 'saved').iterdir():
        if file.name != 'README.md':
            other = tmp_path / 'again' / file.name
            assert file.read_bytes() == other.read_bytes(), file.name


@pytest.mark.parametrize(
    'lora',
    [
        {'use_dora': True},
        {'use_rslora': True},
        {'bias': 'all'},
        {'modules_to_save': ['norm']},
        {'trainable_token_indices': [0, 3]},
        {'target_modules': ['q_proj', 'embed_tokens']},
    ],
    ids=lambda lora: next(iter(lora)),
)
@pytest.mark.parametrize('kind', ['llama', 'qwen2'])  # with biases
def test_other_adapters_round_trip(tmp_path, kind, lora):
    tiny_llm(kind).save_pretrained(tmp_path / 'backbone')
    llm = load_model(str(tmp_path / 'backbone'), dtype=torch.float32)
    model = recommender(llm=llm, lora={'r': 2, 'target_modules': ['q_proj'], **lora})
    batch = batch_of([1, 2, 3], [3, 4], target=[4, 5, 6, 7, 8])
    model.train().loss(None, batch).backward()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    model.eval().save_pretrained(tmp_path / 'saved')
    again = LLMRecommender.from_pretrained(tmp_path / 'saved')
    torch.testing.assert_close(scores(again), scores(model), rtol=0, atol=0)


def test_a_fresh_process_gives_identical_scores(tmp_path):
    llm = stored(tmp_path / 'backbone')
    model = recommender(prefix={}, head='tied', llm=llm)
    model.save_pretrained(tmp_path / 'saved')
    code = (
        'import sys, torch\n'
        'from hellm_pyg.llm import LLMRecommender\n'
        'from tests.llm.test_saving import BATCH\n'
        'model = LLMRecommender.from_pretrained(sys.argv[1])\n'
        'torch.save(model.score(model.encode(), BATCH), sys.argv[2])\n'
    )
    subprocess.run(
        [sys.executable, '-c', code, tmp_path / 'saved', tmp_path / 'scores.pt'],
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, 'HF_HUB_OFFLINE': '1'},
    )
    out = torch.load(tmp_path / 'scores.pt')
    torch.testing.assert_close(out, scores(model), rtol=0, atol=0)


def test_plain_peft_reads_the_adapter(tmp_path):
    model = recommender(scope='causal')
    model.save_pretrained(tmp_path / 'saved')
    plain = PeftModel.from_pretrained(tiny_llm(), tmp_path / 'saved').eval()
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(
        plain(ids).last_hidden_state, model.llm(ids).last_hidden_state
    )
    base = tiny_llm()(ids).last_hidden_state
    assert not torch.allclose(plain(ids).last_hidden_state, base)


def test_the_folder(tmp_path):
    @dataclass
    class Config:
        seed: int = 3

    model = recommender(prefix={})
    model.backbone.name_or_path = 'SmolLM2-135M-Instruct'
    model.save_pretrained(tmp_path / 'saved', IDS, METRICS, Config())
    folder = tmp_path / 'saved'
    assert sorted(file.name for file in folder.iterdir()) == [
        'README.md',
        'adapter_config.json',
        'adapter_model.safetensors',
        'hellm.json',
        'hellm.safetensors',
        'ids.json',
    ]
    weights = load_file(folder / 'hellm.safetensors')
    assert {name.split('.')[0] for name in weights} == {
        'head',
        'prefix',
        'projector',
        'tables',
    }
    description = json.loads((folder / 'hellm.json').read_text())
    assert description['config'] == {'seed': 3}
    assert description['metrics'] == METRICS
    assert description['tables'] == {'graph': [NUM_ITEMS, 4], 'seq': [NUM_ITEMS, 6]}
    card = (folder / 'README.md').read_text()
    assert 'SmolLM2-135M-Instruct, de-quantised from Q4_1, first 2 layers' in card
    assert '| test R@10 | 0.1235 |' in card
    assert '| protocol mask | seen |' in card
    assert '3 slots in every layer, pooled from `graph`' in card
    adapter = json.loads((folder / 'adapter_config.json').read_text())
    assert adapter['base_model_name_or_path'] == 'SmolLM2-135M-Instruct'


def test_a_card_without_metrics_says_so(tmp_path):
    recommender(lora=None).save_pretrained(tmp_path / 'saved')
    card = (tmp_path / 'saved' / 'README.md').read_text()
    assert 'None were given when the model was saved.' in card
    assert '| Adapter | none |' in card
    assert '| Graph prefix | none |' in card


@pytest.fixture
def saved(tmp_path):
    recommender(prefix={}).save_pretrained(tmp_path / 'saved', IDS)
    return tmp_path / 'saved'


def load(folder: Path, **kwargs) -> LLMRecommender:
    return LLMRecommender.from_pretrained(folder, tiny_llm(), **kwargs)


@pytest.mark.parametrize('file', ['hellm.safetensors', 'adapter_model.safetensors'])
def test_missing_and_extra_weights_are_refused(saved, file):
    weights = load_file(saved / file)
    name = sorted(weights)[0]
    save_file({**weights, 'more.weight': torch.zeros(1)}, saved / file)
    with pytest.raises(ValueError, match=rf"{file}.*has also 'more.weight'"):
        load(saved)
    save_file({k: v for k, v in weights.items() if k != name}, saved / file)
    with pytest.raises(ValueError, match=rf"{file}.*lacks '{name}'"):
        load(saved)
    save_file({**weights, name: torch.zeros(1)}, saved / file)
    with pytest.raises(ValueError, match=rf"'{name}' needs to be of shape"):
        load(saved)


@pytest.mark.parametrize('file', ['hellm.safetensors', 'adapter_model.safetensors'])
def test_damaged_files_are_refused(saved, file):
    content = bytearray((saved / file).read_bytes())
    content[-3] ^= 1
    (saved / file).write_bytes(content)
    with pytest.raises(ValueError, match=f'{file}.* is damaged'):
        load(saved)
    (saved / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=file):
        load(saved)
    (saved / file).unlink()
    with pytest.raises(ValueError, match=file):
        load(saved)


@pytest.mark.parametrize('content', ['[]', '{"peft_type": "LORA", "r": "x"}'])
def test_a_damaged_adapter_config_is_named(saved, content):
    (saved / 'adapter_config.json').write_text(content)
    with pytest.raises(ValueError, match=r"adapter_config\.json' is damaged"):
        load(saved)


def test_other_item_embeddings_are_refused(saved):
    description = json.loads((saved / 'hellm.json').read_text())
    description['hash']['embeddings'] = '0' * 64
    (saved / 'hellm.json').write_text(json.dumps(description))
    with pytest.raises(ValueError, match='other item embeddings'):
        load(saved)


def test_another_catalogue_is_refused(saved):
    other = IdMap(['ann', 'bob'], list(range(200, 200 + NUM_ITEMS)))
    with pytest.raises(ValueError, match=r"another catalogue.*got 'fingerprint'"):
        load(saved, fingerprint=other.fingerprint)
    assert load(saved, fingerprint=IDS.fingerprint).ids == IDS
    recommender(prefix={}).save_pretrained(saved)
    with pytest.raises(ValueError, match="saved without 'ids'"):
        load(saved, fingerprint=IDS.fingerprint)
    with pytest.raises(ValueError, match=r"'ids' needs .* 20 items"):
        recommender().save_pretrained(saved, IdMap([1], [1]))


def test_an_id_map_that_was_exchanged_is_refused(saved):
    IdMap(['ann', 'bob'], list(range(200, 200 + NUM_ITEMS))).save(saved / 'ids.json')
    with pytest.raises(ValueError, match=r'ids\.json.*another catalogue'):
        load(saved)
    (saved / 'ids.json').unlink()
    with pytest.raises(ValueError, match=r'ids\.json'):
        load(saved)


def test_another_backbone_is_refused(saved):
    with pytest.raises(ValueError, match=r"'llm' is another backbone.*2 layers.*3"):
        LLMRecommender.from_pretrained(saved, tiny_llm(num_layers=3))
    other = tiny_llm()
    torch.nn.init.ones_(other.norm.weight)
    with pytest.raises(ValueError, match="'llm' is another backbone"):
        LLMRecommender.from_pretrained(saved, other)
    with pytest.raises(ValueError, match="'llm' needs to be a backbone without"):
        LLMRecommender.from_pretrained(saved, recommender().llm)


def test_a_backbone_of_a_smaller_vocabulary_is_refused(saved):
    other = tiny_llm()
    other.resize_token_embeddings(8)  # the prompt has token 9
    with pytest.raises(ValueError, match="'llm' is another backbone"):
        LLMRecommender.from_pretrained(saved, other)


def merged_llm() -> PreTrainedModel:
    """The tiny backbone with an adapter in the weights of its feed-forward parts."""
    lora = LoraConfig(**LORA, init_lora_weights=False)
    return get_peft_model(tiny_llm(), lora).merge_and_unload()


@pytest.mark.parametrize('lora', [LORA, None])
def test_a_backbone_that_an_adapter_was_merged_into_is_refused(tmp_path, lora):
    recommender(lora=lora).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'llm' is another backbone"):
        LLMRecommender.from_pretrained(tmp_path, merged_llm())
    assert scores(load(tmp_path)).isfinite().all()


def test_a_backbone_is_told_by_what_it_was_before_its_adapter(tmp_path):
    lora = {'r': 2, 'target_modules': ['q_proj'], 'init_lora_weights': 'pissa'}
    model = recommender(llm=stored(tmp_path / 'backbone'), lora=lora)
    model.save_pretrained(tmp_path / 'saved')
    again = LLMRecommender.from_pretrained(tmp_path / 'saved')
    torch.testing.assert_close(scores(again), scores(model))
    again.save_pretrained(tmp_path / 'again')
    name = 'hellm.json'
    assert (tmp_path / 'again' / name).read_text() == (
        tmp_path / 'saved' / name
    ).read_text()
    given = recommender(llm=get_peft_model(tiny_llm(), LoraConfig(**lora)), lora=None)
    given.save_pretrained(tmp_path / 'given')
    torch.testing.assert_close(scores(load(tmp_path / 'given')), scores(given))


def test_an_adapter_that_was_taken_away_is_not_saved(tmp_path):
    for assign in (True, False):
        model = recommender()
        merged = model.llm.merge_and_unload()
        if assign:
            model.llm = merged
        with pytest.raises(ValueError, match=r"'llm' .* beside 6 layers \(got 0\)"):
            model.save_pretrained(tmp_path / 'saved')
        assert not (tmp_path / 'saved').exists()


def test_a_merged_adapter_is_saved_beside_the_weights_as_they_were(tmp_path):
    model = recommender()
    expected = scores(model)
    model.llm.merge_adapter()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(scores(load(tmp_path)), expected)


def test_another_type_of_the_same_backbone_is_taken(saved):
    model = LLMRecommender.from_pretrained(saved, tiny_llm().bfloat16().float())
    assert model.backbone.dtype == torch.float32


@pytest.mark.parametrize('content', ['{"format": 2}', '[]', '{"for'])
def test_other_formats_are_refused(saved, content):
    (saved / 'hellm.json').write_text(content)
    with pytest.raises(ValueError, match=r'hellm\.json'):
        load(saved)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda all: {'format': 1}, "lacks 'backbone', 'prompt', .*'hash'"),
        (lambda all: {**all, 'tables': 3}, "'tables' needs to be of type dict"),
        (lambda all: {**all, 'hash': {}}, "lacks 'hash.embeddings', 'hash.weights'"),
        (
            lambda all: {**all, 'arguments': {**all['arguments'], 'newer': 1}},
            "arguments of LLMRecommender .*'newer'",
        ),
        (lambda all: {**all, 'prompt': {}}, "arguments of Prompt .*'before'"),
    ],
)
def test_a_description_that_lacks_something_is_named(saved, change, message):
    path = saved / 'hellm.json'
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=rf"hellm\.json' is damaged.*{message}"):
        load(saved)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="'directory' needs to be a folder"):
        load(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match=r'without hellm\.json'):
        load(tmp_path)


def test_a_full_disk_leaves_the_old_folder_whole(saved, monkeypatch):
    before = {file.name: file.read_bytes() for file in saved.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(saving, 'save_tensors', full)
    with pytest.raises(OSError, match='No space left'):
        recommender(prefix={}, head='tied').save_pretrained(saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    assert [entry.name for entry in saved.parent.iterdir()] == ['saved']


class FakeHub:
    """Keeps what was pushed, as the hub would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.private: bool | None = None

    def create_repo(self, repo_id, private=None, exist_ok=False):
        assert exist_ok
        self.private = private
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        assert commit_message
        target = self.root / repo_id
        target.mkdir(parents=True)
        for file in Path(folder_path).iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        return f'https://hub/{repo_id}/commit/1'


def test_push_to_hub_and_back(tmp_path, monkeypatch):
    hub = FakeHub(tmp_path / 'hub')
    model = recommender(prefix={})
    url = model.push_to_hub('ann/rec', api=hub, private=True, ids=IDS, metrics=METRICS)
    assert url == 'https://hub/ann/rec/commit/1'
    assert hub.private is True
    card = (tmp_path / 'hub/ann/rec/README.md').read_text()
    assert "from_pretrained('ann/rec')" in card
    monkeypatch.setattr(
        saving, 'snapshot_download', lambda name: str(tmp_path / 'hub' / name)
    )
    monkeypatch.chdir(tmp_path)
    again = LLMRecommender.from_pretrained('ann/rec', tiny_llm(), IDS.fingerprint)
    torch.testing.assert_close(scores(again), scores(model), rtol=0, atol=0)


def test_a_name_that_the_hub_does_not_know(tmp_path, monkeypatch):
    def unknown(name):
        raise OSError('404')

    monkeypatch.setattr(saving, 'snapshot_download', unknown)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"neither a folder nor on the hub.*'ann/no'"):
        LLMRecommender.from_pretrained('ann/no')


def test_bf16_backbone_round_trip(tmp_path, monkeypatch):
    pretended_cpu(monkeypatch, bf16=True)
    llm = stored(tmp_path / 'backbone', torch.bfloat16)
    model = recommender(prefix={}, llm=llm)
    model.save_pretrained(tmp_path / 'saved')
    again = LLMRecommender.from_pretrained(tmp_path / 'saved')
    assert again.backbone.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in again.parameters() if p.requires_grad)
    torch.testing.assert_close(scores(again), scores(model), rtol=0, atol=0)


def test_bf16_is_read_in_fp32_where_it_is_emulated(tmp_path, monkeypatch):
    model = recommender(prefix={}, llm=stored(tmp_path / 'backbone', torch.bfloat16))
    model.save_pretrained(tmp_path / 'saved')
    pretended_cpu(monkeypatch, bf16=False)
    again = LLMRecommender.from_pretrained(tmp_path / 'saved')
    assert again.dtype == again.backbone.dtype == torch.float32
    for one, other in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other.float())
    torch.testing.assert_close(scores(again), scores(model), rtol=0.05, atol=0.05)
    whole = trained(tmp_path / 'other', torch.bfloat16)
    whole.save_pretrained(tmp_path / 'whole')
    assert LLMRecommender.from_pretrained(tmp_path / 'whole').dtype == torch.float32


def trained(folder: Path, dtype: torch.dtype = torch.float32) -> LLMRecommender:
    """A recommender whose backbone is another one than it started from."""
    llm = stored(folder, dtype)
    model = recommender(prefix={}, lora=None, train_backbone=True, llm=llm)
    for parameter in model.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_trained_backbone_is_part_of_the_folder(tmp_path, dtype, monkeypatch):
    pretended_cpu(monkeypatch, bf16=True)
    model = trained(tmp_path / 'backbone', dtype)
    model.save_pretrained(tmp_path / 'saved', IDS)
    again = LLMRecommender.from_pretrained(tmp_path / 'saved')
    assert again.dtype == dtype
    assert {p.dtype for p in again.backbone.parameters()} == {torch.float32}
    for one, other in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.requires_grad == other.requires_grad
    torch.testing.assert_close(scores(again), scores(model), rtol=0, atol=0)
    again.save_pretrained(tmp_path / 'again')
    for file in (tmp_path / 'saved').iterdir():
        if file.name != 'README.md':
            other = tmp_path / 'again' / file.name
            assert file.read_bytes() == other.read_bytes(), file.name
    plain = AutoModel.from_pretrained(tmp_path / 'saved', dtype=torch.float32)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = model.backbone(ids).last_hidden_state
        torch.testing.assert_close(plain(ids).last_hidden_state, expected)
    card = (tmp_path / 'saved' / 'README.md').read_text()
    assert f'{str(dtype).removeprefix("torch.")}, trained |' in card
    assert 'is loaded by its name' not in card


def test_a_trained_backbone_takes_no_other(tmp_path):
    folder = tmp_path / 'saved'
    trained(tmp_path / 'backbone').save_pretrained(folder)
    with pytest.raises(
        ValueError, match=r"'llm' needs to be None.* backbone of its own"
    ):
        load(folder)


def test_a_damaged_backbone_is_refused(tmp_path):
    folder = tmp_path / 'saved'
    trained(tmp_path / 'backbone').save_pretrained(folder)
    path = folder / 'model.safetensors'
    weights = load_file(path)
    save_file({**weights, 'more': torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"model.safetensors.*has also 'more'"):
        LLMRecommender.from_pretrained(folder)
    save_file({**weights, 'norm.weight': torch.zeros(16)}, path)
    with pytest.raises(ValueError, match=r'model.safetensors.* is damaged'):
        LLMRecommender.from_pretrained(folder)
    for name in ('model.safetensors', 'config.json'):
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f'lacks the file {name}'):
            LLMRecommender.from_pretrained(folder)
        save_file(weights, path)


def test_folders_of_versions_that_trained_no_backbone(saved):
    path = saved / 'hellm.json'
    description = json.loads(path.read_text())
    del description['arguments']['train_backbone'], description['hash']['backbone']
    del description['backbone']['weights']
    path.write_text(json.dumps(description))
    assert not load(saved).train_backbone
