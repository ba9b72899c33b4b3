"""This project's own code and data, as they were when `eval` was imported.

A run takes long enough for files to change under it. So all files are hashed once, before any other
module of the project is imported, and every module that is imported afterwards is compared with its
hash: what runs is what was hashed. Compiled modules in ``__pycache__`` are used only if they are
newer than the last change of their source, whatever time the source claims to have.
"""

from __future__ import annotations

import hashlib
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from os.path import abspath, dirname, isdir, join, relpath
from typing import Any

_PACKAGES = ("eval", "pplcnet")
_NOT_OURS = ("__pycache__", "baselines")  # folders
_TIMESTAMP = bytes(4)  # the flags of a compiled module that is checked by its source's time


def _folders() -> dict[str, str]:
    """Where this project's files are, by the name of the folder."""
    ours = dirname(abspath(__file__))
    spec = PathFinder.find_spec("pplcnet")
    found = {"eval": ours}
    if spec is not None and spec.submodule_search_locations:
        found["pplcnet"] = abspath(next(iter(spec.submodule_search_locations)))
    if not isdir(join(ours, "configs")):  # it is there in a package, and beside it in a checkout
        found["configs"] = join(dirname(ours), "configs")
    return found


def _files() -> dict[str, str]:
    """The path of every file, by a name that is the same in every installation."""
    found = {}
    for folder, top in _FOLDERS.items():
        for parent, folders, names in os.walk(top):
            folders[:] = [name for name in folders if name not in _NOT_OURS]
            for name in names:
                path = join(parent, name)
                key = f"{folder}/{relpath(path, top)}".replace(os.sep, "/")
                found[key.removeprefix("eval/") if key.startswith("eval/configs/") else key] = path
    return found


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _hashes() -> dict[str, str]:
    """SHA-256 of every file by its name, also where Python runs this from a zip."""
    if not _ARCHIVE:
        return {name: _sha256(path) for path, name in _NAMES.items()}
    from zipfile import ZipFile

    found = {}
    with ZipFile(_ARCHIVE) as archive:
        for name in archive.namelist():
            folders = name.split("/")[:-1]
            if folders and folders[0] in (*_PACKAGES, "configs") and not {*folders} & {*_NOT_OURS}:
                key = name.removeprefix("eval/") if name.startswith("eval/configs/") else name
                if not key.endswith("/"):
                    found[key] = hashlib.sha256(archive.read(name)).hexdigest()
    return found


class _Loader(SourceFileLoader):
    """Notes a module whose source is not the one that was hashed."""

    def get_code(self, fullname: str) -> Any:
        """The code of the source as it is now; never of an older one."""
        name = _NAMES.get(abspath(self.path), self.path)
        if hashlib.sha256(self.get_data(self.path)).hexdigest() != _HASHES.get(name):
            _changed.add(name)
        return super().get_code(fullname)

    def get_data(self, path: str) -> bytes:
        """The bytes of a file; those of an outdated compiled module are refused."""
        data = super().get_data(path)
        if (
            path.endswith(".pyc")
            and data[4:8] == _TIMESTAMP
            # The time of a file's last change, unlike that of its content, cannot be set back.
            and os.stat(path).st_mtime_ns < os.stat(self.path).st_ctime_ns
        ):
            raise OSError("older than its source")
        return data


class _Finder:
    """Finds this project's modules as Python does, with the loader above."""

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder.find_spec`."""
        if fullname.partition(".")[0] not in _PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


_FOLDERS = _folders()
_NAMES = {path: name for name, path in _files().items()}
_ARCHIVE: str = getattr(__spec__.loader, "archive", "")
_HASHES = _hashes()
_changed: set[str] = set()
sys.meta_path.insert(0, _Finder)


def code_sha256() -> str:
    """SHA-256 over the names and contents of all files, hexadecimal."""
    return files_sha256(*_HASHES)


def files_sha256(*names: str) -> str:
    """SHA-256 over the names and contents of some files, hexadecimal.

    Args:
        names: relative to the project, such as ``eval/images/preprocess.py``.
    """
    lines = (f"{name} {_HASHES[name]}\n" for name in sorted(names))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def changed() -> list[str]:
    """Names of modules that were imported, and of data that are now, other than as hashed."""
    if _ARCHIVE:
        now = _hashes()
        return sorted(n for n in (*_HASHES, *now) if now.get(n) != _HASHES.get(n))
    files = _files()
    data = {name for name in (*_HASHES, *files) if not name.endswith(".py")}
    gone_or_other = {
        name for name in data if name not in files or _sha256(files[name]) != _HASHES.get(name)
    }
    return sorted(_changed | gone_or_other)
