"""Prompts and demonstrations as tokens: nothing is lost, they begin as the model wants it, and they end."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from logitmix_lite.tasks import end_tokens
from logitmix_lite.tasks.generated import Problem
from logitmix_lite.tasks.load import encode_demo, encode_prompt

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ '<assistant>' if add_generation_prompt }}"
ENDS = "{% for m in messages %}{{ m.content }}\n<end>\n{% endfor %}"
PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}<end>{% endfor %}"
PRINTABLE = "".join(map(chr, range(32, 127)))
TOKENS = ["<pad>", "<unk>", "<eos>", "<end>", "<bos>"]  # 2 ends a text, 3 a turn


def make(characters=PRINTABLE, lower=False, nfkc=False, unk=False, bos=False, **options):
    """A tokenizer with one token a character."""
    tokens = {token: k for k, token in enumerate([*TOKENS, *characters])}
    inner = Tokenizer(models.BPE(tokens, merges=[], unk_token="<unk>" if unk else None))
    steps = [normalizers.NFKC()] * nfkc + [normalizers.Lowercase()] * lower
    if steps:
        inner.normalizer = normalizers.Sequence(steps)
    inner.decoder = decoders.Fuse()
    if bos:
        inner.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A $B", [("<bos>", 4)])
        options["bos_token"] = "<bos>"
    options = dict(eos_token="<eos>", unk_token="<unk>" if unk else None) | options
    return PreTrainedTokenizerFast(tokenizer_object=inner, additional_special_tokens=["<end>"], **options)


def test_prompts_and_demonstrations():
    tokenizer = make()
    problem = Problem("1+2?", "3", "1+2=3; \\boxed{3}")
    prompt, completion = encode_demo(tokenizer, problem)
    assert tokenizer.decode(prompt) == "1+2?" and prompt == encode_prompt(tokenizer, "1+2?")
    assert tokenizer.decode(completion[:-1]) == problem.solution and completion[-1] == tokenizer.eos_token_id
    _, completion = encode_demo(tokenizer, Problem("1+2?", "3"))
    assert tokenizer.decode(completion) == "\\boxed{3}<eos>"
    assert tokenizer.decode(encode_prompt(tokenizer, "1+2?", "Box it.")) == "1+2? Box it."

    tokenizer.chat_template = CHAT
    prompt, again = encode_demo(tokenizer, problem, "Box it.")
    assert tokenizer.decode(prompt) == "<user>1+2? Box it.<assistant>" and all(isinstance(k, int) for k in prompt)
    turn = [{"role": "user", "content": "1+2? Box it."}]
    assert prompt == tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(again) == problem.solution + "<eos>"
    assert encode_demo(tokenizer, problem, end=3)[1][-1] == 3
    assert tokenizer.decode(encode_prompt(tokenizer, "1+2?")) == "<user>1+2?<assistant>"


def test_a_demonstration_needs_an_end():
    tokenizer = make(eos_token=None)
    with pytest.raises(ValueError, match="no end token"):
        encode_demo(tokenizer, Problem("1+2?", "3"))
    assert encode_demo(tokenizer, Problem("1+2?", "3"), end=2)[1][-1] == 2


@pytest.mark.parametrize("unk", [False, True])
@pytest.mark.parametrize("chat", [None, CHAT])
def test_characters_that_would_vanish_are_named(unk, chat):
    tokenizer = make("0123456789+-=?<>asertuin", unk=unk)
    tokenizer.chat_template = chat
    assert len(encode_prompt(tokenizer, "3+4?")) >= 4
    with pytest.raises(ValueError, match=r"no token for \* ÷: '3\*4÷2' would be read as '342'"):
        encode_prompt(tokenizer, "3*4÷2")
    assert encode_prompt(tokenizer, "3+4?", "Box it!")  # an instruction may be read with gaps
    with pytest.raises(ValueError, match="no token for"):
        encode_demo(tokenizer, Problem("3+4?", "7", "3+4=7 \\boxed{7}"))


def test_a_template_that_loses_the_question_is_refused():
    tokenizer = make()
    tokenizer.chat_template = PARTS
    with pytest.raises(ValueError, match="loses the question 'What is 3"):
        encode_prompt(tokenizer, "What is 3*4?")
    tokenizer.chat_template = "{% for m in messages %}"
    with pytest.raises(ValueError, match="chat template can't be used"):
        encode_prompt(tokenizer, "What is 3*4?")


def test_what_tokenizers_normalise_is_not_lost():
    text = "Ｗhat is  ½ of ４２，\u00a0Zoë…?\u200b"
    assert encode_prompt(make(PRINTABLE + "\u2044ë", lower=True, nfkc=True), text)
    byte_level = Tokenizer(models.BPE({c: k for k, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    byte_level.pre_tokenizer, byte_level.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    assert encode_prompt(PreTrainedTokenizerFast(tokenizer_object=byte_level), text + "是 🙂 \\frac{1}{2}")
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "what": 1, "is": 2, "##n": 3, "'": 4, "t": 5}, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words.decoder = decoders.WordPiece()
    words = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    assert encode_prompt(words, "Whát  isn't") == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="no token for"):
        encode_prompt(words, "what else")


def test_the_beginning_token_is_there_where_the_tokenizer_adds_one():
    tokenizer = make(bos=True)
    assert encode_prompt(tokenizer, "1+2?") == tokenizer("1+2?")["input_ids"] and tokenizer("")["input_ids"] == [4]
    prompt, completion = encode_demo(tokenizer, Problem("1+2?", "3"))
    assert prompt.count(4) == 1 and prompt[0] == 4 and 4 not in completion
    tokenizer.chat_template = CHAT  # which has to write it where the model wants it
    assert 4 not in encode_prompt(tokenizer, "1+2?")
    tokenizer.chat_template = "{{ bos_token }}" + CHAT
    assert encode_prompt(tokenizer, "1+2?").count(4) == 1
    assert 4 not in encode_prompt(make(bos_token="<bos>"), "1+2?")  # has one, and does not add it


def test_all_ends_of_a_turn_are_known():
    tokenizer = make()
    assert end_tokens(tokenizer, None) == [2] and end_tokens(tokenizer, 2) == [2]
    assert end_tokens(tokenizer, [2, 3]) == [2, 3] and end_tokens(tokenizer, 3) == [2, 3]
    tokenizer.chat_template = ENDS
    assert end_tokens(tokenizer, [2, 3]) == [3, 2] == end_tokens(tokenizer, None)
    tokenizer.chat_template = CHAT  # writes no token after an answer
    assert end_tokens(tokenizer, [2, 3]) == [2, 3]
    assert end_tokens(make(eos_token=None), None) == [] and end_tokens(make(eos_token=None), [3]) == [3]
    tokenizer.chat_template = "{{ oops"
    with pytest.raises(ValueError, match="chat template can't be used"):
        end_tokens(tokenizer, None)
