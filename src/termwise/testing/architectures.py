"""Small instances, with random weights, of the architectures people bring: what breadth is measured on.

Each entry makes a model in eval mode and one call of it, deterministically. Biases and norm weights are perturbed, since
an initialisation that leaves them at 0 and 1 would hide what they carry. The transformers ones need the extra `text`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ARCHITECTURES", "Subject", "build"]


@dataclass(frozen=True)
class Subject:
    """A model and one call of it.

    Attributes:
        model: in eval mode.
        inputs: positional arguments.
        kwargs: keyword arguments.
        target: for `explain`; a function where the model has no logits.
        batched: whether a batch of independent samples can be run (a contrastive model compares its samples).
    """

    model: nn.Module
    inputs: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    target: Any = None
    batched: bool = True

    def to(self, dtype: torch.dtype) -> Subject:
        """The same in another floating dtype (the model is converted in place)."""

        def move(x: Any) -> Any:
            return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

        kwargs = {k: move(v) for k, v in (self.kwargs or {}).items()}
        return Subject(self.model.to(dtype), tuple(map(move, self.inputs)), kwargs, self.target, self.batched)


ARCHITECTURES: dict[str, Callable[[int, int], Subject]] = {}
"""Name -> a function of (batch, size) that makes a Subject; size 1 is tiny, larger ones are for timing."""


def build(name: str, *, batch: int = 2, size: int = 1, seed: int = 0) -> Subject:
    """Make one, leaving the global random state as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        subject = ARCHITECTURES[name](batch, size)
        with torch.no_grad():
            for parameter in subject.model.parameters():
                if parameter.ndim <= 1:
                    parameter += 0.1 * torch.randn_like(parameter)
            for key, buffer in subject.model.named_buffers():
                if key.endswith("running_mean"):
                    buffer += 0.1 * torch.randn_like(buffer)
                if key.endswith("running_var"):
                    buffer *= 1 + 0.3 * torch.rand_like(buffer)
    subject.model.eval().requires_grad_(False)
    return subject


def _enter(name: str) -> Callable[[Callable[[int, int], Subject]], Callable[[int, int], Subject]]:
    def enter(make: Callable[[int, int], Subject]) -> Callable[[int, int], Subject]:
        ARCHITECTURES[name] = make
        return make

    return enter


# -- convolutional ----------------------------------------------------------------------------------------------------


def _images(batch: int, side: int) -> tuple[Tensor]:
    return (torch.randn(batch, 3, side, side),)


def _conv(
    c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU() if act is None else act)


class _Add(nn.Module):
    """x + f(x)."""

    def __init__(self, f: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.f, self.shortcut, self.act = f, shortcut or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.shortcut(x) + self.f(x))
        return out


def _head(channels: int, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


@_enter("vgg")
def _vgg(batch: int, size: int) -> Subject:
    w, layers, c = 8 * size, [], 3
    for width in (w, 2 * w, 4 * w):
        layers += [
            nn.Conv2d(c, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
        ]
        layers += [nn.MaxPool2d(2)]
        c = width
    model = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * c, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10)
    )
    return Subject(model, _images(batch, 16 if size == 1 else 64))


@_enter("resnet")
def _resnet(batch: int, size: int) -> Subject:
    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        body = nn.Sequential(*_conv(c_in, c_out, stride=stride), *_conv(c_out, c_out)[:2])
        shortcut = None if c_in == c_out else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        return _Add(body, shortcut, nn.ReLU(inplace=True))

    w = 8 * size
    stem = [*_conv(3, w, 7, 2), nn.MaxPool2d(3, 2, 1)]
    model = nn.Sequential(*stem, block(w, w, 1), block(w, 2 * w, 2), block(2 * w, 4 * w, 2), _head(4 * w))
    return Subject(model, _images(batch, 32 if size == 1 else 64))


@_enter("densenet")
def _densenet(batch: int, size: int) -> Subject:
    class Dense(nn.Module):
        def __init__(self, c: int, growth: int, layers: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Sequential(
                    nn.BatchNorm2d(c + i * growth), nn.ReLU(), nn.Conv2d(c + i * growth, growth, 3, padding=1, bias=False)
                )
                for i in range(layers)
            )

        def forward(self, x: Tensor) -> Tensor:
            features = [x]
            for layer in self.layers:
                features.append(layer(torch.cat(features, 1)))
            return torch.cat(features, 1)

    g = 6 * size
    transition = nn.Sequential(nn.BatchNorm2d(8 + 3 * g), nn.ReLU(), nn.Conv2d(8 + 3 * g, 2 * g, 1), nn.AvgPool2d(2))
    c = 2 * g + 3 * g
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Dense(8, g, 3), transition, Dense(2 * g, g, 3), nn.BatchNorm2d(c), nn.ReLU(), _head(c)
    )
    return Subject(model, _images(batch, 16 if size == 1 else 32))


@_enter("inception")
def _inception(batch: int, size: int) -> Subject:
    class Inception(nn.Module):
        def __init__(self, c: int, w: int) -> None:
            super().__init__()
            self.one, self.three = _conv(c, w, 1), nn.Sequential(_conv(c, w, 1), _conv(w, w))
            self.five = nn.Sequential(
                _conv(c, w, 1), nn.Conv2d(w, w, (1, 5), padding=(0, 2)), nn.Conv2d(w, w, (5, 1), padding=(2, 0))
            )
            self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv(c, w, 1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)

    w = 6 * size
    model = nn.Sequential(_conv(3, w, 3, 2), Inception(w, w), nn.AvgPool2d(2), Inception(4 * w, w), _head(4 * w))
    return Subject(model, _images(batch, 16 if size == 1 else 64))


class _SqueezeExcite(nn.Module):
    def __init__(self, c: int, gate: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c // 4, 1), act, nn.Conv2d(c // 4, c, 1), gate)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.body(x)
        return out


def _inverted(c: int, act: Callable[[], nn.Module], excite: Callable[[int], nn.Module] | None = None) -> nn.Module:
    wide = 4 * c
    middle = [] if excite is None else [excite(wide)]
    body = [_conv(c, wide, 1, act=act()), _conv(wide, wide, 3, groups=wide, act=act()), *middle, *_conv(wide, c, 1)[:2]]
    return _Add(nn.Sequential(*body))


@_enter("mobilenet-v2")
def _mobilenet_v2(batch: int, size: int) -> Subject:
    w = 8 * size
    model = nn.Sequential(_conv(3, w, 3, 2, act=nn.ReLU6()), _inverted(w, nn.ReLU6), _inverted(w, nn.ReLU6), _head(w))
    return Subject(model, _images(batch, 16 if size == 1 else 64))


@_enter("mobilenet-v3")
def _mobilenet_v3(batch: int, size: int) -> Subject:
    w = 8 * size
    blocks = [_inverted(w, nn.Hardswish, lambda c: _SqueezeExcite(c, nn.Hardsigmoid(), nn.ReLU())) for _ in range(2)]
    return Subject(
        nn.Sequential(_conv(3, w, 3, 2, act=nn.Hardswish()), *blocks, _head(w)), _images(batch, 16 if size == 1 else 64)
    )


@_enter("efficientnet")
def _efficientnet(batch: int, size: int) -> Subject:
    w = 8 * size
    blocks = [_inverted(w, nn.SiLU, lambda c: _SqueezeExcite(c, nn.Sigmoid(), nn.SiLU())) for _ in range(2)]
    return Subject(nn.Sequential(_conv(3, w, 3, 2, act=nn.SiLU()), *blocks, _head(w)), _images(batch, 16 if size == 1 else 64))


@_enter("u-net")
def _u_net(batch: int, size: int) -> Subject:
    class UNet(nn.Module):
        def __init__(self, w: int) -> None:
            super().__init__()
            self.down1, self.down2 = (
                _conv(3, w),
                nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(w, 2 * w, 3, padding=1), nn.GroupNorm(4, 2 * w)),
            )
            self.bottom = nn.Sequential(nn.Conv2d(2 * w, 4 * w, 3, 2, 1), nn.SiLU(inplace=True))
            self.up = nn.ConvTranspose2d(4 * w, 2 * w, 2, 2)
            self.mix, self.last = _conv(4 * w, w), nn.Conv2d(2 * w, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            a = self.down1(x)
            b = F.silu(self.down2(a))
            y = self.mix(torch.cat([self.up(self.bottom(b)), b], 1))
            y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
            out: Tensor = self.last(torch.cat([y, a], 1))
            return out

    return Subject(UNet(8 * size), _images(batch, 16 if size == 1 else 64), target=(1, 5, 6))


# -- sequences in plain torch -----------------------------------------------------------------------------------------


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], width: int) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(50, width), kind(width, width, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 4)

    def forward(self, ids: Tensor) -> Tensor:
        y, _ = self.rnn(self.embed(ids))
        out: Tensor = self.head(y.mean(1))
        return out


def _ids(batch: int, length: int, vocabulary: int = 50) -> Tensor:
    return torch.randint(3, vocabulary, (batch, length))


@_enter("lstm")
def _lstm(batch: int, size: int) -> Subject:
    return Subject(_Recurrent(nn.LSTM, 16 * size), (_ids(batch, 9),))


@_enter("gru")
def _gru(batch: int, size: int) -> Subject:
    return Subject(_Recurrent(nn.GRU, 16 * size), (_ids(batch, 9),))


@_enter("nn.Transformer")
def _nn_transformer(batch: int, size: int) -> Subject:
    class Translate(nn.Module):
        def __init__(self, d: int) -> None:
            super().__init__()
            self.reads, self.writes, self.position = nn.Embedding(50, d), nn.Embedding(50, d), nn.Parameter(torch.randn(12, d))
            self.transformer = nn.Transformer(d, 4, 2, 2, 2 * d, batch_first=True)
            self.head = nn.Linear(d, 50)

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            x, y = self.reads(source) + self.position[: source.shape[1]], self.writes(target) + self.position[: target.shape[1]]
            mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=x.dtype)
            out: Tensor = self.head(self.transformer(x, y, tgt_mask=mask))
            return out

    return Subject(Translate(32 * size), (_ids(batch, 9), _ids(batch, 7)))


@_enter("fourier")
def _fourier(batch: int, size: int) -> Subject:
    class Spectral(nn.Module):
        def __init__(self, w: int) -> None:
            super().__init__()
            self.lift, self.drop = nn.Conv1d(2, w, 1), nn.Linear(w, 3)
            self.weight = nn.Parameter(torch.randn(w, 5, 2) / w)

        def forward(self, x: Tensor) -> Tensor:
            y = self.lift(x)
            spectrum = torch.fft.rfft(y)[..., :5] * torch.view_as_complex(self.weight)
            y = F.gelu(y + torch.fft.irfft(spectrum, n=x.shape[-1]))
            out: Tensor = self.drop(y.mean(-1))
            return out

    return Subject(Spectral(8 * size), (torch.randn(batch, 2, 16),))


# -- transformers -----------------------------------------------------------------------------------------------------


def _text(name: str, config: str, model: str, heads: str = "", **extra: Any) -> None:
    """Enter a text model: class names of transformers and what its config needs beyond the usual."""

    def make(batch: int, size: int) -> Subject:
        transformers = _transformers()
        d = 32 if size == 1 else 256
        common = {
            "vocab_size": 60, "hidden_size": d, "intermediate_size": 2 * d, "num_hidden_layers": 2 if size == 1 else 4,
            "num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0, "num_labels": 3, "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip
        made = getattr(transformers, model)(
            getattr(transformers, config)(**{**common, **{k: v(d) if callable(v) else v for k, v in extra.items()}})
        )
        length = 10 if size == 1 else 64
        ids = _ids(batch, length, 60)
        return Subject(made, kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    ARCHITECTURES[name] = make


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as missing:
        raise ImportError('this architecture comes from transformers: pip install "termwise[text]"') from missing
    return transformers


_text("bert", "BertConfig", "BertForSequenceClassification")
_text("roberta", "RobertaConfig", "RobertaForSequenceClassification")
_text("deberta-v2", "DebertaV2Config", "DebertaV2ForSequenceClassification", relative_attention=True, pos_att_type=["c2p", "p2c"], norm_rel_ebd="layer_norm", position_buckets=8, share_att_key=True)  # fmt: skip
_text("electra", "ElectraConfig", "ElectraForSequenceClassification", embedding_size=16)
_text("albert", "AlbertConfig", "AlbertForSequenceClassification", embedding_size=16)
_text(
    "distilbert",
    "DistilBertConfig",
    "DistilBertForSequenceClassification",
    dim=lambda d: d,
    hidden_dim=lambda d: 2 * d,
    n_layers=2,
    n_heads=4,
)
_text("gpt2", "GPT2Config", "GPT2LMHeadModel", n_embd=lambda d: d, n_layer=2, n_head=4)
_text("gpt-neox", "GPTNeoXConfig", "GPTNeoXForCausalLM")
_text("llama", "LlamaConfig", "LlamaForCausalLM", num_key_value_heads=2)
_text("mistral", "MistralConfig", "MistralForCausalLM", num_key_value_heads=2, sliding_window=6)
_text("mixtral", "MixtralConfig", "MixtralForCausalLM", num_key_value_heads=2, num_local_experts=4)
_text("qwen2", "Qwen2Config", "Qwen2ForCausalLM", num_key_value_heads=2)
_text("gemma", "GemmaConfig", "GemmaForCausalLM", num_key_value_heads=2, head_dim=8)
_text("phi", "PhiConfig", "PhiForCausalLM")
_text("mamba", "MambaConfig", "MambaForCausalLM", state_size=4)


@_enter("t5")
def _t5(batch: int, size: int) -> Subject:
    t = _transformers()
    d = 32 if size == 1 else 256
    config = t.T5Config(vocab_size=60, d_model=d, d_kv=d // 4, d_ff=2 * d, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return Subject(
        t.T5ForConditionalGeneration(config), kwargs={"input_ids": _ids(batch, 9), "decoder_input_ids": _ids(batch, 6)}
    )


@_enter("bart")
def _bart(batch: int, size: int) -> Subject:
    t = _transformers()
    d = 32 if size == 1 else 256
    config = t.BartConfig(
        vocab_size=60, d_model=d, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=2 * d, decoder_ffn_dim=2 * d, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, forced_eos_token_id=2,
    )  # fmt: skip
    return Subject(
        t.BartForConditionalGeneration(config), kwargs={"input_ids": _ids(batch, 9), "decoder_input_ids": _ids(batch, 6)}
    )


def _vision(name: str, config: str, model: str, **extra: Any) -> None:
    def make(batch: int, size: int) -> Subject:
        t = _transformers()
        d = 32 if size == 1 else 256
        common = {
            "hidden_size": d, "intermediate_size": 2 * d, "num_hidden_layers": 2 if size == 1 else 4, "num_attention_heads": 4,
            "image_size": 32 if size == 1 else 64, "patch_size": 8, "num_labels": 5,
        }  # fmt: skip
        return Subject(getattr(t, model)(getattr(t, config)(**{**common, **extra})), _images(batch, common["image_size"]))

    ARCHITECTURES[name] = make


_vision("vit", "ViTConfig", "ViTForImageClassification")
_vision("deit", "DeiTConfig", "DeiTForImageClassification")
_vision(
    "beit", "BeitConfig", "BeitForImageClassification", use_relative_position_bias=True, use_absolute_position_embeddings=False
)


@_enter("swin")
def _swin(batch: int, size: int) -> Subject:
    t = _transformers()
    config = t.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16 * size, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5
    )
    return Subject(t.SwinForImageClassification(config), _images(batch, 32))


@_enter("convnext")
def _convnext(batch: int, size: int) -> Subject:
    t = _transformers()
    config = t.ConvNextConfig(hidden_sizes=[8 * size, 16 * size, 32 * size, 64 * size], depths=[1, 1, 2, 1], num_labels=5)
    return Subject(t.ConvNextForImageClassification(config), _images(batch, 64))


@_enter("whisper")
def _whisper(batch: int, size: int) -> Subject:
    t = _transformers()
    d = 32 if size == 1 else 128
    config = t.WhisperConfig(
        vocab_size=60, d_model=d, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=2 * d, decoder_ffn_dim=2 * d, num_mel_bins=8, max_source_positions=20, max_target_positions=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = t.WhisperForConditionalGeneration(config)
    return Subject(model, kwargs={"input_features": torch.randn(batch, 8, 40), "decoder_input_ids": _ids(batch, 6)})


@_enter("wav2vec2")
def _wav2vec2(batch: int, size: int) -> Subject:
    t = _transformers()
    config = t.Wav2Vec2Config(
        vocab_size=20, hidden_size=32 * size, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64 * size, conv_dim=(16, 16),
        conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, num_feat_extract_layers=2,
    )  # fmt: skip
    return Subject(t.Wav2Vec2ForCTC(config), (torch.randn(batch, 200),))


def _clip_parts(size: int) -> dict[str, Any]:
    d = 32 * size
    common = {
        "hidden_size": d,
        "intermediate_size": 2 * d,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 16,
    }
    text = common | {"vocab_size": 60, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return {"text_config": text, "vision_config": common | {"image_size": 32, "patch_size": 8}, "projection_dim": 16}


@_enter("clip")
def _clip(batch: int, size: int) -> Subject:
    t = _transformers()
    model = t.CLIPModel(t.CLIPConfig(**_clip_parts(size)))
    ids = _ids(1, 7, 60)
    ids[:, -1] = 2
    kwargs = {"input_ids": ids, "pixel_values": _images(1, 32)[0]}
    return Subject(model, kwargs=kwargs, target=_images_by_text, batched=False)


def _images_by_text(output: Any) -> Tensor:
    """CLIP's score of each image with the first text."""
    scores: Tensor = output.logits_per_image[:, 0]
    return scores


@_enter("llava")
def _llava(batch: int, size: int) -> Subject:
    t = _transformers()
    d = 32 * size
    text = t.LlamaConfig(
        vocab_size=60, hidden_size=d, intermediate_size=2 * d, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vision = t.CLIPVisionConfig(**_clip_parts(size)["vision_config"])
    model = t.LlavaForConditionalGeneration(
        t.LlavaConfig(vision_config=vision, text_config=text, image_token_index=59, image_seq_length=16)
    )
    ids = torch.cat([_ids(batch, 2), torch.full((batch, 16), 59), _ids(batch, 4)], 1)
    return Subject(
        model, kwargs={"input_ids": ids, "pixel_values": _images(batch, 32)[0], "attention_mask": torch.ones_like(ids)}
    )
