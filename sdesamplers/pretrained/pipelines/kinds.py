"""Which model a pipeline becomes: its components' class names decide, so that variants of a pipeline are one kind."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checks import warn
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
"""What DiT's and PixArt's transformers were once called; diffusers converts them."""


def transformer(*names: str) -> dict[str, tuple[str, ...]]:
    """A transformer of one of these classes."""
    return {"transformer": names}


@dataclass(frozen=True)
class Kind:
    """A kind of pipeline.

    Attributes:
        name: for messages.
        model: what it becomes; None for the UNets of pixels that `DiffusersModel` runs.
        parts: component names and the classes that each may have; none named, and it may have any.
        without: components that would make it another kind.
        text: whether it is conditioned on prompts.
    """

    name: str
    model: type[PipelineModel] | None
    parts: Mapping[str, tuple[str, ...]]
    without: tuple[str, ...] = ()
    text: bool = True

    def fits(self, classes: Mapping[str, str]) -> bool:
        """Whether components of these classes are of this kind."""
        has = all(key in classes and (not named or classes[key] in named) for key, named in self.parts.items())
        return has and not any(key in classes for key in self.without)


VIDEO = ("motion_adapter",)
"""Components that make a network of pictures one of films."""

UNET, PLAIN = {"unet": ("UNet2DConditionModel",)}, {"unet": ("UNet2DModel",)}
KINDS = (
    Kind(
        "UNets of pixels (DDPM, DDIM, PNDM, score-SDE-VE, consistency models)",
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
    """The kind of a pipeline.

    Args:
        classes: component names and their class names, without the ones that are absent.
        label: what it is called in the message.

    Raises:
        ModelError: none fits; what is supported is listed.
    """
    for kind in KINDS:
        if kind.fits(classes):
            refuse_autoencoder(kind, classes, label)
            return kind
    found = ", ".join(f"{key}: {value}" for key, value in classes.items()) or "no components"
    raise ModelError(f"{label} ({found}) is not supported as a model; supported are {supported()}")


def refuse_autoencoder(kind: Kind, classes: Mapping[str, str], label: str) -> None:
    """Raise ModelError where a kind's latents would be decoded by another of diffusers' autoencoders than it knows."""
    import diffusers  # diffusers takes seconds to import

    key = "" if kind.model is None else kind.model.AUTOENCODER
    found = classes.get(key)
    if kind.model is None or found is None or found in kind.model.AUTOENCODERS or not hasattr(diffusers, found):
        return
    known = " or ".join(kind.model.AUTOENCODERS)
    raise ModelError(
        f"{label} has a {found} for its {key} is not supported as a model: {kind.name} decodes with {known}"
    )


def supported() -> str:
    """The kinds, in words."""
    return "; ".join(kind.name for kind in KINDS)


def classes_of(pipe: Any) -> dict[str, str]:
    """The class names of a loaded pipeline's components."""
    components = getattr(pipe, "components", None)
    if not isinstance(components, dict):
        raise UsageError(f"from_pipeline takes a loaded diffusers pipeline, not {type(pipe).__name__}")
    return {key: type(part(pipe, key)).__name__ for key, value in components.items() if value is not None}


@public
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
    """A loaded diffusers pipeline as a `Model`: its network in latent space, with prompts or labels as conditions.

        model = sds.from_pipeline(pipe, height=512, width=512)
        result = sds.sample(model, "dpmpp-2m", steps=20, condition="a cat", guidance_scale=7.5)
        result.images

    Guidance is `sample`'s (`guidance_scale`), or `Guided`'s around the model, and not the pipeline's.

    Args:
        pipe: any pipeline whose components are of a supported kind; its own scheduler or one of ours says how the
            network was trained.
        height, width: of the pictures, in pixels; by default what the network was trained at.
        prompt: the condition where a call gives none, for kinds with text: one for all samples or one each.
        condition: the same for any kind: labels (DiT) or image embeddings (Kandinsky).
        negative_prompt: what guidance leads away from; the pipeline's own idea of nothing by default.
        embedded_guidance: the scale that a network distilled with guidance is told (FLUX.1-dev, LCM); by default that
            of the pipeline's call. It is part of the network's input, and no second evaluation.
        encode_options: more arguments of the pipeline's `encode_prompt`, such as clip_skip or max_sequence_length.
        name, revision: for records.
        null_condition: for class-conditional UNets of pixels, the label that means "no label".
        round_timesteps: ask at whole timesteps, as most schedulers do, instead of at the exact ones.
        zero_snr: rescale its table to zero terminal signal-to-noise ratio (Lin et al. 2024).
        scheduler: how the network was trained, in place of the pipeline's scheduler: another one, its configuration, or
            a folder or file that holds it.
        prediction: what the network predicts, in place of what the scheduler's configuration says.
        autocast: a factory of a mixed-precision context.
        clip: bounds of x0, which samplers meet at each evaluation. By default what the scheduler's configuration says
            (`clip_sample`, `thresholding` and kin), False for none, (low, high), or an `sds.Clip`.

    Raises:
        ModelError: a pipeline of another kind; the message lists what is supported.
        UsageError: arguments that do not fit the kind.
    """
    classes = classes_of(pipe)
    kind = kind_of(classes, type(pipe).__name__)
    for unasked in ("controlnet", "adapter"):
        if unasked in classes:
            text = (
                f"as a model, {type(pipe).__name__} is its network under a condition alone; the {unasked} is not asked"
            )
            warn(text)
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
        raise UsageError(f"null_condition applies to class-conditional UNets of pixels, not to {kind.name}")
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
    """Raise UsageError where text is given to a kind that takes none, or twice."""
    if prompt is not None:
        if not kind.text:
            raise UsageError(f"{kind.name} takes no prompt; give condition= where it has one")
        if condition is not None:
            raise UsageError("prompt and condition are the same thing for a kind with text; give one of them")
    if not kind.text and (unfit := [word for word, value in given.items() if value is not None]):
        raise UsageError(f"{kind.name}: {', '.join(unfit)} applies to kinds with text")


def _pixels(
    pipe: Any,
    size: tuple[int | None, int | None],
    condition: Any,
    null: int | None,
    zero_snr: bool,
    trained: dict[str, Any],
    common: dict[str, Any],
) -> DiffusersModel:
    """A pipeline around a UNet of pixels."""
    unet = part(pipe, "unet")
    label = common["name"] or getattr(pipe, "name_or_path", None) or type(pipe).__name__
    height, width = size
    if (height is None) != (width is None):
        raise UsageError("give both height and width, or neither")
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
