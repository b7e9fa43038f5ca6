"""The paths of a configuration, with variables and from any folder."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path

from hellm_pyg.config import Config, DataConfig, LLMConfig


def expand(value: str, key: str) -> str:
    """Expands ``${VARIABLES}`` and makes a path absolute.

    Raises:
        ValueError: If a variable is not set.
    """
    expanded = os.path.expandvars(value)
    unset = re.search(r'\$(?:\{(\w+)\}|(\w+))', expanded)
    if unset:
        name = unset[1] or unset[2]
        raise ValueError(
            f"'{key}' reads the environment variable {name!r}, which is not set (got "
            f"{value!r}): set it, as in 'export {name}=/path/of/a/folder', or give the "
            f"path, '{key}=...'"
        )
    return str(Path(expanded).expanduser().absolute())


def _expand_all(paths: Mapping[str, str], key: str) -> dict[str, str]:
    return {name: expand(path, f'{key}.{name}') for name, path in paths.items()}


def resolve_paths(config: Config) -> Config:
    """Expands ``${VARIABLES}`` and makes every path absolute.

    Raises:
        ValueError: If a path is missing or names a variable that is not set.
    """
    llm = None if config.llm is None else resolve_llm(config.llm)
    ensemble = config.ensemble
    if ensemble is not None:
        members = _expand_all(ensemble.members, 'ensemble.members')
        ensemble = dataclasses.replace(ensemble, members=members)
    data, train = resolve_data(config.data), config.train
    if train.refit is not None:
        refit = expand(train.refit, 'train.refit')
        train = dataclasses.replace(train, refit=refit)
    if train.distill is not None:
        runs = _expand_all(train.distill.runs, 'train.distill.runs')
        distill = dataclasses.replace(train.distill, runs=runs)
        train = dataclasses.replace(train, distill=distill)
    return dataclasses.replace(
        config, data=data, llm=llm, ensemble=ensemble, train=train
    )


def resolve_data(data: DataConfig) -> DataConfig:
    """Resolves the paths of the section ``data``, see :func:`resolve_paths`."""
    if not data.interactions:
        raise ValueError("'data.interactions' needs a file (got nothing)")
    return dataclasses.replace(
        data,
        interactions=expand(data.interactions, 'data.interactions'),
        root=expand(data.root, 'data.root'),
        items=None if data.items is None else expand(data.items, 'data.items'),
        features=_expand_all(data.features, 'data.features'),
    )


def resolve_llm(llm: LLMConfig) -> LLMConfig:
    """Resolves the paths of the section ``llm``, see :func:`resolve_paths`."""
    is_path = llm.name.startswith(('.', '/', '~', '$')) or Path(llm.name).is_dir()
    return dataclasses.replace(
        llm,
        name=expand(llm.name, 'llm.name') if is_path else llm.name,
        tables={
            name: source
            if source.startswith(('features:', 'random:'))
            else expand(source, f'llm.tables.{name}')
            for name, source in llm.tables.items()
        },
    )
