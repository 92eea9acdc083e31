"""Prompts to train on and to test with, all in the schema of `prompt`: needles, questions over documents, LongBench.

Begin with `prompt`; `tasks` lists every task, `encoding` turns prompts into tokens.
"""
