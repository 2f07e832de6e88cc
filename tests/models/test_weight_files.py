"""Weights are read from the checkpoint's own safetensors: an index of shards may not lead elsewhere."""

import json
import shutil

import families
import pytest
from toys import pickled, value_or_refusal

from xlingtox.models.hooked import HookedLM


@pytest.fixture
def sharded(tokenizer, tmp_path):
    """A checkpoint in shards."""
    folder = tmp_path / "base"
    families.build("llama").save_pretrained(folder, max_shard_size="40KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def renamed(folder, name):
    """Let the index name another file for its first shard; that shard, which is not under its name any more."""
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text("utf-8"))
    first = sorted(set(content["weight_map"].values()))[0]
    content["weight_map"] = {key: name if shard == first else shard for key, shard in content["weight_map"].items()}
    index.write_text(json.dumps(content), "utf-8")
    return folder / first


@pytest.fixture
def unread(monkeypatch):
    def read(*_, **__):
        raise AssertionError("weights were read")

    return lambda: monkeypatch.setattr("xlingtox.models.loading.read_weights", read)


def test_shards_are_read(sharded):
    assert HookedLM.load(sharded).n_layers == families.N_LAYERS


def test_a_pickled_shard(sharded, unread):
    shard = renamed(sharded, "w.bin")
    pickled(families.build("llama"), sharded, "w.bin")
    shard.unlink()
    unread()
    with pytest.raises(ValueError, match=r"names 'w\.bin': weights are read from safetensors alone"):
        HookedLM.load(sharded)
    assert not (sharded / "ran").exists()


@pytest.mark.parametrize("name", ["../x.safetensors", "a/../../x.safetensors", "..\\x.safetensors", "absolute"])
def test_a_shard_outside_the_folder(sharded, unread, name):
    outside = sharded.parent / "x.safetensors"
    shutil.move(renamed(sharded, str(outside) if name == "absolute" else name), outside)
    unread()
    with pytest.raises(ValueError, match="a file outside the checkpoint's folder"):
        HookedLM.load(sharded)


def test_a_link_out_of_the_folder(sharded, unread):
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shutil.move(shard, sharded.parent / "x.safetensors")
    shard.symlink_to(sharded.parent / "x.safetensors")
    unread()
    with pytest.raises(ValueError, match=r"is a link to .*x\.safetensors, outside the checkpoint's folder"):
        HookedLM.load(sharded)


def test_the_hubs_own_links_are_followed(sharded, tmp_path):
    """Its cache keeps files in `blobs`, under other names."""
    cache = tmp_path / "models--me--base"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123abc"
    shutil.copytree(sharded, snapshot)
    for number, file in enumerate(snapshot.iterdir()):
        shutil.move(file, cache / "blobs" / str(number))
        file.symlink_to(f"../../blobs/{number}")
    assert HookedLM.load(snapshot).n_layers == families.N_LAYERS


def test_a_missing_shard(sharded, unread):
    sorted(sharded.glob("model-*.safetensors"))[0].unlink()
    unread()
    with pytest.raises(FileNotFoundError, match=r"has no model-.*which its index of weights names"):
        HookedLM.load(sharded)


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": ["b"]}}', "{}", "[" * 100_000])
def test_a_broken_index(sharded, unread, text):
    (sharded / "model.safetensors.index.json").write_text(text, "utf-8")
    unread()
    with pytest.raises(ValueError, match=r"index\.json is broken"):
        HookedLM.load(sharded)


def test_an_index_of_nothing(sharded, unread):
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {}}', "utf-8")
    unread()
    with pytest.raises(ValueError, match="has a weight_map that names no file"):
        HookedLM.load(sharded)


@pytest.mark.parametrize("name", ["adapter_model.bin", "../x.safetensors", "../x.safetensors.index.json"])
def test_weights_that_the_configuration_names(sharded, unread, name):
    config = json.loads((sharded / "config.json").read_text("utf-8")) | {"transformers_weights": name}
    (sharded / "config.json").write_text(json.dumps(config), "utf-8")
    unread()
    _, refusal = value_or_refusal(lambda: HookedLM.load(sharded))
    assert "transformers_weights names" in refusal


def test_an_index_of_an_adapter_is_not_followed(base, tmp_path):
    model, folder = base
    lora = tmp_path / "lora"
    families.adapted(model).save_pretrained(lora)
    shutil.move(lora / "adapter_model.safetensors", tmp_path / "x.safetensors")
    index = {"weight_map": {"a": "../x.safetensors"}}
    (lora / "adapter_model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(FileNotFoundError, match=r"has no adapter_model\.safetensors"):
        HookedLM.load(folder, adapter=lora)
