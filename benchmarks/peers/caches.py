"""The caches of diffusers on a model that is no pipeline's: applied to a copy, with the context that its stateful hooks ask for."""

import copy
from collections.abc import Callable, Iterator

import torch
from diffusers import hooks
from diffusers.hooks.hooks import CacheContext, HookRegistry, StateManager, _set_cache_context
from torch import Tensor, nn

SITES = [r"transformer_blocks\.\d+\.attn1", r"transformer_blocks\.\d+\.ff"]
"""Attention and feed-forward layers as DiT calls them; the patterns of TaylorSeerCacheConfig are of other models."""


def cached(model: nn.Module, apply: Callable, config: object) -> nn.Module:
    """A copy with a cache; its state is empty."""
    model = copy.deepcopy(model)
    apply(model, config)
    _set_cache_context(model, CacheContext("cond"))
    return model


def _managers(model: nn.Module) -> Iterator[StateManager]:
    registry = HookRegistry.check_if_exists_or_initialize(model)
    for child in (registry, *registry._get_child_registries()):
        for hook in child.hooks.values():
            yield from (value for value in vars(hook).values() if isinstance(value, StateManager))
            if hasattr(hook, "state"):
                yield hook.state


def memory(model: nn.Module) -> int:
    """Bytes of the tensors that its hooks keep; each once."""
    found: dict[int, Tensor] = {}

    def look(value: object, depth: int = 0) -> None:
        if isinstance(value, Tensor):
            found[value.data_ptr()] = value
        elif isinstance(value, dict):
            [look(v, depth) for v in value.values()]
        elif isinstance(value, (list, tuple)):
            [look(v, depth) for v in value]
        elif hasattr(value, "__dict__") and depth < 2:
            look({k: v for k, v in vars(value).items() if not k.startswith("_") or k == "_state_cache"}, depth + 1)

    for manager in _managers(model):
        look(manager)
    return sum(t.numel() * t.element_size() for t in found.values())


def taylorseer(model: nn.Module, interval: int, before: int, order: int, *, sites: list[str] | None = SITES, dtype=torch.float32):
    return cached(
        model, hooks.apply_taylorseer_cache,
        hooks.TaylorSeerCacheConfig(
            cache_interval=interval, disable_cache_before_step=before, max_order=order, cache_identifiers=sites,
            taylor_factors_dtype=dtype,
        ),
    )  # fmt: skip


def lite(model: nn.Module, interval: int, before: int):
    config = hooks.TaylorSeerCacheConfig(cache_interval=interval, disable_cache_before_step=before, use_lite_mode=True)
    return cached(model, hooks.apply_taylorseer_cache, config)


def first_block(model: nn.Module, threshold: float):
    return cached(model, hooks.apply_first_block_cache, hooks.FirstBlockCacheConfig(threshold=threshold))


def attention_broadcast(model: nn.Module, skip: int, now: Callable[[], float]):
    return cached(
        model, hooks.apply_pyramid_attention_broadcast,
        hooks.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=skip, spatial_attention_timestep_skip_range=(-1, 1001), current_timestep_callback=now
        ),
    )  # fmt: skip


def faster(model: nn.Module, skip: int, now: Callable[[], float]):
    return cached(
        model, hooks.apply_faster_cache,
        hooks.FasterCacheConfig(
            spatial_attention_block_skip_range=skip, spatial_attention_timestep_skip_range=(-1, 900),  # from 1000 on it crashes
            is_guidance_distilled=True,
            current_timestep_callback=now, tensor_format="BCHW", attention_weight_callback=lambda _: 0.5,
            spatial_attention_block_identifiers=("^transformer_blocks.*attn",),
        ),
    )  # fmt: skip


def magnitudes(model: nn.Module, run: Callable[[nn.Module], object], steps: int) -> list[float]:
    """The ratios that MagCache wants, from one full run of `run`."""
    config = hooks.MagCacheConfig(calibrate=True, num_inference_steps=steps + 1)  # one more, or they are thrown away at the end
    calibrated = cached(model, hooks.apply_mag_cache, config)
    run(calibrated)
    return next(
        state.calibration_ratios
        for manager in _managers(calibrated)
        for state in getattr(manager, "_state_cache", {}).values()
        if getattr(state, "calibration_ratios", None)
    )


def mag(model: nn.Module, threshold: float, ratios: list[float], steps: int):
    return cached(
        model, hooks.apply_mag_cache,
        hooks.MagCacheConfig(
            threshold=threshold, max_skip_steps=8, retention_ratio=3 / steps, num_inference_steps=steps, mag_ratios=ratios
        ),
    )  # fmt: skip
