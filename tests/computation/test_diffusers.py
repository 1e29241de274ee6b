"""Acceleration of the models, pipelines and schedulers of diffusers: mechanics, on tiny random ones."""

import math

import pytest
import torch
from torch import nn

import termwise as tw
from termwise.computation import ABCache, Adaptive, ConfidenceGate, TaylorSeer, tuned_solver
from termwise.computation.sites import find_blocks

diffusers = pytest.importorskip("diffusers")

STEPS = 8
PROMPT = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
POOLED = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))


def dit(classes=10, **options):
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_embeds_ada_norm=classes,
        **options,
    )


def call_dit(model, x, t):
    return model(x, timestep=t.expand(len(x)), class_labels=torch.arange(len(x))).sample


def pixart():
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=3, sample_size=8, patch_size=2, in_channels=4, out_channels=4,
        cross_attention_dim=32, caption_channels=32, use_additional_conditions=False,
    )  # fmt: skip


def call_pixart(model, x, t):
    size = {"resolution": None, "aspect_ratio": None}
    return model(x, encoder_hidden_states=PROMPT.expand(len(x), -1, -1), timestep=t.expand(len(x)), added_cond_kwargs=size).sample


def sd3():
    return diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        caption_projection_dim=32, pooled_projection_dim=32, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip


def call_sd3(model, x, t):
    n = len(x)
    prompt = {"encoder_hidden_states": PROMPT.expand(n, -1, -1), "pooled_projections": POOLED.expand(n, -1)}
    return model(x, timestep=t.expand(n), **prompt).sample


def flux():
    return diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip


def call_flux(model, x, t):
    n, tokens = len(x), x.flatten(2).transpose(1, 2)
    prompt = {"encoder_hidden_states": PROMPT.expand(n, -1, -1), "pooled_projections": POOLED.expand(n, -1)}
    out = model(tokens, timestep=t.expand(n) / 1000, img_ids=torch.zeros(64, 3), txt_ids=torch.zeros(5, 3), **prompt).sample
    return out.transpose(1, 2).reshape(x.shape)


def unet():
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 32), norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    )  # fmt: skip


def call_unet(model, x, t):
    return model(x, t).sample


SUBJECTS = {
    "dit": (dit, call_dit), "pixart": (pixart, call_pixart), "sd3": (sd3, call_sd3), "flux": (flux, call_flux), "unet": (unet, call_unet),
}  # fmt: skip


@pytest.fixture(params=SUBJECTS)
def subject(request):
    make, call = SUBJECTS[request.param]
    torch.manual_seed(0)
    return make().eval().requires_grad_(False), call


def ddim():
    return diffusers.DDIMScheduler(clip_sample=False)


def times(call):
    """Of the run, as the model is told them."""
    scheduler = ddim()
    scheduler.set_timesteps(STEPS)
    return scheduler.timesteps / 1000 if call is call_flux else scheduler


@torch.no_grad()
def drawn(model, call, scheduler=None, steps=STEPS, batch=2, guidance=None):
    scheduler = ddim() if scheduler is None else scheduler
    scheduler.set_timesteps(steps)
    x = torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for t in scheduler.timesteps:
        if guidance == "batched":
            with_prompt, without = call(model, torch.cat([x, 0.9 * x]), t).chunk(2)
            noise = without + 2 * (with_prompt - without)
        elif guidance == "sequential":
            with_prompt, without = call(model, x, t), call(model, 0.9 * x, t)
            noise = without + 2 * (with_prompt - without)
        else:
            noise = call(model, x, t)
        x = scheduler.step(noise, t, x).prev_sample
    return x


def last_layer(block):
    return [m for m in block.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]


def untouched(model):
    return not [name for name, m in model.named_modules() if "forward" in m.__dict__]


def test_nothing_skipped_nothing_changed(subject):
    model, call = subject
    truth = drawn(model, call)
    for method in (
        TaylorSeer(interval=1), TaylorSeer(interval=1, sites="last_block"), ConfidenceGate(threshold=0.0), ABCache(interval=1),
        Adaptive(tolerance=0.0),
    ):  # fmt: skip
        with tw.accelerate(model, method, scheduler=times(call)) as fast:
            assert torch.equal(drawn(model, call), truth), method
        assert fast.report.evaluations == STEPS
    assert torch.equal(drawn(model, call), truth)


@pytest.mark.parametrize("guidance", [None, "batched", "sequential"])
def test_blocks_are_run_as_often_as_is_said(subject, guidance):
    model, call = subject
    truth = drawn(model, call, guidance=guidance)
    inside = {name: last_layer(block) for name, block in find_blocks(model).items()}
    for method in (
        TaylorSeer(interval=3, sites="output", first_steps=2), TaylorSeer(interval=3, sites="last_block", first_steps=2),
        ConfidenceGate(threshold=math.inf, max_skip=2, first_steps=2, last_steps=0), ABCache(interval=3),
    ):  # fmt: skip
        runs = []
        hooks = [m.register_forward_hook(lambda *_, name=name: runs.append(name)) for name, m in inside.items()]
        with tw.accelerate(model, method, scheduler=times(call)) as fast:
            out = drawn(model, call, guidance=guidance)
        for hook in hooks:
            hook.remove()
        calls = 2 if guidance == "sequential" else 1
        assert fast.report.evaluations == 4
        assert len(fast.report.steps) == STEPS
        for i, name in enumerate(inside):
            assert runs.count(name) == calls * (STEPS if method.probes and i == 0 else 4)
        assert fast.report.cost == pytest.approx(4 + (4 / len(inside) if method.probes else 0))
        assert out.isfinite().all()
        assert (out - truth).norm() < truth.norm()
        assert not torch.equal(out, truth)
        assert untouched(model)


def test_modules_of_transformers_are_forecast(subject):
    """Attention and feed-forward layers rest; what tells them the time does not."""
    model, call = subject
    inner = [
        m
        for block in find_blocks(model).values()
        for m in block.modules()
        if type(m).__name__ in ("Attention", "FluxAttention", "FeedForward", "ResnetBlock2D")
    ]
    runs = []
    hooks = [last_layer(m).register_forward_hook(lambda *_: runs.append(1)) for m in inner]
    with tw.accelerate(model, TaylorSeer(interval=3, first_steps=2), scheduler=times(call)) as fast:
        out = drawn(model, call)
    for hook in hooks:
        hook.remove()
    once = len(runs) / fast.report.evaluations
    assert once == int(once) > 0
    assert out.isfinite().all()
    assert len({site for _, site in fast._histories}) == 0, "let go of"
    assert untouched(model)


def test_an_exception_in_mid_run_puts_everything_back(subject):
    model, call = subject
    truth, count = drawn(model, call), []

    def interrupted(m, x, t):
        count.append(t)
        if len(count) == 5:
            raise KeyboardInterrupt
        return call(m, x, t)

    for method in (TaylorSeer(interval=2), ConfidenceGate(), ABCache()):
        count.clear()
        with pytest.raises(KeyboardInterrupt), tw.accelerate(model, method, scheduler=times(call)):
            drawn(model, interrupted)
        assert untouched(model)
        assert torch.equal(drawn(model, call), truth)


def test_an_exception_inside_a_block_puts_everything_back(subject):
    model, call = subject
    truth = drawn(model, call)
    *_, last = find_blocks(model).values()
    calls = iter(range(100))

    def fails(*_):
        if next(calls) == 3:
            raise ZeroDivisionError

    hook = last_layer(last).register_forward_hook(fails)
    with pytest.raises(ZeroDivisionError), tw.accelerate(model, TaylorSeer(interval=2, sites="last_block")):
        drawn(model, call)
    hook.remove()
    assert untouched(model)
    assert torch.equal(drawn(model, call), truth)


@pytest.mark.parametrize(
    "solver", ["DDIMScheduler", "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler"]
)
def test_schedulers(solver):
    torch.manual_seed(0)
    model = dit().eval().requires_grad_(False)

    def scaled(m, x, t):
        return call_dit(m, scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t)

    scheduler = getattr(diffusers, solver)()
    truth = drawn(model, scaled, scheduler, 16)
    errors = []
    for tolerance in (0.0, 1e-3, 1e-1):
        with tw.accelerate(model, tolerance=tolerance, scheduler=scheduler) as fast:
            out = drawn(model, scaled, scheduler, 16)
        errors.append(((out - truth).norm() / truth.norm()).item())
        assert fast.report.estimate <= tolerance
    assert errors[0] == 0
    assert errors == sorted(errors)
    assert fast.report.evaluations < 16
    with tw.accelerate(model, budget=7, scheduler=scheduler) as fast:
        drawn(model, scaled, scheduler, 16)
    assert fast.report.evaluations == 7


@pytest.fixture
def pipeline():
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip
    made = diffusers.DiTPipeline(transformer=dit(classes=1000, out_channels=8).eval(), vae=vae.eval(), scheduler=ddim())
    made.set_progress_bar_config(disable=True)
    return made


def pictures(call, **options):
    return torch.as_tensor(
        call(class_labels=[3, 7], generator=torch.Generator().manual_seed(5), output_type="np", **options).images
    )


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_pipeline(pipeline, guidance):
    truth = pictures(pipeline, num_inference_steps=12, guidance_scale=guidance)
    own = pipeline.scheduler
    for method, evaluations in ((TaylorSeer(interval=3, first_steps=2), 5), (ABCache(interval=1), 12)):
        fast = tw.accelerate(pipeline, method)
        for _ in range(2):  # each call begins anew
            out = pictures(fast, num_inference_steps=12, guidance_scale=guidance)
            assert fast.report.evaluations == evaluations
            assert len(fast.report.steps) == 12
        assert torch.equal(out, truth) == (evaluations == 12)
    tight, loose = (tw.accelerate(pipeline, tolerance=tolerance) for tolerance in (1e-6, 0.2))
    assert torch.equal(pictures(tight, num_inference_steps=12, guidance_scale=guidance), truth) or tight.report.evaluations < 12
    pictures(loose, num_inference_steps=12, guidance_scale=guidance)
    assert loose.report.evaluations < 12
    assert loose.report.evaluations <= tight.report.evaluations
    assert pipeline.scheduler is own
    assert untouched(pipeline.transformer)
    assert torch.equal(pictures(pipeline, num_inference_steps=12, guidance_scale=guidance), truth)


@pytest.mark.parametrize("budget", [4, 12])
def test_a_budget_is_spent_on_the_tuned_solver(pipeline, budget):
    own = pipeline.scheduler
    fast = tw.accelerate(pipeline, budget=budget)
    out = pictures(fast)
    assert fast.report.evaluations == budget
    assert len(fast.report.steps) == 2 * budget - 2
    assert pipeline.scheduler is own
    with pytest.raises(ValueError, match="leave the number out"):
        fast(class_labels=[3], num_inference_steps=50)
    with pytest.raises(ValueError, match="leave the number out"):
        fast([3], 4.0, None, 50)
    fast([3], output_type="np")  # by its place
    assert fast.report.evaluations == budget
    with fast, pytest.raises(ValueError, match="in place of the pipeline"):
        fast.target([3], output_type="np")
    assert pipeline.scheduler is own
    with fast:
        assert pipeline.scheduler is not own
        assert torch.equal(pictures(pipeline, num_inference_steps=2 * budget - 2), out)
    assert pipeline.scheduler is own
    pipeline.scheduler = tuned_solver(own)
    assert not torch.equal(pictures(pipeline, num_inference_steps=2 * budget - 2), out), "some were forecast"


def test_a_pipeline_that_fails_gets_its_scheduler_back(pipeline):
    own = pipeline.scheduler
    with pytest.raises(ValueError, match="labels"), tw.accelerate(pipeline, budget=4):
        raise ValueError("labels")
    fast = tw.accelerate(pipeline, budget=4)
    hook = pipeline.transformer.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pictures(fast)
    hook.remove()
    assert pipeline.scheduler is own
    assert untouched(pipeline.transformer)


def test_a_pipeline_is_planned(pipeline):
    fast = tw.accelerate(pipeline, Adaptive(budget=6, variable="log_snr", first_steps=2))
    truth = pictures(pipeline, num_inference_steps=12)
    assert torch.equal(torch.as_tensor(pictures(fast.calibrate, num_inference_steps=12)), truth)
    out = pictures(fast, num_inference_steps=12)
    assert fast.report.evaluations == 6
    assert [s.index for s in fast.report.steps if s.computed] == list(fast._plan.anchors)
    assert (out - truth).norm() < truth.norm()


def test_the_tuned_solver():
    """Times do not repeat, noise is kept, and pipelines may ask for no noise."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    from termwise.computation import tuned_solver

    for own in (DDIMScheduler(), DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)):
        solver = tuned_solver(own)
        assert torch.allclose(solver.alphas_cumprod[:-1], own.alphas_cumprod[:-1])
        for steps in (18, 58, 200):
            solver.set_timesteps(steps)
            assert (solver.timesteps.diff() < 0).all()
            assert len(solver.sigmas) == len(solver.timesteps) + 1
            x = torch.randn(1, 1, 2, 2)
            for t in solver.timesteps:
                x = solver.step(0.1 * x, t, x, eta=0.0).prev_sample
            assert x.isfinite().all()
    with pytest.raises(ValueError, match="deterministic"):
        solver.step(x, solver.timesteps[0], x, eta=1.0)
    with pytest.raises(ValueError, match="no alphas_cumprod"):
        tuned_solver(FlowMatchEulerDiscreteScheduler())
