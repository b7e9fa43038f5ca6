"""The sections of an experiment's configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal


def _at_least(low: int, section: object, *names: str) -> None:
    for name in names:
        if not getattr(section, name) >= low:
            raise ValueError(
                f"'{name}' needs to be at least {low} (got {getattr(section, name)})"
            )


@dataclass(frozen=True)
class DataConfig:
    """Where the interactions lie and how the graph is built from them.

    Args:
        interactions: File of interactions: sequence text
            (``user item item ...``), CSV, TSV, Parquet or JSONL.
        root: Folder of the processed cache.
        user: Column of the user ids (tables only).
        item: Column of the item ids (tables only).
        time: Column of the times; without it the row's position is the time.
        rating: Column of the ratings.
        min_rating: Drop interactions rated below.
        min_count: k-core: every user and item keeps at least so many.
        min_length: Every user keeps at least so many.
        time_unit: Unit of times that are numbers: ``'s'``, ``'ms'``, ``'us'``,
            ``'ns'`` or ``'number'``; told from their size if :obj:`None`.
        bad_rows: ``'refuse'`` or ``'drop'`` rows without ids or times.
        items: Item table (CSV, TSV, Parquet or JSONL).
        item_id: Id column of the item table.
        title: Column shown beside recommendations.
        features: Modality name to matrix file (``.npy``, ``.safetensors``).
        name: Name of the data; the file's if :obj:`None`.
        val_from: With ``test_from``, a hold-out by date in place of
            leave-one-out: validation begins here, as ISO 8601 or as a number.
        test_from: The test begins here.
        drop_last: So many interactions at the end of every history are no part of the
            data: with 1, leave-one-out tests on what it validates on otherwise.
        knn: Number of nearest neighbours of a modality hyperedge, the item itself
            included: SASRec smooths its targets along one less.
        knn_direction: ``'row'`` or ``'col'``, see ``KNNHyperedges``.
        knn_index: ``'flat'`` (exact) or ``'ivf'``.
        sample: Share of the users whose sequences are trained on and whose targets
            are ranked, the same in every run; the catalogue and the graph keep all.
    """

    interactions: str = ''
    root: str = 'cache'
    user: str | None = None
    item: str | None = None
    time: str | None = None
    rating: str | None = None
    min_rating: float | None = None
    min_count: int = 0
    min_length: int = 0
    time_unit: Literal['s', 'ms', 'us', 'ns', 'number'] | None = None
    bad_rows: Literal['refuse', 'drop'] = 'refuse'
    items: str | None = None
    item_id: str = 'item_id'
    title: str | None = 'title'
    features: dict[str, str] = field(default_factory=dict)
    name: str | None = None
    val_from: str | int | None = None
    test_from: str | int | None = None
    drop_last: int = 0
    knn: int = 10
    knn_direction: Literal['row', 'col'] = 'row'
    knn_index: Literal['flat', 'ivf'] = 'flat'
    sample: float | None = None

    def __post_init__(self) -> None:
        _at_least(0, self, 'drop_last')


@dataclass(frozen=True)
class SmoothingConfig:
    """Targets smoothed along neighbours, see ``hellm_pyg.nn.NeighborSmoothing``.

    Args:
        embedding: Which of ``llm.tables`` has neighbours, by cosine; :obj:`None` for
            none.
        modalities: Whether each modality of the data has neighbours, too.
        k: Neighbours of an item in each of them, itself not counted; fewer where not
            as many items have one.
        weight: Share of a target's weight that they get together.
    """

    embedding: str | None = 'graph'
    modalities: bool = True
    k: int = 10
    weight: float = 0.2

    def __post_init__(self) -> None:
        _at_least(1, self, 'k')
        if not 0 <= self.weight < 1:
            raise ValueError(f"'weight' needs to lie in [0, 1) (got {self.weight})")


@dataclass(frozen=True)
class LLMConfig:
    """The language-model phase.

    Args:
        name: Hub name or folder of the backbone; ``'SmolLM2-135M-Instruct'``
            also resolves to the packaged weights.
        num_layers: Keep only so many of the backbone's first layers.
        weights: What becomes of the backbone's own weights: ``'frozen'`` keeps the
            pretrained ones, ``'trained'`` trains all of them further, ``'random'``
            draws them from ``train.seed`` and trains them.
        shape: Sizes of a backbone with random weights, in place of those of ``name``:
            ``hidden_size``, ``intermediate_size``, ``num_attention_heads`` and, if
            wanted, ``num_key_value_heads`` and ``vocab_size``.
        tables: Embedding name to run folder of phase 1 (its item table),
            to ``'features:<modality>'``, or to ``'random:<width>'``.
        train_tables: Names of ``tables`` that are trained on.
        token: Names of ``tables`` that make up an item's soft token.
        projector_layers: Layers between an item's embeddings and its token.
        candidates: What competes in the loss: ``'all'`` items, or the ``'unseen'``.
        smoothing: Lets the neighbours of a target share its weight in the loss;
            :obj:`None` for the targets alone.
        table_scale: ``'rms'`` reads every table with a root mean square of one.
        scope: ``'user'`` (a row a history) or ``'causal'`` (all positions).
        prefix: Arguments of ``GraphPrefix`` beside the name of the table that
            is pooled (``embedding``); :obj:`None` for no prefix.
        dropout: Dropout on the item tokens.
        head: ``'linear'``, ``'tied'`` or ``'frozen_random'``.
        head_channels: Width of a tied head's adapter; :obj:`None` for none.
        head_dropout: Dropout on the states that the head reads.
        lora: Arguments of ``peft.LoraConfig``, an adapter of frozen weights;
            :obj:`None` for no adapter.
        load_in_4bit: Quantise the backbone (needs bitsandbytes and CUDA).
        instruction: Text before the items; :obj:`None` for the default.
        response: Text after the items (user scope); :obj:`None` for the
            default.
        second_bos: Start the response piece with another BOS token.
    """

    name: str = 'SmolLM2-135M-Instruct'
    num_layers: int | None = None
    weights: Literal['frozen', 'trained', 'random'] = 'frozen'
    shape: dict[str, int] | None = None
    tables: dict[str, str] = field(default_factory=dict)
    train_tables: list[str] = field(default_factory=list)
    token: list[str] = field(default_factory=lambda: ['graph', 'seq'])
    projector_layers: int = 2
    candidates: Literal['all', 'unseen'] = 'all'
    smoothing: SmoothingConfig | None = None
    table_scale: Literal['none', 'rms'] = 'none'
    scope: Literal['user', 'causal'] = 'causal'
    prefix: dict[str, Any] | None = None
    dropout: float = 0.0
    head: Literal['linear', 'tied', 'frozen_random'] = 'linear'
    head_channels: int | None = None
    head_dropout: float = 0.0
    lora: dict[str, Any] | None = field(
        default_factory=lambda: {
            'r': 16,
            'lora_alpha': 16,
            'lora_dropout': 0.05,
            'target_modules': ['gate_proj', 'up_proj', 'down_proj'],
        }
    )
    load_in_4bit: bool = False
    instruction: str | None = None
    response: str | None = None
    second_bos: bool = True

    def __post_init__(self) -> None:
        for name in ('dropout', 'head_dropout'):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"'{name}' needs to lie in [0, 1) (got {getattr(self, name)})"
                )
        if self.smoothing is not None and self.candidates != 'all':
            raise ValueError(
                f"'smoothing' gives weight to items that may be seen, which "
                f"'candidates' keeps out of the loss (got {self.candidates!r}): set "
                f'llm.smoothing=null, or llm.candidates=all'
            )


@dataclass(frozen=True)
class EnsembleConfig:
    """Trained runs as one model, see :class:`~hellm_pyg.nn.models.Ensemble`.

    Args:
        members: Name to folder of a finished run. The first one has weight 1.
        grid: Weights of each other member, of which validation chooses.
    """

    members: dict[str, str] = field(default_factory=dict)
    grid: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)

    def __post_init__(self) -> None:
        if not self.grid or not all(math.isfinite(w) and w >= 0 for w in self.grid):
            raise ValueError(
                f"'grid' needs to hold finite weights of 0 or more (got {self.grid})"
            )


@dataclass(frozen=True)
class DistillConfig:
    """What other runs teach, see :class:`~hellm_pyg.nn.SoftTargets`.

    Args:
        runs: Name to folder of a finished run on the same data. The mean of their
            probabilities of the items is learned.
        weight: Share of a target's weight that it gets.
    """

    runs: dict[str, str] = field(default_factory=dict)
    weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise ValueError(f"'weight' needs to lie in (0, 1] (got {self.weight})")


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation of either phase.

    Args:
        epochs: Largest number of epochs.
        batch_size: Rows of a batch.
        batch_tokens: Bound on rows times longest row instead (sequences).
        lr: Learning rate.
        optimizer: ``'adam'`` or ``'adamw'``.
        betas: Moment decay rates.
        weight_decay: Decoupled (adamw) or L2 (adam) weight decay.
        decay: ``'matrices'`` spares norms and biases, ``'all'`` does not.
        schedule: ``'constant'``, ``'linear'``, ``'cosine'`` (per step, after
            the warm-up) or ``'exponential'`` (0.96^(epoch/50)).
        min_lr: Where the linear and the cosine schedule end.
        warmup_epochs: Linear warm-up from zero.
        clip: Largest gradient norm; :obj:`None` clips nothing.
        accumulate: Batches to a step.
        precision: ``'fp32'``, ``'bf16'`` (autocast) or ``'auto'``: bf16 where the
            device has it. What it only emulates is slower than fp32.
        activation_checkpointing: Recompute the LLM's layers in backward.
        split: The interactions that are trained on: ``'train'``, those and the
            validation items (``'train+val'``) or ``'all'``. Where the validation
            items are among them nothing is validated, and ``epochs`` are trained to
            the end: for a model to be used, once validation has told how many.
        refit: Folder of a run on the training part, of the same settings: what
            validation chose there, the number of epochs or the weights of an
            ensemble, is taken over. For the other choices of ``split``.
        distill: Learn what other runs predict, too (a softmax over all items only);
            :obj:`None` for the targets alone.
        sampling: Positives of pairs: ``'user'`` or ``'interaction'``.
        targets: ``'all'`` positions of a sequence or the ``'last'``.
        num_neg: Sampled negatives of a target, at most as many as there are items.
        max_len: Longest history.
        eval_every: Epochs between validations.
        patience: Validations without improvement before the stop.
        metric: The metric, on validation, that chooses the weights.
        save_minutes: Minutes between resumable states.
        seed: Seed of initialisation, order, negatives and dropout.
    """

    epochs: int = 100
    batch_size: int = 1024
    batch_tokens: int | None = None
    lr: float = 1e-3
    optimizer: Literal['adam', 'adamw'] = 'adam'
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    decay: Literal['matrices', 'all'] = 'matrices'
    schedule: Literal['constant', 'linear', 'cosine', 'exponential'] = 'constant'
    min_lr: float = 0.0
    warmup_epochs: float = 0.0
    clip: float | None = None
    accumulate: int = 1
    precision: Literal['auto', 'fp32', 'bf16'] = 'fp32'
    activation_checkpointing: bool = False
    split: Literal['train', 'train+val', 'all'] = 'train'
    refit: str | None = None
    distill: DistillConfig | None = None
    sampling: Literal['user', 'interaction'] = 'user'
    targets: Literal['all', 'last'] = 'all'
    num_neg: int = 1
    max_len: int = 50
    eval_every: int = 1
    patience: int = 10
    metric: str = 'N@10'
    save_minutes: float = 5.0
    seed: int = 2024

    def __post_init__(self) -> None:
        _at_least(1, self, 'batch_size', 'accumulate', 'max_len', 'eval_every')
        _at_least(0, self, 'epochs', 'lr', 'weight_decay', 'num_neg', 'patience')
        _at_least(0, self, 'min_lr', 'warmup_epochs', 'save_minutes', 'seed')
        for name in ('lr', 'min_lr', 'weight_decay'):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(
                    f"'{name}' needs to be finite (got {getattr(self, name)})"
                )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"'betas' needs to lie in [0, 1) (got {self.betas})")
        if self.batch_tokens is not None:
            _at_least(1, self, 'batch_tokens')
        if self.seed >= 2**32:  # numpy takes no more
            raise ValueError(f"'seed' needs to be below 2^32 (got {self.seed})")
        if self.clip is not None and not self.clip > 0:  # else it turns gradients
            raise ValueError(f"'clip' needs to be above 0 or null (got {self.clip})")


@dataclass(frozen=True)
class EvalConfig:
    """How models are ranked and scored.

    Args:
        ks: Cut-offs.
        batch_size: Users scored at once.
        history: ``'train+val'`` or ``'train'``: what is read at test.
        mask: ``'seen'``, ``'train'`` or ``'none'``: what is not ranked.
    """

    ks: tuple[int, ...] = (10, 20)
    batch_size: int = 512
    history: Literal['train+val', 'train'] = 'train+val'
    mask: Literal['seen', 'train', 'none'] = 'seen'

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"'ks' needs to hold positive cut-offs (got {self.ks})")
        _at_least(1, self, 'batch_size')


@dataclass(frozen=True)
class Config:
    """One experiment, of a ``model``, an ``llm`` or an ``ensemble``.

    Args:
        data: The interactions and the graph.
        model: ``name`` of a class in ``hellm_pyg.nn.models`` beside the
            arguments of its constructor; empty for others.
        llm: The language-model phase; :obj:`None` for others.
        ensemble: Runs that are combined; :obj:`None` for others.
        train: Optimisation.
        eval: Protocol of the reported numbers.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=dict)
    llm: LLMConfig | None = None
    ensemble: EnsembleConfig | None = None
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
