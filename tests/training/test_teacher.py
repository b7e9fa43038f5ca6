"""Teachers: their mean prediction after each history, and what they may teach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hellm_pyg.config import DistillConfig, EvalConfig, TrainConfig
from hellm_pyg.data import SequenceLoader
from hellm_pyg.nn.models import GRU4Rec, ItemKNN, LightGCN, SASRec
from hellm_pyg.training import Trainer
from hellm_pyg.training.teacher import Teacher
from tests.nn.models.batches import sequence_batch
from tests.training.toy import CONFIG, ITEMS, USERS, make_data, make_trainer

CPU = torch.device('cpu')


def sasrec(seed: int, **options: Any) -> SASRec:
    torch.manual_seed(seed)
    model = SASRec(ITEMS, 8, num_heads=2, max_len=9, **options)
    for parameter in model.parameters():  # far from a uniform prediction
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def gru4rec(seed: int) -> GRU4Rec:
    torch.manual_seed(seed)
    return GRU4Rec(ITEMS, 8, 8, dropout=0.5, max_len=9)


@pytest.mark.parametrize('every', [True, False])
def test_tells_the_mean_prediction_after_each_history(every: bool) -> None:
    data = make_data()
    models = {'a': sasrec(1, dropout=0.5), 'b': sasrec(2), 'gru': gru4rec(3)}
    rows = [[3, 1, 4], [1, 5], [9]]
    target = [1, 4, 2, 5, 3, 8] if every else [2, 3, 8]
    batch = sequence_batch(rows, target, user=[7, 0, 12])
    seen = [[3], [3, 1], [3, 1, 4], [1], [1, 5], [9]] if every else rows
    soft = Teacher(models, data, 0.3, CPU)(batch)
    assert models['a'].training  # a student that teaches itself would go on
    expected: Tensor = torch.zeros(())
    for model in models.values():
        own: Any = model.eval()
        with torch.no_grad():
            score = own.score(own.encode(data), sequence_batch(seen))
        expected = expected + score.softmax(dim=1) / 3
    assert soft.weight == 0.3
    torch.testing.assert_close(soft[0:9], expected)
    torch.testing.assert_close(soft[1:3], expected[1:3])
    kept = torch.arange(len(expected)) % 2 == 0
    left = soft.of(kept)[0:9]
    torch.testing.assert_close(left, expected[kept])
    assert not left.requires_grad


def test_scores_that_are_not_finite() -> None:
    model = sasrec(0)
    torch.nn.init.constant_(model.item_embedding.weight, torch.nan)
    soft = Teacher({'sick': model}, make_data(), 0.5, CPU)(sequence_batch([[1]], [2]))
    with pytest.raises(ValueError, match=r"'teachers' needs finite .* of 'sick'"):
        soft[0:1]


def test_who_cannot_teach() -> None:
    with pytest.raises(ValueError, match=r"'teachers' needs a recommender at least"):
        Teacher({}, make_data(), 0.5, CPU)
    others = {
        'LightGCN': LightGCN(USERS, ITEMS),
        'ItemKNN': ItemKNN(USERS, ITEMS),
        "SASRec with objective='bce'": sasrec(1, loss='bce'),
        "SASRec with candidates='unseen'": sasrec(1, candidates='unseen'),
    }
    for said, model in others.items():
        with pytest.raises(ValueError, match=rf"'teachers' .* \(got 'a', {said}\)"):
            Teacher({'a': model}, make_data(), 0.5, CPU)
    short = SASRec(ITEMS, 8, max_len=2)
    teacher = Teacher({'a': short}, make_data(), 0.5, CPU)
    with pytest.raises(ValueError, match=r"'teachers' .* all 3 targets .*predicts 2\)"):
        teacher(sequence_batch([[1, 2, 3]], [2, 3, 4]))


TAUGHT = TrainConfig(
    epochs=3,
    batch_size=16,
    lr=0.01,
    max_len=9,
    seed=3,
    distill=DistillConfig(weight=1.0),
)


def trainer(folder: Path, config: TrainConfig = TAUGHT, **options: Any) -> Trainer:
    data = make_data()
    model = options.pop('model', None)
    loader = SequenceLoader(data, 'train', 16, config.max_len, seed=5)
    evaluation = EvalConfig(ks=(5, 10), batch_size=16)
    student = sasrec(4, dropout=0.1) if model is None else model
    return Trainer(student, data, loader, config, folder, evaluation, **options)


def test_a_student_learns_what_its_teacher_predicts(tmp_path: Path) -> None:
    teacher = sasrec(1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    config = replace(TAUGHT, epochs=20, eval_every=20)
    run = trainer(tmp_path / 'run', config, teachers={'seq': teacher})
    batch = next(iter(run.loader))

    def predicted(model: SASRec) -> Tensor:
        with torch.no_grad():
            table = model.eval().encode(run.data)
            scores = model.score_queries(table, model.queries(table, batch))
        return scores.log_softmax(dim=1)

    wanted = predicted(teacher)

    def divergence() -> float:
        return float((wanted.exp() * (wanted - predicted(run.model))).sum())

    at_first = divergence()
    run.fit()
    assert divergence() < 0.5 * at_first
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])
    assert [name for name, _ in run.settings['teachers']] == ['seq']


def test_a_teacher_of_no_weight_changes_no_random_number(tmp_path: Path) -> None:
    plain = trainer(tmp_path / 'plain', replace(TAUGHT, distill=None))
    plain.fit()
    tiny = replace(TAUGHT, distill=DistillConfig(weight=1e-12))
    taught = trainer(tmp_path / 'taught', tiny, teachers={'a': sasrec(1, dropout=0.5)})
    taught.fit()
    for ours, theirs in zip(
        taught.model.parameters(), plain.model.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_run_does_not_go_on_with_another_teacher(tmp_path: Path) -> None:
    trainer(tmp_path, teachers={'seq': sasrec(1)}).fit()
    (tmp_path / 'metrics.json').unlink()
    for others in ({'seq': sasrec(2)}, {'seq': sasrec(1), 'more': sasrec(2)}):
        with pytest.raises(ValueError, match=r'another run: teachers was .*seq'):
            trainer(tmp_path, teachers=others).fit()
    trainer(tmp_path, teachers={'seq': sasrec(1)}).fit()


def test_stopped_in_an_epoch_and_taught_further(tmp_path: Path) -> None:
    teachers = {'seq': sasrec(1, dropout=0.5)}
    config = replace(TAUGHT, save_minutes=0.0)  # a state after every step
    whole = trainer(tmp_path / 'whole', config, teachers=teachers)
    whole.fit()
    stopped = sasrec(4, dropout=0.1)
    batches: list[Any] = []

    def loss(data: Any, batch: Any, soft: Any = None) -> Tensor:
        batches.append(batch)
        if len(batches) == len(whole.loader) + 2:
            raise KeyboardInterrupt
        return SASRec.loss(stopped, data, batch, soft)

    stopped.loss = loss  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / 'run', config, model=stopped, teachers=teachers).fit()
    again = trainer(tmp_path / 'run', config, teachers=teachers)
    again.fit()
    for ours, theirs in zip(
        again.model.parameters(), whole.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_what_cannot_be_taught(tmp_path: Path) -> None:
    teachers = {'seq': sasrec(1)}
    config = replace(CONFIG, distill=DistillConfig())
    with pytest.raises(ValueError, match=r"'distill' needs a model .*\(got Toy\)"):
        make_trainer(tmp_path, config=config, teachers=teachers)

    class Deaf(SASRec):
        def loss(self, data: Any, batch: Any) -> Tensor:  # type: ignore[override]
            return super().loss(data, batch)

    with pytest.raises(ValueError, match=r"\(got Deaf, whose loss takes no 'soft'\)"):
        trainer(tmp_path, model=Deaf(ITEMS, max_len=9), teachers=teachers)
    for options in ({'loss': 'bce'}, {'candidates': 'unseen'}):
        ((name, value),) = options.items()
        name = {'loss': 'objective'}.get(name, name)
        with pytest.raises(ValueError, match=rf"\(got SASRec with {name}='{value}'\)"):
            trainer(tmp_path, model=sasrec(1, **options), teachers=teachers)
    with pytest.raises(ValueError, match=r"'teachers' needs 'distill'.*\['seq'\]"):
        trainer(tmp_path, replace(TAUGHT, distill=None), teachers=teachers)
    with pytest.raises(ValueError, match=r"'teachers' needs a recommender at least"):
        trainer(tmp_path)
