"""A Hugging Face hub for the downloader: lists a repository's files and fetches them."""

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
from uso_core.messages import message
from uso_core.settings import env_name

HUB_PAGE = "https://huggingface.co"
ANSWER_SECONDS = 10  # to wait for the hub's first answer
TOKEN_PAGE = f"{HUB_PAGE}/settings/tokens"


Watch = Callable[[int], None]  # gets the number of bytes on disk; may raise to stop, which keeps them


class HubUnreachable(DownloadError):
    """No answer at all: no network, a wrong address, or the client is set to offline."""


@dataclass(frozen=True)
class RemoteFile:
    """One file as the hub lists it; `blob_id` is git's name for a small file, for which the hub has no sha256."""

    repo: str
    commit: str
    name: str
    bytes: int
    sha256: str | None = None
    blob_id: str | None = None


class Hub:
    """A Hugging Face hub for the downloader. Every failure becomes a `DownloadError`.

    With `endpoint` None the client chooses (HF_ENDPOINT). Files come by plain ranged HTTP, not by the client's
    `hf_hub_download`, which deletes its partial file whenever it stops and so loses up to 24 GB.
    """

    def __init__(self, token: str | None, endpoint: str | None = None) -> None:
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise SettingsError("token_malformed")
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its warnings quote signed addresses
        self._token: str | bool = token or False  # False: do not use the token of `hf auth login` either
        self._api = HfApi(endpoint=endpoint, token=self._token)
        self._listings: dict[str, list[RemoteFile]] = {}

    def list_files(self, row: WeightFile) -> list[RemoteFile]:
        """The repository's files that match the row's patterns, all at one commit; the catalog's sha256 takes
        precedence.

        Raises `DownloadError` if a pattern matches nothing, or if the hub's file differs from the one the catalog pins.
        """
        if row.repo not in self._listings:
            with self._explained(row.repo, row.gated):
                self._listings[row.repo] = self._list_repo(row.repo)
        chosen: list[RemoteFile] = []
        for pattern in row.patterns:
            named = [file for file in self._listings[row.repo] if fnmatch.fnmatchcase(file.name, pattern)]
            if not named:
                raise DownloadError(
                    "hub_lacks", repo=row.repo, pattern=pattern, hub=HUB_PAGE, variable=env_name(row.setting)
                )
            chosen += named
        if row.sha256 is None:
            return chosen
        listed = chosen[0]
        if listed.bytes != row.bytes or listed.sha256 not in (None, row.sha256):
            raise DownloadError(
                "hub_changed",
                repo=row.repo,
                file=listed.name,
                listed_bytes=listed.bytes,
                listed_sha256=str(listed.sha256)[:12],
                known_bytes=row.bytes,
                known_sha256=row.sha256[:12],
                variable=env_name(row.setting),
            )
        return [dataclasses.replace(listed, sha256=row.sha256)]

    def check_access(self, file: RemoteFile, gated: bool) -> None:
        """Requests only the headers; raises `DownloadError` if the file itself would be refused."""
        with self._explained(file.repo, gated, file.name):
            get_hf_file_metadata(
                self._url(file), token=self._token, timeout=ANSWER_SECONDS, endpoint=self._api.endpoint
            )

    def fetch(self, file: RemoteFile, incomplete: Path, gated: bool, watch: Watch | None = None) -> None:
        """Appends to `incomplete` what is missing, with a bar on the terminal unless there is a `watch`.

        Raises `DownloadError` on failure, keeping what came.
        """
        have = incomplete.stat().st_size if incomplete.exists() else 0
        if have > file.bytes:
            incomplete.unlink()
            have = 0
        # If the transfer were compressed, bytes could not be counted and no range could be requested.
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
        except (ValueError, KeyError, TypeError):  # not a hub's JSON: a mirror, or a network's login page
            raise HubUnreachable("no_hub", endpoint=_without_user(self._api.endpoint)) from None

    @contextmanager
    def _explained(self, repo: str, gated: bool, name: str = "the list of files") -> Iterator[None]:
        try:
            yield
        except HfHubHTTPError as error:
            self._explain_refusal(error, repo, gated, name)
        except OfflineModeIsEnabled:
            raise HubUnreachable("hub_offline") from None
        except HTTPError as error:
            raise HubUnreachable(
                "hub_unreachable", endpoint=_without_user(self._api.endpoint), reason=type(error).__name__
            ) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise DownloadError("download_incomplete", hint="resume", name=name, repo=repo) from None

    def _explain_refusal(self, error: HfHubHTTPError, repo: str, gated: bool, name: str) -> NoReturn:
        """Raises the `DownloadError` for an unsuccessful status. The client's text may quote signed addresses."""
        status, page = error.response.status_code, f"{HUB_PAGE}/{repo}"
        gated = gated or isinstance(error, GatedRepoError)
        if gated and status in (401, 403) and not self._token:
            key = "gated_no_token"
        elif status == 401 and not isinstance(error, GatedRepoError) and self._token:
            key = "token_refused"
        elif gated and status in (401, 403):
            key = "gated_no_access"
        elif isinstance(error, EntryNotFoundError):
            key = "hub_file_gone"
        elif isinstance(error, RepositoryNotFoundError) or status in (401, 404):
            key = "no_repository"
        else:
            key = "hub_too_many" if status == 429 else "hub_status"
        raise DownloadError(
            key, repo=repo, page=page, name=name, status=status, new_token=message("token_how", page=TOKEN_PAGE)
        ) from None


def _without_user(address: str) -> str:
    """An address without the name and password that may stand in it."""
    scheme, separator, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


class _Watched(io.BufferedWriter):
    """A file opened for appending that reports its length."""

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
