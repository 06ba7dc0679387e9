"""The model of the tests and the demo: converted once, and whole."""

import pytest

from examples import smollm2


def test_the_model_is_converted_once(tmp_path, monkeypatch):
    conversions = []

    def convert(directory):
        conversions.append(directory)
        (directory / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "_convert", convert)
    model = smollm2.ensure_model(tmp_path)
    assert smollm2.ensure_model(tmp_path) == model
    assert len(conversions) == 1
    assert [path.name for path in tmp_path.iterdir()] == [model.name]


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def convert(directory):
        (directory / "half.safetensors").write_text("")
        raise RuntimeError("interrupted")

    monkeypatch.setattr(smollm2, "_convert", convert)
    with pytest.raises(RuntimeError, match="interrupted"):
        smollm2.ensure_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_that_comes_second_takes_the_first_ones_result(tmp_path, monkeypatch):
    first = tmp_path / "SmolLM2-135M-Instruct"

    def convert(directory):
        first.mkdir()
        (first / "config.json").write_text("the first one's")
        (directory / "config.json").write_text("the second one's")

    monkeypatch.setattr(smollm2, "_convert", convert)
    assert smollm2.ensure_model(tmp_path) == first
    assert (first / "config.json").read_text() == "the first one's"
    assert list(tmp_path.iterdir()) == [first]


def test_the_cache_directory_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENCAKE_CACHE_DIR", str(tmp_path))
    assert smollm2.default_cache_dir() == tmp_path


@pytest.mark.slow
def test_the_tokenizer_round_trips_and_knows_the_chat_template():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2.ensure_model())
    for text in ("def f(x):\n    return x ** 2", "Naïve café, 東京, 12345 🙂", "  spaces  kept  "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.slow
def test_the_weights_answer_a_question():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = smollm2.ensure_model()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
