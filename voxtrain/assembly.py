"""The parts of a run, built from its settings: its data, its memory plan, its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from voxtrain.fault import InputError
from voxtrain.manifest.prepare import read_split
from voxtrain.memory.plan import MemoryPlan, Work, fit_faults
from voxtrain.memory.remedies import remedies, told
from voxtrain.memory.stack import MemoryStack
from voxtrain.run_folder import DataFolder, RunFolder
from voxtrain.run_plan import plan_memory, plan_work
from voxtrain.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from voxtrain.data.datamodule import SpeechDataModule
    from voxtrain.model.module import VoxModule
    from voxtrain.ranks.group import Ranks


@dataclass(frozen=True, slots=True)
class RunMemory:
    """The memory plan of a run, and what it was made of."""

    plan: MemoryPlan
    work: Work
    stack: MemoryStack

    def remedies(self) -> str:
        """What would save memory, in words: some seconds of planning, which a run that fits can do without."""
        return told(remedies(self.work, self.stack, self.plan, count=2))


def data_module(settings: Settings, run: RunFolder, first_step: int, ranks: Ranks) -> SpeechDataModule:
    """The rows of the run. The AudioVAE is loaded only for clips that have no cached latents yet."""
    from voxtrain.data.datamodule import SpeechDataModule
    from voxtrain.model import upstream
    from voxtrain.model.size import training_cfg_rate

    folder = settings.model.folder

    def encode(wave: NDArray[np.float32]) -> Tensor:
        return upstream.load_encoder(folder())(wave)

    return SpeechDataModule(
        source=settings.data,
        clean=settings.clean,
        split=settings.split,
        seed=settings.seed,
        batch_size=settings.train.batch_size,
        grad_accum=settings.train.grad_accum,
        max_positions=settings.memory.max_positions,
        first_step=first_step,
        total_steps=settings.train.total_steps(),
        folder=DataFolder(run.data),
        tokenize=upstream.load_tokenizer(folder()),
        encode=encode,
        vae_key=lambda: upstream.vae_key(folder()),
        cfg_rate=training_cfg_rate(settings.model.architecture),
        rank=ranks.rank,
        ranks=ranks.size,
    )


def memory_plan(settings: Settings, run: RunFolder) -> RunMemory:
    """The plan for the longest step of the actual rows. Raises InputError when it does not fit the card."""
    work = plan_work(settings, read_split(DataFolder(run.data), "train"), settings.model.folder())
    plan = plan_memory(settings, work, run.checkpoint_steps())
    memory = RunMemory(plan, work, settings.memory)
    faults = fit_faults(plan, settings.memory, memory.remedies)
    if faults:
        raise InputError(*faults)
    return memory


def vox_module(settings: Settings, ranks: Ranks) -> VoxModule:
    """The model on its device, with its optimizer rule, schedule and memory stack."""
    import torch

    from voxtrain.memory.host import keep_freed_memory
    from voxtrain.model import upstream
    from voxtrain.model.module import VoxModule
    from voxtrain.model.operators import prepare
    from voxtrain.model.tuning import LoraTuning

    upstream.release_encoder()
    if settings.trainer.kernels == "cpu":
        keep_freed_memory()
    device = torch.device("cuda", ranks.rank) if settings.trainer.accelerator == "cuda" else torch.device("cpu")
    lora = settings.tuning if isinstance(settings.tuning, LoraTuning) else None
    held = settings.memory.weights if lora is None else settings.memory.frozen
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[held]
    prepare(settings.trainer.kernels, device, torch.bfloat16 if settings.memory.autocast else dtype)
    return VoxModule(
        upstream.load_model(settings.model.folder(), lora, device, dtype, settings.seed),
        settings.tuning,
        settings.optimizer,
        settings.schedule,
        weights_diff=settings.train.loss_weights.diff,
        weights_stop=settings.train.loss_weights.stop,
        weight_stop_positive=settings.train.loss_weights.stop_positive,
        loss_normalisation=settings.train.loss_normalisation,
        max_grad_norm=settings.train.max_grad_norm,
        total_steps=settings.train.steps_of_schedule(),
        state=settings.memory.state,
        autocast=settings.memory.autocast,
        activation_checkpointing=settings.memory.activation_checkpointing,
        rounding=settings.memory.rounding,
        gradients=settings.memory.gradients,
        seed=settings.seed,
        kernels=settings.trainer.kernels,
        ranks=ranks,
    )
