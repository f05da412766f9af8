"""Models of the Hugging Face hub, by the name of their repository. No JAX here."""

from __future__ import annotations

from pathlib import Path

from c3jax.types import UserError

# What is read of them: no weights of other programs, no pictures.
_FILES = ["config.json", "generation_config.json", "model.safetensors", "model-*.safetensors"]
_FILES += ["model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
_FILES += ["chat_template.jinja"]


def list_files(folder: Path) -> list[Path]:
    """The files of a model's folder that are read."""
    return sorted(path for path in folder.iterdir() if any(path.match(pattern) for pattern in _FILES))


def fetch_folder(name: str, revision: str, has_weights: bool = True) -> Path:
    """The folder of a repository in the hub's local cache, fetched where it is not there yet.

    Args:
      name: the repository, say Qwen/Qwen2.5-3B-Instruct.
      revision: branch, tag or commit.
      has_weights: False leaves out its tensors, where only its sizes and its tokenizer are asked for.

    Raises:
      UserError: in one sentence, where there is no such repository or revision, it may not be read, or neither the
        cache nor the network has it.
    """
    import huggingface_hub
    from huggingface_hub import errors

    patterns = _FILES if has_weights else [pattern for pattern in _FILES if "safetensors" not in pattern]
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except errors.HFValidationError:
        raise UserError(f"model.name: expected a repository such as Qwen/Qwen2.5-3B-Instruct, got {name!r}") from None
    except errors.GatedRepoError:
        raise UserError(
            f"model.name: expected a repository that you may read, got {name}, which is gated (accept its terms on"
            " huggingface.co, then log in with hf auth login)"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"model.name: expected a repository of the hub, got {name!r}, which is none, or a private one (hf auth"
            " login)"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"model.revision: expected a branch, tag or commit of {name}, got {revision!r}") from None
    except errors.LocalEntryNotFoundError:
        raise UserError(
            f"model.name: expected {name} at revision {revision} in the hub's local cache, or a connection to the hub,"
            " got neither"
        ) from None
    except OSError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"model.name: {name} cannot be fetched ({reason:.200})") from None
