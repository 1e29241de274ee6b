"""Statistics of layers over a data set: those of one process, and `tw.compress` makes of them what it makes of those."""

import json
import random

import pytest
import torch
from typer.testing import CliRunner

import termwise as tw
from engine.subjects import OWN
from termwise import cli, gathering
from termwise.engine import Dataset, Results, run
from termwise.gathering import StatisticsJob, sample, statistics
from termwise.weights import CalibrationStats, find_layers

TEXT = """
from termwise.zoo import Subject
from termwise.zoo.texts import TextPreparation

class Mixing(Bag):
    def __init__(self):
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(256, 24), nn.Linear(24, 24), nn.Linear(24, 12)
    def forward(self, input_ids, attention_mask):
        return self.head(self.inner(self.table(input_ids)).relu().mean(1))

def language():
    from transformers import LlamaConfig, LlamaForCausalLM
    from termwise.zoo.smollm2 import NextToken
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, **sizes)).eval().double()
    return Subject("language", NextToken(model), TextPreparation(Letters(), 32), [str(i) for i in range(256)], "own")

def mixing():
    torch.manual_seed(0)
    return Subject("mixing", Mixing().eval().double(), TextPreparation(Letters(), 32), [str(i) for i in range(12)], "own")
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN + TEXT)
    return f"{tmp_path / 'own.py'}:mixing"


@pytest.fixture
def words(tmp_path):
    draws = random.Random(0)
    texts = ["".join(draws.choices("abcdefghij klmnop", k=draws.randint(3, 12))) for _ in range(90)]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return Dataset.open(tmp_path / "words.jsonl")


def close(a, b):
    assert set(a) == set(b)
    for name in a:
        assert a[name].count == b[name].count
        for part in ("mean", "abs_mean", "scatter"):
            x, y = getattr(a[name], part), getattr(b[name], part)
            assert float((x - y).norm()) <= 1e-12 * float(y.norm()), (name, part)


def test_the_sums_of_batches_are_the_statistics_of_all_rows(own, words, tmp_path):
    job = StatisticsJob(own)
    found = statistics(run(job, words, tmp_path / "out", workers=1, batch_size=16))
    job.start()
    model, batches = sample(job, words, 1000, tmp_path)  # all of them, in another order
    assert len(batches) == 90
    assert sorted(json.loads((tmp_path / "sample.json").read_text())["rows"]) == list(range(90))
    close(found, CalibrationStats.collect(model, batches, find_layers(model)[0]))
    assert found["inner"].count > found["head"].count == 90


def test_patches_of_pictures_do_not_depend_on_who_looks(own, tmp_path):
    """More than 256 of them: some are drawn, alike for every run."""
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    draws = torch.Generator().manual_seed(0)
    for i in range(6):
        pixels = torch.randint(256, (150, 150, 3), generator=draws, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "pictures" / f"{i}.png")
    found = []
    for name in ("a", "b"):
        job = StatisticsJob(own.replace("mixing", "pixels"), "image", size=144)
        found.append(run(job, Dataset.open(tmp_path / "pictures"), tmp_path / name, workers=1, batch_size=2))
    assert statistics(found[0])["0"].count == 6 * 256
    one, other = (tmp_path / name / "statistics.safetensors" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.filterwarnings("ignore:the output changes")
def test_compress_over_a_data_set_is_compress_with_ready_statistics(own, words, tmp_path):
    command = f"--no-progress compress --model {own} --dataset {words.path} --budget .6 --samples 24 --workers 1 --batch-size 16"
    done = CliRunner().invoke(cli.app, [*command.split(), "--out", str(tmp_path / "small"), "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.output[done.output.index("{") :])
    assert len(json.loads((tmp_path / "small.statistics" / "sample.json").read_text())["rows"]) == 24
    job = StatisticsJob(own)
    model, batches = sample(job, words, 24, tmp_path)
    ready = CalibrationStats.collect(model, sample(job, words, 90, tmp_path)[1], find_layers(model)[0])
    whole = tw.compress(model, 0.6, data=batches, statistics=ready, progress=False)
    half = tw.compress(model, 0.6, data=batches, progress=False)
    assert facts["measured"] == pytest.approx(whole.measured, rel=1e-6)
    assert facts["measured"] != pytest.approx(half.measured, rel=1e-3)  # the other rows do say something
    small = tw.load_compressed(tmp_path / "small", model)
    x = {"input_ids": torch.tensor([[97, 98, 99]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    torch.testing.assert_close(small(**x), whole.model(**x), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:the output changes")
def test_of_a_language_model_every_row_is_a_text_and_cut_at_the_window(own, words, tmp_path, monkeypatch):
    monkeypatch.setattr(gathering, "TOKENS", 16)  # two rows in a pass
    own = own.replace("mixing", "language")
    job = StatisticsJob(own, window=8)
    found = statistics(run(job, words, tmp_path / "out", workers=1, batch_size=40))
    model, batches = sample(job, words, 1000, tmp_path)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert {x["input_ids"].shape[1] for x in batches} == set(range(3, 9))
    close(found, CalibrationStats.collect(model, batches, find_layers(model)[0]))
    (tmp_path / "some.jsonl").write_text('{"text": "abcdef"}\n{"text": ""}\n')
    job.run(rows := Dataset.open(tmp_path / "some.jsonl").rows(0, 2))
    assert "the text is empty" in str(job.run(rows).rows[1])
    monkeypatch.setattr(type(job.subject), "prepare", lambda *_, **__: {"input_ids": torch.zeros(1, 0)})
    assert str(job.run(rows[:1]).rows[0]) == "the text has no tokens"
    monkeypatch.undo()
    assert len(sample(job, Dataset.open(tmp_path / "some.jsonl"), 2, tmp_path)[1]) == 1
    with pytest.raises(ValueError, match=r"loaded\.window: 8 there, 9 now"):
        run(StatisticsJob(own, window=9), words, tmp_path / "out", workers=1, batch_size=40)
    small = tmp_path / "small"
    command = (
        f"--no-progress compress --model {own} --dataset {words.path} --budget .7 --window 8 --workers 1 --out {small} --json"
    )
    done = CliRunner().invoke(cli.app, command.split())
    assert done.exit_code == 0, done.output
    facts = json.loads(done.output[done.output.index("{") :])
    assert facts["kept"] <= 0.7
    ids = batches[0]["input_ids"]
    assert tw.load_compressed(small, model)(input_ids=ids).logits.shape == (*ids.shape, 256)


@pytest.mark.slow
def test_workers_make_no_difference(own, words, tmp_path):
    files = []
    for engine, workers in (("local", 1), ("local", 2), ("ray", 2)):
        run(StatisticsJob(own), words, tmp_path / f"{engine}{workers}", engine=engine, workers=workers, batch_size=16)
        files.append((tmp_path / f"{engine}{workers}" / "statistics.safetensors").read_bytes())
    assert files[0] == files[1] == files[2]


def test_what_does_not_fit_is_refused(own, words, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    stats = CalibrationStats.collect(model, [torch.randn(20, 5)], find_layers(model)[0])
    with pytest.raises(ValueError, match="statistics are of none of the layers to compress; they are of 0, 2"):
        tw.compress(torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(5, 4))), data=torch.randn(20, 5), statistics=stats)
    with pytest.raises(ValueError, match="statistics of 0 are of 5 inputs, and it reads 6"):
        tw.compress(torch.nn.Sequential(torch.nn.Linear(6, 4)), data=torch.randn(20, 6), statistics=stats)
    with pytest.raises(ValueError, match=r"mixing takes text, the data set holds image"):
        StatisticsJob(own, "image").start()
    (tmp_path / "empty").mkdir()
    dataset, told = {"path": "a.txt", "rows": 1}, {"settings": {}, "versions": {}}
    manifest = {"format": 1, "verb": "explain", "dataset": dataset, "decomposes": False, "columns": {}, **told}
    (tmp_path / "empty" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="holds no statistics of layers: it is of explain"):
        statistics(Results(tmp_path / "empty"))
    done = CliRunner().invoke(cli.app, ["compress", "--model", own, "--out", str(tmp_path / "small")])
    assert done.exit_code == 2
    assert "give --data, or --dataset" in done.output
