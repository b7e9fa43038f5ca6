from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from hellm_pyg.llm import LLMRecommender
from tests.llm.folders import load, scores, stored
from tests.llm.tiny import LORA, recommender, tiny_llm


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


def test_another_type_of_the_same_backbone_is_taken(saved):
    model = LLMRecommender.from_pretrained(saved, tiny_llm().bfloat16().float())
    assert model.backbone.dtype == torch.float32


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
