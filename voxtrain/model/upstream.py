"""The only import of voxcpm: its model, built and loaded strictly, and silent.

Two forms of the model leave this file. The training form holds fp32 (or other) weights and neither AudioVAE nor KV
caches; the speaking form is what upstream's own `from_local` gives. Read against voxcpm 2.0.3.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from voxtrain.fault import Fault, InputError
from voxtrain.model.adapter_files import read_adapter_config, upstreams_fields
from voxtrain.model.adapters import adapters, load_adapter, start_adapters
from voxtrain.model.device import encoding_machine
from voxtrain.model.folder import TOKENIZER, VAE_WEIGHTS, WEIGHTS, check_folder, first_of
from voxtrain.model.weights import check_names, open_weights

with warnings.catch_warnings():  # torch.jit.script is deprecated, and a dozen like it
    warnings.simplefilter("ignore")
    from transformers import LlamaTokenizerFast
    from voxcpm.model.utils import mask_multichar_chinese_tokens
    from voxcpm.model.voxcpm2 import LoRAConfig, VoxCPM2Model, VoxCPMConfig
    from voxcpm.modules.audiovae import AudioVAEConfigV2, AudioVAEV2
    from voxcpm.modules.layers.lora import LoRALinear, apply_lora_to_named_linear_modules
    from voxcpm.modules.minicpm4.model import MiniCPMLongRoPE, MiniCPMModel

if TYPE_CHECKING:
    from voxtrain.model.tuning import LoraTuning

__all__ = ["AudioVAEV2", "MiniCPMModel", "VoxCPM2Model", "adapters", "load_adapter"]


@contextmanager
def quiet() -> Iterator[None]:
    """Swallow what upstream prints, its progress bars and its libraries' warnings, inside the context alone."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def parse_architecture(architecture: dict[str, Any], where: str) -> VoxCPMConfig:
    """Upstream's configuration object. Raises InputError for what upstream or our loss cannot take."""
    try:
        config = VoxCPMConfig.model_validate(architecture)
    except ValidationError as error:
        told = "; ".join(".".join(map(str, one["loc"])) + ": " + one["msg"] for one in error.errors()[:4])
        raise InputError(Fault(where, f"upstream cannot read it: {told}", "fetch the model again")) from None
    cfm = config.dit_config.cfm_config
    noisy = cfm.noise_cond_scale != 0 and any(cfm.noise_cond_prob_range)
    if config.dit_config.dit_mean_mode or cfm.t_scheduler != "log-norm" or noisy:
        what = "mean mode, noisy conditions or a flow time that is not log-normal: no released VoxCPM 2 uses these"
        raise InputError(Fault(where, f"the loss is of a kind that voxtrain does not compute: {what}", "use a release"))
    return config


def load_tokenizer(folder: Path) -> Callable[[str], list[int]]:
    """Upstream's tokenizer: text -> token ids, without begin or end tokens, Chinese words split into characters."""
    return _tokenizer(folder)


@lru_cache(maxsize=2)
def _tokenizer(folder: Path) -> Callable[[str], list[int]]:
    wrapped: Callable[[str], list[int]] = mask_multichar_chinese_tokens(_bare_tokenizer(folder))
    return wrapped


def _bare_tokenizer(folder: Path) -> LlamaTokenizerFast:
    path = first_of(folder, TOKENIZER) or folder
    try:
        with quiet():
            tokenizer: LlamaTokenizerFast = LlamaTokenizerFast.from_pretrained(str(folder), local_files_only=True)
            return tokenizer
    except Exception as error:  # a broken JSON raises a bare Exception of the Rust side
        raise InputError(Fault(str(path), f"the tokenizer cannot be read: {error}", "fetch the model again")) from None


def build_model(
    architecture: dict[str, Any], tokenizer: Path | None, vae: Any, adapter_config: dict[str, Any] | None = None
) -> VoxCPM2Model:
    """Upstream's model with whatever weights its constructor gives, on the default device; `tokenizer` is a folder.

    tokenizer None: a model that reads no text. adapter_config: see LoraTuning.adapter_config.
    """
    config = parse_architecture(architecture, str(tokenizer / "config.json") if tokenizer else "model.architecture")
    bare = _bare_tokenizer(tokenizer) if tokenizer else SimpleNamespace(vocab={})
    with quiet():
        lora = LoRAConfig(**upstreams_fields(adapter_config)) if adapter_config else None
        model = VoxCPM2Model(config, bare, vae, lora, device="cpu")
    if adapter_config:
        _place_beyond_upstream(model, adapter_config)
    return model


def absent_vae(architecture: dict[str, Any]) -> SimpleNamespace:
    """What upstream's constructor reads of an AudioVAE, where the model shall have none."""
    config = AudioVAEConfigV2(**architecture["audio_vae_config"])
    return SimpleNamespace(
        chunk_size=prod(config.encoder_rates),
        decode_chunk_size=prod(config.decoder_rates),
        sample_rate=config.sample_rate,
        out_sample_rate=config.out_sample_rate,
    )


def build_vae(architecture: dict[str, Any]) -> AudioVAEV2:
    """Upstream's AudioVAE with whatever weights its constructor gives, on the default device."""
    with quiet():
        return AudioVAEV2(config=AudioVAEConfigV2(**architecture["audio_vae_config"]))


def load_model(
    folder: Path, lora: LoraTuning | None, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> VoxCPM2Model:
    """The training form on `device`, weights in `dtype`, frozen as the tuning says.

    Weights go from the file to the device one tensor at a time, so that no second copy of the model ever stands in
    memory. Adapters are fp32 and begin as upstream's do (A uniform, B zero), drawn from `seed`.
    Raises InputError when the folder is not a whole VoxCPM 2 or its weights do not fit its config.json.
    """
    architecture = check_folder(folder)
    with torch.device("meta"):
        model = build_model(architecture, folder, absent_vae(architecture), lora.adapter_config() if lora else None)
    del model.audio_vae
    model.base_lm.kv_cache = model.residual_lm.kv_cache = None
    _read_weights(model, folder, device, dtype)
    for module in list(model.modules()):
        if isinstance(module, MiniCPMLongRoPE):
            MiniCPMLongRoPE.__init__(module, module.config)  # its tables are in no file: compute them anew
        elif isinstance(module, LoRALinear):
            module.scaling = torch.tensor(module._base_scaling)
    start_adapters(model, seed)
    model.requires_grad_(lora is None)
    for parameter in adapters(model).values():
        parameter.requires_grad_(True)
    model.device = str(device)
    return model.to(device)


def _read_weights(model: VoxCPM2Model, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items() if "lora_" not in name}
    with open_weights(_weights_path(folder)) as file:
        check_names(file.without("audio_vae."), expected)
        state = {name: file.read(name).to(device, dtype, copy=True) for name in expected}
    model.load_state_dict(state, strict=False, assign=True)


def _weights_path(folder: Path) -> Path:
    path = first_of(folder, WEIGHTS)
    assert path is not None, "check_folder looked"
    return path


def _place_beyond_upstream(model: VoxCPM2Model, adapter_config: Mapping[str, Any]) -> None:
    """Adapters where upstream's LoRAConfig has no field: on the decoder layers of LocEnc, and on both stop layers."""
    places = (
        (model.feat_encoder.encoder, adapter_config["locenc_targets"]),
        (model, ("stop_proj", "stop_head") if adapter_config["stop_head"] else ()),
    )
    rank, alpha = adapter_config["r"], adapter_config["alpha"]
    for where, names in places:
        apply_lora_to_named_linear_modules(where, target_submodule_names=names, r=rank, alpha=alpha, dropout=0.0)


def load_speaker(folder: Path, adapter: Path | None, device: torch.device) -> VoxCPM2Model:
    """The speaking form, as upstream's users get it: `from_local`, then `load_lora_weights` where there is an adapter.

    `adapter` is the folder of a LoRA checkpoint. Raises InputError when weights are missing, unknown or of another
    shape, which upstream would pass over.
    """
    parse_architecture(check_folder(folder), str(folder / "config.json"))
    config = read_adapter_config(adapter) if adapter else None
    lora = LoRAConfig(**upstreams_fields(config)) if config else None
    with open_weights(_weights_path(folder)) as file, quiet():
        model = VoxCPM2Model.from_local(str(folder), optimize=False, device=str(device), lora_config=lora)
        names = {name: tuple(t.shape) for name, t in model.state_dict().items() if "lora_" not in name}
        expected = {n: s for n, s in names.items() if not n.startswith("audio_vae.")}
        check_names(file.without("audio_vae."), expected)
        if adapter and config:
            _place_beyond_upstream(model, config)
            for layer in model.modules():
                if isinstance(layer, LoRALinear):
                    layer.to(layer.weight.device, layer.weight.dtype)  # as `from_local` has put those that it placed
            load_adapter(model, adapter)
    return model


def vae_key(folder: Path) -> str:
    """What latents depend on besides the audio: AudioVAE weights and configuration, patch size, machine, threads."""
    architecture, path = check_folder(folder), first_of(folder, VAE_WEIGHTS)
    assert path is not None
    layout = (sorted(architecture["audio_vae_config"].items()), architecture["patch_size"])
    device = _encoder_device().type
    digest = hashlib.sha256(repr((layout, encoding_machine(device))).encode())
    with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    threads = torch.get_num_threads() if device == "cpu" else ""  # there the last bits depend on their number
    return f"{digest.hexdigest()[:20]}_{device}{threads}"


def load_vae(folder: Path) -> AudioVAEV2:
    """The AudioVAE in fp32 on the CPU, frozen. Raises InputError when the file does not fit config.json."""
    architecture, path = check_folder(folder), first_of(folder, VAE_WEIGHTS)
    assert path is not None
    vae = build_vae(architecture)
    expected = {name: tuple(t.shape) for name, t in vae.state_dict().items()}
    buffers = frozenset(name for name, _ in vae.named_buffers())
    with open_weights(path) as file:
        check_names(file, expected, may_lack=buffers)
        vae.load_state_dict({name: file.read(name) for name in file.shapes}, strict=False)
    return vae.float().eval().requires_grad_(False)


def load_encoder(folder: Path) -> Callable[[np.ndarray], Tensor]:
    """Encode: wave [samples] float32 at 16 kHz -> latents [A, P, D] float32 on the CPU, as upstream's packer encodes.

    The AudioVAE is loaded once, onto the GPU where there is one, and stays until `release_encoder`.
    """
    return _encoder(folder)


@lru_cache(maxsize=1)
def _encoder(folder: Path) -> Callable[[np.ndarray], Tensor]:
    vae, patch = load_vae(folder).to(_encoder_device()), int(check_folder(folder)["patch_size"])
    hop = int(vae.hop_length)

    def encode(wave: np.ndarray) -> Tensor:
        if wave.ndim != 1 or wave.size == 0:
            raise ValueError(f"a wave of one channel and at least one sample is needed, not {wave.shape}")
        audio = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)).to(_encoder_device())
        audio = torch.nn.functional.pad(audio, (0, -audio.numel() % (hop * patch)))  # packers.py: encode_audio
        with (
            torch.no_grad(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            latents: Tensor = vae.encode(audio[None, None], vae.sample_rate)  # [1, D, A*P]
        return latents[0].T.reshape(-1, patch, latents.shape[1]).contiguous().cpu()

    return encode


def release_encoder() -> None:
    """Let the AudioVAE go, so that it never sits on the training GPU."""
    _encoder.cache_clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _encoder_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
