"""What the room of functions refuses."""

from functools import cache

import torch
from torch import nn

import termwise as tw
from bad_inputs.awkward import X, mlp, net, training, with_nan
from bad_inputs.case import Case
from termwise.core import CaptureError
from termwise.functions import (
    activation_spectrum,
    biharmonic,
    dc_component,
    derivatives,
    diagonal_fisher,
    dominant_frequency,
    harmonics,
    laplacian,
    partial,
    radius,
    scale_residuals,
    subset_expansion,
)

D = X.double()
H = torch.ones_like(X)
LINE = torch.linspace(-1, 1, 40, dtype=torch.float64)


class Residual(nn.Module):
    """(batch, 4) to (batch, 4), with two residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + torch.tanh(self.first(x))
        return x + torch.tanh(self.second(x))


@cache
def residual() -> nn.Module:
    return Residual()


# fmt: off
CASES = [
    Case("expand", "a number for a model", lambda: tw.expand(3, X, H),
         TypeError, "model must be a torch.nn.Module or a function of tensors, got int"),
    Case("expand", "no direction", lambda: tw.expand(mlp(), X),
         ValueError, "give the model's inputs, and after them the direction: a tensor, or a mapping from names to tensors"),
    Case("expand", "a direction of another shape", lambda: tw.expand(mlp(), X, torch.ones(2, 5)),
         ValueError, "the direction for input has shape (2, 5), and goes with (2, 4)"),
    Case("expand", "a direction of NaN", lambda: tw.expand(mlp(), X, with_nan(H)),
         ValueError, "the direction for input is not finite"),
    Case("expand", "an input of NaN", lambda: tw.expand(mlp(), with_nan(X), H),
         ValueError, "the input input is not finite"),
    Case("expand", "an empty batch", lambda: tw.expand(mlp(), X[:0], H[:0]),
         ValueError, "an input is empty: there is nothing to expand"),
    Case("expand", "a negative order", lambda: tw.expand(mlp(), X, H, order=-1),
         ValueError, "order must be at least 0, a whole number; got -1"),
    Case("expand", "a float order", lambda: tw.expand(mlp(), X, H, order=2.5),
         ValueError, "order must be at least 0, a whole number; got 2.5"),
    Case("expand", "a bool order", lambda: tw.expand(mlp(), X, H, order=True),
         ValueError, "order must be at least 0, a whole number; got True"),
    Case("expand", "a string order", lambda: tw.expand(mlp(), X, H, order="4"),
         ValueError, "order must be at least 0, a whole number; got '4'"),
    Case("expand", "at NaN", lambda: tw.expand(mlp(), X, H, at=torch.nan),
         ValueError, "at says how far to go along the direction, and is finite and not 0; got nan"),
    Case("expand", "at a string", lambda: tw.expand(mlp(), X, H, at="1"),
         ValueError, "at says how far to go along the direction, and is finite and not 0; got '1'"),
    Case("expand", "with respect to nothing known", lambda: tw.expand(mlp(), X, H, wrt="weights"),
         ValueError, "wrt is 'inputs' or 'parameters', got 'weights'"),
    Case("expand", "an unknown side of ties", lambda: tw.expand(mlp(), X, H, ties="up"),
         ValueError, "ties is 'right' or 'torch', got 'up'"),
    Case("expand", "an unknown fallback", lambda: tw.expand(mlp(), X, H, fallback="zero"),
         ValueError, "fallback is None or 'nested', got 'zero'"),
    Case("expand", "training mode", lambda: tw.expand(nn.Sequential(nn.Linear(4, 3), nn.Dropout()), X, H),
         ValueError, "Sequential is in training mode, where dropout and batch statistics make its output random: call "
         "model.eval() first"),
    Case("expand", "half for float", lambda: tw.expand(mlp(), X.half(), H.half()),
         CaptureError, "Sequential itself raises RuntimeError for input (2, 4) torch.float16: .... Call the model with "
         "them first, and mend the inputs or the model"),
    Case("jet", "a number for a function", lambda: tw.jet(3, [X], [[H]]),
         TypeError, "model must be a torch.nn.Module or a function of tensors, got int"),
    Case("jet", "double for float", lambda: tw.jet(mlp(), [X.double()], [[H.double()]]),
         CaptureError, "Sequential itself raises RuntimeError for input (2, 4) torch.float64: .... Call the model with "
         "them first, and mend the inputs or the model"),
    Case("jet", "no series", lambda: tw.jet(mlp(), [X], []),
         ValueError, "series needs one list per primal: 1 primals, 0 lists"),
    Case("jet", "a term of another shape", lambda: tw.jet(mlp(), [X], [[torch.ones(2, 5)]]),
         ValueError, "series[0]: order 1 has shape (2, 5), its primal (2, 4)"),
    Case("jet", "a tensor for the series", lambda: tw.jet(mlp(), [X], H),
         ValueError, "series needs one list per primal: 1 primals, 2 lists"),
    Case("jet", "a tensor for the primals", lambda: tw.jet(mlp(), X, [[H]]),
         ValueError, "series needs one list per primal: 2 primals, 1 lists"),
    Case("jet", "an unknown convention", lambda: tw.jet(mlp(), [X], [[H]], "coefs"),
         ValueError, "convention is one of coefficients, derivatives, got 'coefs'"),
    Case("jet", "integers", lambda: tw.jet(lambda x: x * 2, [X.long()], [[X.long()]]),
         TypeError, "primal 0 is a tensor of torch.int64, along which there are no curves: give a floating one"),
    Case("relu_spectrum", "a list", lambda: tw.relu_spectrum([0.0, 1.0], 8.0),
         TypeError, "signal is a real floating tensor of shape (N,) or (batch, N), got list"),
    Case("relu_spectrum", "integers", lambda: tw.relu_spectrum(torch.ones(16, dtype=torch.long), 8.0),
         TypeError, "signal is a real floating tensor of shape (N,) or (batch, N), got torch.int64"),
    Case("relu_spectrum", "an empty signal", lambda: tw.relu_spectrum(torch.ones(0), 8.0),
         ValueError, "signal has shape (N,) or (batch, N) and is not empty, got (0,)"),
    Case("relu_spectrum", "NaN", lambda: tw.relu_spectrum(with_nan(torch.ones(16)), 8.0),
         ValueError, "signal is not finite: it has NaN or infinite samples"),
    Case("relu_spectrum", "no sampling rate", lambda: tw.relu_spectrum(torch.ones(16), 0.0),
         ValueError, "fs is the number of samples per second, positive and finite; got 0.0"),
    Case("relu_spectrum", "a negative order", lambda: tw.relu_spectrum(torch.ones(16), 8.0, -2),
         ValueError, "taylor_order is a number of 0 or more, got -2"),
    Case("relu_spectrum", "a float order", lambda: tw.relu_spectrum(torch.ones(16), 8.0, 2.5),
         ValueError, "taylor_order is a number of 0 or more, got 2.5"),
    Case("relu_spectrum", "no harmonic", lambda: tw.relu_spectrum(torch.ones(16), 8.0, n=0),
         ValueError, "n is the highest harmonic to name, 1 or more; got 0"),
    Case("activation_spectrum", "a number for a function", lambda: activation_spectrum(3, torch.ones(16), 8.0),
         TypeError, "act must be a function of a tensor, as torch.tanh; got 3"),
    Case("residual_expansion", "no residual block", lambda: tw.residual_expansion(net(), X),
         ValueError, "Sequential has no residual branch: in none of its 0 additions is one operand computed from what "
         "the other carries on, x + g(x). Give a model with skip connections (an element-wise x + tanh(x) is "
         "recorded as one function)"),
    Case("residual_expansion", "a negative order", lambda: tw.residual_expansion(residual(), X, order=-1),
         ValueError, "order must be at least 0, a whole number; got -1"),
    Case("residual_expansion", "a float order", lambda: tw.residual_expansion(residual(), X, order=1.5),
         ValueError, "order must be at least 0, a whole number; got 1.5"),
    Case("residual_expansion", "a scale of NaN", lambda: tw.residual_expansion(residual(), X, scale=torch.nan),
         ValueError, "scale is the strength of the branches, finite and not 0; got nan"),
    Case("residual_expansion", "an empty batch", lambda: tw.residual_expansion(residual(), X[:0]),
         ValueError, "an input is empty: there is nothing to take apart"),
    Case("residual_expansion", "NaN", lambda: tw.residual_expansion(residual(), with_nan(X)),
         ValueError, "an input is not finite"),
    Case("subset_expansion", "no order", lambda: subset_expansion(residual(), X, orders=0),
         ValueError, "orders must be at least 2, a whole number; got 0"),
    Case("scale_residuals", "an unknown rule", lambda: scale_residuals(residual(), X, rule="1/m"),
         ValueError, "rule is one of 1/n, 1/sqrt(n), skipinit, got '1/m'"),
    Case("shallow", "a function for a model", lambda: tw.shallow(lambda x: x, X),
         TypeError, "model must be a torch.nn.Module, whose parameters are kept; got function"),
    Case("shallow", "no residual block", lambda: tw.shallow(net(), X),
         ValueError, "Sequential has no residual branch: in none of its 0 additions is one operand computed from what "
         "the other carries on, x + g(x). Give a model with skip connections (an element-wise x + tanh(x) is "
         "recorded as one function)"),
    Case("shallow", "a negative order", lambda: tw.shallow(residual(), X, order=-1),
         ValueError, "order is 1 (branches side by side) or 2 (and paths through two of them), got -1"),
    Case("shallow", "a float order", lambda: tw.shallow(residual(), X, order=1.5),
         ValueError, "order is 1 (branches side by side) or 2 (and paths through two of them), got 1.5"),
    Case("shallow", "no input", lambda: tw.shallow(residual()),
         CaptureError, "Residual itself raises TypeError for these arguments: .... Call the model with them first, and "
         "mend the inputs or the model"),
    Case("shallow", "training mode", lambda: tw.shallow(training(residual()), X),
         ValueError, "Residual is in training mode, where dropout and batch statistics make its output random: call "
         "model.eval() first"),
    Case("tangent", "a function for a model", lambda: tw.tangent(lambda x: x),
         TypeError, "model must be a torch.nn.Module, whose parameters have names; got function"),
    Case("tangent", "a model without parameters", lambda: tw.tangent(nn.ReLU().eval()),
         ValueError, "ReLU has no parameter that is floating"),
    Case("tangent", "parameters that are not there", lambda: tw.tangent(mlp(), "fc.*"),
         ValueError, "no parameter of Sequential is called 'fc.*'; there are 0.weight, 0.bias, 2.weight, ..."),
    Case("tangent", "a number for the parameters", lambda: tw.tangent(mlp(), 3),
         TypeError, "params must be a pattern of names of parameters, or a list of them; got 3"),
    Case("tangent", "no parameters in a list", lambda: tw.tangent(mlp(), []),
         ValueError, "params is empty: name some"),
    Case("tangent", "training mode", lambda: tw.tangent(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))),
         ValueError, "Sequential is in training mode, where dropout and batch statistics make it no function of its "
         "weights: call model.eval() first"),
    Case("TangentModel", "another width", lambda: tw.tangent(mlp())(torch.ones(2, 5)),
         CaptureError, "Sequential itself raises RuntimeError for input (2, 5) torch.float32: .... Call the model with "
         "them first, and mend the inputs or the model"),
    Case("linearize_channels", "a function for a model", lambda: tw.linearize_channels(lambda x: x, (X, torch.tensor([0, 1]))),
         TypeError, "model must be a torch.nn.Module, whose parameters are kept; got function"),
    Case("linearize_channels", "no data", lambda: tw.linearize_channels(_relu(), [], progress=False),
         ValueError, "there is no data: give (inputs, targets), or batches of these"),
    Case("linearize_channels", "a number for data", lambda: tw.linearize_channels(_relu(), 3, progress=False),
         TypeError, "data must be a pair of tensors, inputs and targets, or an iterable of such batches that can be run "
         "through again (a DataLoader, a list); got int"),
    Case("linearize_channels", "a generator for data",
         lambda: tw.linearize_channels(_relu(), (b for b in [(X, torch.tensor([0, 1]))]), progress=False),
         TypeError, "data must be a pair of tensors, inputs and targets, or an iterable of such batches that can be run "
         "through again (a DataLoader, a list); got generator"),
    Case("linearize_channels", "negative omega", lambda: _linearize(omega=-1.0),
         ValueError, "omega is positive and finite, got -1.0"),
    Case("linearize_channels", "no epoch", lambda: _linearize(epochs=0),
         ValueError, "epochs is a number of 1 or more, got 0"),
    Case("linearize_channels", "keep above one", lambda: _linearize(keep=2.0),
         ValueError, "keep lies in [0, 1] and tol in (0, 1), got 2.0 and 0.01"),
    Case("linearize_channels", "a batch of no size", lambda: _linearize(batch_size=0),
         ValueError, "batch_size is a number of 1 or more, got 0"),
    Case("linearize_channels", "no activation", lambda: tw.linearize_channels(net(), (X, torch.tensor([0, 1])), progress=False),
         ValueError, "Sequential has no activation that can be made linear (relu, gelu, silu before its output): what it "
         "has besides linear operations is nothing"),
    Case("linearize_channels", "labels for another batch",
         lambda: tw.linearize_channels(_relu(), (X, torch.tensor([0])), progress=False),
         ValueError, "there are 2 inputs and 1 targets: give one target for each input"),
    Case("MultiStage", "no stage", lambda: tw.MultiStage(stages=0),
         ValueError, "stages is a whole number of 1 or more, got 0"),
    Case("MultiStage", "a float of stages", lambda: tw.MultiStage(stages=1.5),
         ValueError, "stages is a whole number of 1 or more, got 1.5"),
    Case("MultiStage", "an unknown optimizer", lambda: tw.MultiStage(optimizer="adam"),
         ValueError, "optimizer is one of bfgs, lbfgs, got 'adam'; nearest is bfgs"),
    Case("MultiStage", "no width", lambda: tw.MultiStage(hidden=(0,)),
         ValueError, "hidden has a width for each hidden layer, as (20, 20): got (0,)"),
    Case("MultiStage", "a tolerance of NaN", lambda: tw.MultiStage(tol=torch.nan),
         ValueError, "tol is 0 or more, got nan"),
    Case("MultiStage.fit", "float32", lambda: tw.MultiStage(1).fit(LINE.float(), LINE.float()),
         TypeError, "X is float32, the stages work in float64: float32 rounds at 6e-8 of the whole, and every stage from "
         "there on fits that rounding. Compute X in float64, or accept that with .double()"),
    Case("MultiStage.fit", "values for other points", lambda: tw.MultiStage(1).fit(LINE, LINE[:3]),
         ValueError, "y is (40,), one value per point of X; got (3, 1). Fit one model per column"),
    Case("MultiStage.fit", "no point", lambda: tw.MultiStage(1).fit(LINE[:0], LINE[:0]),
         ValueError, "X is (n,) or (n, d) with at least one point, got (0, 1)"),
    Case("MultiStage.fit", "NaN", lambda: tw.MultiStage(1).fit(LINE, with_nan(LINE)),
         ValueError, "y is not finite at point 1 ([nan]): leave such points out"),
    Case("MultiStage.fit", "points without extent", lambda: tw.MultiStage(1).fit(LINE * 0, LINE),
         ValueError, "X has no extent along axis 0: its points all lie at one place there"),
    Case("MultiStage.fit", "four coordinates", lambda: tw.MultiStage(1).fit(LINE.reshape(10, 4), LINE[:10]),
         ValueError, "X has 4 coordinates: dominant frequencies are looked for in 3 at most"),
    Case("MultiStage.predict", "before fit", lambda: tw.MultiStage(1).predict(LINE),
         ValueError, "this MultiStage has no stages yet: call fit first"),
    Case("MultiStage.save", "before fit", lambda folder: tw.MultiStage(1).save(folder / "a"),
         ValueError, "this MultiStage has no stages yet: call fit first"),
    Case("MultiStage.load", "no file", lambda folder: tw.MultiStage.load(folder / "a"),
         FileNotFoundError, "FOLDER/a.safetensors does not exist: MultiStage.save writes such files"),
    Case("MultiStage.load", "a folder", lambda folder: tw.MultiStage.load(folder),
         FileNotFoundError, "FOLDER.safetensors does not exist: MultiStage.save writes such files"),
    Case("derivatives", "a negative order", lambda: derivatives(lambda x: x.sum(1), D, D, -1),
         ValueError, "order is 0 or more, got -1"),
    Case("derivatives", "a direction of another shape", lambda: derivatives(lambda x: x.sum(1), D, D[:, :2], 2),
         ValueError, "series[0]: order 1 has shape (2, 2), its primal (2, 4)"),
    Case("laplacian", "an unknown method", lambda: laplacian(lambda x: x.sum(1), D, method="exact"),
         ValueError, "method is 'collapsed' or 'hutchinson', got 'exact'"),
    Case("laplacian", "no sample", lambda: laplacian(lambda x: x.sum(1), D, method="stochastic", samples=0),
         ValueError, "method is 'collapsed' or 'hutchinson', got 'stochastic'"),
    Case("biharmonic", "a list", lambda: biharmonic(lambda x: x.sum(1), [1.0]),
         TypeError, "x must be a tensor (batch, n), got list"),
    Case("partial", "an order for another number of axes", lambda: partial(lambda x: x.sum(1), D, [1]),
         ValueError, "multi-indices have 4 entries of 0 or more, got (1,)"),
    Case("partial", "a negative order", lambda: partial(lambda x: x.sum(1), D, [1, -1, 0, 0]),
         ValueError, "multi-indices have 4 entries of 0 or more, got (1, -1, 0, 0)"),
    Case("radius", "no coefficient", lambda: radius([]),
         ValueError, "a radius needs four coefficients or more, got 0"),
    Case("harmonics", "no harmonic", lambda: harmonics(torch.relu, 1.0, n=-1),
         ValueError, "n is the highest harmonic, a number from 0 to 32767; got -1"),
    Case("harmonics", "an amplitude of a string", lambda: harmonics(torch.relu, "loud"),
         TypeError, "amplitude is a finite number, or a floating tensor of them; got 'loud'"),
    Case("dominant_frequency", "values for other points", lambda: dominant_frequency(LINE[:, None], LINE[:3]),
         ValueError, "x is (n,) or (n, d) and values (n,): got (40, 1) and (3,)"),
    Case("dc_component", "a negative deviation", lambda: dc_component(torch.relu, 0.0, -1.0),
         ValueError, "std is 0 or more, got -1"),
    Case("diagonal_fisher", "an unknown estimator",
         lambda: diagonal_fisher(mlp(), [(X, torch.tensor([0, 1]))], estimator="true"),
         ValueError, "estimator is 'exact' (all classes) or 'mc' (one drawn per sample), got 'true'"),
    Case("diagonal_fisher", "no batch", lambda: diagonal_fisher(mlp(), []),
         ValueError, "the loader gave no samples, and a mean over none is nothing"),
]
# fmt: on


def _relu() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def _linearize(**options):
    return tw.linearize_channels(_relu(), (X, torch.tensor([0, 1])), **{"epochs": 1, "progress": False, **options})
