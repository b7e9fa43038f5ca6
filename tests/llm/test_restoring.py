from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.llm import LLMRecommender, restoring
from hellm_pyg.llm.backbone import load_model
from tests.devices import DEVICES, pretended_cpu
from tests.llm.folders import BATCH, IDS, load, scores, stored, trained
from tests.llm.tiny import NUM_ITEMS, recommender


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


def test_a_name_that_the_hub_does_not_know(tmp_path, monkeypatch):
    def unknown(name):
        raise OSError('404')

    monkeypatch.setattr(restoring, 'snapshot_download', unknown)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"neither a folder nor on the hub.*'ann/no'"):
        LLMRecommender.from_pretrained('ann/no')


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


@pytest.mark.parametrize('device', DEVICES)
def test_a_loaded_model_lies_where_its_backbone_does(tmp_path, device):
    model = recommender(
        llm=stored(tmp_path / 'backbone'), lora=None, token_embeddings=['seq']
    ).to(device)
    model.save_pretrained(tmp_path / 'saved')
    llm = load_model(str(tmp_path / 'backbone'), dtype=torch.float32).to(device)
    again = LLMRecommender.from_pretrained(tmp_path / 'saved', llm)
    held = [*again.parameters(), *again.buffers()]
    assert {tensor.device.type for tensor in held} == {device}
    batch = BATCH.to(device)
    found, expected = (m.eval().score(m.encode(), batch) for m in (again, model))
    torch.testing.assert_close(found.cpu(), expected.cpu())


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
