"""Each loss against scipy, and the exactness of sums and counts."""

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax

from danlu.batch import PADDING, Batch
from danlu.model.backbone import BackboneConfig
from danlu.model.heads import Scores, build, scored_positions
from danlu.train import objective as objectives
from tolerances import SIMPLE

CONFIG = BackboneConfig(
    vocab_size=20, num_layers=2, dim=16, num_heads=2, num_kv_heads=1, head_dim=8, hidden_dim=24
)
LENGTHS = [3, 9, 5, 7, 2, 8, 4, 6]


def batch(lengths=LENGTHS, label=None, weight=None, target=None, seed=0):
    """One document in each row."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(LENGTHS)
    ids = torch.randint(4, 20, (len(lengths), longest), generator=generator)
    document = torch.full((len(lengths), longest), PADDING)
    for number, length in enumerate(lengths):
        document[number, :length] = number
    position = torch.arange(longest).expand(len(lengths), longest)
    return Batch(ids, position, document, len(lengths), target, weight, label=label)


def parts_of(whole, sizes):
    """Cut a batch of one-document rows into smaller batches."""
    parts, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        document = whole.document_BT[rows]
        target, weight, label = (
            None if value is None else value[rows]
            for value in (whole.target_BT, whole.weight_BT, whole.label)
        )
        document = torch.where(document == PADDING, PADDING, document - start)
        ids, position = whole.ids_BT[rows], whole.position_BT[rows]
        parts.append(Batch(ids, position, document, size, target, weight, label=label))
        start += size
    return parts


def given(kind):
    """A batch with everything that an objective of this kind needs, and the objective."""
    torch.manual_seed(4)
    if kind in ("masked", "causal"):
        weight = torch.rand(8, 9) * (torch.rand(8, 9) < 0.4) * (batch().document_BT != PADDING)
        target = torch.randint(0, 20, (8, 9))
        return batch(weight=weight, target=target), objectives.tokens()
    if kind == "classify":
        return batch(label=torch.randint(0, 3, (8,))), objectives.classes(0.1)
    if kind == "multilabel":
        return batch(label=(torch.rand(8, 3) < 0.5).float()), objectives.several_labels()
    return batch(label=torch.randn(8, 3)), objectives.error()


def scores_of(logits_BTV, weight_BT):
    """Return logits as a head gives them: a layer that takes each position to its logits."""
    positions = scored_positions(weight_BT)
    hidden_MD = logits_BTV.flatten(0, 1)[positions]
    return Scores(hidden_MD, torch.eye(hidden_MD.shape[-1]), None, positions)


KINDS = ["masked", "causal", "classify", "multilabel", "regress"]


def test_the_loss_over_tokens_is_the_weighted_sum_of_surprises():
    whole, objective = given("masked")
    weight, target = whole.weight_BT.double().numpy(), whole.target_BT.numpy()
    logits = 3 * torch.randn(8, 9, 20)
    surprise = -log_softmax(logits.double().numpy(), axis=-1)
    wanted = sum(
        weight[row, column] * surprise[row, column, target[row, column]]
        for row in range(8)
        for column in range(9)
    )
    found = float(objective.total(scores_of(logits, whole.weight_BT), whole))
    assert found == pytest.approx(wanted, rel=SIMPLE)
    assert objective.count(whole) == pytest.approx(weight.sum(), rel=SIMPLE)
    assert objective.unit == "nats/token"


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_loss_over_classes_spreads_the_share_that_is_smoothed(smoothing):
    whole, _ = given("classify")
    objective = objectives.classes(smoothing)
    logits = 3 * torch.randn(8, 3)
    truth = np.full((8, 3), smoothing / 3)
    truth[np.arange(8), whole.label.numpy()] += 1 - smoothing
    wanted = -(truth * log_softmax(logits.double().numpy(), axis=1)).sum()
    assert float(objective.total(logits, whole)) == pytest.approx(wanted, rel=SIMPLE)
    assert objective.count(whole) == 8
    assert objective.unit == "nats/document"


def test_the_loss_over_several_labels_counts_each_label():
    whole, objective = given("multilabel")
    logits = 3 * torch.randn(8, 3)
    chance, truth = expit(logits.double().numpy()), whole.label.double().numpy()
    wanted = -(truth * np.log(chance) + (1 - truth) * np.log1p(-chance)).sum()
    assert float(objective.total(logits, whole)) == pytest.approx(wanted, rel=SIMPLE)
    assert objective.count(whole) == 24
    assert objective.unit == "nats/label"


@pytest.mark.parametrize("kind", ["squared", "absolute", "huber"])
def test_an_error_is_summed_over_values(kind):
    whole, _ = given("regress")
    objective = objectives.error(kind)
    values = 2 * torch.randn(8, 3)
    off = np.abs((values.double() - whole.label.double()).numpy())
    assert off.min() < 1 < off.max()  # both pieces of Huber's
    wanted = {
        "squared": (off**2).sum(),
        "absolute": off.sum(),
        "huber": np.where(off <= 1, off**2 / 2, off - 0.5).sum(),
    }[kind]
    assert float(objective.total(values, whole)) == pytest.approx(wanted, rel=SIMPLE)
    assert objective.count(whole) == 24


def test_the_hinge_is_what_each_class_lacks_in_distance():
    whole, _ = given("classify")
    objective = objectives.hinge()
    logits = 2 * torch.randn(8, 3)
    wanted = sum(
        max(0.0, 1 - row[right] + value) / 3
        for row, right in zip(logits.tolist(), whole.label.tolist(), strict=True)
        for other, value in enumerate(row)
        if other != right
    )
    assert float(objective.total(logits, whole)) == pytest.approx(wanted, rel=SIMPLE)
    assert objective.count(whole) == 8
    sure = torch.nn.functional.one_hot(whole.label, 3) * 2.0
    assert float(objective.total(sure, whole)) == 0
    assert bool(objective.right(sure, whole).all())


@pytest.mark.parametrize(
    ("kind", "mean"),
    [
        ("masked", np.log(20)),
        ("causal", np.log(20)),
        ("classify", np.log(3)),
        ("multilabel", np.log(2)),
    ],
)
def test_an_answer_that_says_all_alike_costs_the_logarithm_of_the_choices(kind, mean):
    whole, objective = given(kind)
    outputs = torch.zeros(8, 3)
    if whole.weight_BT is not None:
        outputs = scores_of(torch.zeros(8, 9, 20), whole.weight_BT)
    found = float(objective.total(outputs, whole)) / objective.count(whole)
    assert found == pytest.approx(mean, rel=SIMPLE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(4, 4), (1, 2, 5)])
def test_parts_have_together_the_gradient_of_the_whole(kind, sizes):
    whole, objective = given(kind)
    model = build(CONFIG, kind, num_outputs=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    def gradient(parts):
        model.zero_grad()
        count = sum(objective.count(part) for part in parts)
        for part in parts:
            (objective.total(model(part), part) / count).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    wanted = gradient([whole])
    assert wanted.abs().max() > 0.01
    found = gradient(parts_of(whole, sizes))
    torch.testing.assert_close(found, wanted, rtol=SIMPLE, atol=SIMPLE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_loss_does_not_depend_on_how_batches_are_cut(kind):
    whole, objective = given(kind)
    model = build(CONFIG, kind, num_outputs=3, dropout=0.5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    cpu = torch.device("cpu")
    wanted, count = (
        objectives.figures(model, objective, [whole], cpu)[key] for key in ("loss", "n")
    )
    assert count == pytest.approx(objective.count(whole), rel=SIMPLE)
    found, parts_count = (
        objectives.figures(model, objective, parts_of(whole, (3, 1, 4)), cpu)[key]
        for key in ("loss", "n")
    )
    assert parts_count == pytest.approx(count, rel=SIMPLE)
    assert found == pytest.approx(wanted, rel=SIMPLE)
    model.eval()
    with torch.no_grad():
        by_hand = float(objective.total(model(whole), whole)) / objective.count(whole)
    assert wanted == pytest.approx(by_hand, rel=SIMPLE)


def test_an_objective_says_when_the_batch_lacks_what_it_needs():
    with pytest.raises(AssertionError, match="lacks what this objective needs"):
        objectives.classes().total(torch.zeros(8, 3), batch())
