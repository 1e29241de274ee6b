"""Chefer's method on a vision transformer, written out step by step in float64: no graph, no rules of ours.

Forward with every intermediate kept; gradient of A by autograd on the same formulas; relevance by hand, one sample at a time.
"""

import torch
from torch import Tensor


def zplus(r: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """R_i = sum_j (x_i w_ij)^+ R_j / P_j, with the contributions as an explicit matrix per row."""
    out = torch.zeros_like(x)
    for row in range(len(x)):
        positive = (x[row][None, :] * w).clamp(min=0)  # (out, in)
        total = positive.sum(1)
        share = torch.where(total > 0, r[row] / total, 0)  # where nothing is positive, relevance ends
        out[row] = (positive * share[:, None]).sum(0)
    return out


def rescaled(r: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 9-10 for one sample."""
    ra, rb = a * r / (a + b), b * r / (a + b)
    sa, sb = ra.sum(), rb.sum()
    share = sa.abs() / (sa.abs() + sb.abs())
    return ra * share * r.sum() / sa, rb * (1 - share) * r.sum() / sb


def product(r: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Half of each operand's proportional share of A B."""
    s = r / (a @ b)
    return a * (s @ b.mT) / 2, b * (a.mT @ s) / 2


def chefer(vit, pixels: Tensor, target: int):
    """Token relevance, relevance of the pixels, R and gradient at A of every block, for one picture (1, height, width)."""
    p = vit.patches.weight.shape[2]
    h, w = pixels.shape[1] // p, pixels.shape[2] // p
    cut = pixels.reshape(h, p, w, p).permute(0, 2, 1, 3).reshape(h * w, p * p)
    kernel = vit.patches.weight.reshape(-1, p * p)
    tokens = torch.cat([vit.token[0], cut @ kernel.T + vit.patches.bias])
    x = tokens + vit.positions[0]
    norm = torch.nn.functional.layer_norm
    d = x.shape[1]
    kept = []
    for block in vit.blocks:
        heads = block.heads
        n1 = norm(x, (d,), block.norm1.weight, block.norm1.bias)
        q, k, v = (n1 @ block.qkv.weight.T + block.qkv.bias).reshape(-1, 3, heads, d // heads).permute(1, 2, 0, 3)
        a = (q @ k.mT * (d // heads) ** -0.5).softmax(-1)
        a = a if a.requires_grad else a.requires_grad_()
        merged = (a @ v).transpose(0, 1).reshape(-1, d)
        attended = merged @ block.proj.weight.T + block.proj.bias
        x1 = x + attended
        n2 = norm(x1, (d,), block.norm2.weight, block.norm2.bias)
        active = torch.nn.functional.gelu(n2 @ block.up.weight.T + block.up.bias)
        down = active @ block.down.weight.T + block.down.bias
        kept.append((block, x, n1, q, k, v, a, merged, attended, x1, n2, active, down))
        x = x1 + down
    last = norm(x[:1], (d,), vit.norm.weight, vit.norm.bias)
    logits = (last @ vit.head.weight.T + vit.head.bias)[0]
    gradients = torch.autograd.grad(logits[target], [step[6] for step in kept])

    with torch.no_grad():
        r = torch.zeros_like(x)
        start = torch.zeros_like(logits)
        start[target] = 1
        r[0] = zplus(start[None], last, vit.head.weight)[0]
        arrived = []
        for block, x0, n1, q, k, v, a, merged, attended, x1, n2, active, down in reversed(kept):
            r1, rdown = rescaled(r, x1, down)
            r1 = r1 + zplus(zplus(rdown, active, block.down.weight), n2, block.up.weight)
            r0, rattended = rescaled(r1, x0, attended)
            rmerged = zplus(rattended, merged, block.proj.weight)
            ro = rmerged.reshape(-1, block.heads, d // block.heads).transpose(0, 1)
            ra, rv = product(ro, a, v)
            rq, rk = product(ra, q, k.mT)
            rqkv = torch.stack([rq, rk.mT, rv]).permute(2, 0, 1, 3).reshape(-1, 3 * d)
            r = r0 + zplus(rqkv, n1, block.qkv.weight)
            arrived.insert(0, ra)
        rtokens, rpositions = rescaled(r, tokens, vit.positions[0])
        rpixels = zplus(rtokens[1:], cut, kernel).reshape(h, w, p, p).permute(0, 2, 1, 3).reshape(pixels.shape)
        rollout = torch.eye(len(x), dtype=x.dtype)
        for gradient, ra in zip(gradients, arrived, strict=True):  # later layers on the left
            rollout = (torch.eye(len(x), dtype=x.dtype) + (gradient * ra).relu().mean(0)) @ rollout
    return {
        "tokens": rollout[0],
        "pixels": rpixels,
        "class token": rtokens[0],
        "positions": rpositions,
        "R": arrived,
        "gradient": gradients,
    }
