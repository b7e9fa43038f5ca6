import pytest

from benchmarks.report.names import (
    name_of,
    printed_all,
    printed_for,
    printed_rows,
    tables,
    title_of,
)
from hellm_pyg.evaluation import Protocol


@pytest.mark.parametrize(
    ('cell', 'recipe', 'peer', 'expected'),
    [
        ('lightgcn', '', None, ('LightGCN', 'graph')),
        ('item_knn', '', None, ('Item-kNN', 'floor')),
        ('sasrec_bce', '', None, ('SASRec, BCE', 'sequential')),
        ('hellm_pre_no_u2u', '', None, ('HeLLMPre without U2U', 'hypergraph')),
        ('hellm_8_layers', '', None, ('HeLLM, 8 layers', 'language model')),
        ('ensemble_without_llm', '', None, ('Ensemble without the LLM', 'ensemble')),
        ('ensemble_two_sasrecs', '', None, ('Ensemble, two SASRecs', 'ensemble')),
        ('both', 'ensemble', None, ('both', 'ensemble')),
        ('knn-5', 'pretrain_best', None, ('knn-5', 'hypergraph')),
        ('mine', '', None, ('mine', 'other')),
        ('my_own-llm', '', None, ('my_own-llm', 'other')),
        ('released_1024', '', None, ('HeLLMPre, released, 1024', 'hypergraph')),
        ('pretrain_best', '', None, ('HeLLMPre, best', 'hypergraph')),
        ('hellm_my_thing', '', None, ('HeLLM, my thing', 'language model')),
        ('hellm_no_prefix', '', None, ('HeLLM without the prefix', 'language model')),
        (
            'sasrec_sampled_256_train_val',
            '',
            None,
            ('SASRec, sampled softmax, 256, train+val', 'sequential'),
        ),
        ('train_val', '', None, ('train_val', 'other')),
        ('layers', 'finetune_best', None, ('layers', 'language model')),
        ('rectools_sasrec', '', 'rectools 0.1', ('RecTools SASRec', 'other library')),
    ],
)
def test_names(cell: str, recipe: str, peer: str | None, expected: tuple) -> None:
    assert name_of(cell, recipe, peer) == expected


def test_names_of_points() -> None:
    point = {'data.knn': 5}
    assert name_of('knn', 'pretrain_best', None, point) == ('knn=5', 'hypergraph')
    assert name_of('mine', grid=point).label == 'mine: knn=5'
    point = {'model.alpha': 0.10, 'llm.prefix': None}
    assert name_of('hellm_8_layers', grid=point).label == (
        'HeLLM, 8 layers: alpha=0.1, prefix=none'
    )


@pytest.mark.parametrize(
    ('table', 'title'),
    [
        ('table1', 'Table 1'),
        ('fig3_reduced', 'Fig. 3, reduced'),
        ('table1_llama', 'Table 1, llama'),
        ('held_out', 'held out'),
        ('chart3', 'chart3'),
    ],
)
def test_titles_of_tables(table: str, title: str) -> None:
    assert title_of(table) == title


@pytest.mark.parametrize(
    ('cell', 'model'),
    [
        ('lightgcn', 'LightGCN'),
        ('hellm', 'HeLLM'),
        ('hellm_8_layers', 'HeLLM'),
        ('hellm_30_layers', 'HeLLM'),
        ('hellm_pre', 'HeLLM_pre'),
        ('hellm_pre_released', 'HeLLM_pre'),
        ('hellm_pre_no_u2u', 'HeLLM_pre w/o-U2U'),
        ('hellm_pre_no_i2i', 'HeLLM_pre w/o-I2I'),
        ('hellm_pre_no_cl', 'HeLLM_pre w/o-CL'),
        ('hellm_no_prefix', 'HeLLM w/o-GNN_PEFT'),
        ('hellm_no_graph', 'HeLLM w/o-GNN_ID'),
        ('hellm_no_seq', 'HeLLM w/o-Seq_ID'),
        ('sasrec_bce', 'SASRec, BCE'),
        ('sasrec_sampled', 'SASRec, sampled softmax'),
    ],
)
def test_printed_row_of_a_cell(cell: str, model: str) -> None:
    found = printed_for(cell, 'beauty')
    assert found is not None
    assert found.model == model


def test_all_printed_rows_of_a_cell() -> None:
    found = [(row.source[:24], row.model) for row in printed_all('hellm', 'toys')]
    assert len({source for source, _ in found}) == 1  # both of the article
    assert [model for _, model in found] == ['HeLLM', 'HeLLM']
    assert [row.model for row in printed_all('hellm_pre', 'toys')] == ['HeLLM_pre']


@pytest.mark.parametrize(
    'cell',
    [
        'hellm_no_llm',
        'hellm_no_llm_small',
        'hellm_random',
        'hellm_frozen',
        'hellm_trained-lr=0.001',
        'hellm_no_text',
        'hellm_refit',
        'hellm_pre_refit',
    ],
)
def test_printed_rows_of_hellm_are_of_no_other_model(cell: str) -> None:
    assert printed_all(cell, 'beauty') == []


def test_cells_without_a_printed_row() -> None:
    assert printed_all('sasrec', 'beauty') == []
    assert printed_for('sasrec', 'beauty') is None
    assert printed_for('lightgcn', 'movielens') is None
    assert printed_rows('movielens') == []


def test_printed_numbers_are_whole_and_plausible() -> None:
    sizes = [len(table['rows']) for table in tables()]
    assert sizes == [10, 8, 2, 4]
    graph, language = Protocol('train', 'train'), Protocol('train+val', 'none')
    protocols = {str(graph), str(language), str(Protocol())}
    protocols.add(f'{Protocol()} (scored 0)')  # instead of not being ranked
    for dataset in ('beauty', 'sports', 'toys'):
        for _, rows in printed_rows(dataset):
            for row in rows:
                assert row.protocol in protocols
                value = row.metrics
                for k in (10, 20):
                    if f'R@{k}' in value:
                        assert 0 < value[f'N@{k}'] < value[f'R@{k}'] < 0.15
                if {'R@10', 'R@20'} <= set(value):
                    assert value['R@10'] < value['R@20']
                    assert value['N@10'] < value['N@20']


def test_seen_items_that_are_scored_0_are_another_protocol() -> None:
    for cell in ('popularity', 'gru4rec', 'sasrec_bce'):
        found = printed_for(cell, 'toys')
        assert found is not None
        assert found.protocol == f'{Protocol()} (scored 0)'


def test_rows_of_both_tables_agree() -> None:
    found = [{row.model: row for row in rows} for _, rows in printed_rows('sports')]
    one, three = found[:2]
    for metric, value in three['HeLLM'].metrics.items():
        assert one['HeLLM'].metrics[metric] == value
    assert one['HeLLM'].metrics['N@20'] == 0.0279
    assert three['HeLLM_pre'].metrics == {'R@20': 0.0542, 'N@20': 0.0221}
