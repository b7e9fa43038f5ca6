"""What the models cost."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report import numbers
from benchmarks.report.cells import Model
from benchmarks.report.tables import Cell, Table, named, remarks

COLUMNS = (
    'model',
    'validation\nN@10',
    'best\nepoch',
    'epochs',
    'an epoch',
    'training',
    'users\na second',
    'trained\nparameters',
    'all\nparameters',
    'model\nfiles',
    'peak\nmemory',
    'device',
)
CAPTION = (
    'Validation N@10 is that of the weights that were kept. Epochs of each seed; the '
    'rest medians over seeds. Training is that of the epochs, of a language model '
    'without the tables that it reads. Where no epochs are recorded, validation may be '
    'in it: that of an ensemble is all that its members took, and the search of its '
    'weights. Users are ranked against all items, at test where that was read, else in '
    'the median validation; how fast another library ranks was not measured. All '
    'parameters are with those of a frozen backbone, which the files of the model are '
    'without. Memory is that of the process, or of its accelerator. Times are of the '
    'device beside them, which may have done other work as well. '
    "'-' was not recorded."
)


def training(models: Sequence[Model]) -> Table:
    """What the models cost, medians over seeds."""
    body = []
    for model in models:
        results = model.results
        devices = dict.fromkeys(r.device for r in results if r.device)
        body.append(
            [
                named(model),
                Cell(numbers.decimal(model.validation)),
                Cell(each(model, 'best_epoch')),
                Cell(each(model, 'epochs')),
                Cell(numbers.duration(model.typical('epoch_seconds'))),
                Cell(numbers.duration(model.typical('training_seconds'))),
                Cell(numbers.size(model.typical('users_per_second'))),
                Cell(numbers.size(model.typical('trained_parameters'))),
                Cell(numbers.size(model.typical('parameters'))),
                Cell(numbers.memory(model.typical('model_bytes'))),
                Cell(numbers.memory(model.typical('peak_memory'))),
                Cell(', '.join(devices) or '-'),
            ]
        )
    last = len(COLUMNS) - 1
    caption = CAPTION + remarks(models)
    return Table('Training', list(COLUMNS), body, caption, words={last})


def each(model: Model, key: str) -> str:
    """What validation says of each seed."""
    found = [result.get('validation', key) for result in model.results]
    return ', '.join('-' if value is None else str(value) for value in found)
