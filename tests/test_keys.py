from __future__ import annotations

import re

import pytest

from hellm_pyg.config import DataConfig
from hellm_pyg.keys import in_words_of


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ("'user' names a column", "'data.user' names a column"),
        ("'k' needs to be lower", "'data.knn' needs to be lower"),
        # Only the arguments that an error is about, and only arguments.
        ("'/log.csv': column 'user' is bad", "'/log.csv': column 'user' is bad"),
        ("'user' and 'item' differ", "'data.user' and 'data.item' differ"),
        (
            "'k', 'x' and 'item' need 'user'",
            "'data.knn', 'x' and 'data.item' need 'user'",
        ),
        ("'data.user' is named", "'data.user' is named"),
        ("leave it out: bad_rows='drop'", 'leave it out: data.bad_rows=drop'),
        ("as data.bad_rows='drop'", "as data.bad_rows='drop'"),
        ("in order='up' (got user=None)", "in order='up' (got user=None)"),
        ("'other' is unknown", "'other' is unknown"),
        ('no row', 'no row'),
    ],
)
def test_errors_name_the_key(text: str, expected: str) -> None:
    with (
        pytest.raises(ValueError, match=f'^{re.escape(expected)}$'),
        in_words_of(DataConfig, 'data', k='data.knn'),
    ):
        raise ValueError(text)


def test_other_errors_pass() -> None:
    @in_words_of(DataConfig, 'data')
    def fail(error: Exception) -> None:
        raise error

    for error in (OSError("'user'"), KeyError('user')):
        with pytest.raises(type(error)) as caught:
            fail(error)
        assert caught.value is error
