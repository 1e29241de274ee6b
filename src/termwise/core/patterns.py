"""What models write in primitives, recognised once, so that every interpreter sees one node or one mark.

- `clean`: assertions, detach, eval-mode dropout and the tuple form of batch norm disappear.
- `recognise`: functions of one variable (every spelling of gelu, silu, mish, hard-swish, x*x) become "pointwise";
  RMSNorm becomes "rms_norm"; rotary position embedding becomes "rotary".
- `mark_gates`: which operand of a product is a gate, a normaliser, or the gate of a recurrence (selective scan).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import Tensor, fx

from .composite import fuse
from .program import info, op_name

__all__ = ["clean", "mark_gates", "recognise"]

aten = torch.ops.aten

# Identities in eval mode. `detach` is one for a prediction: it stops training, not the value.
_IDENTITIES = {"detach", "alias", "lift_fresh_copy", "lift_fresh", "dropout", "dropout_", "native_dropout", "detach_"}
_CHECKS = {"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "sym_constrain_range_for_size"}

POINTWISE = {
    "add", "sub", "rsub", "mul", "div", "neg", "pow", "square", "abs", "sqrt", "exp", "expm1", "exp2", "log", "log1p",
    "reciprocal", "rsqrt", "sin", "cos", "tanh", "sigmoid", "erf", "erfc", "relu", "relu6", "leaky_relu", "elu", "selu",
    "celu", "gelu", "silu", "mish", "softplus", "log_sigmoid", "hardtanh", "hardsigmoid", "hardswish", "clamp",
    "clamp_min", "clamp_max", "_to_copy", "to", "clone", "pointwise", "logaddexp", "softsign", "threshold", "where",
    "le", "lt", "ge", "gt", "sinh", "cosh", "atan", "asinh",
}  # fmt: skip
_ACTIVATIONS = {"silu", "gelu", "sigmoid", "tanh", "softmax", "_softmax", "relu", "hardsigmoid", "softplus", "pointwise"}
_STEPS = {"sign", "sgn", "floor", "ceil", "round", "trunc", "heaviside", "floor_divide"}
_VIEWS = {"view", "reshape", "unsqueeze", "squeeze", "transpose", "permute", "slice", "select", "expand", "clone"} | {
    "_to_copy", "to", "type_as", "contiguous", "_unsafe_view", "getitem", "split", "split_with_sizes", "unbind", "chunk",
}  # fmt: skip
_REDUCTIONS = {"mean", "sum", "var", "std", "amax", "linalg_vector_norm", "norm", "var_mean", "logsumexp"}


def clean(graph: fx.Graph) -> None:
    """Drop what computes nothing: checks, identities of eval mode, dead code.

    A `view` was recorded for the strides of that call. Where another batch, a rewrite or a richer value has other ones it
    would be refused, so it becomes the `reshape` that it is.
    """
    for node in reversed(list(graph.nodes)):
        if node.op != "call_function":
            continue
        name = op_name(node)
        if name in ("view", "_unsafe_view"):
            node.target = aten.reshape.default
        elif name in _CHECKS:
            graph.erase_node(node)
        elif name in _IDENTITIES and _is_identity(node):
            users = list(node.users)
            if name == "native_dropout":  # a tuple (value, mask)
                users = [u for u in users if u.args[1] == 0]
                for user in users:
                    user.replace_all_uses_with(node.args[0])
            else:
                node.replace_all_uses_with(node.args[0])
        elif name == "_native_batch_norm_legit_no_training":
            _single_output_batch_norm(graph, node)
    graph.eliminate_dead_code(lambda node: node.is_impure() or op_name(node) == "decision")


def _is_identity(node: fx.Node) -> bool:
    if op_name(node) in ("dropout", "dropout_", "native_dropout"):  # (x, p, training)
        return node.args[2] is False or bool(node.args[1] == 0)
    return isinstance(node.args[0], fx.Node)


def _single_output_batch_norm(graph: fx.Graph, node: fx.Node) -> None:
    """(y, empty, empty) and its getitem become one batch_norm in eval mode."""
    x, weight, bias, mean, var, momentum, eps = node.args
    with graph.inserting_before(node):
        args = (x, weight, bias, mean, var, False, momentum, eps, False)
        new = graph.call_function(aten.batch_norm.default, args)
    for user in list(node.users):
        if user.target is operator.getitem and user.args[1] == 0:
            new.meta = dict(user.meta) | {k: node.meta[k] for k in ("nn_module_stack", "stack_trace") if k in node.meta}
            user.replace_all_uses_with(new)


def recognise(graph: fx.Graph) -> None:
    """Fuse the patterns, largest first."""
    for node in list(graph.nodes):
        if node.op == "call_function" and op_name(node) == "rsqrt":
            _rms_norm(graph, node)
    for node in list(graph.nodes):
        if node.op == "call_function" and op_name(node) == "add":
            _rotary(graph, node)
    _functions_of_one_variable(graph)


# -- functions of one variable ----------------------------------------------------------------------------------------


def _functions_of_one_variable(graph: fx.Graph) -> None:
    """X * sigmoid(1.7 x), .5 x (1 + tanh(...)): pointwise expressions in which one value is used more than once.

    The source of a pointwise node is the one value it is a function of. Where two operands of a node share a source,
    everything between is one function of it.
    """
    source: dict[fx.Node, fx.Node] = {}
    joins = []
    for node in graph.nodes:
        source[node] = node
        if node.op != "call_function" or op_name(node) not in POINTWISE:
            continue
        operands = [a for a in _flat(node.args) if isinstance(a, fx.Node) and not _is_number(a)]
        sources = {source[a] for a in operands}
        if len(sources) == 1 and not node.kwargs.get("out"):
            (only,) = sources
            if _same_shape(only, node):
                source[node] = only
                if len(operands) > 1:
                    joins.append(node)
    for node in reversed(joins):
        if node.meta.get("erased") or not _is_float(source[node]):
            continue
        region = _between(source[node], node)
        if all(_is_float(n) or op_name(n) in ("le", "lt", "ge", "gt") for n in region):
            if fuse(graph, region, "pointwise") is not None:
                for inner in region:
                    inner.meta["erased"] = True


def _between(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """Every node on a path from `first` (excluded) to `last`, in order."""
    found = set()
    stack = [last]
    while stack:
        node = stack.pop()
        if node is not first and node not in found and not _is_number(node):
            found.add(node)
            stack += node.all_input_nodes
    return [n for n in last.graph.nodes if n in found]


# -- norms and rotary -------------------------------------------------------------------------------------------------


def _rms_norm(graph: fx.Graph, rsqrt: fx.Node) -> None:
    """[cast] pow 2, mean, add eps, rsqrt, mul x, [cast], [mul weight]."""
    add = rsqrt.args[0]
    mean = _only(add, "add")
    power = _only(mean, "mean") if mean is not None else None
    if power is None or op_name(power) not in ("pow", "mul", "square"):
        return
    if op_name(power) == "pow" and power.args[1] != 2:
        return
    x = power.args[0]
    users = [u for u in rsqrt.users if op_name(u) == "mul"]
    if len(users) != 1 or len(rsqrt.users) != 1 or not isinstance(x, fx.Node):
        return
    scaled = users[0]
    other = scaled.args[1] if scaled.args[0] is rsqrt else scaled.args[0]
    if not isinstance(other, fx.Node) or _uncast(other) is not _uncast(x):
        return
    assert isinstance(add, fx.Node)
    region = [n for n in (power, mean, add, rsqrt, scaled) if n is not None]
    for cast in {x, other}:  # a cast that serves only this norm belongs to it
        if op_name(cast) in ("_to_copy", "to") and all(u in region for u in cast.users):
            region.append(cast)
    last = scaled
    while len(last.users) == 1:
        (user,) = last.users
        if op_name(user) in ("_to_copy", "to", "type_as"):
            last = user
        elif op_name(user) == "mul" and _is_weight(user, last):
            last = user
            region.append(last)
            break
        else:
            break
        region.append(last)
    order = {n: i for i, n in enumerate(graph.nodes)}
    fuse(graph, sorted(region, key=order.__getitem__), "rms_norm", held=[rsqrt])


def _rotary(graph: fx.Graph, add: fx.Node) -> None:
    """X cos + cat(-x2, x1) sin."""
    if len(add.args) != 2 or not all(isinstance(a, fx.Node) and op_name(a) == "mul" for a in add.args):
        return
    for plain, turned in (add.args, add.args[::-1]):
        for x in plain.args:  # type: ignore[union-attr]
            for half in turned.args:  # type: ignore[union-attr]
                if not (isinstance(half, fx.Node) and isinstance(x, fx.Node) and op_name(half) == "cat"):
                    continue
                region = [n for n in _between(x, half) if op_name(n) in ("cat", "neg", "slice", "split", "getitem", "mul")]
                reached = {i for n in region for i in n.all_input_nodes} - set(region)
                if not any(op_name(n) == "neg" for n in region) or reached != {x}:
                    continue
                order = {n: i for i, n in enumerate(graph.nodes)}
                nodes = {*region, plain, turned, add}
                fuse(graph, sorted(nodes, key=order.__getitem__), "rotary")  # type: ignore[arg-type]
                return


# -- gates ------------------------------------------------------------------------------------------------------------


def mark_gates(graph: fx.Graph) -> None:
    """Mark, at every product of two activations, the operand that is a gate; and what a rule holds constant."""
    for node in graph.nodes:
        if node.op != "call_function" or op_name(node) not in ("mul", "div"):
            continue
        a, b = node.args[:2]
        if not all(isinstance(n, fx.Node) and info(n).active for n in (a, b)):
            continue
        known = info(node)
        if op_name(node) == "mul":
            step = [op_name(_source(n)) in _STEPS for n in (a, b)]
            if step[0] != step[1]:
                known.held = (step.index(True),)
            gate = [op_name(_source(n)) in _ACTIVATIONS for n in (a, b)]
            if gate[0] != gate[1] and not any(step) and _is_signal(*((b, a) if gate[0] else (a, b))):
                known.gates = (gate.index(True),)
        for position, other in ((1, a), (0, b)):
            if (op_name(node) == "mul" or position == 1) and _normalises(node.args[position], other):
                known.held = (position,)
                break
    _recurrences(graph)


def _is_signal(value: fx.Node, gate: fx.Node) -> bool:
    """Whether a gate lets `value` through: one made by weights, or of what the gate is made of. A mask is neither."""
    made_of = _leaves(value)
    return any(info(n).role != "activation" for n in made_of) or not made_of.isdisjoint(_leaves(gate))


def _leaves(node: fx.Node) -> set[fx.Node]:
    """The inputs, embeddings and parameters that a value is made of, not looking behind steps."""
    found, stack, seen = set[fx.Node](), [node], set[fx.Node]()
    while stack:
        n = stack.pop()
        if n in seen:
            continue
        seen.add(n)
        if info(n).role in ("cut", "parameter") or (n.op == "placeholder" and info(n).active):
            found.add(n)
        elif info(n).active and op_name(n) not in _STEPS:
            stack += n.all_input_nodes
    return found


def _normalises(value: fx.Node, of: fx.Node) -> bool:
    """Whether `value` is a pointwise function of a reduction over what `of` is made of (a norm, a standard deviation)."""
    stack, seen = [value], set()
    while stack:
        node = stack.pop()
        if node in seen or node.op != "call_function":
            continue
        seen.add(node)
        if op_name(node) in _REDUCTIONS:
            return bool(_pointwise_ancestors(node.all_input_nodes[0]) & _pointwise_ancestors(of))
        if op_name(node) in POINTWISE | _VIEWS:
            stack += [n for n in node.all_input_nodes if info(n).active]
    return False


def _pointwise_ancestors(node: fx.Node) -> set[fx.Node]:
    """The node and what it is a pointwise function or view of."""
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        n = stack.pop()
        if n not in found and info(n).active:
            found.add(n)
            if n.op == "call_function" and op_name(n) in POINTWISE | _VIEWS:
                stack += n.all_input_nodes
    return found


def _recurrences(graph: fx.Graph) -> None:
    """H = a * h' + u, repeated: a is the gate of a recurrence (selective scan, linear attention), as are C and delta B.

    Held constant, or the half-each rule for products would halve the past at every step.
    """
    steps: dict[fx.Node, tuple[fx.Node, int, fx.Node]] = {}  # h -> (product, position of a, u)
    for node in graph.nodes:
        if node.op != "call_function" or op_name(node) != "add" or len(node.args) < 2:
            continue
        for product, u in (node.args[:2], node.args[1::-1]):
            if not (isinstance(product, fx.Node) and isinstance(u, fx.Node) and op_name(product) == "mul"):
                continue
            for position in (0, 1):
                before = product.args[1 - position]
                if isinstance(before, fx.Node) and _uncast(before) in steps and isinstance(product.args[position], fx.Node):
                    steps[node] = (product, position, u)
                    info(product).held = (position,)
            # a first step: the state before it is a constant (zeros)
            if node not in steps and not all(isinstance(a, fx.Node) and info(a).active for a in product.args[:2]):
                steps[node] = (product, 0, u)
    held = [(product, position) for product, position, _ in steps.values() if info(product).held]
    befores = [product.args[1 - position] for product, position in held]
    chained = {h for h, (product, _, _) in steps.items() if info(product).held}
    chained |= {_uncast(b) for b in befores if isinstance(b, fx.Node)}
    for state in chained:
        _, _, u = steps[state]
        drive = _source(u)
        if op_name(drive) == "mul":  # delta B * x: the operand that is itself a product is delta B
            for position in (0, 1):
                operand = drive.args[position]
                if isinstance(operand, fx.Node) and info(operand).active and op_name(_source(operand)) == "mul":
                    info(drive).held = (position,)
                    break
        for user in _users_through_views(state):
            if op_name(user) in ("matmul", "bmm"):  # y = h C
                reads = [isinstance(a, fx.Node) and _source(a) is _source(state) for a in user.args[:2]]
                if True in reads:
                    info(user).held = (1 - reads.index(True),)


def _users_through_views(node: fx.Node) -> Iterable[fx.Node]:
    for user in node.users:
        if user.op == "call_function" and op_name(user) in _VIEWS:
            yield from _users_through_views(user)
        else:
            yield user


def _source(node: fx.Node) -> fx.Node:
    """The node behind views and casts."""
    while node.op == "call_function" and op_name(node) in _VIEWS and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _uncast(node: fx.Node) -> fx.Node:
    while node.op == "call_function" and op_name(node) in ("_to_copy", "to", "clone", "type_as"):
        node = node.all_input_nodes[0]
    return node


def _only(node: object, name: str) -> fx.Node | None:
    """The first argument of a node of that operator, when the node has one user."""
    if isinstance(node, fx.Node) and op_name(node) == name and isinstance(node.args[0], fx.Node):
        return node.args[0]
    return None


def _is_weight(product: fx.Node, of: fx.Node) -> bool:
    """Whether the other operand of a product does not come from an activation (one axis, as weights of norms have)."""
    others = [a for a in product.args if a is not of]
    value = others[0].meta.get("val") if len(others) == 1 and isinstance(others[0], fx.Node) else None
    return isinstance(value, Tensor) and value.ndim == 1


def _flat(args: object) -> list[object]:
    if isinstance(args, (tuple, list)):
        return [x for a in args for x in _flat(a)]
    return [args]


def _is_number(node: fx.Node) -> bool:
    return not isinstance(node.meta.get("val"), Tensor)


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    x, y = a.meta.get("val"), b.meta.get("val")
    return isinstance(x, Tensor) and isinstance(y, Tensor) and str(tuple(x.shape)) == str(tuple(y.shape))
