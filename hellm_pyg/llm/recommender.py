"""A language model that reads items as tokens and scores the catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from huggingface_hub import HfApi
from peft import PeftModel
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.utils import to_dense_batch
from transformers import PreTrainedModel

from hellm_pyg.data.batch import SequenceBatch
from hellm_pyg.datasets.ids import IdMap
from hellm_pyg.llm.adapter import (
    adapt,
    arithmetic,
    base_model,
    enable_checkpointing,
    half_precision,
    num_adapted,
    without_checkpointing,
)
from hellm_pyg.llm.catalogue import EncodedCatalogue, Instruction
from hellm_pyg.llm.head import ItemHead
from hellm_pyg.llm.parts import (
    check_backbone,
    check_causality,
    check_names,
    check_prefix,
    check_prompt,
    check_smoothing,
)
from hellm_pyg.llm.prefix import GraphPrefix
from hellm_pyg.llm.prefix_attention import LayerKeyValues
from hellm_pyg.llm.prefix_states import PrefixStates, Rotation
from hellm_pyg.llm.projector import FusedProjector
from hellm_pyg.llm.prompt import Prompt
from hellm_pyg.llm.restoring import load_pretrained
from hellm_pyg.llm.saving import push, save_pretrained
from hellm_pyg.llm.signature import weights_hash
from hellm_pyg.llm.tables import ItemTables
from hellm_pyg.nn.smoothing import NeighborSmoothing
from hellm_pyg.nn.soft_targets import SoftTargets


class LLMRecommender(nn.Module):
    r"""A language model, by default frozen, that reads a history of soft tokens.

    Follows `"HeLLM: Multimodal Hypergraph Enhanced LLM Learning for
    Recommendation" <https://arxiv.org/abs/2504.10541>`_. A row is
    ``[instruction] [a token an item] [response]``; an item's token is a
    projection of its concatenated embeddings, a graph prefix adds key and value
    slots to every layer, and the loss is the cross-entropy over all items.

    ``scope='user'`` is the form of the paper: one prefix from the whole history,
    one prediction a row, read at the last token of the response.
    ``scope='causal'`` predicts at every item: a position's prefix pools the items
    up to it, rows hold their items only, and the instruction, which sees no item,
    is run once a batch. In both, rows neither see each other nor their padding.

    Args:
        llm (PreTrainedModel or PeftModel): Backbone without its head, see
            :func:`~hellm_pyg.llm.backbone.load_backbone`.
        prompt (Prompt): Token ids around the items.
        item_embeddings (dict): Name to table :math:`[I, d]`, frozen unless named
            in ``train_embeddings``. A row with a NaN is a missing embedding and
            becomes zero.
        prefix (GraphPrefix, optional): The graph prefix. (default: :obj:`None`)
        prefix_embedding (str): Table that the prefix pools.
            (default: :obj:`"graph"`)
        token_embeddings (sequence of str, optional): Tables that make up an
            item's token, and the items' side of a tied head; :obj:`None` for all.
            (default: :obj:`None`)
        scope (str): ``'user'`` or ``'causal'``. (default: :obj:`"user"`)
        head (str): ``'linear'``, ``'tied'`` or ``'frozen_random'``, see
            :class:`~hellm_pyg.llm.head.ItemHead`. (default: :obj:`"linear"`)
        train_embeddings (sequence of str): Tables that are trained on.
            (default: :obj:`()`)
        head_channels (int, optional): Width of the tied head's trained adapter;
            :obj:`None` for no adapter. (default: :obj:`None`)
        head_dropout (float): Dropout on the read-out states. (default: :obj:`0.0`)
        lora (dict, optional): Arguments of :class:`peft.LoraConfig`; :obj:`None`
            leaves ``llm`` as it is. (default: :obj:`None`)
        max_len (int): Histories are cut to their last items.
            (default: :obj:`50`)
        dropout (float): Dropout on the item tokens. (default: :obj:`0.0`)
        projector_layers (int): Layers between an item's embeddings and its token.
            (default: :obj:`2`)
        candidates (str): What competes in the loss: ``'all'`` items, or those
            ``'unseen'`` in the history. Where seen items are not recommended, the
            model need not learn to rank them, and what is like them, low.
            (default: :obj:`"all"`)
        table_scale (str): ``'none'`` reads the embeddings as they are, ``'rms'`` with
            a root mean square of one, see :class:`~hellm_pyg.llm.tables.ItemTables`.
            (default: :obj:`"none"`)
        train_backbone (bool): Train all weights of ``llm``, held in fp32; one in half
            precision still computes in it. :obj:`False` freezes them.
            (default: :obj:`False`)
        smoothing (NeighborSmoothing, optional): Lets the neighbours of a target
            share its weight in the loss. A matter of training: it is not saved with
            the model. (default: :obj:`None`)

    Raises:
        ValueError: If the parts do not fit together.
    """

    sampling: Literal['sequences'] = 'sequences'

    def __init__(
        self,
        llm: PreTrainedModel | PeftModel,
        prompt: Prompt,
        item_embeddings: Mapping[str, Tensor],
        prefix: GraphPrefix | None = None,
        prefix_embedding: str = 'graph',
        token_embeddings: Sequence[str] | None = None,
        scope: Literal['user', 'causal'] = 'user',
        head: Literal['linear', 'tied', 'frozen_random'] = 'linear',
        train_embeddings: Sequence[str] = (),
        head_channels: int | None = None,
        head_dropout: float = 0.0,
        lora: Mapping[str, Any] | None = None,
        max_len: int = 50,
        dropout: float = 0.0,
        projector_layers: int = 2,
        candidates: Literal['all', 'unseen'] = 'all',
        table_scale: Literal['none', 'rms'] = 'none',
        train_backbone: bool = False,
        smoothing: NeighborSmoothing | None = None,
    ) -> None:
        super().__init__()
        names = list(item_embeddings if token_embeddings is None else token_embeddings)
        pooled = prefix is not None and prefix.pool
        used = [*names, *([prefix_embedding] if pooled else [])]
        check_names(
            item_embeddings, names, used, train_embeddings, scope, candidates, max_len
        )
        check_smoothing(smoothing, item_embeddings[names[0]].size(0), candidates)
        for name, value in (('dropout', dropout), ('head_dropout', head_dropout)):
            if not 0 <= value < 1:
                raise ValueError(f"'{name}' needs to lie in [0, 1) (got {value})")
        self.prompt = prompt
        self.token_embeddings = names
        self.prefix_embedding = prefix_embedding
        self.scope = scope
        self.max_len = max_len
        self.dropout = dropout
        self.projector_layers = projector_layers
        self.candidates = candidates
        self.ids: IdMap | None = None
        self.train_backbone = train_backbone
        check_backbone(llm)
        self.half_dtype = half_precision(llm) if train_backbone else None
        check_prompt(prompt, llm, scope)
        # Before an adapter is added, some of which change what they are beside.
        self.backbone_hash = None if train_backbone else weights_hash(llm)
        self.llm = adapt(llm, lora, train_backbone)
        self.num_adapted = num_adapted(self.llm)
        hidden_size = self.llm.config.hidden_size
        self.tables = ItemTables(
            {name: item_embeddings[name] for name in dict.fromkeys(used)},
            train_embeddings,
            table_scale,
        )
        width = self.tables.width(names)
        self.projector = FusedProjector(width, hidden_size, projector_layers)
        self.prefix = prefix
        if prefix is not None:
            check_prefix(prefix, self.llm, self.tables, prefix_embedding, scope)
        if scope == 'causal':
            check_causality(self.llm)
        self.smoothing = smoothing
        self.head = ItemHead(
            head,
            hidden_size,
            self.tables.num_items,
            state_channels=width if head == 'tied' else None,
            adapter_channels=head_channels,
            dropout=head_dropout,
        )
        before, after = torch.tensor(prompt.before), torch.tensor(prompt.after)
        self.register_buffer('before', before.long(), persistent=False)
        self.register_buffer('after', after.long(), persistent=False)

    before: Tensor
    after: Tensor

    @property
    def backbone(self) -> PreTrainedModel:
        """The language model without its adapter."""
        return base_model(self.llm)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the backbone computes in; trained weights are in fp32."""
        return self.half_dtype or self.backbone.dtype

    @property
    def num_items(self) -> int:
        """Number of items :math:`I`."""
        return self.tables.num_items

    @property
    def shares_instruction(self) -> bool:
        """Whether no user changes the instruction's states."""
        user_prefix = self.prefix is not None and self.prefix.pool
        return self.scope == 'causal' or not user_prefix

    def on_epoch_start(self, data: HeteroData) -> None:
        """Does nothing; part of the trainer's interface."""

    def enable_activation_checkpointing(self) -> None:
        """Recomputes the language model's layers in the backward pass."""
        enable_checkpointing(self.backbone)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Returns read-out states in fp32.

        Args:
            batch: Histories. With ``scope='causal'`` and a target for each
                position, every position is read, :math:`[T, H]`; else the end of
                each row, :math:`[B, H]`.
        """
        every = self._reads_every_position(batch)
        batch = self._truncate(batch)
        with arithmetic(self.before.device, self.dtype):
            # A grid: oneDNN compiles products in bf16 anew for each number of rows.
            width = max(1, int(batch.length.max()))
            grid = batch.item.new_zeros(batch.batch_size, width)
            grid[batch.batch, batch.position] = batch.item
            token = self._project(grid)[batch.batch, batch.position]
            token = F.dropout(token, self.dropout, self.training)
            instruction = self._instruct() if self.shares_instruction else None
            return self._read(token, batch, instruction, every)

    def loss(
        self, data: HeteroData, batch: SequenceBatch, soft: SoftTargets | None = None
    ) -> Tensor:
        """Returns the mean cross-entropy over the batch's targets, smoothed or not.

        Args:
            data: Not read: the model has its own tables.
            batch: Histories with the target of each position (``scope='causal'``)
                or of each row.
            soft: What a teacher tells of each target.

        Raises:
            ValueError: If the batch has no targets of that form.
        """
        whole, batch = batch, self._truncate(batch)
        states = self(whole)
        if batch.target is None or batch.num_targets != states.size(0):
            raise ValueError(
                f"'batch' needs a target for each of {states.size(0)} read-outs (got "
                f"{batch.num_targets}); scope='user' trains on targets='last'"
            )
        state = None
        if self.head.kind == 'tied':
            state = self.tables(self.token_embeddings)
        every, hidden = self._reads_every_position(whole), None
        if self.candidates == 'unseen':  # nor does what lies before the cut compete
            hidden = whole.seen_by(self._kept(whole)) if every else whole.seen
        if soft is not None and every:
            soft = soft.of(self._kept(whole))
        with arithmetic(self.before.device, self.dtype):
            return self.head.loss(
                states, batch.target, state, hidden, self.smoothing, soft
            )

    @torch.no_grad()
    def encode(self, data: HeteroData | None = None) -> EncodedCatalogue:
        """Projects the catalogue and reads the instruction, once an evaluation.

        Args:
            data: Not read: the model has its own tables.
        """
        with arithmetic(self.before.device, self.dtype):
            token = self._project(None)
            instruction = self._instruct() if self.shares_instruction else None
        with torch.autocast(token.device.type, enabled=False):
            state = self.tables(self.token_embeddings)
            vectors, bias = self.head.items(state)
        return EncodedCatalogue(token, instruction, vectors, bias)

    @torch.no_grad()
    def score(self, encoded: EncodedCatalogue, batch: SequenceBatch) -> Tensor:
        """Returns the scores of all items, fp32 of shape :math:`[B, I]`.

        An empty history is read at the last token before the items would start
        (or at the end of the response).

        Args:
            encoded: What :meth:`encode` has given.
            batch: Histories.
        """
        rows = replace(batch, target=None, neg_item=None)
        return self.score_queries(encoded, self.queries(encoded, rows))

    @torch.no_grad()
    def queries(self, encoded: EncodedCatalogue, batch: SequenceBatch) -> Tensor:
        """Reads the histories of all targets at once.

        Args:
            encoded: What :meth:`encode` has given.
            batch: Histories, with the target of each position or of each row, or
                without any.

        Returns:
            Read-out states of the positions, :math:`[T, H]`, where each has a target
            (``scope='causal'``), but for those that lie before the last ``max_len``
            items of a row; else of the rows, :math:`[B, H]`.
        """
        every = self._reads_every_position(batch)
        batch = self._truncate(batch)
        with arithmetic(self.before.device, self.dtype):
            token = encoded.token[batch.item]
            return self._read(token, batch, encoded.instruction, every)

    @torch.no_grad()
    def score_queries(self, encoded: EncodedCatalogue, query: Tensor) -> Tensor:
        """Scores all items for some of the :meth:`queries`, :math:`[t, I]`."""
        return self.head.score(query, encoded.vectors, encoded.bias)

    @torch.no_grad()
    def embeddings(self, data: HeteroData | None = None) -> dict[str, Tensor]:
        """Returns the item states that tokens are made of, :math:`[I, S]`."""
        return {'item': self.tables(self.token_embeddings).clone()}

    def save_pretrained(
        self,
        directory: str | Path,
        ids: IdMap | None = None,
        metrics: Mapping[str, Any] | None = None,
        config: Any = None,
        title: str = 'HeLLM recommender',
    ) -> None:
        """Writes everything but a frozen backbone into a folder.

        The folder holds PEFT's own ``adapter_config.json`` and
        ``adapter_model.safetensors`` (if there is an adapter; plain PEFT reads
        them too), a trained backbone as transformers' ``config.json`` and
        ``model.safetensors``, ``hellm.safetensors`` (projector, prefix, head, item
        embeddings), ``hellm.json`` (how to rebuild the model), ``ids.json`` and a
        model card. If the disk is full, a folder that was there stays whole.

        Args:
            directory: The folder; a former one is replaced.
            ids: Original ids of users and items; by default those that the model
                was loaded with.
            metrics: Numbers for the model card, possibly nested; a ``protocol``
                among them tells how they were measured.
            config: The experiment, a dataclass or plain values.
            title: Heading of the model card.

        Raises:
            ValueError: If ``ids`` belongs to another catalogue, or the adapter has been
                taken away.
        """
        save_pretrained(self, directory, ids, metrics, config, title)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        llm: PreTrainedModel | None = None,
        fingerprint: str | None = None,
    ) -> LLMRecommender:
        """Reads a recommender that :meth:`save_pretrained` wrote.

        Args:
            directory: The folder, or its name on the hub.
            llm: A frozen backbone; :obj:`None` loads it by the name that was saved.
            fingerprint: ``IdMap.fingerprint`` of the data at hand, to be sure that
                the model knows this catalogue.

        Returns:
            The model in evaluation mode, where the backbone lies (on the
            accelerator, if its weights are in 4 bits), with its id map as ``ids``.

        Raises:
            ValueError: If a file is missing, damaged or of another format, if a
                weight is missing, extra or of another shape, or if backbone or
                catalogue are others than the model was trained with.
        """
        return load_pretrained(cls, directory, llm, fingerprint)

    def push_to_hub(self, repo_id: str, api: HfApi | None = None, **kwargs: Any) -> str:
        """Uploads the folder of :meth:`save_pretrained` in one commit.

        Args:
            repo_id: Name on the hub, ``user/name``.
            api: Client to use; :obj:`None` for one with the stored token.
            kwargs: ``private``, ``commit_message``, and what
                :meth:`save_pretrained` takes.

        Returns:
            Address of the commit.
        """
        return push(self, repo_id, api, **kwargs)

    def _kept(self, batch: SequenceBatch) -> Tensor:
        """Which items are the last ``max_len`` of their row."""
        return batch.position >= (batch.length - self.max_len)[batch.batch]

    def _truncate(self, batch: SequenceBatch) -> SequenceBatch:
        if batch.batch_size == 0:
            raise ValueError("'batch' needs at least one row (got 0)")
        batch.check(self.num_items)
        if int(batch.length.max()) <= self.max_len:
            return batch
        keep = self._kept(batch)
        target = batch.target
        if target is not None and self._reads_every_position(batch):
            target = target[keep]
        return SequenceBatch(batch.user, batch.item[keep], batch.batch[keep], target)

    def _reads_every_position(self, batch: SequenceBatch) -> bool:
        return self.scope == 'causal' and batch.targets_positions

    def _project(self, item: Tensor | None) -> Tensor:
        token = self.projector(self.tables(self.token_embeddings, item))
        return token.to(self.dtype)

    def _embed(self, ids: Tensor) -> Tensor:
        return self.backbone.get_input_embeddings()(ids).to(self.dtype)

    def _call(self, embeds: Tensor, mask: Tensor, offset: int, **kwargs: Any) -> Tensor:
        num_slots = 0 if self.prefix is None else self.prefix.num_tokens
        position = torch.arange(embeds.size(1), device=embeds.device)
        return self.llm(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=(position + num_slots + offset).expand(mask.shape),
            use_cache=False,
            **kwargs,
        ).last_hidden_state

    def _instruct(self) -> Instruction:
        embeds = self._embed(self.before)[None]
        prefix = None
        if self.prefix is not None:
            prefix = self.prefix.instruction(self._rotation())
        keyvalues: LayerKeyValues = []
        mask = torch.ones_like(self.before)[None]
        with without_checkpointing(self.llm):
            state = self._call(embeds, mask, 0, prefix=prefix, record=keyvalues)
        layers = self.backbone.config.num_hidden_layers
        if len(keyvalues) != layers:
            raise ValueError(
                f"'llm' needs layers that all attend to the prompt (got "
                f'{type(self.backbone).__name__}, of whose {layers} layers '
                f'{len(keyvalues)} do): use LLaMA, Mistral, Qwen or one like them'
            )
        return Instruction(keyvalues, state[0, -1].float())

    def _rotation(self) -> Rotation | None:
        """The backbone's rotary embedding of the slots' positions."""
        if self.prefix is None or not self.prefix.rotary:
            return None
        position = torch.arange(self.prefix.num_tokens, device=self.before.device)
        embedding = cast(nn.Module, self.backbone.rotary_emb)
        cos, sin = embedding(self.prefix.key_bias, position[None])
        return cos[0], sin[0]

    def _prefix_states(self, batch: SequenceBatch, width: int) -> PrefixStates | None:
        if self.prefix is None:
            return None
        if not self.prefix.pool:
            return self.prefix.instruction(self._rotation())
        x, mask = to_dense_batch(
            self.tables([self.prefix_embedding], batch.item),
            batch.batch,
            batch_size=batch.batch_size,
            max_num_nodes=width,
        )
        return self.prefix(x, mask, self._rotation())

    def _read(
        self,
        token: Tensor,
        batch: SequenceBatch,
        instruction: Instruction | None,
        every: bool,
    ) -> Tensor:
        """Read-out states of rows that are padded on the right."""
        length, position = batch.length, batch.position
        size = batch.batch_size
        width = max(1, int(length.max()))
        head = self._embed(self.before) if instruction is None else token[:0]
        tail = self._embed(self.after) if self.scope == 'user' else token[:0]
        S, R = head.size(0), tail.size(0)
        embeds = token.new_zeros(size, S + width + R, token.size(1))
        embeds[:, :S] = head
        embeds[batch.batch, S + position] = token
        row = torch.arange(size, device=token.device)
        end = torch.arange(R, device=token.device) + S + length[:, None]
        embeds[row[:, None], end] = tail
        steps = torch.arange(embeds.size(1), device=token.device)
        states = self._call(
            embeds,
            (steps < (S + length + R)[:, None]).long(),
            0 if instruction is None else self.before.numel(),
            prefix=self._prefix_states(batch, width),
            context=None if instruction is None else instruction.keyvalues,
        )
        if every:
            return states[batch.batch, position].float()
        last = S + length + R - 1
        out = states[row, last.clamp(min=0)].float()
        if instruction is None:
            return out
        return torch.where((last < 0)[:, None], instruction.state, out)
