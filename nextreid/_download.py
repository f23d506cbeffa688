"""Files from the hub: asked for once, bounded in size; whatever goes wrong is one error with a hint."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_logger = logging.getLogger(__name__)

MOST_BYTES = 32 * 2**30
_SECONDS = 10
_HINT = "HF_ENDPOINT names a mirror, HF_HUB_OFFLINE=1 keeps from asking, cache_dir= names the cache"
# The HTTP library's errors are among the bases; which library that is depends on the client's version.
TRANSFER_ERRORS = cast(tuple[type[Exception], ...], (*HfHubHTTPError.__bases__, OSError))


def hub_answers() -> bool:
    """Whether the hub may be asked and answers. Its client would find out by many tries, for more than a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        return get_session().head(constants.ENDPOINT, timeout=_SECONDS).status_code < 500
    except TRANSFER_ERRORS as error:
        _logger.info("the hub does not answer: %s", first_line(error))
        return False


def fetch_file(repo: str, name: str, cache_dir: str | Path | None = None) -> Path:
    """Fetch one file of a hub repository, or find it in the cache; in place of a pickle, the safetensors beside it.

    Raises:
        FileNotFoundError: The repository or the file does not exist.
        ConnectionError: The hub cannot be reached, or broke off, and the cache does not have the file.
        ValueError: The repository's name is none, or the file is larger than `MOST_BYTES`.
    """
    stem, _, ending = name.rpartition(".")
    if ending != "safetensors":
        name = f"{stem.replace('pytorch_model', 'model')}.safetensors"
    offline = not hub_answers()
    with hub_errors(repo):
        if not offline:
            reject_large(repo, {name: MOST_BYTES})
        return Path(hf_hub_download(repo, name, cache_dir=cache_dir, local_files_only=offline, library_name="nextreid"))


def reject_large(repo: str, limits: Mapping[str, int], revision: str | None = None) -> None:
    """Raise ValueError if a file of a repository is larger than its limit in bytes, or has an odd label.

    A file that is missing passes.
    """
    for name, limit in limits.items():
        try:
            found = get_hf_file_metadata(hf_hub_url(repo, name, revision=revision), timeout=_SECONDS)
        except EntryNotFoundError:
            continue
        # The client names files in its cache by both.
        labels = (found.etag, found.commit_hash)
        if any(label and not re.fullmatch(r"[\w-]{1,128}", label) for label in labels):
            raise ValueError(f"hf-hub:{repo}: the hub's labels of {name} are none: {labels[0]!r}, {labels[1]!r}")
        size = found.size
        if size is not None and size > limit:
            raise ValueError(f"hf-hub:{repo}: {name} has {size} bytes, more than the {limit} that are fetched of it")


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turn what the hub's client raises about ``owner/name[@revision]`` into errors that say what to do."""
    name, _, revision = repo.partition("@")
    try:
        yield
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"hf-hub:{name} has no revision {revision or 'main'!r}") from error
    except RepositoryNotFoundError as error:
        message = f"there is no hub repository {name!r}, or it is private and no token is set ('hf auth login')"
        raise FileNotFoundError(message) from error
    except LocalEntryNotFoundError as error:
        message = f"hf-hub:{repo} is not in the cache and the hub cannot be asked ({_HINT})"
        raise ConnectionError(message) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"hf-hub:{repo} has no such file: {first_line(error)}") from error
    except (KeyError, TypeError, AttributeError, IndexError, AssertionError, json.JSONDecodeError) as error:
        raise ConnectionError(f"the hub's answer about {repo} makes no sense to its client: {error!r}") from error
    except TRANSFER_ERRORS as error:
        if getattr(error, "errno", None):  # of the disk
            raise
        raise ConnectionError(f"the download of hf-hub:{repo} broke off, ask again: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
