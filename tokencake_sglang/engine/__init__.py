"""HOW: the adapter to SGLang, the only importer of ``sglang.srt`` in a server beside ``platforms``."""
