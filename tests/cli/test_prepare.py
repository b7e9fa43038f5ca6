from __future__ import annotations

import re
from pathlib import Path

from tests.shop import NUM_ITEMS, NUM_USERS, write_shop

from .running import hellm


def test_prepare_prints_the_data_card(tmp_path: Path) -> None:
    output = hellm('prepare', 'sasrec', *write_shop(tmp_path)).stdout
    assert re.search(rf'users +│ {NUM_USERS} ', output)
    assert re.search(rf'items +│ {NUM_ITEMS} ', output)
    assert re.search(r'text features +│ 3 wide', output)
    bare = [text for text in write_shop(tmp_path) if text.startswith('data')]
    assert hellm('prepare', *bare).stdout == output
    assert hellm('prepare', 'recipe', *bare).stdout == output
    (card,) = re.findall(r'^Data card: (.*)$', output, re.MULTILINE)
    assert 'log.csv' in Path(card).read_text()
    assert Path(card).with_suffix('.json').is_file()
