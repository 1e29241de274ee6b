"""inseq: attribution of generated text, for models of transformers."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from .subjects import NotTried, Subject


def methods(subject: Subject, cache: Path) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """Input x gradient of the next token."""

    def run(x: Tensor, target: int) -> Tensor:
        if subject.name != "smollm2-135m":
            raise NotTried(f"inseq attributes generation of transformers' models; {subject.name} generates nothing")
        import inseq

        tokenizer = subject.ask.language_model.config.name_or_path  # type: ignore[attr-defined]
        model = inseq.load_model(subject.ask.language_model, "input_x_gradient", tokenizer=tokenizer)  # type: ignore[attr-defined]
        text = model.tokenizer.decode(x[0])
        found = model.attribute(text, text + model.tokenizer.decode([target]), show_progress=False)
        return found.sequence_attributions[0].target_attributions[: x.shape[1], -1].sum(-1)[None]

    return {"input x gradient": run}
