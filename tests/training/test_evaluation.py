"""The evaluation split, each image once."""

import pytest
import torch
import torch.nn.functional as F

from binaryvit.training.evaluation import evaluate


@pytest.mark.parametrize("classes", [4, 9])
def test_evaluation_counts_every_image_once(classes):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(12), torch.nn.Linear(12, classes)).train()
    images, labels = torch.randn(11, 3, 2, 2), torch.randint(classes, (11,))
    batches = [(images[i : i + 4], labels[i : i + 4]) for i in range(0, 11, 4)]
    result = evaluate(model, batches, torch.device("cpu"))
    assert model.training
    shapes = []
    with model.register_forward_pre_hook(lambda _, inputs: shapes.append(len(inputs[0]))):
        evaluate(model, batches, torch.device("cpu"))
    assert shapes == [4, 4, 4], "compiled blocks keep their one shape"
    logits = model.eval()(images)
    assert result.images == 11 and result.loss == pytest.approx(F.cross_entropy(logits, labels).item())
    assert result.top1 == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert torch.equal(result.predicted, logits.argmax(1))
    if classes == 4:
        assert result.top5 is None
    else:
        order = logits.argsort(1, descending=True)[:, :5]
        assert result.top5 == pytest.approx(100 * (order == labels[:, None]).any(1).float().mean().item())
