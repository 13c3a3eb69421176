"""Fetching model folders from the Hugging Face Hub, with errors in one line each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ModelError
from .diffusers import find_parts
from .pipelines.loading import Layout, check_configs, layout_of, weight_files, weight_names

CONFIGS = ("model_index.json", "config.json", "scheduler_config.json")
VOCABULARIES = (
    "*config.json",
    "tokenizer.json",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "*tokens_map.json",
    "*.model",
)
WEIGHTS = "diffusion_pytorch_model"


def fetch(
    repo: str,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> tuple[Path, str]:
    """Download what a pipeline or a UNet needs (or find it in the cache) and say which commit it is.

    Configurations come first, so that what is not supported is refused before its weights are downloaded. Broken
    connections are taken up again by huggingface_hub; a complete cache works offline.

    Returns:
        The local folder and the commit hash.

    Raises:
        ModelError: no network, no such repository, revision or file, or no permission, in one line.
    """
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    configs = [prefix + place + name for place in ("", "unet/", "scheduler/") for name in CONFIGS]
    if subfolder:  # a UNet alone, whose scheduler lies beside its folder
        configs.append((PurePosixPath(prefix).parent / "scheduler" / "scheduler_config.json").as_posix())
    stem = f"{WEIGHTS}.{variant}" if variant else WEIGHTS
    endings = ["safetensors", "bin"] if allow_pickle else ["safetensors"]
    access: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    folder = _snapshot(repo, configs, revision=revision, **access)
    label, place = f"{repo}@{revision or 'main'}", folder / prefix if prefix else folder
    if not place.is_dir():
        where = f"the folder {subfolder!r}" if subfolder else "the repository"
        raise ModelError(f"{label}: no model_index.json or config.json in {where}")
    layout = layout_of(place)
    if layout is not None:
        _fetch_parts(repo, folder, place, layout, variant, endings, access)
        return place, folder.name
    unet, _ = find_parts(place)
    for ending in endings:
        names = (f"{stem}.{ending}", f"{stem}-*-of-*.{ending}", f"{stem}.{ending}.index.json")
        inside = unet.relative_to(folder).as_posix()
        patterns = [name if inside == "." else f"{inside}/{name}" for name in names]
        _snapshot(repo, patterns, revision=folder.name, **access)
        if any(unet.glob(f"{stem}*.{ending}")):
            return place, folder.name
    raise ModelError(f"{label}: no weights {stem}.safetensors{_advice(allow_pickle)}")


def _advice(allow_pickle: bool) -> str:
    pickled = "pickled ones, which can run code when opened, are only read with allow_pickle=True"
    return "" if allow_pickle else f"; {pickled}"


def _fetch_parts(
    repo: str,
    folder: Path,
    place: Path,
    layout: Layout,
    variant: str | None,
    endings: Sequence[str],
    access: dict[str, Any],
) -> None:
    """Fetch a pipeline's components: configurations and vocabularies first, then weights where there are none yet."""

    def fetch_names(parts: Sequence[str], names: Sequence[str]) -> None:
        inside = [(place / part).relative_to(folder).as_posix() for part in parts]
        _snapshot(repo, [f"{part}/{name}" for part in inside for name in names], revision=folder.name, **access)

    fetch_names(list(layout.classes), VOCABULARIES)
    check_configs(place, layout)
    missing = layout.weighted
    for ending in endings:
        for chosen in dict.fromkeys((variant, None)):
            if missing:
                fetch_names(missing, weight_names(chosen, ending))
                missing = [part for part in missing if not weight_files(place / part, chosen, ending)]
    if missing:
        what = f"no weights in safetensors for {', '.join(missing)}"
        raise ModelError(f"{repo}@{folder.name[:12]}: {what}{_advice('bin' in endings)}")


def _snapshot(repo: str, patterns: Sequence[str], **options: Any) -> Path:
    from huggingface_hub import errors, snapshot_download

    revision = options["revision"] or "main"
    try:
        return Path(snapshot_download(repo, allow_patterns=list(patterns), **options))
    except errors.HFValidationError:
        raise ModelError(f"{repo!r} is neither a registered model, a local folder nor a Hub id (owner/name)") from None
    except errors.GatedRepoError:
        raise ModelError(
            f"{repo}: the repository is gated; accept its terms on the Hub, then pass token=... or run `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"{repo}: no such repository on the Hub, or it is private (then pass token=... or run `hf auth login`)"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{repo}: no revision {revision!r}; give a branch, a tag or a commit hash") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = "the Hub cannot be reached"
        if options["local_files_only"] or _offline():
            why = "offline mode is on"
        elif isinstance(error.__cause__, errors.HfHubHTTPError):
            why = _status(error.__cause__)
        raise ModelError(f"{repo}@{revision}: not complete in the local cache, and {why}") from None
    except errors.HfHubHTTPError as error:
        raise ModelError(f"{repo}@{revision}: {_status(error)}") from None
    except Exception as error:
        # huggingface_hub has changed its HTTP library twice; its errors are known by their package.
        if type(error).__module__.split(".")[0].rstrip("2") in ("httpx", "httpcore", "requests", "urllib3"):
            message = f"the download broke off ({type(error).__name__}); run it again, finished files are kept"
            raise ModelError(f"{repo}@{revision}: {message}") from None
        if isinstance(error, OSError):
            text = " ".join(str(error.strerror or error).split())
            raise ModelError(f"{repo}@{revision}: {text}") from None
        raise


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _status(error: Any) -> str:
    status = getattr(error.response, "status_code", "?")
    if status == 401:
        return "the Hub does not accept the token (HTTP status 401); run `hf auth login` again or pass another"
    return f"the Hub answered with HTTP status {status}"
