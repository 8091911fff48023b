"""LoRA as a directory that `peft` loads: `adapter_config.json` and `adapter_model.safetensors` under peft's own names.

GPT-2 has Q, K and V in one module. Two adapters of rank k beside Q and V are one of rank 2k beside the three: its first
factor has their rows one after another, its second one their columns in their own blocks, and zeros for K. Alpha
doubles with the rank, so that what it is multiplied with stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import edgempi
from edgempi.errors import UserError
from edgempi.finetune.export.base import CONFIG_FILE, OWN_FILE, Base, task_type, whole_folder
from edgempi.finetune.export.card import write_card
from edgempi.finetune.export.names import adapted, label_module, module_in
from edgempi.models.families import family_named
from edgempi.plan.spec import ModelSpec, is_layer
from edgempi.plan.training.technique import Shape, Technique, Tuning, trained_shapes

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."


def write_lora(
    folder: Path, base: Base, spec: ModelSpec, tuning: Tuning, state: Mapping[str, Tensor], notes: str = ""
) -> None:
    """Write the directory.

    Args:
        folder: new, or an earlier export.
        base: the model that was tuned.
        spec: as it was trained, a new task head included.
        tuning: of technique `lora`.
        state: the trained parameters, by edgempi's names.
        notes: of data and scores, for the card.

    Raises:
        UserError: transformers has no class of this family with this head of labels; the folder cannot be written.
    """
    architecture = base.class_with(spec)
    tensors, fused = _factors(spec, architecture, state)
    targets = {name.removeprefix(PREFIX).rpartition(".lora_")[0].rpartition(".")[2] for name in tensors}
    heads = {stem: label_module(spec, stem, architecture) for stem in _head_stems(state)}
    for stem, module in heads.items():
        tensors |= {
            f"{PREFIX}{module}.{kind}": state[f"{stem}.{kind}"]
            for kind in ("weight", "bias")
            if f"{stem}.{kind}" in state
        }
    times = 2 if fused else 1
    config = {
        "peft_type": "LORA",
        "task_type": task_type(spec),
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "inference_mode": True,
        "r": tuning.rank * times,
        "lora_alpha": tuning.alpha * times,
        "lora_dropout": 0.0,
        "target_modules": sorted(targets),
        "modules_to_save": sorted(set(map(_saved, heads.values()))) or None,
        "fan_in_fan_out": fused,
        "bias": "none",
    }
    own = {
        "base": asdict(base), "tuning": asdict(tuning), "head": asdict(spec.head) if heads else None,
        "edgempi": edgempi.__version__,
    }  # fmt: skip
    with whole_folder(folder) as new:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, new / WEIGHTS_FILE)
        for file, about in ((CONFIG_FILE, config), (OWN_FILE, own)):
            (new / file).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        write_card(new, base, spec, tuning, notes)


def read_lora(folder: Path, spec: ModelSpec) -> tuple[Tuning, dict[str, Tensor]]:
    """The factors of a LoRA directory by edgempi's names, whoever wrote it; heads are left out.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        spec: of the base model.

    Raises:
        UserError: it adapts something else than q and v, or in another way than edgempi; it belongs to a model of
            other widths, or is damaged.
    """
    times = 2 if _is_fused(spec) else 1
    tuning = _tuning(folder, read_config(folder), times)
    factors = {name.partition(PREFIX)[2]: tensor for name, tensor in _weights(folder).items() if ".lora_" in name}
    shapes = {name: shape for unit in spec.units for name, shape in trained_shapes(spec, unit, tuning).items()}
    state: dict[str, Tensor] = {}
    for part in ("q", "v"):
        for stem in adapted(spec, part):
            # From the bare model or from one with a head: the paths differ in their beginning.
            with_head, bare = (module_in(spec, stem, kind) for kind in ("ForX", "XModel"))
            module = with_head if f"{with_head}.lora_A.weight" in factors else bare
            a, b = factors.get(f"{module}.lora_A.weight"), factors.get(f"{module}.lora_B.weight")
            if a is None or b is None:
                raise _refused(folder, f"nothing beside {with_head}")
            (rank, inputs), (outputs, _) = shapes[f"{stem}.lora.a"], shapes[f"{stem}.lora.b"]
            _check_shape(folder, f"{module}.lora_A", a, (rank * times, inputs))
            _check_shape(folder, f"{module}.lora_B", b, (outputs * (3 if times > 1 else 1), rank * times))
            if times > 1:
                a, b = _unfused(folder, a, b, part)
            state |= {f"{stem}.lora.a": a, f"{stem}.lora.b": b}
    if len(factors) != len(state) // times:
        raise _refused(folder, f"{len(factors)} tensors")
    return tuning, state


def read_config(folder: Path) -> dict[str, Any]:
    """The `adapter_config.json` of a folder.

    Raises:
        UserError: there is none, or it is no JSON object.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        return {**config}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"adapter {folder}", value=f"{CONFIG_FILE}: {error}", rule="an adapter's folder says what it is",
            remedy="Point to the folder that the export was written to",
        ) from error  # fmt: skip


def _tuning(folder: Path, config: Mapping[str, Any], times: int) -> Tuning:
    """What the directory says of itself, where edgempi runs it; `times` as many ranks are in a module."""
    plain = {"use_dora": False, "use_rslora": False, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}}
    odd = [f"{name}={config[name]}" for name, usual in plain.items() if config.get(name, usual) not in (usual, None)]
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if config.get("peft_type") != "LORA" or odd:
        raise _refused(folder, ", ".join(odd) or f"peft_type {config.get('peft_type')}")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise _damaged(folder, f"r {rank}, lora_alpha {alpha}", f"{CONFIG_FILE} has both, as numbers")
    if rank % times:
        raise _refused(folder, f"rank {rank} for Q, K and V together")
    return Tuning(Technique.lora, rank=rank // times, alpha=alpha / times)


def _weights(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, f"{WEIGHTS_FILE}: {error}", "whole safetensors; pickles are not read") from error


def _check_shape(folder: Path, name: str, tensor: Tensor, wanted: Shape) -> None:
    if tuple(tensor.shape) != wanted or not tensor.is_floating_point():
        raise UserError(
            f"adapter {folder}", value=f"{name}: {[*tensor.shape]} of {tensor.dtype}",
            rule=f"beside this model it has shape {[*wanted]}", remedy="Use the base model that it was trained on",
        )  # fmt: skip


def _factors(spec: ModelSpec, architecture: str, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Both factors of every adapted module under peft's names, and whether Q and V share a module."""
    found: dict[str, Tensor] = {}
    fused = _is_fused(spec)
    for q, v in zip(adapted(spec, "q"), adapted(spec, "v"), strict=True):
        for stem in (q, v):
            module = PREFIX + module_in(spec, stem, architecture)
            found[f"{module}.lora_A.weight"] = state[f"{stem}.lora.a"]
            found[f"{module}.lora_B.weight"] = state[f"{stem}.lora.b"]
        if fused:
            found[f"{module}.lora_A.weight"] = torch.cat([state[f"{stem}.lora.a"] for stem in (q, v)])
            b_q, b_v = (state[f"{stem}.lora.b"] for stem in (q, v))
            nothing = torch.zeros_like(b_q)
            rows = [torch.cat(pair, dim=1) for pair in ((b_q, nothing), (nothing, nothing), (nothing, b_v))]
            found[f"{module}.lora_B.weight"] = torch.cat(rows)
    return found, fused


def _unfused(folder: Path, a: Tensor, b: Tensor, part: str) -> tuple[Tensor, Tensor]:
    rank, rows = len(a) // 2, len(b) // 3
    place, block = {"q": (0, 0), "v": (1, 2)}[part]
    columns = slice(place * rank, (place + 1) * rank)
    others = b[:, columns].clone()
    others[block * rows : (block + 1) * rows] = 0
    if others.any():
        raise _refused(folder, "one adapter for Q, K and V together")
    return a[columns].clone(), b[block * rows : (block + 1) * rows, columns].clone()


def _is_fused(spec: ModelSpec) -> bool:
    unit = next(filter(is_layer, spec.units))
    return family_named(spec.family).source(f"{unit}.attention.q.weight").part[1] > 1


def _head_stems(state: Mapping[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in state if name.startswith("head.")))


def _saved(module: str) -> str:
    """What peft is told to keep: RoBERTa's head as the one module that peft takes it for."""
    return "classifier" if module.startswith("classifier.") else module


def _damaged(folder: Path, value: str, rule: str) -> UserError:
    return UserError(
        f"adapter {folder}", value=value, rule=rule, remedy="Copy the folder again, or save it again with peft"
    )


def _refused(folder: Path, value: str) -> UserError:
    return UserError(
        f"adapter {folder}", value=value, rule="edgempi runs LoRA beside q and v of every attention, and nothing else",
        remedy="Merge it into its base model with peft (merge_and_unload), and run the result",
    )  # fmt: skip
