"""What decompositions, recordings and pages refuse."""

import torch

import termwise as tw
from bad_inputs.awkward import Custom, X, images, net, picture_net, training, with_nan
from bad_inputs.case import Case
from termwise.core import CaptureError
from termwise.report import Section, check_writable, fragment, page, write

WHOLE = torch.tensor([3.0, 5.0])


def sums() -> tw.Decomposition:
    return tw.Decomposition(WHOLE, {"left": WHOLE - 1, "right": torch.ones(2)})


# fmt: off
CASES = [
    Case("Decomposition", "a number for the whole", lambda: tw.Decomposition(3.0, {}),
         TypeError, "the whole must be a tensor, got float: torch.as_tensor(...) makes one"),
    Case("Decomposition", "a list for the whole", lambda: tw.Decomposition([3.0], {}),
         TypeError, "the whole must be a tensor, got list: torch.as_tensor(...) makes one"),
    Case("Decomposition", "a list for the parts", lambda: tw.Decomposition(WHOLE, [WHOLE]),
         TypeError, "parts must be a mapping from names to tensors, got list"),
    Case("Decomposition", "a part that is a number", lambda: tw.Decomposition(WHOLE, {"a": 1.0}),
         TypeError, "part 'a' is a float: parts are tensors by name, a string"),
    Case("Decomposition", "a part of another shape", lambda: tw.Decomposition(WHOLE, {"a": torch.ones(3)}),
         ValueError, "part 'a' has shape (3,), which does not begin with the whole's (2,): give each part the whole's "
         "axes first, then its own"),
    Case("Decomposition", "a part named by a number", lambda: tw.Decomposition(WHOLE, {1: WHOLE}),
         TypeError, "part 1 is a Tensor: parts are tensors by name, a string"),
    Case("Decomposition", "a part on another device", lambda: tw.Decomposition(WHOLE, {"a": WHOLE.to("meta")}),
         ValueError, "part 'a' is on meta and the whole on cpu: move them to one device"),
    Case("Decomposition.check", "parts that lack something", lambda: tw.Decomposition(WHOLE, {"a": WHOLE - 1}).check(),
         tw.DoesNotAddUp, "1 parts make 2, 4 of 3, 5: the remainder is 0.33 of the whole, allowed were 1e-05 (cancellation "
         "0.8x)"),
    Case("Decomposition.check", "NaN in a part", lambda: tw.Decomposition(WHOLE, {"a": with_nan(WHOLE)}).check(),
         tw.DoesNotAddUp, "1 parts make 3, nan of 3, 5: the remainder is nan of the whole, allowed were 1e-05 (cancellation "
         "nanx)"),
    Case("Decomposition.check", "NaN in the whole", lambda: tw.Decomposition(with_nan(WHOLE), {"a": WHOLE}).check(),
         tw.DoesNotAddUp, "1 parts make 3, 5 of 3, nan: the remainder is nan of the whole, allowed were 1e-05 (cancellation "
         "nanx)"),
    Case("Decomposition.check", "NaN for a tolerance", lambda: sums().check(torch.nan),
         ValueError, "rtol is the largest relative remainder allowed, a number of 0 or more; got nan"),
    Case("Decomposition.check", "a negative tolerance", lambda: sums().check(-1.0),
         ValueError, "rtol is the largest relative remainder allowed, a number of 0 or more; got -1.0"),
    Case("Decomposition.check", "a string for a tolerance", lambda: sums().check("1e-5"),
         ValueError, "rtol is the largest relative remainder allowed, a number of 0 or more; got '1e-5'"),
    Case("Decomposition.contribution", "the name of no part", lambda: sums().contribution("lefd"),
         ValueError, "no part 'lefd': did you mean 'left'?"),
    Case("Decomposition[]", "beyond the batch", lambda: sums()[2],
         IndexError, "sample 2 is out of range: there are 2"),
    Case("Decomposition[]", "a name", lambda: sums()["left"],
         TypeError, "samples are chosen by number, slice, list, array or tensor, got 'left'; parts by name are in .parts"),
    Case("Decomposition[]", "a float", lambda: sums()[0.5],
         TypeError, "samples are chosen by number, slice, list, array or tensor, got 0.5; parts by name are in .parts"),
    Case("Decomposition[]", "a single number", lambda: tw.Decomposition(torch.tensor(1.0), {})[0],
         TypeError, "this decomposition has a single number as its whole, and no samples to count or select"),
    Case("Decomposition.show", "beyond the batch", lambda: sums().show(9),
         ValueError, "sample 9 is out of range: there are 2"),
    Case("Decomposition.save", "a folder that is not there", lambda folder: sums().save(folder / "no" / "a.safetensors"),
         OSError, "FOLDER/no/a.safetensors cannot be written (...): choose a folder that exists and is yours to write"),
    Case("Decomposition.save", "a folder in place of a file", lambda folder: sums().save(_folder(folder)),
         IsADirectoryError, "FOLDER/a.folder is a folder: name a file in it"),
    Case("Decomposition.save", "a number for a path", lambda: sums().save(3),
         TypeError, "a file is named by its path, got int"),
    Case("Decomposition.load", "no file", lambda folder: tw.Decomposition.load(folder / "none.safetensors"),
         FileNotFoundError, "FOLDER/none.safetensors does not exist: Decomposition.save writes such files"),
    Case("Decomposition.load", "a folder in place of a file", lambda folder: tw.Decomposition.load(folder),
         FileNotFoundError, "FOLDER.safetensors does not exist: Decomposition.save writes such files"),
    Case("Decomposition.load", "a number for a path", lambda: tw.Decomposition.load(3),
         TypeError, "a file is named by its path, got int"),
    Case("Decomposition.load", "an empty file", lambda folder: tw.Decomposition.load(_empty(folder)),
         ValueError, "FOLDER/empty.safetensors is not a safetensors file (...): save with Decomposition.save"),
    Case("Decomposition.to_csv", "a folder in place of a file", lambda folder: sums().to_csv(_folder(folder)),
         OSError, "FOLDER/a.folder cannot be written: name a file in a folder that exists"),
    Case("Decomposition.to_csv", "a folder that is not there", lambda folder: sums().to_csv(folder / "no" / "a.csv"),
         OSError, "FOLDER/no/a.csv cannot be written: name a file in a folder that exists"),
    Case("Decomposition.to_csv", "a number for a path", lambda: sums().to_csv(3),
         TypeError, "a file is named by its path, got int"),
    Case("capture", "a string for a model", lambda: tw.capture("resnet", X),
         TypeError, "model must be a torch.nn.Module or a function of tensors, got str"),
    Case("capture", "training mode", lambda: tw.capture(training(net()), X),
         ValueError, "Sequential is in training mode, where dropout and batch statistics make its output random: call "
         "model.eval() first"),
    Case("capture", "another width", lambda: tw.capture(net(), torch.ones(2, 5)),
         CaptureError, "Sequential itself raises RuntimeError for input (2, 5) torch.float32: .... Call the model with "
         "them first, and mend the inputs or the model"),
    Case("capture", "no input", lambda: tw.capture(net()),
         CaptureError, "Sequential itself raises TypeError for these arguments: .... Call the model with them first, and "
         "mend the inputs or the model"),
    Case("capture", "kwargs that are no mapping", lambda: tw.capture(net(), kwargs=3),
         TypeError, "kwargs must be a mapping from names of arguments to values, got int"),
    Case("capture", "keywords that are no names", lambda: tw.capture(net(), kwargs={1: X}),
         CaptureError, "Sequential itself raises TypeError for 1 (2, 4) torch.float32: .... Call the model with them "
         "first, and mend the inputs or the model"),
    Case("capture", "select that is no function", lambda: tw.capture(net(), X, select="logits"),
         TypeError, "select must be a function from the output to a tensor, got str"),
    Case("capture", "select that raises", lambda: tw.capture(net(), X, select=lambda y: y["logits"]),
         CaptureError, "the function that picks from the output of Sequential raises IndexError for a tensor (2, 3) of "
         "torch.float32: too many indices for tensor of dimension 2"),
    Case("capture", "an object with tensors inside", lambda: tw.capture(Custom(lambda m, x, c: m(x)), X, _Cache()),
         TypeError, "the argument kwargs is a _Cache, inside which there are tensors that cannot be followed: pass "
         "tensors, or tuples, lists and dicts of them (of a model with a cache, explain the whole sequence "
         "without it)"),
    Case("capture", "an output of None", lambda: tw.capture(Custom(lambda m, x: None), X),
         CaptureError, "the model returned NoneType, in which there is no floating tensor to explain: return scores or "
         "logits"),
    Case("capture", "a lazy module", lambda: tw.capture(torch.nn.LazyLinear(3).eval(), X),
         ValueError, "weight of LazyLinear is not initialised (a lazy module): run the model once before"),
    Case("Program", "another number of inputs", lambda: tw.capture(net(), X)(X, X),
         ValueError, "this program was recorded for {'input': ['free', 4]} in float32 on cpu, with weights in float32 on "
         "cpu (export), got {'input': [2, 4], 'input_1': [2, 4]} in float32 on cpu, float32 on cpu, with "
         "weights in float32 on cpu: capture it anew"),
    Case("Program", "another width", lambda: tw.capture(net(), X)(torch.ones(2, 5)),
         ValueError, "this program was recorded for {'input': ['free', 4]} (export), got {'input': [2, 5]}: capture it "
         "anew"),
    Case("report.page", "no section", lambda: page([]),
         ValueError, "a page needs at least one section"),
    Case("report.page", "a decomposition for a section", lambda: page([sums()]),
         TypeError, "a page is made of sections, got Decomposition: page([Section(decomposition)])"),
    Case("report.page", "a section of a number", lambda: page([Section(3)]),
         TypeError, "a section shows a decomposition, got int"),
    Case("report.page", "a sample beyond the batch", lambda: page([Section(sums(), sample=5)]),
         ValueError, "sample 5 is out of range: there are 2"),
    Case("report.page", "one section without a list", lambda: page(Section(sums())),
         TypeError, "sections is a list of them: page([section])"),
    Case("report.page", "a picture of another shape", lambda: page([Section(tw.explain(picture_net(), images()), picture=X)]),
         ValueError, "picture (2, 4) and relevance (8, 8) must have the same height and width"),
    Case("report.fragment", "a sample beyond the batch", lambda: fragment(sums(), 7),
         ValueError, "sample 7 is out of range: there are 2"),
    Case("report.fragment", "a number", lambda: fragment(3),
         TypeError, "a section shows a decomposition, got int"),
    Case("report.write", "a folder in place of a file", lambda folder: write(folder, "text"),
         ValueError, "cannot write FOLDER: it is a folder; name a file in it, as FOLDER/why.html"),
    Case("report.check_writable", "below a file", lambda folder: check_writable(_empty(folder) / "page.html"),
         ValueError, "cannot write FOLDER/empty.safetensors/page.html: ...; choose another place with --out"),
    Case("Explanation.heatmap", "an input that is no picture", lambda: tw.explain(net(), X).heatmap(),
         ValueError, "no input is an image (batch, channels, height, width): there are input (2, 4)"),
    Case("Explanation.grouped", "a mask of another shape", lambda: tw.explain(net(), X).grouped(torch.zeros(9).long()),
         ValueError, "feature_mask has shape (9,), which fits no input: input:input (2, 4). Give it the shape of the "
         "input, with the batch or without; axes that all share may be 1 or left out in front, as (height, "
         "width)"),
    Case("Explanation.top", "a negative number", lambda: tw.explain(net(), X).top(-1),
         ValueError, "k must be at least 1, a whole number; got -1"),
]
# fmt: on


def _empty(folder):
    path = folder / "empty.safetensors"
    path.touch()
    return path


def _folder(folder):
    path = folder / "a.folder"
    path.mkdir()
    return path


class _Cache:
    def __init__(self) -> None:
        self.key = X
