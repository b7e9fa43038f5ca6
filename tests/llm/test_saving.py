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
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel

from hellm_pyg.llm import LLMRecommender, restoring, saving
from hellm_pyg.llm.backbone import load_model
from tests.devices import pretended_cpu
from tests.llm.folders import IDS, METRICS, load, scores, stored, trained
from tests.llm.tiny import NUM_ITEMS, batch_of, recommender, tiny_llm

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
        'from tests.llm.folders import BATCH\n'
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

    llm = tiny_llm()
    llm.name_or_path = 'SmolLM2-135M-Instruct'
    model = recommender(prefix={}, llm=llm)
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
        restoring, 'snapshot_download', lambda name: str(tmp_path / 'hub' / name)
    )
    monkeypatch.chdir(tmp_path)
    again = LLMRecommender.from_pretrained('ann/rec', tiny_llm(), IDS.fingerprint)
    torch.testing.assert_close(scores(again), scores(model), rtol=0, atol=0)


def test_bf16_backbone_round_trip(tmp_path, monkeypatch):
    pretended_cpu(monkeypatch, bf16=True)
    llm = stored(tmp_path / 'backbone', torch.bfloat16)
    model = recommender(prefix={}, llm=llm)
    model.save_pretrained(tmp_path / 'saved')
    again = LLMRecommender.from_pretrained(tmp_path / 'saved')
    assert again.backbone.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in again.parameters() if p.requires_grad)
    torch.testing.assert_close(scores(again), scores(model), rtol=0, atol=0)


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
