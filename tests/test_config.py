from __future__ import annotations

import dataclasses
import re
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hellm_pyg.config import (
    Config,
    DataConfig,
    EnsembleConfig,
    EvalConfig,
    LLMConfig,
    TrainConfig,
    load_config,
    load_run_config,
    nearest,
    recipes,
    save_config,
    save_data_config,
    to_dict,
)

DATASETS = ('beauty', 'toys', 'sports')


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_no_recipe_gives_the_defaults() -> None:
    assert load_config() == Config()


def test_file_and_overrides(tmp_path: Path) -> None:
    recipe = write(
        tmp_path / 'recipe.yaml',
        'model: {name: HeLLMPre, alpha: 0.5}\ntrain: {lr: 1e-3, betas: [0.9, 0]}\n',
    )
    config = load_config(
        recipe, ['train.lr=3e-4', 'model.beta=.1', 'data.features.text=a=b.npy']
    )
    assert config.model == {'name': 'HeLLMPre', 'alpha': 0.5, 'beta': 0.1}
    assert config.train == TrainConfig(lr=3e-4, betas=(0.9, 0.0))
    assert config.data.features == {'text': 'a=b.npy'}
    assert load_config(recipe).train.lr == 1e-3


@pytest.mark.parametrize(
    ('text', 'value'),
    [('1e-3', 1e-3), ('5E+2', 500.0), ('-1.5e3', -1500.0), ('.5e1', 5.0), ('2', 2.0)],
)
def test_numbers_with_exponents(text: str, value: float) -> None:
    config = load_config(None, [f'data.min_rating={text}'])
    assert config.data.min_rating == value


@pytest.mark.parametrize('text', ['1e5', '0E0', '-1.5e3', '007', 'null', 'ü'])
def test_text_that_looks_like_a_number_stays_text(tmp_path: Path, text: str) -> None:
    config = Config(DataConfig(interactions='a.csv', item=text))
    save_config(config, tmp_path / 'config.yaml')
    assert load_config(tmp_path / 'config.yaml') == config


def test_sections_may_be_opened_and_closed() -> None:
    config = load_config(None, ['llm.name=folder', 'llm.prefix.rank=16'])
    assert config.llm == LLMConfig(name='folder', prefix={'rank': 16})
    assert load_config(None, ['llm.name=folder', 'llm=null']).llm is None


def test_override_replaces_a_mapping() -> None:
    config = load_config('finetune_best', ['llm.tables={seq: runs/x}'])
    assert config.llm is not None
    assert config.llm.tables == {'seq': 'runs/x'}


def test_another_model_drops_the_arguments_of_the_former() -> None:
    config = load_config('pretrain_best', ['model.name=SASRec', 'model.num_layers=1'])
    assert config.model == {'name': 'SASRec', 'num_layers': 1}
    swapped = load_config('pretrain_best', ['model.num_layers=1', 'model.name=SASRec'])
    assert swapped == config
    same = load_config('pretrain_best', ['model.name=HeLLMPre'])
    assert same.model == load_config('pretrain_best').model


@pytest.mark.parametrize(
    ('override', 'known'),
    [
        ('train.learning_rate=1', 'train.'),
        ('train.lrr=1', 'train.lr'),
        ('lr=1', 'train.lr'),
        ('batch_size=1', 'train.batch_size'),
        ('trian.lr=1', 'train'),
        ('data.feature.text=a', 'data.features'),
        ('llm.tabels={}', 'llm.tables'),
        ('eval.k=[10]', 'eval.ks'),
        ('history=train', 'eval.history'),
    ],
)
def test_unknown_key_names_the_nearest_and_the_override(
    override: str, known: str
) -> None:
    with pytest.raises(ValueError, match='unknown key') as caught:
        load_config(None, [override])
    assert f"nearest known key is '{known}" in str(caught.value)
    assert f"the override '{override}'" in str(caught.value)


def test_unknown_key_names_the_file(tmp_path: Path) -> None:
    recipe = write(tmp_path / 'mine.yaml', 'train: {epoch: 3}')
    with pytest.raises(ValueError, match=r"'train.epoch' in mine.yaml.*'train.epochs'"):
        load_config(recipe)


@pytest.mark.parametrize(
    ('override', 'expected', 'got'),
    [
        ('train.lr=fast', 'a number', "'fast'"),
        ('train.clip=true', 'a number or null', 'True'),
        ('train.batch_size=1.5', 'an integer', '1.5'),
        ('train.batch_size=true', 'an integer', 'True'),
        ('train.activation_checkpointing=1', 'true or false', '1'),
        ('data.interactions=3', 'text', '3'),
        ('data.features=[a]', 'a mapping', "['a']"),
        ('train.betas=[0.9]', 'a list of a number, a number', '[0.9]'),
        ('eval.ks=10', 'a list of an integer', '10'),
        ('train.optimizer=sgd', "one of 'adam', 'adamw'", "'sgd'"),
        ('llm.scope=null', "one of 'user', 'causal'", 'None'),
        ('llm.token=[graph, 3]', 'text', '3'),
        ('llm.lora={1: 2}', 'a mapping or null', '{1: 2}'),
        ('train=3', 'a mapping', '3'),
        ('llm=off', 'a mapping or null', 'False'),
    ],
)
def test_wrong_type_names_key_value_and_expectation(
    override: str, expected: str, got: str
) -> None:
    with pytest.raises(ValueError, match='needs to be') as caught:
        load_config(None, [override])
    message = str(caught.value)
    assert message.startswith(f"'{override.split('=')[0]}")
    assert message.endswith(f'needs to be {expected} (got {got})')


@pytest.mark.parametrize('name', ['1', 'on', 'null'])
def test_names_that_yaml_does_not_read_as_text(name: str) -> None:
    with pytest.raises(ValueError, match=r"'ensemble.members' .* text .* in quotes"):
        load_config(None, [f'ensemble.members={{{name}: runs/a}}'])
    config = load_config(None, [f"ensemble.members={{'{name}': runs/a}}"])
    assert config.ensemble is not None
    assert config.ensemble.members == {name: 'runs/a'}


@pytest.mark.parametrize(
    'override',
    [
        'train.batch_size=0',
        'data.drop_last=-1',
        'llm.dropout=1',
        'llm.head_dropout=-0.1',
        'llm.smoothing.k=0',
        'llm.smoothing.weight=1.0',
        'train.lr=-1',
        'eval.ks=[]',
        'eval.ks=[0]',
        'train.lr=.nan',
        'train.lr=.inf',
        'train.weight_decay=.inf',
        'train.clip=-1',
        'train.clip=0',
        'train.betas=[1.5, 0.9]',
        'train.betas=[0.9, 1]',
        'train.betas=[-0.1, 0.9]',
        'train.seed=-1',
        'train.seed=4294967296',
        'train.batch_tokens=0',
        'ensemble.grid=[]',
        'ensemble.grid=[0, -0.1]',
        'ensemble.grid=[.nan]',
        'train.min_lr=-1',
    ],
)
def test_values_out_of_range(override: str) -> None:
    with pytest.raises(ValueError, match=r"'\w+' needs to .*\(got"):
        load_config(None, [override])


def test_a_batch_size_that_is_asked_for_counts() -> None:
    assert load_config('sasrec').train.batch_tokens == 1536
    train = load_config('sasrec', ['train.batch_size=9']).train
    assert (train.batch_size, train.batch_tokens) == (9, None)
    both = ['train.batch_tokens=80', 'train.batch_size=9']
    assert load_config('sasrec', both).train.batch_tokens == 80


def test_a_length_that_is_asked_for_is_the_models_too(tmp_path: Path) -> None:
    config = load_config('sasrec', ['train.max_len=20'])
    assert (config.train.max_len, config.model['max_len']) == (20, 20)
    both = load_config('sasrec', ['model.max_len=30', 'train.max_len=20'])
    assert (both.train.max_len, both.model['max_len']) == (20, 30)
    other = load_config('sasrec', ['train.max_len=20', 'model.name=LightGCN'])
    assert 'max_len' not in other.model
    save_config(config, tmp_path / 'config.yaml')
    less = load_run_config(tmp_path / 'config.yaml', ['train.max_len=9'])
    assert (less.train.max_len, less.model['max_len']) == (9, 20)


@pytest.mark.parametrize('override', ['train.lr', '=3', 'train..lr=3', 'train.lr=[1'])
def test_malformed_override(override: str) -> None:
    with pytest.raises(ValueError, match='override'):
        load_config(None, [override])
    with pytest.raises(ValueError, match=r"'name' to be a mapping .got 'SASRec'"):
        load_config('sasrec', ['model.name.x=5'])


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='is not YAML'):
        load_config(write(tmp_path / 'a.yaml', 'train: [1'))
    with pytest.raises(ValueError, match=r'b.yaml is not YAML: .* line 2') as caught:
        load_config(write(tmp_path / 'b.yaml', 'train: {lr: 1}\nmodel: [1'))
    assert '\n' not in str(caught.value)
    with pytest.raises(ValueError, match='sections of keys'):
        load_config(write(tmp_path / 'b.yaml', 'just text'))
    path = write(tmp_path / 'c.yaml', 'datasets: [a]')
    with pytest.raises(ValueError, match=r"'datasets' in c.yaml needs to be a mapping"):
        load_config(path)
    with pytest.raises(ValueError, match="nearest is 'sasrec'"):
        load_config('sasrek')


def test_dataset_lays_a_partial_recipe_over_the_rest(tmp_path: Path) -> None:
    recipe = write(
        tmp_path / 'a.yaml',
        'train: {lr: 0.1, seed: 1}\nmodel: {name: A, x: 1, y: 1}\n'
        'datasets: {other: {train: {lr: 0.2}, model: {x: 2}}, bad: {tra: 1}}\n',
    )
    config = load_config(recipe, ['train.seed=7', 'dataset=other'])
    assert (config.train.lr, config.train.seed) == (0.2, 7)
    assert config.model == {'name': 'A', 'x': 2, 'y': 1}
    with pytest.raises(ValueError, match=r'other, bad \(got .none.\)'):
        load_config(recipe, ['dataset=none'])
    with pytest.raises(ValueError, match=r"'datasets.bad'; .*'train'"):
        load_config(recipe, ['dataset=bad'])


def test_a_dataset_is_given_once(tmp_path: Path) -> None:
    recipe = write(tmp_path / 'a.yaml', 'datasets: {b: {}, c: {}}')
    with pytest.raises(ValueError, match=r"'dataset' .* once \(got 'b' and 'c'\)"):
        load_config(recipe, ['dataset=b', 'train.seed=1', 'dataset=c'])


@pytest.mark.parametrize(
    ('text', 'key', 'line'),
    [
        ('train: {epochs: 2, epochs: 5}', 'epochs', 1),
        ('train: {epochs: 2}\nmodel: {}\n"train": {seed: 1}', 'train', 3),
    ],
)
def test_a_key_is_given_once(tmp_path: Path, text: str, key: str, line: int) -> None:
    match = f"c.yaml is not YAML: the key '{key}' is given twice in line {line}, "
    with pytest.raises(ValueError, match=match):
        load_config(write(tmp_path / 'c.yaml', text))


def test_a_key_is_given_once_in_an_override() -> None:
    with pytest.raises(ValueError, match=r"override 'train=.* 'seed' is given twice"):
        load_config(None, ['train={seed: 1, seed: 2}'])


def test_a_key_may_replace_one_that_is_merged(tmp_path: Path) -> None:
    text = 'train: &a {seed: 1, epochs: 3}\ndatasets: {b: {train: {<<: *a, seed: 2}}}'
    train = load_config(write(tmp_path / 'd.yaml', text), ['dataset=b']).train
    assert (train.seed, train.epochs) == (2, 3)


def test_a_cut_configuration_of_a_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'config.yaml'
    config = load_config('finetune_best', ['eval.ks=[5]', 'eval.mask=none'])
    save_config(config, path)
    assert load_run_config(path) == config
    assert load_run_config(path, ['eval.ks=[3]']).eval.ks == (3,)
    whole = path.read_text()
    near_the_end = range(len(whole) - 60, len(whole) - 1, 3)
    for end in (*range(0, len(whole), 97), *near_the_end):
        path.write_text(whole[:end])
        with pytest.raises(ValueError, match=r'config\.yaml|needs to be'):
            load_run_config(path)
    raw = yaml.safe_load(whole)
    del raw['data']['min_length'], raw['llm']['candidates'], raw['ensemble']
    path.write_text(yaml.dump(raw))
    assert load_run_config(path) == config


def test_nearest_always_names_one() -> None:
    assert nearest('zzz', ['alpha', 'beta']) in {'alpha', 'beta'}


names = st.text(string.ascii_letters, min_size=1, max_size=8)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names


@given(
    data=st.builds(
        DataConfig,
        interactions=st.text(st.characters(exclude_categories=['Cs', 'Cc'])),
        features=st.dictionaries(names, names, max_size=3),
        min_rating=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        knn=st.integers(1, 99),
    ),
    model=st.dictionaries(names, plain, max_size=4),
    llm=st.none()
    | st.builds(
        LLMConfig,
        num_layers=st.none() | st.integers(1, 40),
        token=st.lists(names),
        prefix=st.none() | st.dictionaries(names, plain, max_size=3),
        instruction=st.none() | st.just('### A:\n\n"b": c\n'),
    ),
    ensemble=st.none()
    | st.builds(
        EnsembleConfig,
        members=st.dictionaries(names, names, max_size=3),
        grid=st.lists(st.floats(0, 9), min_size=1).map(tuple),
    ),
    train=st.builds(
        TrainConfig,
        lr=st.floats(0, 1),
        betas=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
        schedule=st.sampled_from(['constant', 'linear', 'cosine', 'exponential']),
    ),
    evaluation=st.builds(
        EvalConfig, ks=st.lists(st.integers(1, 99), min_size=1).map(tuple)
    ),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    data: DataConfig,
    model: dict[str, Any],
    llm: LLMConfig | None,
    ensemble: EnsembleConfig | None,
    train: TrainConfig,
    evaluation: EvalConfig,
) -> None:
    config = Config(data, model, llm, ensemble, train, evaluation)
    path = tmp_path_factory.getbasetemp() / 'config.yaml'
    save_config(config, path)
    assert load_config(path) == config


@pytest.mark.parametrize('name', recipes())
def test_recipes_name_every_field(name: str) -> None:
    raw = yaml.safe_load(recipes()[name].read_text())
    assert set(raw.pop('datasets')) == set(DATASETS)
    llm = None if raw['llm'] is None else LLMConfig()
    ensemble = EnsembleConfig() if 'ensemble' in raw else None
    config = to_dict(Config(llm=llm, ensemble=ensemble))
    if ensemble is None:
        del config['ensemble']
    else:  # nothing is trained
        assert set(raw.pop('train')) == {
            'split',
            'refit',
            'max_len',
            'metric',
            'seed',
        }
        del config['train']
    for section, keys in config.items():
        assert section in raw
        if isinstance(keys, dict) and section != 'model':
            assert set(raw[section]) == set(keys), section
    given = [name for name in ('model', 'llm', 'ensemble') if raw.get(name)]
    assert len(given) == 1


@pytest.mark.parametrize('dataset', DATASETS)
@pytest.mark.parametrize('name', recipes())
def test_recipes_load_for_every_dataset(name: str, dataset: str) -> None:
    config = load_config(name, [f'dataset={dataset}'])
    paths = [
        config.data.interactions,
        config.data.items,
        *config.data.features.values(),
    ]
    assert all(f'amazon_{dataset}/' in str(path) for path in paths)
    if config.llm is not None:
        tables = [t for t in config.llm.tables.values() if ':' not in t]
        assert tables
        assert all(table.startswith(f'runs/{dataset}/') for table in tables)
    if config.train.distill is not None:
        teachers = config.train.distill.runs.values()
        assert all(folder.startswith(f'runs/{dataset}/') for folder in teachers)
    if config.ensemble is not None:
        folders = config.ensemble.members.values()
        assert all(folder.startswith(f'runs/{dataset}/') for folder in folders)


@pytest.mark.parametrize(
    ('dataset', 'layers', 'weights', 'knn', 'temperature', 'lambda_reg'),
    [
        ('sports', (2, 2, 2), (0.7, 0.1), 5, 0.5, 1e-3),
        ('beauty', (2, 2, 1), (0.9, 0.1), 10, 0.5, 1e-4),
        ('toys', (2, 3, 2), (0.03, 0.07), 10, 0.3, 1e-3),
    ],
)
@pytest.mark.parametrize('profile', ['released', 'paper'])
def test_tuned_values_of_stage_one(
    profile: str,
    dataset: str,
    layers: tuple[int, ...],
    weights: tuple[float, ...],
    knn: int,
    temperature: float,
    lambda_reg: float,
) -> None:
    config = load_config(f'pretrain_{profile}', [f'dataset={dataset}'])
    model = config.model
    depth = ('num_layers', 'num_user_layers', 'num_item_layers')
    assert tuple(model[name] for name in depth) == layers
    assert (model['alpha'], model['beta']) == weights
    assert config.data.knn == knn
    assert model['temperature'] == temperature
    assert model['lambda_reg'] == lambda_reg


@pytest.mark.parametrize('dataset', DATASETS)
@pytest.mark.parametrize('name', ['pretrain_best', 'sasrec'])
def test_recipes_are_what_the_search_found(name: str, dataset: str) -> None:
    found = Path(__file__).parents[1] / 'benchmarks' / 'recipes' / f'{name}.yaml'
    own = [f'dataset={dataset}']
    assert load_config(name, own) == load_config(found, own)


def test_the_strongest_language_model_is_the_one_that_was_measured() -> None:
    llm = load_config('finetune_best').llm
    assert llm is not None
    assert (llm.name, llm.num_layers) == ('SmolLM2-135M-Instruct', 4)


def test_runs_that_recipes_read_are_those_that_their_heads_make() -> None:
    command = r'^#   hellm (?:pretrain|finetune) .*--out (runs/\S+)'
    text = '\n'.join(path.read_text() for path in recipes().values())
    made = set(re.findall(command, text, re.MULTILINE))
    for name in recipes():
        config = load_config(name)
        read = [] if config.llm is None else list(config.llm.tables.values())
        if config.train.distill is not None:
            read += config.train.distill.runs.values()
        if config.ensemble is not None:
            read += config.ensemble.members.values()
        assert set(read) <= made, name


def test_profiles_switch_what_the_article_and_the_release_disagree_on() -> None:
    released, paper, best = (
        load_config(f'pretrain_{name}') for name in ('released', 'paper', 'best')
    )
    switched = {key for key in paper.model if paper.model[key] != released.model[key]}
    assert switched == {
        'normalization_user',
        'normalization_item',
        'trainable_hyperedge_weight',
        'contrast_anchor',
        'intra_view',
    }
    assert (released.data.knn_direction, paper.data.knn_direction) == ('row', 'col')
    assert (released.model['scope'], best.model['scope']) == ('full', 'batch')
    tuned = [load_config(f'finetune_{n}').llm for n in ('released', 'paper', 'best')]
    llms = [llm for llm in tuned if llm is not None]
    assert [llm.head for llm in llms] == ['frozen_random', 'linear', 'tied']
    assert [llm.scope for llm in llms] == ['user', 'user', 'causal']
    prefixes = [llm.prefix for llm in llms if llm.prefix is not None]
    assert [prefix['rank'] for prefix in prefixes] == [None, 64, 16]
    assert [prefix['scale'] for prefix in prefixes] == ['sum', 'sum', 'sqrt_l2']
    assert [prefix['gate'] for prefix in prefixes] == ['none', 'none', 'tanh']


@pytest.mark.parametrize(
    ('key', 'values'),
    [
        ('model.normalization_user', {'clique_rw', 'hgnn'}),
        ('model.normalization_item', {'clique_sym', 'hgnn'}),
        ('model.contrast_anchor', {'fused', 'bipartite'}),
        ('model.scope', {'full', 'batch'}),
        ('model.intra_view', {True, False}),
        ('model.trainable_hyperedge_weight', {True, False}),
        ('model.loss', {'softmax', 'sampled_softmax', 'bce'}),
        ('data.knn_direction', {'row', 'col'}),
        ('train.sampling', {'user', 'interaction'}),
        ('train.targets', {'all', 'last'}),
        ('llm.scope', {'user', 'causal'}),
        ('llm.head', {'frozen_random', 'linear', 'tied'}),
        ('llm.prefix.rank', {None, 64, 16}),
        ('llm.prefix.scale', {'sum', 'sqrt_l2'}),
        ('llm.prefix.gate', {'none', 'tanh'}),
    ],
)
def test_recipes_switch_named_choices(key: str, values: set[object]) -> None:
    found = set()
    for name in recipes():
        value: Any = to_dict(load_config(name))
        *sections, leaf = key.split('.')
        for section in sections:
            value = value.get(section) or {}
        if leaf in value:
            found.add(value[leaf])
    assert found == values


def test_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.lr = 1.0  # type: ignore[misc]


def test_dataset_may_be_a_prepared_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig(
        interactions='log.parquet',
        root='cache',
        user='who',
        time_unit='s',
        features={'image': 'x/image.npy'},
        val_from='2024-05-01',
        test_from=7,
        knn=99,
    )
    (tmp_path / 'shop').mkdir()
    save_data_config(data, tmp_path / 'shop')
    monkeypatch.chdir(tmp_path)
    recipe = load_config('pretrain_released')
    config = load_config('pretrain_released', ['dataset=shop', 'data.min_count=2'])
    shop = tmp_path / 'shop'
    assert config.data == dataclasses.replace(
        data,
        interactions=str(shop / 'log.parquet'),
        root=str(shop / 'cache'),
        features={'image': str(shop / 'x' / 'image.npy')},
        min_count=2,
        knn=recipe.data.knn,
        knn_direction=recipe.data.knn_direction,
    )
    assert (config.model, config.train) == (recipe.model, recipe.train)
    assert load_config(None, ['dataset=shop/']).data.interactions.startswith(str(shop))
    save_data_config(dataclasses.replace(data, knn=4), shop)
    for own, knn in (([], 4), (['data.knn=2'], 2), (['data.knn=6'], 6)):
        config = load_config('pretrain_released', ['dataset=shop', *own])
        assert config.data.knn == knn
    (tmp_path / 'three.yaml').write_text('data: {knn: 3}\n')
    assert load_config('three.yaml', ['dataset=shop']).data.knn == 3
    (tmp_path / 'word.yaml').write_text('data: {knn: x}\n')
    with pytest.raises(ValueError, match=r'data\.knn'):
        load_config('word.yaml', ['dataset=shop'])
    (shop / 'dataset.yaml').write_text('data: {interaction: x}\n')
    with pytest.raises(ValueError, match=r"'data\.interaction' in .*yaml"):
        load_config(None, ['dataset=shop'])
    (shop / 'dataset.yaml').unlink()
    with pytest.raises(ValueError, match=r"'shop', a folder without 'dataset"):
        load_config('sasrec', ['dataset=shop'])


def test_dates_stay_text(tmp_path: Path) -> None:
    dates = ['data.val_from=2024-05-01', 'data.test_from=2024-06-01T12:00:00']
    config = load_config(None, dates)
    assert config.data.val_from == '2024-05-01'
    assert config.data.test_from == '2024-06-01T12:00:00'
    save_config(config, tmp_path / 'config.yaml')
    assert load_config(tmp_path / 'config.yaml') == config
