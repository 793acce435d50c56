"""Whether several models mean the same tokens by the same ids, as all members of a mixture must."""

from pathlib import Path

from transformers import AutoTokenizer


def vocab_sizes(members) -> list[int]:
    """Rows of each member's output matrix, padding included."""
    return [m.get_output_embeddings().weight.shape[0] for m in members]


def check_same_tokenizer(members) -> None:
    """Refuse members whose tokenizers, where they can be found on disk, give different ids to the same text."""
    vocabularies = {}
    for name in dict.fromkeys(m.config.name_or_path for m in members):
        if lacks_tokenizer(name):
            continue
        try:
            vocabularies[name] = AutoTokenizer.from_pretrained(name, local_files_only=True).get_vocab()
        except Exception:  # a model made in memory: nothing to compare
            continue
    for name, vocabulary in vocabularies.items():
        first = next(iter(vocabularies))
        if vocabulary != vocabularies[first]:
            raise ValueError(f"{first} and {name} have different tokenizers: their logits mean different tokens")


def lacks_tokenizer(name: str | Path) -> bool:
    """Whether this is a folder of a model saved without its tokenizer: transformers would make up an empty one."""
    return Path(name).is_dir() and not any(any(Path(name).glob(kind)) for kind in ("tokenizer*", "vocab*", "*.model"))
