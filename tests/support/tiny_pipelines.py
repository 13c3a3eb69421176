"""Tiny, randomly initialised diffusers pipelines of every kind, built in memory without a download.

`BUILDERS` maps a name to a function that returns a new pipeline object; `CALL` maps the same name to keyword arguments
that run it. The networks are built once and shared: a test may replace `pipe.scheduler`, and takes `own(name)` where it
changes weights or their dtype. `run(name)` calls a pipeline and returns its output as a tensor.
Pictures are 16x16 with latents of 8x8, prompts are spelt in single letters, and everything is float32 on the CPU.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import string
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import diffusers
import torch
import transformers

PROMPT = "a red cat"
OTHER_PROMPT = "two blue dogs"
TOKENS = 16
WIDTH = 16
GAIN = 3**0.5

F = TypeVar("F", bound=Callable[..., Any])


# --- building blocks ---


def seeded(build: F) -> F:
    """Run a builder once, with a fixed seed, and leave the global random state as it was."""

    @functools.cache
    @functools.wraps(build)
    def run(*args: Any, **options: Any) -> Any:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet():
            torch.manual_seed(0)
            return build(*args, **options)

    return run  # type: ignore[return-value]


def alive(network: Any, gain: float = 1.0) -> Any:
    """Give a network's zero weights random values and return it, frozen and in evaluation mode.

    Adaptive layer norms, control nets and output layers start at zero, so that an untrained network ignores its
    condition, its time or even its input; a sampler's test on it could not fail. `gain` multiplies every matrix: torch
    draws them with a third of the variance that would keep the size of what passes through.
    """
    network.requires_grad_(False).eval()
    for weight in network.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.5 * (weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.2))
        if weight.ndim > 1:
            weight.mul_(gain)
    return network


def picture(channels: int = 3, seed: int = 0, size: int = 16) -> torch.Tensor:
    """One random picture with values in [0, 1]."""
    return torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(seed))


def mask() -> torch.Tensor:
    """An inpainting mask that repaints the right half."""
    return (torch.arange(16) >= 8).float().expand(1, 1, 16, 16)


def embedding(seed: int, *length: int) -> torch.Tensor:
    """A random embedding of one prompt or picture, or `length` of them in a row."""
    return torch.randn(1, *length, WIDTH, generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries from telling of a missing torchvision, a deprecated pipeline, a deprecated function of torch."""
    loggers = (transformers.logging, diffusers.utils.logging)
    verbosity = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, verbosity, strict=True):
            logger.set_verbosity(level)


def assemble(kind: str, **components: Any) -> Any:
    """A new, silent pipeline object of the diffusers class `kind`."""
    with quiet():
        pipe = getattr(diffusers, kind)(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def clip_tokenizer() -> Any:
    """CLIP's tokenizer with one token for every letter."""
    symbols = string.ascii_lowercase + string.digits + string.punctuation
    words = [*symbols, *(letter + "</w>" for letter in symbols), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)


@functools.cache
def t5_tokenizer() -> Any:
    """T5's tokenizer with one token for every letter."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -2.0)]
    letters = [(letter, -3.0) for letter in string.ascii_letters + string.digits + string.punctuation]
    return transformers.T5Tokenizer(vocab=[*special, *letters], extra_ids=0, model_max_length=TOKENS)


@seeded
def clip(pooled: bool = False, tokens: int = TOKENS) -> Any:
    """A CLIP text encoder, with the pooled projection if asked."""
    tokenizer = clip_tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=10.0,
    )
    return alive((transformers.CLIPTextModelWithProjection if pooled else transformers.CLIPTextModel)(config))


@seeded
def t5(kind: str = "T5", width: int = WIDTH) -> Any:
    """A T5 or UMT5 encoder."""
    config = getattr(transformers, kind + "Config")(
        vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2
    )
    return alive(getattr(transformers, kind + "EncoderModel")(config))


@functools.cache
def gemma_tokenizer() -> Any:
    """Gemma's tokenizer with one token for every letter."""
    symbols = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *symbols]
    vocabulary = {word: index for index, word in enumerate(words)}
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=64, add_bos_token=True)


@seeded
def gemma(kind: str = "Gemma2") -> Any:
    """A Gemma language model as a text encoder."""
    config = getattr(transformers, kind + "Config")(
        vocab_size=len(gemma_tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.3,
    )
    return alive(getattr(transformers, kind + "Model")(config))


@seeded
def vae(**options: Any) -> Any:
    """An autoencoder that halves the size of a picture."""
    shape: dict[str, Any] = {"latent_channels": 4, "sample_size": 16, "norm_num_groups": 4, "force_upcast": False}
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    blocks: dict[str, Any] = {"down_block_types": down, "up_block_types": up, "block_out_channels": (8, 16)}
    return alive(diffusers.AutoencoderKL(**{**shape, **blocks, **options}))


@seeded
def vq(**options: Any) -> Any:
    """A vector-quantised autoencoder that halves the size of a picture."""
    shape: dict[str, Any] = {"latent_channels": 3, "num_vq_embeddings": 32, "norm_num_groups": 4}
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    blocks: dict[str, Any] = {"down_block_types": down, "up_block_types": up, "block_out_channels": (8, 16)}
    return alive(diffusers.VQModel(**{**shape, **blocks, **options}))


CROSS_BLOCKS: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": WIDTH,
}


@seeded
def unet(**options: Any) -> Any:
    """A UNet with cross-attention over 8x8 latents."""
    up = ("UpBlock2D", "CrossAttnUpBlock2D")
    return alive(diffusers.UNet2DConditionModel(**{"sample_size": 8, **CROSS_BLOCKS, "up_block_types": up, **options}))


@seeded
def plain_unet(**options: Any) -> Any:
    """A UNet without text over 8x8 pictures of three channels."""
    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    shape: dict[str, Any] = {"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 4}
    return alive(diffusers.UNet2DModel(**{**shape, **blocks, "block_out_channels": (8, 16), **options}))


@seeded
def control_net() -> Any:
    """A ControlNet that fits `unet()`."""
    return alive(diffusers.ControlNetModel(**CROSS_BLOCKS, conditioning_embedding_out_channels=(4, 8)))


# --- Stable Diffusion 1 and 2 ---

SD_TABLE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def stable_diffusion_parts(prediction_type: str = "epsilon", **scheduler: Any) -> dict[str, Any]:
    """The components that every Stable Diffusion 1 or 2 pipeline has."""
    ddim: dict[str, Any] = {**SD_TABLE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "unet": unet(),
        "scheduler": diffusers.DDIMScheduler(**{**ddim, "prediction_type": prediction_type, **scheduler}),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def stable_diffusion(prediction_type: str = "epsilon", **scheduler: Any) -> Any:
    return assemble("StableDiffusionPipeline", **stable_diffusion_parts(prediction_type, **scheduler))


def stable_diffusion_img2img(prediction_type: str = "epsilon", **scheduler: Any) -> Any:
    return assemble("StableDiffusionImg2ImgPipeline", **stable_diffusion_parts(prediction_type, **scheduler))


def stable_diffusion_inpaint(channels: int = 4, prediction_type: str = "epsilon", **scheduler: Any) -> Any:
    """Inpainting with an ordinary UNet (4 channels) or with one that sees mask and masked picture (9)."""
    parts = stable_diffusion_parts(prediction_type, **scheduler)
    return assemble("StableDiffusionInpaintPipeline", **{**parts, "unet": unet(**only_unusual(channels))})


def only_unusual(channels: int) -> dict[str, int]:
    """The UNet option for `channels` inputs, empty for the usual four so that the cached network is found."""
    return {} if channels == 4 else {"in_channels": channels}


def stable_diffusion_controlnet(prediction_type: str = "epsilon", **scheduler: Any) -> Any:
    parts = stable_diffusion_parts(prediction_type, **scheduler)
    return assemble("StableDiffusionControlNetPipeline", **parts, controlnet=control_net())


def instruct_pix2pix(prediction_type: str = "epsilon", **scheduler: Any) -> Any:
    parts = stable_diffusion_parts(prediction_type, **scheduler)
    return assemble("StableDiffusionInstructPix2PixPipeline", **{**parts, "unet": unet(in_channels=8)})


def latent_consistency() -> Any:
    lcm = diffusers.LCMScheduler(**SD_TABLE, clip_sample=False, set_alpha_to_one=True, steps_offset=1)
    parts = {**stable_diffusion_parts(), "unet": unet(time_cond_proj_dim=8), "scheduler": lcm}
    return assemble("LatentConsistencyModelPipeline", **parts)


# --- Stable Diffusion XL ---


def sdxl_parts(channels: int = 4, **scheduler: Any) -> dict[str, Any]:
    """The components that every SDXL pipeline has."""
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    width = {"cross_attention_dim": 2 * WIDTH, "projection_class_embeddings_input_dim": 6 * 8 + WIDTH}
    euler: dict[str, Any] = {**SD_TABLE, "timestep_spacing": "leading", "steps_offset": 1}
    return {
        "vae": vae(scaling_factor=0.13025),
        "text_encoder": clip(),
        "text_encoder_2": clip(pooled=True),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "unet": unet(**added, **width, use_linear_projection=True, **only_unusual(channels)),
        "scheduler": diffusers.EulerDiscreteScheduler(**{**euler, **scheduler}),
        "add_watermarker": False,
    }


def sdxl(**scheduler: Any) -> Any:
    return assemble("StableDiffusionXLPipeline", **sdxl_parts(**scheduler))


def sdxl_img2img(**scheduler: Any) -> Any:
    return assemble("StableDiffusionXLImg2ImgPipeline", **sdxl_parts(**scheduler))


def sdxl_inpaint(channels: int = 4, **scheduler: Any) -> Any:
    return assemble("StableDiffusionXLInpaintPipeline", **sdxl_parts(channels, **scheduler))


def sdxl_edm(prediction_type: str = "epsilon", **scheduler: Any) -> Any:
    """SDXL with EDM's preconditioning, as Playground 2.5 has it."""
    config: dict[str, Any] = {"sigma_min": 0.002, "sigma_max": 80.0, "prediction_type": prediction_type}
    edm = diffusers.EDMEulerScheduler(**{**config, "sigma_data": 0.5, **scheduler})
    return assemble("StableDiffusionXLPipeline", **{**sdxl_parts(), "scheduler": edm})


# --- flow matching ---


def flow_scheduler(**options: Any) -> Any:
    """Diffusers' Euler scheduler of flow matching."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


@seeded
def sd3_transformer() -> Any:
    return alive(
        diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=8,
        )
    )


def sd3_parts(**scheduler: Any) -> dict[str, Any]:
    """The components that every Stable Diffusion 3 pipeline has."""
    return {
        "transformer": sd3_transformer(),
        "scheduler": flow_scheduler(**{"shift": 3.0, **scheduler}),
        "vae": flow_vae(),
        "text_encoder": clip(pooled=True),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip(pooled=True),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_3": t5(width=2 * WIDTH),
        "tokenizer_3": t5_tokenizer(),
    }


def flow_vae() -> Any:
    """An autoencoder whose latents are shifted as well as scaled."""
    return vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False)


def sd3(**scheduler: Any) -> Any:
    return assemble("StableDiffusion3Pipeline", **sd3_parts(**scheduler))


def sd3_img2img(**scheduler: Any) -> Any:
    return assemble("StableDiffusion3Img2ImgPipeline", **sd3_parts(**scheduler))


@seeded
def flux_transformer(guidance: bool) -> Any:
    return alive(
        diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guidance,
            axes_dims_rope=(2, 2, 4),
        ),
        GAIN,
    )


def flux_parts(guidance: bool = True, **scheduler: Any) -> dict[str, Any]:
    """The components of FLUX.1-dev (guidance embedded, dynamic shift) or -schnell (neither)."""
    shift: dict[str, Any] = {"shift": 3.0, "use_dynamic_shifting": True} if guidance else {"shift": 1.0}
    return {
        "scheduler": flow_scheduler(**{**shift, **scheduler}),
        "vae": flow_vae(),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5(),
        "tokenizer_2": t5_tokenizer(),
        "transformer": flux_transformer(guidance),
    }


def flux(guidance: bool = True, **scheduler: Any) -> Any:
    return assemble("FluxPipeline", **flux_parts(guidance, **scheduler))


def flux_img2img(guidance: bool = True, **scheduler: Any) -> Any:
    return assemble("FluxImg2ImgPipeline", **flux_parts(guidance, **scheduler))


# --- diffusion transformers with a table of betas ---

DIT_SHAPE: dict[str, Any] = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 8, "num_layers": 2}
DIT_HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8}
DIT_TABLE: dict[str, Any] = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}


@seeded
def pixart_transformer() -> Any:
    text: dict[str, Any] = {"caption_channels": WIDTH, "cross_attention_dim": WIDTH}
    return alive(
        diffusers.PixArtTransformer2DModel(**DIT_SHAPE, **DIT_HEADS, **text, use_additional_conditions=False), GAIN
    )


def pixart(version: str = "Alpha", **scheduler: Any) -> Any:
    """PixArt Alpha or Sigma; both predict a variance beside the noise."""
    return assemble(
        f"PixArt{version}Pipeline",
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=vae(),
        transformer=pixart_transformer(),
        scheduler=diffusers.DPMSolverMultistepScheduler(**{**DIT_TABLE, **scheduler}),
    )


@seeded
def dit_transformer() -> Any:
    # The pipeline asks for class 1000 where it wants no class.
    return alive(diffusers.DiTTransformer2DModel(**DIT_SHAPE, **DIT_HEADS, num_embeds_ada_norm=1000))


def dit(**scheduler: Any) -> Any:
    ddim = diffusers.DDIMScheduler(**{**DIT_TABLE, "clip_sample": False, **scheduler})
    return assemble("DiTPipeline", transformer=dit_transformer(), vae=vae(), scheduler=ddim)


# --- latent diffusion, Kandinsky, consistency models ---

LDM_TABLE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}


def ldm(**scheduler: Any) -> Any:
    """Unconditional latent diffusion over vector-quantised latents."""
    ddim = diffusers.DDIMScheduler(**{**LDM_TABLE, "clip_sample": False, **scheduler})
    return assemble("LDMPipeline", vqvae=vq(), unet=plain_unet(), scheduler=ddim)


def ldm_text(**scheduler: Any) -> Any:
    """Latent diffusion with text, which it pads to 77 tokens; CLIP stands in for its own BERT."""
    ddim = diffusers.DDIMScheduler(**{**LDM_TABLE, "clip_sample": False, **scheduler})
    parts: dict[str, Any] = {"vqvae": vae(), "bert": clip(tokens=77), "tokenizer": clip_tokenizer(), "unet": unet()}
    return assemble("LDMTextToImagePipeline", **parts, scheduler=ddim)


@seeded
def kandinsky_unet() -> Any:
    blocks: dict[str, Any] = {
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": 8,
    }
    image: dict[str, Any] = {"encoder_hid_dim": WIDTH, "encoder_hid_dim_type": "image_proj"}
    return alive(
        diffusers.UNet2DConditionModel(
            **{"sample_size": 8, **CROSS_BLOCKS, **blocks, **image}, out_channels=8, addition_embed_type="image"
        )
    )


def kandinsky(**scheduler: Any) -> Any:
    """Kandinsky 2.2's decoder, which has no text encoder and learns its variance."""
    table: dict[str, Any] = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
    learned: dict[str, Any] = {"variance_type": "learned_range", "clip_sample": False}
    return assemble(
        "KandinskyV22Pipeline",
        unet=kandinsky_unet(),
        scheduler=diffusers.DDPMScheduler(**{**table, **learned, **scheduler}),
        movq=vq(latent_channels=4, norm_type="spatial", block_out_channels=(32, 32), norm_num_groups=32),
    )


def consistency_model(**scheduler: Any) -> Any:
    """A consistency model of 8x8 pictures in ten classes."""
    network = plain_unet(num_class_embeds=10)
    cm = diffusers.CMStochasticIterativeScheduler(**scheduler)
    return assemble("ConsistencyModelPipeline", unet=network, scheduler=cm)


# --- sound ---


@seeded
def stable_audio_parts() -> dict[str, Any]:
    """The networks of Stable Audio: 16 latents of 4 channels for 64 samples at 8 Hz."""
    channels: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "cross_attention_input_dim": WIDTH}
    heads: dict[str, Any] = {"attention_head_dim": 8, "num_attention_heads": 2, "num_key_value_attention_heads": 1}
    wave: dict[str, Any] = {"downsampling_ratios": [2, 2], "channel_multiples": [1, 2], "sampling_rate": 8}
    number: dict[str, Any] = {"min_value": 0, "max_value": 8}
    size: dict[str, Any] = {"sample_size": 16, "num_layers": 1, "time_proj_dim": 8, "cross_attention_dim": WIDTH}
    return {
        "vae": alive(
            diffusers.AutoencoderOobleck(
                encoder_hidden_size=8, decoder_channels=8, decoder_input_channels=4, audio_channels=2, **wave
            )
        ),
        "projection_model": alive(
            diffusers.StableAudioProjectionModel(text_encoder_dim=WIDTH, conditioning_dim=WIDTH, **number)
        ),
        "transformer": alive(
            diffusers.StableAudioDiTModel(**size, **channels, **heads, global_states_input_dim=2 * WIDTH), GAIN
        ),
    }


def stable_audio(**scheduler: Any) -> Any:
    """Stable Audio with EDM's noise levels and v-prediction, by a scheduler that needs no torchsde."""
    config: dict[str, Any] = {"sigma_min": 0.3, "sigma_max": 500.0, "sigma_data": 1.0, "sigma_schedule": "exponential"}
    edm = diffusers.EDMDPMSolverMultistepScheduler(**{**config, "prediction_type": "v_prediction", **scheduler})
    text: dict[str, Any] = {"text_encoder": t5(), "tokenizer": t5_tokenizer()}
    return assemble("StableAudioPipeline", **stable_audio_parts(), **text, scheduler=edm)


@seeded
def clap() -> Any:
    """The text half of CLAP, whose pooled embedding is AudioLDM's condition."""
    tokenizer = clip_tokenizer()
    size: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "projection_dim": WIDTH}
    config = transformers.ClapTextConfig(
        vocab_size=len(tokenizer),
        **size,
        num_hidden_layers=1,
        num_attention_heads=2,
        # As in RoBERTa, positions are counted from the padding token's number.
        max_position_embeddings=tokenizer.pad_token_id + 1 + TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=10.0,
    )
    return alive(transformers.ClapTextModelWithProjection(config))


@seeded
def vocoder() -> Any:
    """A vocoder from 16 mel bins to 2 samples each at 8 Hz."""
    layers: dict[str, Any] = {"upsample_rates": [2], "upsample_kernel_sizes": [4], "upsample_initial_channel": 8}
    blocks: dict[str, Any] = {"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]], "normalize_before": False}
    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=16, sampling_rate=8, initializer_range=0.3, **layers, **blocks
    )
    return alive(transformers.SpeechT5HifiGan(config))


def audio_ldm(**scheduler: Any) -> Any:
    """AudioLDM: a UNet over mel spectrograms, conditioned on one embedding."""
    table: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}
    condition: dict[str, Any] = {"class_embed_type": "simple_projection", "class_embeddings_concat": True}
    network = unet(**condition, projection_class_embeddings_input_dim=WIDTH, cross_attention_dim=(8, 16))
    return assemble(
        "AudioLDMPipeline",
        vae=vae(in_channels=1, out_channels=1),
        text_encoder=clap(),
        tokenizer=clip_tokenizer(),
        unet=network,
        scheduler=diffusers.DDIMScheduler(**{**table, "clip_sample": False, **scheduler}),
        vocoder=vocoder(),
    )


# --- more flow matching ---


@seeded
def aura_transformer() -> Any:
    return alive(
        diffusers.AuraFlowTransformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            **DIT_HEADS,
            joint_attention_dim=WIDTH,
            caption_projection_dim=WIDTH,
            pos_embed_max_size=16,
        ),
        GAIN,
    )


def aura_flow(**scheduler: Any) -> Any:
    return assemble(
        "AuraFlowPipeline",
        tokenizer=t5_tokenizer(),
        text_encoder=t5("UMT5"),
        vae=vae(),
        transformer=aura_transformer(),
        scheduler=flow_scheduler(**{"shift": 1.73, **scheduler}),
    )


@seeded
def lumina_transformer() -> Any:
    return alive(
        diffusers.LuminaNextDiT2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=WIDTH,
            num_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            cross_attention_dim=WIDTH,
        ),
        GAIN,
    )


def lumina(**scheduler: Any) -> Any:
    """Lumina-Next: the network's time runs from noise at 0 to data at 1, and its velocity points to the data."""
    return assemble(
        "LuminaPipeline",
        transformer=lumina_transformer(),
        scheduler=flow_scheduler(**scheduler),
        vae=vae(),
        text_encoder=gemma("Gemma"),
        tokenizer=gemma_tokenizer(),
    )


@seeded
def lumina2_transformer() -> Any:
    return alive(
        diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=WIDTH,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(64, 16, 16),
            cap_feat_dim=WIDTH,
        ),
        GAIN,
    )


def lumina2(**scheduler: Any) -> Any:
    """Lumina 2: time and velocity reversed, as in Lumina-Next."""
    return assemble(
        "Lumina2Pipeline",
        transformer=lumina2_transformer(),
        scheduler=flow_scheduler(**{"shift": 6.0, **scheduler}),
        vae=flow_vae(),
        text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
    )


@seeded
def sana_parts() -> dict[str, Any]:
    """The networks of Sana: a linear-attention transformer and a deep-compression autoencoder."""
    blocks: dict[str, Any] = {"encoder_block_out_channels": (8, 8, 16), "decoder_block_out_channels": (8, 8, 16)}
    depth: dict[str, Any] = {"encoder_layers_per_block": (1,) * 3, "decoder_layers_per_block": (1,) * 3}
    scales: dict[str, Any] = {"encoder_qkv_multiscales": ((),) * 3, "decoder_qkv_multiscales": ((),) * 3}
    cross: dict[str, Any] = {
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": WIDTH,
    }
    channels: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "caption_channels": WIDTH, "sample_size": 8}
    return {
        "vae": alive(diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=2, **blocks, **depth, **scales)),
        "transformer": alive(diffusers.SanaTransformer2DModel(**channels, **DIT_HEADS, **cross, num_layers=1)),
    }


def sana(**scheduler: Any) -> Any:
    """Sana, whose flow model comes with diffusers' DPM-Solver in flow mode."""
    flow: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    solver = diffusers.DPMSolverMultistepScheduler(**{**flow, **scheduler})
    text: dict[str, Any] = {"tokenizer": gemma_tokenizer(), "text_encoder": gemma()}
    return assemble("SanaPipeline", **sana_parts(), **text, scheduler=solver)


@seeded
def qwen_parts() -> dict[str, Any]:
    """The networks of Qwen-Image without its language model, whose output a call passes in."""
    latents: dict[str, Any] = {"latents_mean": [0.1, -0.1, 0.2, 0.0], "latents_std": [1.0, 1.5, 2.0, 2.5]}
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, **DIT_HEADS, joint_attention_dim=WIDTH, axes_dims_rope=(2, 2, 4)
    )
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False], **latents
    )
    return {"transformer": alive(transformer, GAIN), "vae": alive(autoencoder)}


def qwen_image(**scheduler: Any) -> Any:
    shift: dict[str, Any] = {"use_dynamic_shifting": True, "max_shift": 0.9, "shift_terminal": 0.02}
    absent: dict[str, Any] = {"text_encoder": None, "tokenizer": None}
    flow = flow_scheduler(**{**shift, **scheduler})
    return assemble("QwenImagePipeline", **qwen_parts(), **absent, scheduler=flow)


# --- video ---


@seeded
def mochi_parts() -> dict[str, Any]:
    """The networks of Mochi: 2 frames of 8x8 latents for 7 frames of 64x64."""
    encoder: dict[str, Any] = {"encoder_block_out_channels": (32,) * 4, "decoder_block_out_channels": (32,) * 4}
    layers: dict[str, Any] = {"layers_per_block": (1,) * 5, "add_attention_block": (False,) * 5}
    text: dict[str, Any] = {"pooled_projection_dim": WIDTH, "text_embed_dim": WIDTH, "max_sequence_length": TOKENS}
    return {
        "vae": alive(diffusers.AutoencoderKLMochi(**encoder, **layers)),
        "transformer": alive(
            diffusers.MochiTransformer3DModel(**DIT_HEADS, **text, num_layers=2, time_embed_dim=8), GAIN
        ),
    }


def mochi(**scheduler: Any) -> Any:
    """Mochi: its scheduler's sigmas run upwards (`invert_sigmas`) and its velocity points to the data."""
    flow = flow_scheduler(**{"invert_sigmas": True, **scheduler})
    text: dict[str, Any] = {"text_encoder": t5(), "tokenizer": t5_tokenizer()}
    return assemble("MochiPipeline", **mochi_parts(), **text, scheduler=flow)


@seeded
def wan_parts() -> dict[str, Any]:
    """The networks of Wan: 2 frames of 8x8 latents for 3 frames of 16x16."""
    latents: dict[str, Any] = {"latents_mean": [0.1, -0.1, 0.2, 0.0], "latents_std": [1.0, 1.5, 2.0, 2.5]}
    scale: dict[str, Any] = {"scale_factor_temporal": 2, "scale_factor_spatial": 2, "temperal_downsample": [True]}
    text: dict[str, Any] = {"text_dim": WIDTH, "freq_dim": 8, "ffn_dim": WIDTH, "num_layers": 1, "rope_max_seq_len": 16}
    return {
        "vae": alive(
            diffusers.AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, **scale, **latents)
        ),
        "transformer": alive(diffusers.WanTransformer3DModel(**DIT_HEADS, **text, in_channels=4, out_channels=4), GAIN),
    }


def wan(**scheduler: Any) -> Any:
    """Wan 2.1, whose flow model comes with diffusers' UniPC in flow mode."""
    flow: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    unipc = diffusers.UniPCMultistepScheduler(**{**flow, **scheduler})
    text: dict[str, Any] = {"text_encoder": t5("UMT5"), "tokenizer": t5_tokenizer()}
    return assemble("WanPipeline", **wan_parts(), **text, scheduler=unipc)


@seeded
def ltx_parts() -> dict[str, Any]:
    """The networks of LTX-Video: 2 frames of 8x8 latents for 9 frames of 256x256."""
    blocks: dict[str, Any] = {"block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    layers: dict[str, Any] = {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5}
    text: dict[str, Any] = {"cross_attention_dim": WIDTH, "caption_channels": WIDTH, "num_layers": 1}
    transformer = diffusers.LTXVideoTransformer3DModel(**DIT_HEADS, **text, in_channels=4, out_channels=4)
    return {
        "vae": alive(diffusers.AutoencoderKLLTXVideo(**blocks, **layers, latent_channels=4)),
        "transformer": alive(transformer, GAIN),
    }


def ltx(**scheduler: Any) -> Any:
    """LTX-Video, whose latents are packed and whose shift depends on their number."""
    shift: dict[str, Any] = {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1}
    text: dict[str, Any] = {"text_encoder": t5(), "tokenizer": t5_tokenizer()}
    flow = flow_scheduler(**{**shift, "base_image_seq_len": 1024, **scheduler})
    return assemble("LTXPipeline", **ltx_parts(), **text, scheduler=flow)


# --- the registry ---

BUILDERS: dict[str, Callable[[], Any]] = {
    "stable-diffusion": stable_diffusion,
    "stable-diffusion-v": functools.partial(stable_diffusion, "v_prediction"),
    "stable-diffusion-img2img": stable_diffusion_img2img,
    "stable-diffusion-inpaint": stable_diffusion_inpaint,
    "stable-diffusion-inpaint-9": functools.partial(stable_diffusion_inpaint, 9),
    "stable-diffusion-controlnet": stable_diffusion_controlnet,
    "instruct-pix2pix": instruct_pix2pix,
    "latent-consistency": latent_consistency,
    "sdxl": sdxl,
    "sdxl-img2img": sdxl_img2img,
    "sdxl-inpaint": sdxl_inpaint,
    "sdxl-inpaint-9": functools.partial(sdxl_inpaint, 9),
    "sdxl-edm": sdxl_edm,
    "sd3": sd3,
    "sd3-img2img": sd3_img2img,
    "flux": flux,
    "flux-schnell": functools.partial(flux, guidance=False),
    "flux-img2img": flux_img2img,
    "pixart-alpha": pixart,
    "pixart-sigma": functools.partial(pixart, "Sigma"),
    "dit": dit,
    "ldm": ldm,
    "ldm-text": ldm_text,
    "kandinsky": kandinsky,
    "consistency-model": consistency_model,
    "stable-audio": stable_audio,
    "audio-ldm": audio_ldm,
    "aura-flow": aura_flow,
    "lumina": lumina,
    "lumina2": lumina2,
    "sana": sana,
    "qwen-image": qwen_image,
    "mochi": mochi,
    "wan": wan,
    "ltx": ltx,
}

ONE_OF_EACH = ("stable-diffusion", "sdxl", "sd3", "flux", "pixart-alpha", "dit", "ldm", "consistency-model")
ONE_OF_EACH += ("stable-audio", "lumina2", "wan", "ltx")
"""Pipelines of different networks and inputs, for the default suite where many are expensive."""

TEXT: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 3, "output_type": "latent"}
SIZED: dict[str, Any] = {**TEXT, "height": 16, "width": 16}
EMBEDDED: dict[str, Any] = {name: value for name, value in SIZED.items() if name != "prompt"}
IMAGE: dict[str, Any] = {**TEXT, "image": picture(), "strength": 0.7, "num_inference_steps": 4}
INPAINT: dict[str, Any] = {**SIZED, **IMAGE, "mask_image": mask()}
PIXART: dict[str, Any] = {
    **SIZED,
    "clean_caption": False,
    "use_resolution_binning": False,
    "max_sequence_length": TOKENS,
}
QWEN: dict[str, Any] = {
    "prompt_embeds": embedding(1, TOKENS),
    "prompt_embeds_mask": torch.ones(1, TOKENS, dtype=torch.long),
    "negative_prompt_embeds": embedding(2, TOKENS),
    "negative_prompt_embeds_mask": torch.ones(1, TOKENS, dtype=torch.long),
}

CALL: dict[str, dict[str, Any]] = {
    "stable-diffusion": SIZED,
    "stable-diffusion-v": SIZED,
    "stable-diffusion-img2img": IMAGE,
    "stable-diffusion-inpaint": INPAINT,
    "stable-diffusion-inpaint-9": INPAINT,
    "stable-diffusion-controlnet": {**SIZED, "image": picture(seed=1)},
    "instruct-pix2pix": {**TEXT, "image": picture()},
    "latent-consistency": SIZED,
    "sdxl": SIZED,
    "sdxl-img2img": IMAGE,
    "sdxl-inpaint": INPAINT,
    "sdxl-inpaint-9": INPAINT,
    "sdxl-edm": SIZED,
    "sd3": {**SIZED, "max_sequence_length": TOKENS},
    "sd3-img2img": {**IMAGE, "height": 16, "width": 16, "max_sequence_length": TOKENS},
    "flux": {**SIZED, "max_sequence_length": TOKENS},
    "flux-schnell": {**SIZED, "max_sequence_length": TOKENS},
    "flux-img2img": {**IMAGE, "height": 16, "width": 16, "max_sequence_length": TOKENS},
    "pixart-alpha": PIXART,
    "pixart-sigma": PIXART,
    "dit": {"class_labels": [3], "num_inference_steps": 3, "output_type": "np"},
    "ldm": {"num_inference_steps": 3, "output_type": "np"},
    "ldm-text": {**TEXT, "height": 64, "width": 64, "guidance_scale": 3.0, "output_type": "np"},
    "kandinsky": {**EMBEDDED, "image_embeds": embedding(1), "negative_image_embeds": embedding(2)},
    "consistency-model": {"class_labels": [3], "num_inference_steps": 3, "output_type": "np"},
    "stable-audio": {**TEXT, "audio_end_in_s": 8.0},
    "audio-ldm": {"prompt": PROMPT, "num_inference_steps": 3, "audio_length_in_s": 4.0, "output_type": "np"},
    "aura-flow": {**SIZED, "max_sequence_length": TOKENS},
    "lumina": {**TEXT, "height": 64, "width": 64, "clean_caption": False},
    "lumina2": {**TEXT, "height": 64, "width": 64, "system_prompt": "", "max_sequence_length": 48},
    "sana": {
        **TEXT,
        "height": 32,
        "width": 32,
        "use_resolution_binning": False,
        "complex_human_instruction": None,
        "max_sequence_length": TOKENS,
    },
    "qwen-image": {**EMBEDDED, **QWEN},
    "mochi": {**TEXT, "height": 64, "width": 64, "num_frames": 7, "max_sequence_length": TOKENS},
    "wan": {**SIZED, "num_frames": 3, "max_sequence_length": TOKENS},
    "ltx": {**TEXT, "height": 256, "width": 256, "num_frames": 9, "max_sequence_length": TOKENS},
}

# What makes a call ask for something else, for those that have no prompt.
OTHER: dict[str, dict[str, Any]] = {
    "dit": {"class_labels": [700]},
    "ldm": {},
    "kandinsky": {"image_embeds": embedding(3)},
    "consistency-model": {"class_labels": [7]},
    "qwen-image": {"prompt_embeds": embedding(3, TOKENS)},
}


def own(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A new pipeline `name` whose networks are shared with no other, in `dtype`."""
    pipe = copy.deepcopy(BUILDERS[name]())
    with quiet():
        return pipe.to(dtype)


def run(name: str, pipe: Any = None, *, seed: int = 0, **changes: Any) -> torch.Tensor:
    """One batch from `pipe`, or from a new pipeline `name`, called with `CALL[name]` and `changes`, as a tensor."""
    pipe = BUILDERS[name]() if pipe is None else pipe
    output = pipe(**{**CALL[name], "generator": torch.Generator().manual_seed(seed), **changes})
    return torch.as_tensor(next(iter(output.values())))
