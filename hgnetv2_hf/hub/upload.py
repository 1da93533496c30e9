"""Uploads to the Hub through ``huggingface_hub``: one commit per folder, so a repository is complete or as it was."""

import time
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import HubError
from ..wording import sentence
from .network import is_offline, network_failure


ATTEMPTS = 6


def check_repository(repo_id):
    """Raises ``HubError`` before any work is done, when the upload cannot succeed."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id} is not a repository name: {error}") from error
    if is_offline():
        raise HubError(f"Cannot push to {repo_id}: HF_HUB_OFFLINE forbids the network.")
    if get_token() is None:
        raise HubError(f"Cannot push to {repo_id}: not logged in; run `hf auth login` or set HF_TOKEN.")


def push_folder(folder, repo_id, private=False, create_pr=False, space_sdk=None):
    """
    Uploads a folder, after creating the repository if there is none.

    The files arrive in one commit, so the repository holds all of them or is as it was. One that was created for them
    is empty in between, and stays so where the program is killed there.

    Args:
        folder (`str` or `os.PathLike`): what to upload, in one commit.
        repo_id (`str`): `"user/name"`.
        private (`bool`, defaults to `False`): of a new repository.
        create_pr (`bool`, defaults to `False`): open a pull request instead of committing to the main branch.
        space_sdk (`str`, *optional*): the repository is a Space of this SDK, not a model.

    Returns:
        `str`: the address of the repository, or of the pull request.

    Raises:
        `HubError`: the Hub refuses or cannot be reached; what is there stays as it was, and so does the folder. The
            message says where a new repository is left empty.
    """
    api, is_new = HfApi(), False
    kind = "model" if space_sdk is None else "space"
    try:
        if not create_pr:
            repo_id, is_new = _persistently(
                lambda: _create(api, repo_id, private, repo_type=kind, space_sdk=space_sdk)
            )
        commit = _persistently(
            lambda: api.upload_folder(
                folder_path=str(folder),
                repo_id=repo_id,
                repo_type=kind,
                commit_message=f"Upload {Path(folder).name} with hgnetv2_hf",
                create_pr=create_pr,
            )
        )
    except Exception as error:
        failure = network_failure(error)
        if failure is None:
            raise
        left = f"the new repository is there and empty{_unless_unseen(failure)}; " if is_new else ""
        raise HubError(
            f"{folder} is complete, but pushing it to {repo_id} failed: {_explain(failure, repo_id)}; {left}try again "
            f"with `hf upload {repo_id} {folder}{'' if space_sdk is None else ' --repo-type space'}`."
        ) from error
    return commit.pr_url or f"{api.endpoint}/{'' if space_sdk is None else 'spaces/'}{repo_id}"


def _create(api, repo_id, private, **kind):
    """The repository's full name, and whether it was created here."""
    try:
        return api.create_repo(repo_id, private=private, **kind).repo_id, True
    except HfHubHTTPError as error:
        if _status(error) not in (403, 409):  # where it may exist, which the client finds out
            raise
        return api.create_repo(repo_id, private=private, exist_ok=True, **kind).repo_id, False


def _unless_unseen(failure):
    """A connection that broke may have done so behind the commit."""
    return "" if _status(failure) else " (unless the commit arrived and only the answer was lost)"


def _persistently(call):
    """Repeats what a server or a connection broke; an upload continues with the files that have not arrived."""
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except Exception as error:
            failure = network_failure(error)
            if attempt == ATTEMPTS - 1 or failure is None or not _may_pass(failure):
                raise
            time.sleep(min(2**attempt, 8))


def _status(error):
    return getattr(getattr(error, "response", None), "status_code", None)


def _may_pass(error):
    status = _status(error)
    return status is None or status >= 500 or status in (408, 409, 412, 429)


def _explain(error, repo_id):
    known = {
        401: "the Hub does not accept the token; run `hf auth login`",
        403: f"the token may not write to {repo_id}",
        404: f"there is no repository {repo_id} that the token may see",
        409: "somebody else is changing the repository",
    }
    status = _status(error)
    reason = known.get(status) or sentence(error)[:200].rstrip(".")
    return f"{reason} (HTTP {status})" if status else reason
