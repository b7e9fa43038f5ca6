from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModel,
    BertConfig,
    CLIPConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GlmConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MiniMaxConfig,
    MixtralConfig,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedModel,
    StableLmConfig,
)

from hellm_pyg.llm import LLMRecommender, Prompt
from tests.llm.tiny import LORA, batch_of, recommender, tables, tiny_config, tiny_llm

SIZES = {
    'vocab_size': 32,
    'hidden_size': 16,
    'intermediate_size': 24,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
}


def build(cls: type[PretrainedConfig], **more: object) -> PreTrainedModel:
    return AutoModel.from_config(cls(**SIZES, **more))


def test_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"without its head .* give its 'model'"):
        recommender(llm=LlamaForCausalLM(tiny_config()))


def test_several_modalities_are_refused() -> None:
    size = {'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 1}
    size |= {'num_attention_heads': 2}
    config = CLIPConfig(text_config=size, vision_config={**size, 'image_size': 32})
    with pytest.raises(ValueError, match='CLIPModel, whose configuration has no'):
        recommender(llm=AutoModel.from_config(config))


def test_attention_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match=r'AttentionInterface \(got StableLmModel\)'):
        recommender(llm=build(StableLmConfig))


def test_capped_logits_are_refused() -> None:
    with pytest.raises(ValueError, match=r'Gemma2Model with attn_logit_softcapping=50'):
        recommender(llm=build(Gemma2Config, head_dim=4))
    llm = build(Gemma2Config, head_dim=4, attn_logit_softcapping=None)
    assert recommender(llm=llm)(batch_of([1, 2])).isfinite().all()


@pytest.mark.parametrize(
    ('cls', 'more'),
    [
        (LlamaConfig, {'is_causal': False}),
        (Gemma3TextConfig, {'head_dim': 4, 'use_bidirectional_attention': True}),
        (BertConfig, {}),
        (ModernBertConfig, {'pad_token_id': 0}),
    ],
)
def test_what_sees_the_future_has_no_causal_scope(
    cls: type[PretrainedConfig], more: dict[str, object]
) -> None:
    with pytest.raises(
        ValueError, match=rf"'llm' needs causal .*got {cls.__name__[:-6]}"
    ):
        recommender(llm=build(cls, **more), lora=None)
    llm = build(cls, **more)
    model = recommender(llm=llm, lora=None, scope='user')
    assert model(batch_of([1, 2])).isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ('cls', 'more'),
    [
        (LlamaConfig, {'attention_dropout': 0.5}),
        (Gemma3TextConfig, {'head_dim': 4}),
        (MixtralConfig, {'num_local_experts': 2}),
    ],
)
def test_decoders_are_found_causal_and_left_as_they_were(
    cls: type[PretrainedConfig], more: dict[str, object], dtype: torch.dtype
) -> None:
    llm = build(cls, **more).to(dtype).train()
    llm.norm.eval()
    state = torch.random.get_rng_state()
    LLMRecommender(llm, Prompt((1, 2)), tables(), scope='user')
    drawn = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    LLMRecommender(llm, Prompt((1, 2)), tables(), scope='causal')
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert {m for m in llm.modules() if not m.training} == {llm.norm}


def test_layers_without_attention_are_refused() -> None:
    llm = build(
        MiniMaxConfig,
        layer_types=['full_attention', 'linear_attention'],
        num_local_experts=2,
        head_dim=4,
    )
    model = recommender(llm=llm, lora=None)
    with pytest.raises(ValueError, match='of whose 2 layers 1 do'):
        model(batch_of([1, 2]))


def test_the_adapter_of_another_model_is_refused() -> None:
    llm = tiny_llm()
    first = recommender(llm=llm)
    before = first(batch_of([1, 2, 3]))
    for lora in (LORA, None):
        with pytest.raises(ValueError, match='carries the adapter of another model'):
            recommender(llm=llm, lora=lora)
    assert torch.equal(first(batch_of([1, 2, 3])), before)


def test_adapters_that_cannot_be_saved_or_add_tokens_are_refused() -> None:
    named = get_peft_model(tiny_llm(), LoraConfig(**LORA), adapter_name='mine')
    with pytest.raises(ValueError, match=r"'default' \(got \['mine'\]\)"):
        recommender(llm=named, lora=None)
    config = PromptTuningConfig(task_type='FEATURE_EXTRACTION', num_virtual_tokens=3)
    with pytest.raises(ValueError, match='got PromptTuningConfig, which adds tokens'):
        recommender(llm=get_peft_model(tiny_llm(), config), lora=None)


@pytest.mark.parametrize('ids', [(-1, 3), (3, 32)])
def test_tokens_out_of_the_vocabulary_are_refused(ids: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf'\(got {ids[0]} to {ids[1]}\)'):
        LLMRecommender(tiny_llm(), Prompt(ids), tables(), scope='causal')


@pytest.mark.parametrize('cls', [CohereConfig, GlmConfig])
def test_another_rotation_is_refused(cls: type[PretrainedConfig]) -> None:
    llm = build(cls, head_dim=4, pad_token_id=0)
    recommender(llm=llm, prefix={'rotary': False}, lora=None)
    with pytest.raises(ValueError, match=rf"'rotary' .* \(got {type(llm).__name__}\)"):
        recommender(llm=llm, prefix={'rotary': True}, lora=None)


def test_the_rotation_is_known_wherever_the_backbone_lies() -> None:
    model = recommender(llm=tiny_llm().to('meta'), prefix={'rotary': True}, lora=None)
    assert model.backbone.device.type == 'meta'
