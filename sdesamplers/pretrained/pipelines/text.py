"""Prompts as conditions, encoded by the pipeline itself."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ...errors import ModelError, UsageError
from ...models.running import evaluating
from .base import Conditioning, PipelineModel, call_defaults

KEPT = 256
"""The number of encoded prompts that a model caches."""

FROM_CALL_DEFAULTS = ("clean_caption", "clip_skip", "complex_human_instruction", "max_sequence_length", "system_prompt")
"""Arguments of `encode_prompt` whose defaults are taken from the pipeline's call."""


def version_of(tensor: Tensor) -> int:
    """Return the number of in-place writes to a tensor; 0 for inference tensors, which do not count them."""
    return 0 if tensor.is_inference() else tensor._version


class TextModel(PipelineModel):
    """A pipeline conditioned on prompts. Each distinct prompt is encoded separately, and cached."""

    def __init__(self, pipe: Any, **options: Any) -> None:
        self._encoded: dict[tuple[str | None, bool], dict[str, Tensor]] = {}
        self._encoded_by: tuple[int, ...] = ()
        super().__init__(pipe, **options)

    def named_tensors(self, encoded: Sequence[Any], negative: bool) -> dict[str, Tensor]:
        """Name the tensors that `encode_prompt` returned: those of the negative prompt if `negative`."""
        raise NotImplementedError

    def extra_tensors(self, embeds: Tensor) -> dict[str, Tensor]:
        """Return the network's inputs besides the prompt, for one sample (1, ...)."""
        return {}

    def encode_condition(self, condition: Any, count: int) -> Any:
        prompts = [condition] if isinstance(condition, str) else condition
        if not isinstance(prompts, (list, tuple)) or not all(isinstance(prompt, str) for prompt in prompts):
            found = "" if condition is None else f", not {type(condition).__name__}"
            raise UsageError(
                f"model {self.name!r} is conditioned on text: pass {{prompt}}{found}",
                arguments={"prompt": "condition=, a prompt or one per sample"},
            )
        if len(prompts) not in (1, count):
            raise UsageError(f"condition must be one prompt or {count}, one per sample, not {len(prompts)}")
        prompts = list(prompts) * count if len(prompts) == 1 else list(prompts)
        return self._conditioning(prompts, negative=False)

    def unconditional(self, count: int) -> Any:
        return self._conditioning([self.negative_prompt] * count, negative=True)

    def _conditioning(self, prompts: Sequence[str | None], negative: bool) -> Conditioning:
        distinct = list(dict.fromkeys(prompts))
        each = [Conditioning(self._encode(prompt, negative), (prompt,)) for prompt in distinct]
        joined = Conditioning.cat(each)
        index = {prompt: row for row, prompt in enumerate(distinct)}
        rows = torch.tensor([index[prompt] for prompt in prompts])
        tensors = {name: value[rows.to(value.device)] for name, value in joined.tensors.items()}
        return Conditioning(tensors, tuple(prompts))

    def _encode(self, prompt: str | None, negative: bool) -> dict[str, Tensor]:
        """Return the tensors (1, ...) of one prompt, from the cache if possible."""
        key = (prompt, negative)
        weights = self._weights()
        if weights != self._encoded_by:  # encoders were trained, or have another adapter: the cache is out of date
            self._encoded, self._encoded_by = {}, weights
        if key not in self._encoded:
            while len(self._encoded) >= KEPT:
                self._encoded.pop(next(iter(self._encoded)))
            # Not inference tensors, even within inference mode: a later run may need gradients.
            with evaluating(self.networks()), torch.inference_mode(False), torch.no_grad():
                found = self.named_tensors(self._run_encoder(prompt, negative), negative)
                found = {name: value.to(self.device) for name, value in found.items()}
                self._encoded[key] = {**found, **self.extra_tensors(found["embeds"])}
        return self._encoded[key]

    def _weights(self) -> tuple[int, ...]:
        """Return a value that changes with the text encoders' weights: their ids and numbers of writes."""
        encoders = [each for each in self.networks() if each is not self.network]
        return tuple(n for each in encoders for p in each.parameters() for n in (id(p), version_of(p)))

    def _run_encoder(self, prompt: str | None, negative: bool) -> Sequence[Any]:
        encode = getattr(self.pipe, "encode_prompt", None)
        if encode is None:
            raise ModelError(f"the pipeline of {self.name!r} has no encode_prompt, so it takes no prompt")
        known = inspect.signature(encode).parameters
        unknown = [name for name in self.encode_options if name not in known]
        if unknown:
            raise UsageError(f"encode_prompt of {type(self.pipe).__name__} takes no {', '.join(unknown)}")
        defaults = {name: value for name, value in call_defaults(self.pipe).items() if name in FROM_CALL_DEFAULTS}
        if defaults.get("clean_caption") and not (find_spec("bs4") and find_spec("ftfy")):
            defaults["clean_caption"] = False  # the pipeline would do the same, with a warning for each prompt
        kwargs: dict[str, Any] = {"prompt_2": None, "prompt_3": None, "num_images_per_prompt": 1, **defaults}
        kwargs |= {"device": self.device, "do_classifier_free_guidance": negative, **self.encode_options}
        if negative and "negative_prompt" in known:
            kwargs |= {"prompt": "", **({} if prompt is None else {"negative_prompt": prompt})}
        else:
            kwargs["prompt"] = prompt or ""
        try:
            encoded: Sequence[Any] = encode(**{name: value for name, value in kwargs.items() if name in known})
        except (ValueError, TypeError, AttributeError) as error:
            text = " ".join(str(error).split())
            raise ModelError(f"the prompt {prompt!r} cannot be encoded by {self.name!r}: {text[:300]}") from None
        return encoded

    def cast(self, embeds: Tensor) -> Tensor:
        """Convert embeddings to the network's dtype."""
        return embeds.to(self.network_dtype)
