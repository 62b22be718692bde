"""Published weights of LAVIS, SPRC and CoVR as a folder that transformers and ``models.fusion`` open.

    python -m cirlib.convert sprc.pt --out models/sprc

The file is one of these projects' ``.pth``, ``.pt`` or ``.ckpt``; no code in it is run. Every size is read from the
weights. Files of trainings often lack the frozen vision tower: ``--base`` names a Blip2ForImageTextRetrieval, a folder
or an id of the hub, that gives what the file lacks.

    python -m cirlib.convert blip2_pretrained.pth --base Salesforce/blip2-itm-vit-g --out models/blip2
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from math import isqrt
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors.torch import save_file
from torch import Tensor

from cirlib.models.blip2 import OWN_FILE, load_blip2, save_processor
from cirlib.models.weights import ModelError
from cirlib.study.errors import StudyError
from cirlib.study.files import check_new_folder, new_folder

MARK = "query_tokens"  # a tensor that every state dict of a BLIP-2 has
OWN = {"temp": "raw_temperature", "prompt_tokens": "prompt_tokens"}  # what transformers' model has no place for
PARTS = {"vision": "vision tower", "qformer": "Q-Former"}
HEAD_WIDTHS = {"vision": (88, 64), "qformer": (64,)}  # EVA ViT-g, ViT; BERT
NAMES = (  # of LAVIS, of transformers
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.blocks\.", "vision_model.encoder.layers."),
    (r"^(vision_model\.encoder\.layers\.\d+\.)norm", r"\1layer_norm"),
    (r"^(vision_model\.encoder\.layers\.\d+\.)attn\.proj\.", r"\1self_attn.projection."),
    (r"^(vision_model\.encoder\.layers\.\d+\.)attn\.", r"\1self_attn."),
    (r"^ln_vision\.", "vision_model.post_layernorm."),
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
    (r"^Qformer\.bert\.embeddings\.(word|position)_embeddings\.", r"embeddings.\1_embeddings."),
    (r"^Qformer\.bert\.encoder\.", "qformer.encoder."),
    (r"^(qformer\.encoder\.layer\.\d+\.(?:cross)?attention)\.self\.", r"\1.attention."),
    (r"^(vision|text)_proj\.", r"\1_projection."),
)


def convert(file: Path, out: Path, base: str | None = None, heads: Mapping[str, int | None] | None = None) -> str:
    """Writes the model in ``file`` into the folder ``out``, new or empty; nothing is left of it where that fails.

    Args:
        base: gives what the file lacks. heads: of the attention in ``vision`` and ``qformer``, which weights do not
            tell; without it as many as make heads as wide as the published ones, else as many as there are layers.

    Returns:
        how many heads each part was taken to have, and what ``base`` gave, in words.

    Raises:
        ModelError: the file is no BLIP-2, or not a whole one. WriteError: ``out`` is not empty or cannot be written.
    """
    check_new_folder(out)
    found = read_state(file)
    own_tensors, given = _renamed(found), load_blip2(base)[0].state_dict() if base else {}
    config, tensors = _whole(file, given | own_tensors, heads or {})
    own = {name: found[theirs].float().contiguous() for theirs, name in OWN.items() if theirs in found}
    broken = {name for name, tensor in (tensors | own).items() if not tensor.isfinite().all()}
    if broken:
        raise ModelError(f"{file} is broken: {min(broken)} has values that are no finite numbers")
    with new_folder(out) as partial:
        save_file(tensors, partial / "model.safetensors", {"format": "pt"})
        save_file(own, partial / OWN_FILE)
        config.save_pretrained(partial)
        save_processor(partial, config.vision_config.image_size)
    sizes = {"vision": config.vision_config, "qformer": config.qformer_config}
    told = ", ".join(f"{PARTS[part]} with {sizes[part].num_attention_heads} heads" for part in PARTS)
    taken = Counter(name.partition(".")[0] for name in tensors if name in given and name not in own_tensors)
    counts = ", ".join(f"{number} tensors of {part}" for part, number in taken.items())
    return f"{told}; from {base}: {counts}" if taken else told


def read_state(file: Path) -> dict[str, Tensor]:
    """The state dict of a BLIP-2, however deep it lies in ``file`` and whatever stands before its names.

    Raises:
        ModelError: there is none, or the file holds other things than tensors and plain values.

    >>> read_state(Path("nowhere.pt"))
    Traceback (most recent call last):
    cirlib.models.weights.ModelError: nowhere.pt could not be read: No such file or directory
    """
    for state in _dicts(_load(file)):
        names = [name for name in state if isinstance(name, str) and isinstance(state[name], Tensor)]
        prefixes = [name.removesuffix(MARK) for name in names if name == MARK or name.endswith(f".{MARK}")]
        if prefixes:
            prefix = min(prefixes, key=len)  # of a training with a momentum copy, the model itself
            return {name.removeprefix(prefix): state[name] for name in names if name.startswith(prefix)}
    raise ModelError(f"{file} holds no BLIP-2: none of its tensors is named {MARK}")


def _load(file: Path) -> Any:
    """What ``file`` holds; objects of classes of a training's own, as CoVR's schedule, come without what is in them."""
    foreign: list[str] = []
    try:
        file.open("rb").close()
    except OSError as error:
        raise ModelError(f"{file} could not be read: {error.strerror}") from error
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file) if is_zipfile(file) else []
        foreign = sorted(name for name in names if name.partition(".")[0] in sys.stdlib_module_names)
        with torch.serialization.safe_globals([(_Skipped, name) for name in names if name not in foreign]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file gives nearly any, and torch's own text advises to run what is in it
        why = f"holds {foreign[0]}, and no code of a file is run" if foreign else "is damaged or of another kind"
        raise ModelError(f"{file} could not be read as a file of weights: it {why}") from error


class _Skipped:
    """In the place of any object."""

    def __new__(cls, *_args: object) -> "_Skipped":
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        pass


def _dicts(content: Any) -> Iterator[Mapping]:
    """``content`` and every mapping in it, the outermost first."""
    if isinstance(content, Mapping):
        yield content
        for value in content.values():
            yield from _dicts(value)


def _renamed(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LAVIS's tensors under transformers' names; EVA's two biases become one, that of the keys is zero."""
    state = {}
    for name, tensor in found.items():
        if name.endswith("q_bias"):
            value = found.get(name.replace("q_bias", "v_bias"), tensor.new_empty(0))
            name, tensor = name.replace("q_bias", "qkv.bias"), torch.cat([tensor, torch.zeros_like(value), value])
        for theirs, ours in NAMES:
            name = re.sub(theirs, ours, name)
        state[name] = tensor
    return state


def _whole(file: Path, state: dict[str, Tensor], heads: Mapping[str, int | None]) -> tuple[Any, dict[str, Tensor]]:
    """transformers' configuration of the model in ``state``, and all of its tensors."""
    import transformers

    try:
        config = transformers.Blip2Config(**_sizes(state, heads), architectures=["Blip2ForImageTextRetrieval"])
        with torch.device("meta"):
            wanted = transformers.Blip2ForImageTextRetrieval(config).state_dict()
    except KeyError as error:
        raise ModelError(f"{file} lacks {error.args[0]}: --base names a BLIP-2 that gives what a file lacks") from None
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        raise ModelError.because(f"{file} holds a BLIP-2 of impossible sizes", error) from error
    for name in ("itm_head.weight", "itm_head.bias"):  # of matching, which CoVR leaves out and only reranking reads
        state.setdefault(name, torch.zeros(wanted[name].shape))
    wrong = {name for name, tensor in wanted.items() if name not in state or state[name].shape != tensor.shape}
    if wrong:
        raise ModelError(f"{file} lacks {min(wrong)} or has it in another size: --base gives what a file lacks")
    return config, {name: state[name].float().contiguous() for name in wanted}


def _sizes(state: Mapping[str, Tensor], heads: Mapping[str, int]) -> dict[str, Any]:
    """What transformers' configuration says of a model with these weights."""
    patches, positions = (
        state[f"vision_model.embeddings.{n}"] for n in ("patch_embedding.weight", "position_embedding")
    )
    words, queries = state["embeddings.word_embeddings.weight"], state[MARK]
    towers, readers, crossed = (
        sorted({int(match[1]) for name in state if (match := re.match(pattern, name))})
        for pattern in (
            r"vision_model\.encoder\.layers\.(\d+)",
            *(rf"qformer\.encoder\.layer\.(\d+)\.{part}" for part in ("attention", "crossattention")),
        )
    )
    vision = {
        "hidden_size": patches.shape[0],
        "intermediate_size": len(state["vision_model.encoder.layers.0.mlp.fc1.weight"]),
        "num_hidden_layers": len(towers),
        "patch_size": patches.shape[-1],
        "image_size": isqrt(positions.shape[1] - 1) * patches.shape[-1],
        "qkv_bias": "vision_model.encoder.layers.0.self_attn.qkv.bias" in state,
    }
    qformer = {
        "hidden_size": queries.shape[-1],
        "intermediate_size": len(state["qformer.encoder.layer.0.intermediate.dense.weight"]),
        "num_hidden_layers": len(readers),
        "vocab_size": len(words),
        "max_position_embeddings": len(state["embeddings.position_embeddings.weight"]),
        "encoder_hidden_size": patches.shape[0],
        "cross_attention_frequency": crossed[1] if len(crossed) > 1 else len(readers),
        "use_qformer_text_input": True,
    }
    for name, one in (("vision", vision), ("qformer", qformer)):
        one["num_attention_heads"] = _heads(name, one["hidden_size"], one["num_hidden_layers"], heads.get(name))
    width = len(state["vision_projection.weight"])
    return {
        "vision_config": vision, "qformer_config": qformer, "num_query_tokens": queries.shape[1],
        "image_text_hidden_size": width,
    }  # fmt: skip


def _heads(part: str, width: int, layers: int, asked: int | None) -> int:
    """Weights do not tell it."""
    if asked is not None and (asked < 1 or width % asked):
        raise ModelError(f"--{part}-heads must divide the width of the {PARTS[part]}, {width}, given {asked}")
    counts = [width // head for head in HEAD_WIDTHS[part] if width % head == 0] + [layers] * (width % layers == 0)
    if not (asked or counts):
        raise ModelError(f"weights do not tell how many heads a {PARTS[part]} {width} wide has: give --{part}-heads")
    return asked or counts[0]


def main() -> None:
    """Converts published weights of LAVIS, SPRC or CoVR."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m cirlib.convert", description=__doc__, formatter_class=form)
    parser.add_argument("file", type=Path, help="a .pth, .pt or .ckpt")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the model goes")
    parser.add_argument("--base", metavar="BLIP2", help="a BLIP-2 that gives what the file lacks: a folder or hub id")
    for part, name in PARTS.items():
        told = f"attention heads of the {name}, where they are not as wide as published"
        parser.add_argument(f"--{part}-heads", type=int, metavar="N", help=told)
    asked = parser.parse_args()
    try:
        heads = {part: getattr(asked, f"{part}_heads") for part in HEAD_WIDTHS}
        parts = convert(asked.file, asked.out, asked.base, heads)
    except StudyError as error:
        parser.exit(1, f"{error}\n")
    print(f"{asked.out} holds the model ({parts}): models.fusion={asked.out}")


if __name__ == "__main__":
    main()
