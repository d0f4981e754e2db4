"""What a child must know of the user's program to import its code: paths, arguments, folder, and its main module.

The same as `multiprocessing` does under spawn, with one difference: the main module is imported only once a pickle
mentions it. So under pytest, and for all that lives in importable modules, nobody's main runs a second time.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import sys
from contextlib import suppress
from multiprocessing import process, spawn
from typing import TYPE_CHECKING, Any, NamedTuple, override

from actorq.actors.main_guard import check_main_is_not_being_imported, importing_main
from actorq.actors.wire import unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

_MENTIONS_MAIN = b"_main__"  # as `__main__` or as `__mp_main__`, which is its name in children


class Program(NamedTuple):
    """The user's program, as plain values."""

    sys_path: list[str]
    argv: list[str]
    directory: str | None
    original_directory: str | None
    authkey: bytes
    main_name: str | None
    main_path: str | None
    log_level: int


def describe_program() -> Program:
    """Describe this process's program; in an actor, that of its system."""
    check_main_is_not_being_imported()
    if _child.program is not None:
        return _child.program
    origin: str | None = getattr(process, "ORIGINAL_DIR", None)
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    name = None if spec is None else spec.name
    path = None
    if name is None and (file := getattr(main, "__file__", None)) is not None:
        path = os.path.normpath(os.path.join(origin or "", file))  # noqa: PTH118 -- as multiprocessing does
    return Program(
        sys_path=[(origin or "") if entry == "" else entry for entry in sys.path],
        argv=list(sys.argv),
        directory=_current_directory(),
        original_directory=origin,
        authkey=bytes(process.current_process().authkey),
        main_name=name,
        main_path=path,
        log_level=logging.getLogger("actorq").level,
    )


def adopt_program(program: Program) -> None:
    """Become a child of that program. Its main module is imported later, if at all."""
    _child.program = program
    _child.lacks_main = True
    spawn.prepare(
        {
            "sys_path": list(program.sys_path),
            "sys_argv": list(program.argv),
            "orig_dir": program.original_directory,
            "authkey": program.authkey,
        }
    )
    logging.getLogger("actorq").setLevel(program.log_level)
    if program.directory is not None and program.directory != _current_directory():
        with suppress(FileNotFoundError, NotADirectoryError):  # removed meanwhile: it goes on in the same nowhere
            os.chdir(program.directory)


def unpack_message(data: bytes, fds: Sequence[int] = ()) -> Any:
    """Unpack, with the program's main module at hand if the pickle mentions it."""
    if _child.lacks_main and _MENTIONS_MAIN in data:
        return unpack(data, fds, lambda data: _Unpickler(io.BytesIO(data)).load())
    return unpack(data, fds)


class _Unpickler(pickle.Unpickler):
    """Imports the main module when an object of it comes, not when a text only says its name."""

    @override
    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name in {"__main__", "__mp_main__"} and _child.lacks_main:
            _import_main()
        return super().find_class(module_name, global_name)


class _Child:
    """What this process knows of the program that it is a child of."""

    def __init__(self) -> None:
        self.program: Program | None = None
        self.lacks_main = False


_child = _Child()


def _import_main() -> None:
    program = _child.program
    assert program is not None
    with importing_main(program.main_path or program.main_name or "the script"):
        # multiprocessing's own guard, for scripts that start one of its processes instead.
        process.current_process()._inheriting = True  # type: ignore[attr-defined]  # noqa: SLF001
        try:
            if program.main_name is not None:
                spawn.prepare({"init_main_from_name": program.main_name})
            elif program.main_path is not None:
                spawn.prepare({"init_main_from_path": program.main_path})
            _child.lacks_main = False
        finally:
            del process.current_process()._inheriting  # type: ignore[attr-defined]  # noqa: SLF001


def _current_directory() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109
    except FileNotFoundError:  # it was removed; a child goes on in the same nowhere
        return None
