"""Serves recommendations over HTTP: one forward pass a request, nothing is decoded.

    python examples/serve.py --model runs/shop/hellm --port 8000
    curl localhost:8000 -d '{"history": ["p1", "p7"], "k": 5}'
    curl localhost:8000 -d '{"history": ["p1"], "candidates": ["p3", "p4", "p9"]}'
    curl localhost:8000 -d '{"user": "u7"}'      # all that the data know of a user
    curl localhost:8000     # is it up, and how large is the catalogue?
    python examples/serve.py --model runs/shop/hellm --measure 200 --clients 4
    python examples/serve.py dataset=/new/shop --model runs/shop/hellm

``--model`` is the folder of a run, of which overrides may say where its data are now,
or of ``save_pretrained``; without it a tiny random LLaMA is trained on synthetic data
first. The catalogue is encoded once. As in ``hellm recommend``, the last
``train.max_len`` items of a history are read; items that the model has never seen are
left out, and listed as ``unknown``. Where ``candidates`` are given, such as what is in
stock, they alone are ranked. A run knows its users by their ids, too; what a request
has as ``history`` beside the ``user`` came after the data; models that know users by
vectors of their own, such as LightGCN, do not read it. Requests that wait while
another is computed join in one forward pass. Mind that this is an example: there is no
access control, and it listens to this machine alone.
"""

import argparse
import json
import queue
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData
from transformers import LlamaConfig, LlamaModel

from hellm_pyg.config import TrainConfig
from hellm_pyg.data import SequenceBatch, SequenceLoader, fold_in, history_edges
from hellm_pyg.datasets import FakeRecDataset, IdMap
from hellm_pyg.evaluation import inference, top_k
from hellm_pyg.experiment import load_run
from hellm_pyg.llm import LLMRecommender, Prompt, llara, load_model
from hellm_pyg.nn.models import SASRec
from hellm_pyg.training import Trainer
from hellm_pyg.transforms import LeaveOneOut

parser = argparse.ArgumentParser()
parser.add_argument('overrides', nargs='*', help="of a run's recipe")
parser.add_argument('--model', type=Path, default=None, help='folder')
parser.add_argument('--port', type=int, default=8000, help='0 for a free one')
parser.add_argument('--batch-size', type=int, default=32, help='requests joined')
parser.add_argument('--measure', type=int, default=0, help='time so many requests')
parser.add_argument('--clients', type=int, default=1, help='that ask at once')
args = parser.parse_args()
if args.measure < 0 or args.clients < 1:
    parser.error("'--measure' needs 0 or more, '--clients' 1 or more")


def train_tiny(folder: Path) -> None:
    """Leaves a LLaMA of two layers that reads the items of a SASRec."""
    seed_everything(2024)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    LlamaModel(config).save_pretrained(folder / 'tiny-llama')
    dataset = FakeRecDataset(400, 120, pre_transform=LeaveOneOut())
    data = dataset[0]
    loader = SequenceLoader(data, 'train', batch_size=64, targets='all')
    sasrec = SASRec(dataset.ids.num_items)
    Trainer(
        sasrec, data, loader, TrainConfig(epochs=10, lr=5e-3), folder / 'sasrec'
    ).fit()
    seq = sasrec.embeddings(data)['item']
    llm = load_model(str(folder / 'tiny-llama'))
    prompt = Prompt(before=tuple(range(1, 9)))
    model = llara(llm, prompt, seq, scope='causal', head='tied')
    Trainer(model, data, loader, TrainConfig(epochs=5, lr=3e-3), folder / 'llara').fit()
    model.save_pretrained(folder / 'saved', ids=dataset.ids)


def load(folder: Path) -> tuple[Any, IdMap, HeteroData | None, int]:
    """A model, its ids, the data that it reads, and how many items of a history."""
    if not (folder / 'hellm.json').is_file():
        run = load_run(folder, args.overrides)
        data = fold_in(run.data, 'all')
        return run.model, run.ids, data, run.config.train.max_len
    model = LLMRecommender.from_pretrained(folder)
    if model.ids is None:
        sys.exit(f"'{folder}' was saved without ids: save_pretrained(folder, ids=ids)")
    return model, model.ids, None, model.max_len


if args.model is None:
    with tempfile.TemporaryDirectory() as temporary:
        train_tiny(Path(temporary))
        model, ids, data, max_len = load(Path(temporary, 'saved'))
else:
    try:
        model, ids, data, max_len = load(args.model)
    except (OSError, ValueError) as error:  # no folder, or not all of its files
        sys.exit(str(error))

known_users = IdMap([], ids.users)  # looks up without a search for the like
most = min(ids.num_items, 1000)  # items of an answer
past = None if data is None else history_edges(data, 'all')  # of each user
device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
model.to(device)
with inference(model):
    encoded = model.encode(None if data is None else data.to(device))
Answer = Future[tuple[list[int], list[float]]]  # items and their scores
# User (-1 for a new one), history, candidates (None for all items), k, answer.
Job = tuple[int, Tensor, Tensor | None, int, Answer]
waiting: queue.Queue[Job] = queue.Queue()
sizes: deque[int] = deque(maxlen=100_000)  # of the last forward passes


def rank(
    users: Sequence[int],
    histories: Sequence[Tensor],
    candidates: Sequence[Tensor | None],
    k: int,
) -> tuple[Tensor, Tensor]:
    """The best items of users, new ones being their histories, and the scores."""
    read = [history[-max_len:] for history in histories]
    length = torch.tensor([items.numel() for items in read])
    row = torch.arange(len(read)).repeat_interleave(length)
    batch = SequenceBatch(torch.tensor(users), torch.cat(read), row)
    with inference(model):
        scores = model.score(encoded, batch.to(device))
    scores = scores.float().cpu()
    if not scores.isfinite().all():
        raise ValueError('the scores are not finite: the model has diverged')
    for score, seen, some in zip(scores, histories, candidates, strict=True):
        score[seen] = -torch.inf
        if some is not None:
            left = score[some]
            score.fill_(-torch.inf)[some] = left
    return top_k(scores, k)


def finish(jobs: Sequence[Job]) -> None:
    """Answers requests in one forward pass, or in one each if that fails."""
    users, histories, candidates, ks, futures = zip(*jobs, strict=True)
    sizes.append(len(jobs))
    try:
        items, scores = rank(users, histories, candidates, max(ks))
    except Exception as error:  # the server goes on, and says so
        if len(jobs) == 1:
            futures[0].set_exception(RuntimeError(str(error)))
            return
        for job in jobs:
            finish([job])
        return
    for k, future, item, score in zip(ks, futures, items, scores, strict=True):
        future.set_result((item[:k].tolist(), score[:k].tolist()))


def work() -> None:
    """Takes all requests that wait together, again and again."""
    while True:
        jobs = [waiting.get()]
        while len(jobs) < args.batch_size and not waiting.empty():
            jobs.append(waiting.get())
        finish(jobs)


def known(
    request: dict[str, Any], key: str, least: int = 1
) -> tuple[list[Any], list[Any]]:
    """The items of a list in a request that the model knows, and the others."""
    if not isinstance(request[key], list):
        raise ValueError(f"'{key}' needs to be a list of item ids")
    found = ids.known_items(request[key])
    unknown = [item for item in request[key] if not ids.known_items([item])]
    if len(found) < least:
        raise ValueError(
            f"'{key}' needs at least one item id that is known (got {unknown[:5]})"
        )
    return found, unknown


def past_of(user: Any) -> tuple[int, Tensor]:
    """A user's index, and all that the data know of them."""
    if past is None:
        raise ValueError(
            f"'user' needs '--model' to be the folder of a run (got {user!r}): what "
            f"save_pretrained writes has no histories, give 'history' alone"
        )
    if not known_users.known_items([user]):
        raise ValueError(f'unknown user {user!r}')
    index = int(ids.user_index([user]))
    return index, past.item[past.ptr[index] : past.ptr[index + 1]]


def answer(request: Any) -> dict[str, Any]:
    """The response to a request; a ValueError says what is wrong with it."""
    given = request if isinstance(request, dict) else {}
    if given.get('history') is None and given.get('user') is None:
        raise ValueError('a request needs the form {"history": [id, ...], "k": 10}')
    k = request.get('k', 10)
    if type(k) is not int or not 1 <= k <= most:
        raise ValueError(f"'k' needs to be from 1 to {most} (got {k!r})")
    user, history, candidates = -1, torch.empty(0, dtype=torch.long), None
    unknown: dict[str, list[Any]] = {'unknown': []}
    if request.get('user') is not None:
        user, history = past_of(request['user'])
    if request.get('history') is not None:
        later, unknown['unknown'] = known(request, 'history', least=int(user < 0))
        history = torch.cat([history, ids.item_index(later)])
    if request.get('candidates') is not None:
        some, unknown['unknown_candidates'] = known(request, 'candidates')
        candidates = ids.item_index(some)
    future: Answer = Future()
    waiting.put((user, history, candidates, k, future))
    found = zip(*future.result(), strict=True)
    items = [
        {
            'item': ids.item_id(item),
            'title': (ids.titles[item] or None) if ids.titles else None,
            'score': score,
        }
        for item, score in found
        if score > -torch.inf  # fewer than k may be left
    ]
    return {'items': items, **unknown}


class Handler(BaseHTTPRequestHandler):
    """JSON in, JSON out, status 400 and the reason for what cannot be answered."""

    protocol_version = 'HTTP/1.1'  # a connection may send many requests
    wbufsize = -1  # head and body leave together
    timeout = 60  # seconds that a connection may be silent

    def do_GET(self) -> None:
        """Tells that the server is up."""
        self.reply(200, {'items': ids.num_items})

    def do_POST(self) -> None:
        """Answers one request."""
        try:
            size = self.headers.get('Content-Length', '')
            if not size.isdecimal() or len(size) > 6:
                self.close_connection = True  # the body is not read
                raise ValueError(
                    f"'Content-Length' needs to be below 10^6 (got {size!r})"
                )
            content = self.rfile.read(int(size))
            status, body = 200, answer(json.loads(content))
        except ValueError as error:  # of JSON and of unknown ids, too
            status, body = 400, {'error': str(error)}
        except Exception as error:
            self.close_connection = True  # of what it has sent, some may be left
            status, body = 500, {'error': repr(error)}
        self.reply(status, body)

    def reply(self, status: int, body: dict[str, Any]) -> None:
        """Sends JSON."""
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Stays silent."""


class Server(ThreadingHTTPServer):
    """A thread a connection."""

    request_queue_size = 1024  # connections that wait for theirs; others are reset


def ask(port: int, number: int, count: int, seconds: list[float]) -> None:
    """A client that sends random histories, the same each time, over one connection."""
    connection = HTTPConnection('127.0.0.1', port)
    generator = torch.Generator().manual_seed(number)
    for _ in range(count):
        length = int(torch.randint(1, min(20, ids.num_items), (), generator=generator))
        items = torch.randint(ids.num_items, (length,), generator=generator)
        history = ids.item_id(items)
        body = json.dumps({'history': history, 'k': min(10, ids.num_items)})
        began = time.perf_counter()
        connection.request('POST', '/', body)
        response = connection.getresponse()
        content = response.read()
        seconds.append(time.perf_counter() - began)
        if response.status != 200:
            raise RuntimeError(f'{response.status}: {content.decode()}')


threading.Thread(target=work, daemon=True).start()
server = Server(('127.0.0.1', 0 if args.measure else args.port), Handler)
port = server.server_address[1]
if not args.measure:
    example = json.dumps({'history': ids.item_id([0, 1]), 'k': 5})
    print(f"curl http://127.0.0.1:{port} -d '{example}'", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit()

threading.Thread(target=server.serve_forever, daemon=True).start()
ask(port, 0, 10, [])  # the first ones pay for what is set up late
sizes.clear()
seconds: list[float] = []
began = time.perf_counter()
share = [args.measure // args.clients] * args.clients
share[0] += args.measure % args.clients
clients = [
    threading.Thread(target=ask, args=(port, number, count, seconds))
    for number, count in enumerate(share)
]
for client in clients:
    client.start()
for client in clients:
    client.join()
total = time.perf_counter() - began
if len(seconds) < args.measure:
    sys.exit(f'{args.measure - len(seconds)} requests have failed')
p95 = sorted(seconds)[int(0.95 * len(seconds))]
print(f'{len(seconds)} requests of {args.clients} clients, {ids.num_items} items')
print(f'latency: median {1000 * statistics.median(seconds):.1f} ms, ', end='')
print(f'95 % within {1000 * p95:.1f} ms')
print(f'throughput: {len(seconds) / total:.1f} requests/s, ', end='')
print(f'{statistics.mean(sizes):.1f} requests a forward pass')
