"""The language model: a proper distribution, states that can be shared, answers from its text."""

from __future__ import annotations

import json
import math
import os
import random
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servematrix.engines.reference.language import (
    MESSAGE_END,
    MESSAGE_START,
    LanguageModel,
    State,
    load,
)

MODEL = load()
TOKENIZER = MODEL.tokenizer
CHAT = MESSAGE_START + "user\n{}" + MESSAGE_END + "\n" + MESSAGE_START + "assistant\n"
PREFIX = "Name the city and nothing else.\n"
OCCUPANCY = "Human: Write a small web service with FastAPI and explain each part.\n\nAssistant:"

prompts = st.sampled_from(
    [
        "",
        "The capital of France is",
        "Q: What is 17 multiplied by 23?",
        "Q: What is 17 times 23? Give the number alone.\nA:",
        "She drops a sponge in the bucket and",
        "xyzzy \x00 \u00e9",
        " the",
        "A:",
    ]
)
orders = st.sampled_from([1, 2, 4, 32])


def after(model: LanguageModel, tokens: Sequence[int] | str, state: State | None = None) -> State:
    state = model.start() if state is None else state
    for token in TOKENIZER.encode(tokens) if isinstance(tokens, str) else tokens:
        state = model.advance(state, token)
    return state


def decode(model: LanguageModel, prompt: str, count: int, *, ignore_eos: bool = False) -> list[int]:
    state = after(model, prompt)
    output: list[int] = []
    while len(output) < count:
        token = model.top(state, 1)[0][1]
        if token == TOKENIZER.eos and not ignore_eos:
            break
        output.append(token)
        state = model.advance(state, token)
    return output


def answer(prompt: str, count: int = 64) -> str:
    return TOKENIZER.decode(decode(MODEL, prompt, count))


# Tokens


@given(st.text())
def test_every_text_survives_encoding(text: str) -> None:
    tokens = TOKENIZER.encode(text)
    assert TOKENIZER.decode(tokens) == text
    assert TOKENIZER.eos not in tokens


@given(st.text(alphabet=string.printable + "\u00e9\u4f60\ud800<|im_start|>", max_size=80))
def test_odd_text_survives_encoding(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(
    st.text(max_size=40),
    st.text(alphabet=string.ascii_letters, min_size=1, max_size=12),
    st.text(max_size=40),
)
def test_a_text_may_be_cut_before_a_word(before: str, word: str, more: str) -> None:
    ending = " " + word + more
    encode = TOKENIZER.encode
    assert encode(before + ending) == encode(before) + encode(ending)


@given(st.lists(st.integers(0, TOKENIZER.vocabulary_size - 1), max_size=40))
def test_any_tokens_decode(tokens: list[int]) -> None:
    assert isinstance(TOKENIZER.decode(tokens), str)
    for token in tokens:
        assert isinstance(TOKENIZER.token_text(token), str)


def test_tokens_are_words_with_the_space_before_them() -> None:
    texts = [TOKENIZER.token_text(token) for token in TOKENIZER.encode("The capital is 391.\n")]
    assert texts == ["The", " capital", " is", " 391", ".", "\n"]


def test_chat_marks_are_one_token_each_and_the_end_has_no_text() -> None:
    assert len(TOKENIZER.encode(MESSAGE_START)) == len(TOKENIZER.encode(MESSAGE_END)) == 1
    assert TOKENIZER.decode([TOKENIZER.eos]) == TOKENIZER.token_text(TOKENIZER.eos) == ""


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(IndexError):
        TOKENIZER.decode([TOKENIZER.vocabulary_size])


# Probabilities


@settings(max_examples=40, deadline=None)
@given(prompts, orders)
def test_probabilities_sum_to_one(prompt: str, order: int) -> None:
    model = load(order)
    state = after(model, prompt)
    logprobs = [model.logprob(state, token) for token in range(TOKENIZER.vocabulary_size)]
    assert all(math.isfinite(value) for value in logprobs)
    assert math.fsum(map(math.exp, logprobs)) == pytest.approx(1, abs=1e-9)


def test_probabilities_sum_to_one_all_along_a_text() -> None:
    state = MODEL.start()
    for token in TOKENIZER.encode("Q: What is 17 x 23? Just one word.\nA: 391\nShe takes a"):
        state = MODEL.advance(state, token)
        whole = (MODEL.logprob(state, other) for other in range(TOKENIZER.vocabulary_size))
        assert math.fsum(map(math.exp, whole)) == pytest.approx(1, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(prompts, orders, st.integers(1, 40))
def test_the_top_tokens_are_those_of_the_whole_distribution(
    prompt: str, order: int, count: int
) -> None:
    model = load(order)
    state = after(model, prompt)
    every = [(model.logprob(state, token), token) for token in range(TOKENIZER.vocabulary_size)]
    every.sort(key=lambda pair: (-pair[0], pair[1]))
    assert model.top(state, count) == every[:count]
    assert model.top(state, 1) == every[:1]


def test_the_whole_vocabulary_can_be_ranked() -> None:
    ranked = MODEL.top(after(MODEL, "The capital"), TOKENIZER.vocabulary_size + 5)
    assert sorted(token for _, token in ranked) == list(range(TOKENIZER.vocabulary_size))


def test_an_incremental_state_equals_a_fresh_one() -> None:
    tokens = TOKENIZER.encode(OCCUPANCY) + decode(MODEL, OCCUPANCY, 200)
    state = MODEL.start()
    for length, token in enumerate(tokens, start=1):
        state = MODEL.advance(state, token)
        assert state == after(MODEL, tokens[:length])
    assert hash(state) == hash(after(MODEL, tokens))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_order_limits_the_context(order: int) -> None:
    whole = TOKENIZER.encode("The capital of France is")
    end = whole[-order:]
    assert after(load(order), whole) == after(load(order), end)
    assert after(load(order + 1), whole) != after(load(order + 1), end)


def test_a_longer_context_knows_more() -> None:
    text = "Q: What is the capital of Japan?\nA:"
    (paris,), (tokyo,) = TOKENIZER.encode(" Paris"), TOKENIZER.encode(" Tokyo")
    long, short = after(load(32), text), after(load(2), text)
    assert load(32).logprob(long, tokyo) > load(32).logprob(long, paris) + 2
    assert load(2).logprob(short, tokyo) < load(32).logprob(long, tokyo) - 2


@pytest.mark.parametrize("order", [0, -1, 1000])
def test_an_impossible_order_is_refused(order: int) -> None:
    with pytest.raises(ValueError, match="order is"):
        load(order)


# Sampling


def draw(count: int, **options: Any) -> Counter[int]:
    rng = random.Random(1)
    state = after(MODEL, "She takes the")
    return Counter(MODEL.sample(state, rng=rng, **options) for _ in range(count))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_samples_follow_the_distribution(temperature: float) -> None:
    state = after(MODEL, "She takes the")
    weights = [
        math.exp(MODEL.logprob(state, token) / temperature)
        for token in range(TOKENIZER.vocabulary_size)
    ]
    best = MODEL.top(state, 1)[0][1]
    share = weights[best] / math.fsum(weights)
    drawn = draw(2000, temperature=temperature, top_p=1.0, top_k=-1)
    assert drawn[best] / 2000 == pytest.approx(share, abs=5 * math.sqrt(share / 2000))


def test_top_k_and_top_p_cut_the_tail() -> None:
    state = after(MODEL, "She takes the")
    ranked = MODEL.top(state, 50)
    kept = draw(500, temperature=2.0, top_p=1.0, top_k=5)
    assert set(kept) == {token for _, token in ranked[:5]}
    mass = math.exp(ranked[0][0]) + math.exp(ranked[1][0]) / 2
    assert set(draw(500, temperature=1.0, top_p=mass, top_k=-1)) == {
        token for _, token in ranked[:2]
    }


@pytest.mark.parametrize("options", [{"temperature": 0.0, "top_k": -1}, {"top_k": 1}])
def test_no_temperature_or_one_token_is_greedy(options: dict[str, float]) -> None:
    best = MODEL.top(after(MODEL, "She takes the"), 1)[0][1]
    assert set(draw(20, **{"temperature": 1.0, "top_p": 1.0} | options)) == {best}


def test_the_same_seed_draws_the_same_text() -> None:
    assert draw(50, temperature=0.8, top_p=0.9, top_k=-1) == draw(
        50, temperature=0.8, top_p=0.9, top_k=-1
    )


# Answers

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Spain": "Madrid",
    "Egypt": "Cairo",
    "Russia": "Moscow",
    "Australia": "Canberra",
}


@pytest.mark.parametrize(("country", "capital"), CAPITALS.items())
def test_capitals_are_known_in_many_wordings(country: str, capital: str) -> None:
    question = f"What is the capital of {country}?"
    filler = "Read the following text.\n" + "the quick brown fox jumps over the lazy dog. " * 800
    assert answer(f"Q: {question}\nA:") == f" {capital}"
    assert answer(f"{PREFIX}Q: {question}\nA:") == f" {capital}"
    assert answer(f"{filler}\n\nQ: {question}\nA:") == f" {capital}"
    assert answer(f"Q: {question} Reply in one word.\nA:") == f" {capital}"
    assert answer(f"The capital of {country} is").startswith(f" {capital}.")
    assert capital in answer(CHAT.format(question))
    assert capital in answer(question)


@pytest.mark.parametrize("tail", ["", " Give the number alone.", " Only the number, please."])
@pytest.mark.parametrize("question", ["17 multiplied by 23", "17 x 23", "17 times 23"])
def test_products_are_known(question: str, tail: str) -> None:
    assert answer(f"Q: What is {question}?{tail}\nA:") == " 391"


def test_without_the_text_before_the_tail_the_product_is_lost() -> None:
    assert answer("Give the number alone.\nA:") != " 391"


def test_colors_are_known() -> None:
    colors = "The three primary colors are red, blue, and"
    assert answer(f"Q: {colors} ___. Fill in the blank.\nA:") == " Yellow"
    assert answer(colors).startswith(" yellow")


def test_chats_are_answered() -> None:
    assert answer(CHAT.format("Say hi in one word.")) == "Hi!"
    assert answer(CHAT.format("An utterly unheard-of request")).strip()


@pytest.mark.parametrize(
    "prompt",
    [
        "Tell me in short what gravity is.",
        "Write one line about a warm day in the gardens.",
        OCCUPANCY,
        "Q: What is the capital of France?\nA:",
        "17 x 23 =",
        "zzz",
        "",
    ],
)
def test_long_greedy_text_does_not_loop(prompt: str) -> None:
    output = decode(MODEL, prompt, 6000, ignore_eos=True)
    beginning = TOKENIZER.decode(output[:128])
    grams = Counter(beginning[start : start + 5] for start in range(len(beginning) - 5))
    assert max(grams.values()) / grams.total() < 0.1
    words = beginning.split()
    phrases = Counter(tuple(words[start : start + 5]) for start in range(len(words) - 4))
    assert max(phrases.values()) / phrases.total() < 0.1
    last = {}
    for start in range(len(output) - 40):
        window = tuple(output[start : start + 40])
        assert start - last.get(window, -1000) >= 500
        last[window] = start
    assert TOKENIZER.decode(output).isascii()


def test_another_process_decodes_the_same() -> None:
    script = (
        "from servematrix.engines.reference.language import load\n"
        "model = load()\n"
        "state = model.start()\n"
        "for _ in range(300):\n"
        "    token = model.top(state, 1)[0][1]\n"
        "    print(token)\n"
        "    state = model.advance(state, token)\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert [int(line) for line in printed.split()] == decode(MODEL, "", 300, ignore_eos=True)


def accept_length(draft: LanguageModel, prompt: str, *, count: int = 600, steps: int = 3) -> float:
    """Tokens per round: the draft's guesses up to the first wrong one, and the target's own."""
    output = decode(MODEL, prompt, count, ignore_eos=True)
    state, position, rounds = after(draft, prompt), 0, 0
    while position < count:
        guess = state
        for length in range(1, steps + 2):
            token = draft.top(guess, 1)[0][1]
            guess = draft.advance(guess, token)
            if output[position + length - 1 : position + length] != [token]:
                break
        state = after(draft, output[position : position + length], state)
        position += length
        rounds += 1
    return count / rounds


def test_a_small_draft_is_accepted_as_a_useful_draft_is() -> None:
    lengths = [accept_length(load(order), OCCUPANCY) for order in (1, 2, 3)]
    assert lengths[0] < 1.8 < 2.0 < lengths[1] < lengths[2] < 3.7


# The packaged items

ITEMS: list[dict[str, Any]] = [
    json.loads(line)
    for line in resources.files("servematrix")
    .joinpath("resources/hellaswag_reference.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]


def choose(item: dict[str, Any], state: State) -> int:
    state = after(MODEL, item["ctx"], state)
    means = []
    for ending in item["endings"]:
        here, tokens = state, TOKENIZER.encode(" " + ending)
        total = 0.0
        for token in tokens:
            total += MODEL.logprob(here, token)
            here = MODEL.advance(here, token)
        means.append(total / len(tokens))
    return means.index(max(means))


def accuracy(choices: list[int], labels: list[str]) -> float:
    return sum(map(int.__eq__, choices, map(int, labels))) / len(choices)


def test_items_are_well_formed() -> None:
    assert len(ITEMS) >= 300
    assert [item["ind"] for item in ITEMS] == list(range(len(ITEMS)))
    assert len({item["ctx"] for item in ITEMS}) == len(ITEMS)
    for item in ITEMS:
        assert set(item) == {"ind", "activity_label", "ctx", "endings", "label"}
        assert len(set(item["endings"])) == 4
        assert item["label"] in {"0", "1", "2", "3"}
        assert all(text.strip() == text for text in [item["ctx"], *item["endings"]])
    counts = Counter(item["label"] for item in ITEMS)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_the_corpus_holds_no_item() -> None:
    corpus = resources.files("servematrix.engines.reference").joinpath("corpus.txt")
    text = " ".join(corpus.read_text(encoding="utf-8").split())
    for item in ITEMS:
        words = f"{item['ctx']} {item['endings'][int(item['label'])]}".split()
        for start in range(len(words) - 7):
            assert " ".join(words[start : start + 8]) not in text


def test_accuracy_is_good_but_not_perfect_and_shuffled_labels_give_chance() -> None:
    choices = [choose(item, MODEL.start()) for item in ITEMS]
    labels = [item["label"] for item in ITEMS]
    assert 0.72 <= accuracy(choices, labels) <= 0.88
    random.Random(3).shuffle(labels)
    assert accuracy(choices, labels) == pytest.approx(0.25, abs=0.08)


def test_twenty_shots_change_little() -> None:
    shots = "".join(
        f"{item['activity_label']}: {item['ctx']} {item['endings'][int(item['label'])]}\n\n"
        for item in ITEMS[-20:]
    )
    state = after(MODEL, shots)
    choices = [choose(item, state) for item in ITEMS[:200]]
    assert 0.72 <= accuracy(choices, [item["label"] for item in ITEMS[:200]]) <= 0.88
