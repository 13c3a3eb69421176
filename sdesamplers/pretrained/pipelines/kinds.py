"""The kinds of pipelines. The class names of its components determine a pipeline's kind, so its variants share one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...categories import ModelWarning
from ...checks import known_keywords, warn
from ...errors import ModelError, UsageError
from ...models.base import Model
from ...models.clipping import ClipLike
from ...public import public
from ..conventions import with_zero_snr
from ..folders import class_count, sample_shape
from ..trained import checked_convention, trained_config
from ..unets import DiffusersModel
from .audio import StableAudio
from .base import PipelineModel, part, scheduler_config
from .diffusion_transformers import AuraFlow, DiT, Lumina, Lumina2, PixArt, Sana, StableDiffusion3
from .flux import Flux
from .latent_diffusion import Kandinsky, LatentDiffusion, LatentDiffusionText
from .stable_diffusion import StableDiffusion, StableDiffusionXL

CONVERTED = "Transformer2DModel"
"""The former class of DiT's and PixArt's transformers; diffusers converts it."""


def transformer(*names: str) -> dict[str, tuple[str, ...]]:
    """Return the requirement of a transformer of one of these classes."""
    return {"transformer": names}


@dataclass(frozen=True)
class Kind:
    """A kind of pipeline.

    Attributes:
        name: its name in messages.
        model: the class of its models; None for pixel-space UNets, whose class is `DiffusersModel`.
        parts: required components with their allowed classes; an empty tuple allows any class.
        without: components that pipelines of this kind do not have.
        text: True if it is conditioned on prompts.
    """

    name: str
    model: type[PipelineModel] | None
    parts: Mapping[str, tuple[str, ...]]
    without: tuple[str, ...] = ()
    text: bool = True

    def fits(self, classes: Mapping[str, str]) -> bool:
        """Return True if a pipeline with components of these classes is of this kind."""
        has = all(key in classes and (not named or classes[key] in named) for key, named in self.parts.items())
        return has and not any(key in classes for key in self.without)


VIDEO = ("motion_adapter",)
"""Components that turn an image network into a video network."""

UNET, PLAIN = {"unet": ("UNet2DConditionModel",)}, {"unet": ("UNet2DModel",)}
KINDS = (
    Kind(
        "pixel-space UNets (DDPM, DDIM, PNDM, score-SDE-VE, consistency models)",
        None,
        PLAIN,
        without=("vae", "vqvae", "mel"),
        text=False,
    ),
    Kind("Stable Diffusion XL", StableDiffusionXL, {**UNET, "text_encoder_2": ("CLIPTextModelWithProjection",)}, VIDEO),
    Kind("Stable Diffusion 1 and 2, LCM", StableDiffusion, {**UNET, "text_encoder": ("CLIPTextModel",)}, VIDEO),
    Kind("Stable Diffusion 3", StableDiffusion3, transformer("SD3Transformer2DModel")),
    Kind("FLUX.1", Flux, transformer("FluxTransformer2DModel")),
    Kind(
        "PixArt Alpha and Sigma",
        PixArt,
        {**transformer("PixArtTransformer2DModel", CONVERTED), "text_encoder": ("T5EncoderModel",)},
    ),
    Kind("DiT", DiT, transformer("DiTTransformer2DModel", CONVERTED), without=("text_encoder",), text=False),
    Kind("Sana", Sana, transformer("SanaTransformer2DModel"), without=("controlnet",)),
    Kind("AuraFlow", AuraFlow, transformer("AuraFlowTransformer2DModel")),
    Kind("Lumina-Next", Lumina, transformer("LuminaNextDiT2DModel")),
    Kind("Lumina 2", Lumina2, transformer("Lumina2Transformer2DModel")),
    Kind("Stable Audio", StableAudio, transformer("StableAudioDiTModel")),
    Kind("latent diffusion, unconditional", LatentDiffusion, {**PLAIN, "vqvae": ()}, without=("mel",), text=False),
    Kind("latent diffusion, with text", LatentDiffusionText, {**UNET, "bert": (), "vqvae": ()}),
    Kind(
        "Kandinsky 2.2's decoder",
        Kandinsky,
        {**UNET, "movq": ("VQModel",)},
        without=("text_encoder", "controlnet"),
        text=False,
    ),
)


def kind_of(classes: Mapping[str, str], label: str) -> Kind:
    """Return the kind of a pipeline.

    Args:
        classes: the class name of each component, without absent components.
        label: the pipeline's name in messages.

    Raises:
        ModelError: an unsupported pipeline; the message lists the supported kinds.
    """
    for kind in KINDS:
        if kind.fits(classes):
            refuse_autoencoder(kind, classes, label)
            return kind
    found = ", ".join(f"{key}: {value}" for key, value in classes.items()) or "no components"
    raise ModelError(f"{label} ({found}) is not supported as a model; supported are {supported()}")


def refuse_autoencoder(kind: Kind, classes: Mapping[str, str], label: str) -> None:
    """Raise ModelError if a pipeline's autoencoder is a diffusers class that its kind does not support."""
    import diffusers  # diffusers takes seconds to import

    key = "" if kind.model is None else kind.model.AUTOENCODER
    found = classes.get(key)
    if kind.model is None or found is None or found in kind.model.AUTOENCODERS or not hasattr(diffusers, found):
        return
    known = " or ".join(kind.model.AUTOENCODERS)
    raise ModelError(f"{label} with {found} as its {key} is not supported as a model: {kind.name} decodes with {known}")


def supported() -> str:
    """Return the names of the supported kinds, for messages."""
    return "; ".join(kind.name for kind in KINDS)


def classes_of(pipe: Any) -> dict[str, str]:
    """Return the class names of a loaded pipeline's components."""
    components = getattr(pipe, "components", None)
    if not isinstance(components, dict):
        raise UsageError(f"from_pipeline takes a loaded diffusers pipeline, not {type(pipe).__name__}")
    return {key: type(part(pipe, key)).__name__ for key, value in components.items() if value is not None}


@public
@known_keywords()
def from_pipeline(
    pipe: Any,
    *,
    height: int | None = None,
    width: int | None = None,
    prompt: str | list[str] | None = None,
    condition: Any = None,
    negative_prompt: str | None = None,
    embedded_guidance: float | None = None,
    encode_options: Mapping[str, Any] | None = None,
    name: str | None = None,
    revision: str | None = None,
    null_condition: int | None = None,
    round_timesteps: bool = False,
    zero_snr: bool = False,
    scheduler: Any = None,
    prediction: str | None = None,
    autocast: Any = nullcontext,
    clip: ClipLike = None,
) -> Model:
    """Convert a loaded diffusers pipeline to a `Model` in latent space, with prompts or labels as conditions.

        model = sds.from_pipeline(pipe, height=512, width=512)
        result = sds.sample(model, "dpmpp-2m", steps=20, condition="a cat", guidance_scale=7.5)
        result.images

    For guidance, pass `guidance_scale` to `sample` or wrap the model in `Guided`; the pipeline's guidance is not used.

    Args:
        pipe: any pipeline whose components are of a supported kind; its scheduler, one of diffusers or ours, specifies
            how the network was trained.
        height, width: of the images, in pixels; by default the size that the network was trained at.
        prompt: for text-conditioned kinds, the default condition for calls without one: one prompt for all samples, or
            one per sample.
        condition: likewise for any kind: labels (DiT) or image embeddings (Kandinsky).
        negative_prompt: the prompt that guidance leads away from; by default the pipeline's own unconditional input.
        embedded_guidance: the guidance scale that a guidance-distilled network (FLUX.1-dev, LCM) takes as an input; by
            default that of the pipeline's call. It needs no second evaluation.
        encode_options: further arguments of the pipeline's `encode_prompt`, such as clip_skip or max_sequence_length.
        name, revision: for records.
        null_condition: for class-conditional pixel-space UNets, the label that means "no label".
        round_timesteps: evaluate at integer timesteps, as most schedulers do, instead of at exact ones.
        zero_snr: rescale the noise schedule to zero terminal signal-to-noise ratio (Lin et al. 2024).
        scheduler: how the network was trained, in place of the pipeline's scheduler: another scheduler, its
            configuration, or a folder or file that contains it.
        prediction: what the network predicts, in place of the prediction type in the scheduler's configuration.
        autocast: a factory of a mixed-precision context.
        clip: bounds of x0, applied at each evaluation by a sampler. By default those of the scheduler's configuration
            (`clip_sample`, `thresholding` and related keys); False for none, (low, high), or an `sds.Clip`.

    Raises:
        ModelError: an unsupported pipeline; the message lists the supported kinds.
        UsageError: arguments that do not apply to the kind.
    """
    classes = classes_of(pipe)
    kind = kind_of(classes, type(pipe).__name__)
    for unused in ("controlnet", "adapter"):
        if unused in classes:
            warn(
                f"the model of a {type(pipe).__name__} evaluates the denoising network alone; the {unused} is not used",
                ModelWarning,
            )
    common: dict[str, Any] = {
        "name": name,
        "revision": revision,
        "round_timesteps": round_timesteps,
        "autocast": autocast,
        "clip": clip,
    }
    trained = {"scheduler": scheduler, "prediction": prediction}
    given: dict[str, Any] = {
        "negative_prompt": negative_prompt,
        "embedded_guidance": embedded_guidance,
        "encode_options": encode_options,
    }
    check_text(kind, prompt, condition, given)
    if kind.model is None:
        return _pixels(pipe, (height, width), condition, null_condition, zero_snr, trained, common)
    if null_condition is not None:
        raise UsageError(f"null_condition applies to class-conditional pixel-space UNets, not to {kind.name}")
    return kind.model(
        pipe,
        height=height,
        width=width,
        condition=prompt if condition is None else condition,
        zero_snr=zero_snr,
        **trained,
        **given,
        **common,
    )


def check_text(kind: Kind, prompt: Any, condition: Any, given: Mapping[str, Any]) -> None:
    """Raise UsageError if a kind without text gets text options, or if both prompt and condition are given."""
    if prompt is not None:
        if not kind.text:
            raise UsageError(f"{kind.name} takes no prompt; pass condition= if it is conditional")
        if condition is not None:
            raise UsageError("prompt and condition are the same argument for a text-conditioned kind; pass one of them")
    if not kind.text and (invalid := [name for name, value in given.items() if value is not None]):
        raise UsageError(f"{kind.name}: {', '.join(invalid)} applies to text-conditioned kinds only")


def _pixels(
    pipe: Any,
    size: tuple[int | None, int | None],
    condition: Any,
    null: int | None,
    zero_snr: bool,
    trained: dict[str, Any],
    common: dict[str, Any],
) -> DiffusersModel:
    """Return the model of a pipeline around a pixel-space UNet."""
    unet = part(pipe, "unet")
    label = common["name"] or getattr(pipe, "name_or_path", None) or type(pipe).__name__
    height, width = size
    if (height is None) != (width is None):
        raise UsageError("pass both height and width, or neither")
    convention = checked_convention(trained_config(scheduler_config(pipe.scheduler), **trained), trained["prediction"])
    config = dict(unet.config)
    return DiffusersModel(
        unet,
        with_zero_snr(convention) if zero_snr else convention,
        shape=sample_shape(config, None if height is None or width is None else [height, width], Path(label)),
        num_classes=class_count(config, Path(label)),
        condition=condition,
        null_condition=null,
        **{**common, "name": label},
    )
