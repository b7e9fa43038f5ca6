"""Graph prefix attention in factors beside the obvious ways to compute it.

    python benchmarks/speed/prefix.py                      # 4 layers of SmolLM2's shape
    python benchmarks/speed/prefix.py --layers 30 --dtype float32 --out prefix.json

Causal form (a prefix a position): in factors, with every slot of every position
built, and with one pass a history, whose instruction sees the prefix, too. User form
(a prefix a row): the same attention, and a DynamicCache of the unmodified model.
Times are medians over interleaved runs of the language model, forward (inference) and
forward + backward (training, to tokens and prefix); ratios are against ours.
Differences are those of the states read out, relative.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, LlamaConfig, LlamaModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from hellm_pyg.llm.prefix_attention import NAME
from hellm_pyg.llm.prefix_states import PrefixStates

SHAPE: dict[str, Any] = {
    'hidden_size': 576,
    'intermediate_size': 1536,
    'num_attention_heads': 9,
    'num_key_value_heads': 3,
    'vocab_size': 8,
}
HISTORIES = 'one pass a history'
Pass = Callable[[Tensor, PrefixStates], Tensor]


def expanded(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    prefix: PrefixStates,
    context: list[tuple[Tensor, Tensor]],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Builds every slot of every position, [B, T, P, H], and projects it."""
    layer, (B, heads, _, d) = module.layer_idx, query.shape

    def slots(linear: Any, state: Tensor, bias: Tensor, gain: Tensor) -> Tensor:
        norm = F.rms_norm(bias[layer] + state.unsqueeze(2), gain.shape, gain, 1e-5)
        return repeat(linear(norm.to(query.dtype)).unflatten(-1, (-1, d)), 3)

    def repeat(x: Tensor, dim: int) -> Tensor:
        return x.repeat_interleave(heads // x.shape[dim], dim)

    slot_key = slots(module.k_proj, prefix.key, prefix.key_bias, prefix.key_gain)
    slot_value = slots(
        module.v_proj, prefix.value, prefix.value_bias, prefix.value_gain
    )
    parts = [
        [past.expand(B, -1, -1, -1), own]
        for past, own in zip(context[layer], (key, value), strict=True)
    ]
    key, value = (repeat(torch.cat(part, 2), 1) for part in parts)
    mask = F.pad(attention_mask, (key.shape[2] - attention_mask.shape[-1], 0))
    logit = torch.cat(
        [
            torch.einsum('bhtd,btphd->bhtp', query, slot_key) * scaling,
            query @ key.mT * scaling + mask,
        ],
        dim=-1,
    )
    weight = logit.softmax(-1, dtype=torch.float32).to(query.dtype)
    P = slot_key.shape[2]
    out = torch.einsum('bhtp,btphd->bhtd', weight[..., :P], slot_value)
    return (out + weight[..., P:] @ value).transpose(1, 2), None


def states(B: int, T: int, P: int, L: int) -> PrefixStates:
    H = SHAPE['hidden_size']
    key, value = torch.randn(2, B, T, H)
    key_bias, value_bias = torch.randn(2, L, P, H)
    return PrefixStates(key, value, key_bias, value_bias, torch.ones(H), torch.ones(H))


def call(llm: LlamaModel, x: Tensor, start: int, **kwargs: Any) -> Tensor:
    B, T = x.shape[0], x.shape[1]
    past = kwargs.get('past_key_values')
    seen = T if past is None else T + past.get_seq_length()
    return llm(
        inputs_embeds=x,
        attention_mask=torch.ones(B, seen, dtype=torch.long),
        position_ids=(start + torch.arange(T)).expand(B, T),
        use_cache=False,
        **kwargs,
    ).last_hidden_state


def causal_contenders(llm: LlamaModel, instruction: Tensor) -> dict[str, Pass]:
    S = instruction.shape[1]

    def shared(name: str) -> Pass:
        def run(x: Tensor, prefix: PrefixStates) -> Tensor:
            record: list[tuple[Tensor, Tensor]] = []
            llm.set_attn_implementation(NAME)
            call(llm, instruction, prefix.num_tokens, record=record)
            llm.set_attn_implementation(name)
            start = S + prefix.num_tokens
            return call(llm, x, start, prefix=prefix, context=record)

        return run

    def without(x: Tensor, prefix: PrefixStates) -> Tensor:
        record: list[tuple[Tensor, Tensor]] = []
        llm.set_attn_implementation(NAME)
        call(llm, instruction, prefix.num_tokens, record=record)
        return call(llm, x, S + prefix.num_tokens, context=record)

    def a_history(x: Tensor, prefix: PrefixStates) -> Tensor:
        """The prefix of position t is that of the row of its first t items."""
        llm.set_attn_implementation(NAME)
        head = instruction.expand(x.shape[0], -1, -1)
        last = []
        for t in range(x.shape[1]):
            one = replace(
                prefix,
                key=prefix.key[:, t : t + 1],
                value=prefix.value[:, t : t + 1],
            )
            rows = torch.cat([head, x[:, : t + 1]], 1)
            last.append(call(llm, rows, prefix.num_tokens, prefix=one)[:, -1])
        return torch.stack(last, 1)

    return {
        'in factors (graph_prefix)': shared(NAME),
        'every slot built': shared('expanded_prefix'),
        HISTORIES: a_history,
        'no prefix': without,
    }


def user_contenders(llm: LlamaModel) -> dict[str, Pass]:
    def ours(x: Tensor, prefix: PrefixStates) -> Tensor:
        llm.set_attn_implementation(NAME)
        return call(llm, x, prefix.num_tokens, prefix=prefix)

    def cache(x: Tensor, prefix: PrefixStates) -> Tensor:
        llm.set_attn_implementation('sdpa')
        past = DynamicCache()
        for layer, block in enumerate(llm.layers):
            attention: Any = block.self_attn
            pair = []
            for linear, state, bias in (
                (attention.k_proj, prefix.key, prefix.key_bias),
                (attention.v_proj, prefix.value, prefix.value_bias),
            ):
                slot = F.rms_norm(bias[layer] + state, bias.shape[-1:], eps=1e-5)
                slot = linear(slot.to(x.dtype))
                pair.append(slot.unflatten(-1, (3, -1)).transpose(1, 2))
            past.update(*pair, layer)
        return call(llm, x, prefix.num_tokens, past_key_values=past)

    def without(x: Tensor, prefix: PrefixStates) -> Tensor:
        llm.set_attn_implementation('sdpa')
        return call(llm, x, prefix.num_tokens)

    return {
        'graph_prefix': ours,
        'DynamicCache, sdpa': cache,
        'no prefix, sdpa': without,
    }


def measure(
    run: Pass, x: Tensor, raw: PrefixStates, train: bool, clock: Callable[[], float]
) -> tuple[float, Tensor]:
    x = x.clone().requires_grad_(train)
    leaves: dict[str, Any] = {
        field.name: value.clone().requires_grad_(train)
        for field in fields(raw)
        if isinstance(value := getattr(raw, field.name), Tensor)
    }
    start = clock()
    with torch.set_grad_enabled(train):
        out = run(x, replace(raw, **leaves))
        if train:
            out.float().square().mean().backward()
    return clock() - start, out.detach().float()


def compare(
    form: str,
    contenders: dict[str, Pass],
    x: Tensor,
    raw: PrefixStates,
    repeats: int,
    clock: Callable[[], float],
) -> list[dict[str, Any]]:
    rows = []
    ours = next(iter(contenders))
    for train in (False, True):
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        out: dict[str, Tensor] = {}
        for index in range(repeats + 1):
            for name, run in contenders.items():
                spent, out[name] = measure(run, x, raw, train, clock)
                if index > 0:  # the first run warms up
                    seconds[name].append(spent)
        base = statistics.median(seconds[ours])
        for name, times in seconds.items():
            error = (out[name] - out[ours]).norm() / out[ours].norm()
            rows.append(
                {
                    'form': form,
                    'method': name,
                    'train': train,
                    'rows': x.shape[0],
                    'tokens': x.shape[1],
                    'slots': raw.num_tokens,
                    'seconds': statistics.median(times),
                    'ratio': statistics.median(times) / base,
                    'difference': error.item(),
                    'runs': times,
                }
            )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        '| form | method | pass | rows | tokens | slots | ms | ratio | difference |',
        '|---|---|---|--:|--:|--:|--:|--:|--:|',
    ]
    for row in rows:
        kind = 'forward + backward' if row['train'] else 'forward'
        same = row['method'] not in (HISTORIES, 'no prefix', 'no prefix, sdpa')
        difference = f'{row["difference"]:.0e}' if same else '-'
        lines.append(
            f'| {row["form"]} | {row["method"]} | {kind} | {row["rows"]} | '
            f'{row["tokens"]} | {row["slots"]} | {1e3 * row["seconds"]:.0f} | '
            f'{row["ratio"]:.2f} | {difference} |'
        )
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--layers', type=int, default=4)
    parser.add_argument('--rows', type=int, default=64)
    parser.add_argument('--items', type=int, default=10, help='of a row')
    parser.add_argument('--instruction', type=int, default=40, help='its tokens')
    parser.add_argument('--slots', type=int, default=10)
    parser.add_argument('--dtype', choices=['bfloat16', 'float32'], default='bfloat16')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--clock', choices=['wall', 'cpu'], default='wall')
    parser.add_argument('--out', type=Path, help='also write the numbers as JSON')
    args = parser.parse_args()
    torch.manual_seed(0)
    AttentionInterface.register('expanded_prefix', expanded)
    AttentionMaskInterface.register('expanded_prefix', eager_mask)
    dtype = getattr(torch, args.dtype)
    # Processor time, of all threads, is what a busy machine can still tell.
    clock = time.perf_counter if args.clock == 'wall' else time.process_time
    config = LlamaConfig(**SHAPE, num_hidden_layers=args.layers)
    llm = LlamaModel(config).to(dtype).eval().requires_grad_(False)
    llm.set_attn_implementation(NAME)
    width, B, T, S = SHAPE['hidden_size'], args.rows, args.items, args.instruction
    instruction = torch.randn(1, S, width, dtype=dtype)
    x = torch.randn(B, S + T, width, dtype=dtype)
    rows = compare(
        'causal',
        causal_contenders(llm, instruction),
        x[:, S:],
        states(B, T, args.slots, args.layers),
        args.repeats,
        clock,
    )
    rows += compare(
        'user',
        user_contenders(llm),
        x,
        states(B, 1, args.slots, args.layers),
        args.repeats,
        clock,
    )
    threads = f'{torch.get_num_threads()} threads of {os.cpu_count()} cores'
    print(f'{threads}, {args.dtype}, {args.layers} layers, {args.clock} time\n')
    print(markdown(rows))
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=2))


if __name__ == '__main__':
    main()
