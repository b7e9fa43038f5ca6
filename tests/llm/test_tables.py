from __future__ import annotations

import math

import pytest
import torch

from hellm_pyg.llm.tables import ItemTables

TABLE_30 = torch.ones(30, 2)
TABLES = {'a': torch.arange(6.0).view(3, 2), 'b': -torch.arange(3.0).view(3, 1)}


def test_rows_are_concatenated_in_the_order_asked_for():
    tables = ItemTables(TABLES)
    assert (tables.num_items, tables.width(['a', 'b'])) == (3, 3)
    expected = torch.tensor([[-2.0, 4.0, 5.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(tables(['b', 'a'], torch.tensor([2, 0])), expected)
    torch.testing.assert_close(tables(['a']), TABLES['a'])


def test_only_named_tables_train_and_all_are_saved():
    tables = ItemTables(TABLES, train=['b'])
    assert tables.trained == ['b']
    tables(['a', 'b'], torch.tensor([1, 1])).sum().backward()
    assert tables.weights['a'].grad is None
    assert tables.weights['b'].grad.flatten().tolist() == [0.0, 2.0, 0.0]
    assert sorted(tables.state_dict()) == ['weights.a', 'weights.b']


def test_the_callers_tensors_are_left_alone():
    table = torch.full((2, 2), math.nan)
    tables = ItemTables({'a': table}, train=['a'])
    with torch.no_grad():
        tables.weights['a'].add_(1)
    assert table.isnan().all()
    assert tables(['a']).eq(1).all()


def test_a_row_with_one_nan_is_missing_as_a_whole():
    tables = ItemTables({'a': torch.tensor([[1.0, math.nan], [1.0, 2.0]])})
    assert tables(['a']).tolist() == [[0.0, 0.0], [1.0, 2.0]]


def test_unknown_name():
    with pytest.raises(ValueError, match=r"'train_embeddings' .*got 'c'.*\['a', 'b'\]"):
        ItemTables(TABLES, train=['c'])


@pytest.mark.parametrize('factor', [1.0, 1e-3, 50.0])
def test_rms_scale_takes_the_size_out(factor):
    table = torch.randn(30, 5)
    table[3] = math.nan
    tables = ItemTables({'a': factor * table, 'b': TABLE_30}, ['a'], scale='rms')
    present = torch.arange(30) != 3
    rms = table[present].square().mean().sqrt()
    expected = (table / rms).nan_to_num(0.0)
    torch.testing.assert_close(tables(['a']), expected)
    index = torch.tensor([4, 3, 4])
    torch.testing.assert_close(tables(['b', 'a'], index)[:, 2:], expected[index])
    assert [n for n, p in tables.named_parameters() if p.requires_grad] == ['weights.a']


def test_rms_scale_of_nothing_is_one():
    assert torch.equal(
        ItemTables({'a': torch.zeros(3, 2)}, scale='rms')(['a']), torch.zeros(3, 2)
    )
    with pytest.raises(ValueError, match=r"'table_scale' .*got 'std'"):
        ItemTables(TABLES, scale='std')


@pytest.mark.parametrize('name', ['items', 'keys', 'get', 'training', 'a.b', ''])
def test_names_that_torch_does_not_take(name):
    with pytest.raises(ValueError, match=rf"'item_embeddings' .*\(got '{name}'\)"):
        ItemTables({'a': TABLE_30, name: TABLE_30})


def test_rms_scale_of_large_values_is_finite():
    tables = ItemTables({'a': 1e25 * TABLE_30}, scale='rms')
    torch.testing.assert_close(tables(['a']), TABLE_30)
