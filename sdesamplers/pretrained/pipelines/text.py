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
"""How many encoded prompts a model remembers."""

OF_THE_CALL = ("clean_caption", "clip_skip", "complex_human_instruction", "max_sequence_length", "system_prompt")
"""Arguments whose defaults a pipeline's call may set for its `encode_prompt`."""


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; inference tensors do not count it."""
    return 0 if tensor.is_inference() else tensor._version


class TextModel(PipelineModel):
    """A pipeline that is conditioned on prompts. Each prompt is encoded by itself and once."""

    def __init__(self, pipe: Any, **options: Any) -> None:
        self._encoded: dict[tuple[str | None, bool], dict[str, Tensor]] = {}
        self._encoded_by: tuple[int, ...] = ()
        super().__init__(pipe, **options)

    def sort(self, encoded: Sequence[Any], negative: bool) -> dict[str, Tensor]:
        """What `encode_prompt` returned, by name; the negative prompt's part if asked."""
        raise NotImplementedError

    def beside(self, embeds: Tensor) -> dict[str, Tensor]:
        """What the network is told beside the prompt, for one sample (1, ...)."""
        return {}

    def encode_condition(self, condition: Any, count: int) -> Any:
        prompts = [condition] if isinstance(condition, str) else condition
        if not isinstance(prompts, (list, tuple)) or not all(isinstance(prompt, str) for prompt in prompts):
            found = "" if condition is None else f", not {type(condition).__name__}"
            raise UsageError(
                f"model {self.name!r} is conditioned on text: give {{prompt}}{found}",
                arguments={"prompt": "condition=, a prompt or one a sample"},
            )
        if len(prompts) not in (1, count):
            raise UsageError(f"condition must be one prompt or {count}, one a sample, not {len(prompts)}")
        prompts = list(prompts) * count if len(prompts) == 1 else list(prompts)
        return self._conditioning(prompts, negative=False)

    def unconditional(self, count: int) -> Any:
        return self._conditioning([self.negative_prompt] * count, negative=True)

    def _conditioning(self, prompts: Sequence[str | None], negative: bool) -> Conditioning:
        different = list(dict.fromkeys(prompts))
        each = [Conditioning(self._one(prompt, negative), (prompt,)) for prompt in different]
        joined = Conditioning.cat(each)
        index = {prompt: row for row, prompt in enumerate(different)}
        rows = torch.tensor([index[prompt] for prompt in prompts])
        tensors = {name: value[rows.to(value.device)] for name, value in joined.tensors.items()}
        return Conditioning(tensors, tuple(prompts))

    def _one(self, prompt: str | None, negative: bool) -> dict[str, Tensor]:
        """One prompt's tensors (1, ...)."""
        key = (prompt, negative)
        weights = self._weights()
        if weights != self._encoded_by:  # trained since, or another adapter: what they encoded is out of date
            self._encoded, self._encoded_by = {}, weights
        if key not in self._encoded:
            while len(self._encoded) >= KEPT:
                self._encoded.pop(next(iter(self._encoded)))
            # Not inference tensors, even where a run asks first: a later run may want gradients.
            with evaluating(self.networks()), torch.inference_mode(False), torch.no_grad():
                found = self.sort(self._run_encoder(prompt, negative), negative)
                found = {name: value.to(self.device) for name, value in found.items()}
                self._encoded[key] = {**found, **self.beside(found["embeds"])}
        return self._encoded[key]

    def _weights(self) -> tuple[int, ...]:
        """What changes where the text encoders' weights do: which they are, and how often each was written to."""
        encoders = [each for each in self.networks() if each is not self.network]
        return tuple(n for each in encoders for p in each.parameters() for n in (id(p), version_of(p)))

    def _run_encoder(self, prompt: str | None, negative: bool) -> Sequence[Any]:
        encode = getattr(self.pipe, "encode_prompt", None)
        if encode is None:
            raise ModelError(f"the pipeline of {self.name!r} has no encode_prompt, so it cannot be given a prompt")
        known = inspect.signature(encode).parameters
        unknown = [word for word in self.encode_options if word not in known]
        if unknown:
            raise UsageError(f"encode_prompt of {type(self.pipe).__name__} takes no {', '.join(unknown)}")
        usual = {word: value for word, value in call_defaults(self.pipe).items() if word in OF_THE_CALL}
        if usual.get("clean_caption") and not (find_spec("bs4") and find_spec("ftfy")):
            usual["clean_caption"] = False  # as the pipeline does without these, but with a warning every time
        words: dict[str, Any] = {"prompt_2": None, "prompt_3": None, "num_images_per_prompt": 1, **usual}
        words |= {"device": self.device, "do_classifier_free_guidance": negative, **self.encode_options}
        if negative and "negative_prompt" in known:
            words |= {"prompt": "", **({} if prompt is None else {"negative_prompt": prompt})}
        else:
            words["prompt"] = prompt or ""
        try:
            encoded: Sequence[Any] = encode(**{word: value for word, value in words.items() if word in known})
        except (ValueError, TypeError, AttributeError) as error:
            text = " ".join(str(error).split())
            raise ModelError(f"the prompt {prompt!r} cannot be encoded by {self.name!r}: {text[:300]}") from None
        return encoded

    def cast(self, embeds: Tensor) -> Tensor:
        """Embeddings in the network's dtype."""
        return embeds.to(self.dtype)
