"""Downloads a model's weights into the weights folder: resumes after an interruption, checks size and hash.

    python weights/downloader.py --variant flux-dev --dry-run

Exit codes: 0 everything is there, 2 the user can fix it (two lines on stderr), 130 stopped, 1 a fault of ours.
"""

from __future__ import annotations

import dataclasses
import errno
import glob
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from uso_core.catalog import fused_files
from uso_core.catalog.hub import Hub, HubUnreachable, RemoteFile, Watch
from uso_core.catalog.locate import find_weights, problem_in
from uso_core.catalog.loras import found_turbos
from uso_core.catalog.models import ROLES, TOKENIZER_ROLES, TOKENIZERS, Model, WeightFile, get_model
from uso_core.errors import DownloadError, SettingsError, UsoError, exit_code
from uso_core.messages import Bytes
from uso_core.settings import Parser, Settings, add_arguments, env_name, given_path, load_settings, settle_proxies

Say = Callable[[str], None]  # shows a sentence or a table to the user
Progress = Callable[[str, int, int], None]  # current file, bytes present of all, total bytes; raises to stop

PRINT: Say = partial(print, flush=True)
HASH_CHUNK = 1 << 20
SLOW_TO_HASH = 10**9  # bytes; hashing more takes long enough to announce


@dataclass(frozen=True)
class Part:
    """A remote file and what of it is at `path`: `state` is there, partly, missing or damaged."""

    remote: RemoteFile
    path: Path
    state: str
    bytes_to_fetch: int

    @property
    def incomplete(self) -> Path:
        """Where the bytes are collected; named by content, so that a newer revision never continues an older one's
        file.
        """
        key = self.remote.sha256 or self.remote.blob_id or self.remote.commit
        return self.path.with_name(f"{self.path.name}.{key[:12]}.part")


@dataclass(frozen=True)
class Item:
    """A row of the catalog and its state; without `parts`, `state` is all that is known."""

    row: WeightFile
    state: str
    parts: tuple[Part, ...] = ()
    bytes_to_fetch: int = 0

    @property
    def bytes(self) -> int:
        return sum(part.remote.bytes for part in self.parts) or self.row.bytes


def download(
    model: Model,
    settings: Settings,
    hub: Hub,
    only: Sequence[str] = (),
    verify: bool = False,
    dry_run: bool = False,
    say: Say = PRINT,
    progress: Progress | None = None,
) -> None:
    """Reports the state of each file and downloads what is missing. `find_weights` then finds everything asked for.

    `only` restricts to roles; `verify` hashes the files in the weights folder instead of trusting their size; `dry_run`
    stops after the table. With `progress`, the terminal shows nothing while a file comes; an exception from it ends
    the download and keeps what came. Raises `DownloadError` or `SettingsError`, before the first byte wherever
    possible.
    """
    if model.folder is not None:
        say(f"{model.name} is included: nothing to download.")
        return
    only = [each for role in only for each in (TOKENIZER_ROLES if role == "tokenizers" else (role,))]
    roles = [row.role for row in _rows(model)]
    if unknown := [role for role in only if role not in roles]:
        choices = ", ".join(dict.fromkeys("tokenizers" if each in TOKENIZER_ROLES else each for each in roles))
        raise SettingsError("no_such_role", model=model.name, value=unknown[0], choices=choices)
    items = survey(model, settings, hub, only, verify, catalog_will_do=dry_run, say=say)
    weights = settings.weights_folder
    needed, free = sum(item.bytes_to_fetch for item in items), free_bytes(weights)
    say(table(model, items, weights))
    say(f"To fetch: {size_text(needed)}. Free on that disk: {size_text(free)}.")
    wanted = [(item.row, part) for item in items for part in item.parts if part.state != "there"]
    if dry_run or not wanted:  # what has come whole may still have to be checked
        return
    if needed > free:
        raise DownloadError("disk_too_small", needed=Bytes(needed), free=Bytes(free), weights=weights)
    with weights_folder(weights):
        for repo in dict.fromkeys(part.remote.repo for _, part in wanted):
            row, part = next(pair for pair in wanted if pair[1].remote.repo == repo)
            hub.check_access(part.remote, row.gated)
        total = sum(part.remote.bytes for item in items for part in item.parts)
        for row, part in wanted:
            before = total - needed
            needed -= part.bytes_to_fetch
            if progress is not None:
                progress(f"{part.remote.repo}/{part.remote.name}", before, total)
            fetch_part(part, hub, row.gated, say, _watch(part, before, total, progress))
    say(f"Everything is in {weights}.")


def _rows(model: Model) -> tuple[WeightFile, ...]:
    """Everything that can be fetched for a model: what it needs, and what must be asked for by its role."""
    return (*model.files, *TOKENIZERS, *(turbo.file for turbo in model.turbos))


def _watch(part: Part, before: int, total: int, progress: Progress | None) -> Watch | None:
    """Converts the partial file's length into bytes of the whole download; `before` were there at its start."""
    if progress is None:
        return None
    had = part.remote.bytes - part.bytes_to_fetch
    name = f"{part.remote.repo}/{part.remote.name}"
    return lambda length: progress(name, before + length - had, total)


def survey(
    model: Model, settings: Settings, hub: Hub, only: Sequence[str], verify: bool, catalog_will_do: bool, say: Say
) -> list[Item]:  # fmt: skip
    """The state of each row of the model: what the user's variables or the Hugging Face cache provide counts as there.

    Asks the hub for each row's files; without an answer, `catalog_will_do` falls back to the catalog's numbers.
    """
    report, unreachable = find_weights(model, settings), False
    items: list[Item] = []
    wanted = only or (*report.paths, *report.missing)
    turbos = found_turbos(model, settings)
    for row in _rows(model):
        if row.role not in wanted:
            continue
        target = settings.weights_folder / row.local
        found = report.paths.get(row.role) or turbos.get(row.role)
        value = getattr(settings, row.setting) if row.role not in TOKENIZER_ROLES else None
        if found is not None and found.resolve() != target.resolve():
            problem = problem_in(found, row.role)
            items.append(Item(row, f"there: {found}" + (f", which cannot be used: {problem}" if problem else "")))
            continue
        if found is None and value and given_path(value).resolve() != target.resolve():
            variable = env_name(row.setting)
            raise SettingsError("variable_leads_nowhere", variable=variable, value=value, target=target)
        try:
            if not unreachable:
                items.append(inspect_parts(row, hub.list_files(row), settings.weights_folder, verify))
                continue
        except HubUnreachable as error:
            if not catalog_will_do:
                raise
            say(f"{error.message} The sizes are the catalog's, and what is there was not checked.")
            unreachable = True
        there = target.exists()
        items.append(Item(row, "there, unchecked" if there else "missing", (), 0 if there else row.bytes))
    return items


def inspect_parts(row: WeightFile, files: Sequence[RemoteFile], weights: Path, verify: bool) -> Item:
    """Compares the weights folder with the hub's list of files; changes nothing."""
    folder = weights / Path(row.local).parts[0]  # contains the repository's files under their names there
    parts = []
    for file in files:
        part = Part(file, folder / file.name, "missing", file.bytes)
        have = part.incomplete.stat().st_size if part.incomplete.is_file() else 0
        if part.path.is_file():
            intact = part.path.stat().st_size == file.bytes and not (verify and not is_intact(part.path, file))
            part = dataclasses.replace(
                part, state="there" if intact else "damaged", bytes_to_fetch=0 if intact else file.bytes
            )
        elif 0 < have <= file.bytes:
            part = dataclasses.replace(part, state="partly", bytes_to_fetch=file.bytes - have)
        parts.append(part)
    states, to_fetch = {part.state for part in parts}, sum(part.bytes_to_fetch for part in parts)
    state = states.pop() if len(states) == 1 else "damaged" if "damaged" in states else "partly"
    if state == "partly":
        total = sum(file.bytes for file in files)
        state = f"partly ({size_text(total - to_fetch)} of {size_text(total)})"
    return Item(row, state, tuple(parts), to_fetch)


def fetch_part(part: Part, hub: Hub, gated: bool, say: Say, watch: Watch | None = None) -> None:
    """Downloads one file and renames it into place once verified; raises `DownloadError` if it does not match.

    A damaged file stays in place until the new one has come and is verified; a damaged new one is deleted.
    """
    name = f"{part.remote.repo}/{part.remote.name}"
    try:
        part.path.parent.mkdir(parents=True, exist_ok=True)
        if part.state == "damaged":
            say(f"{part.path} differs from what the hub lists: it will be replaced.")
        say(f"Fetching {name} ({size_text(part.bytes_to_fetch)}) ...")
        hub.fetch(part.remote, part.incomplete, gated, watch)
        if part.remote.bytes > SLOW_TO_HASH:
            say("Checking its content ...")
        if not is_intact(part.incomplete, part.remote):
            part.incomplete.unlink()
            raise DownloadError("wrong_sha256", name=name)
        os.replace(part.incomplete, part.path)
        for older in part.path.parent.glob(f"{glob.escape(part.path.name)}.*.part"):
            older.unlink()
    except OSError as error:
        raise_write_error(error, part.path.parent)


def is_intact(path: Path, file: RemoteFile) -> bool:
    """Whether the content matches the hub's list: by sha256, for a small file by git's blob id, else by size alone."""
    if path.stat().st_size != file.bytes:
        return False
    if file.sha256 is None and file.blob_id is None:
        return True
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == (file.sha256 or file.blob_id)


@contextmanager
def weights_folder(weights: Path) -> Iterator[None]:
    """Creates the folder and keeps out a second downloader: two would garble a shared partial file."""
    lock = FileLock(weights / ".download.lock", timeout=0)
    try:
        weights.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise DownloadError("download_locked", weights=weights) from None
    except NotImplementedError:  # a file system without locks: go on without
        pass
    except OSError as error:
        raise_write_error(error, weights)
    try:
        yield
    finally:
        lock.release()


def raise_write_error(error: OSError, folder: Path) -> NoReturn:
    """Raises the `DownloadError` for a refusal by the file system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DownloadError("disk_full", folder=folder) from None
    raise DownloadError("weights_not_writable", folder=folder, reason=error.strerror or type(error).__name__) from None


def remove_fused(weights: Path) -> None:
    """Deletes the fused cache; the next start that needs it makes it again."""
    print(f"Deleted {size_text(fused_files.remove(fused_files.folder_in(weights)))} of fused weights.")


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk where `folder` is, or will be created."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def table(model: Model, items: Sequence[Item], weights: Path) -> str:
    """The state of each file of a model, one line each."""
    rows = [("role", "file", "size", "licence", "gated", "state")]
    for item in items:
        row = item.row
        rows.append((row.role, row.local, size_text(item.bytes), row.licence, "yes" if row.gated else "no", item.state))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"{model.name} ({model.title}) in {weights}", *lines])


def size_text(count: int) -> str:
    """Bytes for display, in decimal units like the hub's: 23.80 GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} B"


def _parser() -> Parser:
    parser = Parser(
        prog="weights/downloader.py",
        description="Fetches the weights of a model.",
        epilog="--doctor instead says what is there, what is missing and why, and how the model would lie in memory.",
    )
    parser.add_argument("--variant", default="flux-dev", metavar="NAME", help="the model (default: flux-dev)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ROLE",
        help=f"only this role, repeatable: {', '.join(ROLES)}, tokenizers, turbo, hyper",
    )
    parser.add_argument("--weights", metavar="DIR", help="folder to fetch to (default: USO_WEIGHTS, else weights/)")
    add_arguments(parser, "models_dir")
    parser.add_argument("--verify", action="store_true", help="hash the files that are there, not only their sizes")
    parser.add_argument(
        "--remove-prepared",
        action="store_true",
        help="delete what was computed from the weights to start faster (weights/prepared), then stop",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what is there and what is missing, then stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        arguments = _parser().parse_args(argv)
        settings = load_settings({"weights": arguments.weights, "models_dir": arguments.models_dir})
        settle_proxies()
        if arguments.remove_prepared:
            remove_fused(settings.weights_folder)
            return 0
        hub = Hub(settings.hf_token)
        download(
            get_model(arguments.variant), settings, hub, arguments.only, arguments.verify, dry_run=arguments.dry_run
        )
    except UsoError as error:
        return exit_code(error)
    except KeyboardInterrupt:
        print("stopped: what was fetched so far is kept; run the same command again to resume.", file=sys.stderr)
        return 130
    except OSError as error:
        return exit_code(
            DownloadError(
                "disk_error", hint="check_permissions", file=error.filename or "The disk", reason=error.strerror
            )
        )
    except Exception:
        logging.exception("a fault of the downloader itself")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
