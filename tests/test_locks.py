"""Who may work on a target: a whole run or the parts of one cut, and what a second owner is told."""

import json
import os
import platform
import re
import shutil
import subprocess
import threading
from contextlib import ExitStack, suppress

import filelock
import pytest

import catapult_fast as cf
from catapult_fast import locks, processes
from catapult_fast.locks import Owner, hold

WHOLE = None


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out.h5.parts"


@pytest.fixture
def dead():
    """The number of a process that is gone."""
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


@pytest.mark.parametrize(
    ("held", "wanted", "allowed"),
    [
        ([], WHOLE, True),
        ([], (2, 3), True),
        ([WHOLE], WHOLE, False),
        ([WHOLE], (0, 1), False),
        ([(0, 3)], WHOLE, False),
        ([(0, 3)], (1, 3), True),
        ([(0, 3), (2, 3)], (1, 3), True),
        ([(0, 3)], (0, 3), False),
        ([(0, 3), (1, 3)], (1, 3), False),
        ([(0, 3)], (0, 4), False),
        ([(0, 3)], (1, 4), False),
        ([(1, 3), (0, 3)], WHOLE, False),
    ],
)
def test_who_excludes_whom(folder, held, wanted, allowed):
    """And whatever was refused is free as soon as the others have let go."""
    with ExitStack() as stack:
        for part in held:
            stack.enter_context(hold(folder, part))
        if allowed:
            stack.enter_context(hold(folder, wanted))
        else:
            with pytest.raises(cf.TargetLocked), hold(folder, wanted):
                pass
    with hold(folder, wanted):
        pass


def test_the_second_owner_is_told_of_the_first(folder):
    with hold(folder, (1, 2)):
        (owner,) = locks.owners(folder)
        with pytest.raises(cf.TargetLocked) as caught, hold(folder):
            pass
    said = str(caught.value)
    assert f"{folder.with_name('out.h5')} is in use for part 1/2 by process {os.getpid()} on {platform.node()}" in said
    assert re.search(r"started \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", said)
    assert "\n" not in said
    assert owner.alive
    assert owner.part == (1, 2)
    assert [o.ended for o in locks.owners(folder)] == [True]


def test_an_error_inside_lets_go(folder):
    with pytest.raises(ZeroDivisionError), hold(folder):
        raise ZeroDivisionError
    with hold(folder):
        pass


def test_a_disk_that_is_full_when_letting_go(folder, monkeypatch):
    with hold(folder):
        monkeypatch.setattr(locks, "write_bytes", fail)
    monkeypatch.undo()
    with hold(folder):
        pass


def fail(*_):
    raise cf.StorageError("no space left")


def test_a_disk_that_is_full_when_locking(folder, monkeypatch):
    monkeypatch.setattr(locks, "write_bytes", fail)
    with pytest.raises(cf.StorageError, match="no space"), hold(folder):
        pass
    monkeypatch.undo()
    with hold(folder):
        pass


def owned_by(folder, owner, part=None):
    """The lock of an owner who is not this process, though the system says that it is held here."""
    folder.mkdir(exist_ok=True)
    name = "whole" if part is None else f"part-{part[0]}-of-{part[1]}"
    (folder / f"{name}.owner.json").write_text(json.dumps(owner._asdict()))
    lock = filelock.FileLock(folder / f"{name}.lock")
    lock.acquire()
    return lock


@pytest.mark.parametrize("part", [None, (0, 2)])
def test_stealing_from_the_dead(folder, dead, part):
    """Its lock may outlive it, in a child that inherited it or on a server that does not know."""
    lock = owned_by(folder, Owner(platform.node(), dead, None, 0.0, part), part)
    with pytest.raises(cf.TargetLocked, match=f"process {dead} on .*gone.*--steal"), hold(folder):
        pass
    with hold(folder, steal=True), pytest.raises(cf.TargetLocked, match=str(os.getpid())), hold(folder, part):
        pass
    lock.release()
    with hold(folder):
        pass


def test_stealing_from_a_number_that_was_given_again(folder):
    lock = owned_by(folder, Owner(platform.node(), os.getpid(), "another boot/17", 0.0, None))
    with hold(folder, steal=True):
        pass
    lock.release()


def test_no_stealing_from_the_living(folder):
    with hold(folder):
        for part in (None, (0, 2)):
            with pytest.raises(cf.TargetLocked, match="wait for it"), hold(folder, part, steal=True):
                pass


def test_no_stealing_from_another_machine(folder, dead):
    """Whether its process lives cannot be known."""
    lock = owned_by(folder, Owner("a-node-far-away", dead, None, 0.0, None))
    words = r"a-node-far-away.*cannot be told.*remove .*whole\.lock"
    with pytest.raises(cf.TargetLocked, match=words), hold(folder, steal=True):
        pass
    lock.release()


def test_no_stealing_from_nobody_knows_whom(folder):
    folder.mkdir()
    (folder / "whole.owner.json").write_text("[1, 2")
    lock = filelock.FileLock(folder / "whole.lock")
    lock.acquire()
    with pytest.raises(cf.TargetLocked, match="another process"), hold(folder, steal=True):
        pass
    lock.release()


def test_a_record_without_a_lock_keeps_nobody_out(folder):
    """As of an owner whose machine lost power."""
    folder.mkdir()
    owner = Owner("a-node-far-away", 1, None, 0.0, None)
    (folder / "whole.owner.json").write_text(json.dumps(owner._asdict()))
    with hold(folder):
        assert locks.owners(folder)[0].pid == os.getpid()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"host": 1}', "\x00" * 10])
def test_records_that_are_none(folder, content):
    folder.mkdir()
    (folder / "whole.owner.json").write_text(content)
    assert locks.owners(folder) == []


def test_one_at_a_time_also_while_the_folder_goes(folder):
    """Many want it at once; whoever has it is alone, though each removes the folder with its locks."""
    inside, most, errors = [], [], []
    begin = threading.Barrier(4)

    def win(number, time):
        with hold(folder):
            inside.append(number)
            most.append(len(inside))
            with locks.gate(folder):
                aside = folder.rename(folder.with_name(f"aside-{number}-{time}"))
            inside.remove(number)
        shutil.rmtree(aside)

    def contend(number):
        begin.wait()
        try:
            for time in range(5):
                while True:
                    with suppress(cf.TargetLocked):
                        win(number, time)
                        break
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert most == [1] * 20


def test_processes():
    me = os.getpid()
    assert processes.is_running(me)
    assert processes.is_running(1)
    assert processes.identity(me) == processes.identity(me) != processes.identity(1)
    with subprocess.Popen(["sleep", "60"]) as child:
        assert processes.is_running(child.pid)
        assert processes.started_unix(child.pid) >= processes.started_unix(me) >= processes.started_unix(1)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not processes.is_running(child.pid)  # not reaped yet
    assert not processes.is_running(child.pid)
    assert processes.identity(child.pid) is None
