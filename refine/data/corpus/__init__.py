"""The raw text in data/ and its version. Begin with `fetch`, which writes data/ out of `sources`; `version` compares it
with data.dvc; `dvc` and `dvc_stages` run DVC.
"""
