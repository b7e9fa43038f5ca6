"""The model card of a saved recommender."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hellm_pyg.llm.backbone import backbone_label

_TEXT = """---
library_name: hellm_pyg
pipeline_tag: other
tags:
- recommendation
- sequential-recommendation
- graph
- lora
---

# {title}

Reads the items a user took so far, each as one soft token, and scores all
{num_items} items of its catalogue in one forward pass. It knows no other
catalogue, and no text reaches or leaves it.

| Part | |
|---|---|
{parts}

## Results

{results}

## Use

```python
from hellm_pyg.llm import LLMRecommender

model = LLMRecommender.from_pretrained({source!r})
```

{origin}
`adapter_config.json` and `adapter_model.safetensors`, where present, are PEFT's
own files; the other weights are in `hellm.safetensors`, and the original ids of
users and items in `ids.json`, if they were saved.
"""

_LOADED = 'The backbone is not part of this folder and is loaded by its name.'
_OWN = (
    'The backbone was trained, too: transformers reads it from `config.json` and\n'
    '`model.safetensors`.'
)


def model_card(
    description: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    title: str = 'HeLLM recommender',
    source: str = 'this-folder',
) -> str:
    """Returns the Markdown text of a model card.

    Args:
        description: Content of ``hellm.json``.
        metrics: Numbers to show, possibly nested (by split); a ``protocol``
            among them tells how they were measured.
        title: Heading of the card.
        source: Where the example loads the model from.
    """
    arguments, backbone = description['arguments'], description['backbone']
    prefix = description['prefix']
    slots = 'none'
    if prefix is not None:
        table = arguments['prefix_embedding']
        pooled = f'pooled from `{table}`' if prefix['pool'] else 'static'
        slots = f'{prefix["num_tokens"]} slots in every layer, {pooled}'
    trained = arguments['train_backbone']
    quantised = ', 4-bit (NF4)' if backbone['load_in_4bit'] else ''
    parts = {
        'Backbone': f'{backbone_label(backbone["name"])}, first '
        f'{backbone["num_layers"]} layers, {backbone["dtype"]}{quantised}, '
        + ('trained' if trained else 'frozen'),
        'Adapter': 'LoRA' if description['adapter'] else 'none',
        'Item token': ' + '.join(f'`{name}`' for name in arguments['token_embeddings']),
        'Graph prefix': slots,
        'Scope': f'`{arguments["scope"]}`, at most {arguments["max_len"]} items',
        'Head': f'`{arguments["head"]}`',
    }
    rows = [f'| {name} | {value} |' for name, value in parts.items()]
    return _TEXT.format(
        title=title,
        num_items=next(iter(description['tables'].values()))[0],
        parts='\n'.join(rows),
        results=_results(metrics),
        origin=_OWN if trained else _LOADED,
        source=source,
    )


def _results(metrics: Mapping[str, Any] | None) -> str:
    if not metrics:
        return 'None were given when the model was saved.'
    rows = [f'| {name} | {value} |' for name, value in _flat(metrics)]
    return '\n'.join(['| | |', '|---|---|', *rows])


def _flat(metrics: Mapping[str, Any], before: str = '') -> Iterator[tuple[str, str]]:
    for name, value in metrics.items():
        name = f'{before}{name}'
        if isinstance(value, Mapping):
            yield from _flat(value, f'{name} ')
        else:
            yield name, f'{value:.4f}' if isinstance(value, float) else str(value)
