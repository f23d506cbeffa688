"""Checkpoints for others: a folder with its proof and its model card, on disk and on the hub."""

import tempfile
from pathlib import Path

from huggingface_hub import HfApi

from ..version import __version__
from ._base import ReIDModel
from ._card import model_card
from ._golden import write_golden
from ._hub import CARD, CONFIG, GOLDEN, SUMS, WEIGHTS, load_config, sha256, write_checkpoint


def save_pretrained(model: ReIDModel, folder: str | Path) -> Path:
    """Write a model as a checkpoint folder with its proof, in one step.

    Beside ``config.json`` and ``model.safetensors`` (see `save_model`) the folder gets ``golden.safetensors``, the
    embedding of a fixed input, computed by the model as it loads from this very folder; ``SHA256SUMS`` of these three
    files, which every load checks (as ``sha256sum -c`` does); and ``README.md``, the model card, which states what
    ``model.pretrained_cfg`` states and may be edited. `verify_checkpoint` compares them.

    Args:
        model: A model made by `create_model`, on any device; it is left as it is.
        folder: Where to write; an existing checkpoint folder there is replaced.

    Returns:
        The folder.

    Raises:
        ValueError: If the model was not built by an entrypoint, or ``folder`` exists and is not a checkpoint.
        OSError: If the disk is full or the place cannot be written; what was there before stays as it was.
    """

    def add_proof(fresh: Path) -> None:
        write_golden(fresh)
        lines = [f"{sha256(fresh / name)}  {name}\n" for name in (CONFIG, GOLDEN, WEIGHTS)]
        (fresh / SUMS).write_text("".join(lines))
        (fresh / CARD).write_text(model_card(load_config(fresh)), encoding="utf-8")

    return write_checkpoint(model, folder, add_proof)


def push_to_hub(
    model: ReIDModel,
    repo: str,
    *,
    commit_message: str = "Add model",
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
) -> str:
    """Put a model's checkpoint folder on the hub, in one commit; see `save_pretrained` for what it holds.

    The repository is made if there is none. A model card that it has already is kept.

    Args:
        model: A model made by `create_model`.
        repo: ``owner/name``.
        commit_message: First line of the commit.
        revision: Branch to commit to; None for the main one.
        private: Whether a new repository is private; None for the owner's default.
        create_pr: Open a pull request instead of committing.
        token: See `huggingface_hub`; None for the one that ``hf auth login`` keeps.

    Returns:
        Address of the commit.

    Raises:
        ValueError: If the model was not built by an entrypoint, or ``repo`` is no repository's name.
        OSError: If the hub rejects it or cannot be reached.
    """
    api = HfApi(token=token, library_name="nextreid", library_version=__version__)
    with tempfile.TemporaryDirectory() as home:
        folder = save_pretrained(model, Path(home) / "model")
        api.create_repo(repo, private=private, exist_ok=True)
        kept = [CARD] if api.file_exists(repo, CARD, revision=revision) else None
        try:
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
                ignore_patterns=kept,
            )
        except RuntimeError as error:  # the client's word for a large file that broke off
            raise OSError(f"the hub repository {repo} took no file: {error} Push again") from error
    return str(commit.pr_url or commit.commit_url)
