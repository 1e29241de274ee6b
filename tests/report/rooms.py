"""One real result of every class that can be looked at, room by room: small, and of the kind that people make."""

import math

import torch
from torch import nn

import termwise as tw
from termwise import computation, functions, layers, optimizers, weights
from termwise.computation.claims.depth_subjects import tiny_decoder

DOUBLE = {"dtype": torch.float64}


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


class Tower(nn.Module):
    """Residual branches."""

    def __init__(self, depth=4, width=6, outputs=None):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Identity() if outputs is None else nn.Linear(width, outputs)

    def forward(self, x):
        for block in self.blocks:
            x = x + 0.5 * torch.tanh(block(x))
        return self.head(x)


def tower(**options):
    return seeded(lambda: Tower(**options).double().eval())


def mlp(wide=24, outputs=3):
    layers = [nn.Linear(8, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, outputs)]
    return seeded(lambda: nn.Sequential(*layers).double().eval())


def cnn():
    layers = [nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3)]
    return seeded(lambda: nn.Sequential(*layers).double().eval())


# -- functions --------------------------------------------------------------------------------------------------------


def expansion():
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 3)).double().eval())
    return tw.expand(model, rand(4, 8), rand(4, 8, seed=1), order=8, at=0.3)


def beyond_a_kink():
    return tw.expand(mlp(), rand(4, 8), rand(4, 8, seed=1), order=3, at=-1.0)


def number():
    """Of no batch and one output."""
    return tw.expand(lambda x: (1 / (1 + x * x)).sum(), rand(3) / 4, rand(3, seed=1) / 4, order=6)


def residual():
    return tw.residual_expansion(tower(), rand(3, 6), order=6)


def subsets():
    return functions.subset_expansion(tower(outputs=1), rand(3, 6))


def subsets_of_many():
    return functions.subset_expansion(tower(depth=18), rand(2, 6), orders=8)


def linearity():
    return functions.linearity_scores(mlp(), rand(64, 8))["3"]


def spectrum():
    t = torch.arange(2048, **DOUBLE) / 2048
    return tw.relu_spectrum(torch.cos(2 * math.pi * 40 * t) + 0.4 * torch.cos(2 * math.pi * 100 * t), 2048, taylor_order=12)


def dc_report():
    return functions.dc_report(cnn(), rand(8, 2, 8, 8))


def composition():
    model = seeded(lambda: nn.Linear(6, 3).double().eval())
    taus = [{"weight": 0.5 * rand(3, 6, seed=s), "bias": 0.5 * rand(3, seed=s + 9)} for s in range(4)]
    return functions.quadratic(model, nn.functional.cross_entropy, rand(12, 6), torch.arange(12) % 3, taus)


def stages():
    x = torch.linspace(-1, 1, 120, **DOUBLE)
    y = torch.sin(2 * x + 1) + 0.1 * torch.sin(10 * x)
    return tw.MultiStage(3, (8,), iterations=60).fit(x, y, progress=False)


def pinn():
    x, start = torch.linspace(0, 1, 40, **DOUBLE), torch.zeros(1, **DOUBLE)
    equation, at_start = (lambda x, u: u[1] + u[0]), [(start, 0, start + 1)]
    return functions.MultiStagePINN(equation, 1, at_start, stages=1, hidden=(8,), iterations=20).fit(x, progress=False)


def channels():
    x = rand(96, 8).float()
    return tw.linearize_channels(mlp().float(), (x, (x.norm(dim=1) > 2.8).long()), omega=0.02, epochs=12, progress=False)


def tangent():
    model = mlp()
    found = tw.tangent(model)
    with torch.no_grad():
        for p in found.parameters():
            p.copy_(0.1 * rand(*p.shape))
    return found.decompose(rand(4, 8))


def shallow():
    return functions.shallow(tower(), rand(3, 6)).decompose(rand(3, 6))


# -- weights ----------------------------------------------------------------------------------------------------------


def matrix(m=80, n=96, seed=0):
    left, right = rand(m, 60, seed=seed), rand(60, n, seed=seed + 1)
    return (left * 0.85 ** torch.arange(60)) @ right


def low_rank():
    w = matrix()
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    return weights.Factorization(w, factors={"left": u[:, :16] * s[:16], "right": v[:16]})


def grouped():
    return weights.alds(mlp(64), 0.5, data=rand(200, 8), progress=False).parts["2"]


def cur():
    return weights.cur(matrix(), 12)


def cp():
    return weights.cp(rand(12, 10, 3, 3), 14, max_sweeps=60)


def tucker():
    return weights.tucker2(rand(12, 10, 3, 3), (8, 6))


def masked():
    w = matrix()
    kept = (w.abs() > 2).double()
    return weights.Factorization(w, form="masked", factors={"values": w * kept, "kept": kept})


def compressed():
    return tw.compress(mlp(64), 0.5, data=rand(200, 8), progress=False)


def collected():
    model = mlp(40)
    return weights.CalibrationStats.collect(model, [rand(64, 8), rand(64, 8, seed=1)], weights.find_layers(model)[0])


def curves():
    return weights.distortion_curves(mlp(), rand(32, 8), grid=21)


def allocation():
    found = {name: ladder.curve() for name, ladder in curves().items()}
    return weights.allocate(found, 0.5 * sum(c.costs[-1] for c in found.values()))


def masks():
    return weights.prune(mlp(), 0.5, curves())


def gradient_rank():
    loss = lambda model, batch: model(batch).square().mean()
    return weights.gradient_rank(mlp().requires_grad_(), loss, [rand(16, 8, seed=s) for s in range(6)])["2"]


# -- computation ------------------------------------------------------------------------------------------------------


def accelerated(tolerance=None):
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).double().eval())

    def velocity(x, t):
        return model(x) * torch.cos(3 * torch.as_tensor(t, **DOUBLE))

    plain = computation.TaylorSeer(interval=3, order=2, sites="output")
    method = plain if tolerance is None else computation.Adaptive(tolerance=tolerance)
    times = torch.arange(0, 1, 0.02, **DOUBLE)
    fast = tw.accelerate(velocity, method, scheduler=times)
    x = rand(2, 4)
    with torch.no_grad():
        for t in times:
            x = x + 0.02 * fast(x, t)
    return fast.report


def planned():
    times = [float(t) for t in torch.linspace(1, 0.02, 24, **DOUBLE)]
    outputs = torch.stack([torch.stack([rand(5) * math.sin(5 * t) for _ in range(3)]) for t in times])
    return computation.plan(outputs, times, torch.ones(24, 3, **DOUBLE) / 24)[9]


def forecast():
    times = [0.5, 0.4, 0.3, 0.2]
    return computation.forecast([torch.sin(3 * t + rand(2, 6)) for t in times], times, 0.6)


METHOD = computation.DepthDecay(0.9, 2, 4)


def depth_terms():
    model, ids = tiny_decoder(0)
    return computation.depth_terms(model, ids, METHOD, prompt_length=4)


def depth_report():
    model, ids = tiny_decoder(0)
    fast = computation.skip_layers(model, METHOD)
    fast(ids[:1], max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    return fast.report


def tuned():
    model, ids = tiny_decoder(0)
    return computation.tune_depth(model, [ids[:1]], 1.3, max_new_tokens=8)


def drafted():
    model, ids = tiny_decoder(0)
    return computation.draft_decode(model, ids[:1], METHOD, max_new_tokens=24, eos_token_id=-1)


def ssm():
    t = torch.arange(96.0, **DOUBLE)[:, None]
    return tw.toeplitz_to_ssm(torch.cos(t * torch.tensor([0.3, 1.1])) * 0.95**t + 0.05 * rand(96, 2), decay=0.98)


# -- layers and optimizers --------------------------------------------------------------------------------------------


def invariance():
    model = seeded(lambda: layers.PLDRForCausalLM(layers.PLDRConfig(11, d_model=12, n_heads=3, metric_layers=1)).eval())
    return layers.invariance(model, [torch.randint(11, (6, 5), generator=torch.Generator().manual_seed(0))])


def taylor_shift():
    return layers.taylor_shift_expansion(*rand(3, 2, 3, 20, 8), 1.5)


def one_head():
    return layers.taylor_shift_expansion(*rand(3, 20, 8))


def highway():
    batch = (rand(8, 6), torch.zeros(8, 6, **DOUBLE))
    return optimizers.highway_gradients(tower(depth=8), nn.functional.mse_loss, batch, iterations=6)


MAKERS = {
    "functions.Expansion": expansion,
    "functions.Expansion, beyond a kink": beyond_a_kink,
    "functions.Expansion, a number": number,
    "functions.ResidualExpansion": residual,
    "functions.SubsetExpansion": subsets,
    "functions.SubsetExpansion, sampled": subsets_of_many,
    "functions.LinearityScores": linearity,
    "functions.Spectrum": spectrum,
    "functions.DCReport": dc_report,
    "functions.CompositionalLoss": composition,
    "functions.MultiStage": stages,
    "functions.MultiStagePINN": pinn,
    "functions.LinearizedChannels": channels,
    "core.Decomposition, tangent": tangent,
    "core.Decomposition, shallow": shallow,
    "weights.Factorization": low_rank,
    "weights.Factorization, grouped": grouped,
    "weights.Factorization, tucker": tucker,
    "weights.Factorization, masked": masked,
    "weights.CURDecomposition": cur,
    "weights.CPDecomposition": cp,
    "weights.Compressed": compressed,
    "weights.Ladder": lambda: curves()["2"],
    "weights.Curve": lambda: curves()["2"].curve(),
    "weights.Allocation": allocation,
    "weights.LayerStats": lambda: collected()["2"],
    "weights.CalibrationStats": collected,
    "weights.Masks": masks,
    "weights.LowRankSplit": lambda: weights.low_rank_split(mlp(), 0.5),
    "weights.GradientRank": gradient_rank,
    "weights.Projection": lambda: weights.project(matrix()),
    "computation.Report": accelerated,
    "computation.Report, tolerated": lambda: accelerated(0.05),
    "computation.Plan": planned,
    "computation.Forecast": forecast,
    "computation.DepthTerms": depth_terms,
    "computation.DepthReport": depth_report,
    "computation.TunedDepth": tuned,
    "computation.Drafted": drafted,
    "computation.DiagonalSSM": ssm,
    "layers.Invariance": invariance,
    "layers.TaylorShiftExpansion": taylor_shift,
    "layers.TaylorShiftExpansion, one head": one_head,
    "layers.Crossover": lambda: layers.crossover(32),
    "optimizers.HighwayGradients": highway,
}
