"""The cases' changes to a copy of the published layout.

Each change takes the copy and the tiny model's own folder (as transformers 5 writes it); it may
return another folder to load instead.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import folders as f
from tests.checkpoints import templates as t
from tests.checkpoints.published import (
    TEXT_TEMPLATE,
    VISION_TEMPLATE,
    write_hub_cache,
    write_json,
    write_shards,
)

Change = Callable[[Path, Path], "Path | None"]


def config(**changes: object) -> Change:
    return lambda folder, model: f.edit_json(folder / "config.json", **changes)


def images(**changes: object) -> Change:
    return lambda folder, model: f.edit_json(folder / "preprocessor_config.json", **changes)


def without_files(*names: str) -> Change:
    return lambda folder, model: f.take_out(folder, *names)


def another_model(kind: str, **more: object) -> Change:
    return lambda folder, model: write_json(folder / "config.json", {"model_type": kind, **more})


def nothing(folder: Path, model: Path) -> None:
    """The published layout, unchanged."""


def tied(folder: Path, model: Path) -> None:
    f.edit_json(folder / "config.json", tie_word_embeddings=True)
    held = f.weights_of(folder)
    del held["lm_head.weight"]
    f.single_file(folder, held)
    write_shards(folder, held, 2)
    f.take_out(folder, "model.safetensors")


def tied_and_stored(folder: Path, model: Path) -> None:
    f.edit_json(folder / "config.json", tie_word_embeddings=True)
    held = f.weights_of(folder)
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    f.single_file(folder, held)


def tied_with_own_head(folder: Path, model: Path) -> None:
    f.edit_json(folder / "config.json", tie_word_embeddings=True)


def no_metadata(folder: Path, model: Path) -> None:
    for file in folder.glob("model-*.safetensors"):
        save_file(load_file(file), file)


def tied_in_the_text_config(folder: Path, model: Path) -> None:
    tied(folder, model)
    write_json(folder / "config.json", f.nested_config(folder))


def saved_by_4_57(folder: Path, model: Path) -> None:
    write_json(folder / "config.json", f.nested_config(folder))
    f.edit_json(folder / "tokenizer_config.json", chat_template=...)
    f.take_out(folder, "chat_template.json")
    (folder / "chat_template.jinja").write_text(VISION_TEMPLATE, encoding="utf-8")
    size = {"longest_edge": 50176, "shortest_edge": 3136}
    images = folder / "preprocessor_config.json"
    f.edit_json(images, size=size, resample=3, do_resize=True, rescale_factor=1 / 255)
    f.edit_json(images, image_processor_type="Qwen2VLImageProcessor")


def today(folder: Path, model: Path) -> None:
    f.today(folder, model)


def hub_cache(folder: Path, model: Path) -> Path:
    return write_hub_cache(folder.parent / f"{folder.name}_cache", "owner/name", folder)


def one_file(folder: Path, model: Path) -> None:
    f.single_file(folder)


def memory_names(folder: Path, model: Path) -> None:
    f.renamed(folder, f.new_name)


def base_class(folder: Path, model: Path) -> None:
    tied(folder, model)

    def inner(name: str) -> str:
        return name if name.startswith("visual.") else name.replace("model.", "language_model.", 1)

    f.renamed(folder, inner)


def vocabulary_files(folder: Path, model: Path) -> None:
    f.take_out(folder, "tokenizer.json")


def a_run_folder(folder: Path, model: Path) -> None:
    """A trainer wrote its last model beside its checkpoints."""
    inner = folder / "checkpoint-500"
    shutil.copytree(folder, inner)
    (inner / "optimizer.pt").write_bytes(b"\x80\x02")
    for name in ("training_args.bin", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(b"\x80\x02")
    for name in ("trainer_state.json", "all_results.json", "args.json", "configuration.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    (folder / "global_step500").mkdir()


def half_precision(folder: Path, model: Path) -> None:
    f.single_file(folder, {k: w.to(torch.float16) for k, w in f.weights_of(folder).items()})
    f.edit_json(folder / "config.json", torch_dtype="float16")


def stale_index(folder: Path, model: Path) -> None:
    index = (folder / f.INDEX).read_text(encoding="utf-8")
    f.single_file(folder)
    (folder / f.INDEX).write_text(index, encoding="utf-8")


def single_beside_shards(folder: Path, model: Path) -> None:
    save_file(f.weights_of(folder), folder / "model.safetensors", metadata={"format": "pt"})


def stray_file(folder: Path, model: Path) -> None:
    save_file({"value": torch.zeros(3)}, folder / "value_head.safetensors")


def more_tensors(folder: Path, model: Path) -> None:
    held = f.weights_of(folder)
    held["v_head.summary.weight"] = torch.zeros(1, 64)
    f.single_file(folder, held)


def yarn(folder: Path, model: Path) -> None:
    scaling = f.read_json(folder / "config.json")["rope_scaling"]
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    f.edit_json(folder / "config.json", rope_scaling={**scaling, **yarn})


def json_template(text: object) -> Change:
    def change(folder: Path, model: Path) -> None:
        write_json(folder / "chat_template.json", {"chat_template": text})

    return change


def jinja_alone(text: str) -> Change:
    def change(folder: Path, model: Path) -> None:
        f.take_out(folder, "chat_template.json")
        f.edit_json(folder / "tokenizer_config.json", chat_template=...)
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")

    return change


def in_the_processor_config(folder: Path, model: Path) -> None:
    f.take_out(folder, "chat_template.json")
    about = {"processor_class": "Qwen2_5_VLProcessor", "chat_template": t.OTHER_SYSTEM}
    write_json(folder / "processor_config.json", about)


def in_all_places(folder: Path, model: Path) -> None:
    (folder / "chat_template.jinja").write_text(VISION_TEMPLATE, encoding="utf-8")
    write_json(folder / "chat_template.json", {"chat_template": t.OTHER_SYSTEM})


def in_the_tokenizer(given: object) -> Change:
    def change(folder: Path, model: Path) -> None:
        f.take_out(folder, "chat_template.json")
        f.edit_json(folder / "tokenizer_config.json", chat_template=given)

    return change


def additional(folder: Path, model: Path) -> None:
    jinja_alone(VISION_TEMPLATE)(folder, model)
    extra = folder / "additional_chat_templates"
    extra.mkdir()
    (extra / "tool_use.jinja").write_text(TEXT_TEMPLATE, encoding="utf-8")


def no_template(folder: Path, model: Path) -> None:
    f.take_out(folder, "chat_template.json")
    f.edit_json(folder / "tokenizer_config.json", chat_template=...)


NAMED = [
    {"name": "tool_use", "template": TEXT_TEMPLATE},
    {"name": "default", "template": VISION_TEMPLATE},
]


def added(*contents: str, **flags: bool) -> Change:
    def change(folder: Path, model: Path) -> None:
        f.add_tokens(folder, *contents, **flags)
        f.resized_embeddings(folder, 8)
        rows = f.read_json(folder / "config.json")["vocab_size"]
        f.edit_json(folder / "config.json", vocab_size=rows + 8)

    return change


def vision_tokens_not_special(folder: Path, model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        about = f.read_json(folder / name)
        tokens = about.get("added_tokens") or about["added_tokens_decoder"].values()
        for token in tokens:
            if token["content"] in ("<|image_pad|>", "<|vision_start|>", "<|im_start|>"):
                token["special"] = False
        about.pop("additional_special_tokens", None)
        write_json(folder / name, about)
    f.take_out(folder, "vocab.json", "merges.txt")


def begins_with_a_token(folder: Path, model: Path) -> None:
    about = f.read_json(folder / "tokenizer.json")
    begin = next(t for t in about["added_tokens"] if t["content"] == "<|endoftext|>")
    sequence = {"id": "A", "type_id": 0}
    start = {"SpecialToken": {"id": begin["content"], "type_id": 0}}
    about["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, {"Sequence": sequence}],
        "pair": [start, {"Sequence": sequence}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            begin["content"]: {
                "id": begin["content"],
                "ids": [begin["id"]],
                "tokens": [begin["content"]],
            }
        },
    }
    write_json(folder / "tokenizer.json", about)
    name = folder / "tokenizer_config.json"
    f.edit_json(name, tokenizer_class="PreTrainedTokenizerFast", bos_token=begin["content"])
    f.take_out(folder, "vocab.json", "merges.txt")


def truncating(folder: Path, model: Path) -> None:
    about = f.read_json(folder / "tokenizer.json")
    about["truncation"] = {
        "direction": "Right",
        "max_length": 4096,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    about["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    write_json(folder / "tokenizer.json", about)


def text_tokenizer(folder: Path, model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = folder / name
        words = file.read_text(encoding="utf-8").replace("<|image_pad|>", "<|image_none|>")
        file.write_text(words, encoding="utf-8")


def other_image_token(folder: Path, model: Path) -> None:
    about = f.read_json(folder / "config.json")
    f.edit_json(folder / "config.json", image_token_id=about["image_token_id"] - 1)


def damaged_tokenizer(folder: Path, model: Path) -> None:
    f.take_out(folder, "vocab.json", "merges.txt")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")


def prefixed(prefix: str) -> Change:
    return lambda folder, model: f.renamed(folder, lambda name: prefix + name)


def without(part: str) -> Change:
    def change(folder: Path, model: Path) -> None:
        held = {k: w for k, w in f.weights_of(folder).items() if not k.startswith(part)}
        f.single_file(folder, held)

    return change


def adapter_alone(folder: Path, model: Path) -> None:
    f.take_out(folder, "config.json", *(p.name for p in folder.glob("model*")))
    f.adapter(folder)


def adapter_with_config(folder: Path, model: Path) -> None:
    f.take_out(folder, *(p.name for p in folder.glob("model*")))
    f.adapter(folder)


def adapter_beside(folder: Path, model: Path) -> None:
    f.adapter(folder)


def only(*names: str) -> Change:
    """No weights except files with these names."""

    def change(folder: Path, model: Path) -> None:
        f.take_out(folder, *(p.name for p in folder.glob("model*")))
        for name in names:
            file = folder / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"\x80\x02")

    return change


def no_index(folder: Path, model: Path) -> None:
    f.take_out(folder, f.INDEX)


def other_name(folder: Path, model: Path) -> None:
    f.single_file(folder)
    (folder / "model.safetensors").rename(folder / "merged.safetensors")


def half_downloaded(folder: Path, model: Path) -> None:
    f.take_out(folder, "model-00002-of-00002.safetensors")


def not_gathered(folder: Path, model: Path) -> None:
    f.single_file(folder, {name: w.flatten()[:0] for name, w in f.weights_of(folder).items()})


def empty(folder: Path, model: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"")


def lfs_tokenizer(folder: Path, model: Path) -> None:
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")


def lfs(folder: Path, model: Path) -> None:
    words = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "model-00001-of-00002.safetensors").write_text(words, encoding="utf-8")


def cut_off(folder: Path, model: Path) -> None:
    file = folder / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:9000])


def part_beside_shards(folder: Path, model: Path) -> None:
    file = folder / "model.safetensors"
    save_file({"lm_head.weight": f.weights_of(folder)["lm_head.weight"]}, file)


def index_of_another(folder: Path, model: Path) -> None:
    index = f.read_json(folder / f.INDEX)
    index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = "model-00001-of-00002.safetensors"
    write_json(folder / f.INDEX, index)


def resized(folder: Path, model: Path) -> None:
    f.resized_embeddings(folder, 8)


def not_a_number(folder: Path, model: Path) -> None:
    held = f.weights_of(folder)
    held["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    f.single_file(folder, held)


def bytes_for_weights(folder: Path, model: Path) -> None:
    f.eight_bit_floats(folder)


def larger(folder: Path, model: Path) -> None:
    f.edit_json(folder / "config.json", hidden_size=128, num_attention_heads=8)


def another_shape(folder: Path, model: Path) -> None:
    f.edit_json(folder / "config.json", intermediate_size=96)


def parent_of_checkpoints(folder: Path, model: Path) -> Path:
    parent = folder.parent / f"{folder.name}_run"
    shutil.copytree(folder, parent / "checkpoint-500")
    return parent


def parent_in_the_cache(folder: Path, model: Path) -> Path:
    return hub_cache(folder, model).parents[1]


def unmerged(folder: Path, model: Path) -> None:
    f.unmerged(folder)


def quantised(**about: object) -> Change:
    def change(folder: Path, model: Path) -> None:
        held = f.weights_of(folder)
        name = "model.layers.0.mlp.up_proj"
        packed = held.pop(f"{name}.weight").to(torch.int8)
        f.single_file(folder, {**held, f"{name}.qweight": packed})
        f.edit_json(folder / "config.json", quantization_config=about)

    return change


def fp8(folder: Path, model: Path) -> None:
    f.eight_bit_floats(folder)
    about = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["visual", "lm_head"],
    }
    f.edit_json(folder / "config.json", quantization_config=about)


def leftover(folder: Path, model: Path) -> None:
    about = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    f.edit_json(folder / "config.json", quantization_config=about)
