"""Problems: split, generated or from data sets; how one becomes tokens; when an answer is right."""

from .load import Task, encode_demo, encode_prompt, end_tokens, load_task

__all__ = ["Task", "encode_demo", "encode_prompt", "end_tokens", "load_task"]
