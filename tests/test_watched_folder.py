"""A watched folder: every image once, when it is complete, however it comes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from PIL import Image

from scissionlite.cli.run import watched_folder
from scissionlite.cli.run.sources import Picture
from scissionlite.cli.run.watched_folder import WatchedFolder
from scissionlite.errors import ImageError
from scissionlite.images import Preprocessing

PREPROCESSING = Preprocessing(size=(2, 2))
LONG = 60.0  # seconds; only a hang waits so long


def png(red: int) -> bytes:
    """A PNG whose first pixel says which one it is."""
    content = io.BytesIO()
    Image.new("RGB", (2, 2), (red, 0, 0)).save(content, "PNG")
    return content.getvalue()


class Watcher:
    """A watched folder whose pictures are collected in a thread."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.source = WatchedFolder(folder, PREPROCESSING, **options)
        self._pictures: list[Picture] = []
        self.error: ImageError | None = None
        self._thread = threading.Thread(target=self._collect)

    def start(self) -> None:
        """Begin; may be called again."""
        if self._thread.ident is None:
            self._thread.start()

    def _collect(self) -> None:
        try:
            for picture in self.source.pictures():
                self._pictures.append(picture)
        except ImageError as error:
            self.error = error

    def read(self, count: int) -> list[tuple[str, int | str]]:
        """Wait for so many pictures; their names, and what they hold: red, or an error."""
        until = time.monotonic() + LONG
        while len(self._pictures) < count:
            assert time.monotonic() < until, self.rows()
            time.sleep(0.005)
        return self.rows()

    def rows(self) -> list[tuple[str, int | str]]:
        return [
            (
                Path(picture.image).name,
                str(picture.pixels)
                if isinstance(picture.pixels, ImageError)
                else int(picture.pixels[0, 0, 0]),
            )
            for picture in self._pictures
        ]

    def join(self) -> None:
        self._thread.join(LONG)
        assert not self._thread.is_alive()

    def stop(self) -> None:
        self.source.stop()
        if self._thread.ident is not None:
            self.join()
        self.source.close()


@pytest.fixture
def watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Path, Watcher]]]:
    """Watch a new folder below the test's, where other files of the test have room beside it."""
    monkeypatch.setattr(watched_folder, "SETTLED", 0.1)
    made: list[Watcher] = []
    folder = tmp_path / "inbox"

    def make(*, start: bool = True, **options: Any) -> tuple[Path, Watcher]:
        folder.mkdir(exist_ok=True)
        watcher = Watcher(folder, **options)
        made.append(watcher)
        if start:
            watcher.start()
        return folder, watcher

    yield make
    for watcher in made:
        watcher.stop()


Watch = Callable[..., tuple[Path, Watcher]]


def all_read(folder: Path, watcher: Watcher, count: int) -> list[tuple[str, int | str]]:
    """The pictures so far, when every earlier event has been seen: a last file is read after them.

    So long that a file which was found by looking would have been read, too.
    """
    time.sleep(3 * watched_folder.SETTLED)
    (folder / "last.png").write_bytes(png(99))
    rows = watcher.read(count + 1)
    assert rows[-1] == ("last.png", 99)
    return rows[:-1]


def test_a_file_is_read_when_its_writer_closes_it(watch: Watch) -> None:
    folder, watcher = watch(start=False)
    content = png(7)
    with (folder / "slow.png").open("wb") as slow:
        for part in (content[:20], content[20:40], content[40:]):
            slow.write(part)
            slow.flush()
            watcher.start()
            # It pauses for longer than a file needs to settle.
            time.sleep(3 * watched_folder.SETTLED)
            (folder / f"{slow.tell()}.png").write_bytes(png(1))
        assert ("slow.png", 7) not in watcher.read(2)[:2]
    assert ("slow.png", 7) in all_read(folder, watcher, 4)


@pytest.mark.parametrize("how", ["move", "move .part", "move hidden", "link", "hard link", "rsync"])
def test_a_file_comes_in_every_way_that_programs_have(
    watch: Watch, tmp_path: Path, how: str
) -> None:
    folder, watcher = watch()
    outside, target = tmp_path / "made.png", folder / "x.png"
    outside.write_bytes(png(5))
    if how == "move":
        outside.rename(target)
    elif how.startswith("move "):
        other = folder / ("x.png.part" if how == "move .part" else ".x.png")
        other.write_bytes(png(5))
        other.rename(target)
    elif how == "link":
        target.symlink_to(outside)
    elif how == "hard link":
        target.hardlink_to(outside)
        outside.unlink()
    else:  # rsync: a hidden name, times set, then renamed
        hidden = folder / ".x.png.aB3xYz"
        hidden.write_bytes(png(5))
        os.utime(hidden, (1e9, 1e9))
        hidden.rename(target)
    assert all_read(folder, watcher, 1) == [("x.png", 5)]


def test_what_is_no_image_of_the_user_is_left_out(watch: Watch) -> None:
    folder, watcher = watch()
    for name in (".x.png", "x.png.tmp", "x.png~", "notes.txt", "x.jpg.filepart", "._x.png"):
        (folder / name).write_bytes(png(1))
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").write_bytes(png(1))
    (folder / "empty.png").touch()  # its writer comes again
    assert all_read(folder, watcher, 0) == []
    (folder / "empty.png").write_bytes(png(2))
    assert watcher.read(2)[-1] == ("empty.png", 2)


def test_folders_that_appear_are_watched_and_folders_that_leave_are_not(
    watch: Watch, tmp_path: Path
) -> None:
    folder, watcher = watch()
    deep = folder / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "1.png").write_bytes(png(1))  # perhaps before the folder is watched
    assert watcher.read(1) == [("1.png", 1)]
    (deep / "2.png").write_bytes(png(2))
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "3.png").write_bytes(png(3))
    moved.rename(folder / "moved")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "4.png").write_bytes(png(4))
    (folder / "link").symlink_to(tmp_path / "linked")
    (folder / "a" / "back").symlink_to(folder)  # around in a circle
    assert sorted(watcher.read(4)) == [(f"{i}.png", i) for i in (1, 2, 3, 4)]
    # What was read is not new under another name, neither by itself nor with its folder.
    (deep / "1.png").rename(deep / "one.png")
    (folder / "a").rename(folder / "z")
    (folder / "z" / "b" / "c" / "5.png").write_bytes(png(5))
    assert watcher.read(5)[-1] == ("5.png", 5)
    (folder / "z").rename(tmp_path / "left")
    time.sleep(0.1)
    assert len(all_read(folder, watcher, 5)) == 5
    time.sleep(1.2)  # a move that is not paired is over
    (tmp_path / "left" / "b" / "c" / "6.png").write_bytes(png(6))
    (folder / "z").mkdir()
    (folder / "z" / "7.png").write_bytes(png(7))
    assert watcher.read(7)[-1] == ("7.png", 7)


def test_a_file_is_new_when_it_is_written_again_and_only_then(watch: Watch) -> None:
    folder, watcher = watch()
    file = folder / "latest.png"
    file.write_bytes(png(1))
    watcher.read(1)
    with file.open("ab"):  # opened for writing, and not written
        pass
    file.chmod(0o600)
    file.read_bytes()
    file.rename(folder / "renamed.png")
    assert len(all_read(folder, watcher, 1)) == 1
    (folder / "renamed.png").write_bytes(png(2))
    other = folder / "other.tmp"
    other.write_bytes(png(3))
    watcher.read(3)
    other.rename(folder / "renamed.png")
    assert [row for row in watcher.read(4) if row[0] != "last.png"] == [
        ("latest.png", 1),
        ("renamed.png", 2),
        ("renamed.png", 3),
    ]


@pytest.mark.parametrize("existing", [False, True])
def test_files_that_are_there_already(watch: Watch, tmp_path: Path, existing: bool) -> None:
    folder = tmp_path / "inbox"
    folder.mkdir()
    for number in (3, 1, 2):
        (folder / f"{number}.png").write_bytes(png(number))
    unfinished: IO[bytes]
    with (folder / "unfinished.png").open("wb") as unfinished:
        unfinished.write(png(4))
        unfinished.flush()  # all of it is there, but who could know?
        _, watcher = watch(existing=existing)
        if existing:
            assert [row for row in watcher.read(4) if row[1] != 4] == [
                (f"{i}.png", i) for i in (1, 2, 3)
            ]
    (folder / "1.png").rename(folder / "first.png")
    assert all_read(folder, watcher, 4 if existing else 1).count(("unfinished.png", 4)) == 1
    # One of them is written again, and renamed: it is new once.
    count = len(watcher.rows())
    (folder / "2.png").write_bytes(png(8))
    assert watcher.read(count + 1)[-1] == ("2.png", 8)
    (folder / "2.png").rename(folder / "second.png")
    (folder / "end.png").write_bytes(png(9))
    assert watcher.read(count + 2)[count:] == [("2.png", 8), ("end.png", 9)]


def test_a_burst_from_several_writers_is_read_once_each(watch: Watch) -> None:
    folder, watcher = watch()
    program = (
        "import sys; from pathlib import Path\n"
        "folder, first, content = Path(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])\n"
        "for i in range(first, first + 500):\n"
        "    if i % 2: (folder / f'{i}.png').write_bytes(content)\n"
        "    else:\n"
        "        part = folder / f'{i}.part'; part.write_bytes(content)\n"
        "        part.rename(folder / f'{i}.png')\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(folder), str(first), png(9).hex()])
        for first in (0, 500)
    ]
    assert [writer.wait(LONG) for writer in writers] == [0, 0]
    rows = all_read(folder, watcher, 1000)
    assert sorted(rows) == sorted((f"{i}.png", 9) for i in range(1000))


def test_events_that_the_kernel_dropped_lose_no_file(watch: Watch) -> None:
    folder, watcher = watch(start=False)
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 50_000:
        pytest.skip(f"fs.inotify.max_queued_events is {limit}: too many files would be written")
    (folder / "gone.png").write_bytes(b"P5 1 1 255 x")
    (folder / "gone.png").unlink()
    count = limit // 2 + 100  # a file is two events: created and closed
    for number in range(count):
        (folder / f"{number}.pgm").write_bytes(b"P5 1 1 255 x")
    watcher.start()
    watcher.read(count + 1)
    rows = all_read(folder, watcher, count + 1)
    assert sorted(row[0] for row in rows) == sorted(
        ["gone.png", *(f"{number}.pgm" for number in range(count))]
    )


def test_a_file_that_vanishes_is_said_and_one_that_moves_is_followed(
    watch: Watch, tmp_path: Path
) -> None:
    folder, watcher = watch(start=False)
    for name in ("gone.png", "moved.png", "left.png"):
        (folder / name).write_bytes(png(1))
    (folder / "gone.png").unlink()
    (folder / "moved.png").rename(folder / "here.png")
    (folder / "left.png").rename(tmp_path / "left.png")
    watcher.start()
    rows = dict(all_read(folder, watcher, 3))
    assert rows == {
        "gone.png": f"{folder}/gone.png was removed before it was read",
        "here.png": 1,
        "left.png": f"{folder}/left.png was removed before it was read",
    }


def test_a_damaged_file_is_an_error_and_the_others_are_read(watch: Watch) -> None:
    folder, watcher = watch()
    (folder / "half.png").write_bytes(png(1)[:40])
    (folder / "text.jpg").write_text("no image")
    rows = all_read(folder, watcher, 2)
    assert [name for name, _ in rows] == ["half.png", "text.jpg"]
    assert all("cannot be read as an image" in str(said) for _, said in rows)
    (folder / "half.png").write_bytes(png(1))
    assert watcher.read(4)[-1] == ("half.png", 1)


def test_a_damaged_file_that_nobody_closed_is_an_error_in_the_end(
    watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, watcher = watch()
    monkeypatch.setattr(watched_folder, "LAST_CHANCE", 0.2)
    (tmp_path / "half.png").write_bytes(png(1)[:40])
    (folder / "link.png").symlink_to(tmp_path / "half.png")
    ((name, said),) = watcher.read(1)
    assert (name, "cannot be read as an image" in str(said)) == ("link.png", True)


def test_the_end_of_the_folder_is_an_error(watch: Watch, tmp_path: Path) -> None:
    folder, watcher = watch()
    folder.rename(tmp_path / "elsewhere")
    watcher.join()
    assert "is gone: it was removed or renamed" in str(watcher.error)
    with pytest.raises(ImageError, match="cannot be watched: No such file"):
        WatchedFolder(folder, PREPROCESSING)


def test_a_folder_of_another_machine_is_looked_through(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, watcher = watch(start=False, rescan=0.1)
    # As inotify is there: nothing is said about what other machines write.
    monkeypatch.setattr(watcher.source._events, "read", lambda _: iter(()))
    watcher.start()
    for number in (1, 2):
        (folder / f"{number}.png").write_bytes(png(number))
        assert watcher.read(number)[-1] == (f"{number}.png", number)
    (folder / "1.png").unlink()
    (folder / "1.png").write_bytes(png(3))
    assert watcher.read(3)[-1] == ("1.png", 3)
