"""What `explain` and its kin refuse."""

import warnings
from functools import cache

import torch
from torch import nn

import termwise as tw
from bad_inputs.awkward import (
    Custom,
    X,
    attention_net,
    ids,
    images,
    mlp,
    net,
    on_meta,
    picture_net,
    poisoned,
    text_net,
    training,
    with_nan,
)
from bad_inputs.case import Case
from termwise.core import CaptureError
from termwise.predictions import (
    attention_gradcam,
    attention_rollout,
    explain_dataset,
    gradcam,
    gradient_x_input,
    integrated_gradients,
    node,
    occlusion,
    over_depth,
    shapley,
    smoothgrad,
    words,
)

# fmt: off
CASES = [
    Case("explain", "a number for a model", lambda: tw.explain(3, X),
         TypeError, "model must be a torch.nn.Module or a function of tensors, got int"),
    Case("explain", "a state dict for a model", lambda: tw.explain(net().state_dict(), X),
         TypeError, "model must be a torch.nn.Module or a function of tensors, got OrderedDict"),
    Case("explain", "a class for a model", lambda: tw.explain(nn.Linear, X),
         TypeError, "model is the class Linear and must be one of its objects: call it, Linear(...)"),
    Case("explain", "a path for a model", lambda: tw.explain("model.safetensors", X),
         TypeError, "model must be a torch.nn.Module or a function of tensors, got str"),
    Case("explain", "no input", lambda: tw.explain(net()),
         TypeError, "no tensor among the inputs, got nothing: pass tensors, as torch.as_tensor(...) or a tokenizer makes"),
    Case("explain", "a list of numbers", lambda: tw.explain(net(), [1.0, 2.0, 3.0, 4.0]),
         TypeError, "no tensor among the inputs, got float, float, float, float: pass tensors, as torch.as_tensor(...) "
         "or a tokenizer makes"),
    Case("explain", "a numpy array", lambda: tw.explain(net(), X.numpy()),
         TypeError, "no tensor among the inputs, got ndarray: pass tensors, as torch.as_tensor(...) or a tokenizer makes"),
    Case("explain", "a string", lambda: tw.explain(text_net(), "a sentence"),
         TypeError, "no tensor among the inputs, got str: pass tensors, as torch.as_tensor(...) or a tokenizer makes"),
    Case("explain", "an empty batch", lambda: tw.explain(net(), X[:0]),
         ValueError, "input[0] has shape (0, 4): it is empty, and there is nothing to explain"),
    Case("explain", "an empty axis", lambda: tw.explain(text_net(), torch.zeros(2, 0, dtype=torch.long)),
         ValueError, "input[0] has shape (2, 0): it is empty, and there is nothing to explain"),
    Case("explain", "NaN in the input", lambda: tw.explain(net(), with_nan(X)),
         ValueError, "input[0] has 1 values that are NaN or infinite: nothing can be explained by them"),
    Case("explain", "infinity in the input", lambda: tw.explain(net(), with_nan(X, torch.inf)),
         ValueError, "input[0] has 1 values that are NaN or infinite: nothing can be explained by them"),
    Case("explain", "NaN in the weights", lambda: tw.explain(poisoned(), X),
         ValueError, "the weight 2.weight has NaN or infinite values: nothing can be explained through it"),
    Case("explain", "another width", lambda: tw.explain(net(), torch.ones(2, 5)),
         CaptureError, "Sequential itself raises RuntimeError for input (2, 5) torch.float32: .... Call the model with "
         "them first, and mend the inputs or the model"),
    Case("explain", "integers for floats", lambda: tw.explain(net(), torch.ones(2, 4, dtype=torch.long)),
         CaptureError, "Sequential itself raises RuntimeError for input (2, 4) torch.int64: .... Call the model with them "
         "first, and mend the inputs or the model"),
    Case("explain", "complex input", lambda: tw.explain(net(), X.to(torch.complex64)),
         CaptureError, "Sequential itself raises RuntimeError for input (2, 4) torch.complex64: .... Call the model with "
         "them first, and mend the inputs or the model"),
    Case("explain", "half for float", lambda: tw.explain(net(), X.half()),
         CaptureError, "Sequential itself raises RuntimeError for input (2, 4) torch.float16: .... Call the model with "
         "them first, and mend the inputs or the model"),
    Case("explain", "double for float", lambda: tw.explain(net(), X.double()),
         CaptureError, "Sequential itself raises RuntimeError for input (2, 4) torch.float64: .... Call the model with "
         "them first, and mend the inputs or the model"),
    Case("explain", "a meta tensor", lambda: tw.explain(net(), X.to("meta")),
         ValueError, "input[0] is on the meta device, where tensors have no values: move it to where the model is"),
    Case("explain", "a model on meta", lambda: tw.explain(on_meta(net()), X),
         CaptureError, "Sequential itself raises RuntimeError for input (2, 4) torch.float32: .... Call the model with "
         "them first, and mend the inputs or the model"),
    Case("explain", "a sparse tensor", lambda: tw.explain(net(), X.to_sparse()),
         ValueError, "input[0] is sparse (torch.sparse_coo): pass input[0].to_dense()"),
    Case("explain", "ids out of range", lambda: tw.explain(text_net(), ids() + 5),
         CaptureError, "Reader itself raises IndexError for input_ids (2, 3) torch.int64: .... Call the model with them "
         "first, and mend the inputs or the model"),
    Case("explain", "negative ids", lambda: tw.explain(text_net(), ids() - 5),
         CaptureError, "Reader itself raises IndexError for input_ids (2, 3) torch.int64: .... Call the model with them "
         "first, and mend the inputs or the model"),
    Case("explain", "floats for ids", lambda: tw.explain(text_net(), ids().float()),
         CaptureError, "Reader itself raises RuntimeError for input_ids (2, 3) torch.float32: .... Call the model with "
         "them first, and mend the inputs or the model"),
    Case("explain", "a missing input", lambda: tw.explain(Custom(lambda m, x, y: m(x) + m(y)), X),
         CaptureError, "Custom itself raises TypeError for args (2, 4) torch.float32: .... Call the model with them "
         "first, and mend the inputs or the model"),
    Case("explain", "an unknown keyword", lambda: tw.explain(text_net(), kwargs={"input_idz": ids()}),
         CaptureError, "Reader itself raises TypeError for input_idz (2, 3) torch.int64: .... Call the model with them "
         "first, and mend the inputs or the model"),
    Case("explain", "one argument too many", lambda: tw.explain(net(), X, X),
         CaptureError, "Sequential itself raises TypeError for input (2, 4) torch.float32, input_1 (2, 4) torch.float32: "
         ".... Call the model with them first, and mend the inputs or the model"),
    Case("explain", "kwargs that are no mapping", lambda: tw.explain(net(), kwargs=[X]),
         TypeError, "kwargs must be a mapping from names of arguments to values, got list"),
    Case("explain", "training mode with dropout", lambda: tw.explain(nn.Sequential(nn.Linear(4, 3), nn.Dropout()), X),
         ValueError, "Sequential is in training mode, where dropout and batch statistics make its output random: call "
         "model.eval() first"),
    Case("explain", "training mode with batch norm", lambda: tw.explain(nn.BatchNorm1d(4), X),
         ValueError, "BatchNorm1d is in training mode, where dropout and batch statistics make its output random: call "
         "model.eval() first"),
    Case("explain", "a lazy module", lambda: tw.explain(nn.LazyLinear(3).eval(), X),
         ValueError, "weight of LazyLinear is not initialised (a lazy module): run the model once before"),
    Case("explain", "a model without an output", lambda: tw.explain(Custom(lambda m, x: None), X),
         CaptureError, "the model returned NoneType, in which there is no floating tensor to explain: return scores or "
         "logits"),
    Case("explain", "an output that is text", lambda: tw.explain(Custom(lambda m, x: "yes"), X),
         CaptureError, "the model returned str, in which there is no floating tensor to explain: return scores or logits"),
    Case("explain", "an empty dict for output", lambda: tw.explain(Custom(lambda m, x: {}), X),
         CaptureError, "the model returned dict, in which there is no floating tensor to explain: return scores or logits"),
    Case("explain", "an output of integers", lambda: tw.explain(Custom(lambda m, x: m(x).argmax(-1)), X),
         CaptureError, "the model returned a tensor of torch.int64, in which there is no floating tensor to "
         "explain: return scores or logits"),
    Case("explain", "a complex output", lambda: tw.explain(Custom(lambda m, x: torch.fft.fft(m(x))), X),
         TypeError, "the output is torch.complex64, and numbers are explained: pass target=<function>, as of its .abs()"),
    Case("explain", "an output that no input reaches", lambda: tw.explain(Custom(lambda m, x: torch.ones(2, 3)), X),
         ValueError, "the output of Custom depends on no input that can be explained: it is constant"),
    Case("explain", "an infinite output", lambda: tw.explain(Custom(lambda m, x: m(x) / 0), X),
         ValueError, "the explained output is [-inf, inf]: nothing can be explained by an infinite or undefined one"),
    Case("explain", "a scalar output", lambda: tw.explain(Custom(lambda m, x: m(x).sum()), X),
         ValueError, "the output has shape () for 2 samples: there is no scalar per sample. Pass target=<function from "
         "the model's output to a tensor of shape (batch,)>"),
    Case("explain", "samples that influence each other", lambda: tw.explain(Custom(lambda m, x: m(x) - m(x).mean(0)), X),
         ValueError, "in Custom the samples of a batch influence each other's output (or it was recorded for fixed "
         "sizes, export): explain one sample at a time"),
    Case("explain", "a model that raises", lambda: tw.explain(Custom(_raises), X),
         CaptureError, "Custom itself raises RuntimeError for args (2, 4) torch.float32: .... Call the model with them "
         "first, and mend the inputs or the model"),
    Case("explain", "a model that leaves torch", lambda: tw.explain(Custom(lambda m, x: torch.tensor(m(x).tolist())), X),
         ValueError, "the output of Custom depends on no input that can be explained: it is constant"),
    Case("explain", "a quantised model", lambda: tw.explain(_quantised(), X),
         CaptureError, "Sequential could not be recorded. torch.export said: ..."),
    Case("explain", "target too large", lambda: tw.explain(net(), X, target=3),
         ValueError, "target 3 is out of range: the output has 3 classes, 0 to 2"),
    Case("explain", "target too small", lambda: tw.explain(net(), X, target=-4),
         ValueError, "target -4 is out of range: the output has 3 classes, 0 to 2"),
    Case("explain", "target a bool", lambda: tw.explain(net(), X, target=True),
         TypeError, "target must be an integer class index, got True"),
    Case("explain", "target a float", lambda: tw.explain(net(), X, target=1.0),
         TypeError, "target must be an integer class index, got 1.0. Else: a tuple of indices, a tensor of one class per "
         "sample, contrast(...), weighting(...), next_token(...), node(...), a function of the output, or a "
         "list of these"),
    Case("explain", "target a name", lambda: tw.explain(net(), X, target="cat"),
         TypeError, "target must be an integer class index, got 'cat'. Else: a tuple of indices, a tensor of one class "
         "per sample, contrast(...), weighting(...), next_token(...), node(...), a function of the output, or "
         "a list of these"),
    Case("explain", "targets for another batch", lambda: tw.explain(net(), X, target=torch.tensor([0, 1, 2])),
         ValueError, "target has shape (3,) for 2 samples: one index each, or one for all"),
    Case("explain", "targets of floats", lambda: tw.explain(net(), X, target=torch.tensor([0.0, 1.0])),
         TypeError, "target must be an integer class index, got tensor([0., 1.])"),
    Case("explain", "targets of bools", lambda: tw.explain(net(), X, target=torch.tensor([True, False])),
         TypeError, "target must be an integer class index, got tensor([ True, False])"),
    Case("explain", "targets of two axes", lambda: tw.explain(net(), X, target=torch.tensor([[0], [1]])),
         ValueError, "target has shape (2, 1) for 2 samples: one index each, or one for all"),
    Case("explain", "one of the targets out of range", lambda: tw.explain(net(), X, target=torch.tensor([0, 9])),
         ValueError, "target tensor([0, 9]) is out of range: the output has 3 classes, 0 to 2"),
    Case("explain", "no target in a list", lambda: tw.explain(net(), X, target=[]),
         ValueError, "target is an empty list: nothing is asked"),
    Case("explain", "a float in a list", lambda: tw.explain(net(), X, target=[0, 0.5]),
         TypeError, "target must be an integer class index, got 0.5. Else: a tuple of indices, a tensor of one class per "
         "sample, contrast(...), weighting(...), next_token(...), node(...), a function of the output, or a "
         "list of these"),
    Case("explain", "a function among others", lambda: tw.explain(net(), X, target=[0, lambda y: y[:, 0]]),
         TypeError, "functions of the output are recorded with the model, other targets are not: two calls of explain"),
    Case("explain", "a tuple too long", lambda: tw.explain(net(), X, target=(0, 1)),
         ValueError, "target (0, 1) has 2 indices, each sample's output has 1 axes"),
    Case("explain", "an empty tuple", lambda: tw.explain(net(), X, target=()),
         ValueError, "target () has 0 indices, each sample's output has 1 axes"),
    Case("explain", "a float in a tuple", lambda: tw.explain(net(), X, target=(0.5,)),
         TypeError, "axis 1 of target must be an integer class index, got 0.5"),
    Case("explain", "the name of no output", lambda: tw.explain(Custom(_boxes), X, target=("boxez", 0)),
         ValueError, "the output has no tensor 'boxez': did you mean 'boxes'?"),
    Case("explain", "a function of another shape", lambda: tw.explain(net(), X, target=lambda y: y),
         ValueError, "target must give one scalar per sample, shape (batch,); it gave (2, 3)"),
    Case("explain", "a function that gives a number", lambda: tw.explain(net(), X, target=lambda y: 1.0),
         ValueError, "target must give one scalar per sample, shape (batch,); it gave float"),
    Case("explain", "a function that raises", lambda: tw.explain(net(), X, target=lambda y: y[:, 9]),
         CaptureError, "the function that picks from the output of Sequential raises IndexError for a tensor (2, 3) of "
         "torch.float32: index 9 is out of bounds for dimension 1 with size 3"),
    Case("explain", "an unknown rule set", lambda: tw.explain(net(), X, rules="epsilonn"),
         ValueError, "unknown rules 'epsilonn': did you mean 'epsilon'?"),
    Case("explain", "a number for rules", lambda: tw.explain(net(), X, rules=3),
         TypeError, "rules is the name of a set (default, zero, cp-lrp, attnlrp, epsilon, gamma, z+, alpha-beta, "
         "gamma-vit, mambalrp, deep-taylor, EpsilonPlus, EpsilonPlusFlat, EpsilonAlpha2Beta1, "
         "EpsilonAlpha2Beta1Flat, DeconvNet, GuidedBackprop) or a mapping, got 3"),
    Case("explain", "an unknown rule for an operator", lambda: tw.explain(net(), X, rules={"linear": "gama"}),
         ValueError, "unknown rule 'gama': did you mean 'gamma'?"),
    Case("explain", "rules for no module", lambda: tw.explain(net(), X, rules={"layers.*": "epsilon"}),
         ValueError, "'layers.*' in `rules` is no operator and matches no module of Sequential: did you mean "
         "'layer_norm'?"),
    Case("explain", "an unknown policy of biases", lambda: tw.explain(net(), X, biases="part"),
         ValueError, "biases is one of 'parts', 'absorb', 'distribute', 'zero', got 'part': did you mean 'parts'?"),
    Case("explain", "a number for biases", lambda: tw.explain(net(), X, biases=0),
         ValueError, "biases is one of 'parts', 'absorb', 'distribute', 'zero', got 0"),
    Case("explain", "at no module", lambda: tw.explain(mlp(), X, target=0, at="linear"),
         ValueError, "Sequential has no module 'linear': there are 0, 1, 2"),
    Case("explain", "at a number", lambda: tw.explain(mlp(), X, target=0, at=0),
         TypeError, "a module is named by its path, as 'encoder.layer.3'; got 0"),
    Case("explain", "at a call that was not", lambda: tw.explain(mlp(), X, target=0, at="0#2"),
         ValueError, "'0#2': '0' is called 1 times, so the number lies in 1 to 1"),
    Case("explain", "through a string", lambda: tw.explain(mlp(), X, through="0"),
         TypeError, "through is (path of a module, unit), as ('features.10', 17); got '0'"),
    Case("explain", "through no module", lambda: tw.explain(mlp(), X, through=("9", 0)),
         ValueError, "Sequential has no module '9': there are 0, 1, 2"),
    Case("explain", "through no unit", lambda: tw.explain(mlp(), X, through=("0", 8)),
         ValueError, "'0' has no unit 8: its output (2, 8) has 8 along axis 1"),
    Case("explain", "through a unit of a float", lambda: tw.explain(mlp(), X, through=("0", 1.5)),
         TypeError, "a unit is the number of a channel or feature, or a tensor that weighs the output; got 1.5"),
    Case("explain", "through weights of another shape", lambda: tw.explain(mlp(), X, through=("0", torch.ones(7))),
         ValueError, "the mask through '0' has shape (7,), the module's output (2, 8)"),
    Case("explain", "names for another batch", lambda: tw.explain(text_net(), ids(), names=[["a", "b", "c"]]),
         ValueError, "names has 1 lists of tokens for 2 samples"),
    Case("explain", "names that are one string", lambda: tw.explain(text_net(), ids(), names="a b c"),
         TypeError, "names is a list of tokens for each sample, got the string 'a b c': split it into tokens"),
    Case("explain", "names that are numbers", lambda: tw.explain(text_net(), ids(), names=[1, 2]),
         TypeError, "names is a list of tokens for each sample, got [1, 2]"),
    Case("explain", "too few classes", lambda: tw.explain(net(), X, target=2, classes=["a", "b"]),
         ValueError, "classes has 2 names, and class 2 is explained: name every class of the output"),
    Case("explain", "classes that are one string", lambda: tw.explain(net(), X, classes="cat"),
         TypeError, "classes is a list of names, got the string 'cat'"),
    Case("explain", "classes that are a number", lambda: tw.explain(net(), X, classes=3),
         TypeError, "classes is a list of names, got int"),
    Case("explain", "a mask of another shape", lambda: tw.explain(net(), X, feature_mask=torch.zeros(5, dtype=torch.long)),
         ValueError, "feature_mask has shape (5,), which fits no input: input:input (2, 4). Give it the shape of the "
         "input, with the batch or without; axes that all share may be 1 or left out in front, as (height, "
         "width)"),
    Case("explain", "a mask of floats", lambda: tw.explain(net(), X, feature_mask=torch.zeros(4)),
         TypeError, "feature_mask holds the number of a group for every entry, integers; it is torch.float32"),
    Case("explain", "a mask for no input", lambda: tw.explain(net(), X, feature_mask={"y": torch.zeros(4).long()}),
         ValueError, "feature_mask names 'y'; there are input:input"),
    Case("explain", "a string for a mask", lambda: tw.explain(net(), X, feature_mask="words"),
         TypeError, "feature_mask must be a tensor of integers, or of each input one by name; got str"),
    Case("explain", "memory for no sample", lambda: tw.explain(net(), X, max_memory=10),
         ValueError, "max_memory=10B is too small: one target of one sample needs 12B for its pass, without the result "
         "of 2 samples and 1 targets: 12B at least. Allow that, or explain a shorter input, or from an inner "
         "module on (at=)"),
    Case("explain", "memory in no unit", lambda: tw.explain(net(), X, max_memory="2 parsecs"),
         ValueError, "max_memory is a whole number of bytes, or a size as '500MB', '2GB', '1.5GiB'; got '2 parsecs'"),
    Case("explain", "negative memory", lambda: tw.explain(net(), X, max_memory=-1),
         ValueError, "max_memory is a whole number of bytes, or a size as '500MB', '2GB', '1.5GiB'; got -1"),
    Case("explain", "memory as a list", lambda: tw.explain(net(), X, max_memory=[1]),
         ValueError, "max_memory is a whole number of bytes, or a size as '500MB', '2GB', '1.5GiB'; got [1]"),
    Case("explain", "inputs of two batches", lambda: tw.explain(Custom(lambda m, x, y: m(x) + m(y)), X, torch.ones(3, 4)),
         CaptureError, "Custom itself raises RuntimeError for args (2, 4) torch.float32, kwargs (3, 4) torch.float32: "
         ".... Call the model with them first, and mend the inputs or the model"),
    Case("contrast", "an unknown word", lambda: tw.contrast(0, "others"),
         ValueError, "unknown contrast 'others': a class, None for the mean of the rest, or 'probabilities'"),
    Case("contrast", "a function", lambda: tw.contrast(lambda y: y),
         TypeError, "target must be an integer class index, got <function ...>. Else: a tuple of indices, a tensor of "
         "one class per sample, contrast(...), weighting(...), next_token(...), node(...), a function of the "
         "output, or a list of these"),
    Case("contrast", "a weighting", lambda: tw.contrast(tw.weighting(torch.ones(3))),
         TypeError, "contrast sets one entry of the output against others, Weighting(weights=tensor([1., 1., 1.])) is "
         "none"),
    Case("contrast", "a float", lambda: tw.contrast(0.5, 1),
         TypeError, "target must be an integer class index, got 0.5. Else: a tuple of indices, a tensor of one class per "
         "sample, contrast(...), weighting(...), next_token(...), node(...), a function of the output, or a "
         "list of these"),
    Case("contrast", "against a float", lambda: tw.contrast(0, 1.5),
         TypeError, "contrast is against a class, an integer or one per sample, got 1.5"),
    Case("contrast", "out of range", lambda: tw.explain(net(), X, target=tw.contrast(0, 7)),
         ValueError, "target 7 is out of range: the output has 3 classes, 0 to 2"),
    Case("contrast", "against another batch", lambda: tw.explain(net(), X, target=tw.contrast(0, torch.tensor([1, 1, 1]))),
         ValueError, "target has shape (3,) for 2 samples: one index each, or one for all"),
    Case("weighting", "a list", lambda: tw.weighting([1.0, 0.0, 1.0]),
         TypeError, "weights must be a tensor of real numbers, got list"),
    Case("weighting", "another shape", lambda: tw.explain(net(), X, target=tw.weighting(torch.ones(4))),
         ValueError, "weighting has shape (4,), the output (2, 3): give weights of that shape, or (3,) for all samples "
         "alike"),
    Case("weighting", "NaN", lambda: tw.explain(net(), X, target=tw.weighting(with_nan(torch.ones(3)))),
         ValueError, "the explained output is [nan, nan]: nothing can be explained by an infinite or undefined one"),
    Case("weighting", "complex weights", lambda: tw.weighting(torch.ones(3, dtype=torch.complex64)),
         TypeError, "weights must be a tensor of real numbers, got torch.complex64"),
    Case("next_token", "a float", lambda: tw.next_token(1.5),
         TypeError, "position must be an integer, got 1.5"),
    Case("next_token", "a bool", lambda: tw.next_token(True),
         TypeError, "position must be an integer, got True"),
    Case("next_token", "the first", lambda: tw.explain(_language(), ids(), target=tw.next_token(0)),
         ValueError, "next_token(0): there are 3 tokens, the first is predicted by nothing: say 1 to 2"),
    Case("next_token", "beyond the text", lambda: tw.explain(_language(), ids(), target=tw.next_token(9)),
         ValueError, "next_token(9): there are 3 tokens, the first is predicted by nothing: say 1 to 2"),
    Case("next_token", "a classifier", lambda: tw.explain(text_net(), ids(), target=tw.next_token(2)),
         ValueError, "next_token(2) needs a model that scores the next token at each: an output (batch, tokens, "
         "vocabulary) for ids (batch, tokens). Here the output is (2, 2), ids (2, 3)"),
    Case("continuation", "nothing between", lambda: tw.continuation(5, 5),
         ValueError, "continuation(5, 5) holds no token that another predicts: 1 <= start < stop"),
    Case("continuation", "backwards", lambda: tw.continuation(5, 2),
         ValueError, "continuation(5, 2) holds no token that another predicts: 1 <= start < stop"),
    Case("continuation", "from the first", lambda: tw.continuation(0, 2),
         ValueError, "continuation(0, 2) holds no token that another predicts: 1 <= start < stop"),
    Case("continuation", "floats", lambda: tw.continuation(1.0, 3.0),
         TypeError, "start must be an integer, got 1.0"),
    Case("continuation", "strings", lambda: tw.continuation("1", "3"),
         TypeError, "start must be an integer, got '1'"),
    Case("node", "a float", lambda: node(0.5),
         TypeError, "index must be an integer, got 0.5"),
    Case("node", "beyond the graph", lambda: tw.explain(Custom(lambda m, x: m(x)), X, target=node(7, 0)),
         ValueError, "node(7) of an output of shape (2, 3): it must be (nodes, classes) or (nodes,), and have that node"),
    Case("decompx", "a number for a model", lambda: tw.decompx(3, X),
         TypeError, "model must be a torch.nn.Module or a function of tensors, got int"),
    Case("decompx", "an empty batch", lambda: tw.decompx(attention_net(), torch.ones(0, 3, 8)),
         ValueError, "input[0] has shape (0, 3, 8): it is empty, and there is nothing to explain"),
    Case("decompx", "NaN", lambda: tw.decompx(attention_net(), with_nan(torch.ones(1, 3, 8))),
         ValueError, "input[0] has 1 values that are NaN or infinite: nothing can be explained by them"),
    Case("decompx", "a model of pictures", lambda: tw.decompx(picture_net(), images()),
         ValueError, "input has shape (2, 3, 8, 8), and no convolution reads it in separate patches: say which entries "
         "are one source, feature_mask=termwise.predictions.patches(height, width, size) or any integers "
         "0..n-1"),
    Case("decompx", "an unknown policy of biases", lambda: tw.decompx(text_net(), ids(), biases="absdott"),
         ValueError, "unknown biases 'absdott': did you mean 'absdot'?"),
    Case("decompx", "an unknown activation", lambda: tw.decompx(text_net(), ids(), activation="zero-orgin"),
         ValueError, "unknown activation 'zero-orgin': did you mean 'zero-origin'?"),
    Case("decompx", "target out of range", lambda: tw.decompx(text_net(), ids(), target=5),
         ValueError, "target 5 is out of range: the output has 2 classes, 0 to 1"),
    Case("decompx", "ids out of range", lambda: tw.decompx(text_net(), ids() + 5),
         ValueError, "aten.embedding at table (awkward.py:75) raises IndexError: index out of range in self: do ids lie "
         "within the table that they look up?"),
    Case("gradient_x_input", "ids out of range", lambda: gradient_x_input(text_net(), ids() + 5),
         ValueError, "aten.embedding at table (awkward.py:75) raises IndexError: index out of range in self: do ids lie "
         "within the table that they look up?"),
    Case("occlusion", "ids out of range", lambda: occlusion(text_net(), ids() + 5, baseline=0),
         ValueError, "aten.embedding at table (awkward.py:75) raises IndexError: index out of range in self: do ids lie "
         "within the table that they look up?"),
    Case("coverage", "half for float", lambda: tw.coverage(net(), X.half()),
         CaptureError, "Sequential itself raises RuntimeError for input (2, 4) torch.float16: .... Call the model with "
         "them first, and mend the inputs or the model"),
    Case("chefer", "double for float", lambda: tw.chefer(_attentive(), torch.ones(1, 3, 8).double()),
         CaptureError, "Custom itself raises RuntimeError for args (1, 3, 8) torch.float64: .... Call the model with "
         "them first, and mend the inputs or the model"),
    Case("integrated_gradients", "half for float", lambda: integrated_gradients(net(), X.half()),
         CaptureError, "Sequential itself raises RuntimeError for input (2, 4) torch.float16: .... Call the model with "
         "them first, and mend the inputs or the model"),
    Case("decompx", "a string", lambda: tw.decompx(text_net(), "a sentence"),
         TypeError, "no tensor among the inputs, got str: pass tensors, as torch.as_tensor(...) or a tokenizer makes"),
    Case("decompx", "training mode", lambda: tw.decompx(training(text_net()), ids()),
         ValueError, "Reader is in training mode, where dropout and batch statistics make its output random: call "
         "model.eval() first"),
    Case("chefer", "a model without attention", lambda: tw.chefer(net(), X),
         ValueError, "Sequential has no attention: no softmax in it is multiplied with values that depend on the input. "
         "Use termwise.explain"),
    Case("chefer", "no input", lambda: tw.chefer(attention_net()),
         TypeError, "no tensor among the inputs, got nothing: pass tensors, as torch.as_tensor(...) or a tokenizer makes"),
    Case("chefer", "an empty batch", lambda: tw.chefer(attention_net(), torch.ones(0, 3, 8)),
         ValueError, "input[0] has shape (0, 3, 8): it is empty, and there is nothing to explain"),
    Case("chefer", "start_layer beyond the last", lambda: tw.chefer(_attentive(), torch.ones(1, 3, 8), start_layer=5),
         ValueError, "start_layer must lie in 0..0, as many attentions follow each other; got 5"),
    Case("chefer", "start_layer negative", lambda: tw.chefer(_attentive(), torch.ones(1, 3, 8), start_layer=-1),
         ValueError, "start_layer must lie in 0..0, as many attentions follow each other; got -1"),
    Case("chefer", "start_layer a float", lambda: tw.chefer(_attentive(), torch.ones(1, 3, 8), start_layer=0.5),
         ValueError, "start_layer must lie in 0..0, as many attentions follow each other; got 0.5"),
    Case("chefer", "target out of range", lambda: tw.chefer(_attentive(), torch.ones(1, 3, 8), target=99),
         ValueError, "target 99 is out of range: the output has 8 classes, 0 to 7"),
    Case("chefer", "a list of targets", lambda: tw.chefer(_attentive(), torch.ones(1, 3, 8), target=[0, 1]),
         ValueError, "target [0, 1] asks for several explanations, or for one without samples: ask for one a sample here"),
    Case("attention_rollout", "a model without attention", lambda: attention_rollout(net(), X),
         ValueError, "Sequential has no attention: no softmax in it is multiplied with values that depend on the input. "
         "Use termwise.explain"),
    Case("attention_gradcam", "NaN", lambda: attention_gradcam(_attentive(), with_nan(torch.ones(1, 3, 8))),
         ValueError, "input[0] has 1 values that are NaN or infinite: nothing can be explained by them"),
    Case("coverage", "a string for a model", lambda: tw.coverage("mobilenet-v2", X),
         TypeError, "model must be a torch.nn.Module or a function of tensors, got str"),
    Case("coverage", "no input", lambda: tw.coverage(net()),
         CaptureError, "Sequential itself raises TypeError for these arguments: .... Call the model with them first, and "
         "mend the inputs or the model"),
    Case("coverage", "another width", lambda: tw.coverage(net(), torch.ones(2, 5)),
         CaptureError, "Sequential itself raises RuntimeError for input (2, 5) torch.float32: .... Call the model with "
         "them first, and mend the inputs or the model"),
    Case("coverage", "an unknown rule set", lambda: tw.coverage(net(), X, rules="Epsilon"),
         ValueError, "unknown rules 'Epsilon': did you mean 'epsilon'?"),
    Case("coverage", "select that gives no tensor", lambda: tw.coverage(net(), X, select=lambda y: "y"),
         CaptureError, "a floating tensor must be picked from the output, it was str"),
    Case("coverage", "training mode", lambda: tw.coverage(training(net()), X),
         ValueError, "Sequential is in training mode, where dropout and batch statistics make its output random: call "
         "model.eval() first"),
    Case("gradient_x_input", "integers only", lambda: gradient_x_input(Custom(lambda m, x: m(x.float())), ids()),
         CaptureError, "Custom itself raises RuntimeError for args (2, 3) torch.int64: .... Call the model with them "
         "first, and mend the inputs or the model"),
    Case("gradient_x_input", "an empty batch", lambda: gradient_x_input(net(), X[:0]),
         ValueError, "input[0] has shape (0, 4): it is empty, and there is nothing to explain"),
    Case("integrated_gradients", "no step", lambda: integrated_gradients(net(), X, steps=0),
         ValueError, "steps must be at least 1, a whole number; got 0"),
    Case("integrated_gradients", "a float of steps", lambda: integrated_gradients(net(), X, steps=2.5),
         ValueError, "steps must be at least 1, a whole number; got 2.5"),
    Case("integrated_gradients", "an unknown rule", lambda: integrated_gradients(net(), X, rule="simpson"),
         ValueError, "rule must be 'gauss-legendre' or 'midpoint', got 'simpson'"),
    Case("integrated_gradients", "another baseline", lambda: integrated_gradients(net(), X, baseline=torch.ones(5)),
         ValueError, "baseline has shape (5,), which does not fit inputs (2, 4)"),
    Case("integrated_gradients", "a baseline of NaN", lambda: integrated_gradients(net(), X, baseline=X * torch.nan),
         ValueError, "baseline has values that are NaN or infinite"),
    Case("integrated_gradients", "a batch of no size", lambda: integrated_gradients(net(), X, batch_size=0),
         ValueError, "batch_size must be at least 1, a whole number; got 0"),
    Case("smoothgrad", "no sample", lambda: smoothgrad(net(), X, n=0),
         ValueError, "n must be at least 1, a whole number; got 0"),
    Case("smoothgrad", "negative noise", lambda: smoothgrad(net(), X, noise=-0.1),
         ValueError, "noise must be a share of the range of the input, 0 or more, got -0.1"),
    Case("smoothgrad", "noise of NaN", lambda: smoothgrad(net(), X, noise=torch.nan),
         ValueError, "noise must be a share of the range of the input, 0 or more, got nan"),
    Case("smoothgrad", "an unknown kind", lambda: smoothgrad(net(), X, kind="relativ"),
         ValueError, "kind must be one of signed, absolute, squared, got 'relativ'"),
    Case("smoothgrad", "a seed for a generator", lambda: smoothgrad(net(), X, generator=3),
         TypeError, "generator must be a torch.Generator, got int: torch.Generator().manual_seed(seed) makes one"),
    Case("occlusion", "a patch of no size", lambda: occlusion(picture_net(), images(), patch=0),
         ValueError, "patch must be at least 1 pixel, got 0"),
    Case("occlusion", "another mask", lambda: occlusion(net(), X, feature_mask=torch.zeros(7).long()),
         ValueError, "feature_mask has shape (7,): it must be (4,) for all samples, or (2, 4) with one for each"),
    Case("occlusion", "an unknown input", lambda: occlusion(net(), X, name="pixels"),
         ValueError, "there is no input 'pixels' to explain: there are input"),
    Case("shapley", "no order", lambda: shapley(net(), X, orders=0, feature_mask=torch.arange(4)),
         ValueError, "orders must be even and at least 2, an order and its reverse; got 0"),
    Case("gradcam", "no such layer", lambda: gradcam(picture_net(), images(), layer="conv"),
         ValueError, "no module 'conv' in Sequential: known are 0, 1, 2, 3"),
    Case("gradcam", "a model without maps", lambda: gradcam(net(), X),
         ValueError, "gradcam needs one image (batch, channels, height, width) and nothing else, got 1 inputs"),
    Case("over_depth", "a vector for a picture", lambda: over_depth(net(), X),
         ValueError, "over_depth takes images (batch, channels, height, width), got torch.float32 (2, 4)"),
    Case("over_depth", "a negative shift", lambda: over_depth(picture_net(), images(), shift=-1),
         ValueError, "shift must lie in 0..7 for pictures (8, 8), got -1"),
    Case("explain_dataset", "no batch", lambda: explain_dataset(net(), []),
         ValueError, "there is no batch in the data: nothing was explained"),
    Case("explain_dataset", "a tensor of no axis", lambda: explain_dataset(net(), torch.tensor(1.0)),
         TypeError, "batches must be an iterable of batches (a list, a DataLoader), got Tensor"),
    Case("explain_dataset", "a number", lambda: explain_dataset(net(), 3),
         TypeError, "batches must be an iterable of batches (a list, a DataLoader), got int"),
    Case("explain_dataset", "an unknown option", lambda: explain_dataset(net(), [X], rulez="zero"),
         TypeError, "unknown option 'rulez': options are those of termwise.explain"),
    Case("words", "no tokens", lambda: words([]),
         TypeError, "names must be a list of tokens, or one for each sample; got []"),
    Case("words", "a string", lambda: words("a sentence"),
         TypeError, "names must be a list of tokens, or one for each sample; got 'a sentence'"),
    Case("words", "numbers", lambda: words([1, 2, 3]),
         TypeError, "names must be a list of tokens, or one for each sample; got [1, 2, 3]"),
]
# fmt: on


def _raises(inner: nn.Module, x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("the disk is full")


def _boxes(inner: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"logits": inner(x), "boxes": inner(x)}


def _quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves it to a package of its own
        return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8).eval()


@cache
def _language() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 10)).eval()


@cache
def _attentive() -> nn.Module:
    return Custom(lambda m, x: m(x)[:, 0], attention_net())
