"""A shop's files as a shop has them: orders, a catalogue, pictures."""

from __future__ import annotations

import random
from datetime import date, timedelta
from pathlib import Path

NUM_USERS, NUM_ITEMS = 20, 14
# Items without a picture, and the one without a name and a brand.
NO_PICTURE, NO_TEXT = (0, 1), 5


def write_orders(folder: Path) -> tuple[Path, Path]:
    """Writes ``orders.csv`` and ``catalogue.csv``.

    The first customer has two orders; everybody else has six, of other products,
    ten days apart.
    """
    generator = random.Random(0)
    lines = []
    for user in range(NUM_USERS):
        items = generator.sample(range(NUM_ITEMS), 6 if user else 2)
        for step, item in enumerate(items):
            day = date(2024, 1, 1) + timedelta(days=user + 10 * step)
            lines.append(f'C-{user:02d},SKU-{item:02d},{day},{1 + step % 5}\n')
    generator.shuffle(lines)
    orders, catalogue = folder / 'orders.csv', folder / 'catalogue.csv'
    orders.write_text('customer,sku,ordered_at,stars\n' + ''.join(lines))
    rows = [
        ',' if item == NO_TEXT else f'"thing, {("red", "blue")[item % 2]}",Acme'
        for item in range(NUM_ITEMS)
    ]
    catalogue.write_text(
        'sku,name,brand\n'
        + ''.join(f'SKU-{item:02d},{row}\n' for item, row in enumerate(rows))
    )
    return orders, catalogue


def write_pictures(folder: Path) -> Path:
    """Writes a JPEG or PNG an item, named by its id."""
    from PIL import Image

    folder.mkdir()
    for item in range(NUM_ITEMS):
        if item not in NO_PICTURE:
            ending = ('jpg', 'png')[item % 2]
            picture = Image.new('RGB', (24, 24), (10 * item, 0, 99))
            picture.save(folder / f'SKU-{item:02d}.{ending}')
    return folder
