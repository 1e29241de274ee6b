"""Noise levels: what a scheduler of diffusers does with an error of a prediction is what `reach` says."""

import math

import pytest
import torch

from termwise.computation import noise_levels

diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_reach_is_what_a_step_makes_of_an_error(name, prediction):
    options = (
        {"solver_order": 1, "final_sigmas_type": "zero"}
        if name.startswith("DPM")
        else {"clip_sample": False, "set_alpha_to_one": True}
    )
    scheduler = getattr(diffusers, name)(prediction_type=prediction, **options)
    levels = noise_levels(scheduler)
    x, model = torch.randn(1, 1, 4, 4, dtype=torch.float64), torch.randn(1, 1, 4, 4, dtype=torch.float64)
    error = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    for i in (0, 3, 8):
        moved = []
        for prediction_of in (model, model + error):
            scheduler.set_timesteps(10)
            if hasattr(scheduler, "_step_index"):
                scheduler._step_index = i
            moved.append(scheduler.step(prediction_of, scheduler.timesteps[i], x).prev_sample)
        t, after = scheduler.timesteps[i].item(), scheduler.timesteps[i + 1].item()
        alpha, later = levels.alpha_sigma(t)[0], levels.alpha_sigma(after)[0]
        expected = (
            (moved[1] - moved[0]).norm() / error.norm() * alpha / later
        )  # relative to the picture, which grows by later / alpha
        assert levels.reach(t, after) == pytest.approx(expected.item(), rel=2e-3)


def test_of_a_flow():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    levels = noise_levels(scheduler)
    scheduler.set_timesteps(8)
    x, v, error = (torch.randn(1, 3) for _ in range(3))
    t = scheduler.timesteps
    for i in (1, 4):
        moved = []
        for velocity in (v, v + error):
            scheduler.set_timesteps(8)
            scheduler._step_index = i
            moved.append(scheduler.step(velocity, t[i], x).prev_sample)
        assert levels.reach(t[i].item(), t[i + 1].item()) == pytest.approx(
            ((moved[1] - moved[0]).norm() / error.norm()).item(), rel=1e-2
        )
    assert levels.alpha_sigma(250.0) == pytest.approx((0.75, 0.25))
    assert levels.log_snr(1000.0) == pytest.approx(math.log(1e-6 / (1 - 1e-6)))


def test_between_whole_times_and_beyond():
    levels = noise_levels(diffusers.DDIMScheduler())
    assert levels.log_snr(10.5) == pytest.approx((levels.log_snr(10) + levels.log_snr(11)) / 2)
    assert levels.log_snr(-1) == levels.log_snr(0)
    assert levels.log_snr(2000) == levels.log_snr(999)
    alpha, sigma = levels.alpha_sigma(400)
    assert alpha**2 + sigma**2 == pytest.approx(1)
    assert math.log(alpha / sigma) == pytest.approx(levels.log_snr(400))
    assert levels.log_snr(0) > levels.log_snr(500) > levels.log_snr(999)


def test_schedulers_that_say_nothing():
    assert noise_levels(None) is None
    assert noise_levels([3, 2, 1]) is None
    assert noise_levels(diffusers.EDMEulerScheduler()) is None
    assert noise_levels(diffusers.EulerDiscreteScheduler(timestep_type="continuous")) is None
