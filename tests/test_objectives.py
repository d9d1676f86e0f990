"""Objectives of training: labels, distillation, temperature, weight decay, and the epoch kept."""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import fx, nn
from torch.utils.data import Dataset, TensorDataset

import scissionlite as sl
from scissionlite.errors import PrepareError
from scissionlite.preprocessor import trainer
from scissionlite.preprocessor.batches import Placement, make_batch
from scissionlite.preprocessor.inserter import SlicedNetwork, insert
from scissionlite.preprocessor.objectives import Distillation, LabelLoss, Objective
from scissionlite.preprocessor.teacher import Teacher

CLASSES = 4
CPU = Placement(torch.device("cpu"), torch.contiguous_format)
LEARNED = sl.TransferSpec(pool_kind="learned", pool=2, reduction=4)
MAX = sl.TransferSpec()
Array = npt.NDArray[np.float64]


def network() -> nn.Module:
    """Four stages of convolution and batch norm, and a classifier with dropout."""
    torch.manual_seed(1)

    def stage(inputs: int, outputs: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    head = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, CLASSES)
    )
    return nn.Sequential(stage(3, 8), stage(8, 8), stage(8, 8), head)


@pytest.fixture(scope="module")
def graph() -> sl.Graph:
    return sl.capture(network().eval(), torch.zeros(1, 3, 12, 12), name="tiny")


def samples(count: int = 24, *, labels_seed: int = 0) -> TensorDataset:
    x = torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    seeded = torch.Generator().manual_seed(labels_seed)
    return TensorDataset(x, torch.randint(CLASSES, (count,), generator=seeded))


def sliced(graph: sl.Graph, recipe: sl.Recipe, spec: sl.TransferSpec = MAX) -> SlicedNetwork:
    torch.manual_seed(0)
    calibration = [samples().tensors[:1]]
    return insert(graph, "0", spec, calibration=calibration, recipe=recipe)


def trained(
    graph: sl.Graph,
    recipe: sl.Recipe,
    data: Dataset[Any],
    *,
    teacher: bool,
    labelled: bool = True,
) -> dict[str, torch.Tensor]:
    """The weights after a training."""
    student = sliced(graph, recipe, LEARNED)
    trainer.train(
        student, data, recipe, teacher=Teacher(graph, "0") if teacher else None, labelled=labelled
    )
    return student.state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Recorder(fx.Interpreter):
    """Runs a graph and keeps the value of every node."""

    def __init__(self, module: nn.Module) -> None:
        assert isinstance(module, fx.GraphModule)
        super().__init__(module)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n.name] = value
        return value


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def error(actual: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean squared error, divided by the reference's variance."""
    a, r = (x.detach().double().numpy() for x in (actual, reference))
    return float(((a - r) ** 2).mean() / r.var())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("device_slice_learns", [False, True])
@pytest.mark.parametrize("spec", [MAX, LEARNED], ids=["max", "learned"])
def test_distillation_is_as_its_formula_says(
    graph: sl.Graph,
    share: float,
    temperature: float,
    device_slice_learns: bool,
    spec: sl.TransferSpec,
) -> None:
    student = sliced(graph, sl.Recipe(train_device_slice=device_slice_learns), spec).eval()
    teacher = Teacher(graph, "0")
    with torch.no_grad():  # as far from the teacher as training may take it
        for parameter in filter(lambda p: p.requires_grad, student.parameters()):
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    x, labels = samples(8).tensors
    batch = make_batch(student, teacher, (x,), labels)
    objective = Distillation(
        student, teacher, sl.CLASSIFICATION, CPU, share=share, temperature=temperature
    )
    step = objective.step(batch)

    with torch.no_grad():
        own, other = Recorder(student.edge_slice), Recorder(graph.split("0")[1])
        arrived = student.transfer(student.features(x))[0]
        reference = graph.split("0")[0](x)
        answer, teacher_answer = own.run(arrived), other.run(reference)
    torch.testing.assert_close(step.answer, answer)
    z, t = answer.double().numpy(), teacher_answer.double().numpy()
    p, q = softmax(t / temperature), softmax(z / temperature)
    divergence = (p * np.log(p / q)).sum(1).mean()
    expected = float(temperature**2 * divergence)
    if device_slice_learns or spec.learned:
        expected += error(arrived, reference)
    names = teacher.hint_nodes
    assert names
    expected += sum(error(own.values[name], other.values[name]) for name in names) / len(names)
    # Cross entropy against labels smoothed by 0.05.
    smooth = 0.95 * np.eye(CLASSES)[labels.numpy()] + 0.05 / CLASSES
    by_label = -float((smooth * np.log(softmax(z))).sum(1).mean())
    expected = share * expected + (1 - share) * by_label
    assert step.loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_label_loss_is_the_tasks(graph: sl.Graph) -> None:
    x, labels = samples(8).tensors
    student = sliced(graph, sl.Recipe()).eval()
    for model in (student, graph.module):
        batch = make_batch(model, None, (x,), labels)
        assert bool(batch.features) == (model is student)  # frozen, so computed beforehand
        step = LabelLoss(model, sl.CLASSIFICATION, CPU).step(batch)
        torch.testing.assert_close(step.answer, model(x))
        expected = nn.functional.cross_entropy(model(x), labels, label_smoothing=0.05)
        torch.testing.assert_close(step.loss, expected)


def test_no_distillation_is_training_by_labels_alone(graph: sl.Graph) -> None:
    x, labels = samples(8).tensors
    teacher = Teacher(graph, "0")
    gradients = []
    for share in (None, 0.0):
        student = sliced(graph, sl.Recipe(train_device_slice=True), LEARNED).eval()
        batch = make_batch(student, teacher, (x,), labels)
        objective: Objective = LabelLoss(student, sl.CLASSIFICATION, CPU)
        if share is not None:
            objective = Distillation(
                student, teacher, sl.CLASSIFICATION, CPU, share=share, temperature=2.0
            )
        objective.step(batch).loss.backward()
        gradients.append([p.grad for p in student.parameters() if p.requires_grad])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_distillation_alone_never_looks_at_labels(graph: sl.Graph) -> None:
    recipe = sl.Recipe(epochs=2, batch_size=8, distillation=1.0, learning_rate=1e-2)
    first = trained(graph, recipe, samples(), teacher=True)
    assert equal(trained(graph, recipe, samples(labels_seed=1), teacher=True), first)
    # Without labels the share is 1, whatever the recipe says.
    half = sl.Recipe(epochs=2, batch_size=8, distillation=0.5, learning_rate=1e-2)
    assert equal(trained(graph, half, samples(), teacher=True, labelled=False), first)
    assert not equal(trained(graph, half, samples(), teacher=True), first)


def test_the_temperature_reaches_the_loss(graph: sl.Graph) -> None:
    weights = [
        trained(graph, sl.Recipe(epochs=1, batch_size=8, temperature=t), samples(), teacher=True)
        for t in (1.0, 4.0)
    ]
    assert not equal(*weights)


def test_only_a_sliced_network_learns_from_a_teacher(graph: sl.Graph) -> None:
    with pytest.raises(PrepareError, match="only a SlicedNetwork can learn from a teacher"):
        trainer.train(network(), samples(), teacher=Teacher(graph, "0"))


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_weight_decay_shrinks_weights_of_several_dimensions_only(
    graph: sl.Graph, decay: float, granularity: Literal["tensor", "channel"]
) -> None:
    recipe = sl.Recipe(epochs=3, batch_size=8, weight_decay=decay, learning_rate=0.02)
    student = sliced(graph, recipe, sl.TransferSpec(granularity=granularity))
    before = copy.deepcopy(dict(student.named_parameters()))
    scales = student.layers[0].quantization
    # Without gradients AdamW does nothing but decay.
    task = sl.Task.of(lambda answer, target: 0 * answer.sum(), lambda answer, target: 0.0)
    trainer.train(student, samples(), recipe, task=task)
    after = dict(student.named_parameters())
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=9)
    kept = 1.0
    for _ in range(9):
        kept *= 1 - float(schedule.get_last_lr()[0]) * decay
        optimizer.step()
        schedule.step()
    assert (kept < 0.98) == bool(decay)
    shrunk = set()
    for name, parameter in after.items():
        trains = name.startswith("edge_slice") and parameter.ndim > 1
        torch.testing.assert_close(parameter, before[name] * (kept if trains else 1.0))
        if not torch.equal(parameter, before[name]):
            shrunk.add(name)
    matrices = {n for n, p in after.items() if n.startswith("edge_slice") and p.ndim > 1}
    assert shrunk == (matrices if decay else set())
    assert any(p.ndim == 1 for n, p in after.items() if n.startswith("edge_slice"))
    assert student.layers[0].quantization == scales


@pytest.mark.parametrize("labelled", [True, False])
def test_the_weights_kept_are_those_of_the_best_epoch(
    graph: sl.Graph, labelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.6, 0.5, 0.6])  # equal is not better
    epochs: list[dict[str, torch.Tensor]] = []

    def score(setup: Any, holdout: Any, model: nn.Module) -> float:
        assert len(holdout.loader.dataset) == 5
        epochs.append(copy.deepcopy(model.state_dict()))
        return next(scores)

    monkeypatch.setattr(trainer, "_holdout_score", score)
    recipe = sl.Recipe(
        epochs=9, batch_size=8, patience=2, holdout=0.2, learning_rate=1e-2, learn_scales=False
    )
    student = sliced(graph, recipe)
    teacher = Teacher(graph, "0")
    record = trainer.train(student, samples(), recipe, teacher=teacher, labelled=labelled)
    assert record.epochs == len(epochs) == 4
    kept = student.state_dict()
    assert [equal(kept, weights) for weights in epochs] == [False, True, False, False]


class _Viewed(nn.Module):
    """Views its features as vectors, which channels-last features do not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(800, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.stem(x)
        answer: torch.Tensor = self.head(features.view(features.shape[0], -1))
        return answer


@pytest.mark.parametrize("labelled", [True, False])
def test_a_view_behind_the_cut_trains_with_a_teacher(labelled: bool) -> None:
    torch.manual_seed(0)
    graph = sl.capture(_Viewed(), torch.zeros(1, 3, 12, 12))
    student = insert(graph, "stem", MAX, calibration=[(torch.randn(4, 3, 12, 12),)])
    recipe = sl.Recipe(epochs=1, batch_size=8)
    teacher = Teacher(graph, "stem")
    record = trainer.train(student, samples(), recipe, teacher=teacher, labelled=labelled)
    assert record.epochs == 1
    assert student(torch.zeros(2, 3, 12, 12)).shape == (2, CLASSES)
