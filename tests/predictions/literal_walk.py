"""DynamicLRP's rules on a small network, walked backwards by hand in numpy: no graph, no autograd, none of our code.

The network: x (channels, 6, 6) -> conv 3x3 -> relu -> conv 3x3 with padding -> + (residual) -> max pool 2 -> * scale ->
adaptive average pool to 1 -> linear. Every rule is a loop or a line, as the sheet states it, with e = 1e-11.
"""

import numpy as np

E = 1e-11


def stabilised(z):
    return z + np.where(z < 0, -E, E)


def convolved(x, w, pad):
    """Correlation of (c, h, w) with (o, c, k, k), zero padding."""
    k = w.shape[2]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((w.shape[0], x.shape[1] - k + 1, x.shape[2] - k + 1))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            out[:, i, j] = np.tensordot(w, x[:, i : i + k, j : j + k], 3)
    return out


def shared(r, a, b):
    """A sum or a product: by absolute value."""
    size = np.abs(a) + np.abs(b) + E
    return r * np.abs(a) / size, r * np.abs(b) / size


def back_convolution(r, x, w, pad):
    """R_x = x * sum over windows of w R / z, entry by entry."""
    s, k = r / stabilised(convolved(x, w, pad)), w.shape[2]
    c = np.zeros((x.shape[0], x.shape[1] + 2 * pad, x.shape[2] + 2 * pad))
    for i in range(s.shape[1]):
        for j in range(s.shape[2]):
            c[:, i : i + k, j : j + k] += np.tensordot(s[:, i, j], w, 1)
    return x * c[:, pad : c.shape[1] - pad, pad : c.shape[2] - pad]


def walk(x, p, target):
    """Relevance of x, of each bias and of the scale, for one sample; p holds the parameters."""
    z1 = convolved(x, p["w1"], 0)
    h = np.maximum(z1 + p["b1"][:, None, None], 0)
    z2 = convolved(h, p["w2"], 1)
    y = h + (z2 + p["b2"][:, None, None])
    blocks = y.reshape(y.shape[0], y.shape[1] // 2, 2, y.shape[2] // 2, 2)
    pooled = blocks.max((2, 4))
    scaled = pooled * p["scale"]
    mean = scaled.mean((1, 2))
    z3 = p["w3"] @ mean
    logits = z3 + p["b3"]

    r = np.zeros_like(logits)
    r[target] = logits[target]
    rb3, r = shared(r, p["b3"], z3)
    r = mean * (p["w3"].T @ (r / stabilised(z3)))
    r = np.broadcast_to(r[:, None, None] / scaled[0].size, scaled.shape)  # adaptive pooling: evenly
    r, rs = shared(r, pooled, np.broadcast_to(p["scale"], pooled.shape))
    winner = (blocks == pooled[:, :, None, :, None]) * r[:, :, None, :, None]
    r = winner.reshape(y.shape)
    rh, rbranch = shared(r, h, y - h)
    rb2, rz2 = shared(rbranch, np.broadcast_to(p["b2"][:, None, None], z2.shape), z2)
    rh = rh + back_convolution(rz2, h, p["w2"], 1)
    rb1, rz1 = shared(rh, np.broadcast_to(p["b1"][:, None, None], z1.shape), z1)  # the relu passes it on
    rx = back_convolution(rz1, x, p["w1"], 0)
    return logits[target], {
        "x": rx,
        "b1": rb1.sum((1, 2)),
        "b2": rb2.sum((1, 2)),
        "b3": rb3,
        "scale": rs.sum((1, 2))[:, None, None],
    }


# -- a diamond of sums, as a walk that has every operand would do it -----------------------------------------------------


def diamond(x, p, target):
    """h = x + u, a = h + v, b = h + w, y = a + b, W y: additive nodes that save no operand, forking and meeting again."""
    h = x + p["u"]
    a, b = h + p["v"], h + p["w"]
    y = a + b
    z = p["W"] @ y
    r = np.zeros_like(z)
    r[target] = z[target]
    r = y * (p["W"].T @ (r / stabilised(z)))
    ra, rb = shared(r, a, b)
    ra, rv = shared(ra, h, p["v"])
    rb, rw = shared(rb, h, p["w"])
    rx, ru = shared(ra + rb, x, p["u"])
    return z[target], {"x": rx, "u": ru, "v": rv, "w": rw}


def diamond_by_ratio(x, p, target):
    """The same by signed shares, where the ratio R / value simply passes through every sum."""
    y = 2 * (x + p["u"]) + p["v"] + p["w"]
    c = p["W"][target]
    return c @ y, {"x": 2 * x * c, "u": 2 * p["u"] * c, "v": p["v"] * c, "w": p["w"] * c}
