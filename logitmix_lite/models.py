"""Where weights come from: the tiny models of this repository, SmolLM2, any folder, or the Hugging Face Hub."""

import json
import os
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .fast.lora import decoder_layers
from .fast.precision import trainable
from .hf import Mixture, MixtureConfig, lacks_tokenizer

HOME = Path(os.environ.get("LOGITMIX_HOME", Path.home() / ".cache" / "logitmix_lite"))
PACKAGE = Path(__file__).resolve().parent  # a wheel has the small models inside
DATA = (PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").exists() else PACKAGE) / "data"


def locate(source: str | Path) -> str:
    """The folder of a named model, or the name itself where it is a folder or a model of the Hub.

    Names: tiny-base, tiny-anchor and smol-anchor (an adapter), which are in data/, and smol, made by `fetch smol`."""
    sft = "python -m logitmix_lite sft --preset smol --out anchor` and name it by `--anchor anchor/final"
    known = {
        "tiny-base": (DATA / "tiny" / "base", "python -m logitmix_lite tiny"),
        "tiny-anchor": (DATA / "tiny" / "anchor", "python -m logitmix_lite tiny"),
        "smol": (HOME / "smol", "python -m logitmix_lite fetch smol"),
        "smol-anchor": (DATA / "smol" / "anchor", sft),
    }
    if str(source) not in known:  # a folder by its full path, so that what is trained on it knows where it is
        return str(Path(source).resolve()) if Path(source).is_dir() else str(source)
    folder, command = known[str(source)]
    if not (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
        raise FileNotFoundError(f"{source} is not there yet: make it with `{command}`")
    return str(folder)


def load_tokenizer(source: str | Path):
    """The tokenizer of a model; a missing one is a clear FileNotFoundError."""
    if lacks_tokenizer(locate(source)):
        raise FileNotFoundError(f"{source} holds no tokenizer")
    tokenizer = _load(AutoTokenizer, source, padding_side="left")
    if tokenizer.pad_token_id is None:  # what stands in the padding is never looked at
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return tokenizer


def load_model(source: str | Path, dtype: str = "auto", device: str | None = None) -> PreTrainedModel:
    """A causal language model in evaluation mode, by name, folder or Hub id.

    dtype "auto": float32 on a CPU, bfloat16 on a GPU that has it, else float16. device: default a GPU, if there is one.
    """
    device = device or default_device()
    # a pickle of weights could run code; safetensors can't
    return _load(AutoModelForCausalLM, source, dtype=load_dtype(dtype, device), use_safetensors=True).to(device).eval()


def load_dtype(dtype: str, device: str) -> torch.dtype:
    """The dtype by its name; "auto" as `load_model` explains it."""
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16" if torch.cuda.is_bf16_supported(False) else "float16"
    return getattr(torch, dtype)


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def is_adapter(source: str | Path) -> bool:
    """Whether a folder holds a LoRA adapter rather than a model."""
    return (Path(locate(source)) / "adapter_config.json").exists()


def load_policy(source: str | Path, base: str | None = None, dtype: str = "auto") -> Mixture:
    """Whatever `train`, `sft` or the Hub made, as a Mixture to sample from: a mixture, a model, or a LoRA adapter.

    base: the backbone of adapters, where the folder that they were trained on is no longer there."""
    if is_adapter(source):
        backbone = present(LoraConfig.from_pretrained(locate(source)).base_model_name_or_path, base)
        if not backbone:
            raise ValueError(f"the adapter {source} does not say what it was trained on: name it by --base")
        model = _with_adapter(load_model(backbone, dtype), source, "theta")
        return Mixture([model], [1.0], adapters=["theta"]).eval()
    if is_mixture(source):
        backbone = MixtureConfig.from_pretrained(source).backbone
        backbone = backbone and locate(present(backbone, base))
        device = default_device()
        return Mixture.from_pretrained(source, dtype=load_dtype(dtype, device), backbone=backbone).to(device)
    model = load_model(source, dtype)
    return model if isinstance(model, Mixture) else Mixture([model]).eval()  # the Hub may hold a mixture too


def is_mixture(source: str | Path) -> bool:
    """Whether a folder holds a whole mixture, as `train` writes it to final/."""
    path = Path(source) / "config.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8")).get("model_type") == MixtureConfig.model_type


def present(recorded: str | None, base: str | None) -> str | None:
    """The backbone as it was recorded, or `base` where that was a folder which is gone."""
    local = recorded and (Path(recorded).is_absolute() or (base and Path(base).is_dir()))
    gone = not recorded or (local and not Path(recorded).is_dir())
    return base if base and gone else recorded


def make_mixture(
    init: str, anchor: str | None, base: str, alpha: float, rule="logit", *, rank=0, scale=32, blocks=0, dtype="auto"
):
    """The trained mixture: theta starting from `init`, ref frozen at `anchor`, weights `(1 - alpha, alpha)`.

    anchor None: theta alone. rank 0: two models. rank > 0: two LoRA adapters (or one and the bare model) on `base`;
    `init` and `anchor` are then "base" or adapter folders."""
    init, anchor = (base if source == "base" else source for source in (init, anchor))
    for source in filter(None, (init, anchor, base)):
        if is_mixture(source):
            member = "theta" if rank else "member_0"
            raise ValueError(f"{source} is a mixture: name one policy of it, such as {Path(source) / member}")
    weights = [1.0] if anchor is None else [1 - alpha, alpha]
    if rank == 0:
        for source in filter(None, (init, anchor)):
            if is_adapter(source):
                raise ValueError(f"{source} is a LoRA adapter: give --lora-rank, or a whole model")
        members = [load_model(source, dtype) for source in (init, anchor) if source is not None]
        mixture = Mixture(members, weights, rule)
    else:
        for source in filter(None, (init, anchor)):
            if source != base and not is_adapter(source):
                raise ValueError(f"{source} holds no LoRA adapter: use one made by `sft`, or --lora-rank 0")
        model = load_model(base, dtype)
        if init == base:
            model = add_lora(model, rank, scale, blocks)
        else:
            model = _with_adapter(model, init, "theta", is_trainable=True)
        ref = None
        if anchor not in (None, base):
            ref = "ref"
            model = _with_adapter(model, anchor, ref)
        mixture = Mixture([model], weights, rule, ["theta", ref][: len(weights)])
    for name, parameter in mixture.named_parameters():
        parameter.requires_grad_(name.startswith("members.0") if rank == 0 else ".theta." in name)
    return mixture.eval()


@torch.no_grad()
def average_with_base(mixture: Mixture, base: str) -> None:
    """Move theta halfway from the anchor, where it is, to base: WiSE-FT's average of weights (arXiv:2109.01903)."""
    if mixture.adapters:  # base's update is zero, and an update is the product of two matrices: halve one of them
        for name, parameter in trainable(mixture).items():
            if "lora_B" in name:
                parameter *= 0.5
        return
    weights = load_model(base, "float32", "cpu").state_dict()
    for name, parameter in trainable(mixture).items():
        parameter.lerp_(weights[name.removeprefix("members.0.")].to(parameter), 0.5)


def add_lora(model: PreTrainedModel, rank: int, scale: int, blocks: int = 0, name: str = "theta") -> PeftModel:
    """The model with a fresh adapter on every linear layer inside its transformer layers; it starts as the same policy.

    blocks: in that many of the last transformer layers only; 0: in all."""
    layers = decoder_layers(model)
    if blocks > len(layers):
        raise ValueError(f"the model has {len(layers)} layers, there are no last {blocks}: lower --lora-blocks")
    inside = {id(module) for layer in layers[-blocks:] for module in layer.modules()}
    linear = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    config = LoraConfig(
        r=rank, lora_alpha=scale, target_modules=[path for path, module in linear.items() if id(module) in inside],
        task_type="CAUSAL_LM", fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear.values()),
    )  # fmt: skip
    return get_peft_model(model, config, adapter_name=name)


def _with_adapter(model: PreTrainedModel | PeftModel, source: str | Path, name: str, **kwargs) -> PeftModel:
    """The model with the adapter of a folder, as `name`. ValueError where it does not fit."""
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(locate(source), adapter_name=name, **kwargs)
            return model
        return PeftModel.from_pretrained(model, locate(source), adapter_name=name, **kwargs)
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"the adapter {source} does not fit this model: {_first_line(error)}") from None


def save_policy(model: PreTrainedModel | PeftModel, folder: Path, base: str) -> None:
    """Write a model, or its adapter "default" with `base` as the name of the backbone it belongs to."""
    if isinstance(model, PeftModel):
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    else:
        model.save_pretrained(folder)


def check_precision(model: nn.Module) -> None:
    """Raise ValueError where what is trained has 16 bits."""
    if any(p.dtype.itemsize < 4 for p in trainable(model).values()):
        raise ValueError("small updates vanish in 16-bit weights: add --dtype float32, or a --lora-rank")


def _load(loader, source: str | Path, **kwargs):
    folder = locate(source)
    if not Path(folder).is_dir() and (
        Path(folder).is_absolute() or folder.startswith((".", "~")) or folder.count("/") != 1
    ):
        raise FileNotFoundError(f"no model at {source}: no such folder")
    try:
        return loader.from_pretrained(folder, **kwargs)
    except (OSError, ValueError, SafetensorError) as error:
        if Path(folder).is_dir():
            raise FileNotFoundError(
                f"{source} holds no {loader.__name__[4:]} that loads: {_first_line(error)}"
            ) from None
        raise FileNotFoundError(
            f"{source} is neither a folder here nor a model that the Hugging Face Hub gave us ({_first_line(error)}): "
            "check the name and the connection"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
