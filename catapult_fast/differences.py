"""How a sweep differs from the one that a file holds, in the names of its TOML document."""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catapult_fast.errors import SweepMismatch
from catapult_fast.sweep import Sweep

__all__ = ["check_same_maker", "check_same_sweep", "differences"]

_MOST = 12
_log = logging.getLogger(__name__)


def check_same_sweep(path: Path, attrs: Mapping[str, Any], sweep: Sweep) -> None:
    """Raise SweepMismatch, with all differences, unless the attributes of ``path`` are those of the sweep."""
    if attrs["sweep_digest"] == sweep.digest:
        return
    found = differences(sweep, str(attrs["sweep_toml"]))
    more = [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
    said = "; ".join([*found[:_MOST], *more]) or "written by a version that describes sweeps otherwise"
    raise SweepMismatch(f"{path} holds another sweep ({said}); choose another output or remove it")


def check_same_maker(path: Path, attrs: Mapping[str, Any], backend: str) -> None:
    """Raise SweepMismatch if going on would mix numbers of two versions or back ends in one file."""
    from catapult_fast.machine import provenance

    there = json.loads(attrs["provenance_json"]).get("versions", {})
    here = provenance(backend)["versions"]
    ours, theirs = here["catapult_fast"], there.get("catapult_fast", here["catapult_fast"])
    found = [f"catapult_fast: version {ours} here, {theirs} in the file"] if ours != theirs else []
    if attrs["backend"] != backend:
        found.append(f'backend: "{backend}" here, "{attrs["backend"]}" in the file')
    if found:
        raise SweepMismatch(f"{path} was begun otherwise ({'; '.join(found)}); finish it so or choose another output")
    for name, version in there.items():
        if here.get(name, version) != version:
            _log.warning("%s was begun with %s %s, here is %s: last bits may differ", path, name, version, here[name])


def differences(sweep: Sweep, stored: str) -> list[str]:
    """List every difference as ``table.key: ours here, theirs in the file``."""
    from catapult_fast.sweep_toml import write

    here, there = _flat(write(sweep, stored=True)), _flat(stored)
    if here.get("data.sha256") == there.get("data.sha256"):  # the same numbers, however they were named
        here, there = ({k: v for k, v in side.items() if not k.startswith("data.")} for side in (here, there))
    names = [name for name in dict.fromkeys([*here, *there]) if here.get(name) != there.get(name)]
    if any(name.startswith("data.") and name != "data.sha256" for name in names):
        names.remove("data.sha256")
    return [_say(name, here.get(name), there.get(name)) for name in names]


def _flat(document: str) -> dict[str, Any]:
    tables = tomllib.loads(document)
    if "width" in tables.get("sweep", {}):
        tables.get("network", {}).pop("width", None)  # replaced by the sweep's
    return {
        f"{name}.{key}": value
        for name, table in tables.items()
        if isinstance(table, dict)
        for key, value in table.items()
    }


def _say(name: str, ours: Any, theirs: Any) -> str:
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs) > 1:
        changed = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        first, more = changed[0], f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        return f"{name}[{first}]: {_text(ours[first])} here, {_text(theirs[first])} in the file{more}"
    return f"{name}: {_text(ours)} here, {_text(theirs)} in the file"


def _text(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict) and "num" in value:
        return f"{value['num']} from {value['start']} to {value['stop']} ({value['spacing']})"
    if isinstance(value, dict) and "sha256" in value:
        return f"values of SHA-256 {value['sha256'][:12]}"
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)} values from {value[0]} to {value[-1]}"
    return value[:12] if isinstance(value, str) and len(value) == 64 else json.dumps(value)
