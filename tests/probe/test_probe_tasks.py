"""Ready-made tasks: what they draw, for classification, regression and language models."""

from __future__ import annotations

import pytest
import torch
from probe_tools import adam, inputs, plain
from torch import nn
from zoo import ZOO

from pliant.errors import IllegalConfiguration
from pliant.probe import (
    Data,
    HeldOutClasses,
    Objective,
    PermutedInputs,
    RandomLabels,
    RandomTargets,
    RandomTokens,
    Task,
    probe,
)

X, Y = inputs(24), torch.arange(24) % 4


def all_of(task, seed, steps=3):
    return torch.cat([leaf.flatten().double() for batch in task.batches(seed, steps) for leaf in batch])


TASKS = {
    "random labels": RandomLabels(inputs=X, num_classes=4, batch_size=8),
    "random targets": RandomTargets(inputs=X, num_outputs=2, batch_size=8),
    "permuted inputs": PermutedInputs(inputs=X, targets=Y, batch_size=8),
    "held-out classes": HeldOutClasses(inputs=X, targets=Y, classes=(1, 3), batch_size=4),
    "own data": Data(inputs=X, targets=Y, batch_size=8, num_examples=16),
    "random tokens": RandomTokens(vocabulary=9, length=5, num_sequences=8, batch_size=4),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_decides_everything_and_nothing_else_does(name):
    task = TASKS[name]
    assert isinstance(task, Task)
    before = torch.get_rng_state()
    first = all_of(task, 0)
    torch.rand(5)
    assert torch.equal(all_of(task, 0), first)
    assert not torch.equal(all_of(task, 1), first)
    assert torch.equal(all_of(task, 0, steps=7)[: len(first)], first)  # the budget does not change the order
    torch.set_rng_state(before)


def test_each_pass_sees_every_example_once_in_a_new_order():
    batches = list(Data(inputs=X, targets=torch.arange(24), batch_size=5).batches(0, 8))
    assert [len(y) for _, y in batches] == [5] * 8  # four and no rest
    first, second = (torch.cat([y for _, y in batches[start : start + 4]]) for start in (0, 4))
    assert first.unique().numel() == second.unique().numel() == 20
    assert not torch.equal(first, second)
    for x, y in batches:
        assert torch.equal(x, X[y])
    assert len(Data(inputs=X, batch_size=100).batches(0, 1)[0]) == 24


def test_random_labels_are_uniform_and_stay_with_their_inputs():
    task = RandomLabels(inputs=inputs(4000), num_classes=4, batch_size=4000)
    (x, y), (x2, y2) = task.batches(0, 2)
    assert torch.allclose(torch.bincount(y) / 4000, torch.full((4,), 0.25), atol=0.04)
    order, order2 = x[:, 0].argsort(), x2[:, 0].argsort()
    assert torch.equal(y[order], y2[order2])


def test_permuted_inputs_keep_labels_and_permute_all_alike():
    x = torch.arange(3 * 2 * 4.0).reshape(3, 2, 4)
    task = PermutedInputs(inputs=x, targets=torch.arange(3), batch_size=3, test=(x + 100, torch.arange(3)))
    new, labels = task.batches(1, 1)[0]
    new = new[labels.argsort()]
    assert new.shape == x.shape
    assert torch.equal(new[1] - 8, new[0])
    assert torch.equal(new[0].flatten().sort().values, x[0].flatten())
    assert torch.equal(task.evaluation(1)[0][0], new + 100)  # the test data under the same permutation


def test_tokens_are_renamed_one_to_one():
    ids = torch.randint(0, 9, (6, 5))
    (new,) = PermutedInputs(inputs=ids, vocabulary=9, batch_size=6).evaluation(3)
    pairs = {(int(a), int(b)) for a, b in zip(ids.flatten(), new.flatten(), strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert not torch.equal(new, ids)


def test_held_out_classes_are_those():
    _, labels = HeldOutClasses(inputs=X, targets=Y, classes=(1, 3), batch_size=12).batches(0, 1)[0]
    assert set(labels.tolist()) == {1, 3}
    with pytest.raises(IllegalConfiguration, match=r"no example of the classes \[7\]"):
        HeldOutClasses(inputs=X, targets=Y, classes=(1, 7))
    with pytest.raises(IllegalConfiguration, match="one class per example"):
        HeldOutClasses(inputs=X, targets=X, classes=(1,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomLabels(inputs=X, num_classes=1), "at least 2"),
        (lambda: RandomLabels(inputs=X, num_classes=2, test=(X, Y)), "do not generalise"),
        (lambda: Data(inputs=X, batch_size=0), "batch_size"),
        (lambda: Data(inputs=X, num_examples=25), r"in 1\.\.24"),
        (lambda: Data(inputs=[1, 2]), "tensors"),
        (lambda: RandomTokens(vocabulary=1), "at least 2"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(IllegalConfiguration, match=message):
        make()


def test_language_models_learn_the_next_token():
    case = ZOO["tied_language_model"]
    model = case.model()
    vocabulary = model(case.batch()).shape[-1]
    task = RandomTokens(vocabulary=vocabulary, length=6, num_sequences=8, batch_size=8)
    found = probe(model, task, optimizer=lambda p: torch.optim.Adam(p, lr=0.05), steps=40, seeds=2)
    assert found.progress.mean > 0.5
    assert 0 < found.accuracy_gap.num <= 2
    ids = task.batches(0, 1)[0]
    logits = model(ids)
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    measured = Objective()(model, ids)
    assert torch.allclose(measured.loss, expected)
    assert int((measured.targets >= 0).sum()) == 8 * 5


def test_models_of_hugging_face_take_mappings_with_and_without_labels():
    case = ZOO["hf_gpt2"]
    model = case.model().eval()
    ids = torch.randint(0, 11, (4, 6))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labelled = Objective()(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})
    bare = Objective()(model, {"input_ids": ids, "attention_mask": mask})
    assert torch.allclose(labelled.loss, bare.loss, atol=1e-6)
    assert int((labelled.targets >= 0).sum()) == int((bare.targets >= 0).sum()) == 4 * 5 - 2
    assert labelled.accuracy == bare.accuracy
    batches = [{"input_ids": ids, "labels": ids}] * 3
    found = probe(model, batches, optimizer=adam, steps=6, seeds=2)
    assert found.runs[0].accuracy is not None
    assert found.progress.mean > 0


def test_what_counts_as_right():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    model = nn.Identity()
    found = Objective()(model, (logits, torch.tensor([0, 1, 1])))
    assert found.accuracy == 2 / 3
    pixels = torch.stack([logits, logits.flip(1)], dim=2)  # [N, classes, positions]
    found = Objective()(model, (pixels, torch.tensor([[0, 1], [1, 0], [1, -100]])))
    assert found.accuracy == 4 / 5
    assert Objective()(model, (logits[:, :1], logits[:, 0])).loss == 0  # [N] against [N, 1]: never all with all
    with pytest.raises(IllegalConfiguration, match="neither targets"):
        Objective()(model, {"x": logits})


def test_inputs_of_several_tensors_and_mappings():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = plain()

        def forward(self, x, *, shift):
            return self.body(x + shift)

    class Positional(Two):
        def forward(self, x, shift):
            return self.body(x + shift)

    mapping = RandomLabels(inputs={"x": X, "shift": X}, num_classes=4, batch_size=8)
    positional = RandomLabels(inputs=(X, X), num_classes=4, batch_size=8)
    runs = []
    for model, task in ((Two(), mapping), (Positional(), positional)):
        model.body.load_state_dict(plain().state_dict())
        runs.append(probe(model, task, optimizer=adam, steps=6, seeds=(0,)).runs)
    assert runs[0] == runs[1]
