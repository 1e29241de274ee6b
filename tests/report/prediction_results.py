"""One small real result of every class of the predictions that can be looked at, by "room.Class" and, where there are several,
what is special about it."""

import torch
from torch import nn

import termwise as tw
from termwise import predictions

DOUBLE = {"dtype": torch.float64}
TOKENS = [["[CLS]", "to", "##kens", "carry", "it", "."], ["[CLS]", "a", "b", "c", "d", "e"]]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double().eval()


class Reader(nn.Module):
    """A small transformer over tokens."""

    def __init__(self, classes=2):
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True) for _ in range(3)
        )
        self.head = nn.Linear(8, classes)

    def forward(self, input_ids):
        x = self.table(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class Seer(nn.Module):
    """The same over patches of a picture, behind a class token."""

    def __init__(self):
        super().__init__()
        self.patches, self.first = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.randn(1, 1, 8))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, image):
        x = self.patches(image).flatten(2).mT
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


def dense():
    return seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))


def conv():
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 144, 3)]
    return seeded(lambda: nn.Sequential(*layers))


IDS = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 4, 4, 2, 7, 8]])
IMAGE = rand(2, 3, 16, 16)


def curves():
    return predictions.perturbation_curves(conv(), IMAGE, IMAGE, 1, baseline="blur", patch=4, steps=4)


def segmentation():
    mask = torch.zeros(2, 16, 16, dtype=torch.bool)
    mask[:, 4:9, 3:11] = True
    return predictions.segmentation(IMAGE, mask)


def masked_text():
    return predictions.masked_text(seeded(Reader), IDS, rand(2, 6), torch.tensor([0, 1]), mask_token=0)


MAKERS = {
    "core.Decomposition": lambda: tw.Decomposition(rand(2, 3), {"a": rand(2, 3, seed=1), "b": rand(2, 3, 4, seed=2)}),
    "predictions.Explanation, a text": lambda: tw.explain(seeded(Reader), IDS, target=1, layers="auto", names=TOKENS),
    "predictions.Explanation, an image": lambda: tw.explain(conv(), IMAGE, target=1, layers="auto"),
    "predictions.Explanation, of patches": lambda: tw.explain(seeded(Seer), IMAGE, target=1, layers="auto"),
    "predictions.Explanation, of numbers": lambda: tw.explain(dense(), rand(3, 4), target=1, layers="0"),
    "predictions.Explanation, several targets": lambda: tw.explain(conv(), IMAGE, target=[0, 2]),
    "predictions.MeanExplanation": lambda: predictions.explain_dataset(conv(), IMAGE.split(1), target=1, layers="auto"),
    "predictions.AttentionExplanation": lambda: tw.chefer(seeded(Reader), IDS, target=1, names=TOKENS),
    "predictions.AttentionExplanation, an image": lambda: tw.chefer(seeded(Seer), IMAGE, target=1),
    "predictions.AttentionReadout": lambda: predictions.gradient_rollout(seeded(Reader), IDS, target=1),
    "predictions.AttentionReadout, an image": lambda: predictions.attention_rollout(seeded(Seer), IMAGE, target=1),
    "predictions.TokenDecomposition": lambda: tw.decompx(seeded(Reader), IDS, names=TOKENS),
    "predictions.TokenDecomposition, one class": lambda: tw.decompx(seeded(Reader), IDS, target=1),
    "predictions.TokenDecomposition, many classes": lambda: tw.decompx(seeded(lambda: Reader(40)), IDS),
    "predictions.TokenDecomposition, an image": lambda: tw.decompx(seeded(Seer), IMAGE),
    "predictions.Comparison": lambda: tw.compare(dense(), rand(6, 4), ["zero", "gradient_x_input", "gradcam"]),
    "predictions.Comparison, images": lambda: tw.compare(conv(), IMAGE, ["zero", "z+", "smoothgrad"], patch=4, steps=4),
    "predictions.Comparison, a text": lambda: tw.compare(
        seeded(Reader), {"input_ids": IDS}, ["attnlrp", "occlusion"], baseline=0, steps=3, names=TOKENS
    ),
    "predictions.Comparison, nothing ran": lambda: tw.compare(dense(), rand(6, 4), "gradcam"),
    "predictions.Coverage": lambda: tw.coverage(seeded(Reader), IDS),
    "predictions.DeletionCurve": lambda: predictions.deletion(
        conv(), IMAGE, IMAGE, 1, baseline="blur", patch=4, steps=4, random_orders=3
    ),
    "predictions.PerturbationCurves": curves,
    "predictions.Metric": lambda: curves().abpc,
    "predictions.Metric, one sample": lambda: predictions.Metric("area", torch.tensor([0.5])),
    "predictions.Metric, of means": lambda: segmentation().miou,
    "predictions.Randomisation": lambda: predictions.randomisation(dense(), lambda m: tw.explain(m, rand(3, 4), target=1)),
    "predictions.Segmentation": segmentation,
    "predictions.MaskedText": masked_text,
}
