"""HOW: the adapter to SGLang. The only package that imports ``sglang.srt``."""
