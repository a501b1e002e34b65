"""What the package asks of an array module exists in CuPy: names, and keywords of functions. No device is needed."""

import ast
import inspect
from pathlib import Path

import pytest

import catapult_fast
from catapult_fast import kernels

cupy = pytest.importorskip("cupy", reason="CuPy is missing: pip install catapult-fast[cuda13]")

FOLDERS = [Path(catapult_fast.__file__).parent, Path(kernels.__file__).parent]
FILES = sorted({file for folder in FOLDERS for file in folder.rglob("*.py") if "xp." in file.read_text()})


def chain(node):
    """``xp.linalg.norm`` or ``self.xp.zeros`` as the names behind xp; None for anything else."""
    names = []
    while isinstance(node, ast.Attribute):
        if node.attr == "xp":
            return names[::-1]
        names.append(node.attr)
        node = node.value
    return names[::-1] if isinstance(node, ast.Name) and node.id == "xp" and names else None


def calls(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and chain(node.func):
            yield chain(node.func), node


# Keywords of what is compiled and silent about them, from CuPy's documents.
SILENT = {"fuse": {"kernel_name"}}


def keywords(function):
    try:
        return set(inspect.signature(function).parameters)
    except ValueError:
        return SILENT.get(function.__name__, set())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_call_exists(file):
    for names, node in calls(file):
        found = cupy
        for name in names:
            assert hasattr(found, name), f"line {node.lineno}: cupy has no {'.'.join(names)}"
            found = getattr(found, name)
        allowed = {"out", "dtype"} if isinstance(found, cupy.ufunc) else keywords(found)
        for keyword in node.keywords:
            assert keyword.arg in allowed, f"line {node.lineno}: {'.'.join(names)} has no {keyword.arg}"


def test_there_is_something_to_look_at():
    assert {"ends", "device_spectrum", "proof_on_cupy"} <= {file.stem for file in FILES}
