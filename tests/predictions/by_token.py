"""What must hold of the token decomposition of every architecture: used where these are recorded."""

import torch

import termwise as tw
from termwise.core.capture import Call, capture
from termwise.predictions.propagate import Pass
from termwise.predictions.starts import Entry, Seen
from termwise.predictions.token_sharing import BIASES

LAYERS = {
    "bert": "bert.encoder.layer.1", "roberta": "roberta.encoder.layer.1", "distilbert": "distilbert.transformer.layer.0", "electra":
    "electra.encoder.layer.1", "albert": "albert.encoder", "deberta-v2": "deberta.encoder.layer.0", "vit": "vit.layers.0", "gpt2":
    "transformer.h.0", "gpt-neox": "gpt_neox.layers.0", "llama": "model.layers.0", "mistral": "model.layers.0", "mixtral": "model.layers.0",
    "t5": "decoder.block.0", "bart": "model.decoder.layers.0", "nn.Transformer": "transformer.decoder.layers.0", "mamba": "backbone.layers.0",
}  # fmt: skip
"""Architecture -> a module inside it. Encoders, decoders, both; post-norm and pre-norm; a state-space model."""


def adds_up_by_token(s, layer: str) -> None:
    """Logits and hidden states, under every rule for biases and every slope."""
    for rule in BIASES:
        found = tw.decompx(s.model, *s.inputs, kwargs=s.kwargs, biases=rule).check(1e-9)
        assert all(p.abs().sum() > 0 for p in found.inputs.values())
        assert found.at(layer).check(1e-9).whole.ndim == 3
    for mode in ("tangent", "relu"):
        tw.decompx(s.model, *s.inputs, kwargs=s.kwargs, activation=mode).check(1e-9)


def is_relevance_run_forwards(s) -> None:
    """Duality: biases apart, slopes f(u)/u and constant attention make CP-LRP, token by token."""
    program = capture(s.model, *s.inputs, kwargs=s.kwargs)
    tensors = Call(s.model, s.inputs, s.kwargs or {}, None).tensors
    forwards = tw.decompx(s.model, *s.inputs, kwargs=s.kwargs, biases="parts").of_class()
    # some models cast to float32 inside; both machines compute in float64 throughout
    batch, start = len(forwards), Entry(forwards.target)
    backwards = Pass(program, "cp-lrp", lift=torch.float64).run(tensors, lambda out: start.of(out, Seen(batch))[0])
    scale = 1e-10 * backwards.whole.abs().min()
    for name, part in forwards.inputs.items():
        other = backwards.parts[f"input:{name}"]
        if other.ndim == 4:  # pixels: as patches
            other = other.sum(1).unflatten(1, (part.shape[1], -1)).unflatten(-1, (part.shape[2], -1)).sum((2, 4))
        assert part.sub(other).abs().max() < scale
    for kind in ("bias", "constant"):
        of_kind = [p.reshape(batch, -1).sum(1) for n, p in backwards.parts.items() if n.startswith(kind + ":")]
        total = sum(of_kind, torch.zeros(batch, dtype=torch.float64))
        assert forwards.parts[f"{kind}:all modules"].sub(total).abs().max() < scale
