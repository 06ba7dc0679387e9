"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

The package index offers no CPU build of torchvision. The CUDA one cannot load its C++ operators
beside a CPU torch, and its import then fails while it registers fake kernels for two of them.
`import sglang` imports torchvision (through transformers) before any SGLang plugin can run, so the
two operators are declared when Python starts: `create.sh` puts this file into site-packages of the
CPU environment, with a `.pth` file that imports it. Calling the operators still fails.
"""

import importlib.abc
import sys


class _DeclareOperatorsBeforeImport(importlib.abc.MetaPathFinder):
    """Finds nothing; acts once, when torchvision is first looked for."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_operators()


def _declare_operators():
    import torch

    global _library  # the declarations live as long as this object
    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, _DeclareOperatorsBeforeImport())
