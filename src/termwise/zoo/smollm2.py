"""SmolLM2-135M-Instruct (Allal et al., 2025, arXiv:2502.02737): a Llama-style language model, asked for its next token.

The published file is quantised to four bits (GGUF, Q4_1). It is widened to float32 once, which takes half a minute,
and kept in the cache as safetensors (540 MB). Its weights therefore lie on a coarse grid: quantising them again to
four bits in groups of 32 loses nothing, and their spectra have a flat tail of noise. Say so beside any figure that
depends on it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from jaxtyping import Float, Int
from torch import Tensor, nn

from .assets import ASSETS, cache_folder, fetch
from .errors import need
from .texts import FastTokenizer, TextPreparation

__all__ = ["NextToken", "preparation", "smollm2"]


class NextToken(nn.Module):
    """A causal language model as a classifier of the next token.

    Args:
        language_model: a transformers causal language model, which stays reachable under this name.
    """

    language_model: Any

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(
        self, input_ids: Int[Tensor, "b t"], attention_mask: Int[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b vocabulary"]:
        """Logits after the last position (pad on the left, if at all)."""
        out = self.language_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=1)
        return out.logits[:, -1]


def smollm2() -> NextToken:
    """The model in evaluation mode, float32.

    Raises:
        ImportError: transformers or gguf is not installed.
        AssetMissing, AssetCorrupt: as `assets.fetch`.
    """
    transformers = need("transformers", extra="text", wanted_by="smollm2-135m")
    folder = _widened()
    with _no_bars():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return NextToken(model).eval()


def preparation() -> TextPreparation:
    """Its tokenizer: byte pairs, nothing put around the text. A deleted token is removed: none of them is neutral."""
    folder = _widened()
    config = need("transformers", extra="text", wanted_by="smollm2-135m").AutoConfig.from_pretrained(folder)
    return TextPreparation(FastTokenizer(folder / "tokenizer.json", raw=False), limit=config.max_position_embeddings)


def _widened() -> Path:
    """The folder of the float32 model, made on first use; all of it is there or none."""
    folder = cache_folder() / "derived" / f"smollm2-135m-{ASSETS['smollm2-135m'].sha256[:16]}"
    if folder.is_dir():
        return folder
    packed = fetch("smollm2-135m")
    transformers = need("transformers", extra="text", wanted_by="smollm2-135m")
    write = need("safetensors.torch", extra="text", wanted_by="smollm2-135m").save_file
    need("gguf", extra="text", wanted_by="smollm2-135m")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if folder.is_dir():
            return folder
        source = {"pretrained_model_name_or_path": packed.parent, "gguf_file": packed.name, "local_files_only": True}
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="incoming-") as temporary:
            made = Path(temporary) / "model"
            with _no_bars():
                model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
            # save_pretrained refuses what came from GGUF, though its layers are plain float32 by now
            del model.config.quantization_config
            model.config.save_pretrained(made)
            state = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}  # tied
            write(state, made / "model.safetensors", metadata={"format": "pt"})
            transformers.AutoTokenizer.from_pretrained(**source).backend_tokenizer.save(str(made / "tokenizer.json"))
            os.replace(made, folder)
    return folder


@contextmanager
def _no_bars() -> Iterator[None]:
    """Transformers' own progress bars off, for as long as this takes."""
    logging = need("transformers.utils.logging", extra="text", wanted_by="smollm2-135m")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
