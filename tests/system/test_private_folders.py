"""Locks and sockets in the machine's temporary folder lie in a folder of ours; nothing is written through a link."""

from __future__ import annotations

import os
import stat
import tempfile

import pytest

from refine.errors import SettingError
from refine.services import up
from refine.system.devices import device_slots
from refine.system.files import private_folder
from refine.system.locks import holder, try_hold


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """The temporary folder of the machine, in which everyone may write."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("REFINE_LOCKS", raising=False)
    monkeypatch.setenv("REFINE_DEVICES", "1")
    return folder


def locks():
    with device_slots(1, "run", print):
        pass


def test_the_folders_are_made_for_their_owner_alone(shared, home):
    locks()
    socket = up._socket_file()
    made = sorted(shared.iterdir())
    assert [one.name for one in made] == [f"refine-devices-{os.getuid()}", f"refine-services-{os.getuid()}"]
    assert {stat.S_IMODE(one.stat().st_mode) for one in made} == {0o700} and socket.parent == made[1]
    locks()


@pytest.mark.parametrize(("name", "advice"), [("devices", "REFINE_LOCKS"), ("services", "TMPDIR")])
def test_a_link_or_a_folder_that_others_may_write_to_is_refused(shared, tmp_path, home, name, advice):
    use = locks if name == "devices" else up._socket_file
    place, aim = shared / f"refine-{name}-{os.getuid()}", tmp_path / "aim"
    aim.mkdir(mode=0o700)
    place.symlink_to(aim)
    with pytest.raises(SettingError, match=f"is a link: .*{advice}"):
        use()
    assert not list(aim.iterdir())
    place.unlink()
    place.write_text("")
    with pytest.raises(SettingError, match=f"cannot be made a folder|is a link: .*{advice}"):
        use()
    place.unlink()
    place.mkdir()
    place.chmod(0o770)
    with pytest.raises(SettingError, match=f"can be written to by other users: .*{advice}"):
        use()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_refused(shared):
    place = shared / f"refine-devices-{os.getuid()}"
    place.mkdir(mode=0o700)
    os.chown(place, 12345, 12345)
    with pytest.raises(SettingError, match=r"belongs to user 12345: .*REFINE_LOCKS") as error:
        locks()
    assert "\n" not in str(error.value)


def test_another_owner_is_seen_without_being_root(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(SettingError, match=f"belongs to user {tmp_path.stat().st_uid}"):
        private_folder(tmp_path, "advice")


def test_a_lock_or_its_holders_file_that_is_a_link_is_not_written_through(tmp_path):
    for name in ("0.lock", "0.lock.holder"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        aim = tmp_path / "precious"
        aim.write_text("mine")
        (folder / name).symlink_to(aim)
        with pytest.raises(SettingError, match=r"cannot be used as a lock \(it is a link\); remove it"):
            try_hold(folder / "0.lock", "run")
        assert aim.read_text() == "mine"
        (folder / name).unlink()
        lock = try_hold(folder / "0.lock", "run")
        assert lock is not None and holder(folder / "0.lock") == "run"
        lock.release()


def test_a_named_folder_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("REFINE_DEVICES", "1")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REFINE_LOCKS", str(tmp_path / "file"))
    with pytest.raises(SettingError, match=r"REFINE_LOCKS: .*name another folder"):
        locks()
