"""Stage 9's parts: a cache changes no prediction, small weights change little, and text comes in
whole characters."""

import copy
from itertools import islice

import pytest
import torch
from helpers import one_thread
from torch._dynamo.utils import counters
from torch.nn import functional as F

from common.bandwidth import cache_bytes_per_token, share_of_ids
from common.decode import Decoder, FixedCache, GrowingCache, compiled_step, decode, read, sample
from common.generate import generate
from common.init import init_weights, tie_weights
from common.model import GPT, GPTConfig
from common.pretrained import as_hugging_face
from common.quantize import Int8Linear, RowLinear, bytes_per_token, quantized
from common.speed import pad_vocab
from common.talk import Voice, beginning_of, text_of
from common.tokenizer import gpt2_tokenizer

CACHES = [GrowingCache, FixedCache]


@pytest.fixture(autouse=True)
def short():
    with one_thread(), torch.no_grad():
        yield


@torch.no_grad()
def tiny(block_size=12, vocab_size=97, n_layer=2, seed=0) -> GPT:
    """A model whose predictions depend on all of the text, far from uniform. Its head is not tied:
    it would repeat the last token."""
    model = init_weights(GPT(GPTConfig(n_layer, 2, 16, block_size, vocab_size)), seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(40)
        else:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.add_(noise / 8)
    return model.eval()


def some_ids(B: int, T: int, vocab_size: int = 97, seed: int = 1) -> torch.Tensor:
    return torch.randint(vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))


def new_ids(decoder: Decoder, ids, n: int, **options) -> torch.Tensor:
    return torch.cat(list(islice(decode(decoder, ids, **options), n)), dim=1)


# The cache.


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("S", [12, 20])
def test_with_a_cache_every_prediction_is_the_same(cache, S):
    """Whatever the prompt's length; S may be more than what is read."""
    model, ids = tiny(), some_ids(3, 12)
    expected = model(ids)[0]
    caches = [cache(model, 3, S) for _ in model.transformer.h]
    for T in range(1, 13):  # the caches are used again: each text begins at position 0
        for start, end in [(0, T), *((t, t + 1) for t in range(T, 12))]:
            found = read(model, ids[:, start:end], torch.arange(start, end), caches)
            torch.testing.assert_close(found, expected[:, end - 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cache", CACHES)
def test_several_tokens_are_read_after_others(cache):
    model, ids = tiny(), some_ids(2, 12)
    caches = [cache(model, 2, 12) for _ in model.transformer.h]
    for start, end in ((0, 3), (3, 7), (7, 12)):
        found = read(model, ids[:, start:end], torch.arange(start, end), caches)
        torch.testing.assert_close(found, model(ids[:, :end])[0][:, -1], rtol=1e-4, atol=1e-4)


def greedy_in_windows(model, ids, S: int, n: int) -> torch.Tensor:
    """n new tokens without a cache; after S tokens the model sees the last half of them."""
    seen, new = ids[:, -S:], []
    for _ in range(n):
        if seen.size(1) > S:
            seen = seen[:, -max(1, S // 2) :]
        new.append(model(seen)[0][:, -1].argmax(-1, keepdim=True))
        seen = torch.cat((seen, new[-1]), dim=1)
    return torch.cat(new, dim=1)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("S, T", [(12, 1), (12, 5), (12, 12), (12, 30), (7, 3), (3, 2), (2, 1),
                                  (1, 1), (1, 3)])  # fmt: skip
def test_beyond_its_capacity_decoding_goes_on_from_half_of_it(cache, S, T):
    model, ids = tiny(), some_ids(3, T)
    decoder = Decoder(model, 3, S, cache, temperature=0)
    expected = greedy_in_windows(model, ids, S, 40)
    assert len(expected.unique()) > min(S, 5) and len(expected.unique(dim=0)) > 1
    assert torch.equal(new_ids(decoder, ids, 40), expected)
    assert torch.equal(new_ids(decoder, ids[:, :1], 5), greedy_in_windows(model, ids[:, :1], S, 5))


@pytest.mark.parametrize("cache", CACHES)
def test_greedy_is_transformers_with_its_cache(cache):
    model = tiny(64, 50257)
    ids = some_ids(1, 4, 50257)
    theirs = as_hugging_face(model).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, min_new_tokens=60,
        do_sample=False, use_cache=True, pad_token_id=0,
    )  # fmt: skip
    assert len(theirs.unique()) > 20
    assert torch.equal(new_ids(Decoder(model, 1, 64, cache, 0), ids, 60), theirs[:, 4:])


# Sampling.


@pytest.mark.parametrize("temperature, top_k", [(1.0, None), (0.7, 20), (2.0, 200), (0.0, 5)])
def test_a_seed_draws_as_in_stage_1(temperature, top_k):
    model, ids = tiny(24), some_ids(3, 4)
    decoder = Decoder(model, 3, 24, FixedCache, temperature, top_k)
    for seed in (1, 2):
        expected = generate(model, ids, 20, temperature, top_k, seed)[:, 4:]
        assert torch.equal(new_ids(decoder, ids, 20, seed=seed), expected)


def shares(p: list[float], n: int = 20_000, **options) -> torch.Tensor:
    """How often each id is drawn, by its probability."""
    generator = torch.Generator().manual_seed(3)
    options = {"temperature": 1.0, "top_k": None, "top_p": 1.0} | options
    k = min(options["top_k"] or len(p), len(p))
    noise = torch.empty(n, k).exponential_(generator=generator)
    drawn = sample(torch.tensor(p).log().expand(n, -1), noise, **options)
    assert drawn.shape == (n, 1)
    return drawn.flatten().bincount(minlength=len(p)) / n


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [0.15, 0.5, 0.05, 0.3]),
        ({"temperature": 0.0}, [0, 1, 0, 0]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),
        ({"top_p": 1e-9}, [0, 1, 0, 0]),
        ({"top_p": 0.6}, [0, 5 / 8, 0, 3 / 8]),  # 0.5 are too few
        ({"top_p": 0.9}, [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
        ({"top_p": 0.97}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_k": 2}, [0, 5 / 8, 0, 3 / 8]),
        # Of the first two, the first alone has 0.625 of the probability.
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),
        ({"top_k": 2, "top_p": 0.7}, [0, 5 / 8, 0, 3 / 8]),
        ({"top_k": 9, "top_p": 0.6}, [0, 5 / 8, 0, 3 / 8]),
        # Squares: 0.0225, 0.25, 0.0025 and 0.09; the largest is 0.685 of their sum.
        ({"temperature": 0.5, "top_p": 0.65}, [0, 1, 0, 0]),
        ({"temperature": 0.5, "top_p": 0.7}, [0, 25 / 34, 0, 9 / 34]),
    ],
)
def test_samples_follow_the_distribution(options, expected):
    found = shares([0.15, 0.5, 0.05, 0.3], **options)
    assert (found > 0).tolist() == [p > 0 for p in expected]
    torch.testing.assert_close(found, torch.tensor(expected) * 1.0, rtol=0, atol=0.012)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bits", [32, 8])
def test_padding_is_never_drawn(temperature, bits):
    model = pad_vocab(tie_weights(GPT(GPTConfig(1, 1, 4, 8, 50257))))
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(50304, 4))
    model.transformer.ln_f.bias.fill_(1)
    model.lm_head.weight[50257:] = 100.0
    model = quantized(model, bits, torch.bfloat16, torch.float32)
    ids = torch.zeros(4, 1, dtype=torch.long)
    assert model(ids)[0].argmax() % 50304 >= 50257
    drawn = new_ids(Decoder(model, 4, 8, FixedCache, temperature), ids, 8)
    assert drawn.max() < 50257


# A compiled step.


def test_a_compiled_step_does_not_recompile_and_decodes_the_same():
    """In 8 bits, sampling, and twice beyond the capacity."""
    model, ids = quantized(tiny(12, n_layer=1), 8, torch.bfloat16, torch.float32), some_ids(1, 1)
    torch._dynamo.reset()
    counters.clear()
    decoder = Decoder(model, 1, 12, FixedCache, temperature=3, top_k=50, top_p=0.99)
    expected = new_ids(decoder, ids, 20)
    assert len(expected.unique()) > 10
    assert torch.equal(new_ids(decoder, ids, 20, step=compiled_step(decoder)), expected)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


# Weights of fewer bits.


def linear(n_in: int, n_out: int, bias: bool, seed: int = 0) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(n_in, n_out, bias)


@pytest.mark.parametrize("n_in", [1, 2, 3, 4, 7, 16, 37, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_8_bits_compute_what_their_weights_say(n_in, bias):
    whole = linear(n_in, 5, bias)
    small = Int8Linear(whole, torch.bfloat16, torch.float32)
    dense = small.dense()[:, :n_in]
    assert not small.dense()[:, n_in:].any()
    for shape in ((1, 1), (1, 6), (3, 1), (2, 4)):
        x = torch.randn(*shape, n_in)
        expected = F.linear(x, dense, whole.bias)
        torch.testing.assert_close(small(x), expected, rtol=1e-5, atol=1e-5)


def test_8_bits_round_by_half_a_scale_at_most():
    whole = linear(64, 9, True)
    whole.weight[3] = 0
    whole.weight[4] *= 1000
    small = Int8Linear(whole, torch.bfloat16, torch.float32)
    scale = whole.weight.abs().amax(1) / 127
    torch.testing.assert_close(small.scale[scale > 0], scale[scale > 0])
    error = (small.dense() - whole.weight).abs()
    assert (error <= scale[:, None] * 0.5001).all()
    assert (error[scale > 0].amax(1) > scale[scale > 0] * 0.3).all()  # of all the 8 bits
    assert not small.dense()[3].any()
    stored = small.weight.numel() * small.weight.element_size()
    assert stored == whole.weight.numel()


@pytest.mark.parametrize("n_in", [7, 64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_16_bits_compute_what_their_weights_say(n_in, bias, dtype):
    whole = linear(n_in, 5, bias)
    for dense_dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        small = RowLinear(whole, dtype, dense_dtype)
        assert small.weight.dtype == dtype
        for shape in ((1, 1), (1, 6), (3, 1), (2, 4)):
            x = torch.randn(*shape, n_in)
            found, expected = small(x), F.linear(x, whole.weight.to(dtype).float(), whole.bias)
            assert found.dtype == torch.float32
            # One row is summed in fp32 whatever the dtype of a product is.
            close = 1e-5 if shape == (1, 1) else tolerance
            torch.testing.assert_close(found, expected, rtol=close, atol=close)


@pytest.mark.parametrize("bits, near", [(32, 1e-5), (16, 0.1), (8, 0.3)])
def test_a_quantized_copy_leaves_the_model_alone(bits, near):
    model, ids = tiny(12), some_ids(2, 12)
    before, expected = copy.deepcopy(model.state_dict()), model(ids)[0]
    small = quantized(model, bits, torch.bfloat16, torch.float32)
    kinds = {type(m) for m in small.modules()}
    assert (Int8Linear if bits == 8 else RowLinear) in kinds and torch.nn.Linear not in kinds
    assert small.transformer.wte.weight.dtype == torch.float32
    difference = (small(ids)[0] - expected).norm() / expected.norm()
    assert difference < near and (difference > 1e-4 or bits == 32)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    small.transformer.wte.weight.zero_()
    assert torch.equal(model(ids)[0], expected)


def test_the_bytes_of_a_token_by_hand():
    """2 layers of width 16, 97 ids: embeddings do not count, but the head does, though tied."""
    model = tie_weights(tiny(12))
    matrices, head = 2 * 12 * 16 * 16, 97 * 16
    biases, norms = 2 * 9 * 16, (2 * 2 + 1) * 2 * 16
    rest = 4 * (biases + norms)
    assert bytes_per_token(model) == 4 * (matrices + head) + rest
    sizes = [bytes_per_token(quantized(model, b, torch.bfloat16, torch.float32)) for b in (32, 16)]
    assert sizes == [4 * (matrices + head) + rest, 2 * (matrices + head) + rest]
    scales = 4 * (2 * (3 + 1 + 4 + 1) * 16 + 97)
    small = quantized(model, 8, torch.bfloat16, torch.float32)
    assert bytes_per_token(small) == matrices + head + scales + rest
    assert bytes_per_token(as_hugging_face(model)) == bytes_per_token(model)
    assert cache_bytes_per_token(model) == 2 * 2 * 16 * 4


# Text as it is made.


def encode(text: str) -> list[int]:
    return gpt2_tokenizer().encode_ordinary(text)


def bytewise(text: str) -> list[int]:
    """A token for each byte."""
    return [gpt2_tokenizer().encode_single_token(bytes([b])) for b in text.encode()]


@pytest.mark.parametrize("text", ["🙂", "你好", "naïve 你好 🙂🏽 café", "👩‍👩‍👧 x", "plain"])
def test_characters_come_whole(text):
    ids = encode(text)
    pieces = list(text_of(iter(ids)))
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    pieces = list(text_of(bytewise(text)))
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    assert max(map(len, pieces)) == 1


def test_text_comes_at_once():
    """Not a token later: what is yielded after each token is all of its text."""
    ids, given = encode("To be, or not to be"), []

    def feed():
        for i in ids:
            given.append(i)
            yield i

    seen = ""
    for piece in text_of(feed(), stop="\n"):
        seen += piece
        assert seen == gpt2_tokenizer().decode(given)


@pytest.mark.parametrize(
    "text, stop, expected",
    [
        ("one two three", "two", "one "),
        ("ROMEO: so\n\nJULIET: no", "\n\n", "ROMEO: so"),
        ("aaab", "aab", "a"),  # found though it begins again within itself
        ("ababac", "abac", "ab"),
        ("a stop of the stopped sto", "stopp", "a stop of the "),
        ("it nearly stops: sto", "stop!", "it nearly stops: sto"),  # all comes in the end
        ("stop", "stop", ""),
        ("no end", "xyz", "no end"),
        ("你好吗", "好", "你"),
        ("first 🙂 then 🙂", "n 🙂", "first 🙂 the"),
    ],
)
def test_nothing_of_a_stop_is_printed(text, stop, expected):
    for ids in (encode(text), bytewise(text)):
        printed = ""
        for piece in text_of(ids, stop):
            printed += piece
            assert expected.startswith(printed)
        assert printed == expected


def test_beginnings_of_a_stop():
    assert [beginning_of("stop", t) for t in ("", "x", "s", "us", "xsto", "stop", "sts")] == [
        0, 0, 1, 1, 3, 0, 1
    ]  # fmt: skip


def test_the_end_of_a_text_ends_it():
    ids = [*encode("The end"), 50256, *encode(" and more")]
    assert "".join(text_of(ids)) == "The end"
    ids = iter([*encode("sto"), 50256, 1])
    assert "".join(text_of(ids, "stop")) == "sto" and next(ids) == 1


def test_bytes_that_are_no_text_are_replaced():
    byte = gpt2_tokenizer().encode_single_token
    assert "".join(text_of([byte(b"a"), byte(b"\xf0"), byte(b"\x9f")])) == "a\ufffd"
    assert "".join(text_of([byte(b"\xf0"), byte(b"a")])) == "\ufffda"
    assert "".join(text_of([byte(b"\xe4"), 50256])) == "\ufffd"


def test_a_voice_says_what_generate_does():
    model = tiny(64, 50257)
    prompt = "To be"
    ids = generate(model, torch.tensor([encode(prompt)]), 20, 0.9, 30, seed=5)[0, 2:]
    expected = gpt2_tokenizer().decode_bytes(ids.tolist()).decode(errors="replace")
    voice = Voice(Decoder(model, 1, 64, FixedCache, 0.9, 30), None, 20)
    assert "".join(voice.continue_text(prompt, 5)) == expected
    voice.stop = expected[8:11]
    assert "".join(voice.continue_text(prompt, 5)) == expected[: expected.index(voice.stop)]


def test_the_share_of_ids_is_up_to_the_first_other_one():
    assert share_of_ids([[1, 2, 3, 4]], [[1, 2, 3, 4]]) == 1
    assert share_of_ids([[1, 2, 9, 4]], [[1, 2, 3, 4]]) == 0.5
    assert share_of_ids([[1, 2]], [[1, 2, 3, 4]]) == 1
