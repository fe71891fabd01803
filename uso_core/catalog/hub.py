"""A Hugging Face hub as the downloader sees it: what a repository holds, and its bytes."""

from __future__ import annotations

import dataclasses
import fnmatch
import io
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

from uso_core.catalog.models import WeightFile
from uso_core.errors import DownloadError, SettingsError
from uso_core.settings import env_name

HUB_PAGE = "https://huggingface.co"
ANSWER_SECONDS = 10  # to wait for the hub's first answer
NEW_TOKEN = f"create a read token at {HUB_PAGE}/settings/tokens and set HF_TOKEN to it (environment or .env)"
RESUME = "What was fetched so far is kept: run the same command again to resume."


Watch = Callable[[int], None]  # told how many bytes of a file are there; may raise to stop, and they stay there


class HubUnreachable(DownloadError):
    """No answer at all: no network, a wrong address, or the client was told to stay offline."""


@dataclass(frozen=True)
class RemoteFile:
    """One file as the hub lists it; `blob_id` is git's name for a small file, which has no sha256 there."""

    repo: str
    commit: str
    name: str
    bytes: int
    sha256: str | None = None
    blob_id: str | None = None


class Hub:
    """A Hugging Face hub as seen by the downloader. Whatever fails there comes out as a `DownloadError`.

    `endpoint` None means the client's own choice (HF_ENDPOINT). Files come by plain ranged HTTP, not by the client's
    `hf_hub_download`: that deletes its partial file whenever it stops, which loses up to 24 GB.
    """

    def __init__(self, token: str | None, endpoint: str | None = None) -> None:
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise SettingsError("HF_TOKEN holds a space or a character that no token has.", "Copy the token again.")
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its warnings quote signed addresses
        self._token: str | bool = token or False  # False: not the one of `hf auth login` either
        self._api = HfApi(endpoint=endpoint, token=self._token)
        self._listings: dict[str, list[RemoteFile]] = {}

    def list_files(self, row: WeightFile) -> list[RemoteFile]:
        """The files of the row's repository that its patterns name, all at one commit; the catalog's sha256 prevails.

        Raises `DownloadError` if a pattern names nothing, or if the hub has another file than the catalog pins.
        """
        if row.repo not in self._listings:
            with self._explained(row.repo, row.gated):
                self._listings[row.repo] = self._list_repo(row.repo)
        chosen: list[RemoteFile] = []
        for pattern in row.patterns:
            named = [file for file in self._listings[row.repo] if fnmatch.fnmatchcase(file.name, pattern)]
            if not named:
                raise DownloadError(
                    f"{row.repo} holds no {pattern}.",
                    f"Look at {HUB_PAGE}/{row.repo}; fetch it by hand and set {env_name(row.setting)} to its path.",
                )
            chosen += named
        if row.sha256 is None:
            return chosen
        listed = chosen[0]
        if listed.bytes != row.bytes or listed.sha256 not in (None, row.sha256):
            raise DownloadError(
                f"{row.repo} now lists another {listed.name} ({listed.bytes} bytes, sha256 {str(listed.sha256)[:12]}) "
                f"than the one known here ({row.bytes} bytes, sha256 {row.sha256[:12]}); nothing was fetched.",
                f"Update this project; or fetch it by hand and set {env_name(row.setting)} to its path.",
            )
        return [dataclasses.replace(listed, sha256=row.sha256)]

    def check_access(self, file: RemoteFile, gated: bool) -> None:
        """Asks for the headers only; raises `DownloadError` where the file itself would be refused."""
        with self._explained(file.repo, gated, file.name):
            get_hf_file_metadata(
                self._url(file), token=self._token, timeout=ANSWER_SECONDS, endpoint=self._api.endpoint
            )

    def fetch(self, file: RemoteFile, incomplete: Path, gated: bool, watch: Watch | None = None) -> None:
        """Appends to `incomplete` what it lacks, with a bar on the terminal unless somebody else watches.

        Raises `DownloadError`, keeping what came, if that fails.
        """
        have = incomplete.stat().st_size if incomplete.exists() else 0
        if have > file.bytes:
            incomplete.unlink()
            have = 0
        # Compressed on the way, the bytes could not be counted, nor a range of them be asked for.
        headers = {**build_hf_headers(token=self._token), "accept-encoding": "identity"}
        with self._explained(file.repo, gated, file.name), _Watched(incomplete, watch) as stream:
            http_get(
                self._url(file),
                stream,
                resume_size=have,
                headers=headers,
                expected_size=file.bytes,
                displayed_filename=file.name,
                tqdm_class=_NoBar if watch else None,
            )
            stream.flush()
            os.fsync(stream.fileno())

    def _url(self, file: RemoteFile) -> str:
        return hf_hub_url(file.repo, file.name, revision=file.commit, endpoint=self._api.endpoint)

    def _list_repo(self, repo: str) -> list[RemoteFile]:
        try:
            info = self._api.model_info(repo, files_metadata=True, timeout=ANSWER_SECONDS, token=self._token)
            files = []
            for sibling in info.siblings or ():
                if sibling.size is None or ".." in sibling.rfilename or "\\" in sibling.rfilename:
                    raise ValueError("no size, or a name that leads out of the weights folder")
                sha256 = sibling.lfs.sha256 if sibling.lfs else None
                files.append(RemoteFile(repo, str(info.sha), sibling.rfilename, sibling.size, sha256, sibling.blob_id))
            return files
        except (ValueError, KeyError, TypeError):  # not the JSON of a hub: a mirror, or a network's login page
            raise HubUnreachable(
                f"{self._api.endpoint} does not answer as a Hugging Face hub does.",
                "Check HF_ENDPOINT, the proxy, and whether the network asks for a login in a browser.",
            ) from None

    @contextmanager
    def _explained(self, repo: str, gated: bool, name: str = "the list of files") -> Iterator[None]:
        try:
            yield
        except HfHubHTTPError as error:
            self._explain_refusal(error, repo, gated, name)
        except OfflineModeIsEnabled:
            raise HubUnreachable("HF_HUB_OFFLINE keeps the client offline.", "Unset it and run again.") from None
        except HTTPError as error:
            raise HubUnreachable(
                f"{self._api.endpoint} could not be reached ({type(error).__name__}).",
                f"Check the network, the proxy and HF_ENDPOINT. {RESUME}",
            ) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise DownloadError(f"{name} of {repo} did not arrive whole.", RESUME) from None

    def _explain_refusal(self, error: HfHubHTTPError, repo: str, gated: bool, name: str) -> NoReturn:
        """Raises the `DownloadError` for a status that is not success. The client's text may quote signed addresses."""
        status, page = error.response.status_code, f"{HUB_PAGE}/{repo}"
        gated = gated or isinstance(error, GatedRepoError)
        if gated and status in (401, 403) and not self._token:
            message = f"{repo} is gated and no token is set."
            hint = f"Accept the licence at {page}, then {NEW_TOKEN}."
        elif status == 401 and not isinstance(error, GatedRepoError) and self._token:
            message = "The hub does not accept the token in HF_TOKEN."
            hint = f"It may be expired or mistyped: {NEW_TOKEN}."
        elif gated and status in (401, 403):
            message = f"{repo} is gated and the account behind HF_TOKEN has no access to it."
            hint = f"Accept the licence at {page} with that account; a fine-grained token also needs gated access."
        elif isinstance(error, EntryNotFoundError):
            message, hint = f"{repo} no longer holds {name}.", f"Look at {page}, and update this project."
        elif isinstance(error, RepositoryNotFoundError) or status in (401, 404):
            message, hint = f"There is no repository {repo}, or it is private.", f"Look at {page}; check HF_ENDPOINT."
        elif status == 429:
            message, hint = "The hub refuses more requests for now.", f"Wait a few minutes. {RESUME}"
        else:
            message, hint = f"The hub answers {status} to {name} of {repo}.", f"Try again later. {RESUME}"
        raise DownloadError(message, hint) from None


class _Watched(io.BufferedWriter):
    """A file to append to that tells how long it has become."""

    def __init__(self, path: Path, watch: Watch | None) -> None:
        super().__init__(io.FileIO(path, "ab"))
        self._watch = watch

    def write(self, data: Any) -> int:
        written = super().write(data)
        if self._watch is not None:
            self._watch(self.tell())
        return written


class _NoBar(tqdm):
    """A progress bar that shows nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "disable": True})
