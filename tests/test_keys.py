"""Key files, lists of authorised keys, and signatures of bundles; and their commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import zmq
from peers import LOCAL, LONG
from processes import Process
from typer.testing import CliRunner, Result

from scissionlite.bundle import SIGNATURE_NAME, Bundle
from scissionlite.cli import app
from scissionlite.errors import BundleError, KeyFileError, SignatureError
from scissionlite.keys import authorized
from scissionlite.keys.files import KeyKind, make_key_pair, read_public, read_secret
from scissionlite.manifest import MANIFEST_NAME
from scissionlite.offloader import DeviceKeys, EdgeKeys
from scissionlite.offloader.slices import open_slice


def command(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.mark.parametrize("kind", ["link", "signing"])
def test_a_key_pair_is_two_files_and_only_its_owner_reads_the_secret(
    tmp_path: Path, kind: KeyKind
) -> None:
    umask = os.umask(0)
    try:
        made = make_key_pair(tmp_path / "camera 7.key", kind)
    finally:
        os.umask(umask)
    secret, public = tmp_path / "camera 7.key", tmp_path / "camera 7.key.pub"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert made.name == "camera-7"
    assert read_public(public, kind) == read_public(public) == made
    read = read_secret(secret, kind)
    assert read.public == read_secret(secret).public == made
    assert made.key not in secret.read_text()
    assert str(read.raw) not in repr(read)
    before = secret.read_bytes(), public.read_bytes()
    with pytest.raises(KeyFileError, match="a key is never replaced"):
        make_key_pair(tmp_path / "camera 7.key", kind)
    assert (secret.read_bytes(), public.read_bytes()) == before
    assert make_key_pair(tmp_path / "other", kind).key != made.key
    other: KeyKind = "signing" if kind == "link" else "link"
    with pytest.raises(KeyFileError, match=f"is not a {other} key"):
        read_secret(secret, other)
    with pytest.raises(KeyFileError, match=f"is not a public {other} key"):
        read_public(public, other)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o610])
def test_a_secret_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    make_key_pair(tmp_path / "edge")
    (tmp_path / "edge").chmod(mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:04o}.*chmod 600"):
        EdgeKeys(tmp_path / "edge", tmp_path / "edge.pub")
    (tmp_path / "edge").chmod(0o400)
    assert EdgeKeys(tmp_path / "edge", tmp_path / "edge.pub").public


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has 0 lines"),
        (b"# nothing but a comment\n", "has 0 lines"),
        (b"\x00\xff\xfe", "is not text"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "three words"),
        (b"scissionlite-link-secret AAAA edge\n", "not 32 bytes in base64"),
        (b"scissionlite-link-secret %s edge\n" % (b"A" * 44), "not 32 bytes in base64"),
        (b"scissionlite-link-secret %sB= edge\n" % (b"A" * 42), "not 32 bytes in base64"),
        (b"scissionlite-link-secret %sA= edge one\n" % (b"A" * 42), "three words"),
        (b"scissionlite-link-secret %sA= a/b\n" % (b"A" * 42), "name is not"),
        (b"scissionlite-link %sA= edge\n" % (b"A" * 42), "is a public key"),
        (b"ssh-ed25519 %sA= edge\n" % (b"A" * 42), "is not a link key"),
        (2 * b"scissionlite-link-secret %sA= edge\n" % (2 * (b"A" * 42,)), "has 2 lines"),
        (bytes(2 << 20), "over 1048576 bytes"),
    ],
)
def test_a_damaged_secret_is_named_and_never_shown(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    file = tmp_path / "edge"
    file.touch(0o600)
    file.write_bytes(content)
    with pytest.raises(KeyFileError, match=reason) as caught:
        read_secret(file, "link")
    assert "A" * 10 not in str(caught.value)
    assert str(file) in str(caught.value)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, reason in (("pipe", "is not a file"), (".", "directory"), ("none", "No such file")):
        for read in (read_secret, read_public):
            with pytest.raises(KeyFileError, match=reason):
                read(tmp_path / name, "link")
    with pytest.raises(KeyFileError, match="cannot be written: No such file"):
        make_key_pair(tmp_path / "none" / "key")
    for name in ("", "two words", "x" * 65, "ü", "a\nb"):
        with pytest.raises(KeyFileError, match="a key's name is"):
            make_key_pair(tmp_path / "key", name=name)


def test_secret_and_public_key_taken_for_each_other_are_named(tmp_path: Path) -> None:
    for name in ("camera", "edge"):
        make_key_pair(tmp_path / name)
    (tmp_path / "camera.pub").chmod(0o600)
    with pytest.raises(KeyFileError, match="is a public key: give the secret file"):
        DeviceKeys(tmp_path / "camera.pub", tmp_path / "edge.pub")
    with pytest.raises(KeyFileError, match="is a secret key: give the public one"):
        DeviceKeys(tmp_path / "camera", tmp_path / "edge")


def test_a_zeromq_without_curve_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_key_pair(tmp_path / "edge")
    # No such build is at hand: PyPI's wheels all have CURVE.
    monkeypatch.setattr(zmq, "has", lambda capability: capability != "curve")
    with pytest.raises(KeyFileError, match="has no CURVE encryption: install pyzmq's wheel"):
        DeviceKeys(tmp_path / "edge", tmp_path / "edge.pub")


def test_keys_are_authorised_and_revoked_whole(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    real, link = folder / "real", tmp_path / "authorized_keys"
    link.symlink_to(real)
    keys = {name: make_key_pair(tmp_path / name) for name in ("one", "two", "three")}
    real.write_text("# cameras of hall 1")  # without a newline at its end
    real.chmod(0o640)
    for key in keys.values():
        authorized.authorize(link, key)
    assert authorized.read_keys(link, "link") == list(keys.values())
    with pytest.raises(KeyFileError, match="authorises this key already, as one"):
        authorized.authorize(link, keys["one"])
    with pytest.raises(KeyFileError, match="another key of the name one"):
        authorized.authorize(link, make_key_pair(tmp_path / "again", name="one"))
    assert authorized.revoke(link, "two") == keys["two"]
    assert authorized.revoke(link, keys["three"].key) == keys["three"]
    with pytest.raises(KeyFileError, match="authorises no key 'two'"):
        authorized.revoke(link, "two")
    assert real.read_text() == f"# cameras of hall 1\n{keys['one'].line}\n"
    assert real.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert list(folder.iterdir()) == [real]


def test_many_writers_lose_no_key(tmp_path: Path, background: Callable[..., object]) -> None:
    keys = [make_key_pair(tmp_path / f"camera-{n}") for n in range(40)]
    (tmp_path / "list").write_text(f"{make_key_pair(tmp_path / 'thief').line}\n")
    jobs = [background(authorized.authorize, tmp_path / "list", key) for key in keys]
    jobs.insert(20, background(authorized.revoke, tmp_path / "list", "thief"))
    for job in jobs:
        job.result()  # type: ignore[attr-defined]
    left = authorized.read_keys(tmp_path / "list", "link")
    assert sorted(key.name for key in left) == sorted(key.name for key in keys)


@pytest.fixture
def signed(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the bundle, signed by ``signer``; other keys beside it."""
    for name in ("signer", "other"):
        make_key_pair(tmp_path / name, "signing")
    shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    signer = Bundle.load(tmp_path / "bundle").sign(tmp_path / "signer")
    assert signer == read_public(tmp_path / "signer.pub")
    return tmp_path


def test_a_bundle_is_taken_from_those_who_are_trusted_only(signed: Path) -> None:
    bundle, signer, other = (signed / name for name in ("bundle", "signer.pub", "other.pub"))
    assert Bundle.load(bundle, trust=signer).id == Bundle.load(bundle).id
    both = signed / "both"
    both.write_text(f"# whom we trust\n{other.read_text()}\n{signer.read_text()}")
    Bundle.load(bundle, trust=both)
    with pytest.raises(SignatureError, match=r"is signed by .*, which is no key of"):
        Bundle.load(bundle, trust=other)
    Bundle.load(bundle).sign(signed / "other")  # takes the place of the first
    Bundle.load(bundle, trust=other)
    with pytest.raises(SignatureError, match="no key of"):
        Bundle.load(bundle, trust=signer)
    (bundle / SIGNATURE_NAME).unlink()
    with pytest.raises(SignatureError, match="is not signed"):
        Bundle.load(bundle, trust=signer)
    make_key_pair(signed / "link")
    for file, reason in (("link.pub", "not a public signing key"), ("none", "No such file")):
        with pytest.raises(KeyFileError, match=reason):
            Bundle.load(bundle, trust=signed / file)


def test_every_alteration_of_a_signed_bundle_is_found(signed: Path) -> None:
    bundle, trust = signed / "bundle", signed / "signer.pub"
    manifest, signature = bundle / MANIFEST_NAME, bundle / SIGNATURE_NAME
    whole = manifest.read_bytes()
    for changed in (whole + b" ", whole.replace(b"tiny", b"tony"), whole[:-1], b""):
        manifest.write_bytes(changed)
        with pytest.raises(SignatureError, match="was altered after signer signed it"):
            Bundle.load(bundle, trust=trust)
    manifest.write_bytes(whole)
    right = signature.read_bytes()
    word, key, proof = right.split()
    for damaged in (
        b"",
        b"\xff\x00",
        right[:-20],
        b" ".join((word, key)),
        b" ".join((word, key, proof[:-8])),
        b" ".join((word, key, proof, b"more")),
        b" ".join((word, key, b"A" * len(proof))),
        b" ".join((word, key, b"%%%")),
        b" ".join((word, proof, key)),
        b" ".join((word, key, proof + b"A" * (1 << 20))),
        bytes(1 << 20),
    ):
        signature.write_bytes(damaged)
        with pytest.raises(SignatureError):
            Bundle.load(bundle, trust=trust)
    signature.write_bytes(right)
    slice_file = bundle / "edge.pt"
    weights = slice_file.read_bytes()
    slice_file.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    opened = Bundle.load(bundle, trust=trust)
    with pytest.raises(BundleError, match="does not match its digest"):
        open_slice(opened, "edge", opened.manifest.crossing, None, None)
    with pytest.raises(BundleError, match="does not match its digest"):
        opened.sign(signed / "signer")


def test_a_slice_that_is_replaced_after_its_check_is_not_loaded(
    signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.load(signed / "bundle", trust=signed / "signer.pub")
    weights = (bundle.path / "edge.pt").read_bytes()
    loaded = []

    def replace_and_load(path: Path, *_: object) -> None:
        (bundle.path / "edge.pt").write_bytes(b"something else")
        loaded.append(path.read_bytes())
        with pytest.raises(OSError, match="not permitted"):
            path.write_bytes(b"something else")
        raise KeyboardInterrupt

    monkeypatch.setattr("scissionlite.offloader.slices.load_slice", replace_and_load)
    with pytest.raises(KeyboardInterrupt):
        open_slice(bundle, "edge", bundle.manifest.crossing, None, None)
    assert loaded == [weights]


def test_without_pynacl_one_error_says_what_to_install(signed: Path) -> None:
    code = (
        "import sys; sys.modules['nacl'] = None; import scissionlite as sl\n"
        "sl.Bundle.load(sys.argv[1])\n"
        "try: sl.Bundle.load(sys.argv[1], trust=sys.argv[2])\n"
        "except sl.ScissionLiteError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(signed / "bundle"), str(signed / "signer.pub")],
        timeout=LONG,
        capture_output=True,
        text=True,
    )
    assert "pip install 'scissionlite[sign]'" in done.stdout


@pytest.mark.long
def test_the_commands_from_keys_to_answers(
    signed: Path, shared_frame: Path, start_process: Callable[..., Process]
) -> None:
    for name in ("edge", "camera"):
        made = command("keys", "make", signed / name, "--json")
        assert msgspec.json.decode(made.stdout)["name"] == name
        shown = command("keys", "show", signed / name)
        assert shown.stdout == (signed / f"{name}.pub").read_text()
    keys = signed / "authorized_keys"
    assert command("keys", "authorize", keys, signed / "camera.pub").exit_code == 0
    listed = msgspec.json.decode(command("keys", "list", keys, "--json").stdout)
    assert [key["name"] for key in listed] == ["camera"]
    assert command("sign", signed / "bundle", signed / "signer").exit_code == 0
    edge = start_process(
        *("scissionlite", "serve", str(signed / "bundle"), "--bind", LOCAL, "--json"),
        *("--key", str(signed / "edge"), "--authorized", str(keys)),
        *("--trust", str(signed / "signer.pub")),
    )
    ready = edge.read_json()
    assert ready["public_key"] == read_public(signed / "edge.pub").key
    run = ["run", signed / "bundle", shared_frame, "--connect", ready["endpoint"]]
    run += ["--control", ready["control_endpoint"], "--key", signed / "camera", "--json"]
    run += ["--edge-key", signed / "edge.pub", "--trust"]
    device = start_process("scissionlite", *map(str, run), str(signed / "signer.pub"))
    assert msgspec.json.decode(device.read_all())["summary"]["edge"] == 1
    untrusted = command(*run, signed / "other.pub")
    assert (untrusted.exit_code, untrusted.output[:23]) == (1, "error: SignatureError: ")
    assert command("keys", "revoke", keys, "camera").exit_code == 0
    refused = command(*run, signed / "signer.pub")
    assert (refused.exit_code, refused.output[:27]) == (1, "error: AuthorizationError: ")
    missing = command("keys", "show", signed / "none")
    assert (missing.exit_code, missing.output[:21]) == (1, "error: KeyFileError: ")
    half = command(*run[:7], "--key", signed / "camera")
    assert (half.exit_code, "go together" in half.output) == (2, True)
    probed = command("probe", *run[4:5], "--key", signed / "camera")
    assert (probed.exit_code, "go together" in probed.output) == (2, True)
    assert edge.terminate() == 0


@pytest.fixture
def shared_frame(tmp_path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (32, 32), (200, 80, 40)).save(tmp_path / "frame.png")
    return tmp_path / "frame.png"
