"""What a line of a random program may be: one template per row, and how far its operands lie from a kink.

    {a}, {b}, {c}    values: any; of the shape of a; of the rank of a
    <...>            a layer or parameter of the model, made once; the line reads `self.l3` in its place
    {last}, {axis}   the last size of a, an axis of a that is not the batch;  {size}, {i}: its size, an index along it
    {n}, {x}         a small size, a number

A row is (ranks of a, template) or (ranks of a, template, margin): the margin is an expression whose entries are all away
from 0 where the line is smooth. A row that does not fit the values that are there is drawn again, so that none has to say what
sizes it needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["LINEAR", "ROWS", "SMOOTH", "Row"]


@dataclass(frozen=True)
class Row:
    """One kind of line.

    Attributes:
        ranks: those that {a} may have.
        text: the template.
        margin: an expression that is away from 0 where the line is smooth; "" where it is everywhere.
        family: the heading that it stands under.
    """

    ranks: tuple[int, ...]
    text: str
    margin: str = ""
    family: str = ""


def _rows(family: str, *rows: tuple[str, ...]) -> Iterable[Row]:
    return [Row(tuple(map(int, ranks)), *rest, family=family) for ranks, *rest in rows]  # type: ignore[misc]


CURVED = _rows(
    "curved",
    *[
        ("234", text)
        for text in (
            "torch.tanh({a})", "torch.sigmoid({a})", "torch.sin({a})", "torch.cos({a})", "torch.exp(0.5 * {a})", "torch.expm1({a} / 2)",
            "torch.erf({a})", "torch.atan({a})", "torch.asinh({a})", "torch.sinh(0.5 * {a})", "torch.cosh(0.5 * {a})",
            "torch.exp2(0.3 * {a})", "torch.log({a}.square() + 1)", "torch.log1p({a}.square())", "torch.sqrt({a}.square() + 1)",
            "torch.rsqrt({a} * {a} + 1)", "torch.reciprocal({a}.square() + 1)", "{a}.pow(3) / 4", "{a}.square() / 2", "F.softplus({a})",
            "F.silu({a})", "F.gelu({a})", "F.gelu({a}, approximate='tanh')", "F.mish({a})", "F.logsigmoid({a})",
            "{a} * torch.sigmoid(1.702 * {a})", "torch.special.ndtr({a})",
        )
    ],
)  # fmt: skip

KINKED = _rows(
    "kinked",
    ("234", "F.elu({a})", "{a}"),
    ("234", "F.selu({a})", "{a}"),
    ("234", "F.celu({a}, 0.75)", "{a}"),  # torch's derivative holds alpha in float32, where 0.7 is another number
    ("234", "F.hardswish({a})", "{a}.abs() - 3"),
    ("234", "F.softshrink({a}, 0.3)", "{a}.abs() - 0.3"),
    ("234", "F.hardshrink({a}, 0.3)", "{a}.abs() - 0.3"),
    ("234", "F.threshold({a}, 0.2, 0.1)", "{a} - 0.2"),
    ("234", "{a}.sqrt()", "{a}.where({a} > 0.02, 0)"),
    ("234", "torch.hypot({a}, {b})", "torch.hypot({a}, {b})"),
    ("234", "{a} * torch.sign({b})", "{b}"),
)

PIECEWISE = _rows(
    "piecewise linear",
    ("234", "F.relu({a})", "{a}"),
    ("234", "F.leaky_relu({a}, 0.1)", "{a}"),
    ("234", "{a}.abs()", "{a}"),
    ("234", "F.hardtanh({a}, -{x}, {x})", "{a}.abs() - {x}"),
    ("234", "torch.clamp({a}, -{x}, 0.9)", "({a} + {x}) * ({a} - 0.9)"),
    ("234", "{a}.clamp_min(-{x})", "{a} + {x}"),
    ("234", "{a}.clamp_max({x})", "{a} - {x}"),
    ("234", "F.relu6(3 * {a} + 3)", "({a} + 1) * ({a} - 1)"),
    ("234", "F.hardsigmoid({a})", "({a} + 3).clamp_min(0) * ({a} - 3)"),  # no zero comes out, in which a walk loses its ratio
    ("34", "<nn.PReLU({channels})>({a})", "{a}"),
    ("234", "torch.where({a} > 0.2, {a}, {b})", "{a} - 0.2"),
    ("234", "torch.maximum({a}, {b})", "{a} - {b}"),
    ("234", "torch.minimum({a}, {b})", "{a} - {b}"),
    ("34", "{a}.amax({axis})", "gaps({a}, {axis})"),
    ("34", "{a}.amin({axis}, keepdim=True) + {a}", "gaps({a}, {axis})"),
    ("34", "{a}.max({axis}).values", "gaps({a}, {axis})"),
    ("34", "{a}.min({axis}).values", "gaps({a}, {axis})"),
    ("234", "{a}.sort({axis}).values", "gaps({a}, {axis})"),
    ("234", "{a}.topk(2, {axis}).values", "gaps({a}, {axis})"),
    ("234", "{a}.cummax({axis}).values", "gaps({a}, {axis})"),
    ("3", "F.max_pool1d({a}, 2)", "gaps({a}, 2)"),
    ("4", "F.max_pool2d({a}, 2)", "gaps({a}.flatten(2), 2)"),
    ("4", "F.max_pool2d({a}, 3, 2, 1)", "gaps({a}.flatten(2), 2)"),
    ("4", "F.adaptive_max_pool2d({a}, 2)", "gaps({a}.flatten(2), 2)"),
    ("34", "{a}.gather({axis}, {a}.argmax({axis}, keepdim=True))", "gaps({a}, {axis})"),
)

MAPS = _rows(
    "linear maps",
    ("23", "<nn.Linear({last}, {n})>({a})"),
    ("23", "<nn.Linear({last}, {last})>({a})"),
    ("23", "{a} + <nn.Linear({last}, {last}, bias=False)>({a})"),
    ("2", "torch.addmm(<nn.Parameter(torch.randn({n}))>, {a}, <nn.Parameter(torch.randn({last}, {n}) / 2)>)"),
    ("23", "{a} @ <nn.Parameter(torch.randn({last}, {n}) / 2)>"),
    ("3", "torch.einsum('bij,jk->bik', {a}, <nn.Parameter(torch.randn({last}, {n}) / 2)>)"),
    ("3", "<nn.Conv1d({channels}, {n}, 2, padding=1)>({a})"),
    ("3", "<nn.Conv1d({channels}, {channels}, 3, padding=2, dilation=2, groups={channels})>({a})"),
    ("3", "<nn.ConvTranspose1d({channels}, 2, 2, 2)>({a})"),
    ("4", "<nn.Conv2d({channels}, {n}, 3, padding=1)>({a})"),
    ("4", "<nn.Conv2d({channels}, {n}, 2, bias=False)>({a})"),
    ("4", "<nn.Conv2d({channels}, {n}, 3, 2, 1)>({a})"),
    ("4", "<nn.Conv2d({channels}, 2 * {channels}, 3, padding=1, groups={channels})>({a})"),
    ("4", "<nn.ConvTranspose2d({channels}, 2, 2)>({a})"),
    ("4", "F.relu(<nn.BatchNorm2d({channels})>(<nn.Conv2d({channels}, {channels}, 3, padding=1)>({a})))", "{a} + 1000"),
    ("4", "<nn.BatchNorm2d({channels})>({a})"),
    ("23", "<nn.BatchNorm1d({channels})>({a})"),
    ("234", "{a} * <nn.Parameter(torch.randn({last}))>"),
    ("234", "{a} + <nn.Parameter(torch.randn({last}))>"),
    ("234", "{a} - <nn.Parameter(torch.randn({axes}))>"),
    ("234", "{a} + {x}"),
    ("234", "{x} - {a}"),
    ("234", "{a} * {x}"),
    ("234", "{a} / 2.0"),
    ("234", "-{a}"),
    ("3", "F.avg_pool1d({a}, 2)"),
    ("3", "F.adaptive_avg_pool1d({a}, 2)"),
    ("4", "F.avg_pool2d({a}, 2, 1)"),
    ("4", "F.adaptive_avg_pool2d({a}, 2)"),
    ("4", "F.interpolate({a}, scale_factor=2)"),
    ("4", "F.interpolate({a}, size=(3, 3), mode='bilinear')"),
    ("3", "F.interpolate({a}, size=5, mode='linear', align_corners=True)"),
    ("34", "{a}.sum({axis})"),
    ("34", "{a}.mean({axis})"),
    ("234", "{a} - {a}.mean({axis}, keepdim=True)"),
    ("4", "{a}.mean((2, 3))"),
    ("234", "{a}.cumsum({axis})"),
    ("234", "torch.add({a}, {b}, alpha=0.5)"),
    ("234", "torch.sub({a}, {b}, alpha=-0.7)"),
    ("234", "torch.lerp({a}, {b}, 0.3)"),
    ("234", "{a} + {b}"),
    ("234", "{a} - 0.5 * {b}"),
    ("234", "{a}.diff(dim={axis})"),
)

SHAPES = _rows(
    "moves",
    ("34", "{a}.transpose({axis}, -1)"),
    ("3", "{a}.permute(0, 2, 1)"),
    ("4", "{a}.permute(0, 2, 3, 1)"),
    ("4", "{a}.flatten(2)"),
    ("34", "{a}.flatten(1)"),
    ("34", "{a}.reshape({a}.shape[0], {a}.shape[2], -1)"),
    ("4", "{a}.movedim(1, -1).flatten(1, 2)"),
    ("23", "{a}.unflatten(-1, (2, -1))"),
    ("3", "{a}.unsqueeze(1)"),
    ("2", "{a}.unsqueeze(1).expand(-1, 3, -1)"),
    ("2", "{a}.unsqueeze(-1)"),
    ("34", "{a}.repeat(1, 2, *[1] * ({a}.ndim - 2))"),
    ("34", "{a}.repeat_interleave(2, {axis})"),
    ("234", "torch.cat([{a}, {b}], {axis})"),
    ("234", "torch.cat([{a}, {c}], 1)"),
    ("23", "torch.stack([{a}, {b}], 1)"),
    ("234", "torch.stack([{a}, {b}]).sum(0)"),
    ("34", "{a}.select({axis}, {i})"),
    ("34", "{a}[..., 1:]"),
    ("34", "{a}[:, ::2]"),
    ("234", "{a}.narrow({axis}, 1, {size} - 1)"),
    ("234", "{a}.chunk(2, {axis})[1]"),
    ("234", "sum(t.sum({axis}, keepdim=True) for t in {a}.split(2, {axis}))"),
    ("34", "torch.mul(*{a}[:, :2].unbind(1))"),
    ("234", "{a}.flip({axis})"),
    ("234", "{a}.roll(1, {axis})"),
    ("234", "{a}.index_select({axis}, torch.tensor([{i}, 0, {i}]))"),
    ("234", "{a}[:, [{i1}, 0]]"),
    ("34", "F.pad({a}, (1, 0), value={x})"),
    ("34", "F.pad({a}, (0, 1))"),
    ("3", "F.pad({a}, (1, 1), mode='reflect')"),
    ("4", "F.pad({a}, (1, 0, 0, 1), mode='replicate')"),
    ("34", "{a}.tril()"),
    ("34", "{a}.triu(1) + {a}"),
    ("3", "{a}.diagonal(0, 1, 2)"),
    ("3", "{a}.unfold(1, 2, 1).flatten(2)"),
    ("4", "F.pixel_shuffle(torch.cat([{a}, {a}, {a}, {a}], 1), 2)"),
    ("4", "F.pixel_unshuffle(F.interpolate({a}, size=(4, 4)), 2)"),
    ("4", "F.unfold({a}, 2)"),
    ("34", "{a}.masked_fill(torch.eye({last}, dtype=torch.bool)[0], {x})"),
    ("234", "torch.where(torch.eye({last}, dtype=torch.bool)[1], {a}, {b})"),
    ("234", "{a}.scatter_add({axis}, torch.zeros_like({b}, dtype=torch.long), {b})"),
    ("34", "{a}.index_fill({axis}, torch.tensor([{i}]), {x})"),
    ("234", "{a}.take_along_dim({b}.argsort({axis}), {axis})", "gaps({b}, {axis})"),
    ("34", "torch.rot90({a}, 1, ({axis}, -1))"),
)

PRODUCTS = _rows(
    "products",
    ("234", "{a} * {b}"),
    ("234", "{a} * torch.sigmoid({b})"),
    ("234", "{a} / ({b}.square() + 1)"),
    ("234", "{x} / ({a}.square() + 1)"),
    ("23", "F.silu(<nn.Linear({last}, {n})>({a})) * <nn.Linear({last}, {n})>({a})"),
    ("234", "torch.addcmul({a}, {b}, {b}, value=0.4)"),
    ("234", "F.glu(torch.cat([{a}, {b}], {axis}), {axis})"),
    ("3", "{a} @ {b}.transpose(1, 2)"),
    ("3", "torch.bmm({a}.transpose(1, 2), {b})"),
    ("3", "torch.baddbmm({a} @ {a}.transpose(1, 2), {a}, {b}.transpose(1, 2), beta=0.5, alpha=0.3)"),
    ("3", "torch.einsum('bij,bkj->bik', {a}, {b})"),
    ("2", "torch.einsum('bi,bj->bij', {a}, {c})"),
    ("2", "{a}.unsqueeze(2) * {c}.unsqueeze(1)"),
    ("2", "<nn.Bilinear({last}, {last}, 3)>({a}, {b})"),
    ("23", "F.cosine_similarity({a}, {b}, -1).unsqueeze(-1) * {b}"),
    ("34", "{a}.prod({axis})"),
    ("234", "{a}.cumprod({axis})"),
    ("34", "{a}.var({axis})"),
    ("34", "{a}.std({axis}, keepdim=True) * {a}", "{a}.std({axis})"),
    ("34", "{a}.norm(dim={axis})", "{a}.norm(dim={axis})"),
    ("3", "torch.cdist({a}, {b} + 1)", "torch.cdist({a}, {b} + 1)"),
    ("34", "torch.logsumexp({a}, {axis})"),
)

NORMS = _rows(
    "norms",
    ("23", "<nn.LayerNorm({last})>({a})"),
    ("23", "F.layer_norm({a}, [{last}])"),
    ("23", "<nn.RMSNorm({last})>({a})"),
    ("23", "{a} * torch.rsqrt({a}.pow(2).mean(-1, keepdim=True) + 1e-6) * <nn.Parameter(torch.randn({last}))>"),
    ("234", "F.normalize({a}, dim={axis})", "{a}.norm(dim={axis})"),
    ("34", "<nn.GroupNorm(1, {channels})>({a})"),
    ("34", "<nn.InstanceNorm1d({channels}, affine=True)>({a}.flatten(2))"),
    ("4", "F.instance_norm({a})"),
    ("3", "({a} - {a}.mean(-1, keepdim=True)) / ({a}.var(-1, keepdim=True) + 0.1).sqrt()"),
)

ATTENTION = _rows(
    "attention",
    ("34", "torch.softmax({a}, {axis})"),
    ("34", "torch.log_softmax({a}, {axis})"),
    ("3", "(torch.softmax({a}, 1) * {a}).sum(1)"),
    ("3", "F.scaled_dot_product_attention({a}, {b}, {b})"),
    ("3", "F.scaled_dot_product_attention({a}, {a}, {b}, is_causal=True)"),
    ("4", "F.scaled_dot_product_attention({a}, {b}, {a}, scale=0.4)"),
    ("3", "torch.softmax({a} @ {b}.transpose(1, 2) / {last} ** 0.5, -1) @ {b}"),
    ("3", "torch.softmax(({a} @ {a}.transpose(1, 2)).masked_fill(torch.ones({size1}, {size1}).triu(1) > 0, -torch.inf), -1) @ {b}"),
    ("3", "<nn.MultiheadAttention({last}, 1, batch_first=True)>({a}, {b}, {b}, need_weights=False)[0]"),
)  # fmt: skip

RECURRENT = _rows(
    "recurrent",
    ("3", "<nn.LSTM({last}, 3, batch_first=True)>({a})[0]"),
    ("3", "<nn.GRU({last}, 3, batch_first=True)>({a})[0]"),
    ("3", "<nn.RNN({last}, 3, batch_first=True, bidirectional=True)>({a})[0]"),
    ("2", "<nn.LSTMCell({last}, 3)>({a})[0]"),
)

ROWS: tuple[Row, ...] = (*CURVED, *KINKED, *PIECEWISE, *MAPS, *SHAPES, *PRODUCTS, *NORMS, *ATTENTION, *RECURRENT)
SMOOTH = tuple(row for row in ROWS if not row.margin)
LINEAR = (*PIECEWISE, *MAPS, *(row for row in SHAPES if "mul" not in row.text))
"""Rows of which gradient times input is all there is to say, but for what constants own."""
