"""DecompX a second time, slow and obvious: a BERT-shaped network and the paper's equations over it, token by token.

One sample. `x[i][k]` is the part of source token k in the state of position i, a vector; the last two k are what the bias
token collects (biases, other constants) where biases are kept apart.
"""

import math

import torch
from torch import nn

WIDTH, HEADS, INNER, CLASSES, POSITIONS = 8, 2, 12, 3, 6


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-12), nn.LayerNorm(WIDTH, eps=1e-12)
        self.up, self.down, self.act = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH), nn.GELU()

    def forward(self, x):
        q, k, v = (m(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for m in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(self.out(mixed) + x)
        return self.norm2(self.down(self.act(self.up(x))) + x)


class Bert(nn.Module):
    def __init__(self, layers=2):
        super().__init__()
        self.words, self.positions = nn.Embedding(20, WIDTH), nn.Parameter(torch.randn(POSITIONS, WIDTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.pooler, self.classifier = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, ids):
        x = self.norm(self.words(ids) + self.positions[: ids.shape[1]])
        for layer in self.layers:
            x = layer(x)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


def weight(rule, part, bias, k):
    if rule == "absdot":
        return abs(float(part @ bias))
    if rule == "abssim":
        return abs(float(part @ bias)) / float(part.norm() * bias.norm()) if part.norm() > 0 and bias.norm() > 0 else 0.0
    if rule == "norm":
        return float(part.norm())
    if rule == "equal":
        return float(part.norm() != 0)
    if rule == "dot":
        return float(part @ bias)
    return float(k == 0)  # cls


def share(parts, bias, rule, collector=-2):
    """Parts of one position with a bias shared among them."""
    if rule == "parts":
        parts = list(parts)
        parts[collector] = parts[collector] + bias
        return parts
    weights = [weight(rule, p, bias, k) for k, p in enumerate(parts)]
    return [p + (w / sum(weights)) * bias if sum(weights) else p for p, w in zip(parts, weights, strict=True)]


def layer_norm(parts, norm, rule):
    whole = sum(parts)
    sigma = math.sqrt(float(((whole - whole.mean()) ** 2).mean()) + norm.eps)
    return share([(p - p.mean()) / sigma * norm.weight for p in parts], norm.bias, rule)


def activation(parts, f, slope, rule, mode):
    u = sum(parts)
    if mode == "zero-origin" or (mode == "relu" and f is torch.tanh):
        return [p * f(u) / u for p in parts]
    theta = slope(u) if mode == "tangent" else (u > 0).to(u)
    return share([p * theta for p in parts], f(u) - theta * u, rule, collector=-1)


def gelu(u):
    return u * 0.5 * (1 + torch.erf(u / math.sqrt(2)))


def gelu_slope(u):
    return 0.5 * (1 + torch.erf(u / math.sqrt(2))) + u * torch.exp(-u * u / 2) / math.sqrt(2 * math.pi)


def linear(parts, m, rule=None):
    parts = [m.weight @ p for p in parts]
    return parts if rule is None else share(parts, m.bias, rule)


def attention_weights(layer, states):
    q, k = (torch.stack([m.weight @ s + m.bias for s in states]).unflatten(-1, (HEADS, -1)) for m in (layer.query, layer.key))
    return [torch.softmax(q[:, h] @ k[:, h].T / math.sqrt(WIDTH // HEADS), -1) for h in range(HEADS)]


def encode(layer, x, rule, mode):
    s, d = len(x), WIDTH // HEADS
    a = attention_weights(layer, [sum(parts) for parts in x])
    out = []
    bias = layer.out.weight @ layer.value.bias + layer.out.bias  # rows of A sum to 1
    for i in range(s):
        z = [torch.zeros(WIDTH, dtype=torch.float64) for _ in x[i]]
        for h in range(HEADS):
            head = slice(h * d, (h + 1) * d)
            for j in range(s):
                z = [
                    zk + a[h][i, j] * (layer.out.weight[:, head] @ (layer.value.weight[head] @ xk))
                    for zk, xk in zip(z, x[j], strict=True)
                ]
        z = share([zk + xk for zk, xk in zip(z, x[i], strict=True)], bias, rule)
        z = layer_norm(z, layer.norm1, rule)
        u = activation(linear(z, layer.up, rule), gelu, gelu_slope, rule, mode)
        y = [yk + zk for yk, zk in zip(linear(u, layer.down, rule), z, strict=True)]
        out.append(layer_norm(y, layer.norm2, rule))
    return out


def decompose(net, ids, rule, mode):
    """(logit parts (classes, k), hidden parts per layer (positions, width, k)); with "parts" the last two k are constants."""
    s = len(ids)
    apart = 2 if rule == "parts" else 0
    x, hidden = [], []
    for i, token in enumerate(ids.tolist()):
        parts = [torch.zeros(WIDTH, dtype=torch.float64) for _ in range(s + apart)]
        parts[i] = net.words.weight[token]
        x.append(layer_norm(share(parts, net.positions[i], rule, collector=-1), net.norm, rule))
    for layer in net.layers:
        x = encode(layer, x, rule, mode)
        hidden.append(torch.stack([torch.stack(parts, -1) for parts in x]))
    pooled = activation(linear(x[0], net.pooler, rule), torch.tanh, lambda u: 1 - torch.tanh(u) ** 2, rule, mode)
    return torch.stack(linear(pooled, net.classifier, rule), -1), hidden
